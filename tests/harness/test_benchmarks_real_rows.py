"""On every real row at hand the gold answer scores 1 and another row's answer 0 (rows: METATUNER_DATA)."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from metatuner.harness.benchmarks import benchmark_ids, get_benchmark, load_raw, load_rows
from metatuner.harness.metrics import equivalence
from metatuner.harness.metrics.equivalence import Comparer, Limits
from metatuner.harness.rows import Row, normalise_text
from tests.toys import rewritten


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


SHARE = [pytest.param(1, marks=pytest.mark.slow, id="all"), pytest.param(20, id="sample")]


def scores(name: str, completions: list[str], rows: list[Row]) -> list[float]:
    benchmark = get_benchmark(name)
    extracted = [benchmark.extract(text, row) for text, row in zip(completions, rows, strict=True)]
    scored = benchmark.score_all(extracted, rows)
    assert all(one.stopped is None for one in scored)
    return [one.metrics[benchmark.primary] for one in scored]


def check_rate(name: str, right: bool, asked: list[tuple[str, str, Row]]) -> None:
    """Of right answers 99 % of every form score 1; wrong answers score 0 without exception."""
    found = scores(name, [text for _, text, _ in asked], [row for _, _, row in asked])
    for form in dict.fromkeys(form for form, _, _ in asked):
        of_form = [(one, text, row.gold) for one, (named, text, row) in zip(found, asked, strict=True) if named == form]
        failed = [(text, gold) for one, text, gold in of_form if one != right]
        assert len(failed) <= (0.01 * len(of_form) if right else 0), (form, len(of_form), failed[:5])


@pytest.mark.parametrize("share", SHARE)
def test_right_answers_in_other_forms_score_one_and_wrong_ones_zero_gsm8k(data_root: Path, share: int) -> None:
    rows = rows_of(data_root, "gsm8k")[::share]
    spaced = [
        ("blanks", f"#### {int(row.gold[0]):,}".replace(",", " "), row) for row in rows if row.gold[0].isdecimal()
    ]
    forms = [form for form in rewritten.GSM8K if form != "#### - {}"]
    check_rate("gsm8k", True, [(form, form.format(row.gold[0]), row) for form in forms for row in rows] + spaced)
    wrong = [
        (form, form.format(other), row)
        for row in rows
        for other in rewritten.wrong_numbers(row.gold[0])
        for form in ("#### {}", "\\boxed{{{}}}", "The answer is {}.")
    ]
    check_rate("gsm8k", False, wrong)


def test_right_answers_in_other_forms_score_one_and_wrong_ones_zero_hotpotqa(data_root: Path) -> None:
    rows = rows_of(data_root, "hotpotqa")
    check_rate("hotpotqa", True, [(form, form.format(row.gold[0]), row) for form in rewritten.HOTPOTQA for row in rows])
    pairs = [(row, other) for row, other in pairwise(rows) if differs(row.gold[0], other.gold[0])]
    wrong = [(form, form.format(other.gold[0]), row) for form in rewritten.HOTPOTQA for row, other in pairs]
    check_rate("hotpotqa", False, wrong)


@pytest.mark.parametrize("share", SHARE)
def test_right_answers_in_other_forms_score_one_and_wrong_ones_zero_cosmosqa(data_root: Path, share: int) -> None:
    files = [data_root / "cosmosqa" / f"{split}.jsonl" for split in ("train", "test")]
    pairs = list(zip([raw for file in files for raw in load_raw(file)], rows_of(data_root, "cosmosqa"), strict=True))
    for right in (True, False):
        asked = [
            (form, rewritten.cosmosqa(form, raw, option), row)
            for form in rewritten.COSMOSQA
            for raw, row in pairs[::share]
            for option in range(4)
            if right == (normalise_text(raw[f"answer{option}"]) == normalise_text(raw[f"answer{raw['label']}"]))
            and (not right or option == raw["label"])
        ]
        check_rate("cosmosqa", right, asked)


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.slow, id="all"), pytest.param(40, id="sample")])
def test_right_answers_in_other_forms_score_one_and_wrong_ones_zero_math(data_root: Path, share: int) -> None:
    rows = {row.gold[0]: row for row in rows_of(data_root, "math")}
    golds = sorted(rows)[::share]
    same = rewritten.math_pairs(golds, rewritten.SAME)
    asked = [(name, rewritten.MATH[0].format(answer), rows[gold]) for name, answer, gold in same]
    asked += [(form, form.format(gold), rows[gold]) for form in rewritten.MATH for gold in golds if gold]
    check_rate("math", True, asked)
    other = rewritten.math_pairs(golds, rewritten.OTHER)
    check_rate("math", False, [(name, rewritten.MATH[0].format(answer), rows[gold]) for name, answer, gold in other])


@pytest.mark.slow
def test_fewer_right_math_answers_score_zero_than_with_lm_evals_own_scorers(data_root: Path) -> None:
    from lm_eval.tasks.hendrycks_math.utils import is_equiv
    from math_verify import parse, verify

    golds = sorted({row.gold[0] for row in rows_of(data_root, "math")})[::12]
    pairs = {
        right: rewritten.math_pairs(golds, forms) for right, forms in ((True, rewritten.SAME), (False, rewritten.OTHER))
    }
    assert sum(map(len, pairs.values())) > 2000

    def math_verify(answer: str, gold: str) -> bool:
        return bool(verify(parse(rf"$\boxed{{{gold}}}$"), parse(rf"$\boxed{{{answer}}}$")))

    def ours(answer: str, gold: str) -> bool:
        return equivalence.equivalent([(answer, [gold])])[0].equal

    wrong = {
        scorer.__name__: [
            [(answer, gold) for _, answer, gold in pairs[right] if scorer(answer, gold) != right]
            for right in (True, False)
        ]
        for scorer in (ours, is_equiv, math_verify)
    }
    zeros = {name: len(false_zeros) for name, (false_zeros, _) in wrong.items()}
    ones = {name: len(false_ones) for name, (_, false_ones) in wrong.items()}
    print(f"{sum(map(len, pairs.values()))} pairs; right answers with 0: {zeros}; wrong answers with 1: {ones}")
    assert zeros["ours"] <= 25, wrong["ours"][0]
    assert ones["ours"] <= min(4, *ones.values()), wrong["ours"][1]
    assert all(zeros["ours"] < zeros[name] for name in zeros if name != "ours")


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
