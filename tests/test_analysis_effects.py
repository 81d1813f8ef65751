"""Contrasts, effect sizes and sample sizes, against closed forms, published examples and simulation."""

from math import inf, isinf

import numpy as np
import pytest
from scipy import stats

from metatuner.analysis.effects import (
    Gaps,
    cohens_dz,
    cohens_h,
    contrast,
    needed_queries,
    probability_of_improvement,
    unpaired_difference,
)
from metatuner.analysis.statistics import paired_difference

RNG = np.random.default_rng(0)


def right(chance: float, seeds: int = 3, n: int = 200, rng: np.random.Generator = RNG) -> np.ndarray:
    return (rng.random((seeds, n)) < chance).astype(float)


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_over_one_benchmark_it_is_the_paired_difference(seeds: int) -> None:
    first, second = right(0.6, seeds), right(0.5, seeds)
    told = contrast([Gaps(first - second, binary=True)], seed=7)
    other = paired_difference(first, second, seed=7)
    assert (told.estimate, told.low, told.high) == (other.estimate, other.low, other.high)
    assert told.standard_error == other.standard_error
    assert told.conditional == other.conditional == (seeds < 5)
    assert told.p == pytest.approx(other.p, rel=0.05)
    assert told.p_greater == pytest.approx(told.p / 2)


def test_benchmarks_count_alike_whatever_their_size() -> None:
    small, large = np.full((1, 10), 0.3), np.full((1, 1000), 0.1)
    assert contrast([Gaps(small), Gaps(large)], seed=0).estimate == pytest.approx(0.2)


def test_its_standard_error_is_that_of_independent_means() -> None:
    parts = [right(0.6, 1, 150) - right(0.5, 1, 150), right(0.7, 1, 400) - right(0.5, 1, 400)]
    told = contrast([Gaps(part) for part in parts], seed=0)
    assert told.standard_error == pytest.approx(np.sqrt(sum(stats.sem(part[0]) ** 2 for part in parts)) / 2)


def test_against_a_margin_it_is_a_z_test() -> None:
    gaps = RNG.normal(0.03, 0.4, (1, 900))
    told = contrast([Gaps(gaps)], seed=0, margin=-0.01, resamples=20_000)
    z = (gaps.mean() + 0.01) / stats.sem(gaps[0])
    assert told.p_greater == pytest.approx(stats.norm.sf(z), abs=0.01)
    assert told.p_less == pytest.approx(stats.norm.cdf(z), abs=0.01)


def test_where_nothing_differs_it_finds_something_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for run in range(300):
        gaps = [Gaps(right(0.5, 3, 60, rng) - right(0.5, 3, 60, rng)) for _ in range(3)]
        found += contrast(gaps, seed=run, resamples=400).p <= 0.05
    assert stats.binomtest(found, 300, 0.05, alternative="greater").pvalue > 0.01


def test_the_number_of_queries_is_that_at_which_the_test_has_its_power() -> None:
    spread, difference = 0.6, 0.04
    queries = needed_queries(difference, spread / np.sqrt(100), 100)
    z = difference / (spread / np.sqrt(queries))
    assert stats.norm.sf(1.959964 - z) == pytest.approx(0.8, abs=0.002)
    assert isinf(needed_queries(0.0, 0.1, 100))
    told = contrast([Gaps(right(0.6, 1) - right(0.5, 1))], seed=0)
    assert told.needed(4) > told.needed()


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
    even = probability_of_improvement(right(0.5), right(0.5), seed=0)
    assert even.low < 0.5 < even.high


def test_unpaired_proportions_have_newcombes_interval() -> None:
    # Newcombe 1998, Statist. Med. 17:873, table II, column (a), method 10: 56/70 - 48/80.
    told = unpaired_difference([(56 / 70, 70)], [(48 / 80, 80)])
    assert (told.low, told.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    z = 0.2 / np.sqrt(0.8 * 0.2 / 70 + 0.6 * 0.4 / 80)
    assert told.p_greater == pytest.approx(stats.norm.sf(z))


def test_unpaired_means_of_several_proportions_add_their_variances() -> None:
    told = unpaired_difference([(0.5, 100), (0.7, 200)], [(0.4, 100)], margin=0.05)
    error = np.sqrt((0.25 / 100 + 0.21 / 200) / 4 + 0.24 / 100)
    assert told.estimate == pytest.approx(0.2)
    assert told.standard_error == pytest.approx(error)
    assert told.p_greater == pytest.approx(stats.norm.sf((0.2 - 0.05) / error))


def test_a_difference_far_beyond_doubt_has_no_p_value_of_zero() -> None:
    told = unpaired_difference([(0.6, 2000)], [(0.4, 2000)])
    assert told.p_greater == pytest.approx(stats.norm.sf(told.estimate / told.standard_error), rel=1e-9)
    assert 0 < told.p_greater < 1e-30
