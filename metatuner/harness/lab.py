"""What a method's `fit` receives: the ground, its draw of train and dev rows, its budget, its random streams."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.budget import Budget
from metatuner.harness.ground import Ground
from metatuner.harness.proposer import ProposerServer
from metatuner.harness.query import Query, Response
from metatuner.harness.rows import Row
from metatuner.hashing import derive_seed


@dataclass
class Lab(Ground):
    """What a method's `fit` receives. It gives no access to the tune and test splits."""

    train: Sequence[Row] = ()
    dev: Sequence[Row] = ()
    """Rows for choices inside the fit, disjoint from train."""
    trained_on: tuple[str, ...] = ()
    generator_name: str = ""
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    workdir: Path = Path(".")
    """A scratch folder, removed after the fit."""
    prerequisites: Mapping[str, Path] = field(default_factory=dict)
    log_line: Callable[[str], None] = lambda line: None
    proposer: ProposerServer | None = None
    """Proposes prompts instead of the generator, for methods that use a proposer."""

    def initial_prompt(self, where: Row | Query | str) -> str:
        """The initial prompt (p~) of the benchmark of a row or query, or of the benchmark with this name."""
        return self.benchmark(where if isinstance(where, str) else where.benchmark).initial_prompt

    def reward(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float]:
        """The primary metric of each response, 0 to 1."""
        return self.reward_texts(rows, [response.completion for response in responses])

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """The primary metric of each completion, 0 to 1.

        The same completion of a row is scored once in a fit, unless scoring was stopped (see `Scored.stopped`).
        """
        asked = list(zip(rows, completions, strict=True))
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._rewards]
        stopped: list[tuple[Row, str]] = []
        for name in dict.fromkeys(row.benchmark for row, _ in new):
            benchmark = self.benchmark(name)
            chosen = [pair for pair in new if pair[0].benchmark == name]
            extracted = [benchmark.extract(text, row) for row, text in chosen]
            for pair, scored in zip(chosen, benchmark.score_all(extracted, [row for row, _ in chosen]), strict=True):
                self._rewards[pair] = scored.metrics[benchmark.primary]
                stopped += [pair] if scored.stopped else []
        found = [self._rewards[pair] for pair in asked]
        for pair in stopped:
            del self._rewards[pair]
        return found

    @cached_property
    def _rewards(self) -> dict[tuple[Row, str], float]:
        """The rewards of this fit so far."""
        return {}

    def stream(self, name: str) -> int:
        """An integer seed for one named use.

        It depends on the train benchmarks, the generator and the seed, not on the method. So variants of a method that
        draw from the same stream are paired.
        """
        return derive_seed("+".join(self.trained_on), self.generator_name, self.seed, name)

    def random(self, name: str) -> random.Random:
        """A random generator for one named use; see `stream`."""
        return random.Random(self.stream(name))

    def required(self, method: str) -> Path:
        """The folder with the saved policy of a method in `requires`."""
        if method not in self.prerequisites:
            raise UserError(f"{method!r} was not fitted before; name it in the method's `requires`")
        return self.prerequisites[method]

    def log(self, **event: Any) -> None:
        """Write one JSON line to the fit's training log. Log no times: the log must be the same in every run."""
        self.log_line(json.dumps(event, ensure_ascii=False, sort_keys=True))
