"""Optimiser steps over a phase of training: in micro-batches, on one process or several, with checkpoints."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from metatuner import progress
from metatuner.errors import UserError
from metatuner.hashing import hash_value
from metatuner.lm import PerQueryLoRA, grouped_adapter
from metatuner.method.checkpoints import Checkpoints
from metatuner.method.config import TrainingConfig
from metatuner.method.tuned import digest

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
Log = Callable[..., None]
"""Receives one event of the training log as keywords (JSON values)."""
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory")
"""Messages of torch's CPU allocator. On a GPU, torch raises an error type of its own."""


@dataclass(frozen=True)
class Term(Generic[T]):
    """A term of a step's loss: `weight` times the mean over the completion tokens of `rows` (0 without rows).

    Parts of a batch are weighted by their tokens, so that together they give the loss of the whole batch.
    """

    rows: Sequence[T]
    loss: Callable[[Sequence[T]], Tensor]
    """The mean of some of the rows, a scalar in nats per token."""
    tokens: Callable[[T], int]
    """Completion tokens of a row."""
    weight: float = 1.0


class Phase(ABC):
    """A phase of training: what is trained, and what is minimised in each step.

    All random draws of a step must derive from the step's number, so that a resumed phase gives the same result as an
    uninterrupted one.
    """

    name: ClassVar[str]
    config: TrainingConfig
    steps: int
    groups: Mapping[str, tuple[list[nn.Parameter], float]]
    """Name -> (parameters, peak learning rate)."""
    weight_decay: float = 0.0
    """Of AdamW."""
    layers: Sequence[nn.Module]
    """With `activation_checkpointing`, the activations of these layers are computed again in the backward pass."""
    lora: PerQueryLoRA | None = None
    """Per-query LoRA that the loss applies to some of these layers."""
    adapted: Sequence[nn.Module] = ()
    """Modules with a LoRA of PEFT, which the steps compute in groups (`grouped_adapter`)."""

    @property
    def label(self) -> str:
        """The phase in an error message."""
        return f"MetaTuner, {self.name}"

    lower_rates: ClassVar[str] = "lower the learning rates"
    """What to change if training diverges."""

    @property
    def less_memory(self) -> str:
        """What to change if a step runs out of memory."""
        config = self.config
        more = min(2 * config.accumulation, config.batch_size)
        remedy = (
            f"set accumulation to {more}" if more > config.accumulation else "lower max_prompt_tokens or the windows"
        )
        return remedy if config.activation_checkpointing else f"{remedy}, or activation_checkpointing to true"

    @abstractmethod
    def terms(self, step: int) -> dict[str, Term[Any]]:
        """The terms of a step's loss, which is their weighted sum. Called once per step, in order."""

    @abstractmethod
    def identity(self) -> Any:
        """What the phase depends on besides its configuration and parameters, as JSON values: models, data, seed."""

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """What a checkpoint must hold besides parameters and optimiser state: tensors and JSON values."""
        return {}, None

    def restore(self, tensors: Mapping[str, Tensor], values: Any) -> None:  # noqa: B027
        """Restore what `state` returned."""


def optimise(
    phase: Phase,
    log: Log,
    *,
    checkpoints: Path | None = None,
    accelerator: "Accelerator | None" = None,
    covered: Callable[[], bool] = lambda: True,
) -> None:
    """Run AdamW with a linear warm-up and a cosine to 0, clip gradients by their common norm, and log each step.

    A parameter without a gradient in a step does not change: neither momentum nor weight decay moves it.

    Args:
        checkpoints: where `config.checkpoint_steps` writes, in a folder named after the phase. A phase with a
            checkpoint there resumes from it, bit for bit, if it starts from the same models, data and seed.
        accelerator: splits each batch among its processes, which must have equal models and arguments. Losses and
            gradients equal those of one process up to rounding. The first process writes checkpoints.
        covered: called before each step: whether a budget covers it. The phase ends at the first step that is not
            covered, with the parameters as they are, and the log says so. It must answer alike in all processes.

    A line of the log has: step, the share of the peak learning rates, the completion tokens of the step, the loss, each
    term (before its weight) and the gradient norm of each group (before clipping).

    Raises `UserError` if loss or gradients are not finite, if memory runs out, and for checkpoints of another
    configuration or start.
    """
    config, name = phase.config, phase.name
    processes, rank = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in phase.groups.values()],
        weight_decay=phase.weight_decay,
        fused=True,
    )
    everything = [parameter for parameters, _ in phase.groups.values() for parameter in parameters]
    device = everything[0].device
    start, saved = 0, None
    if checkpoints is not None and config.checkpoint_steps:
        saved = Checkpoints(checkpoints / name, _key(phase))
        start = _resume(phase, optimizer, saved)
        if start:
            log(event="resumed", phase=name, step=start)
    for step in progress.each(range(start, phase.steps), f"steps ({name})"):
        if not covered():
            log(event="budget", phase=name, steps=step, of=phase.steps)
            break
        rate = cosine_with_warm_up(step, phase.steps, config.warm_up_share)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        with _memory_advice(phase, step, "in generation", "lower batch_tokens"):
            terms = phase.terms(step)
        where = f"with batch_size {config.batch_size} and accumulation {config.accumulation}"
        with _memory_advice(phase, step, where, phase.less_memory):
            values, tokens = _backward(phase, terms, device, processes, rank)
            if accelerator:
                _reduce(everything, values, accelerator)
            norms = {group: _norm(parameters).to(device) for group, (parameters, _) in phase.groups.items()}
            norm = torch.stack(list(norms.values())).square().sum().sqrt()
            if not math.isfinite(values["loss"]) or not math.isfinite(norm.item()):
                raise UserError(
                    f"{phase.label}: loss {values['loss']} and gradient norm {norm.item()} at step {step} of "
                    f"{phase.steps}; {phase.lower_rates}"
                )
            clip_grads_with_norm_(everything, config.gradient_clip, norm)
            optimizer.step()
        optimizer.zero_grad()
        log(
            event=name,
            step=step,
            rate=rate,
            tokens=tokens,
            **values,
            **{f"norm_{group}": value.item() for group, value in norms.items()},
        )
        done = step + 1
        if saved and rank == 0 and (done % config.checkpoint_steps == 0 or done == phase.steps):
            saved.save(done, *_state(phase, optimizer))


def log_of_first(log: Log, accelerator: "Accelerator | None") -> Log:
    """The log, silent in all processes but the first."""
    return log if accelerator is None or accelerator.is_main_process else lambda **event: None


def cosine_with_warm_up(step: int, steps: int, warm_up_share: float) -> float:
    """The share of the peak learning rate at a step; it is above 0 from the first step on."""
    rising = math.ceil(warm_up_share * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which the layers keep no activations for the backward pass, but compute them again there.

    transformers' own switch works in training mode only, which would turn dropout on. It also disables the cache for
    decoding in the meantime.
    """
    for layer in layers:
        layer.forward = partial(_recompute, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _recompute(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)  # it draws the same dropout again


def _backward(
    phase: Phase, terms: Mapping[str, Term[Any]], device: torch.device, processes: int, rank: int
) -> tuple[dict[str, float], int]:
    """Add up the gradients of this process's parts of a step.

    Returns:
        The losses of these parts, and the tokens of all parts.
    """
    config, lora = phase.config, phase.lora
    tokens = {name: sum(map(term.tokens, term.rows)) for name, term in terms.items()}
    losses: dict[str, list[Tensor]] = {name: [] for name in terms}
    totals: list[Tensor] = []
    parts = config.accumulation * processes
    for part in range(rank, parts, processes):
        with ExitStack() as stack:
            stack.enter_context(grouped_adapter(*phase.adapted))
            if config.activation_checkpointing:
                stack.enter_context(recomputed(phase.layers))
                if lora is not None:
                    stack.enter_context(lora.held())
            weighted = []
            with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast == "bfloat16"):
                for name, term in terms.items():
                    rows = term.rows[part::parts]
                    if rows:
                        share = sum(map(term.tokens, rows)) / tokens[name]
                        loss = share * term.loss(rows)
                        losses[name].append(loss.detach())
                        weighted.append(term.weight * loss)
            if weighted:
                total = sum(weighted[1:], weighted[0])
                totals.append(total.detach())
                total.backward()
    values = {name: math.fsum(loss.item() for loss in found) for name, found in (losses | {"loss": totals}).items()}
    return values, sum(tokens.values())


@torch.no_grad()
def _reduce(parameters: Sequence[nn.Parameter], values: dict[str, float], accelerator: "Accelerator") -> None:
    """Sum losses and gradients over the processes, in place; each holds its share of the whole batch's mean.

    DistributedDataParallel does not work here. It needs the forward of a wrapped model, which per-query LoRA and the
    meta encoder bypass. It also gives each process the same weight, however many tokens it had.
    """
    device = accelerator.device
    sums = accelerator.reduce(torch.tensor(list(values.values()), dtype=torch.float64, device=device))
    values.update(zip(values, sums.tolist(), strict=True))
    # A process without rows of a term may lack gradients that other processes have.
    present = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=device)
    for parameter, count in zip(parameters, accelerator.reduce(present).tolist(), strict=True):
        if count:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(grad)


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The common norm of the gradients; it is on the CPU if no parameter has a gradient."""
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


@contextmanager
def _memory_advice(phase: Phase, step: int, where: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        raise UserError(f"{phase.label}: out of memory at step {step} of {phase.steps}, {where}; {remedy}") from error


def _key(phase: Phase) -> str:
    """A hash of what a checkpoint belongs to. Call it before the first step: it covers the initial parameters."""
    config = replace(phase.config, checkpoint_steps=0)
    return hash_value([phase.name, phase.steps, asdict(config), digest(_named(phase)), phase.identity()])


def _named(phase: Phase) -> Iterator[tuple[str, nn.Parameter]]:
    for group, (parameters, _) in phase.groups.items():
        for index, parameter in enumerate(parameters):
            yield f"{group}.{index}", parameter


def _state(phase: Phase, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any]:
    """All that a phase needs to resume: tensors and JSON values."""
    own, values = phase.state()
    tensors = {f"phase/{name}": tensor for name, tensor in own.items()}
    for name, parameter in _named(phase):
        tensors[f"parameters/{name}"] = parameter
        tensors |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    return tensors, values


@torch.no_grad()
def _resume(phase: Phase, optimizer: torch.optim.Optimizer, saved: Checkpoints) -> int:
    """Restore the last checkpoint; returns the number of finished steps, 0 if there is no checkpoint."""
    found = saved.load()
    if found is None:
        return 0
    step, tensors, values = found
    for name, parameter in _named(phase):
        parameter.copy_(tensors[f"parameters/{name}"])
        prefix = f"optimizer/{name}/"
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    own = {name.removeprefix("phase/"): tensor for name, tensor in tensors.items() if name.startswith("phase/")}
    phase.restore(own, values)
    return step
