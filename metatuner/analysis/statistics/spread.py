"""How far an estimate would move with other seeds and other queries, and what data without any spread can show.

Pure functions of sums by group, as `intervals.group_sums` gives them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


TINY = 1e-18
"""Variances up to this one are rounding errors."""
GUARD = 4
"""A p-value is at least this part of the p-value by the cautious degrees of freedom. Few seeds differ little by chance
now and then. Their spread then seems known and small, and p-values become tiny, which a correction for many tests would
take at their word. At the level of a single test, the guard hardly ever counts."""


@dataclass(frozen=True)
class Spread:
    """The variance of an estimate over seeds and queries, with the degrees of freedom that it is known with."""

    variance: float
    freedom: float
    cautious: float
    """Degrees of freedom if seeds differ no less than single answers do."""

    @property
    def error(self) -> float:
        """The standard error."""
        return sqrt(self.variance)

    def quantile(self, level: float) -> float:
        """How many standard errors an interval of this level extends either way."""
        from scipy.special import stdtrit  # slow to import

        beyond = min((1 - level) / 2 * GUARD, 0.5)
        return max(float(stdtrit(self.freedom, (1 + level) / 2)), float(stdtrit(self.cautious, 1 - beyond)))

    def upper_tail(self, distance: float) -> float:
        """One-sided p-value of an estimate that lies `distance` beyond the margin; at least 0."""
        from scipy.special import stdtr  # slow to import

        if self.variance == 0:
            return 0.0 if distance > 0 else 0.5
        t = -distance / self.error
        return max(float(stdtr(self.freedom, t)), float(stdtr(self.cautious, t)) / GUARD)


def crossed_spread(parts: Sequence[tuple[Array, Array]]) -> Spread:
    """The spread of a mean over seeds and queries, both drawn at random: a two-way random-effects model.

    The mean squares are those of a two-way analysis of variance with one value per seed and group (Searle, Casella and
    McCulloch 1992, Variance Components, chapter 4). The variance of the mean of S seeds and G groups is
    (MS_seed - MS_rest) / (S G) + MS_group / (S G). The first term, the part of seeds, counts as 0 if it is negative.
    Groups of several queries enter by the linearised mean (Cochran 1977, section 9A).

    The degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2:110) and at least S - 1. A part of seeds
    that counts as 0 is not known to be 0: its mean square then enters with S + 1 degrees of freedom, by the unbiased
    estimate of its variance. docs/statistics.md gives the coverage in simulations.

    Args:
        parts: of each benchmark, which are independent and have equal weights: (seeds, groups), the scores of a group
            added up, for at least two seeds; and (groups,), the queries in each group.
    """
    of_seeds = of_groups = shares_seeds = shares_zero = shares_groups = shares_cautious = 0.0
    for sums, sizes in parts:
        seeds, groups = sums.shape
        mean = sums.sum() / (seeds * sizes.sum())
        values = mean + (sums - mean * sizes) * (groups / sizes.sum())
        by_seed, by_group = values.mean(axis=1), values.mean(axis=0)
        rest = values - by_seed[:, None] - by_group + mean
        free_seed, free_group = seeds - 1, max(groups - 1, 1)
        weight = 1 / (len(parts) ** 2 * seeds * groups)
        seed = weight * groups * float(((by_seed - mean) ** 2).sum()) / free_seed
        group = weight * seeds * float(((by_group - mean) ** 2).sum()) / free_group
        error = weight * float((rest**2).sum()) / (free_seed * free_group)
        of_seeds += seed - error
        of_groups += group
        shares_seeds += seed**2 / free_seed + error**2 / (free_seed * free_group)
        shares_zero += seed**2 / (free_seed + 2)
        shares_groups += group**2 / free_group
        shares_cautious += max(seed, error) ** 2 / free_seed
    total, least = of_groups + max(of_seeds, 0.0), min(len(sums) for sums, _ in parts) - 1
    if total <= TINY:  # nothing differs
        return Spread(0.0, least, least)
    shares = shares_groups + (shares_seeds if of_seeds > 0 else shares_zero)
    freedom, cautious = (max(total**2 / each, least) for each in (shares, shares_groups + shares_cautious))
    return Spread(total, freedom, cautious)


def flat_interval(value: float, groups: float, *, low: float, high: float, level: float) -> tuple[float, float]:
    """The interval of a mean if all groups have the same value: what was not seen in any of them may still exist.

    Of 0 in n groups, Wilson's upper bound w = z^2 / (n + z^2) says which share of all groups may be otherwise; such a
    group may have any value from `low` to `high`. For proportions this is Wilson's interval of none or all, and for
    paired proportions Tango's score interval (1998, Statist. Med. 17:891) of none or all discordant pairs. Data with a
    spread never know more, so no interval is narrower.

    Args:
        value: the common value, or the mean.
        groups: number of groups.
        low: the smallest value that a group can have.
        high: the largest.
        level: coverage.
    """
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    share = z2 / (groups + z2)
    return value - share * (value - low), value + share * (high - value)


def flat_upper_tail(distance: float, groups: float, room: float) -> float:
    """The one-sided p-value that goes with `flat_interval`: the smallest that so many groups can give.

    Args:
        distance: how far the estimate lies beyond the margin; more than 0.
        groups: number of groups.
        room: how far the smallest possible value lies on the other side of the margin.
    """
    if room <= 0:
        return 0.0
    return erfc(sqrt(groups * distance / room / 2)) / 2  # of the normal distribution, to full precision
