"""Functions that the lm-eval tasks of this folder call. A document is a row as JSON; its benchmark defines the rest."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.filter import Filter
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_aggregation, register_filter
from lm_eval.api.task import ConfigurableTask

from metatuner.errors import UserError
from metatuner.harness.benchmarks import Benchmark, get_benchmark
from metatuner.harness.rows import Row, read_rows

STOPPED = "stopped"
"""Key next to the metrics: why scoring an answer stopped early (see `Scored`), or None."""

_by_id = cache(get_benchmark)
_offered: dict[str, Benchmark] = {}


def offer(benchmark: Benchmark) -> None:
    """Let tasks of this process use this benchmark by its id."""
    _offered[benchmark.id] = benchmark


def _benchmark(id: str) -> Benchmark:
    return _offered.get(id) or _by_id(id)


def documents(
    *, benchmark: str, rows: str | None = None, file: str | None = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """The test documents of a task, kept in memory.

    Args:
        benchmark: the benchmark's id, from the task's `dataset_kwargs`.
        rows: a split file of the benchmark, or a folder with `<benchmark>/test.jsonl`; from lm-eval's `--metadata`.
        file: the file that defines the benchmark, if it is not one of the package's; from the task's `dataset_kwargs`.
        **_: other entries of the metadata, ignored.
    """
    if file is not None:
        offer(get_benchmark(benchmark, [file]))
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
        rows = map(Row.from_json, docs)
        return [
            _benchmark(row.benchmark).extract(responses[0], row) for responses, row in zip(resps, rows, strict=True)
        ]


@register_aggregation("metatuner_share")
def share(values: Sequence[object]) -> float:
    """The share of documents with a value."""
    return sum(value is not None for value in values) / len(values)


class RowsTask(ConfigurableTask):
    """A task of rows. lm-eval's caches of requests and of answers never mix its rows or its benchmark with others."""

    def __init__(self, config: dict[str, Any]) -> None:
        metrics = config.get("metric_list") or []
        if STOPPED not in [entry["metric"] for entry in metrics]:  # `score` gives it for every benchmark
            metrics = [*metrics, {"metric": STOPPED, "aggregation": "metatuner_share", "higher_is_better": False}]
        known = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config=known | {"metric_list": metrics})

    def build_all_requests(
        self, *, cache_requests: bool = False, system_instruction: str | None = None, **options: Any
    ) -> None:
        """Ignores `cache_requests`: lm-eval finds cached requests by the task's name, which does not name the rows.

        Raises `UserError` for a system instruction.
        """
        if system_instruction is not None:
            raise UserError(
                f"task {self.config.task}: its query holds no instruction, because a policy has its own prompt; "
                "leave out --system_instruction"
            )
        super().build_all_requests(**options)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **options: Any) -> Instance:
        """The request of a row. A stop text that no model writes names the benchmark.

        lm-eval's cache of answers knows a request by its text and stops alone, and a query may stand in two benchmarks.
        """
        request = super().construct_requests(doc, ctx, **options)
        text, how = request.arguments
        until = how.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        request.arguments = (text, {**how, "until": [*until, f"<|metatuner {doc['benchmark']}|>"]})
        return request
