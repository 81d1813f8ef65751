"""What counts as writing and what as answering."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.ground import Ground
from metatuner.harness.policy import Policy
from metatuner.harness.query import Prepared, Query, to_query
from metatuner.metering import peak_allocated
from metatuner.run.efficiency import _times
from tests.toys.baselines import NEW_TOKENS, sums, tiny_lm

QUERIES = [to_query(row) for row in sums(4)]


@contextmanager
def slow(batch: list[int]) -> Iterator[None]:
    time.sleep(0.3)  # making a batch's factors
    yield


class Slow(Policy):
    """Takes its time to prepare, and to enter a batch's adaptation."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        time.sleep(0.2)
        return Prepared(["count"] * len(queries), adapt=slow)

    def write(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "Slow":
        raise NotImplementedError


def test_preparing_and_making_a_batchs_adaptation_are_writing_and_no_part_of_answering() -> None:
    benchmarks = {"gsm8k": get_benchmark("gsm8k").with_overrides(max_new_tokens=NEW_TOKENS)}
    policy = Slow(Ground(tiny_lm(), None, benchmarks))
    start = time.perf_counter()
    written, answered = _times(policy, QUERIES)
    total = time.perf_counter() - start
    assert written >= 0.5
    assert 0 < answered <= total - written + 0.01
    assert policy.respond(QUERIES) == Ground(tiny_lm(), None, benchmarks).answer(QUERIES, "count")


def test_the_peak_is_what_is_held_at_once_and_not_the_sum() -> None:
    def run() -> None:
        for _ in range(5):
            torch.zeros(1000, 1000).add_(1)  # 4 MB, gone before the next

    peak = peak_allocated(run, torch.device("cpu"))
    assert 4_000_000 <= peak < 9_000_000
