"""A rewriter in front of the SFT actor: one prompt per query and tuned parameters, trained separately."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from metatuner.harness.ground import Ground
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Shares
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy, load_static
from metatuner.harness.policy import Policy, load_policy, register_policy
from metatuner.harness.query import Prepared, Query


class RewriterSFT(Method):
    """Shows what MetaTuner's parts reach if they are combined only after training."""

    name = "rewriter_sft"
    title = "Rewriter + SFT"
    family = "hybrid"
    reference = "Cheng et al. 2024, Black-Box Prompt Optimization (arXiv 2311.04155): a trained rewriter before a model"
    deviations = (
        "No training of its own: the rewriter is the generator of MetaTuner's warm-up, the actor that of an SFT under "
        "the initial prompt. The setting `sft` gives that SFT's own settings, so that both keep one budget.",
    )
    uses_generator = True
    requires = ("sft", "metatuner_warmup")

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        return Loop(writes_prompts=True, keeps_required=True)

    def fit(self, lab: Lab) -> "RewrittenPrompts":
        """Combine the two saved policies."""
        return RewrittenPrompts.of(lab.required("metatuner_warmup"), lab.required("sft"), lab)


class Rewriter(Protocol):
    """A policy that writes a prompt for each query."""

    def write_prompts(self, queries: Sequence[Query]) -> list[str]: ...

    def save(self, folder: Path) -> None: ...


@register_policy("rewritten_prompts")
class RewrittenPrompts(Policy):
    """The actor of one policy answers under the prompts of another policy."""

    def __init__(self, ground: Ground, rewriter: Rewriter, tuned: StaticPolicy) -> None:
        self.ground, self.rewriter, self.tuned = ground, rewriter, tuned

    @classmethod
    def of(cls, rewriter: Path, adapter: Path, ground: Ground) -> "RewrittenPrompts":
        """Load it from two saved policies."""
        # The rewriter comes first: it may copy the ground's actor, and the adapter is put into that actor itself.
        writes = cast(Rewriter, load_policy(rewriter, ground))
        return cls(ground, writes, load_static(adapter, ground))

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        return Prepared(self.rewriter.write_prompts(queries), actor=self.tuned.tuned_actor)

    def write(self, folder: Path) -> dict[str, Any]:
        self.rewriter.save(folder / "rewriter")
        self.tuned.save(folder / "adapter")
        return {}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "RewrittenPrompts":
        return cls.of(folder / "rewriter", folder / "adapter", ground)
