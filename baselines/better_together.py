"""BetterTogether: demonstrations and a LoRA, searched and trained in turns, so that the actor teaches itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from metatuner.errors import UserError
from metatuner.harness.ground import Demo, Ground, Lab
from metatuner.harness.method import Count, Method, Positive
from metatuner.harness.policies import Adapter, FixedPrompt
from metatuner.harness.policy import Policy, Query, Response, register_policy

if TYPE_CHECKING:
    from metatuner.lm import LM


@dataclass(frozen=True)
class Settings:
    """What may be set; numbers without a source are those of the experiments of arXiv 2407.10930."""

    strategy: Literal["p -> w -> p", "p -> w", "w -> p"] = "p -> w -> p"
    """The steps in their order: p searches demonstrations, w trains weights."""
    candidates: Count = 6
    """Sets of demonstrations bootstrapped from shuffled rows, in a step p."""
    shots: Count = 3
    """Most demonstrations in a set."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Reward from which an answer is right, so that it may be a demonstration and is trained on: here the full one."""
    learning_rate: Positive = 1e-5
    """Of AdamW, falling to 0 in a line."""
    epochs: Count = 5
    """Passes over the answers trained on."""
    batch_size: Count = 16
    """Answers an optimizer step, as SFT's rows."""
    gradient_clip: Positive = 1.0
    """Largest gradient norm; TRL's default."""
    rank: Count = 32
    """Rank of the adapter (r)."""
    alpha: Count = 64
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linears that get an adapter, as SFT's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""


class BetterTogether(Method):
    """DSPy's BetterTogether: prompt optimisation by bootstrapped demonstrations, weight optimisation by a LoRA on the
    actor's own right answers, each on top of what the step before left; dev chooses between the states after each.
    """

    name = "better_together"
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

    def fit(self, lab: Lab) -> Policy:
        """Run the strategy on `lab.train`; trained on several benchmarks, each query has the p~ of its own, and all
        have the same demonstrations.

        Raises what made a step fail, unless it is the budget.
        """
        from baselines._better_together_program import run
        from baselines._dspy_program import BASE

        state = run(lab, self.settings)
        prompts = {name: lab.initial_prompt(name) for name in lab.benchmarks}
        demos = dict.fromkeys(lab.benchmarks, state.demos)
        if state.actor == BASE:
            return FixedPrompt(lab, prompts, demos)
        return DemonstratedAdapter(lab, state.lm, prompts, demos)


@register_policy("demonstrated_adapter")
class DemonstratedAdapter(Adapter):
    """The actor with a PEFT adapter, asked under one prompt and after the same demonstrations a benchmark."""

    def __init__(
        self, ground: Ground, actor: "LM", prompts: Mapping[str, str], demos: Mapping[str, Sequence[Demo]]
    ) -> None:
        """`actor.model` is a `peft.PeftModel` around the ground's actor."""
        super().__init__(ground, actor, prompts)
        self.demos: dict[str, list[Demo]] = {
            name: [(query, answer) for query, answer in pairs] for name, pairs in demos.items()
        }

    def respond(self, queries: Sequence[Query]) -> list[Response]:
        prompts = [self.prompts[query.benchmark] for query in queries]
        demos = [self.demos.get(query.benchmark, []) for query in queries]
        return self.ground.answer(queries, prompts, demos=demos, actor=self.actor)

    def write(self, folder: Path) -> dict[str, Any]:
        return {**super().write(folder), "demos": self.demos}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "DemonstratedAdapter":
        adapter = Adapter.read(folder, state, ground)
        if not isinstance(state.get("demos"), dict):
            raise UserError(f"{folder}: its manifest has no demonstrations; fit again")
        return cls(ground, adapter.actor, adapter.prompts, state["demos"])
