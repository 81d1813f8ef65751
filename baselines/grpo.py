"""GRPO: the actor of a short SFT learns by comparing the rewards of several answers to the same query."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metatuner import progress
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, NotNegative, Positive
from metatuner.harness.policies import StaticPolicy
from metatuner.hashing import derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from baselines.shared.rollouts import Sampled
    from metatuner.lm import LM


@dataclass(frozen=True)
class Settings:
    """Settings of GRPO. Defaults without a source come from arXiv 2402.03300, section 4.2."""

    steps: Count = 100
    """Maximum number of sampled batches of answers. Training also ends when the budget does not cover another batch."""
    queries: Count = 16
    """Train rows per batch, drawn anew each time. The source has 1,024 answers per batch, 64 per query."""
    group: Count = 8
    """Answers sampled per query. The default is TRL's; the source has 64."""
    updates: Count = 1
    """Optimizer steps per batch."""
    clip: Positive = 0.2
    """How far the probability ratio may move from 1; TRL's default."""
    beta: NotNegative = 0.04
    """Weight of the KL divergence from SFT's actor."""
    learning_rate: Positive = 1e-5
    """Initial learning rate of AdamW; it falls linearly to 0. The source has 1e-6 for all weights; a LoRA takes a
    higher rate."""
    gradient_clip: Positive = 1.0
    """Maximum gradient norm; TRL's default."""
    chunk: Count | None = None
    """Answers per pass of the model. Fewer answers need less memory and give the same gradient. None: all of a batch or
    minibatch at once."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""


class GRPO(Method):
    """Group-relative policy optimisation on the task metric.

    The loop is written here because TRL's loop samples through `model.generate`, which supports neither a benchmark's
    stops nor a random stream per answer.
    """

    name = "grpo"
    title = "GRPO"
    family = "parameter"
    reference = "Shao et al. 2024, DeepSeekMath (arXiv 2402.03300), equations 3 and 4; outcome supervision"
    deviations = (
        "It starts from the LoRA of a short SFT, which leaves answers to learn from. The setting `sft` gives that "
        "SFT's own settings. The reference is that LoRA as SFT left it.",
        "Groups whose answers all score alike teach nothing and are left out of a batch's updates.",
    )
    requires = ("sft",)
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        answers = s.steps * min(s.queries, rows.train) * s.group
        used, batch = shares.mixed * answers, min(s.queries, rows.train) * s.group
        counted = Sequences(answers=answers, answers_read=2 * used, actor_trained=s.updates * used)
        return Loop(counted, own_answers=True, keeps_required=True, batch=min(s.chunk or batch, batch))

    def fit(self, lab: Lab) -> StaticPolicy:
        """Sample and update in turns."""
        from baselines.shared.rollouts import sft_policy
        from metatuner.lm import grouped_adapter

        policy = sft_policy(lab)
        with grouped_adapter(policy.tuned_actor.model):
            self._train(lab, policy)
        return policy

    def _train(self, lab: Lab, policy: StaticPolicy) -> None:
        import torch

        from baselines.shared.budget import covers_step
        from baselines.shared.policy_gradient import Updates, adapter_weights, recomputed
        from baselines.shared.rollouts import covers, sample

        settings: Settings = self.settings
        lm, random = policy.tuned_actor, lab.random("batches")
        weights = adapter_weights(lm.model)
        start = {name: weight.detach().clone() for name, weight in weights.items()}
        rates = [{"params": list(weights.values()), "lr": settings.learning_rate}]
        steps = settings.steps * settings.updates
        updates = Updates(rates, steps=steps, gradient_clip=settings.gradient_clip, what="grpo")
        for step in progress.each(range(1, settings.steps + 1), "steps"):
            drawn = random.sample(list(lab.train), min(settings.queries, len(lab.train)))
            group = settings.group
            if not covers(lab, policy, drawn, answers=group, scored=2 * group, trained=group * settings.updates):
                lab.log(event="budget", steps=step - 1)
                break
            rows = [row for row in drawn for _ in range(settings.group)]
            seeds = [derive_seed(lab.stream("rollouts"), step, index) for index in range(len(rows))]
            told = sample(lab, policy, rows, seeds=seeds, temperature=1.0)
            rewards = torch.tensor(told.rewards, dtype=torch.float32).view(len(drawn), settings.group)
            advantages = group_advantages(rewards).flatten().to(lm.device)
            apart = (rewards.max(1).values > rewards.min(1).values).repeat_interleave(settings.group)
            kept = [index for index in range(len(rows)) if apart[index]]
            loss = 0.0
            taught = [(told.prompts[index], told.completions[index]) for index in kept]
            if not covers_step(lab, "actor", taught, scored=2, trained=settings.updates):
                lab.log(event="budget", steps=step - 1)
                break
            if kept:
                batch = _read(lm, told, kept, advantages, settings.chunk, weights, start)
                for _ in range(settings.updates):
                    with recomputed(lm, settings.gradient_checkpointing):
                        loss = updates.step(_losses(lm, batch, settings))
            reward = round(float(rewards.mean()), 5)
            lab.log(event="step", step=step, reward=reward, used=len(kept), loss=round(loss, 5))


@dataclass(frozen=True)
class Batch:
    """The B answers to learn from, of at most T tokens."""

    prompts: list[list[int]]
    completions: list[list[int]]
    parts: list[list[int]]
    """Indices of the answers that go through the model together."""
    advantages: "Tensor"
    """[B, 1]."""
    mask: "Tensor"
    """[B, T]."""
    old: "Tensor"
    """Log-probabilities under the policy that sampled, [B, T]."""
    reference: "Tensor"
    """Log-probabilities under the reference, [B, T]."""


def _read(
    lm: "LM",
    told: "Sampled",
    kept: list[int],
    advantages: "Tensor",
    chunk: int | None,
    weights: "Mapping[str, Parameter]",
    start: "Mapping[str, Tensor]",
) -> Batch:
    """The kept answers of a batch with their log-probabilities. `start` holds the reference's values of `weights`."""
    import torch

    from baselines.shared.policy_gradient import chunks, frozen, joined, log_probs, token_mask

    prompts, completions = [told.prompts[index] for index in kept], [told.completions[index] for index in kept]
    parts = chunks(len(kept), chunk)

    def read() -> "Tensor":
        return joined([log_probs(lm, [prompts[i] for i in part], [completions[i] for i in part]) for part in parts])

    with torch.no_grad():
        old = read()
        with frozen(weights, start):
            reference = read()
    mask = token_mask([len(each) for each in completions], lm.device)
    return Batch(prompts, completions, parts, advantages[kept][:, None], mask, old, reference)


def _losses(lm: "LM", batch: Batch, settings: Settings) -> "Iterator[Tensor]":
    """The parts of a batch's loss, which is the mean over answers of each answer's mean over tokens."""
    from baselines.shared.policy_gradient import clipped_loss, kl_estimate, log_probs

    for part in batch.parts:
        new = log_probs(lm, [batch.prompts[i] for i in part], [batch.completions[i] for i in part])
        here = part, slice(0, new.shape[1])
        mask = batch.mask[here]
        each = clipped_loss(new, batch.old[here], batch.advantages[part], mask, settings.clip)
        each = each + settings.beta * kl_estimate(new, batch.reference[here]) * mask
        yield (each.sum(1) / mask.sum(1)).sum() / len(batch.prompts)


def group_advantages(rewards: "Tensor") -> "Tensor":
    """Rewards [queries, group] minus the group's mean, divided by its standard deviation; 0 if all are equal.

    It is the sample standard deviation (n - 1), as in TRL; the source does not say which one it uses.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    apart = rewards.max(1, keepdim=True).values > rewards.min(1, keepdim=True).values  # means are rounded
    return (centred / rewards.std(1, keepdim=True)).where(apart, 0.0)
