"""BootstrapFewShot: demonstrations are the actor's own right answers, filled up with labelled rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from baselines.shared.budget import AHEAD
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    from baselines.shared.dspy_program import DemonstratedActor


@dataclass(frozen=True)
class Settings:
    """Settings of BootstrapFewShot. Defaults come from dspy.BootstrapFewShot."""

    bootstrapped: Count = 4
    """Maximum number of demonstrations that are answers of the actor."""
    labeled: Count = 16
    """Total number of demonstrations, unless more are bootstrapped. The others are rows with their reference
    answers."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Lowest reward, 0 to 1, at which an answer counts as right and may become a demonstration. The default is the full
    reward."""


class BootstrapFewShot(Method):
    """The actor answers train rows after labelled demonstrations until enough of its answers are right."""

    name = "bootstrap_few_shot"
    title = "BootstrapFewShot"
    family = "prompt"
    reference = "Khattab et al. 2023, DSPy (arXiv 2310.03714), section 4, through dspy.BootstrapFewShot"
    deviations = (
        "A program is the actor asked once under p~, without a chain of modules.",
        "Train rows come in an order that the seed shuffles; DSPy takes them as they stand.",
    )
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        asked = s.bootstrapped / shares.right  # batches double after the first
        answers = min(rows.train, AHEAD if asked <= AHEAD else 2 * asked)
        return Loop(Sequences(answers=answers), shots=s.labeled)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Bootstrap on `lab.train`. If trained on several benchmarks, all share the demonstrations but keep their p~.

        Dev rows are not answered, because DSPy's optimizer chooses nothing by them.
        """
        import dspy

        from baselines.shared.dspy_program import AnswerBook, examples, reward, search

        settings: Settings = self.settings
        rows = list(lab.train)
        lab.random("order").shuffle(rows)

        def compile(program: "DemonstratedActor") -> "DemonstratedActor":
            optimizer = dspy.BootstrapFewShot(
                metric=reward,
                metric_threshold=settings.threshold,
                max_bootstrapped_demos=settings.bootstrapped,
                max_labeled_demos=settings.labeled,
                max_errors=1,
            )
            return optimizer.compile(program, trainset=examples(rows))

        found = search(self.name, AnswerBook(lab), [], compile, instructed=False)
        prompts = {name: lab.initial_prompt(name) for name in lab.benchmarks}
        return StaticPolicy(lab, prompts, dict.fromkeys(lab.benchmarks, found.demos))
