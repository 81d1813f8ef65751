"""Seeds and queries as drawn at random: size of tests, coverage of intervals, and the variance by slow loops."""

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from metatuner.analysis.statistics import Gaps, contrast, mean_interval, paired_difference
from metatuner.analysis.statistics.spread import crossed_spread, flat_interval, flat_upper_tail

TRIALS = 1000
QUERIES = 300


def probit(mean: float, spread: float) -> float:
    """The latent mean that gives this share of right answers, if latent values have this variance."""
    return float(stats.norm.ppf(mean)) * sqrt(spread)


def two_methods(
    rng: np.random.Generator, seeds: int, points: float, queries: int = QUERIES, sizes: np.ndarray | None = None
) -> np.ndarray:
    """Binary answers (2, seeds, queries) of two methods that are equal on average over all seeds and queries.

    A query is about equally hard for both, but each method has its strengths. A method's seeds have means with a
    standard deviation of `points`. The queries of a group share hardness and strengths.
    """
    sizes = np.ones(queries, dtype=int) if sizes is None else sizes
    groups = np.repeat(np.arange(len(sizes)), sizes)
    slope = float(stats.norm.pdf(stats.norm.ppf(0.6))) / 1.5  # of the mean in the latent shift
    hardness, strengths = rng.normal(size=len(sizes)), rng.normal(size=(2, 1, len(sizes))) / 2
    shift = rng.normal(size=(2, seeds, 1)) * points / 100 / slope
    noise = rng.normal(size=(2, seeds, len(groups)))
    latent = probit(0.6, 2.25) + hardness[groups] + strengths[:, :, groups] + shift + noise
    return (latent > 0).astype(float)


def within(hits: int, low: float, high: float) -> bool:
    """Whether a share of `TRIALS` is in the range but for Monte Carlo error: neither bound is rejected at 0.001."""
    below = stats.binomtest(hits, TRIALS, low, alternative="less").pvalue
    above = stats.binomtest(hits, TRIALS, high, alternative="greater").pvalue
    return bool(min(below, above) > 0.001)


@pytest.mark.parametrize("points", [0.0, 2.0, 4.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_and_tests_hold_their_size_whatever_the_spread_of_seeds(seeds: int, points: float) -> None:
    rng = np.random.default_rng([seeds, int(points)])
    covered = rejected = corrected = 0
    for _ in range(TRIALS):
        first, second = two_methods(rng, seeds, points)
        found = paired_difference(first, second, seed=0)
        covered += found.low <= 0 <= found.high
        rejected += found.p <= 0.05
        corrected += found.p <= 0.05 / 60
    assert within(covered, 0.92, 0.97)
    assert within(rejected, 0.03, 0.07)
    assert within(corrected, 0, 0.005)  # as one of 60 tests; without the guard, 0.7 % at 3 seeds and 4 points


@pytest.mark.parametrize("seeds", [3, 5])
def test_seeds_that_are_not_looked_at_make_a_test_that_finds_what_is_not_there(seeds: int) -> None:
    """The test that these intervals replace: queries drawn, seeds as given."""
    rng, rejected = np.random.default_rng(seeds), 0
    for _ in range(300):
        gaps = np.diff(two_methods(rng, seeds, 4.0), axis=0)[0].mean(axis=0)
        rejected += abs(gaps.mean()) > 1.96 * stats.sem(gaps)
    assert rejected > 0.2 * 300


def test_groups_of_queries_are_covered_for_and_single_queries_would_not_be() -> None:
    rng, sizes = np.random.default_rng(1), 1 + np.arange(120) % 4
    names = [f"g{index}" for index in np.repeat(np.arange(120), sizes)]
    grouped = alone = 0
    for _ in range(TRIALS):
        first, second = two_methods(rng, 3, 2.0, sizes=sizes)
        for groups in (names, None):
            found = paired_difference(first, second, groups, seed=0)
            covers = found.low <= 0 <= found.high
            grouped, alone = grouped + (groups is not None and covers), alone + (groups is None and covers)
    assert within(grouped, 0.92, 0.97)
    assert alone < grouped - 0.01 * TRIALS


def test_the_mean_of_benchmarks_is_covered() -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(TRIALS):
        gaps = [Gaps(np.diff(two_methods(rng, 3, 2.0, queries), axis=0)[0]) for queries in (60, 120)]
        found = contrast(gaps, seed=0)
        covered += found.low <= 0 <= found.high
    assert within(covered, 0.92, 0.98)


@pytest.mark.parametrize(("points", "mean"), [(0.0, 0.6), (4.0, 0.6), (0.0, 0.05)])
def test_intervals_of_a_mean_cover_it(points: float, mean: float) -> None:
    rng, covered = np.random.default_rng(int(points)), 0
    slope = float(stats.norm.pdf(stats.norm.ppf(mean))) / sqrt(2)
    spread = 2 + (points / 100 / slope) ** 2
    for _ in range(TRIALS):
        shift = rng.normal(size=(3, 1)) * points / 100 / slope
        latent = probit(mean, spread) + rng.normal(size=QUERIES) + shift + rng.normal(size=(3, QUERIES))
        found = mean_interval((latent > 0).astype(float), seed=0)
        covered += found.low <= mean <= found.high
    assert within(covered, 0.92, 0.98)


def slow_spread(values: np.ndarray) -> tuple[float, float, float, float]:
    """Mean squares of seeds, of queries and of the rest, and the mean, by loops."""
    seeds, queries = values.shape
    mean = sum(values[s, q] for s in range(seeds) for q in range(queries)) / (seeds * queries)
    by_seed = [sum(values[s, q] for q in range(queries)) / queries for s in range(seeds)]
    by_query = [sum(values[s, q] for s in range(seeds)) / seeds for q in range(queries)]
    of_seed = queries * sum((each - mean) ** 2 for each in by_seed) / (seeds - 1)
    of_query = seeds * sum((each - mean) ** 2 for each in by_query) / (queries - 1)
    rest = sum((values[s, q] - by_seed[s] - by_query[q] + mean) ** 2 for s in range(seeds) for q in range(queries))
    return of_seed, of_query, rest / ((seeds - 1) * (queries - 1)), mean


@pytest.mark.parametrize("apart", [0.0, 0.5])
def test_the_variance_is_that_of_mean_squares_and_its_degrees_of_freedom_are_satterthwaites(apart: float) -> None:
    values = np.random.default_rng(4).normal(size=(4, 30)) + apart * np.arange(4)[:, None]
    of_seed, of_query, rest, _ = slow_spread(values)
    found = crossed_spread([(values, np.ones(30))])
    if apart:
        total = of_seed + of_query - rest
        shares = of_seed**2 / 3 + of_query**2 / 29 + rest**2 / 87
        assert of_seed > rest
    else:
        total, shares = of_query, of_seed**2 / 5 + of_query**2 / 29
        assert of_seed < rest
    assert found.variance == pytest.approx(total / 120)
    assert found.freedom == pytest.approx(max(3, total**2 / shares))
    assert found.cautious == pytest.approx(max(3, total**2 / (max(of_seed, rest) ** 2 / 3 + of_query**2 / 29)))


def test_groups_of_unequal_size_enter_by_the_linearised_mean() -> None:
    sizes = 1.0 + np.arange(40) % 4
    sums = np.tile(np.random.default_rng(5).binomial(sizes.astype(int), 0.6).astype(float), (3, 1))  # seeds that agree
    residuals = sums[0] - sizes * sums[0].sum() / sizes.sum()
    error = sqrt(40 / 39 * (residuals**2).sum()) / sizes.sum()  # Cochran 1977, section 9A
    assert crossed_spread([(sums, sizes)]).error == pytest.approx(error)


def test_benchmarks_add_their_parts_and_no_part_of_seeds_is_cut_at_zero_on_its_own() -> None:
    rng = np.random.default_rng(11)
    parts = [rng.normal(size=(3, queries)) for queries in (20, 50)]
    squares = [slow_spread(values)[:3] for values in parts]
    seeds = sum((of_seed - rest) / (12 * n) for (of_seed, _, rest), n in zip(squares, (20, 50), strict=True))
    queries = sum(of_query / (12 * n) for (_, of_query, _), n in zip(squares, (20, 50), strict=True))
    found = crossed_spread([(values, np.ones(values.shape[1])) for values in parts])
    assert found.variance == pytest.approx(queries + max(0.0, seeds))
    assert len({of_seed > rest for of_seed, _, rest in squares}) == 2  # one of the two would have been cut


def test_a_corrected_test_needs_more_than_seeds_that_agree_by_chance() -> None:
    values = np.random.default_rng(7).normal(size=(3, 200)) + 0.5
    values -= values.mean(axis=1, keepdims=True) - 0.5  # the seeds' means are equal
    found = crossed_spread([(values, np.ones(200))])
    assert found.freedom > 50 > 10 > found.cautious
    single = float(stats.t.ppf(0.975, found.freedom))
    assert found.quantile(0.95) == pytest.approx(max(single, stats.t.ppf(0.9, found.cautious)))
    assert found.upper_tail(6 * found.error) == pytest.approx(stats.t.sf(6, found.cautious) / 4)
    assert found.upper_tail(6 * found.error) > 100 * stats.t.sf(6, found.freedom)


def test_seeds_that_answer_alike_leave_the_choice_of_queries_alone() -> None:
    gaps = np.tile(np.random.default_rng(8).choice([-1.0, 0.0, 1.0], 80, p=[0.1, 0.6, 0.3]), (3, 1))
    found = contrast([Gaps(gaps)], seed=0)
    half = stats.t.ppf(0.975, 79) * stats.sem(gaps[0])
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half))
    assert found.p == pytest.approx(stats.ttest_1samp(gaps[0], 0).pvalue)


# ---- nothing differs -----------------------------------------------------------------------------------------------


def tango(n: int, wins: int, level: float) -> tuple[float, float]:
    """Tango's score interval (1998) of `wins` discordant pairs of n, no losses, by bisection of its score test."""

    def excess(difference: float) -> float:
        # Constrained estimate of the losing share under the hypothesis, without losses.
        losing = max(wins - (2 * n - wins) * difference, 0.0) / (2 * n)
        losing = max(losing, -difference)
        variance = n * (2 * losing + difference * (1 - difference))
        return (wins - n * difference) ** 2 / variance - stats.norm.ppf((1 + level) / 2) ** 2 if variance > 0 else -1.0

    def root(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) < 0 else (inside, middle)
        return inside

    return root(wins / n, -1 + 1e-9), root(wins / n, 1 - 1e-9) if wins < n else 1.0


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_methods_that_answer_alike_have_tangos_interval_and_never_one_without_width(seeds: int, level: float) -> None:
    same = np.zeros((seeds, 40))
    found = paired_difference(same, same, seed=0, level=level)
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    assert (found.low, found.high) == pytest.approx((-z2 / (40 + z2), z2 / (40 + z2)))
    assert (found.low, found.high) == pytest.approx(tango(40, 0, level), abs=1e-6)
    assert found.p == 1
    apart = paired_difference(same + 1, same, seed=0, level=level)
    assert (apart.low, apart.high) == pytest.approx(tango(40, 40, level), abs=1e-6)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("margin", [-0.01, 0.05])
def test_nothing_seen_decides_a_margin_only_with_enough_queries(seeds: int, margin: float) -> None:
    few, many = (contrast([Gaps(np.zeros((seeds, n)))], seed=0, margin=margin) for n in (12, 4000))
    assert few.p > 0.4
    assert many.p < 0.001
    # The interval and the test agree on where the margin lies.
    for n in (12, 60, 100, 400, 4000):
        found = contrast([Gaps(np.zeros((seeds, n)))], seed=0, margin=margin)
        assert (found.low > margin or found.high < margin) == (found.p < 0.05)


def test_groups_not_queries_say_how_much_was_seen() -> None:
    names = [f"g{index // 4}" for index in range(80)]
    together = contrast([Gaps(np.zeros((3, 80)), names)], seed=0)
    assert together.high == contrast([Gaps(np.zeros((3, 20)))], seed=0).high


def test_benchmarks_of_one_size_together_say_as_much_as_one_of_their_joint_size() -> None:
    whole = contrast([Gaps(np.zeros((3, 80)))], seed=0)
    halves = contrast([Gaps(np.zeros((3, 40))), Gaps(np.zeros((3, 40)))], seed=0)
    assert (halves.low, halves.high) == pytest.approx((whole.low, whole.high))
    uneven = contrast([Gaps(np.zeros((3, 4))), Gaps(np.zeros((3, 76)))], seed=0)
    assert uneven.high > whole.high


def test_one_query_that_differs_is_no_better_evidence_than_none() -> None:
    one = np.zeros((3, 300))
    one[:, 0] = 1.0
    none, some = (contrast([Gaps(gaps)], seed=0, margin=-0.01) for gaps in (0 * one, one))
    assert some.low < 0
    assert none.p / 3 < some.p < none.p
    assert some.p > 0.01


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (0.0, -1.0, 1.0)])
def test_the_flat_interval_and_its_p_value_agree(value: float, low: float, high: float) -> None:
    bottom, top = flat_interval(value, 50, low=low, high=high, level=0.95)
    assert low <= bottom <= value <= top <= high
    if bottom > low:
        assert flat_upper_tail(value - bottom, 50, bottom - low) == pytest.approx(0.025)
