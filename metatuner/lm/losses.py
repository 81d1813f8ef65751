"""The language-model loss on completions only."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metatuner.errors import UserError
from metatuner.lm.model import LM


def completion_loss(
    lm: LM, batch: Sequence[tuple[Sequence[int], Sequence[int]]], *, reduction: Literal["mean", "sum", "row"] = "mean"
) -> Tensor:
    """Cross-entropy, in nats, of completions given their prompts.

    Args:
        batch: one (prompt ids, completion ids) pair per row; neither may be empty.
        reduction: "mean" over all completion tokens of the batch and "sum" give a scalar; "row" gives [rows], each the
            sum over its tokens (the negative log-probability of the completion).

    Rows are padded on the right, where a causal model never attends. The LM head runs at completion positions only.
    Gradients reach everything that requires them: the model, a PEFT adapter, per-query LoRA factors.

    Raises `UserError` if a row is longer than the window.
    """
    width = 0
    for row, (prompt, completion) in enumerate(batch):
        if not prompt or not completion:
            raise ValueError(f"row {row}: the {'completion' if prompt else 'prompt'} is empty")
        width = max(width, len(prompt) + len(completion))
        if width > lm.window:
            raise UserError(
                f"row {row}: prompt and completion are {width} tokens, the window of {lm.spec.path} is {lm.window}; "
                "render the prompt with reserve=len(completion)"
            )
    # The last token is only predicted, never read.
    width -= 1
    inputs = torch.full((len(batch), width), lm.filler)
    places: list[int] = []
    targets: list[int] = []
    for row, (prompt, completion) in enumerate(batch):
        ids = [*prompt, *completion]
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        start = row * width + len(prompt) - 1
        places += range(start, start + len(completion))
        targets += completion
    losses = F.cross_entropy(
        logits_at(lm, inputs.to(lm.device), torch.tensor(places, device=lm.device)),
        torch.tensor(targets, device=lm.device),
        reduction="none",
    )
    if reduction == "sum":
        return losses.sum()
    if reduction == "row":
        return torch.stack([part.sum() for part in losses.split([len(completion) for _, completion in batch])])
    return losses.mean()


def logits_at(lm: LM, inputs: Tensor, places: Tensor) -> Tensor:
    """Logits [places, vocabulary], at least in fp32, at positions of the flattened [rows * width] inputs."""
    if lm.plain_head:
        hidden = lm.decoder(input_ids=inputs, use_cache=False).last_hidden_state
        logits = lm.head(hidden.flatten(0, 1).index_select(0, places))
    else:
        logits = lm.model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).index_select(0, places)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
