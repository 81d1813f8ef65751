"""A policy that answers by a script, and rows for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metatuner.harness.benchmarks import Benchmark, benchmark_ids, get_benchmark
from metatuner.harness.ground import Ground
from metatuner.harness.policy import Policy
from metatuner.harness.query import Prepared, Query, Response
from metatuner.harness.rows import Row, rows_to_text


class Actor(Ground):
    """Answers each query by its script: by its id, or all by one text."""

    def __init__(self, script: Mapping[str, str] | str) -> None:
        self.script = script
        self.asked: list[Query] = []
        self.limits: list[int] = []
        self.benchmarks: Mapping[str, Benchmark] = {name: get_benchmark(name) for name in benchmark_ids()}

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **how: Any) -> list[Response]:
        self.asked += queries
        self.limits += [self.benchmarks[query.benchmark].max_new_tokens for query in queries]
        if isinstance(self.script, str):
            return [Response("p", self.script, 1, 1, False) for _ in queries]
        return [
            Response(
                prompt=prompt,
                completion=self.script[query.id],
                prompt_tokens=len(query.text),
                completion_tokens=len(self.script[query.id]),
                truncated=query.id == "b",
                cut_tokens=3 if query.id == "c" else 0,
                cut_demos=2 if query.id in "ad" else 0,
            )
            for query, prompt in zip(queries, prompts, strict=True)
        ]


class Scripted(Policy):
    """Its ground answers each query by a script."""

    ground: Actor

    def __init__(self, script: Mapping[str, str] | str) -> None:
        self.ground = Actor(script)

    @property
    def asked(self) -> list[Query]:
        return self.ground.asked

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        return Prepared([f"prompt of {query.id}" for query in queries])

    def write(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Any) -> "Scripted":
        raise NotImplementedError


GOLDS = {"c": "3", "a": "1", "d": "4", "b": "2"}
ROWS = [
    Row(id, "gsm8k", f"  Q {id}?\n", (gold,), f"#### {gold}", f"kind {id}", f"group é of {id}")
    for id, gold in GOLDS.items()
]
ANSWERS = {"a": "#### 1", "b": "#### 2.0", "c": "none", "d": "é 5"}


def split_file(folder: Path, rows: Sequence[Row] = ROWS) -> Path:
    """The rows as a split file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "test.jsonl"
    path.write_text(rows_to_text(rows), encoding="utf-8")
    return path
