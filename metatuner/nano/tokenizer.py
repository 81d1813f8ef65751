r"""The tokenizer of the nano models: one token per word or digit, bytes for everything else.

It is an ordinary `tokenizer.json` (BPE without merges). A word's token includes the space before the word. Every text
gets a leading space, and decoding removes it. So any text without special tokens comes back as it was.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.nano import words
from metatuner.nano.instructions import CHAT, CLAUSES, WORDINGS
from metatuner.nano.problems import INITIAL_PROMPTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

VOCABULARY_FILE = Path(__file__).with_name("vocabulary.json")
PAD, BEGIN, END, QUERY, ANSWER, REWRITE = "<pad>", "<s>", "</s>", "<q>", "<a>", "<rewrite>"
SPECIAL = (PAD, BEGIN, END, QUERY, ANSWER, REWRITE)
LINE_STARTS = ("Question", "Options")
_PIECES = r" ?\\boxed\{| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"
_SENTENCES = (
    "note means and . now ? has of in total how many count the simplify reduce collect solve root determine compute "
    "evaluate calculate ( ) = + - * / ; #### facts : who where name lives resides was became what did do next happened "
    "after why that reason which feel mood fits people often is older younger , Question Options Answer \\boxed{"
).split()


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary (as in GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def language_words() -> list[str]:
    """Every word that the language writes after a space, sorted."""
    texts: list[str] = [
        *words.NAMES, *words.NEW_NAMES, *words.OBJECTS, *words.NEW_OBJECTS, *words.CONTAINERS, *words.NEW_CONTAINERS,
        *words.VARIABLES, *words.NEW_VARIABLES, *words.CITIES, *words.NEW_FORMS, *words.NEW_WORDS,
        *[form for forms in words.KNOWN_FORMS.values() for form in forms],
        *[text for texts in words.FOLLOWS.values() for text in texts],
        *[text for parts in WORDINGS.values() for texts in parts for text in texts],
        *[text for clauses in CLAUSES.values() for text in clauses],
        *CHAT, *INITIAL_PROMPTS.values(), *_SENTENCES, "please", "then", *"0123456789ABCD",
    ]  # fmt: skip
    return sorted({word for text in texts for word in text.split()})


def build_vocabulary() -> list[str]:
    """Token strings in order of id: special tokens, bytes, words (byte-level spelling)."""
    letters = byte_letters()

    def spell(text: str) -> str:
        return "".join(letters[byte] for byte in text.encode())

    return [
        *SPECIAL,
        *[letters[byte] for byte in range(256)],
        *[spell(" " + word) for word in language_words()],
        *[spell(word) for word in LINE_STARTS],
    ]


@cache
def vocabulary() -> dict[str, int]:
    """The frozen vocabulary: token string -> id."""
    return {token: index for index, token in enumerate(json.loads(VOCABULARY_FILE.read_text(encoding="utf-8")))}


def build_tokenizer() -> "Tokenizer":
    """The tokenizer as the `tokenizers` library runs it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary(), merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def chat_template(answer: str) -> str:
    """System turn, then user and assistant turns; an assistant's turn begins with the special token `answer`."""
    return (
        f"{{{{ '{BEGIN}' }}}}{{% for m in messages %}}"
        "{% if m.role == 'system' %}{{ m.content }}"
        f"{{% elif m.role == 'user' %}}{{{{ '{QUERY}' + m.content }}}}"
        f"{{% else %}}{{{{ '{answer}' + m.content + '{END}' }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{answer}' }}}}{{% endif %}}"
    )


def transformers_tokenizer(answer: str, window: int) -> "PreTrainedTokenizerFast":
    """The tokenizer in the form that a model folder holds."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens=[QUERY, ANSWER, REWRITE],
        model_max_length=window,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=chat_template(answer),
    )


def alike(vocab: dict[str, int]) -> Iterable[tuple[int, int]]:
    """Pairs (with a space, without) of tokens that mean the same: digits, letters of options, line starts."""
    space = byte_letters()[ord(" ")]
    for text in (*"0123456789ABCD", *LINE_STARTS):
        yield vocab[space + text], vocab[text]
