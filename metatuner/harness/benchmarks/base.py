"""What a benchmark is: how its rows are read, asked, answered and scored."""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from metatuner.errors import UserError, suggest
from metatuner.harness.metrics.text import holds_text
from metatuner.harness.rows import Row


@dataclass(frozen=True)
class HubSource:
    """Where a benchmark's official rows are on the Hugging Face Hub."""

    path: str
    config: str | None
    revision: str | None
    train: str
    """Name of the split that train, tune and dev rows are drawn from."""
    test: str
    """Name of the split that test rows are drawn from: the official test split, or validation if the test labels are
    not public."""
    rows: Mapping[str, int]
    """Published numbers of rows in "train" and "test"."""


@dataclass(frozen=True)
class Scored:
    """The metrics of one answer."""

    metrics: dict[str, float]
    """Values in 0..1, keyed by the names in `Benchmark.metrics`."""
    stopped: str | None = None
    """Why scoring stopped early and gave 0 ("time", "memory", ...); None if it finished."""


@dataclass(frozen=True)
class Choice:
    """A key that one benchmark takes in a preset, beside the keys that all take: `benchmarks.<id>.<key>`."""

    values: Mapping[str, str]
    """Each value, with what titles say of a benchmark that has it ("": nothing). The first is the default."""
    meaning: str
    """What the key decides, for the docs."""

    @property
    def default(self) -> str:
        """The value of a preset that does not set the key."""
        return next(iter(self.values))


class Benchmark(ABC):
    """A benchmark. To add one, write a subclass in `metatuner/harness/benchmarks/<id>.py`."""

    id: ClassVar[str]
    version: ClassVar[int]
    """Must increase whenever a change to rendering, extraction or a metric changes what a score means."""
    metrics: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]
    """The metric that rewards and headline tables use; one of `metrics`."""
    hub: ClassVar[HubSource | None] = None
    paper_test_size: ClassVar[int | None] = None
    """Test rows used in the paper (arXiv 2509.24245)."""
    initial_prompt: str
    """The prompt that every method starts from (p~)."""
    stops: tuple[str, ...] = ()
    """Texts that end a completion, in addition to the model's end of turn."""
    max_new_tokens: int
    takes: ClassVar[Mapping[str, Choice]] = {}
    """The keys that this benchmark alone takes in a preset, by name."""
    _chosen: Mapping[str, str] = {}

    def with_overrides(
        self,
        *,
        initial_prompt: str | None = None,
        max_new_tokens: int | None = None,
        choices: Mapping[str, Any] | None = None,
    ) -> Self:
        """A copy of the benchmark with another initial prompt, length limit or `choices`, as set by a preset.

        Raises `UserError` if `choices` has a key that the benchmark does not take, or a value that its key has not.
        """
        changed = copy.copy(self)
        for key, value in (choices or {}).items():
            if key not in self.takes:
                raise UserError(f"benchmarks.{self.id}: unknown key {key!r}; {suggest(key, self.takes)}")
            if value not in list(self.takes[key].values):
                known = suggest(str(value), self.takes[key].values)
                raise UserError(f"config key 'benchmarks.{self.id}.{key}': no value {value!r}; {known}")
        changed._chosen = {**self._chosen, **(choices or {})}
        if initial_prompt is not None:
            changed.initial_prompt = initial_prompt
        if max_new_tokens is not None:
            changed.max_new_tokens = max_new_tokens
        return changed

    def chosen(self, key: str) -> str:
        """The value of a key of `takes`."""
        return self._chosen.get(key, self.takes[key].default)

    @property
    def remarks(self) -> list[str]:
        """What titles say of the benchmark because of its choices."""
        return [said for key, choice in self.takes.items() if (said := choice.values[self.chosen(key)])]

    def raw_from_hub(self, record: dict[str, Any], place: str) -> dict[str, Any]:
        """A Hub record as a raw row. The default keeps it; if it has no id, its place ("train-17") becomes the id."""
        return {"id": place, **record}

    def official(self, split: str) -> list[Row] | None:
        """Rows of the official `split` ("train" or "test") that the benchmark loads itself; None: `hub` says where."""
        return None

    @abstractmethod
    def row(self, raw: dict[str, Any]) -> Row:
        """Check and render a raw row. `UserError` names the field that is missing or has the wrong type."""

    @abstractmethod
    def extract(self, completion: str, row: Row) -> str | None:
        """The answer that a completion to a row states, or None if it states no answer.

        The row tells which options there are. Its reference must not guide what is extracted.
        """

    @abstractmethod
    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """The metrics of an extracted answer, each in 0..1; no answer scores 0."""

    def score_all(self, extracted: Sequence[str | None], rows: Sequence[Row]) -> list[Scored]:
        """The metrics of a batch of answers: one `Scored` per row, in order."""
        return [Scored(self.score(answer, row)) for answer, row in zip(extracted, rows, strict=True)]

    def leaks(self, prompt: str, row: Row) -> bool:
        """Whether a prompt that was written for the row's query states an answer instead of saying how to find it.

        It is a diagnostic, no part of a score. The default: the prompt holds a reference answer as whole words, and
        neither the query nor the initial prompt does.
        """
        return any(holds_text(prompt, gold, self._given(row)) for gold in row.gold)

    def _given(self, row: Row) -> str:
        """What a prompt may repeat: the query and the initial prompt."""
        return f"{row.query}\n{self.initial_prompt}"


def text_field(raw: dict[str, Any], name: str) -> str:
    """A field that must hold non-empty text."""
    value = _present(raw, name)
    if not isinstance(value, str):
        raise UserError(f"field {name!r} must be text, is {type(value).__name__}; correct the row")
    if not value.strip():
        raise UserError(f"field {name!r} is empty; fill it in or leave the row out")
    return value


def int_field(raw: dict[str, Any], name: str, low: int, high: int) -> int:
    """A field that must hold an integer from `low` to `high`."""
    value = _present(raw, name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"field {name!r} must be an integer from {low} to {high}, is {value!r}; correct the row")
    return value


def kind_of(raw: dict[str, Any], otherwise: str) -> str:
    """The row's own `kind` if it has one, else `otherwise`."""
    return text_field(raw, "kind") if "kind" in raw else otherwise


def _present(raw: dict[str, Any], name: str) -> Any:
    if name not in raw:
        raise UserError(f"field {name!r} is missing; the row has {', '.join(raw) or 'no fields'}")
    return raw[name]


def after_last(marker: re.Pattern[str], text: str) -> str | None:
    """The text after the last match of a marker; None if there is no match."""
    ends = [match.end() for match in marker.finditer(text)]
    return text[ends[-1] :] if ends else None
