"""Training and saving of the generator as BPO's rewriter. Imported by `baselines.bpo` when needed."""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn

from baselines.shared.budget import covers_step
from metatuner import progress
from metatuner.errors import UserError
from metatuner.harness.lab import Lab
from metatuner.lm import LM, completion_loss

Pair = tuple[list[int], list[int]]
"""Token ids that the rewriter reads, and token ids that it must write."""


def to_train(lm: LM, what: str, rank: int, seed: int) -> None:
    """Prepare the model for training, in place: all its weights ("full"), or a new LoRA on all linears ("lora")."""
    if what == "full":
        lm.model.requires_grad_(True)
        return
    # PEFT draws A from torch's global stream.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
        inject_adapter_in_model(config, lm.model)
    for parameter in trainable(lm).values():
        parameter.data = parameter.data.float()  # steps are too small for half precision


def trainable(lm: LM) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in lm.model.named_parameters() if parameter.requires_grad}


def train(
    lab: Lab,
    lm: LM,
    pairs: Sequence[Pair],
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    warmup: float,
    seed: int,
) -> None:
    """Train with AdamW on the cross-entropy of the target tokens; stop before a step that the budget does not cover."""
    parameters = list(trainable(lm).values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    steps = epochs * math.ceil(len(pairs) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, steps, warmup))
    batches = list(_batches(pairs, epochs, batch_size, seed))
    for step, batch in enumerate(progress.each(batches, "steps"), start=1):
        if not covers_step(lab, "generator", batch):
            lab.log(event="budget", steps=step - 1)
            break
        loss = completion_loss(lm, batch)
        if not math.isfinite(loss.item()):
            raise UserError(f"bpo: loss {loss.item()} at step {step} of {steps}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        lab.log(event="step", step=step, loss=round(loss.item(), 5))


def rate_share(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step, counted from 0. It rises and falls linearly, always above 0."""
    rising = math.ceil(warmup * steps)
    return min((step + 1) / (rising + 1), max(1, steps - step) / max(1, steps - rising))


def _batches(pairs: Sequence[Pair], epochs: int, size: int, seed: int) -> Iterator[list[Pair]]:
    order = random.Random(seed)
    for _ in range(epochs):
        shuffled = order.sample(list(pairs), len(pairs))
        yield from (shuffled[start : start + size] for start in range(0, len(shuffled), size))


def save(lm: LM, path: Path) -> None:
    """Write the trained parameters as safetensors."""
    save_file({name: parameter.detach().cpu().contiguous() for name, parameter in trainable(lm).items()}, path)


@torch.no_grad()
def load(lm: LM, path: Path) -> None:
    """Load what `save` wrote into the trained parameters; UserError if it belongs to another model."""
    parameters = trainable(lm)
    saved = load_file(path)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: p.shape for name, p in parameters.items()}:
        raise UserError(
            f"{path}: its tensors do not belong to {lm.spec.path}; name the generator of the fit, or fit again"
        )
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])
