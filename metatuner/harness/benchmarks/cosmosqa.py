"""Cosmos QA: four-way commonsense reading comprehension (Huang et al., arXiv 1909.00277)."""

import re
from typing import Any

from metatuner.harness.benchmarks.base import Benchmark, HubSource, int_field, kind_of, text_field
from metatuner.harness.metrics import statements
from metatuner.harness.metrics.text import normalise_answer
from metatuner.harness.rows import Row, normalise_text

_LETTERS = "ABCD"
_OPTION = re.compile(r" \(([A-D])\)(?= |$)")
# What closes and opens a letter besides emphasis: "(B)", "[B]", "<B>", '"B"'.
_OPEN, _CLOSE = "[(\\[<\"'\u201c\u2018{]", "[)\\]>\"'\u201d\u2019}]"
# A letter at the start of a statement. "A meal" and "a meal" begin with an article; "Because" is a word.
_LED = re.compile(
    rf"\W{{0,3}}?(?:(?i:option|choice|letter|answer) )?"
    rf"(?:{_OPEN} ?(?P<enclosed>[A-Da-d]) ?{_CLOSE}"
    r"|(?P<b>[B-D])(?![\w'\u2019]|\.\w)"
    r"|(?P<a>A)(?![\w'\u2019]|\.\w| (?!because\b|since\b|as\b|is\b|and\b|or\b|[-\u2013\u2014(=]))"
    r"|(?P<small>[a-d])(?=\s?(?:[.):,;]|$)))"
)
_OTHERS = re.compile(rf"(?:,|/| ?,? ?(?:and|or)\b|&) ?{_OPEN}?([A-D])(?![\w'\u2019])")
_LONE_LETTERS = re.compile(r"(?<![\w'\u2019])([A-D])(?![\w'\u2019])")
_IN_PARENTHESES = re.compile(r"\( ?([A-Da-d]) ?\)")
_CHOSEN = re.compile(
    r"\b(?:choose|pick|select|chose|picked|selected|go with|opt for|going with|choosing)"
    r"(?: (?:option|answer|choice|letter))? "
    rf"{_OPEN}? ?(?P<letter>[A-D])(?![\w'\u2019])"
)
_CALLED_RIGHT = re.compile(
    rf"(?:\b[Oo]ption |\b[Cc]hoice |\b[Aa]nswer |(?<![\w'\u2019])){_OPEN}? ?(?P<letter>[A-D]) ?{_CLOSE}?"
    r"(?: is| would be| seems(?: to be)?| must be)(?: the| most likely| clearly| likely| therefore)*"
    r" (?:correct|right|best|true|most (?:likely|plausible|appropriate)|answer)",
)
_CONCLUSION = re.compile(
    r"(?:^|[.!?\n] ?)(?:(?i:so|thus|therefore|hence),? ?)?(?:(?i:it is|it's|it must be) )?"
    rf"{_OPEN}?(?P<letter>[A-D]){_CLOSE}?[.!]?$",
    re.MULTILINE,
)
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}|\\[()\[\]]|(?<!\\)\$")


class CosmosQA(Benchmark):
    """Raw rows: `context`, `question`, `answer0` .. `answer3`, `label` (0..3)."""

    id = "cosmosqa"
    version = 2
    metrics = ("accuracy",)
    primary = "accuracy"
    # The labels of the official test split are not public.
    hub = HubSource(
        "allenai/cosmos_qa",
        None,
        "refs/convert/parquet",
        train="train",
        test="validation",
        rows={"train": 25262, "test": 2985},
    )
    paper_test_size = 2000
    initial_prompt = "choose the best option"
    max_new_tokens = 256

    def row(self, raw: dict[str, Any]) -> Row:
        """Context, question and lettered options; the target is the right option's text and letter."""
        context = text_field(raw, "context")
        texts = [text_field(raw, f"answer{i}") for i in range(4)]
        label = int_field(raw, "label", 0, 3)
        options = [f"{text} ({letter})" for text, letter in zip(texts, _LETTERS, strict=True)]
        return Row(
            id=text_field(raw, "id"),
            benchmark=self.id,
            query=f"{context}\nQuestion: {text_field(raw, 'question')}\nOptions: {' '.join(options)}",
            gold=(_LETTERS[label],),
            target=options[label],
            kind=kind_of(raw, "all"),
            group=normalise_text(context),
        )

    def extract(self, completion: str, row: Row) -> str | None:
        """The letter of the option that the completion chooses; None if it chooses none, or several.

        The most explicit form counts: a box or "the answer is", else a line that is or begins with a letter, else the
        last letter in parentheses. An option's text counts as its letter where no letter is stated.
        """
        options = _options(row.query)
        text = statements.without_emphasis(statements.tidy(statements.after_thought(completion)))
        parts = statements.segments(_WRAPPER.sub(r"\1", text))
        readers = (_boxed, _stated, _line, _parenthesised, _alone)
        return statements.first_of(parts, *(lambda part, read=read: read(part, options) for read in readers)) or None

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the letter names the right option."""
        return {"accuracy": float(extracted in row.gold)}


def _options(query: str) -> dict[str, str]:
    """The letter of each option's text, normalised, from a query that `CosmosQA.row` rendered."""
    found: dict[str, str] = {}
    rest = query.rpartition("\nOptions: ")[2]
    for letter in _LETTERS:
        text, _, rest = rest.partition(f" ({letter})")
        found.setdefault(_normalised(text), letter)
    return found


def _normalised(text: str) -> str:
    return normalise_answer(text.translate({ord("\u2019"): "'"}))


def _boxed(text: str, options: dict[str, str]) -> str | None:
    boxes = statements.boxes(text)
    return _read(boxes[-1][2], options) if boxes else None


def _stated(text: str, options: dict[str, str]) -> str | None:
    for statement in statements.statements(text):
        if (found := _read(statement.text, options)) is not None:
            return found
    chosen = [match for form in (_CHOSEN, _CALLED_RIGHT, _CONCLUSION) for match in form.finditer(text)]
    if not chosen:
        return None
    last = max(chosen, key=lambda match: match.end())
    return str(last["letter"])


def _line(text: str, options: dict[str, str]) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    led = [(line, match) for line in lines if (match := _LED.match(line))]
    if len({_letter(match) for _, match in led}) > 1 and len(led) > 2:
        # The options are listed: only a line with nothing but a letter chooses.
        lines = [line for line in lines if len(line.strip(" ().[]")) == 1]
    for line in (lines[-1:] + lines[:1]) if lines else []:
        if found := _read(line, options, alone=True):
            return found
    return None


def _parenthesised(text: str, options: dict[str, str]) -> str | None:
    for line in reversed(text.split("\n")):
        letters = _IN_PARENTHESES.findall(line)
        if letters and [letter.upper() for letter in letters] != list(_LETTERS):
            return str(letters[-1]).upper()
    return None


def _alone(text: str, options: dict[str, str]) -> str | None:
    """The only capital letter of a short text, as in "B it is"."""
    letters = set(_LONE_LETTERS.findall(text)) if len(text) < 40 else set()
    return letters.pop() if len(letters) == 1 and letters != {"A"} else None


def _read(text: str, options: dict[str, str], *, alone: bool = False) -> str | None:
    """The option that a statement names by its letter or its text; "" if it names several letters."""
    line = statements.first_line(text)
    for whole in (line, statements.sentence(line)):
        lettered = _IN_PARENTHESES.search(whole) or _LONE_LETTERS.fullmatch(whole.strip(" ."))
        if (letter := options.get(_normalised(whole))) is not None and not lettered:
            return letter
    match = _LED.match(line)
    if match is None or (alone and match["a"] and len(line) > match.end() + 1 and line[match.end()] == " "):
        return None
    letter = _letter(match)
    others = _OTHERS.match(line, match.end())
    return "" if others and others[1] != letter else letter


def _letter(match: re.Match[str]) -> str:
    return next(value for value in match.groups() if value).upper()
