"""A model with a LoRA of PEFT: views that share its tensors, and the LoRA added to the weights."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from peft import PeftModel
from peft.tuners.lora import Linear as LoRALinear
from torch import nn

from metatuner.lm.model import LM

ADAPTER = "default"
"""The name that PEFT gives to a model's only adapter."""


def frozen_view(lm: LM, own: Callable[[str], bool] = lambda name: False) -> LM:
    """The model frozen and in new modules: parameters with names that `own` accepts are copied, others share memory.

    Shared tensors follow in-place updates of the original, such as an optimiser's. Layers put into the view do not
    change the original.
    """
    memo: dict[int, object] = {}
    for name, parameter in lm.model.named_parameters():
        values = parameter.detach()
        memo[id(parameter)] = nn.Parameter(values.clone() if own(name) else values, requires_grad=False)
    return replace(lm, model=copy.deepcopy(lm.model, memo))


def merged(lm: LM) -> LM:
    """The model with its LoRA, if any, added to the weights; only the linears with a LoRA are copied.

    Sums are computed in the LoRA's precision and rounded to the weights' precision. A `peft.PeftModel` becomes the
    model that it wraps.
    """
    view = frozen_view(lm)
    for name, module in lora_linears(view).items():
        linear = cast(nn.Linear, module.get_base_layer())
        total = linear.weight + module.get_delta_weight(ADAPTER)
        linear.weight = nn.Parameter(total.to(linear.weight.dtype), requires_grad=False)
        view.model.set_submodule(name, linear)
    inner = view.model.base_model.model if isinstance(view.model, PeftModel) else view.model
    return replace(view, model=inner)


def lora_linears(lm: LM) -> dict[str, LoRALinear]:
    """The linears that carry a LoRA, by their names in the model without it."""
    return {name: module for name, module in lm.model.named_modules() if isinstance(module, LoRALinear)}
