"""A rewriter in front of the SFT actor: a prompt a query and tuned parameters, neither trained with the other."""

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
    """What MetaTuner's parts reach when they are put together after training."""

    name = "rewriter_sft"
    title = "Rewriter + SFT"
    family = "hybrid"
    reference = "Cheng et al. 2024, Black-Box Prompt Optimization (arXiv 2311.04155): a trained rewriter before a model"
    deviations = (
        "No training of its own: the rewriter is the generator of MetaTuner's warm-up, the actor that of `sft`, "
        "which was tuned under the initial prompt.",
    )
    uses_generator = True
    requires = ("sft", "metatuner_warmup")

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        return Loop(writes_prompts=True, keeps_required=True)

    def fit(self, lab: Lab) -> "RewrittenPrompts":
        """Put the two saved policies together."""
        return RewrittenPrompts.of(lab.required("metatuner_warmup"), lab.required("sft"), lab)


class Rewriter(Protocol):
    """A policy that writes a prompt for each query."""

    def write_prompts(self, queries: Sequence[Query]) -> list[str]: ...

    def save(self, folder: Path) -> None: ...


@register_policy("rewritten_prompts")
class RewrittenPrompts(Policy):
    """One policy's prompts in front of another's actor."""

    def __init__(self, ground: Ground, rewriter: Rewriter, tuned: StaticPolicy) -> None:
        self.ground, self.rewriter, self.tuned = ground, rewriter, tuned

    @classmethod
    def of(cls, rewriter: Path, adapter: Path, ground: Ground) -> "RewrittenPrompts":
        """From two saved policies."""
        # In this order: an adapter is put into the ground's actor itself, which a rewriter may copy.
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
