"""LoRA of linear modules that read the same input (q/k/v, gate/up), computed together, as one autograd node.

Used with factors per query (`per_query_lora`), and with the one adapter that PEFT trains (`grouped_adapter`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling modules that read the same input. Grouping only saves time: other modules form groups of one."""


@contextmanager
def grouped_adapter(*models: nn.Module) -> Iterator[None]:
    """Within this context, the LoRA of each PEFT model computes in groups: the same outputs, up to rounding, sooner.

    A model stays as it is if its LoRA has dropout, is merged or disabled, or has another precision than the model
    outside of autocast.
    """
    groups = _adapter_groups(models)
    for group in groups:
        group.attach()
    try:
        yield
    finally:
        for group in groups:
            group.detach()


def _adapter_groups(models: Sequence[nn.Module]) -> "list[_AdapterGroup]":
    from peft.tuners.lora.layer import Linear

    groups: list[_AdapterGroup] = []
    seen: set[int] = set()
    for model in models:
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, Linear) and id(module) not in seen
        }
        seen.update(map(id, layers.values()))
        for names in grouped(layers):
            part = [layers[name] for name in names]
            alike = all(layer.r == part[0].r and layer.scaling == part[0].scaling for layer in part)
            if alike and all(map(_plain, part)):
                groups.append(_AdapterGroup(part))
    return groups


def _plain(layer: Any) -> bool:
    """Whether a PEFT layer computes W x + b + scale * B A x for one adapter, and nothing else."""
    (name, *others) = layer.active_adapters or [""]
    return (
        not others
        and name in layer.lora_A
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and isinstance(layer.get_base_layer(), nn.Linear)
        and "forward" not in vars(layer)  # grouped already
        and not (layer.merged or layer.disable_adapters or layer.lora_variant or layer.lora_bias[name])
    )


def grouped(modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """The names in groups of sites that read the same input."""
    groups: dict[tuple[str, object], list[str]] = {}
    for name in modules:
        parent, _, last = name.rpartition(".")
        siblings = next((names for names in SAME_INPUT if last in names), last)
        groups.setdefault((parent, siblings), []).append(name)
    return list(groups.values())


class Group:
    """Sites that read the same input: the first call computes all of them."""

    def __init__(self, members: Sequence[nn.Linear], rank: int, scale: float) -> None:
        self.members, self.rank, self.scale = members, rank, scale
        self.called: Sequence[nn.Module] = members
        """The modules that the model calls."""
        self.pieces = [
            rank * len(members) * members[0].in_features,
            *(rank * member.out_features for member in members),
        ]
        self.a: Tensor | None = None
        self.bs: list[Tensor] = []
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}

    def attach(self) -> None:
        for index, member in enumerate(self.called):
            if "forward" in vars(member):
                raise RuntimeError("a linear module is adapted by something else already: leave or remove that first")
            member.forward = partial(self._forward, index)

    def detach(self) -> None:
        for member in self.called:
            vars(member).pop("forward", None)
        self.a, self.bs, self.input, self.outputs = None, [], None, {}

    def use(self, pieces: Sequence[Tensor]) -> None:
        self.input, self.outputs = None, {}
        rows = len(pieces[0])
        # Strided views of the flat tensor: batched products need contiguous matrices, not contiguous batches.
        self.a = pieces[0].view(rows, -1, self.members[0].in_features)
        self.bs = [piece.view(rows, self.rank, -1) for piece in pieces[1:]]

    def _forward(self, index: int, x: Tensor) -> Tensor:
        if x is not self.input or index not in self.outputs:
            self.input, self.outputs = x, dict(enumerate(self._compute(x)))
        output = self.outputs.pop(index)
        if not self.outputs:
            self.input = None
        return output

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        assert self.a is not None
        if x.ndim != 3 or len(x) != len(self.a):
            raise ValueError(f"per-query LoRA holds factors for {len(self.a)} rows, the input is {list(x.shape)}")
        return self._outputs(x, self.a, self.bs)

    def _outputs(self, x: Tensor, a: Tensor, bs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each member's output; x [rows, positions, d_in], a [rows, members * rank, d_in], bs [rows, rank, d_out]."""
        weights: list[Tensor] = [member.weight for member in self.members]
        biases: list[Tensor | None] = [member.bias for member in self.members]
        if not torch.is_autocast_enabled(x.device.type):
            return _run(self.scale, x, a, weights, biases, bs)
        dtype = torch.get_autocast_dtype(x.device.type)
        x, a = x.to(dtype), a.to(dtype)
        weights, bs = [weight.to(dtype) for weight in weights], [b.to(dtype) for b in bs]
        biases = [None if bias is None else bias.to(dtype) for bias in biases]
        with torch.autocast(x.device.type, enabled=False):
            return _run(self.scale, x, a, weights, biases, bs)


class _AdapterGroup(Group):
    """Layers of PEFT that read the same input; their adapter is shared by all rows."""

    def __init__(self, layers: Sequence[Any]) -> None:
        (self.name,) = layers[0].active_adapters
        super().__init__(
            [layer.get_base_layer() for layer in layers], layers[0].r[self.name], layers[0].scaling[self.name]
        )
        self.called = self.layers = layers

    def _forward(self, index: int, x: Tensor, *more: Any, **options: Any) -> Tensor:
        layer = self.layers[index]
        if more or options or layer.merged or layer.disable_adapters or layer.active_adapters != [self.name]:
            found: Tensor = type(layer).forward(layer, x, *more, **options)
            return found
        return super()._forward(index, x)

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        a = torch.cat([layer.lora_A[self.name].weight for layer in self.layers])
        bs = [layer.lora_B[self.name].weight.T for layer in self.layers]
        mixed = x.dtype != a.dtype and not torch.is_autocast_enabled(x.device.type)
        if mixed or any("forward" in vars(member) for member in self.members):  # something else adapts the model too
            return tuple(type(layer).forward(layer, x) for layer in self.layers)
        outputs = self._outputs(x.reshape(1, -1, x.shape[-1]), a[None], [b[None] for b in bs])
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)


def _run(
    scale: float, x: Tensor, a: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], bs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Each site's output; all tensors have one precision."""
    if torch.is_grad_enabled():
        return _GroupedLoRA.apply(scale, x, a, *weights, *biases, *bs)
    return _forward(scale, x, a, weights, biases, bs)[1]


def _forward(
    scale: float, x: Tensor, a: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], bs: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A's product [rows, positions, sites * rank], and each site's output [rows, positions, d_out]."""
    low = torch.bmm(x, a.transpose(1, 2))
    outputs = tuple(
        F.linear(x, weight, bias).baddbmm_(part, b, alpha=scale)
        for weight, bias, part, b in zip(weights, biases, low.chunk(len(bs), -1), bs, strict=True)
    )
    return low, outputs


class _GroupedLoRA(torch.autograd.Function):
    """One autograd node for the sites of a group; inputs after x and A: their weights, then biases, then B's."""

    @staticmethod
    def forward(ctx: Any, scale: float, x: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        n = len(rest) // 3
        weights, biases, bs = rest[:n], rest[n : 2 * n], rest[2 * n :]
        low, outputs = _forward(scale, x, a, weights, biases, bs)
        ctx.scale = scale
        ctx.save_for_backward(x, a, low, *weights, *bs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, a, low, *rest = ctx.saved_tensors
        n = len(rest) // 2
        weights, bs = rest[:n], rest[n:]
        needs_x, needs_a = ctx.needs_input_grad[1:3]
        needs = ctx.needs_input_grad[3:]
        grads = tuple(grad.contiguous() for grad in grads)
        flat = [grad.flatten(0, 1) for grad in grads]

        grad_weights = [flat[i].T @ x.flatten(0, 1) if needs[i] else None for i in range(n)]
        grad_biases = [flat[i].sum(0) if needs[n + i] else None for i in range(n)]
        scaled = low if ctx.scale == 1 else low * ctx.scale
        parts = scaled.chunk(n, -1)
        grad_bs = [torch.bmm(parts[i].transpose(1, 2), grads[i]) if needs[2 * n + i] else None for i in range(n)]

        grad_x = grad_a = None
        if needs_x or needs_a:
            grad_low = torch.cat([torch.bmm(grad, b.transpose(1, 2)) for grad, b in zip(grads, bs, strict=True)], -1)
            if ctx.scale != 1:
                grad_low.mul_(ctx.scale)
            if needs_a:
                grad_a = torch.bmm(grad_low.transpose(1, 2), x)
            if needs_x:
                grad_x = flat[0] @ weights[0]
                for grad, weight in zip(flat[1:], weights[1:], strict=True):
                    grad_x.addmm_(grad, weight)
                grad_x = grad_x.view_as(x).baddbmm_(grad_low, a)
        return None, grad_x, grad_a, *grad_weights, *grad_biases, *grad_bs
