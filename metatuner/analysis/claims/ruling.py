"""From component tests to a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from metatuner.analysis.statistics import LEVEL, MIN_SEEDS, Contrast, holm

Verdict = Literal["supported", "contradicted", "undecided", "not evaluable", "not judged"]
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "undecided", "not evaluable", "not judged")
ALPHA = 1 - LEVEL
"""Size of each two-sided test."""


@dataclass(frozen=True)
class Part:
    """One component test of a claim: a difference that is claimed to lie above its margin."""

    name: str
    contrast: Contrast | None
    """None: there are no data for it; `reason` says why."""
    reason: str = ""
    effect: float | None = None
    """Standardised effect: Cohen's d_z of paired differences, Cohen's h of published proportions."""
    improvement: float | None = None
    """Probability of improvement; for paired differences only."""
    group: str = ""
    """Parts of one group belong together, in claims that some one thing beats several others."""

    @property
    def holds(self) -> bool:
        """Whether the part's own test, at size `ALPHA`, finds the difference above the margin."""
        return self.contrast is not None and _two_sided(self.contrast.p_greater) <= ALPHA

    @property
    def p(self) -> float:
        """Two-sided p-value of the part's test in the claimed direction."""
        return 1.0 if self.contrast is None else _two_sided(self.contrast.p_greater)

    @property
    def p_reverse(self) -> float:
        """The same in the reverse direction."""
        return 1.0 if self.contrast is None else _two_sided(self.contrast.p_less)


@dataclass(frozen=True)
class Outcome:
    """A verdict with its evidence."""

    verdict: Verdict
    decisive: Part | None = None
    """The part that decides the verdict: the weakest part for `every`, the strongest for `some`."""
    p_for: float | None = None
    """Two-sided p-value of the whole claim, with all needed corrections; None if it is not evaluable."""
    p_against: float | None = None
    """The same for the reverse of the claim."""
    tests: int = 0
    """Number of component tests that the decisive part was chosen from."""
    reversals: int = 1
    """Number of tests that the reverse is corrected for."""
    needed: float | None = None
    """Test queries needed to detect the decisive part's estimated difference; None unless the verdict is undecided."""
    towards: Verdict | None = None
    """The verdict that so many queries would support; None if there is none, or if `needed` is infinite."""
    limit: str = ""
    """Why no more than "undecided" can be said, such as "one seed"; "" if nothing forbids it."""

    @property
    def label(self) -> str:
        """The verdict in print."""
        return f"{self.verdict} ({self.limit})" if self.limit else self.verdict


@dataclass(frozen=True)
class Judged:
    """An outcome with all parts that were tested for it."""

    outcome: Outcome
    parts: tuple[Part, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class Ruling(Judged):
    """The judgement of a claim on one source of data."""

    claim: int = 0
    title: str = ""
    data: Literal["measured", "published"] = "measured"
    estimand: str = ""
    test: str = ""
    threshold: str = ""


NOT_EVALUABLE = Outcome("not evaluable")
NOT_JUDGED = Outcome("not judged")


def _two_sided(p: float) -> float:
    return min(1.0, 2 * p)


def _told(part: Part) -> Contrast:
    """The contrast of a part that has data."""
    if part.contrast is None:
        raise ValueError(f"no data for {part.name}: {part.reason}")
    return part.contrast


def _weakness(part: Part) -> tuple[float, float]:
    """Sort key that grows as the evidence for a part weakens.

    It uses one-sided p-values, because they still differ above 0.5; two-sided ones do not.
    """
    return _told(part).p_greater, -_told(part).estimate


def _reverse_weakness(part: Part) -> tuple[float, float]:
    return _told(part).p_less, _told(part).estimate


def _within_seeds(outcome: Outcome, parts: Sequence[Part]) -> Outcome:
    """The outcome, but at most "undecided" if a part that it rests on saw too few seeds to show their spread."""
    few = min((_told(part) for part in parts if _told(part).conditional), key=lambda told: told.seeds, default=None)
    if few is None:
        return outcome
    words = {0: "seeds not public", 1: "one seed"}
    limit = words.get(few.seeds, f"{few.seeds} seeds")
    return replace(outcome, verdict="undecided", needed=inf, towards=None, limit=limit)


def every(parts: Sequence[Part]) -> Outcome:
    """An intersection-union test: every part must hold, each at `ALPHA` (Berger 1982, Technometrics 24:295).

    The claim is contradicted if a part is rejected in the reverse direction after Holm's correction for all parts. If a
    part has no data, the claim is not evaluable, unless another part contradicts it. Parts of too few seeds decide
    nothing.
    """
    measured = [part for part in parts if part.contrast is not None]
    if not measured:
        return NOT_EVALUABLE
    weakest, worst = max(measured, key=_weakness), min(measured, key=_reverse_weakness)
    count, against = len(measured), min(holm([part.p_reverse for part in measured]))
    found = Outcome("undecided", weakest, weakest.p, against, count, count)
    if against <= ALPHA:
        return _within_seeds(replace(found, verdict="contradicted", decisive=worst), [worst])
    if count < len(parts):
        return NOT_EVALUABLE
    if weakest.holds:
        return _within_seeds(replace(found, verdict="supported"), measured)
    found = _with_needed(found, "supported") if _above(weakest) else _with_needed(found, "contradicted", count)
    return _within_seeds(found, [weakest])


def _above(part: Part) -> bool:
    return _told(part).estimate > _told(part).margin


def _with_needed(outcome: Outcome, towards: Verdict | None, tests: int = 1) -> Outcome:
    """The outcome with the queries needed to detect the decisive part's difference, corrected for `tests` tests.

    The number is infinite if more queries would not help. This is so if the difference supports no verdict, or if the
    given queries would already detect it but the spread of seeds prevents that.
    """
    if outcome.decisive is None or towards is None:
        return replace(outcome, needed=inf, towards=None)
    told = _told(outcome.decisive)
    needed = told.needed(tests)
    reachable = told.queries < needed < inf
    return replace(outcome, needed=needed if reachable else inf, towards=towards if reachable else None)


def some(parts: Sequence[Part], against: Sequence[Part] = ()) -> Outcome:
    """A union of intersections: every part of some group holds.

    A group's p-value is the p-value of its weakest part; Holm's correction is for all groups.

    Args:
        parts: parts of the claim, each with its group.
        against: parts of the reverse claim ("none of them"): all of them hold, or all of some group of them. Groups
            are corrected in the same way. () if the reverse claim is that every part of `parts` is reversed.
    """
    if not parts or any(part.contrast is None for part in parts):
        return NOT_EVALUABLE
    weakest, p, groups = _strongest(parts)
    if against:
        reversed_by, q, reversals = _strongest(against)
        is_reversed = _above(reversed_by)
    else:
        reversed_by, reversals = max(parts, key=_reverse_weakness), 1
        q, is_reversed = reversed_by.p_reverse, _told(reversed_by).estimate < _told(reversed_by).margin
    found = Outcome("undecided", weakest, p, q, len(parts), reversals)
    reverse = replace(found, decisive=reversed_by, tests=len(against or parts))
    if p <= ALPHA:
        found = replace(found, verdict="supported")
    elif q <= ALPHA:
        found = replace(reverse, verdict="contradicted")
    elif _above(weakest):
        found = _with_needed(found, "supported", groups)
    # In every group some part points the other way: more such data would not support the claim.
    elif is_reversed:
        found = _with_needed(reverse, "contradicted", reversals)
    else:
        found = _with_needed(found, None)
    return _within_seeds(found, [*parts, *against])


def _strongest(parts: Sequence[Part]) -> tuple[Part, float, int]:
    """The weakest part of the strongest group, that group's corrected p-value, and the number of groups.

    Groups are ranked before correction, because corrected p-values may all be 1.
    """
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.group or part.name, []).append(part)
    weakest = [max(group, key=_weakness) for group in groups.values()]
    best = min(range(len(weakest)), key=lambda index: _weakness(weakest[index]))
    return weakest[best], holm([part.p for part in weakest])[best], len(weakest)


def both(outcomes: Sequence[Outcome]) -> Outcome:
    """A claim made of several claims that must all hold; contradicted if one is, after correction for their number."""
    evaluable = [
        replace(each, p_against=min(1.0, len(outcomes) * each.p_against), reversals=len(outcomes) * each.reversals)
        for each in outcomes
        if each.p_against is not None
    ]
    wrong = [each for each in evaluable if each.verdict == "contradicted"]
    worst = min(wrong, key=_against, default=None)
    if worst is not None and _against(worst) <= ALPHA:
        return worst
    if not evaluable or len(evaluable) < len(outcomes):
        return NOT_EVALUABLE
    if worst is not None:
        return _with_needed(replace(worst, verdict="undecided"), "contradicted", worst.reversals)
    weakest = max(evaluable, key=_lack)
    return replace(weakest, p_against=min(_against(each) for each in evaluable))


def _against(outcome: Outcome) -> float:
    return 1.0 if outcome.p_against is None else outcome.p_against


def _lack(outcome: Outcome) -> tuple[bool, bool, float, tuple[float, float]]:
    """Sort key that grows as an outcome lacks more; it is largest if more queries would not support the claim."""
    p, part = outcome.p_for, outcome.decisive
    weakness = _weakness(part) if part else (1.0, 0.0)
    return outcome.verdict != "supported", outcome.towards != "supported", 1.0 if p is None else p, weakness


def describe_needed(outcome: Outcome) -> str:
    """How many queries would detect the decisive part's difference, and for which verdict; "" if none are needed."""
    if outcome.needed is None or outcome.decisive is None or (told := outcome.decisive.contrast) is None:
        return ""
    if outcome.towards is None:
        lacking = "seeds are what is lacking" if told.needed() <= told.queries else "it points nowhere"
        why = f"{MIN_SEEDS} seeds are the least" if outcome.limit else lacking
        return f"no number of test queries: {why}"
    return f"{outcome.needed:.0f} test queries of {told.scope}, and would then speak for {outcome.towards}"
