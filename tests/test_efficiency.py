"""What counts as writing and what as answering."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baseline_toys import NEW_TOKENS, sums, tiny_lm

from metatuner.efficiency import TimedGround
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.ground import Ground, to_query

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
    before = ground.answering
    ground.answer(QUERIES, "count")
    assert ground.answering > before
