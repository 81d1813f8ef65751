"""Assumptions about models, texts and a machine without metered runs: `config/forecast.yaml`."""

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from metatuner.config import local_folder, read_yaml
from metatuner.cost.shapes import shape_of
from metatuner.errors import UserError, suggest
from metatuner.harness.loop import Shape, Shares

ASSUMED = Path("config/forecast.yaml")


@dataclass(frozen=True)
class Lengths:
    """Mean tokens on one benchmark."""

    asked: float
    """What the actor reads: p~ or a written prompt, and the query."""
    target: float
    answer: float
    request: float
    """What the generator reads before a rewrite."""
    rewrite: float
    demo: float
    """A demonstration: a query and its target."""


@dataclass(frozen=True)
class Texts:
    """Mean tokens of a benchmark's texts."""

    query: float
    target: float
    answer: float


@dataclass(frozen=True)
class TokenCounts:
    """Mean tokens, as in the file."""

    prompt: float
    rewrite: float
    rewrite_request: float
    benchmarks: dict[str, Texts]


@dataclass(frozen=True)
class Split:
    """Rows of a published data set."""

    train: int
    test: int


@dataclass(frozen=True)
class GPU:
    """An accelerator, and the shares of its FLOP per second that each kind of work reaches."""

    name: str
    flops: float
    reads: float
    writes: float
    trains: float
    memory_gb: float


@dataclass(frozen=True)
class Assumptions:
    """`config/forecast.yaml`, or another file of the same form."""

    models: dict[str, Shape]
    tokens: TokenCounts
    rows: dict[str, Split]
    shares: Shares
    gpu: GPU
    path: Path = ASSUMED

    @classmethod
    def read(cls, path: Path) -> "Assumptions":
        """Read a file. UserError names the file and the key if a value is missing or not a number."""
        values = read_yaml(path, str(path), f"name a file like {ASSUMED} (--assume)")
        try:
            return replace(TypeAdapter(cls).validate_python(values), path=path)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: key {key!r}: {first['msg']}; give it the keys of {ASSUMED}") from None

    def shape(self, model: str) -> Shape:
        """The shape of a model, by its path: from this file, or from the config.json of a local folder."""
        if model in self.models:
            return self.models[model]
        folder = local_folder(model)
        if folder is not None:
            return shape_of(folder)
        raise UserError(f"{self.path}: no shape of model {model!r} under `models`; {suggest(model, self.models)}")

    def split(self, benchmark: str) -> Split:
        """The published rows of a benchmark, for a preset that takes all rows."""
        if benchmark not in self.rows:
            raise UserError(f"{self.path}: no rows of benchmark {benchmark!r} under `rows`; add them")
        return self.rows[benchmark]

    def lengths(self, benchmark: str) -> Lengths:
        """Mean lengths on a benchmark."""
        if benchmark not in self.tokens.benchmarks:
            raise UserError(f"{self.path}: no lengths of benchmark {benchmark!r} under `tokens.benchmarks`; add them")
        mine, prompt = self.tokens.benchmarks[benchmark], self.tokens.prompt
        return Lengths(
            asked=prompt + mine.query,
            target=mine.target,
            answer=mine.answer,
            request=self.tokens.rewrite_request + prompt + mine.query,
            rewrite=self.tokens.rewrite,
            demo=mine.query + mine.target,
        )
