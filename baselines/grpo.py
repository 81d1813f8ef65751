"""GRPO: SFT's actor learns from how its answers to one query compare with each other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metatuner.harness.ground import Lab, derive_seed
from metatuner.harness.method import Count, Method, NotNegative, Positive
from metatuner.harness.policies import Adapter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """What may be set; numbers without a source are those of arXiv 2402.03300, section 4.2."""

    steps: Count = 100
    """Batches of answers sampled; training also ends when the budget does not cover another."""
    queries: Count = 16
    """Train rows a batch, drawn anew (1,024 answers of 64 a query in the source)."""
    group: Count = 8
    """Answers sampled a query: TRL's default; 64 in the source."""
    temperature: Positive = 1.0
    """Of the samples: the actor's own distribution."""
    updates: Count = 1
    """Optimizer steps on each batch."""
    clip: Positive = 0.2
    """How far the ratio of probabilities may move from 1 (TRL's default)."""
    beta: NotNegative = 0.04
    """Weight of the divergence from SFT's actor."""
    learning_rate: Positive = 1e-5
    """Of AdamW, falling to 0 in a line; 1e-6 for all weights in the source, a LoRA takes more."""
    gradient_clip: Positive = 1.0
    """Largest gradient norm (TRL's default)."""


class GRPO(Method):
    """Group-relative policy optimisation on the task metric.

    The loop is written here: TRL's own samples through `model.generate`, which knows neither a benchmark's stops nor a
    random stream for each answer.
    """

    name = "grpo"
    family = "parameter"
    reference = "Shao et al. 2024, DeepSeekMath (arXiv 2402.03300), equations 3 and 4; outcome supervision"
    deviations = (
        "The LoRA of `sft`, with its settings, is trained on; the reference is that LoRA as SFT left it.",
        "Groups whose answers all score alike teach nothing and are left out of a batch's updates.",
    )
    requires = ("sft",)
    Settings = Settings

    def fit(self, lab: Lab) -> Adapter:
        """Sample and update in turns."""
        import torch

        from baselines._policy_gradient import (
            Updates,
            adapter_weights,
            clipped_loss,
            frozen,
            kl_estimate,
            log_probs,
            token_mask,
        )
        from baselines._rollouts import covers, sample, sft_policy

        settings: Settings = self.settings
        policy = sft_policy(lab)
        lm, random = policy.actor, lab.random("batches")
        weights = adapter_weights(lm.model)
        start = {name: weight.detach().clone() for name, weight in weights.items()}
        rates = [{"params": list(weights.values()), "lr": settings.learning_rate}]
        steps = settings.steps * settings.updates
        updates = Updates(rates, steps=steps, gradient_clip=settings.gradient_clip, what="grpo")
        for step in range(1, settings.steps + 1):
            drawn = random.sample(list(lab.train), min(settings.queries, len(lab.train)))
            if not covers(lab, policy, drawn, answers=settings.group, trained=settings.group * settings.updates):
                lab.log(event="budget", steps=step - 1)
                break
            rows = [row for row in drawn for _ in range(settings.group)]
            seeds = [derive_seed(lab.stream("rollouts"), step, index) for index in range(len(rows))]
            told = sample(lab, policy, rows, seeds=seeds, temperature=settings.temperature)
            rewards = torch.tensor(told.rewards, dtype=torch.float32).view(len(drawn), settings.group)
            advantages = group_advantages(rewards).flatten().to(lm.device)
            kept = [index for index in range(len(rows)) if advantages[index] != 0]
            loss = 0.0
            if kept:
                batch = [told.prompts[index] for index in kept], [told.completions[index] for index in kept]
                advantages = advantages[kept][:, None]
                mask = token_mask([len(each) for each in batch[1]], lm.device)
                with torch.no_grad():
                    old = log_probs(lm, *batch)
                    with frozen(weights, start):
                        reference = log_probs(lm, *batch)
                for _ in range(settings.updates):
                    new = log_probs(lm, *batch)
                    each = clipped_loss(new, old, advantages, mask, settings.clip)
                    each = each + settings.beta * kl_estimate(new, reference) * mask
                    loss = updates.step((each.sum(1) / mask.sum(1)).mean())
            reward = round(float(rewards.mean()), 5)
            lab.log(event="step", step=step, reward=reward, used=len(kept), loss=round(loss, 5))
        return policy


def group_advantages(rewards: "Tensor") -> "Tensor":
    """Rewards [queries, group] less their group's mean, over its standard deviation; 0 where all are alike.

    The standard deviation is that of the sample (n - 1), as in TRL; the source does not say which.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True)
    return centred / spread.where(spread > 0, spread.new_ones(()))
