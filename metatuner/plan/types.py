"""What a plan is made of: fits, cells, rows of scores.csv, and packs of fits or cells that one job computes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from metatuner.harness.method import settings_dict


@dataclass(frozen=True)
class Fit:
    """One call of a method's `fit`: everything that its policy depends on, and the key that hashes it."""

    key: str
    method: str
    settings: Any
    """The method's own settings: an instance of its frozen `Settings` dataclass."""
    train: tuple[str, ...]
    generator: str
    """Name of the generator; "" for a method that uses none."""
    seed: int
    requires: tuple["Fit", ...] = ()
    rows: int | None = None
    """Train rows per train benchmark, with dev rows in proportion; None: the benchmark's own sizes."""
    transfer: tuple[str, ...] = ()
    """Benchmarks that the policy may be tested on without training: the fit knows their initial prompts and limits."""
    budget: str = "default"
    """Name of the budget that limits it."""


@dataclass(frozen=True)
class Cell:
    """A fit's policy tested on the test rows of one benchmark."""

    key: str
    fit: Fit
    benchmark: str


@dataclass(frozen=True)
class Resolved:
    """The settings of a fit, and where they come from."""

    own: Any
    """The method's own settings: an instance of its frozen `Settings` dataclass."""
    required: Mapping[str, Mapping[str, Any]]
    """Overrides of the settings of required methods, by method name."""
    tuned: str = "none"
    """See `PlanRow.tuned`."""

    @property
    def values(self) -> dict[str, Any]:
        """All settings as JSON values; the settings of a required method are under its name."""
        return {**settings_dict(self.own), **self.required}


@dataclass(frozen=True)
class PlanRow:
    """A cell's place in an experiment: one line of scores.csv per metric."""

    experiment: str
    method: str
    variant: str
    benchmark: str
    trained_on: str
    generator: str
    seed: int
    cell: str
    fit: str
    settings: dict[str, Any]
    """As JSON values; what the variant sets for a required method is under that method's name."""
    tuned: str
    """Where the settings come from:

    - winner: the winner of a search.
    - inherited: a variant changes settings, and the winner is of its subject without the changes; or a method without a
      search builds on winners.
    - medians: the medians over the winners of several train benchmarks.
    - expired: the stored winner is not current.
    - untuned: no winner is stored, or the searches are of another generator.
    - none: the method has no search space.
    """

    def as_dict(self) -> dict[str, Any]:
        """The row as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class Pack:
    """Fits or cells that one job computes in one process."""

    name: str
    keys: tuple[str, ...]
    needs: tuple[str, ...]
    """Names of the fit packs that must be complete first."""
