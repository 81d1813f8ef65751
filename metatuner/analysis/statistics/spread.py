"""How far an estimate would move with other seeds and other queries, and what data without any spread can show.

Pure functions of sums by group, as `intervals.group_sums` gives them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """The variance of an estimate over seeds and queries, with the degrees of freedom that it is known with."""

    variance: float
    freedom: float

    @property
    def error(self) -> float:
        """The standard error."""
        return sqrt(self.variance)

    def quantile(self, level: float) -> float:
        """Student's t that is exceeded in absolute value with probability 1 - `level`."""
        from scipy.special import stdtrit  # slow to import

        return float(stdtrit(self.freedom, (1 + level) / 2))

    def upper_tail(self, distance: float) -> float:
        """The probability that chance alone moves the estimate up by at least `distance`, which may be negative."""
        from scipy.special import stdtr  # slow to import

        if self.variance == 0:
            return 0.5 if distance == 0 else 0.0 if distance > 0 else 1.0
        return float(stdtr(self.freedom, -distance / self.error))


def crossed_spread(parts: Sequence[tuple[Array, Array]]) -> Spread:
    """The spread of a mean over seeds and queries, both drawn at random: a two-way random-effects model.

    The mean squares are those of a two-way analysis of variance with one value per seed and group (Searle, Casella and
    McCulloch 1992, Variance Components, chapter 4). The variance of the mean of S seeds and G groups is
    (MS_seed - MS_rest) / (S G) + MS_group / (S G). The first term, the part of seeds, counts as 0 if it is negative.
    The degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2:110), of the terms that count, and at least
    S - 1 if the part of seeds counts. Groups of several queries enter by the linearised mean (Cochran 1977, section
    9A).

    Args:
        parts: of each benchmark, which are independent and have equal weights: (seeds, groups), the scores of a group
            added up, for at least two seeds; and (groups,), the queries in each group.
    """
    of_seeds = of_groups = shares_seeds = shares_groups = 0.0
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
        shares_groups += group**2 / free_group
    if of_seeds <= 0:
        return Spread(of_groups, of_groups**2 / shares_groups if shares_groups else 1.0)
    total = of_seeds + of_groups
    return Spread(total, max(total**2 / (shares_seeds + shares_groups), min(len(sums) for sums, _ in parts) - 1))


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
    return NormalDist().cdf(-sqrt(groups * distance / room))
