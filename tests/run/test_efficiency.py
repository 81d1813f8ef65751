"""What counts as writing and what as answering."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.ground import Ground
from metatuner.harness.query import to_query
from metatuner.metering import peak_allocated
from metatuner.run.efficiency import TimedGround, Written
from tests.toys.baselines import NEW_TOKENS, sums, tiny_lm

QUERIES = [to_query(row) for row in sums(4)]


@contextmanager
def slow(batch: list[int]) -> Iterator[None]:
    time.sleep(0.3)  # making a batch's factors
    yield


def test_making_a_batchs_adaptation_is_no_part_of_answering(tmp_path: Path) -> None:
    benchmarks = {"gsm8k": get_benchmark("gsm8k").with_overrides(max_new_tokens=NEW_TOKENS)}
    ground = TimedGround(tiny_lm(), None, benchmarks)
    start = time.perf_counter()
    found = ground.answer(QUERIES, "count", adapt=slow)
    total = time.perf_counter() - start
    assert 0 < ground.answering <= total - 0.3
    plain = Ground(tiny_lm(), None, benchmarks).answer(QUERIES, "count")
    assert found == plain
    ground.writing_only = True
    with pytest.raises(Written):
        ground.answer(QUERIES, "count")
    entered = []

    @contextmanager
    def noted(batch: list[int]) -> Iterator[None]:
        entered.append(batch)
        yield

    with pytest.raises(Written):
        ground.answer(QUERIES, "count", adapt=noted)
    assert entered == [[0, 1, 2, 3]]
    ground.writing_only = False
    before = ground.answering
    ground.answer(QUERIES, "count")
    assert ground.answering > before


def test_the_peak_is_what_is_held_at_once_and_not_the_sum() -> None:
    def run() -> None:
        for _ in range(5):
            torch.zeros(1000, 1000).add_(1)  # 4 MB, gone before the next

    peak = peak_allocated(run, torch.device("cpu"))
    assert 4_000_000 <= peak < 9_000_000
