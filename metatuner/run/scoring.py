"""Scores of answers of any origin, with the benchmarks' own extraction and metrics (`metatuner score`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.files import read_lines, read_text
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.rows import Row

HOW = 'give one JSON object per line: {"benchmark": ..., "completion": ..., "row": {...}}'


def score_file(path: Path) -> list[dict[str, Any]]:
    """The scored answers of a JSON Lines file, in its order.

    Args:
        path: one object per line: `benchmark` (an id), `completion` (text) and `row` (a raw row of the benchmark; it
            needs no `id`). Other keys are kept.

    Returns:
        Each object without `completion` and `row`, with `extracted` (text or None), every metric of the benchmark (0 to
        1) and `stopped` (why scoring stopped early, or None).

    Raises:
        UserError: a line lacks a key or a field of the row, or names no benchmark; the message names file and line.
    """
    text = read_text(path, HOW)
    if text.startswith("\ufeff"):
        raise UserError(f"{path}: starts with a byte-order mark; save it as UTF-8 without one")
    lines = [number for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: no answers in it; {HOW}")
    records = read_lines(path, HOW)
    asked = [_read(record, f"{path}, line {number}") for number, record in zip(lines, records, strict=True)]
    scored: list[dict[str, Any]] = [{}] * len(records)
    for name in dict.fromkeys(row.benchmark for row, _ in asked):
        benchmark = get_benchmark(name)
        chosen = [i for i, (row, _) in enumerate(asked) if row.benchmark == name]
        rows = [asked[i][0] for i in chosen]
        extracted = [benchmark.extract(asked[i][1], row) for i, row in zip(chosen, rows, strict=True)]
        for i, answer, found in zip(chosen, extracted, benchmark.score_all(extracted, rows), strict=True):
            kept = {key: value for key, value in records[i].items() if key not in ("completion", "row")}
            scored[i] = {**kept, "extracted": answer, **found.metrics, "stopped": found.stopped}
    return scored


def _read(record: dict[str, Any], place: str) -> tuple[Row, str]:
    benchmark, completion, raw = _fields(record, ("benchmark", str), ("completion", str), ("row", dict), place=place)
    try:
        return get_benchmark(benchmark).row({"id": "row", **raw}), completion
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _fields(record: dict[str, Any], *wanted: tuple[str, type], place: str) -> Sequence[Any]:
    for name, kind in wanted:
        if not isinstance(record.get(name), kind):
            said = "text" if kind is str else "an object (a raw row)"
            raise UserError(f"{place}: {name!r} must be {said}; it is {record.get(name)!r:.60}")
    return [record[name] for name, _ in wanted]
