"""The end of a search: its best trials meet again with further seeds, and winners at the edge of a range move on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from statistics import fmean
from typing import Any

from metatuner import progress
from metatuner.config import SearchConfig
from metatuner.errors import UserError
from metatuner.plan import Plan

MOST_STEPS = 4
"""Steps beyond the edge of a range, at most, per setting."""


@dataclass
class Tried:
    """Trials of one search, each computed once."""

    subject: str
    benchmark: str
    run: Callable[[dict[str, Any], int | None], dict[str, Any]]
    """The outcome of settings with a seed (None: the seed of all trials): `score` (0 to 100, or None), `tflop`,
    `status`, `reason`."""
    rows: int
    """Number of tune rows."""
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def once(self, over: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
        """The outcome of settings with one seed; it is said and kept."""
        key = repr((sorted(over.items()), seed))
        if key not in self.known:
            result = self.known[key] = self.run(over, seed)
            with_seed = "" if seed is None else f" with seed {seed}"
            shown = result["reason"] or result["score"]
            progress.say(f"{self.subject} on {self.benchmark}: {over or 'the preset itself'}{with_seed} -> {shown}")
        return self.known[key]

    def repeated(self, over: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any] | None:
        """Settings with all seeds, the first of which all trials have; None if one of these fits failed."""
        outcomes = [self.once(over, seed if place else None) for place, seed in enumerate(seeds)]
        if any(each["score"] is None for each in outcomes):
            return None
        return {
            "settings": over,
            "scores": {str(seed): each["score"] for seed, each in zip(seeds, outcomes, strict=True)},
            "score": round(fmean(each["score"] for each in outcomes), 4),
            "tflop": round(fmean(each["tflop"] for each in outcomes), 4),
        }

    def margin(self, score: float) -> float:
        """Half the standard error of a score on the tune rows, in points: what is closer is a tie."""
        share = min(max(score / 100, 0.0), 1.0)
        return 100 * sqrt(share * (1 - share) / self.rows) / 2


def finals(
    tried: Tried,
    trials: Sequence[Mapping[str, Any]],
    plan: Plan,
    keeps: Callable[[dict[str, Any]], bool] = lambda over: True,
) -> dict[str, Any]:
    """Decide a search by the means over seeds.

    The best trials are fitted with the further seeds. Of those within a tie of the best mean, the cheapest wins. If one
    of its settings lies at the edge of the range, the search goes on beyond. It does so while the mean rises by more
    than a tie, and while `keeps` says that the settings keep the budget. A step that is not above that mean with the
    first seed does not meet the others.

    Returns:
        `finalists`, the winner first, then by mean; and `beyond`, the settings with an edge that was crossed without a
        gain. A step that failed leaves its setting at the edge.
    """
    tuning, seeds = plan.config.tuning, plan.searches.seeds
    done = sorted((each for each in trials if each["score"] is not None), key=lambda each: -each["score"])
    met = [tried.repeated(each["settings"], seeds) for each in done[: tuning.finalists]]
    found = [each for each in met if each is not None]
    if not found:
        return {"finalists": [], "beyond": []}
    winner = decide(found, tried.margin)
    space = plan.settings.subject(tried.subject).search
    beyond: set[str] = set()  # measured without a gain, or no value of the setting
    blocked: set[str] = set()  # not measured: the fit failed, or would pass the budget
    steps = dict.fromkeys(space, 0)
    while True:
        values = plan.settings.searched(tried.subject, winner["settings"])
        open_edges = [
            name for name in at_edge(values, space) if name not in beyond | blocked and steps[name] < MOST_STEPS
        ]
        if not open_edges:
            break
        name = open_edges[0]
        steps[name] += 1
        over = {**values, name: further(values[name], space[name])}
        try:
            plan.settings.resolve(tried.subject, (tried.benchmark,), over, winners=False)
        except UserError:  # the method does not take such a value
            beyond.add(name)
            continue
        if over[name] == values[name]:  # such as 0, from which no ratio leads on
            beyond.add(name)
            continue
        first = tried.once(over)["score"] if keeps(over) else None
        if first is not None and first <= winner["score"]:
            beyond.add(name)
            continue
        other = None if first is None else tried.repeated(over, seeds)
        if other is None:
            blocked.add(name)
            continue
        found.append(other)
        if other["score"] > winner["score"] + tried.margin(winner["score"]):
            winner = other
        else:
            beyond.add(name)
    rest = sorted((each for each in found if each is not winner), key=lambda each: -each["score"])
    return {"finalists": [winner, *rest], "beyond": sorted(beyond)}


def decide(found: Sequence[dict[str, Any]], margin: Callable[[float], float]) -> dict[str, Any]:
    """The cheapest of those whose mean is within a tie of the best one; the first of equals."""
    best = max(each["score"] for each in found)
    ties = [each for each in found if each["score"] >= best - margin(best)]
    return min(ties, key=lambda each: (each["tflop"], -each["score"]))


def further(value: Any, space: SearchConfig) -> Any:
    """The next value beyond the end of a range at which this value lies.

    A list of numbers goes on by the ratio of its last two (or by 1 for whole numbers, if that is more). A range goes on
    by a quarter of its width, on the scale that it is drawn on.
    """
    if space.values is not None:
        ordered = sorted(space.values)
        up = value >= ordered[-1]
        last, before = (ordered[-1], ordered[-2]) if up else (ordered[0], ordered[1])
        if isinstance(value, int):
            step = max(1, round(abs(value * last / before - value))) if before else 1
            return value + step if up else value - step
        return float(f"{value * last / before:.4g}") if before else value
    assert space.low is not None
    assert space.high is not None
    if space.log:
        factor = (space.high / space.low) ** 0.25
        up = value > sqrt(space.low * space.high)
        return float(f"{value * factor if up else value / factor:.4g}")
    step, up = (space.high - space.low) / 4, value > (space.low + space.high) / 2
    return float(f"{value + step if up else value - step:.4g}")


def at_edge(best: Mapping[str, Any], search: Mapping[str, SearchConfig]) -> tuple[str, ...]:
    """Settings with a value in the outer tenth of the range or beyond, or not inside the ordered values."""

    def edge(name: str, value: Any) -> bool:
        space = search[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if space.low is None or space.high is None:
            values = space.values or []
            ordered = all(isinstance(each, int | float) for each in values)
            return ordered and len(values) > 1 and not min(values) < value < max(values)
        if space.log and value <= 0:
            return False
        place = log(value / space.low) / log(space.high / space.low) if space.log else None
        share = (value - space.low) / (space.high - space.low) if place is None else place
        return not 0.1 <= share <= 0.9

    return tuple(sorted(name for name, value in best.items() if edge(name, value)))
