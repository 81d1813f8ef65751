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
    TEST_RESAMPLES,
    TOLERANCE,
    Array,
    Difference,
    Interval,
    bootstrap_means,
    group_sums,
    mcnemar_exact,
    mean_interval,
    resamples_of,
    sign_flip_p,
    standard_error,
    wilson_interval,
)

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

    Benchmarks are resampled independently of each other. The p-values depend on the margin:

    - Margin 0: the two-sided p-value is computed as in `paired_difference`. It is from McNemar's exact test (one
      benchmark, one seed, binary, no groups), or else from sign flips of groups.
    - Any other margin: each one-sided p-value is the larger of two. One is from a z-test with the linearised standard
      error, the other from the bootstrap.

    From `MIN_SEEDS` seeds on, no p-value is below the bootstrap's, because the bootstrap also resamples the seeds.

    Args:
        gaps: gaps of each benchmark; the claim is that they are large.
        seed: seed of the random generator.
        margin: what the difference is claimed to exceed.
        level: coverage of the interval.
        resamples: number of resamples. None: `TEST_RESAMPLES` if the bootstrap bounds the p-value, and for sign flips;
            else `RESAMPLES`.
    """
    if not gaps:
        raise ValueError("a contrast needs one benchmark at least")
    share, seeds = 1 / len(gaps), min(len(each.values) for each in gaps)
    drawn = resamples or (resamples_of(seeds) if margin == 0 else TEST_RESAMPLES)
    sums = [group_sums(np.asarray(each.values, dtype=np.float64), each.groups) for each in gaps]
    estimates = [float(each.values.mean()) for each in gaps]
    estimate = share * sum(estimates)
    means: Array = share * np.sum(
        [
            bootstrap_means(each.values, each.groups, seed=seed + index, resamples=drawn)
            for index, each in enumerate(gaps)
        ],
        axis=0,
    )
    errors = [
        standard_error(total.mean(axis=0) - own * sizes, each.values.shape[1])
        for each, own, (total, sizes) in zip(gaps, estimates, sums, strict=True)
    ]
    error = share * sqrt(sum(each * each for each in errors))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    resampled = [
        (1 + int(hits)) / (1 + drawn)
        for hits in ((means <= margin + TOLERANCE).sum(), (means >= margin - TOLERANCE).sum())
    ]
    if margin == 0:
        p = _paired_p(gaps, sums, share, seed=seed, resamples=resamples or TEST_RESAMPLES)
        greater, less = (p / 2, 1 - p / 2) if estimate > 0 else (1 - p / 2, p / 2)
    else:
        z = (estimate - margin) / error if error else inf * np.sign(estimate - margin) if estimate != margin else 0.0
        greater, less = _upper_tail(z), _upper_tail(-z)
    if margin != 0 or seeds >= MIN_SEEDS:
        greater, less = max(greater, resampled[0]), max(less, resampled[1])
    return Contrast(
        estimate,
        float(low),
        float(high),
        seeds < MIN_SEEDS,
        min(1.0, 2 * min(greater, less)),
        error,
        margin,
        sum(each.values.shape[1] for each in gaps),
        greater,
        less,
        len(gaps) > 1,
    )


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
    """Probability that the first method scores higher on a query, ties counting half, with its bootstrap interval.

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
