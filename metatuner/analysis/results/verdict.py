"""Whether a run can be trusted: every cell has a result, diverged, or was skipped for a stated reason."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metatuner.config import DEFAULT_VARIANT
from metatuner.files import write_json


def write_verdict(rows: Iterable[Mapping[str, Any]], outcomes: Mapping[str, tuple[str, str]], path: Path) -> list[str]:
    """Write the cells without a result, and why, to a JSON file.

    Skipped and diverged cells are listed; they are not failures.

    Args:
        rows: rows of the plan, as for `scores.write_scores`. A cell that several experiments share is named once.
        outcomes: status and reason by cell key. A cell without an outcome has failed: its evaluation left no record.
        path: where to write.

    Returns:
        One line per failed cell; the verdict is ok if there are none.
    """
    cells: dict[str, list[str]] = {"failed": [], "skipped": [], "diverged": []}
    count = 0
    for key, row in {row["cell"]: row for row in reversed(list(rows))}.items():
        count += 1
        status, reason = outcomes.get(key, ("failed", "not evaluated"))
        if status != "ok":
            cells[status].append(f"{_name(row)}: {' '.join(reason.split()) or 'no reason given'}")
    named = {status: lines[::-1] for status, lines in cells.items()}
    write_json(path, {"ok": not named["failed"], "cells": count, **named})
    return named["failed"]


def _name(row: Mapping[str, Any]) -> str:
    variant = "" if row["variant"] == DEFAULT_VARIANT else f" ({row['variant']})"
    return f"{row['method']}{variant} on {row['benchmark']}, seed {row['seed']}"
