"""Shared by PPO and GRPO: log-probabilities of sampled answers, a frozen reference, the clipped objective, updates.

Shapes: B answers of at most T tokens, padded on the right; `mask` [B, T] is 1 on an answer's tokens.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metatuner.errors import UserError
from metatuner.lm import LM
from metatuner.lm.losses import logits_at


def answer_tokens(
    lm: LM, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Inputs and targets of one pass over answers.

    Returns:
        inputs [B, width]; places [tokens] in the flattened inputs at which the answers' tokens are predicted; targets
        [tokens]; and the length of each answer. Rows are padded on the right, where a causal model never looks.
    """
    lengths = [len(completion) for completion in completions]
    width = max(len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True)) - 1
    inputs = torch.full((len(prompts), width), lm.filler)
    places: list[int] = []
    targets: list[int] = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = [*prompt, *completion]
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        start = row * width + len(prompt) - 1
        places += range(start, start + len(completion))
        targets += completion
    device = lm.device
    return inputs.to(device), torch.tensor(places, device=device), torch.tensor(targets, device=device), lengths


def log_probs(lm: LM, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability [B, T] of each answer's tokens given its prompt; 0 on padding."""
    inputs, places, targets, lengths = answer_tokens(lm, prompts, completions)
    told = torch.log_softmax(logits_at(lm, inputs, places), dim=-1)
    return padded(told.gather(1, targets[:, None])[:, 0], lengths)


def chunks(count: int, size: int | None) -> list[list[int]]:
    """The indices below `count` in chunks of at most `size`, or in one chunk if `size` is None."""
    size = size or max(count, 1)
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One [B, T] from parts with different T, 0 on padding."""
    return torch.nn.utils.rnn.pad_sequence([row for part in parts for row in part], batch_first=True)


def padded(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Values per token [tokens] as [B, T], 0 on padding."""
    return torch.nn.utils.rnn.pad_sequence(values.split(list(lengths)), batch_first=True)


def token_mask(lengths: Sequence[int], device: Any) -> Tensor:
    """[B, T], 1 on an answer's tokens."""
    return padded(torch.ones(sum(lengths), device=device), lengths)


def clipped_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """PPO's clipped objective per token, negative (arXiv 1707.06347, equation 7); 0 on padding.

    Args:
        new: log-probabilities under the policy being trained, [B, T].
        old: log-probabilities under the policy that sampled, [B, T].
        advantages: [B, T], or [B, 1] for one per answer.
        mask: [B, T].
        clip: how far the probability ratio may move from 1.
    """
    ratio = (new - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages) * mask


def kl_estimate(new: Tensor, reference: Tensor) -> Tensor:
    """An unbiased, positive estimate of KL(new || reference) per token: r - log r - 1 with r = reference / new.

    This is k3 of Schulman's note on approximating KL divergence (arXiv 2402.03300, equation 4).
    """
    gap = reference - new
    return gap.exp() - gap - 1


@contextmanager
def frozen(weights: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """In this context, the trained model is the reference policy: its parameters have other values."""
    now = {name: weight.data for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.data = values[name]
        yield
    finally:
        for name, weight in weights.items():
            weight.data = now[name]


@contextmanager
def recomputed(lm: LM, wanted: bool) -> Iterator[None]:
    """If wanted, backward passes in this context recompute activations. Models do so in training mode only."""
    if not wanted:
        yield
        return
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.model.train()
    try:
        yield
    finally:
        lm.model.gradient_checkpointing_disable()
        lm.model.eval()


def adapter_weights(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The LoRA's parameters, made trainable; all others are frozen."""
    found = {}
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            found[name] = weight
    return found


class Updates:
    """AdamW with a clipped gradient and a learning rate that falls linearly to 0 over a known number of steps."""

    def __init__(self, groups: list[dict[str, Any]], *, steps: int, gradient_clip: float, what: str) -> None:
        """
        Args:
            groups: parameter groups, each with its `lr`.
            steps: maximum number of optimizer steps.
            gradient_clip: maximum norm of all gradients together.
            what: name of the method, for errors.
        """
        self.parameters = [weight for group in groups for weight in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: max(0.0, 1 - step / steps))
        self.gradient_clip, self.what, self.taken = gradient_clip, what, 0

    def step(self, parts: Iterable[Tensor]) -> float:
        """Take one step on the sum of the loss parts; return the sum.

        Each part is computed and freed before the next one. UserError if one is not finite.
        """
        self.taken += 1
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for loss in parts:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UserError(f"{self.what}: loss {value} at optimizer step {self.taken}; lower learning_rate")
            loss.backward()
            total += value
        torch.nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        return total
