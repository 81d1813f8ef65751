"""BetterTogether: searches demonstrations and trains a LoRA in turns, so that the actor teaches itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from baselines.shared.budget import AHEAD
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, Positive
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Settings:
    """Settings of BetterTogether. Defaults without a source come from the experiments of arXiv 2407.10930."""

    strategy: Literal["p -> w -> p", "p -> w", "w -> p"] = "p -> w -> p"
    """Order of the steps: p searches demonstrations, w trains weights."""
    candidates: Count = 6
    """Sets of demonstrations that each step p bootstraps from shuffled rows."""
    shots: Count = 3
    """Maximum number of demonstrations in a set."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Lowest reward, 0 to 1, at which an answer counts as right. Right answers are trained on and may become
    demonstrations. The default is the full reward."""
    learning_rate: Positive = 1e-5
    """Initial learning rate of AdamW; it falls linearly to 0."""
    epochs: Count = 5
    """Passes over the answers that are trained on."""
    batch_size: Count = 16
    """Answers per optimizer step; as many as SFT's rows per step."""
    gradient_clip: Positive = 1.0
    """Maximum gradient norm; TRL's default."""
    rank: Count = 32
    """Rank of the adapter (r)."""
    alpha: Count = 64
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter, as in SFT."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""


class BetterTogether(Method):
    """DSPy's BetterTogether: prompt steps bootstrap demonstrations, weight steps train a LoRA on the actor's own right
    answers. Each step starts from the result of the step before. Dev rows choose between the states after each step.
    """

    name = "better_together"
    title = "BetterTogether"
    family = "hybrid"
    reference = (
        "Soylu et al. 2024, Fine-Tuning and Prompt Optimization: Two Great Steps that Work Better Together "
        "(arXiv 2407.10930), through dspy.BetterTogether"
    )
    deviations = (
        "A program is the actor asked once under p~, without a chain of modules; demonstrations are all that is "
        "searched of its prompt.",
        "DSPy's random search forgets the trained actor when it resets a program; here the last step searches "
        "demonstrations for the trained one.",
        "Each state is asked on all dev rows, and the best of the states, the untouched actor among them, is kept.",
        "If no answer is right, no weights are trained and the search goes on.",
        "When the budget does not cover a step, the best state before it is kept.",
    )
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        steps = s.strategy.split(" -> ")
        searched = (s.candidates + 3) * rows.judging + s.candidates * max(AHEAD, s.shots / shares.right)
        answers = steps.count("p") * searched + steps.count("w") * (rows.train + rows.judging)
        counted = Sequences(answers=answers, actor_trained=s.epochs * shares.right * rows.train)
        return Loop(counted, shots=s.shots, own_answers=True, actor_rank=s.rank, batch=s.batch_size)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Run the strategy on `lab.train`.

        If trained on several benchmarks, each query has the p~ of its own benchmark, and all share the same
        demonstrations. An error that made a step fail is raised again, unless it is the end of the budget.
        """
        from baselines.shared.better_together_program import run
        from baselines.shared.dspy_program import BASE

        state = run(lab, self.settings)
        prompts = {name: lab.initial_prompt(name) for name in lab.benchmarks}
        demos = dict.fromkeys(lab.benchmarks, state.demos)
        return StaticPolicy(lab, prompts, demos, None if state.actor == BASE else state.lm)
