"""Statistics of scores, as pure functions of arrays of shape (seeds, queries). docs/statistics.md explains the choice.

All seeds of a method, and all methods, are tested on the same queries. So queries count jointly for all seeds: as
separate ones, a hard query would be several independent pieces of evidence. For the same reason, queries that share a
context count together. If groups are given, whole groups are drawn; otherwise each query is its own group.

From `MIN_SEEDS` seeds on, intervals and tests are about other seeds and other queries (`spread.crossed_spread`). With
fewer seeds they are about other queries alone, by resampling.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from metatuner.analysis.statistics.spread import Array, crossed_spread, flat_interval
from metatuner.hashing import hash_value

LEVEL = 0.95
RESAMPLES = 10_000
"""Number of resamples for an interval."""
TEST_RESAMPLES = 100_000
"""Number of resamples for a test. No p-value is below the inverse of this number, and Holm's correction multiplies
p-values by up to the number of pairs of methods."""
MIN_SEEDS = 3
"""With fewer seeds, the spread of seeds cannot be estimated: intervals are then conditional on the given seeds, and
nothing is significant."""
CHUNK = 2**21
"""Random numbers held at a time, so that memory stays bounded."""
TOLERANCE = 1e-9
"""Two resampled sums or means this close count as equal: they differ by rounding only."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, in the unit of the scores."""

    estimate: float
    low: float
    high: float
    conditional: bool = False
    """True: holds for these seeds only (fewer than `MIN_SEEDS`)."""


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference of means with its interval and two-sided p-value."""

    p: float = 1.0
    standard_error: float = 0.0
    """Of the estimate, from the choice of test queries alone; 0 if all queries differ equally or form one group."""


def derive_seed(*names: object) -> int:
    """A seed that depends on what is compared and on nothing else.

    >>> derive_seed("gsm8k", "sft") == derive_seed("gsm8k", "sft") != derive_seed("gsm8k", "opro")
    True
    """
    return int(hash_value([str(name) for name in names]), 16)


def as_scores(scores: ArrayLike) -> Array:
    """The scores as an array (seeds, queries), checked."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"scores must have shape (seeds, queries), neither empty; got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite")
    return array


def _chunks(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to `total`, each of at most `CHUNK` numbers."""
    size = max(1, CHUNK // width)
    for start in range(0, total, size):
        yield min(size, total - start)


def group_sums(array: Array, groups: Sequence[Hashable] | None) -> tuple[Array, Array]:
    """Sums of scores by group, (seeds, groups), and the number of queries in each, (groups,)."""
    if groups is None:
        return array, np.ones(array.shape[1])
    if len(groups) != array.shape[1]:
        raise ValueError(f"need one group per query; got {len(groups)} for {array.shape[1]} queries")
    index = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    places = np.array([index[group] for group in groups])
    sums: Array = np.stack([np.bincount(places, weights=row) for row in array])
    return sums, np.bincount(places).astype(np.float64)


def bootstrap_means(
    scores: ArrayLike, groups: Sequence[Hashable] | None = None, *, seed: int, resamples: int = RESAMPLES
) -> Array:
    """Means of bootstrap resamples: groups are drawn jointly for all seeds; seeds are not drawn.

    A resample has as many groups as the data. Its mean is over the queries drawn, so their number may vary.

    Args:
        scores: (seeds, queries).
        groups: (queries,) labels; queries with the same label are drawn together. None: each query on its own.
        seed: seed of the random generator; `derive_seed` makes one from what is compared.
        resamples: number of resamples.

    Returns:
        (resamples,) means.
    """
    sums, sizes = group_sums(as_scores(scores), groups)
    # Many groups have equal sums and sizes: drawing the count of each kind equals drawing groups, and is much faster.
    kinds, counts = np.unique(np.vstack([sums.mean(axis=0), sizes]), axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    means = []
    for size in _chunks(resamples, len(counts)):
        drawn = rng.multinomial(len(sizes), counts / len(sizes), size=size)
        means.append(drawn @ kinds[0] / (drawn @ kinds[1]))
    return np.concatenate(means)


def mean_interval(
    scores: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean over seeds and queries with its interval.

    From `MIN_SEEDS` seeds on: Wilson's interval of as many independent answers as have the variance of
    `crossed_spread`, with Student's quantile (Korn and Graubard 1998, Survey Methodology 24:193, with Wilson's interval
    in place of the exact one). With fewer seeds: the percentile bootstrap interval over queries. Neither is narrower
    than `flat_interval`, which is what remains if all scores are equal.

    Args:
        scores: (seeds, queries), each in 0..1.
        groups: (queries,) labels; queries with the same label are drawn together. None: each query on its own.
        seed: seed of the random generator.
        level: coverage.
        resamples: number of resamples.
    """
    array = as_scores(scores)
    estimate = float(array.mean())
    sums, sizes = group_sums(array, groups)
    floor = flat_interval(estimate, len(sizes), low=0.0, high=1.0, level=level)
    if len(array) < MIN_SEEDS:
        low, high = percentiles(bootstrap_means(array, groups, seed=seed, resamples=resamples), level)
    else:
        spread = crossed_spread([(sums, sizes)])
        low, high = _score_interval(estimate, spread.variance, spread.quantile(level))
    return Interval(estimate, min(low, floor[0]), max(high, floor[1]), len(array) < MIN_SEEDS)


def percentiles(means: Array, level: float) -> tuple[float, float]:
    """The percentile interval of resampled means."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _score_interval(proportion: float, variance: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of the number of independent answers that gives this variance."""
    binomial = proportion * (1 - proportion)
    if variance == 0 or binomial <= TOLERANCE:
        return proportion, proportion
    ratio = quantile**2 * variance / binomial  # z^2 / n
    centre = (proportion + ratio / 2) / (1 + ratio)
    half = sqrt(ratio * binomial + ratio**2 / 4) / (1 + ratio)
    return centre - half, centre + half


def standard_error(residuals: Array, queries: int) -> float:
    """Linearised standard error of a mean over queries drawn in groups.

    Source: Cochran 1977, Sampling Techniques, section 9A. If each query is its own group, this is the usual standard
    error of a mean.

    Args:
        residuals: (groups,), each group's sum minus the group's size times the mean.
        queries: number of queries.
    """
    count = len(residuals)
    if count < 2 or np.abs(residuals).max() <= TOLERANCE:
        return 0.0
    return sqrt(count / (count - 1) * float(residuals @ residuals)) / queries


def sign_flip_p(differences: ArrayLike, *, seed: int, resamples: int = TEST_RESAMPLES) -> float:
    """Two-sided p-value of a mean difference of 0, by flipping the sign of each query's difference at random.

    The hypothesis is that, for each query, a coin toss decides which method has which score. Under it, the p-value is
    exact up to Monte Carlo error. It is never 0, because the observed signs count as one of the draws (Phipson and
    Smyth 2010).

    Args:
        differences: (queries,), each the mean over seeds. If queries come in groups: (groups,), each a group's sum.
        seed: seed of the random generator.
        resamples: number of resamples.
    """
    sizes, counts = np.unique(np.abs(np.asarray(differences, dtype=np.float64)), return_counts=True)
    observed = abs(float(np.sum(differences)))
    rng = np.random.default_rng(seed)
    as_extreme = 0
    for size in _chunks(resamples, len(counts)):
        positive = rng.binomial(counts, 0.5, size=(size, len(counts)))  # for each size, how many are positive
        flipped = (2 * positive - counts) @ sizes
        as_extreme += int((np.abs(flipped) >= observed - TOLERANCE).sum())
    return (1 + as_extreme) / (1 + resamples)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact p-value of McNemar's test: do `wins` and `losses` fit a fair coin? Binary scores only.

    >>> mcnemar_exact(0, 5)
    0.0625
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"wins and losses are counts; got {wins} and {losses}")
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Holm's adjusted p-values (family-wise error), in the order given.

    Args:
        p_values: p-values of the tests made.
        tests: number of tests that these were chosen from by looking at the data, e.g. all pairs if only pairs with the
            best mean are tested. The others count with a p-value of 1, which is never too small. None: all tests were
            made.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    tests = len(p_values) if tests is None else tests
    if tests < len(p_values):
        raise ValueError(f"{len(p_values)} p-values cannot be chosen from {tests} tests")
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        floor = max(floor, min(1.0, (tests - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def smallest_detectable_effect(standard_error: float, *, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest paired difference that a two-sided test at `1 - level` finds with probability `power`.

    Args:
        standard_error: standard error of the difference; the result has the same unit.
        power: probability of finding the difference.
        level: 1 minus the test's size.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * standard_error


def wilson_interval(proportion: float, n: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a proportion of n answers: the uncertainty that sampling alone leaves in one number.

    Args:
        proportion: in 0..1.
        n: number of answers, at least 1.
        level: coverage.
    """
    if not 0 <= proportion <= 1 or n < 1:
        raise ValueError(f"need a proportion in 0..1 of at least one answer; got {proportion} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and 1 the bound is exact; computing it would add a rounding error.
    low, high = 0.0 if proportion == 0 else centre - half, 1.0 if proportion == 1 else centre + half
    return Interval(proportion, low, high)
