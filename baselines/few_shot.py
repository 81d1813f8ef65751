"""Few-shot: the initial prompt and a few train rows with their reference answers."""

from dataclasses import dataclass

from metatuner.errors import UserError
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Shares
from metatuner.harness.method import Count, Method
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.query import Demo


@dataclass(frozen=True)
class Settings:
    """Settings of few-shot."""

    shots: Count = 4
    """Demonstrations per query. The default is the low end of the 4 to 8 that few-shot prompts commonly show (arXiv
    2005.14165)."""


class FewShot(Method):
    """Shows the same randomly drawn demonstrations before every query of a benchmark."""

    name = "few_shot"
    title = "Few-shot"
    family = "vanilla"
    reference = "Brown et al. 2020, Language Models are Few-Shot Learners (arXiv 2005.14165)"
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        return Loop(shots=self.settings.shots)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Draw `shots` train rows per benchmark; if one has no train rows (a transfer), it gets rows of the others."""
        shots = self.settings.shots
        random = lab.random("demos")
        demos: dict[str, list[Demo]] = {}
        for name in lab.benchmarks:
            pool = [row for row in lab.train if row.benchmark == name] or lab.train
            if not 0 < shots <= len(pool):
                raise UserError(f"few_shot: shots is {shots}, but {name} has {len(pool)} train rows; set 1 to that")
            demos[name] = [(row.query, row.target) for row in random.sample(list(pool), shots)]
        return StaticPolicy(lab, {name: lab.initial_prompt(name) for name in lab.benchmarks}, demos)
