"""Contrasts, effect sizes and sample sizes, against closed forms, published examples and simulation."""

from math import inf, isinf

import numpy as np
import pytest
from scipy import stats

from metatuner.analysis.statistics import (
    Gaps,
    cohens_dz,
    cohens_h,
    contrast,
    paired_difference,
    probability_of_improvement,
    unpaired_difference,
)
from metatuner.analysis.statistics.contrasts import needed_queries
from metatuner.analysis.statistics.intervals import TEST_RESAMPLES, bootstrap_means, mcnemar_exact


def right(chance: float, seeds: int = 3, n: int = 200, seed: int = 0) -> np.ndarray:
    """Answers that are right with a chance; other chances get other luck."""
    return (np.random.default_rng([seed, round(1000 * chance)]).random((seeds, n)) < chance).astype(float)


def all_flips(weighted: list[np.ndarray]) -> float:
    """Two-sided p-value of a sum of 0 by every way to flip the signs of its terms."""
    terms = np.concatenate(weighted)
    signs = 1 - 2 * (np.arange(2 ** len(terms))[:, None] >> np.arange(len(terms)) & 1)
    return float((np.abs(signs @ terms) >= abs(terms.sum()) - 1e-9).mean())


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_over_one_benchmark_it_is_the_paired_difference(seeds: int) -> None:
    first, second = right(0.6, seeds, 60), right(0.5, seeds, 60)
    told = contrast([Gaps(first - second, binary=True)], seed=7)
    other = paired_difference(first, second, seed=7)
    assert (told.estimate, told.low, told.high) == (other.estimate, other.low, other.high)
    assert told.standard_error == other.standard_error
    assert told.conditional == other.conditional == (seeds < 3)
    assert told.p == pytest.approx(other.p, rel=0.05)
    assert told.p_greater == pytest.approx(told.p / 2)
    assert (told.queries, told.pooled) == (60, False)


def grouped(groups: int, seed: int) -> tuple[Gaps, np.ndarray]:
    """Two seeds on one to three queries a group, and each group's sum of differences, averaged over seeds."""
    rng = np.random.default_rng(seed)
    names = [f"g{index}" for index in range(groups) for _ in range(1 + index % 3)]
    values = rng.choice([-1.0, 0.0, 1.0], (2, len(names)), p=[0.15, 0.4, 0.45])
    sums = [values[:, [each == f"g{index}" for each in names]].sum(axis=1).mean() for index in range(groups)]
    return Gaps(values, names, binary=True), np.array(sums)


def test_over_benchmarks_of_unequal_size_signs_are_flipped_with_the_weight_that_each_mean_has() -> None:
    small, large = Gaps(np.array([[1.0, 1.0, -1.0, 1.0]])), Gaps(right(0.55, 1, 12) - right(0.45, 1, 12))
    exact = all_flips([each.values[0] / each.values.size for each in (small, large)])
    assert contrast([small, large], seed=1).p == pytest.approx(exact, abs=0.006)
    assert abs(exact - all_flips([small.values[0], large.values[0]])) > 0.05  # as if queries counted alike
    (first, one), (second, two) = grouped(5, 1), grouped(9, 2)
    exact = all_flips([one / first.values.shape[1], two / second.values.shape[1]])
    assert contrast([first, second], seed=1).p == pytest.approx(exact, abs=0.006)


@pytest.mark.parametrize("seeds", [1, 2])
def test_benchmarks_are_resampled_independently_of_each_other(seeds: int) -> None:
    gaps = Gaps(right(0.6, seeds, 300) - right(0.5, seeds, 300))
    one, two = (contrast([gaps] * count, seed=3, resamples=4000) for count in (1, 2))
    assert two.high - two.low == pytest.approx((one.high - one.low) / np.sqrt(2), rel=0.06)
    assert two.estimate == pytest.approx(one.estimate)


def test_mcnemars_test_is_for_one_answer_a_query_and_a_group_each() -> None:
    gaps = right(0.65, 1, 60, seed=3) - right(0.5, 1, 60, seed=3)
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    once = mcnemar_exact(wins, losses)
    assert 0.01 < once < 0.3
    assert contrast([Gaps(gaps, binary=True)], seed=1).p == once
    names = [f"g{index // 3}" for index in range(180)]
    thrice = [
        Gaps(np.repeat(gaps, 3, axis=1), names, binary=True),  # the queries of a group answered alike
        Gaps(np.repeat(gaps, 2, axis=0), binary=True),  # two seeds that answer alike
    ]
    for repeated in thrice:
        assert contrast([repeated], seed=1).p == pytest.approx(once, abs=0.006)
    graded = np.array([[1.0, 0.2, 0.2, 0.2, -1.0, 0.2, 0.2]])
    assert contrast([Gaps(graded)], seed=1).p == pytest.approx(all_flips([graded[0]]), abs=0.006)
    assert abs(all_flips([graded[0]]) - mcnemar_exact(6, 1)) > 0.1


@pytest.mark.parametrize("margin", [0.0, 0.02])
@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_the_reverse_of_a_contrast_is_that_of_the_reversed_differences(seeds: int, margin: float) -> None:
    gaps = [right(0.6, seeds, 50) - right(0.5, seeds, 50), right(0.7, seeds, 80) - right(0.65, seeds, 80)]
    told = contrast([Gaps(each) for each in gaps], seed=4, margin=margin, resamples=3000)
    other = contrast([Gaps(-each) for each in gaps], seed=4, margin=-margin, resamples=3000)
    assert (other.p_greater, other.p_less) == pytest.approx((told.p_less, told.p_greater), abs=0.02)
    assert (other.low, other.high, other.p) == pytest.approx((-told.high, -told.low, told.p), abs=0.02)
    assert told.p_greater < 0.5 < told.p_less


def test_it_is_conditional_where_one_benchmark_has_too_few_seeds() -> None:
    few, many = Gaps(right(0.6, 2, 40) - 0.5), Gaps(right(0.6, 6, 40) - 0.5)
    assert contrast([many, few], seed=0, resamples=200).conditional
    assert not contrast([many, many], seed=0, resamples=200).conditional
    told = contrast([few, Gaps(right(0.6, 2, 70) - 0.5)], seed=0, resamples=200)
    assert (told.queries, told.pooled, told.scope) == (110, True, "all benchmarks together")


def test_a_resampled_p_value_of_a_contrast_is_never_0() -> None:
    clear = [Gaps(np.ones((2, 90)))]
    assert contrast(clear, seed=1, resamples=99).p == 1 / 100
    assert contrast([Gaps(-clear[0].values)], seed=1, resamples=99).p_less == 1 / 200
    assert contrast(clear, seed=1, margin=0.5, resamples=99).p_greater == 1 / 100
    assert contrast(clear, seed=1).p == 1 / (1 + TEST_RESAMPLES)
    assert 0 < contrast([Gaps(np.ones((6, 90)))], seed=1).p < 1e-20  # not resampled


def test_where_queries_differ_alike_their_number_tells_a_margin() -> None:
    alike = [Gaps(np.full((1, 30), 0.05))]
    for margin, room in ((0.1, 0.9), (0.02, 1.02)):
        told = contrast(alike, seed=1, margin=margin, resamples=999)
        p = stats.norm.sf(np.sqrt(30 * abs(0.05 - margin) / room))
        near, far = (told.p_less, told.p_greater) if margin > 0.05 else (told.p_greater, told.p_less)
        assert (near, far, told.standard_error) == pytest.approx((p, 1 - p, 0.0))
    assert contrast(alike, seed=1, margin=0.05, resamples=99).p == 1.0


def test_contrasts_draw_whole_groups() -> None:
    gaps = right(0.6, 1, 50) - right(0.5, 1, 50)
    names = [f"g{index // 4}" for index in range(200)]
    once = contrast([Gaps(gaps)], seed=1, resamples=500)
    four_times = contrast([Gaps(np.repeat(gaps, 4, axis=1), names)], seed=1, resamples=500)
    assert (four_times.low, four_times.high) == pytest.approx((once.low, once.high))
    assert four_times.standard_error == pytest.approx(once.standard_error)


def test_the_same_seed_gives_the_same_contrast_and_another_gives_another() -> None:
    gaps = [Gaps(np.random.default_rng(3).normal(0.1, 1, (2, 30))) for _ in range(2)]
    first, again, other = (contrast(gaps, seed=seed, resamples=500) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.p) != (other.low, first.p)
    assert first.p != other.p


def test_benchmarks_count_alike_whatever_their_size() -> None:
    small, large = np.full((1, 10), 0.3), np.full((1, 1000), 0.1)
    assert contrast([Gaps(small), Gaps(large)], seed=0).estimate == pytest.approx(0.2)


def test_its_standard_error_is_that_of_independent_means() -> None:
    parts = [right(0.6, 1, 150) - right(0.5, 1, 150), right(0.7, 1, 400) - right(0.5, 1, 400)]
    told = contrast([Gaps(part) for part in parts], seed=0, resamples=100)
    assert told.standard_error == pytest.approx(np.sqrt(sum(stats.sem(part[0]) ** 2 for part in parts)) / 2)
    together, _ = grouped(60, 3)
    means = bootstrap_means(together.values, together.groups, seed=5)
    assert contrast([together], seed=0, resamples=100).standard_error == pytest.approx(means.std(), rel=0.06)


def test_against_a_margin_it_is_a_z_test() -> None:
    gaps = np.random.default_rng(0).normal(0.03, 0.4, (1, 900))
    told = contrast([Gaps(gaps)], seed=0, margin=-0.01, resamples=5000)
    z = (gaps.mean() + 0.01) / stats.sem(gaps[0])
    assert told.p_greater == pytest.approx(stats.norm.sf(z), abs=0.01)
    assert told.p_less == pytest.approx(stats.norm.cdf(z), abs=0.01)


def test_where_nothing_differs_it_finds_something_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for run in range(300):
        gaps = [Gaps((rng.random((3, 60)) < 0.5).astype(float) - (rng.random((3, 60)) < 0.5)) for _ in range(3)]
        found += contrast(gaps, seed=run, resamples=400).p <= 0.05
    assert stats.binomtest(found, 300, 0.05, alternative="greater").pvalue > 0.01


def test_the_number_of_queries_is_that_at_which_the_test_has_its_power() -> None:
    spread, difference = 0.6, 0.04
    queries = needed_queries(difference, spread / np.sqrt(100), 100)
    z = difference / (spread / np.sqrt(queries))
    assert stats.norm.sf(1.959964 - z) == pytest.approx(0.8, abs=0.002)
    assert isinf(needed_queries(0.0, 0.1, 100))
    told = contrast([Gaps(right(0.6, 1) - right(0.5, 1))], seed=0, margin=0.02, resamples=100)
    for tests in (1, 4):
        z = (told.estimate - 0.02) / (told.standard_error * np.sqrt(told.queries / told.needed(tests)))
        assert stats.norm.sf(stats.norm.isf(0.025 / tests) - z) == pytest.approx(0.8, abs=0.003)


def test_effect_sizes_are_their_formulas() -> None:
    gaps = Gaps(np.array([[1.0, 0.0, 1.0, -1.0], [1.0, 0.0, 0.0, 0.0]]))
    each = np.array([1.0, 0.0, 0.5, -0.5])
    assert cohens_dz(gaps) == pytest.approx(each.mean() / each.std(ddof=1))
    assert cohens_dz(Gaps(np.zeros((1, 4)))) == 0.0
    assert cohens_dz(Gaps(np.ones((1, 4)))) == inf
    assert cohens_h(0.5, 0.25) == pytest.approx(np.pi / 2 - np.pi / 3)


def test_the_probability_of_improvement_counts_pairs_and_ties_half() -> None:
    first, second = np.array([[1.0, 1.0, 0.0, 0.5]]), np.array([[0.0, 1.0, 1.0, 0.25]])
    assert probability_of_improvement(first, second, seed=0).estimate == (1 + 0.5 + 0 + 1) / 4
    one, two = right(0.5, seed=1), right(0.5, seed=2)
    even = probability_of_improvement(one, two, seed=0)
    assert even.low < 0.5 < even.high
    together = probability_of_improvement(one, two, [f"g{index // 8}" for index in range(200)], seed=0)
    assert together.estimate == even.estimate
    assert together != even


def test_unpaired_proportions_have_newcombes_interval() -> None:
    # Newcombe 1998, Statist. Med. 17:873, table II, column (a), method 10: 56/70 - 48/80.
    told = unpaired_difference([(56 / 70, 70)], [(48 / 80, 80)])
    assert (told.low, told.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    z = 0.2 / np.sqrt(0.8 * 0.2 / 70 + 0.6 * 0.4 / 80)
    assert told.p_greater == pytest.approx(stats.norm.sf(z))


def test_unpaired_means_of_several_proportions_add_their_variances() -> None:
    told = unpaired_difference([(0.5, 100), (0.7, 200)], [(0.4, 100)], margin=0.05, level=0.9)
    error = np.sqrt((0.25 / 100 + 0.21 / 200) / 4 + 0.24 / 100)
    assert told.estimate == pytest.approx(0.2)
    assert told.standard_error == pytest.approx(error)
    assert told.p_greater == pytest.approx(stats.norm.sf((0.2 - 0.05) / error))
    assert told.high - told.low == pytest.approx(2 * stats.norm.ppf(0.95) * error)
    assert (told.queries, told.pooled, told.conditional) == (300, True, True)
    assert unpaired_difference([(0.5, 100), (0.7, 100)], [(0.4, 100)], rows=100).queries == 100


def test_a_difference_far_beyond_doubt_has_no_p_value_of_zero() -> None:
    told = unpaired_difference([(0.6, 2000)], [(0.4, 2000)])
    assert told.p_greater == pytest.approx(stats.norm.sf(told.estimate / told.standard_error), rel=1e-9)
    assert 0 < told.p_greater < 1e-30
