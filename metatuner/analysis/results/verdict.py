"""Whether a run can be trusted: every cell has a result or was skipped for a stated reason."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metatuner.config import DEFAULT_VARIANT
from metatuner.files import write_json


def write_verdict(rows: Iterable[Mapping[str, Any]], outcomes: Mapping[str, tuple[str, str]], path: Path) -> list[str]:
    """Write the cells without a result, and why, to a JSON file.

    Skipped cells are listed; they are not failures.

    Args:
        rows: rows of the plan, as for `scores.write_scores`. A cell that several experiments share is named once.
        outcomes: status and reason by cell key. A cell without an outcome has failed: its evaluation left no record.
        path: where to write.

    Returns:
        One line per failed cell; the verdict is ok if there are none.
    """
    cells: dict[str, list[str]] = {"failed": [], "skipped": []}
    count = 0
    for key, row in {row["cell"]: row for row in reversed(list(rows))}.items():
        count += 1
        status, reason = outcomes.get(key, ("failed", "not evaluated"))
        if status != "ok":
            cells[status].append(f"{_name(row)}: {' '.join(reason.split()) or 'no reason given'}")
    failed, skipped = cells["failed"][::-1], cells["skipped"][::-1]
    write_json(path, {"ok": not failed, "cells": count, "failed": failed, "skipped": skipped})
    return failed


def _name(row: Mapping[str, Any]) -> str:
    variant = "" if row["variant"] == DEFAULT_VARIANT else f" ({row['variant']})"
    return f"{row['method']}{variant} on {row['benchmark']}, seed {row['seed']}"
