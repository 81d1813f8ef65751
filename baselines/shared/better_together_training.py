"""BetterTogether's step w: a LoRA on the actor, trained on answers. Imported by its program within a fit."""

from collections.abc import Sequence
from statistics import fmean
from typing import Protocol

from baselines.shared.budget import covers_step
from baselines.shared.policy_gradient import Updates, adapter_weights, recomputed
from metatuner import progress
from metatuner.harness.lab import Lab
from metatuner.lm import LM, completion_loss, grouped_adapter


class Settings(Protocol):
    """The settings of BetterTogether that step w uses; their meanings are documented there."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def gradient_clip(self) -> float: ...
    @property
    def gradient_checkpointing(self) -> bool: ...


Turn = tuple[list[int], list[int]]
"""Token ids that the actor reads, and token ids that it must write."""


def train(lab: Lab, lm: LM, turns: Sequence[Turn], settings: Settings) -> None:
    """Train with AdamW on the cross-entropy of the target tokens; stop before a step that the budget does not cover."""
    order, size = lab.random("batches"), settings.batch_size
    weights = list(adapter_weights(lm.model).values())
    updates = Updates(
        [{"params": weights, "lr": settings.learning_rate}],
        steps=settings.epochs * -(-len(turns) // size),
        gradient_clip=settings.gradient_clip,
        what="better_together",
    )
    with recomputed(lm, settings.gradient_checkpointing), grouped_adapter(lm.model):
        for epoch in range(1, settings.epochs + 1):
            losses = []
            shuffled = order.sample(list(turns), len(turns))
            for first in progress.each(range(0, len(turns), size), f"steps of epoch {epoch}"):
                batch = shuffled[first : first + size]
                if not covers_step(lab, "actor", batch):
                    lab.log(event="budget", steps=updates.taken)
                    return
                losses.append(updates.step([completion_loss(lm, batch)]))
            lab.log(event="epoch", epoch=epoch, loss=round(fmean(losses), 5))
