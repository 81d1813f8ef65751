"""Contrasts of methods over benchmarks, effect sizes, and the queries that a test needs. See docs/statistics.md.

Pure functions of arrays of shape (seeds, queries), as in `statistics`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import asin, ceil, erfc, inf, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from metatuner.analysis.statistics.intervals import (
    LEVEL,
    MIN_SEEDS,
    RESAMPLES,
    TEST_RESAMPLES,
    TOLERANCE,
    Difference,
    Interval,
    as_scores,
    bootstrap_means,
    group_sums,
    mcnemar_exact,
    mean_interval,
    percentiles,
    sign_flip_p,
    standard_error,
    wilson_interval,
)
from metatuner.analysis.statistics.spread import Array, crossed_spread, flat_interval, flat_upper_tail

POWER = 0.8


@dataclass(frozen=True)
class Gaps:
    """Per-query differences on one benchmark."""

    values: Array
    """(seeds, queries), in -1..1."""
    groups: Sequence[Hashable] | None = None
    """(queries,) labels; queries with the same label are drawn together."""
    binary: bool = False
    """True: differences between right-or-wrong scores of two single methods (so that McNemar's test may be used)."""


@dataclass(frozen=True)
class Contrast(Difference):
    """A mean difference, over one benchmark or as the plain mean over several, tested against a margin."""

    margin: float = 0.0
    queries: int = 0
    """Test queries of all benchmarks together."""
    p_greater: float = 1.0
    """One-sided p-value of the hypothesis that the difference is at most the margin."""
    p_less: float = 1.0
    """One-sided p-value of the hypothesis that the difference is at least the margin."""
    pooled: bool = False
    """True: over several benchmarks (or several published scores)."""
    seeds: int = 0
    """Seeds that the test saw; 0 if that is not public."""

    @property
    def scope(self) -> str:
        """The benchmarks that `queries` and `needed` count test queries of."""
        return "all benchmarks together" if self.pooled else "its benchmark"

    def needed(self, tests: int = 1) -> float:
        """Test queries at which a two-sided test would detect the estimated difference with probability 0.8.

        The test is against the margin. The number is infinite if the estimate equals the margin.

        Args:
            tests: number of tests to correct for (Bonferroni).
        """
        level = 1 - (1 - LEVEL) / tests
        return needed_queries(self.estimate - self.margin, self.standard_error, self.queries, level=level)


def contrast(
    gaps: Sequence[Gaps], *, seed: int, margin: float = 0.0, level: float = LEVEL, resamples: int | None = None
) -> Contrast:
    """The mean of `gaps` over seeds and queries, averaged over benchmarks with equal weights, against a margin.

    Benchmarks count as independent of each other: each has its own queries, and fits of its own.

    From `MIN_SEEDS` seeds on, interval and test are by Student's t with the variance and degrees of freedom of
    `crossed_spread`: about other seeds and other queries. With fewer seeds they are about other queries alone: a
    percentile bootstrap interval, and a p-value that depends on the margin:

    - Margin 0: McNemar's exact test (one benchmark, one seed, binary, no groups), or else sign flips of groups.
    - Any other margin: the larger of two. One is from a z-test with the linearised standard error, the other from the
      bootstrap.

    No interval is narrower than `flat_interval`. No p-value of many seeds, or against another margin than 0, is smaller
    than the p-value that goes with it.

    Args:
        gaps: gaps of each benchmark; the claim is that they are large.
        seed: seed of the random generator.
        margin: what the difference is claimed to exceed.
        level: coverage of the interval.
        resamples: number of resamples. None: `TEST_RESAMPLES` for tests, `RESAMPLES` for an interval alone.
    """
    if not gaps:
        raise ValueError("a contrast needs one benchmark at least")
    share, seeds = 1 / len(gaps), min(len(each.values) for each in gaps)
    sums = [group_sums(as_scores(each.values), each.groups) for each in gaps]
    estimates = [float(each.values.mean()) for each in gaps]
    estimate = share * sum(estimates)
    errors = [
        standard_error(total.mean(axis=0) - own * sizes, each.values.shape[1])
        for each, own, (total, sizes) in zip(gaps, estimates, sums, strict=True)
    ]
    error = share * sqrt(sum(each * each for each in errors))
    groups = len(gaps) ** 2 / sum(1 / len(sizes) for _, sizes in sums)  # as many as have the mean's variance
    if seeds >= MIN_SEEDS:
        spread = crossed_spread(sums)
        half = spread.quantile(level) * spread.error
        low, high = max(estimate - half, -1.0), min(estimate + half, 1.0)
        tail = spread.upper_tail(abs(estimate - margin))
    else:
        drawn = resamples or (RESAMPLES if margin == 0 else TEST_RESAMPLES)
        means = _resampled(gaps, share, seed=seed, resamples=drawn)
        low, high = percentiles(means, level)
        if margin == 0:
            tail = _paired_p(gaps, sums, share, seed=seed, resamples=resamples or TEST_RESAMPLES) / 2
        else:
            beyond = means <= margin + TOLERANCE if estimate > margin else means >= margin - TOLERANCE
            z = abs(estimate - margin) / error if error else inf
            tail = max(_upper_tail(z), (1 + int(beyond.sum())) / (1 + drawn))
    if abs(estimate - margin) <= TOLERANCE:
        tail = 0.5
    elif seeds >= MIN_SEEDS or margin != 0:
        room = 1 + margin if estimate > margin else 1 - margin
        tail = max(tail, flat_upper_tail(abs(estimate - margin), groups, room))
    greater, less = (tail, 1 - tail) if estimate > margin else (1 - tail, tail)
    floor = flat_interval(estimate, groups, low=-1.0, high=1.0, level=level)
    return Contrast(
        estimate,
        min(low, floor[0]),
        max(high, floor[1]),
        seeds < MIN_SEEDS,
        min(1.0, 2 * tail),
        error,
        margin,
        sum(each.values.shape[1] for each in gaps),
        greater,
        less,
        len(gaps) > 1,
        seeds,
    )


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int | None = None,
) -> Contrast:
    """The contrast of `first` less `second` on one benchmark.

    Args:
        first: (seeds, queries), in 0..1; the same seeds and queries, in the same order, as `second`.
        second: (seeds, queries), in 0..1.
        groups: (queries,) labels; queries with the same label count together. None: each query on its own.
        seed: seed of the random generator.
        level: coverage of the interval.
        resamples: number of resamples, as for `contrast`.
    """
    left, right = as_scores(first), as_scores(second)
    if left.shape != right.shape:
        raise ValueError(f"paired scores must have one shape; got {left.shape} and {right.shape}")
    binary = bool(np.isin(np.concatenate([left, right]), (0.0, 1.0)).all())
    return contrast([Gaps(left - right, groups, binary)], seed=seed, level=level, resamples=resamples)


def _resampled(gaps: Sequence[Gaps], share: float, *, seed: int, resamples: int) -> Array:
    """Bootstrap means of the contrast; benchmarks are resampled independently of each other."""
    drawn = (
        bootstrap_means(each.values, each.groups, seed=seed + index, resamples=resamples)
        for index, each in enumerate(gaps)
    )
    means: Array = share * np.sum(list(drawn), axis=0)
    return means


def _upper_tail(z: float) -> float:
    """Upper tail of the standard normal, to full precision: `1 - NormalDist().cdf(z)` is 0 from z = 8.3 on."""
    return erfc(z / sqrt(2)) / 2


def _paired_p(
    gaps: Sequence[Gaps], sums: Sequence[tuple[Array, Array]], share: float, *, seed: int, resamples: int
) -> float:
    if len(gaps) == 1:
        (each,) = gaps
        if each.binary and len(each.values) == 1 and len(sums[0][1]) == each.values.shape[1]:
            return mcnemar_exact(int((each.values > 0).sum()), int((each.values < 0).sum()))
    weighted = [share * total.mean(axis=0) / each.values.shape[1] for each, (total, _) in zip(gaps, sums, strict=True)]
    return sign_flip_p(np.concatenate(weighted), seed=seed, resamples=resamples)


def needed_queries(
    difference: float, error: float, queries: int, *, power: float = POWER, level: float = LEVEL
) -> float:
    """Test queries at which a two-sided test at `1 - level` finds a difference with probability `power`.

    The standard error falls with the square root of the number of queries n, so the number needed is
    n (z_(1 - alpha/2) + z_power)^2 (error / difference)^2.

    Args:
        difference: the estimate, in the unit of `error`; if it is 0, the number needed is infinite.
        error: standard error of the estimate at `queries`.
        queries: number of queries of the estimate.
    """
    if abs(difference) <= TOLERANCE:
        return inf
    normal = NormalDist()
    z = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    return float(ceil(queries * (z * error / difference) ** 2))


def cohens_dz(gaps: Gaps) -> float:
    """Standardised effect of paired differences: their mean over their standard deviation (Cohen 1988, section 2.3.5).

    There is one difference per query, its mean over seeds. The effect is 0 if all differences are 0, and infinite if
    they all have the same other value.
    """
    each = gaps.values.mean(axis=0)
    mean, deviation = float(each.mean()), float(each.std(ddof=1)) if each.size > 1 else 0.0
    if deviation <= TOLERANCE:
        return 0.0 if abs(mean) <= TOLERANCE else inf * float(np.sign(mean))
    return mean / deviation


def cohens_h(first: float, second: float) -> float:
    """Difference of two proportions on the arcsine scale (Cohen 1988, chapter 6), for scores that are not paired."""
    return 2 * asin(sqrt(first)) - 2 * asin(sqrt(second))


def probability_of_improvement(
    first: ArrayLike, second: ArrayLike, groups: Sequence[Hashable] | None = None, *, seed: int
) -> Interval:
    """Probability that the first method scores higher on a query, ties counting half, with its interval.

    The measure is from Agarwal et al. 2021 (rliable), but with queries in place of runs, and paired by query and seed.
    0.5 means that neither method is better.

    Args:
        first: (seeds, queries).
        second: (seeds, queries), the same seeds and queries in the same order.
        groups: (queries,) labels; queries with the same label are drawn together.
        seed: seed of the random generator.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired scores must have one shape; got {left.shape} and {right.shape}")
    return mean_interval((np.sign(left - right) + 1) / 2, groups, seed=seed)


def newcombe_interval(first: Interval, second: Interval) -> Interval:
    """Interval of the difference of two proportions, from Wilson's interval of each.

    Source: Newcombe 1998, Statist. Med. 17:873, method 10.
    """
    estimate = first.estimate - second.estimate
    low = sqrt((first.estimate - first.low) ** 2 + (second.high - second.estimate) ** 2)
    high = sqrt((first.high - first.estimate) ** 2 + (second.estimate - second.low) ** 2)
    return Interval(estimate, estimate - low, estimate + high)


def unpaired_difference(
    first: Sequence[tuple[float, int]],
    second: Sequence[tuple[float, int]],
    *,
    margin: float = 0.0,
    level: float = LEVEL,
    rows: int | None = None,
) -> Contrast:
    """The difference of two means of published proportions, as if their test rows were drawn independently.

    For published numbers with only the mean and the size of the test. A paired comparison on the same rows would be
    sharper, but single numbers do not allow it. The test is a z-test and the interval is normal. If each mean is of
    one proportion, the interval is Newcombe's.

    Args:
        first: (proportion, rows) of each score in the first mean.
        second: (proportion, rows) of each score in the second mean.
        margin: what the difference is claimed to exceed.
        level: coverage of the interval.
        rows: test rows of all benchmarks together, if several scores share rows. None: the sum over `first`.
    """

    def summary(scores: Sequence[tuple[float, int]]) -> tuple[float, float]:
        mean = sum(p for p, _ in scores) / len(scores)
        variance = sum(p * (1 - p) / n for p, n in scores) / len(scores) ** 2
        return mean, variance

    (one, spread), (other, more) = summary(first), summary(second)
    estimate, error = one - other, sqrt(spread + more)
    normal = NormalDist()
    z = (estimate - margin) / error if error else inf * float(np.sign(estimate - margin))
    if len(first) == len(second) == 1:
        found = newcombe_interval(*(wilson_interval(*scores[0], level=level) for scores in (first, second)))
        low, high = found.low, found.high
    else:
        half = normal.inv_cdf((1 + level) / 2) * error
        low, high = estimate - half, estimate + half
    greater, less = _upper_tail(z), _upper_tail(-z)
    rows, p = rows or sum(n for _, n in first), min(1.0, 2 * min(greater, less))
    pooled = len(first) > 1 or len(second) > 1
    return Contrast(estimate, low, high, True, p, error, margin, rows, greater, less, pooled)
