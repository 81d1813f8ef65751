"""From component tests to a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
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
class Outcome:
    """A verdict with what it rests on."""

    verdict: Verdict
    decisive: Part | None = None
    """The part that the verdict hangs on: the weakest link of an every-claim, the strongest of a some-claim."""
    p_for: float | None = None
    """Two-sided p-value of the whole claim, corrected as it has to be; None where it is not evaluable."""
    p_against: float | None = None
    """The same of its reverse."""
    tests: int = 0
    """Component tests in the claimed direction."""
    needed: float | None = None
    """Test queries at which the decisive part's difference, as estimated, would be told; None: not undecided."""
    towards: Verdict | None = None
    """What that many would then speak for; None: nothing, or they are infinitely many."""


@dataclass(frozen=True)
class Judged:
    """An outcome with all that was tested for it."""

    outcome: Outcome
    parts: tuple[Part, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class Ruling(Judged):
    """What became of a claim on one source of data."""

    claim: int = 0
    title: str = ""
    data: Literal["measured", "published"] = "measured"
    estimand: str = ""
    test: str = ""
    threshold: str = ""


NOT_EVALUABLE = Outcome("not evaluable")


def _two_sided(p: float) -> float:
    return min(1.0, 2 * p)


def _told(part: Part) -> Contrast:
    """The contrast of a part that has data."""
    if part.contrast is None:
        raise ValueError(f"no data for {part.name}: {part.reason}")
    return part.contrast


def _weakness(part: Part) -> tuple[float, float]:
    """Grows with the evidence lacking for a part; p-values above a half still differ here, two-sided ones do not."""
    return _told(part).p_greater, -_told(part).estimate


def _reverse_weakness(part: Part) -> tuple[float, float]:
    return _told(part).p_less, _told(part).estimate


def every(parts: Sequence[Part]) -> Outcome:
    """An intersection-union test: every part must hold, each at `ALPHA` (Berger 1982, Technometrics 24:295).

    Contradicted where a part is rejected in the reverse direction after Holm's correction for all parts. A part without
    data leaves the claim not evaluable, unless another contradicts it.
    """
    measured = [part for part in parts if part.contrast is not None]
    if not measured:
        return NOT_EVALUABLE
    weakest, worst = max(measured, key=_weakness), min(measured, key=_reverse_weakness)
    count, against = len(measured), min(holm([part.p_reverse for part in measured]))
    if against <= ALPHA:
        return Outcome("contradicted", worst, weakest.p, against, count)
    if count < len(parts):
        return NOT_EVALUABLE
    if weakest.holds:
        return Outcome("supported", weakest, weakest.p, against, count)
    told = _told(weakest)
    above = told.estimate > told.margin
    needed = told.needed() if above else told.needed(count)
    towards: Verdict | None = None if needed == inf else "supported" if above else "contradicted"
    return Outcome("undecided", weakest, weakest.p, against, count, needed, towards)


def some(parts: Sequence[Part], against: Sequence[Part] = ()) -> Outcome:
    """A union of intersections: of some group every part holds.

    A group's p-value is that of its weakest part; groups are corrected for each other by Holm.

    Args:
        parts: of the claim, each with its group.
        against: parts of the reverse claim ("none of them": every one of these holds, or of some group of them every
            one); groups are corrected in the same way. () where the reverse is that every part of `parts` is reversed.
    """
    if not parts or any(part.contrast is None for part in parts):
        return NOT_EVALUABLE
    weakest, p, groups = _strongest(parts)
    if against:
        reversed_by, q, _ = _strongest(against)
    else:
        reversed_by = max(parts, key=_reverse_weakness)
        q = reversed_by.p_reverse
    if p <= ALPHA:
        return Outcome("supported", weakest, p, q, len(parts))
    if q <= ALPHA:
        return Outcome("contradicted", reversed_by, p, q, len(parts))
    # Where the strongest group's weakest part points the other way, more of such data would not lead to the claim.
    told = _told(weakest)
    needed = told.needed(groups) if told.estimate > told.margin else inf
    return Outcome("undecided", weakest, p, q, len(parts), needed, "supported" if needed < inf else None)


def _strongest(parts: Sequence[Part]) -> tuple[Part, float, int]:
    """The weakest part of the strongest group, that group's corrected p-value, and the number of groups.

    Groups are ranked before correction, which may leave all of them at 1.
    """
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.group or part.name, []).append(part)
    weakest = [max(group, key=_weakness) for group in groups.values()]
    best = min(range(len(weakest)), key=lambda index: _weakness(weakest[index]))
    return weakest[best], holm([part.p for part in weakest])[best], len(weakest)


def both(outcomes: Sequence[Outcome]) -> Outcome:
    """A claim of several claims, all of which must hold; contradicted where one is, corrected for their number."""
    evaluable = [each for each in outcomes if each.p_for is not None and each.p_against is not None]
    corrected = [replace(each, p_against=min(1.0, len(outcomes) * (each.p_against or 0.0))) for each in evaluable]
    tests = sum(each.tests for each in evaluable)
    worst = min(corrected, key=lambda each: each.p_against or 0.0, default=NOT_EVALUABLE)
    if worst.verdict == "contradicted" and worst.p_against is not None and worst.p_against <= ALPHA:
        return replace(worst, tests=tests)
    if len(evaluable) < len(outcomes):
        return NOT_EVALUABLE
    weakest = max(evaluable, key=lambda each: (each.verdict != "supported", each.p_for or 0.0))
    verdict: Verdict = "undecided" if weakest.verdict == "contradicted" else weakest.verdict
    return replace(weakest, verdict=verdict, p_against=worst.p_against, tests=tests)


def describe_needed(outcome: Outcome) -> str:
    """How many queries would tell the decisive part's difference, and for which verdict; "" where it is told."""
    if outcome.needed is None or outcome.decisive is None:
        return ""
    if outcome.towards is None:
        return "no number of test queries, as it points the other way or nowhere"
    pooled = outcome.decisive.contrast is not None and outcome.decisive.contrast.pooled
    where = "of all benchmarks together" if pooled else "of its benchmark"
    return f"{outcome.needed:.0f} test queries {where}, and would then speak for {outcome.towards}"
