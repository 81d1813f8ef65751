"""Per-query scores of a run's methods, as claims need them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np

from metatuner.analysis.claims.ruling import Part
from metatuner.analysis.names import Names, benchmark_rank, title_in
from metatuner.analysis.results.comparison import aligned
from metatuner.analysis.results.scores import Score, read_metrics, read_query_scores, read_scores
from metatuner.analysis.statistics import Array, Gaps, cohens_dz, contrast, derive_seed, probability_of_improvement
from metatuner.config import DEFAULT_VARIANT, Config, Layout
from metatuner.files import read_json


@dataclass(frozen=True)
class Arm:
    """A method in one variant, with one generator (ignored for methods that use none)."""

    method: str
    variant: str = DEFAULT_VARIANT
    generator: str = ""
    """Name of the generator; "" means the experiment's first."""


@dataclass(frozen=True)
class Answers:
    """An arm's scores on one benchmark."""

    seeds: tuple[int, ...]
    values: Array
    """(seeds, queries), in 0..1."""
    groups: tuple[str, ...]
    """(queries,) labels."""

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1."""
        return bool(np.isin(self.values, (0.0, 1.0)).all())


class Hole(Exception):
    """An arm has no complete result; the text says why."""


class Runs:
    """The run in a config's results folder."""

    def __init__(self, config: Config) -> None:
        self.config, self.layout, self.names = config, Layout(config), Names.of(config)

    def arm(self, arm: Arm) -> str:
        """An arm's name in print."""
        return self.names.title(arm.method, arm.variant)

    @cached_property
    def _scores(self) -> list[Score]:
        return read_scores(self.layout.scores)

    @cached_property
    def searches(self) -> list[dict[str, Any]]:
        """The content of searches.json; empty if there is no such file."""
        path = self.layout.searches
        shape = [{"subject": str, "benchmark": str, "status": str, "score?": (int, float, NoneType)}]
        return list(read_json(path, "run `metatuner scores` again", shape)) if path.is_file() else []

    def has(self, experiment: str) -> bool:
        """Whether the run has this experiment."""
        return experiment in self.config.experiments

    def benchmarks(self, experiment: str) -> list[str]:
        """The experiment's benchmarks, in the order of tables."""
        return sorted(self.config.experiments[experiment].benchmarks, key=benchmark_rank)

    def methods(self, experiment: str, family: str = "") -> list[str]:
        """The experiment's methods, of one family if `family` is given."""
        found = self.config.experiments[experiment].methods
        return [name for name in found if not family or self.names.family(name) == family]

    def variants(self, experiment: str, method: str) -> list[str]:
        """The variants of a method in an experiment, in the order of the config."""
        return list(self.config.experiments[experiment].variants.get(method) or [DEFAULT_VARIANT])

    def title(self, benchmark: str) -> str:
        """The benchmark's name in print."""
        return title_in(self.config, benchmark)

    def answers(self, experiment: str, arm: Arm, benchmark: str) -> Answers:
        """An arm's scores on one benchmark.

        Raises:
            Hole: the arm is not in the experiment, or one of its seeds has no score.
        """
        generator = arm.generator or self.config.experiments[experiment].generators[0]
        lines = [
            score
            for score in self._scores
            if (score.experiment, score.method, score.variant, score.benchmark)
            == (experiment, arm.method, arm.variant, benchmark)
            and score.generator in ("", generator)
        ]
        if not lines:
            raise Hole(f"{self.arm(arm)} on {self.title(benchmark)} is not in experiment {experiment}")
        failed = next((line for line in lines if line.status != "ok"), None)
        if failed:
            raise Hole(
                f"{self.arm(arm)} on {self.title(benchmark)}, seed {failed.seed}: {failed.status}: {failed.reason}"
            )
        primary = read_metrics(self.layout.root, lines[0].cell)["primary"]
        own = sorted((line for line in lines if line.metric == primary), key=lambda line: line.seed)
        found, groups = [], self._groups(benchmark, own[0])
        for line in own:
            found.append(aligned(read_query_scores(self.layout.root, line.cell), groups, line, self.layout.root))
        return Answers(tuple(line.seed for line in own), np.stack(found), tuple(groups.values()))

    def _groups(self, benchmark: str, line: Score) -> dict[str, str]:
        """The group of each test query, by id, in one order for all arms."""
        answers = read_query_scores(self.layout.root, line.cell)
        return {query: answers[query].group for query in sorted(answers)}

    def gaps(self, experiment: str, first: Sequence[Arm], second: Sequence[Arm], benchmark: str) -> Gaps:
        """Per query, the mean score of the first arms minus the mean of the second, on the seeds that all have."""
        answers = [self.answers(experiment, arm, benchmark) for arm in (*first, *second)]
        shared = [seed for seed in answers[0].seeds if all(seed in each.seeds for each in answers)]
        if not shared:
            raise Hole(f"no seed is common to all on {self.title(benchmark)}")
        picked = [np.stack([each.values[each.seeds.index(seed)] for seed in shared]) for each in answers]
        left = np.mean(picked[: len(first)], axis=0)
        right = np.mean(picked[len(first) :], axis=0)
        binary = len(first) == len(second) == 1 and all(each.binary for each in answers)
        return Gaps(left - right, answers[0].groups, binary)

    def part(
        self,
        name: str,
        experiment: str,
        first: Sequence[Arm],
        second: Sequence[Arm],
        benchmarks: Sequence[str],
        *,
        margin: float = 0.0,
        group: str = "",
    ) -> Part:
        """The component test that the first arms are above the second by more than the margin, over benchmarks."""
        try:
            gaps = [self.gaps(experiment, first, second, benchmark) for benchmark in benchmarks]
        except Hole as hole:
            return Part(name, None, str(hole), group=group)
        seed = derive_seed("claim", experiment, name, *benchmarks)
        effect = improvement = None
        if len(gaps) == 1:
            effect = cohens_dz(gaps[0])
            zero = np.zeros_like(gaps[0].values)
            improvement = probability_of_improvement(gaps[0].values, zero, gaps[0].groups, seed=seed).estimate
        return Part(name, contrast(gaps, seed=seed, margin=margin), "", effect, improvement, group)
