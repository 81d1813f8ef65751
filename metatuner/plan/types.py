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
    """Train rows of each train benchmark, dev rows in proportion; None: the benchmark's own sizes."""
    transfer: tuple[str, ...] = ()
    """Benchmarks that its policy may be tested on without training: it knows their initial prompts and limits."""


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
    """What differs in the settings of the methods that it requires, by their names."""
    tuned: str = "none"
    """See `PlanRow.tuned`."""

    @property
    def values(self) -> dict[str, Any]:
        """All of them as JSON values; those of a required method stand under its name."""
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
    """As JSON values; what the variant sets of a required method stands under that method's name."""
    tuned: str
    """Where they come from: winner, inherited (a variant that changes settings, under the winner of its subject without
    the changes; or a method without a search that builds on winners), medians (of the winners of several train
    benchmarks), any of these `of GENERATOR` where the search was made with another generator, expired, untuned (no
    winner is stored), none (the method has no search space)."""

    def as_dict(self) -> dict[str, Any]:
        """The row as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class Pack:
    """Fits or cells that one job computes in one process."""

    name: str
    keys: tuple[str, ...]
    needs: tuple[str, ...]
    """Names of the fit packs that must be complete before."""
