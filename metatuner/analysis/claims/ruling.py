"""From component tests to a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Literal

from metatuner.analysis.effects import Contrast
from metatuner.analysis.statistics import LEVEL, holm

Verdict = Literal["supported", "contradicted", "undecided", "not evaluable"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "undecided", "not evaluable")
ALPHA = 1 - LEVEL
"""Size of each two-sided test."""


@dataclass(frozen=True)
class Part:
    """One component test of a claim: a difference, claimed to lie above its margin."""

    name: str
    contrast: Contrast | None
    """None: there are no data for it; `reason` says why."""
    reason: str = ""
    effect: float | None = None
    """Standardised: Cohen's d_z of paired differences, Cohen's h of published proportions."""
    improvement: float | None = None
    """Probability of improvement; of paired differences alone."""
    group: str = ""
    """Parts of one group stand together in claims that ask for some one thing to beat several."""

    @property
    def holds(self) -> bool:
        """Whether its own test, at the size `ALPHA`, finds the difference above the margin."""
        return self.contrast is not None and _two_sided(self.contrast.p_greater) <= ALPHA

    @property
    def p(self) -> float:
        """Two-sided p-value of its test in the claimed direction."""
        return 1.0 if self.contrast is None else _two_sided(self.contrast.p_greater)

    @property
    def p_reverse(self) -> float:
        """The same in the reverse direction."""
        return 1.0 if self.contrast is None else _two_sided(self.contrast.p_less)


@dataclass(frozen=True)
class Ruling:
    """What became of a claim on one source of data."""

    claim: int
    title: str
    data: Literal["measured", "published"]
    verdict: Verdict
    estimand: str
    test: str
    threshold: str
    parts: tuple[Part, ...] = ()
    decisive: Part | None = None
    """The part that the verdict hangs on: the weakest link of an every-claim, the strongest of a some-claim."""
    needed: float | None = None
    """Test queries (of the decisive part) at which its difference, as estimated, would be told; None: not undecided."""
    detail: str = ""


def _two_sided(p: float) -> float:
    return min(1.0, 2 * p)


def every(parts: Sequence[Part]) -> tuple[Verdict, Part | None, float | None]:
    """An intersection-union test: every part must hold, each at `ALPHA` (Berger 1982, Technometrics 24:295).

    Contradicted where a part is rejected in the reverse direction after Holm's correction for all parts. A part without
    data leaves the claim not evaluable, unless another contradicts it.
    """
    measured = [part for part in parts if part.contrast is not None]
    if not measured:
        return "not evaluable", None, None
    reverse = holm([part.p_reverse for part in measured])
    worst = min(range(len(measured)), key=lambda index: (reverse[index], -measured[index].p))
    if reverse[worst] <= ALPHA:
        return "contradicted", measured[worst], None
    weakest = max(measured, key=lambda part: part.p)
    if len(measured) < len(parts):
        return "not evaluable", weakest, None
    if weakest.holds:
        return "supported", weakest, None
    return "undecided", weakest, _needed([part for part in measured if not part.holds])


def some(parts: Sequence[Part], against: Sequence[Part] = ()) -> tuple[Verdict, Part | None, float | None]:
    """A union of intersections: of some group every part holds.

    A group's p-value is that of its weakest part; groups are corrected for each other by Holm.

    Args:
        parts: of the claim, each with its group.
        against: parts of the reverse claim ("none of them": every one of these holds, or of some group of them every
            one); groups are corrected in the same way. () where the reverse is that every part of `parts` is reversed.
    """
    supporting = _groups(parts)
    if not supporting or any(part.contrast is None for part in parts):
        return "not evaluable", None, None
    name, p = _strongest(supporting)
    weakest = max(supporting[name], key=lambda part: part.p)
    if p <= ALPHA:
        return "supported", weakest, None
    if against:
        reverse = _groups(against)
        other, q = _strongest(reverse)
        if q <= ALPHA:
            return "contradicted", max(reverse[other], key=lambda part: part.p), None
    elif max(part.p_reverse for part in parts) <= ALPHA:
        return "contradicted", max(parts, key=lambda part: part.p_reverse), None
    # Where the strongest group's weakest part points the other way, more of such data would not lead to the claim.
    told, needed = weakest.contrast, inf
    if told is not None and told.estimate > told.margin:
        needed = told.needed(len(supporting))
    return "undecided", weakest, needed


def _groups(parts: Sequence[Part]) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.group or part.name, []).append(part)
    return found


def _strongest(groups: dict[str, list[Part]]) -> tuple[str, float]:
    """The group with the smallest corrected p-value."""
    names = list(groups)
    adjusted = holm([max(part.p for part in groups[name]) for name in names])
    best = min(range(len(names)), key=lambda index: adjusted[index])
    return names[best], adjusted[best]


def _needed(parts: Sequence[Part]) -> float:
    """The most queries that any part needs to be told, one way or the other."""
    return max((part.contrast.needed() if part.contrast else inf for part in parts), default=inf)


def needed_text(needed: float | None) -> str:
    """The number of queries in words."""
    if needed is None:
        return ""
    return f"{needed:.0f}" if isfinite(needed) else "cannot be told"


def with_group(part: Part, group: str) -> Part:
    """The part in a group."""
    return replace(part, group=group)
