"""Functions that the lm-eval tasks of this folder call. A document is a row as JSON; its benchmark defines the rest."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_aggregation, register_filter

from metatuner.errors import UserError
from metatuner.harness.benchmarks import Benchmark, get_benchmark
from metatuner.harness.rows import Row, read_rows

STOPPED = "stopped"
"""Key next to the metrics: why scoring an answer stopped early (see `Scored`), or None."""

_benchmark = cache(get_benchmark)


def documents(*, benchmark: str, rows: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The test documents of a task, kept in memory.

    Args:
        benchmark: the benchmark's id, from the task's `dataset_kwargs`.
        rows: a split file of the benchmark, or a folder with `<benchmark>/test.jsonl`; from lm-eval's `--metadata`.
        **_: other entries of the metadata, ignored.
    """
    if rows is None:
        raise UserError(
            f"task metatuner_{benchmark}: its rows are not named; "
            """add --metadata '{"rows": "results/PRESET/data"}' (a folder with BENCHMARK/test.jsonl)"""
        )
    path = Path(rows) / benchmark / "test.jsonl" if Path(rows).is_dir() else Path(rows)
    found = read_rows(path)
    if found[0].benchmark != benchmark:
        raise UserError(f"{path}: holds rows of {found[0].benchmark}, not of {benchmark}; name another file")
    return {"test": datasets.Dataset.from_list([row.to_json() for row in found])}


def query(document: dict[str, Any]) -> str:
    """The query without any prompt; the policy adds the prompt."""
    return str(document["query"])


def target(document: dict[str, Any]) -> str:
    """The reference completion."""
    return str(document["target"])


def score(document: dict[str, Any], extracted: Sequence[str | None]) -> dict[str, Any]:
    """The metrics of one answer, and `STOPPED`."""
    row = Row.from_json(document)
    scored = _benchmark(row.benchmark).score_all(extracted, [row])[0]
    return {**scored.metrics, STOPPED: scored.stopped}


@register_filter("metatuner_extract")
class Extract(Filter):
    """Turns the first response per document into the answer that its benchmark extracts."""

    def apply(self, resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str | None]:
        """One answer per document; None if there is none."""
        return [self._of(document).extract(responses[0]) for responses, document in zip(resps, docs, strict=True)]

    @staticmethod
    def _of(document: dict[str, Any]) -> Benchmark:
        return _benchmark(document["benchmark"])


@register_aggregation("metatuner_share")
def share(values: Sequence[object]) -> float:
    """The share of documents with a value."""
    return sum(value is not None for value in values) / len(values)
