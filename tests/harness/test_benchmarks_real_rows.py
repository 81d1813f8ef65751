"""On every real row at hand the gold answer scores 1 and another row's answer 0 (rows: METATUNER_DATA)."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from metatuner.harness.benchmarks import benchmark_ids, get_benchmark, load_rows
from metatuner.harness.metrics import equivalence
from metatuner.harness.metrics.equivalence import Comparer, Limits
from metatuner.harness.rows import Row


def rows_of(data_root: Path, benchmark: str) -> list[Row]:
    files = [data_root / benchmark / f"{split}.jsonl" for split in ("train", "test")]
    return [row for file in files for row in load_rows(get_benchmark(benchmark), file)]


@pytest.fixture
def patient_comparer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Comparer]:
    comparer = Comparer(Limits(cpu_seconds=20))
    monkeypatch.setattr(equivalence, "_comparer", comparer)
    yield comparer
    comparer.close()


@pytest.mark.parametrize("name", benchmark_ids())
def test_every_gold_completion_scores_one(data_root: Path, name: str) -> None:
    benchmark, rows = get_benchmark(name), rows_of(data_root, name)
    scored = benchmark.score_all([benchmark.extract(row.target, row) for row in rows], rows)
    assert {row.id for row, one in zip(rows, scored, strict=True) if set(one.metrics.values()) != {1.0}} == set()
    assert all(tuple(one.metrics) == benchmark.metrics for one in scored)


@pytest.mark.parametrize("name", ["gsm8k", "hotpotqa", "cosmosqa"])
def test_every_wrong_completion_scores_zero(data_root: Path, name: str) -> None:
    benchmark, rows = get_benchmark(name), rows_of(data_root, name)
    by_gold = {row.gold: row for row in rows}
    others = [next(other for gold, other in by_gold.items() if differs(gold[0], row.gold[0])) for row in rows]
    scored = benchmark.score_all(
        [benchmark.extract(other.target, row) for other, row in zip(others, rows, strict=True)], rows
    )
    assert {row.id for row, one in zip(rows, scored, strict=True) if one.metrics[benchmark.primary] != 0.0} == set()


def differs(left: str, right: str) -> bool:
    """As numbers where both are, else as words in lower case: stricter than any of the metrics."""
    try:
        return float(left) != float(right)
    except ValueError:
        return not set(left.lower().split()) & set(right.lower().split())


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow, id="all"), pytest.param(40, id="sample")])
def test_every_math_gold_equals_itself_in_the_worker_and_not_another_answer(
    data_root: Path, patient_comparer: Comparer, share: int
) -> None:
    benchmark, rows = get_benchmark("math"), rows_of(data_root, "math")
    golds = sorted({row.gold[0] for row in rows})
    # Left out: plain integers, and an empty box, which math-verify reads as nothing; equal texts need no worker.
    expressions = [gold for gold in golds if gold and not gold.isdigit()]
    # Long integers that rows answer with: one is wrong for every row whose answer does not show its digits.
    integers = [gold for gold in golds if re.fullmatch("[0-9]{6,}", gold)]
    # Golds are sorted, so every so many of them are of all forms.
    expressions, rows = expressions[::share], sorted(rows, key=lambda row: (row.gold, row.id))[::share]
    assert len(expressions) > 2000 / share
    assert [gold for gold in expressions if not patient_comparer.compare(gold, gold).equal] == []
    wrong = [next(text for text in integers if text not in re.sub("[^0-9]", "", row.gold[0])) for row in rows]
    scored = benchmark.score_all(wrong, rows)
    assert {row.id for row, one in zip(rows, scored, strict=True) if one.metrics["accuracy"] != 0.0} == set()
    assert all(one.stopped is None for one in scored)
