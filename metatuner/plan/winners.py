"""Stored winners of random search, each with the key of what it is valid for."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.files import read_json, write_json


@dataclass(frozen=True)
class Winner:
    """The best trial of one search."""

    method: str
    """The method, or METHOD.VARIANT for a variant tuned on its own."""
    benchmark: str
    settings: dict[str, Any]
    """The searched settings only; {} if the preset's own settings won."""
    score: float
    """Mean primary metric on the tune split, 0 to 100. It is about the best of all trials, so it is optimistic."""
    trials: int
    failed: int
    """Trials that did not finish; they count as tried and never win."""
    at_edge: tuple[str, ...]
    """Settings with a winning value at the edge of the range, which should be widened."""
    key: str
    """`Settings.winner_key` of the search; a winner is used while the preset has the same key."""
    commit: str | None = None
    """The commit of the code that stored it; None if it is not known."""
    date: str | None = None
    """The day on which it was stored, e.g. 2026-11-28."""
    rival: dict[str, Any] | None = None
    """The settings of the second-best trial; None if there was no other trial."""
    rival_score: float | None = None
    """The score of the rival, as `score`."""
    finalists: list[dict[str, Any]] = field(default_factory=list)
    """What was fitted with several seeds, best mean first: `settings`, `scores` by seed, `score` (their mean), `tflop`.
    Empty: one seed decided."""
    dearest: float | None = None
    """The largest compute of a trial, in TFLOP, with what it builds on; None if it is not known."""


def read_winners(path: Path) -> dict[tuple[str, str], Winner]:
    """Stored winners by (method or METHOD.VARIANT, benchmark); none if there is no file."""
    if not path.is_file():
        return {}
    records = read_json(path, "restore it, or remove it and run the `tune` target again", [{"at_edge": [str]}])
    try:
        winners = [Winner(**{**record, "at_edge": tuple(record["at_edge"])}) for record in records]
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: not a file of winners ({error}); remove it or run the `tune` target again") from None
    return {(winner.method, winner.benchmark): winner for winner in winners}


def write_winners(path: Path, winners: Iterable[Winner]) -> None:
    """Store winners, sorted, as JSON."""
    ordered = sorted(winners, key=lambda winner: (winner.method, winner.benchmark))
    write_json(path, [asdict(winner) for winner in ordered])
