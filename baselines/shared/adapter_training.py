"""A LoRA on the actor, and the steps that train it; used by methods that train on given answers or pairs."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from baselines.shared.policy_gradient import adapter_weights
from metatuner.errors import UserError
from metatuner.harness.lab import Lab
from metatuner.lm import LM, grouped_adapter
from metatuner.method.config import TrainingConfig
from metatuner.method.data import shuffled_batches
from metatuner.method.optimising import Phase, Term, optimise

T = TypeVar("T")


class Adapter(Protocol):
    """The settings of a new LoRA; their meanings are documented in the methods' own `Settings`."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> int: ...
    @property
    def targets(self) -> tuple[str, ...]: ...


def new_adapter(lab: Lab, settings: Adapter, dropout: float = 0.0) -> LM:
    """The lab's actor with a new LoRA, put into the model itself. The LoRA changes nothing before it is trained."""
    with torch.random.fork_rng(devices=[]):  # PEFT draws A from torch's global stream
        torch.manual_seed(lab.stream("adapter"))
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=dropout,
            target_modules="all-linear" if settings.targets == ("all-linear",) else list(settings.targets),
        )
        model = get_peft_model(lab.actor.model, config)
    return replace(lab.actor, model=cast(PreTrainedModel, model.eval()))


class AdapterTraining(Phase, Generic[T]):
    """AdamW on the actor's LoRA: passes over rows in shuffled batches, with warm-up, cosine and clipped gradients."""

    name = "adapter"
    lower_rates: ClassVar[str] = "lower learning_rate"

    @property
    def less_memory(self) -> str:
        more = "" if self.config.activation_checkpointing else ", or set gradient_checkpointing to true"
        return f"lower batch_size{more}"

    def __init__(
        self,
        lm: LM,
        rows: Sequence[T],
        loss: Callable[[Sequence[T]], Tensor],
        *,
        method: str,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        warmup: float,
        seed: int,
        tokens: Callable[[T], int] = lambda row: 1,
        weight_decay: float = 0.0,
        checkpointing: bool = False,
        dropout: bool = True,
    ) -> None:
        """
        Args:
            lm: the actor in a PEFT model.
            loss: the mean of some of the rows.
            method: its name, for errors.
            warmup: share of the steps in which the rate rises.
            tokens: the weight of a row in the mean.
            checkpointing: recompute activations in the backward pass.
            dropout: whether the model's dropout acts.
        """
        if lm.spec.dtype == "float16":
            raise UserError(f"{method}: gradients underflow in float16; set the actor's dtype to bfloat16 or float32")
        self.lm, self.rows, self.loss, self.tokens, self.method = lm, rows, loss, tokens, method
        self.config = TrainingConfig(
            batch_size=batch_size,
            warm_up_share=warmup,
            autocast="bfloat16" if lm.spec.dtype == "bfloat16" else "none",
            activation_checkpointing=checkpointing,
        )
        self.weight_decay = weight_decay
        self.per_epoch = math.ceil(len(rows) / batch_size)
        self.steps = epochs * self.per_epoch
        self.groups = {"adapter": (list(adapter_weights(lm.model).values()), learning_rate)}
        self.adapted = [lm.model]
        self.layers = _layers(lm, method) if checkpointing else []
        self.batches = list(islice(shuffled_batches(rows, batch_size, seed), self.steps))
        self.seed, self.dropout = seed, dropout

    @property
    def label(self) -> str:
        return self.method

    def terms(self, step: int) -> dict[str, Term[T]]:
        return {"loss": Term(self.batches[step], self.loss, self.tokens)}

    def identity(self) -> Any:
        return [self.seed]

    def run(self, lab: Lab, log: Callable[..., None]) -> None:
        """Train while the budget covers it; `log` gets each step's `step` (from 0) and `loss`, as in `optimise`."""

        def logged(event: str, **values: Any) -> None:
            if event == "budget":
                lab.log(event=event, steps=values["steps"], of=values["of"])
            else:
                log(**values)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # of dropout
            self.lm.model.train(self.dropout)
            try:
                optimise(self, logged, covered=lab.budget.for_steps())
            finally:
                self.lm.model.eval()

    @contextmanager
    def as_in_a_step(self) -> Iterator[None]:
        """Within this context, the model computes as it does in a step: under the same autocast, in groups."""
        autocast = self.config.autocast == "bfloat16"
        with torch.autocast(self.lm.device.type, torch.bfloat16, enabled=autocast), grouped_adapter(self.lm.model):
            yield


def _layers(lm: LM, method: str) -> list[torch.nn.Module]:
    layers = getattr(lm.decoder, "layers", None)
    if layers is None:
        raise UserError(
            f"{method}: {type(lm.decoder).__name__} names no `layers`, so their activations cannot be recomputed; set "
            "gradient_checkpointing to false"
        )
    return list(layers.children())
