"""LoRA with separate factors for each query of a batch: y = W x + b + scale * B_i A_i x.

All factors of a batch are one tensor [queries, flat_size], as a hypernetwork emits them. Three things keep the cost of
a step near the cost of the bare model. `split` takes the flat tensor apart, and its backward is one concatenation. The
low-rank part is added in place. Sites that read the same input (q/k/v, gate/up) are one autograd node.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metatuner.errors import UserError, suggest
from metatuner.lm.grouped_lora import Group, grouped

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Site:
    """A linear module that gets factors: A_i [rank, d_in] and B_i, transposed, [rank, d_out], flattened row by row."""

    name: str
    """Its path in the model, such as model.layers.0.self_attn.q_proj."""
    d_in: int
    d_out: int
    a: slice
    """Where A_i lies in a query's flat factors."""
    b: slice
    """Where B_i lies."""


class PerQueryLoRA:
    """Per-query LoRA on the linear modules of a causal language model's decoder layers.

    Args:
        model: a model with `get_decoder().layers`; its modules and state dict do not change.
        target_modules: attribute names of linear modules, such as ("q_proj", "v_proj"), or "all-linear".
        rank: rank of every site.
        scale: the factor before B_i A_i (lambda in the paper; lora_alpha / rank in PEFT).

    Raises `UserError` for a name that no decoder layer has, and for a rank that exceeds a site's width.

    >>> lora = PerQueryLoRA(model, ("q_proj", "v_proj"), rank=8)        # doctest: +SKIP
    >>> with lora.applied(factors):                                     # [queries, lora.flat_size]
    ...     loss = completion_loss(lm, batch)                           # a row a query, in the same order
    >>> generate(lm, prompts, max_new_tokens=64, adapt=lambda rows: lora.applied(factors[rows]))
    """

    def __init__(
        self, model: nn.Module, target_modules: Sequence[str] | str = ALL_LINEAR, rank: int = 8, scale: float = 1.0
    ) -> None:
        modules = _linears(model, target_modules)
        self.rank, self.scale = rank, scale
        self._groups: list[Group] = []
        sites: list[Site] = []
        start = 0
        for names in grouped(modules):
            members = [modules[name] for name in names]
            for name, member in zip(names, members, strict=True):
                width = min(member.in_features, member.out_features)
                if not 1 <= rank <= width:
                    raise UserError(
                        f"per-query LoRA: rank {rank} is not in 1..{width}, the width of {name}; choose another rank "
                        "or other target modules"
                    )
            size_a = rank * members[0].in_features
            start_b = start + size_a * len(members)
            for i, (name, member) in enumerate(zip(names, members, strict=True)):
                a = slice(start + i * size_a, start + (i + 1) * size_a)
                b = slice(start_b, start_b + rank * member.out_features)
                sites.append(Site(name, member.in_features, member.out_features, a, b))
                start_b = b.stop
            start = start_b
            self._groups.append(Group(members, rank, scale))
        self.sites: tuple[Site, ...] = tuple(sites)
        self.flat_size = start
        """Numbers per query: the sum over sites of rank * (d_in + d_out)."""
        self._pieces = [size for group in self._groups for size in group.pieces]
        self._flat: Tensor | None = None
        self._held = False

    @contextmanager
    def applied(self, flat: Tensor) -> Iterator["PerQueryLoRA"]:
        """Adapt the model to `flat` [rows, flat_size]: inside, row i of every batch is shifted by flat[i].

        Gradients reach `flat`. Activation checkpointing runs the model again in the backward pass. So run the backward
        pass inside too, or run both inside `held`.
        """
        if flat.ndim != 2 or flat.shape[1] != self.flat_size:
            raise ValueError(f"factors must be [rows, {self.flat_size}], got {list(flat.shape)}")
        if self._flat is not None:
            raise RuntimeError("these factors' sites are in use: leave the other `applied` first")
        for group in self._groups:
            group.attach()
        try:
            # One cast for all sites and steps; its backward returns gradients in the caller's precision.
            self._use(flat.to(self._groups[0].members[0].weight.dtype))
            yield self
        finally:
            if not self._held:
                self._release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep factors applied after their `applied` ends, until this context ends; no others can be applied then."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._release()

    def keep(self, rows: Tensor) -> None:
        """From now on, batches hold only `rows` (indices into the current rows), in this order."""
        if self._flat is None:
            raise RuntimeError("no factors are applied")
        self._use(self._flat.index_select(0, rows.to(self._flat.device)))

    def pack(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Flat factors [rows, flat_size] from each site's (A [rows, rank, d_in], B transposed [rows, rank, d_out])."""
        pieces = {}
        for site in self.sites:
            a, b = factors[site.name]
            pieces[site.a.start], pieces[site.b.start] = a.flatten(1), b.flatten(1)
        return torch.cat([pieces[start] for start in sorted(pieces)], 1)

    def export_factors(self, row: Tensor) -> dict[str, Tensor]:
        """One query's factors [flat_size] under PEFT's names and shapes: lora_A [rank, d_in], lora_B [d_out, rank].

        Load them with `lora_alpha = scale * rank`.
        """
        exported = {}
        for site in self.sites:
            prefix = f"base_model.model.{site.name}"
            exported[f"{prefix}.lora_A.weight"] = row[site.a].view(self.rank, site.d_in).contiguous()
            exported[f"{prefix}.lora_B.weight"] = row[site.b].view(self.rank, site.d_out).T.contiguous()
        return exported

    def _release(self) -> None:
        self._flat = None
        for group in self._groups:
            group.detach()

    def _use(self, flat: Tensor) -> None:
        self._flat = flat
        pieces = iter(flat.split(self._pieces, dim=1))
        for group in self._groups:
            group.use([next(pieces) for _ in group.pieces])


def _linears(model: Any, target_modules: Sequence[str] | str) -> dict[str, nn.Linear]:
    """The target linear modules in the decoder layers, by their path in the model without PEFT's wrapping."""
    inside = {id(module) for layer in model.get_decoder().layers for module in layer.modules()}
    found = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and ".lora_" not in name
    }
    if target_modules == ALL_LINEAR:
        return found
    wanted = [target_modules] if isinstance(target_modules, str) else target_modules
    known = {name.rpartition(".")[2] for name in found}
    for name in wanted:
        if name not in known:
            raise UserError(f"per-query LoRA: no target module {name!r} in the decoder layers; {suggest(name, known)}")
    return {name: module for name, module in found.items() if name.rpartition(".")[2] in wanted}
