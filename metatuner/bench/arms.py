"""Ways to give each query of a batch its own LoRA, behind one interface."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from metatuner.bench.measure import PAD, Bench, within_memory
from metatuner.bench.shapes import Shape
from metatuner.lm import LM, PerQueryLoRA, completion_loss, generate
from metatuner.lm.adapters import frozen_view

SCALE = 2.0


@dataclass
class Arm:
    """A model with factors, and the tensors that get the factors' gradients."""

    lm: LM
    values: Tensor
    """The factors it runs, in `PerQueryLoRA`'s flat layout, [queries, flat_size]."""
    applied: Callable[[list[int]], AbstractContextManager[Any]]
    """Given the rows of a batch, a context in which the model is adapted to them."""
    gradient: Callable[[], Tensor] | None = None
    """The gradients of the factors in that layout; None if there are no factors."""
    leaves: Sequence[Tensor] = ()
    one_by_one: bool = False
    """Rows are run one at a time."""
    summed: bool = False
    """All rows go through the same parameters: the gradient, [1, flat_size], is the sum over rows."""
    stock: bool = False
    """Completions are written by transformers' own `generate`."""

    def train(self, batch: Sequence[tuple[list[int], list[int]]]) -> float:
        """Forward and backward pass of the mean loss; returns the loss."""
        tokens = sum(len(completion) for _, completion in batch)
        total = 0.0
        rows = list(range(len(batch)))
        for part in [[row] for row in rows] if self.one_by_one else [rows]:
            with self.applied(part):
                loss = completion_loss(self.lm, [batch[row] for row in part], reduction="sum") / tokens
                loss.backward()
                total += loss.item()
        return total

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def write(self, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
        rows = list(range(len(prompts)))
        written = []
        for part in [[row] for row in rows] if self.one_by_one else [rows]:
            if self.stock:
                with self.applied(part):
                    written += stock_generate(self.lm, [prompts[row] for row in part], new, do_sample=False)
                continue
            with as_peft_computes(self.lm.model):
                completions = generate(
                    self.lm,
                    [prompts[row] for row in part],
                    max_new_tokens=new,
                    batch_tokens=2**40,
                    max_rows=2**20,
                    adapt=lambda inside, part=part: self.applied([part[row] for row in inside]),  # type: ignore[misc]
                )
            written += [completion.ids for completion in completions]
        return written

    @torch.inference_mode()
    def logits(self, prompts: Sequence[list[int]]) -> Tensor:
        """Logits after the last token of each prompt; all prompts have one length."""
        rows = list(range(len(prompts)))
        found = []
        for part in [[row] for row in rows] if self.one_by_one else [rows]:
            with self.applied(part):
                ids = torch.tensor([prompts[row] for row in part], device=self.lm.device)
                found.append(self.lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1])
        return torch.cat(found).float()


@contextmanager
def as_peft_computes(model: nn.Module) -> Iterator[None]:
    """Within this context, `generate` leaves the layers of PEFT as they are, and does not compute them in groups."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.forward = layer.forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.inference_mode()
def stock_generate(lm: LM, prompts: Sequence[list[int]], new: int, **sampling: Any) -> list[list[int]]:
    """What transformers' `generate` writes after prompts that are padded on the left, in one batch."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    written = cast(Any, lm.model).generate(
        ids.to(lm.device),
        attention_mask=mask.to(lm.device),
        max_new_tokens=new,
        suppress_tokens=lm.suppressed_ids,
        **sampling,
    )
    return written[:, width:].tolist()


def lora_arms(bench: Bench, shape: Shape, lm: LM) -> tuple[PerQueryLoRA, dict[str, Arm], dict[str, str]]:
    """The arms that run factors on all linears of one model and share its weights, and why others are left out."""
    lora = PerQueryLoRA(lm.model, rank=shape.rank, scale=SCALE)
    stream = torch.Generator().manual_seed(1)
    values = torch.randn(shape.batch, lora.flat_size, generator=stream).mul_(0.02).to(lm.device, lm.model.dtype)
    ours = per_query(lm, lora, values)
    builders: dict[str, Callable[[], Arm]] = {
        "base": partial(_base, lm, values),
        "per_query": lambda: ours,
        "shared": partial(_shared, lm, lora, values),
        "adapter_names": partial(_adapter_names, lm, lora, values),
        "loop": partial(replace, ours, one_by_one=True),
        "loop_peft": partial(_loop_peft, lm, lora, values),
    }
    skipped: dict[str, str] = {}
    copies = sum(site.d_in * site.d_out for site in lora.sites) * shape.batch * values.element_size()
    if 3 * copies > bench.available_bytes():  # the weights, their gradients, and what else a pass needs
        skipped["materialised"] = f"the linears once for each query are {copies / 1e9:.0f} GB, their gradients as many"
    else:
        builders["materialised"] = partial(_materialised, lm, lora, values)
    arms: dict[str, Arm] = {}
    for name, build in builders.items():
        with within_memory(name, "as its tensors were made", skipped):
            arms[name] = build()
    return lora, arms, skipped


def _base(lm: LM, values: Tensor) -> Arm:
    view = frozen_view(lm)
    view.model.enable_input_require_grads()  # the floor of a training step: only gradients of activations
    return Arm(view, torch.zeros_like(values), lambda rows: nullcontext())


def per_query(lm: LM, lora: PerQueryLoRA, values: Tensor) -> Arm:
    flat = values.clone().requires_grad_()
    return Arm(lm, values, lambda rows: lora.applied(flat[rows]), lambda: cast(Tensor, flat.grad), [flat])


def _peft(lm: LM, lora: PerQueryLoRA, values: Tensor, names: Sequence[str]) -> tuple[PeftModel, Arm]:
    """A view of the model with one stock adapter per name; the adapters hold the factors of the rows, in order."""
    view = frozen_view(lm)
    targets = sorted({site.name.rpartition(".")[2] for site in lora.sites})
    config = LoraConfig(r=lora.rank, lora_alpha=round(SCALE * lora.rank), target_modules=targets, lora_dropout=0.0)
    # Adapters in the model's own precision are faster than PEFT's default, float32, if the precision is lower.
    wrapped = get_peft_model(view.model, config, adapter_name=names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        wrapped.add_adapter(name, config, autocast_adapter_dtype=False)
    wrapped.eval()
    parameters = dict(wrapped.named_parameters())
    for row, name in enumerate(names):
        for key, value in lora.export_factors(values[row]).items():
            parameter = parameters[key.replace(".weight", f".{name}.weight")]
            parameter.data = value.clone()
            parameter.requires_grad_()

    def gradient() -> Tensor:
        def of(site: str, factor: str) -> Tensor:
            keys = (f"base_model.model.{site}.lora_{factor}.{name}.weight" for name in names)
            return torch.stack([cast(Tensor, parameters[key].grad) for key in keys])

        return lora.pack({s.name: (of(s.name, "A"), of(s.name, "B").transpose(1, 2)) for s in lora.sites})

    leaves = [parameter for parameter in parameters.values() if parameter.requires_grad]
    return wrapped, Arm(view, values, lambda rows: nullcontext(), gradient, leaves)


def _shared(lm: LM, lora: PerQueryLoRA, values: Tensor) -> Arm:
    """Stock PEFT: one LoRA for all rows."""
    return replace(_peft(lm, lora, values[:1].expand_as(values), ["shared"])[1], summed=True)


def _loop_peft(lm: LM, lora: PerQueryLoRA, values: Tensor) -> Arm:
    """A loop with stock tools: one PEFT adapter that takes each query's factors in turn, and `model.generate`."""
    wrapped, arm = _peft(lm, lora, values, ["query"])
    parameters = dict(wrapped.named_parameters())
    exported = [
        {key.replace(".weight", ".query.weight"): value for key, value in lora.export_factors(row).items()}
        for row in values
    ]

    @contextmanager
    def applied(rows: list[int]) -> Iterator[None]:
        (row,) = rows
        for key, value in exported[row].items():
            parameters[key].data = value
        yield None

    return replace(arm, applied=applied, one_by_one=True, summed=True, stock=True)


def _adapter_names(lm: LM, lora: PerQueryLoRA, values: Tensor) -> Arm:
    """PEFT's mixed batches. PEFT refuses them in training mode; the model is in evaluation mode, without dropout."""
    names = [f"query{row}" for row in range(len(values))]
    wrapped, arm = _peft(lm, lora, values, names)

    def applied(rows: list[int]) -> AbstractContextManager[None]:
        return cast(Any, wrapped.base_model)._enable_peft_forward_hooks(adapter_names=[names[row] for row in rows])

    return replace(arm, applied=applied)


def _materialised(lm: LM, lora: PerQueryLoRA, values: Tensor) -> Arm:
    """W + scale * B_i A_i of each query, made when a batch begins."""
    view = frozen_view(lm)
    rows, rank = len(values), lora.rank
    factors = {
        site.name: tuple(values[:, part].reshape(rows, rank, -1).clone().requires_grad_() for part in (site.a, site.b))
        for site in lora.sites
    }

    @contextmanager
    def applied(inside: list[int]) -> Iterator[None]:
        linears = {name: cast(nn.Linear, view.model.get_submodule(name)) for name in factors}
        try:
            for name, linear in linears.items():
                a, b = (each[inside] for each in factors[name])
                weights = torch.baddbmm(linear.weight, b.transpose(1, 2), a, alpha=SCALE)

                def forward(x: Tensor, weights: Tensor = weights, bias: Tensor | None = linear.bias) -> Tensor:
                    product = torch.bmm(x, weights.transpose(1, 2))
                    return product if bias is None else product + bias

                linear.forward = forward  # type: ignore[assignment, method-assign]
            yield None
        finally:  # also if memory runs out halfway: the other arms need this memory
            for linear in linears.values():
                linear.__dict__.pop("forward", None)

    def gradient() -> Tensor:
        return lora.pack({name: (cast(Tensor, a.grad), cast(Tensor, b.grad)) for name, (a, b) in factors.items()})

    return Arm(view, values, applied, gradient, [each for pair in factors.values() for each in pair])
