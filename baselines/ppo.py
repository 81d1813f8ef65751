"""PPO: the actor of a short SFT learns from rewards, through a value head, and stays close to where it started."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metatuner import progress
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, NotNegative, Positive, Share
from metatuner.harness.policies import StaticPolicy
from metatuner.hashing import derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.nn import Module, Parameter

    from baselines.shared.rollouts import Sampled
    from metatuner.lm import LM


@dataclass(frozen=True)
class Settings:
    """Settings of PPO. Defaults without a source come from arXiv 1909.08593 and its code, lm-human-preferences."""

    steps: Count = 50
    """Maximum number of sampled batches of answers. Training also ends when the budget does not cover another batch."""
    batch: Count = 64
    """Train rows per batch, drawn anew each time, with one answer each. The source has 512."""
    epochs: Count = 4
    """Passes over each batch."""
    minibatch: Count = 32
    """Answers per optimizer step. In the source's code, it is a whole batch."""
    clip: Positive = 0.2
    """How far the probability ratio may move from 1, and a value from its old value, in one batch."""
    discount: Share = 1.0
    """Discount of later rewards (gamma)."""
    gae_lambda: Share = 0.95
    """lambda of generalised advantage estimation (arXiv 1506.02438)."""
    value_weight: NotNegative = 0.1
    """Weight of the value loss relative to the policy loss."""
    kl_coefficient: NotNegative = 0.2
    """Initial weight of the KL divergence from SFT's actor in each token's reward."""
    kl_target: Positive = 6.0
    """Target KL divergence in nats per answer. Above it, the coefficient rises; below it, the coefficient falls."""
    kl_horizon: Positive = 10_000.0
    """Number of answers over which the coefficient changes by at most a factor of e^0.2."""
    learning_rate: Positive = 1e-5
    """Initial learning rate of AdamW; it falls linearly to 0."""
    value_learning_rate: Positive = 1e-3
    """Learning rate of the value head. The head's weights start at 0; a head takes a higher rate than a LoRA."""
    gradient_clip: Positive = 1.0
    """Maximum gradient norm. Common practice; the source has none."""
    chunk: Count | None = None
    """Answers per pass of the model. Fewer answers need less memory and give the same gradient. None: all of a batch or
    minibatch at once."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""


class PPO(Method):
    """Proximal policy optimisation on the task metric, with a linear value head on the actor's last hidden states.

    TRL ships no PPO, so the loop is written here.
    """

    name = "ppo"
    title = "PPO"
    family = "parameter"
    reference = (
        "Schulman et al. 2017 (arXiv 1707.06347), as for language models in Ziegler et al. 2019 (arXiv 1909.08593)"
    )
    deviations = (
        "The reward is the task metric of an answer, on its last token; no reward model is trained.",
        "It starts from the LoRA of a short SFT, which leaves answers to learn from. The setting `sft` gives that "
        "SFT's own settings. The reference is that LoRA as SFT left it.",
        "The value head reads the policy's own hidden states without a gradient into them: with a LoRA there is "
        "little to share.",
        "A batch is trained on in minibatches; in the source's code it is one.",
        "Rewards are not scaled to variance 1 before advantages are computed, as they are in the source's code.",
    )
    requires = ("sft",)
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        answers = s.steps * min(s.batch, rows.train)
        counted = Sequences(answers=answers, answers_read=2 * answers, actor_trained=s.epochs * answers)
        return Loop(counted, own_answers=True, keeps_required=True, batch=min(s.chunk or s.batch, s.minibatch))

    def fit(self, lab: Lab) -> StaticPolicy:
        """Sample a batch, learn from it, and repeat."""
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
        head = torch.nn.Linear(lm.model.config.hidden_size, 1, device=lm.device)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        size = min(settings.batch, len(lab.train))
        minibatches = -(-size // settings.minibatch)
        updates = Updates(
            [
                {"params": list(weights.values()), "lr": settings.learning_rate},
                {"params": list(head.parameters()), "lr": settings.value_learning_rate},
            ],
            steps=settings.steps * settings.epochs * minibatches,
            gradient_clip=settings.gradient_clip,
            what="ppo",
        )
        controller = KLController(settings.kl_coefficient, settings.kl_target, settings.kl_horizon)
        for step in progress.each(range(1, settings.steps + 1), "steps"):
            rows = random.sample(list(lab.train), size)
            if not covers(lab, policy, rows, answers=1, scored=2, trained=settings.epochs):
                lab.log(event="budget", steps=step - 1)
                break
            seeds = [derive_seed(lab.stream("rollouts"), step, index) for index in range(len(rows))]
            told = sample(lab, policy, rows, seeds=seeds, temperature=1.0)
            pairs = list(zip(told.prompts, told.completions, strict=True))
            if not covers_step(lab, "actor", pairs, scored=2, trained=settings.epochs):
                lab.log(event="budget", steps=step - 1)
                break
            batch = _batch(lm, told, head, controller.coefficient, settings, weights, start)
            losses = []
            for _ in range(settings.epochs):
                order = random.sample(range(size), size)
                for first in range(0, size, settings.minibatch):
                    chosen = order[first : first + settings.minibatch]
                    with recomputed(lm, settings.gradient_checkpointing):
                        losses.append(updates.step(_losses(lm, head, told, chosen, batch, settings)))
            kl = float(((batch.old - batch.reference) * batch.mask).sum(1).mean())
            lab.log(
                event="step",
                step=step,
                reward=round(sum(told.rewards) / size, 5),
                kl=round(kl, 5),
                kl_coefficient=round(controller.coefficient, 6),
                loss=round(sum(losses) / len(losses), 5),
            )
            controller.update(kl, size)


@dataclass(frozen=True)
class Batch:
    """Values of B sampled answers of at most T tokens, computed before training on them; each is [B, T]."""

    mask: "Tensor"
    old: "Tensor"
    """Log-probabilities under the policy that sampled."""
    reference: "Tensor"
    """Log-probabilities under the reference."""
    values: "Tensor"
    returns: "Tensor"
    advantages: "Tensor"


def _batch(
    lm: "LM",
    told: "Sampled",
    head: "Module",
    coefficient: float,
    settings: Settings,
    weights: "Mapping[str, Parameter]",
    start: "Mapping[str, Tensor]",
) -> Batch:
    """Log-probabilities, values and advantages of sampled answers.

    `start` holds the reference's values of `weights`.
    """
    import torch

    from baselines.shared.policy_gradient import chunks, frozen, joined, token_mask

    mask = token_mask([len(each) for each in told.completions], lm.device)
    parts = chunks(len(told), settings.chunk)
    with torch.no_grad():
        reads = [_read(lm, told, part) for part in parts]
        old = joined([each for each, _ in reads])
        values = joined([head(states)[..., 0] for _, states in reads]) * mask
        with frozen(weights, start):
            reference = joined([_read(lm, told, part)[0] for part in parts])
    scores = torch.tensor(told.rewards, dtype=old.dtype, device=lm.device)
    rewards = token_rewards(scores, old, reference, mask, coefficient)
    advantages = gae(rewards, values, mask, settings.discount, settings.gae_lambda)
    return Batch(mask, old, reference, values, advantages + values, whitened(advantages, mask))


def _losses(
    lm: "LM", head: "Module", told: "Sampled", chosen: list[int], batch: Batch, settings: Settings
) -> "Iterator[Tensor]":
    """The parts of a minibatch's loss: the policy loss plus the weighted value loss, averaged over tokens."""
    from baselines.shared.policy_gradient import chunks, clipped_loss

    count = batch.mask[chosen].sum()
    for places in chunks(len(chosen), settings.chunk):
        part = [chosen[place] for place in places]
        new, states = _read(lm, told, part)
        here = part, slice(0, new.shape[1])
        surrogate = clipped_loss(new, batch.old[here], batch.advantages[here], batch.mask[here], settings.clip)
        value = head(states.detach())[..., 0]
        error = value_loss(value, batch.values[here], batch.returns[here], batch.mask[here], settings.clip)
        yield (surrogate.sum() + settings.value_weight * error) / count


class KLController:
    """Adapts the coefficient of the KL divergence to a target divergence (arXiv 1909.08593, section 2.2)."""

    def __init__(self, coefficient: float, target: float, horizon: float) -> None:
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, answers: int) -> None:
        """Adapt after a batch. The error is KL / target - 1, clipped to [-0.2, 0.2]; K is 1 / horizon per answer."""
        error = min(0.2, max(-0.2, kl / self.target - 1))
        self.coefficient *= 1 + error * answers / self.horizon


def token_rewards(scores: "Tensor", new: "Tensor", reference: "Tensor", mask: "Tensor", coefficient: float) -> "Tensor":
    """The reward of each token [B, T]: minus the weighted divergence there, plus the answer's score on its last token.

    Args:
        scores: of the answers, [B].
        new: log-probabilities under the policy that sampled, [B, T].
        reference: log-probabilities under the reference, [B, T].
        mask: 1 on an answer's tokens, [B, T].
        coefficient: weight of the divergence.
    """
    rewards = -coefficient * (new - reference) * mask
    last = mask.sum(1).long() - 1
    rewards[range(len(scores)), last] += scores
    return rewards


def gae(rewards: "Tensor", values: "Tensor", mask: "Tensor", discount: float, smoothing: float) -> "Tensor":
    """Generalised advantage estimates [B, T] (arXiv 1506.02438, equation 16); 0 after an answer's end."""
    import torch

    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(rewards[:, 0])
    for token in reversed(range(rewards.shape[1])):
        here = mask[:, token]
        delta = rewards[:, token] + discount * following - values[:, token]
        running = (delta + discount * smoothing * running) * here
        following = values[:, token] * here
        advantages[:, token] = running
    return advantages


def whitened(values: "Tensor", mask: "Tensor") -> "Tensor":
    """The values scaled to mean 0 and variance 1 over all tokens; 0 on padding."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / count
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def value_loss(value: "Tensor", old: "Tensor", returns: "Tensor", mask: "Tensor", clip: float) -> "Tensor":
    """Half the summed squared error of values.

    Per token it is the larger error of the value itself and of the value clipped around its old one.
    """
    import torch

    near = old + (value - old).clamp(-clip, clip)
    worse = torch.maximum((value - returns) ** 2, (near - returns) ** 2)
    return 0.5 * (worse * mask).sum()


def _read(lm: "LM", told: "Sampled", chosen: Sequence[int]) -> tuple["Tensor", "Tensor"]:
    """Log-probabilities [B, T] of the chosen answers' tokens, and the hidden states [B, T, H] that predict them."""
    import torch

    from baselines.shared.policy_gradient import answer_tokens, padded

    prompts, completions = [told.prompts[index] for index in chosen], [told.completions[index] for index in chosen]
    inputs, places, targets, lengths = answer_tokens(lm, prompts, completions)
    states = lm.decoder(input_ids=inputs, use_cache=False).last_hidden_state.flatten(0, 1).index_select(0, places)
    logits = lm.model.get_output_embeddings()(states).float()
    written = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    read = torch.nn.utils.rnn.pad_sequence(states.float().split(lengths), batch_first=True)
    return padded(written, lengths), read
