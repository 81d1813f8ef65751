"""Random searches: which there are, what each tries, and what is known about its winner."""

import random
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

from metatuner.config import Config, SearchConfig
from metatuner.hashing import derive_seed
from metatuner.plan.grid import Grid, in_order
from metatuner.plan.settings import Settings
from metatuner.plan.types import Fit


class Searches:
    """The searches that a preset's experiments depend on, by (subject, benchmark)."""

    def __init__(self, config: Config, settings: Settings, grid: Grid) -> None:
        self.config, self.settings, self.grid = config, settings, grid

    @cached_property
    def all(self) -> list[tuple[str, str]]:
        """The (subject, benchmark) pairs that `tune` searches: all pairs that the experiments use."""
        used: dict[str, set[str]] = {}
        for name, experiment in self.config.experiments.items():
            for method in experiment.methods:
                for variant in self.grid.variants(name, method):
                    used.setdefault(variant.subject, set()).update(experiment.benchmarks)
        return [
            (subject, benchmark)
            for subject, benchmarks in used.items()
            if self.settings.subject(subject).search
            for benchmark in self.config.benchmarks
            if benchmark in benchmarks
        ]

    def trials(
        self, subject: str, benchmark: str, keeps: Callable[[dict[str, Any]], bool] = lambda over: True
    ) -> list[dict[str, Any]]:
        """What random search tries: the preset's own settings, then random draws, none twice.

        The order of keys in the config does not matter. Settings that `keeps` refuses, because their cost would pass
        the budget, are not tried.
        """
        search = self.settings.subject(subject).search
        rng = random.Random(derive_seed("tune", subject, benchmark, self.config.tuning.seed))
        seen = [self.settings.searched(subject, {})]
        drawn: list[dict[str, Any]] = [{}] if keeps({}) else []
        for _ in range(100 * self.config.tuning.trials):  # a small grid may hold fewer settings than trials
            if len(drawn) == self.config.tuning.trials:
                break
            trial = {name: _draw(space, rng) for name, space in sorted(search.items())}
            if trial not in seen:
                seen.append(trial)
                drawn += [trial] if keeps(trial) else []
        return drawn

    @property
    def seeds(self) -> list[int]:
        """The seed of all trials, then the further seeds of finalists."""
        return self.config.tuning.seeds

    def fit(self, subject: str, benchmark: str, over: dict[str, Any], seed: int | None = None) -> Fit:
        """The fit of one trial; `seed` None is the seed of all trials."""
        settings = self.settings.resolve(subject, (benchmark,), over, winners=False)
        method, generator = subject.partition(".")[0], self.settings.tuning_generator
        chosen = self.config.tuning.seed if seed is None else seed
        return self.grid.fit(method, settings, (benchmark,), generator, chosen)

    def needs(self, benchmark: str) -> list[Fit]:
        """The fits that trials on a benchmark build on (warm-ups), each once; required fits come first."""
        fits = [
            self.fit(subject, where, over, seed)
            for subject, where in self.all
            if where == benchmark
            for over in self.trials(subject, where)
            for seed in self.seeds
        ]
        return in_order(needed for fit in fits for needed in fit.requires)

    def describe(self) -> list[dict[str, Any]]:
        """What is known about each search: its ranges, and its stored winner if there is one.

        `status` is current, expired or none. Expired: what the winner is valid for has changed, so the preset's own
        settings are used.
        """
        found = []
        for subject, benchmark in self.all:
            winner = self.settings.winners.get((subject, benchmark))
            known = asdict(winner) if winner else {}
            names = ("settings", "score", "trials", "failed", "at_edge", "rival", "rival_score", "commit", "date")
            status = "none" if winner is None else "current" if self.settings.is_current(winner) else "expired"
            spaces = self.settings.subject(subject).search.items()
            found.append(
                {
                    "subject": subject,
                    "benchmark": benchmark,
                    "status": status,
                    "search": {name: space.model_dump(mode="json", exclude_none=True) for name, space in spaces},
                    "generator": self.settings.tuning_generator,
                    **{name: known.get(name) for name in names},
                    **{name: known[name] for name in ("finalists", "dearest") if known.get(name)},
                }
            )
        return found


def _draw(space: SearchConfig, rng: random.Random) -> Any:
    if space.values is not None:
        return rng.choice(space.values)
    assert space.low is not None
    assert space.high is not None
    if not space.log:
        return float(f"{rng.uniform(space.low, space.high):.4g}")
    return float(f"{space.low * (space.high / space.low) ** rng.random():.4g}")
