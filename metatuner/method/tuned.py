"""Private versions of a language model: views that share its tensors, copies to train, LoRA added and merged."""

import copy
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.integrity import check_weights_file, is_finite
from metatuner.lm import LM
from metatuner.lm.adapters import ADAPTER, frozen_view, lora_linears


def private_copy(module: nn.Module) -> nn.Module:
    """A copy of the module: trainable parameters are copied and stay trainable, frozen ones share memory."""
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        values = parameter.detach()
        trained = parameter.requires_grad
        memo[id(parameter)] = nn.Parameter(values.clone() if trained else values, requires_grad=trained)
    return copy.deepcopy(module, memo)


def to_train(lm: LM, what: Literal["full", "lora"], rank: int, seed: int, scale: float = 2.0) -> LM:
    """A private version of the model to train: all its weights (then copied), or a new LoRA on all its linears.

    `scale` is the factor before B A, lora_alpha / rank in PEFT. A LoRA has at least float32 precision, because half
    precision would lose small steps.
    """
    if what == "full":
        trained = frozen_view(lm, own=lambda name: True)
        trained.model.requires_grad_(True)
        return trained
    trained = frozen_view(lm)
    # PEFT draws A from torch's global stream.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_dropout=0.0, target_modules="all-linear")
        inject_adapter_in_model(config, trained.model, adapter_name=ADAPTER)
    for module in lora_linears(trained).values():
        module.scaling[ADAPTER] = scale
    for parameter in lora_parameters(trained).values():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return trained


def without_lora(lm: LM) -> LM:
    """The model as it was before a LoRA was added, in new modules that share its memory."""
    view = frozen_view(lm)
    for name, module in lora_linears(view).items():
        view.model.set_submodule(name, cast(nn.Linear, module.get_base_layer()))
    return view


def lora_parameters(lm: LM) -> dict[str, nn.Parameter]:
    """The tensors of the model's LoRA, by name; empty if it has none."""
    return {name: parameter for name, parameter in lm.model.named_parameters() if ".lora_" in name}


def trainable(lm: LM) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in lm.model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    found = hashlib.sha256()
    for name, tensor in named:
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, in the same bytes for the same values; UserError if one is NaN or infinite."""
    bad = next((name for name, tensor in tensors.items() if not is_finite(tensor.detach())), None)
    if bad is not None:
        raise UserError(f"{path}: not saved: {bad} holds NaN or infinite values; training diverged, lower its rates")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


@torch.no_grad()
def load_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Read into `tensors` what `save_tensors` wrote.

    Raises `UserError` if the file is missing or broken, if names or shapes differ, or if a value is NaN or infinite.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, though this configuration needs it; save again, or name another folder")
    check_weights_file(path, "save again, or restore it")
    saved = load_file(path)
    if saved.keys() != tensors.keys():
        differing = sorted(saved.keys() ^ tensors.keys())
        raise UserError(
            f"{path}: {len(differing)} tensors do not belong to this model, first {differing[0]}; fit again"
        )
    for name, tensor in tensors.items():
        if saved[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} has shape {list(saved[name].shape)}, this model's is {list(tensor.shape)}; fit again"
            )
        tensor.copy_(saved[name])
