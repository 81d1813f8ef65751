"""The meta encoder (the generator's first layers as a separate module) and h_i, its pooled states for a query."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.lm import LM, Adapt, Adaptation
from metatuner.method.tuned import private_copy


def decoder_layers(lm: LM) -> nn.ModuleList:
    """The decoder's layers; `UserError` if the architecture does not name them `layers` or has no last `norm`."""
    layers = getattr(lm.decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(getattr(lm.decoder, "norm", None), nn.Module):
        raise UserError(
            f"model {lm.spec.path}: {type(lm.decoder).__name__} has no `layers` and `norm`, so it cannot be the "
            "generator; use a decoder-only model of the Llama, Qwen, Mistral or Gemma kind"
        )
    return layers


def first_layers(lm: LM, k: int) -> nn.Module:
    """The decoder's embedding and first k layers as a separate module that shares their tensors.

    It ends before the decoder's last norm, which belongs to the layers above.
    """
    encoder = copy.copy(lm.decoder)
    # A copied module shares its table of children with the original; this one gets its own.
    encoder._modules = dict(encoder._modules)
    encoder.layers = decoder_layers(lm)[:k]
    encoder.norm = nn.Identity()
    return encoder


def meta_encoder(lm: LM, k: int, depth: int) -> nn.Module:
    """The first `depth` layers: the first k share the decoder's tensors, the others are trainable copies.

    If k = 0, the embedding is a copy as well.
    """
    encoder = first_layers(lm, depth)
    if depth > k:
        shared, private = decoder_layers(lm)[:k], decoder_layers(lm)[k:depth]
        encoder.layers = nn.ModuleList([*shared, *(private_copy(layer) for layer in private)])
    if k == 0:
        encoder.set_input_embeddings(private_copy(encoder.get_input_embeddings()))  # type: ignore[operator]
    return encoder


def right_padded(lm: LM, rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [rows, longest], padded on the right."""
    inputs = torch.full((len(rows), max(map(len, rows))), lm.filler)
    for index, row in enumerate(rows):
        inputs[index, : len(row)] = torch.tensor(row)
    return inputs.to(lm.device)


def pooled(states: Tensor, starts: Tensor, ends: Tensor, how: Literal["mean", "last"]) -> Tensor:
    """h_i [rows, H] from states [rows, positions, H]; row i has positions starts[i] to ends[i].

    h_i is scaled to root mean square 1. The scale of inner states differs between models by orders of magnitude.
    Without scaling, no initial weights or learning rate of the parameter decoder would fit two models.
    """
    if how == "last":
        found = states[torch.arange(len(states), device=states.device), ends - 1]
    else:
        positions = torch.arange(states.shape[1], device=states.device)
        inside = (positions >= starts[:, None]) & (positions < ends[:, None])
        found = (states * inside[..., None]).sum(1) / (ends - starts)[:, None]
    return F.rms_norm(found, found.shape[-1:])


def captured(layer: nn.Module, rows: Sequence[Sequence[int]], h: Tensor, how: Literal["mean", "last"]) -> Adapt:
    """For `generate`: computes h_i of each batch from a layer's states while the batch's prefixes are read.

    Args:
        layer: the layer that gives the states.
        rows: token ids of all prefixes, which `generate` pads on the left.
        h: [rows, H], filled in.
        how: see `pooled`.
    """

    @contextmanager
    def capture(batch: list[int]) -> Iterator[Adaptation]:
        def take(module: nn.Module, args: object, states: Tensor) -> None:
            hook.remove()  # later passes read new tokens
            lengths = torch.tensor([len(rows[row]) for row in batch], device=states.device)
            ends = torch.full_like(lengths, states.shape[1])
            h[batch] = pooled(states, states.shape[1] - lengths, ends, how)

        hook = layer.register_forward_hook(take)
        try:
            yield _OneRowPerPrompt()
        finally:
            hook.remove()

    return capture


class _OneRowPerPrompt:
    """An adaptation that changes nothing, but makes `generate` read equal prompts in separate rows."""

    def keep(self, rows: Tensor) -> None:
        pass
