"""What a fit uses, and the named limits that it must keep.

Counts come from two places. `metatuner.lm.generate` reports each completion exactly. A hook on the decoder sees every
other forward pass of a model (library trainers, scoring passes). Padding is never counted.

FLOPs are estimated from the tokens (Kaplan et al. 2020, arXiv 2001.08361, section 2.1, split by what has a gradient):

- A token read costs 2 N.
- A token written costs 2 (N + H).
- A token trained costs 4 (N + H), plus 2 per trained weight.

N is the number of weights of the decoder without its embedding. H is the number of weights of the LM head. The estimate
leaves out the products of attention, which grow with the context. It also leaves out what a method computes outside its
models (a parameter decoder, a policy head).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from metatuner.errors import UserError, suggest

if TYPE_CHECKING:
    from metatuner.lm import LM


TFLOP = "tflop"
MARGIN = 1.25
"""How much more the next step of a loop may cost than the dearest step before it."""


def amount(value: float) -> str:
    """A count in full, or an amount of compute to six digits."""
    return str(int(value)) if value == int(value) else f"{value:.6g}"


class BudgetExceeded(UserError):
    """A fit exceeded its budget; its cell fails with this error."""


@dataclass
class Usage:
    """Totals over all models of a fit."""

    lm_calls: int = 0
    """Sequences sent to a model without gradient: answers, rewrites, scoring passes."""
    prompt_tokens: int = 0
    """Tokens read in those calls."""
    generated_tokens: int = 0
    """Tokens written in those calls. A library's own decoding loop counts without the first token of each sequence."""
    trained_tokens: int = 0
    """Tokens that went forward with gradient."""

    def add(self, other: "Usage | Mapping[str, int]") -> None:
        """Add another total, e.g. the usage of a fit that this fit builds on."""
        counts = asdict(other) if isinstance(other, Usage) else other
        for name in asdict(self):
            setattr(self, name, getattr(self, name) + counts.get(name, 0))


@dataclass
class ModelUse:
    """What one model was used for."""

    usage: Usage = field(default_factory=Usage)
    flops: int = 0
    """Estimated floating-point operations; see the module's docstring."""

    def as_dict(self) -> dict[str, int]:
        """Counts by name, including FLOPs."""
        return {**asdict(self.usage), "flops": self.flops}


class Budget:
    """A meter with limits. Attach it to every model of the fit; it raises BudgetExceeded when a limit is crossed."""

    def __init__(self, limits: Mapping[str, float | None] | None = None, name: str = "unlimited") -> None:
        self.name = name
        self.limits = {key: value for key, value in (limits or {}).items() if value is not None}
        self.used = Usage()
        self.by_model: dict[str, ModelUse] = {}
        self._detach: list[Callable[[], None]] = []
        self._tflop: dict[str, Callable[[float, float, float], float]] = {}
        self._dearest: dict[str, float] = {}

    def spent(self, what: str) -> float:
        """How much of `tflop`, `lm_calls`, `generated_tokens` or `trained_tokens` was used, with earlier fits."""
        if what == TFLOP:
            return sum(use.flops for use in self.by_model.values()) / 1e12
        if what not in asdict(self.used):
            raise UserError(f"budget: nothing is called {what!r}; {suggest(what, [TFLOP, *asdict(self.used)])}")
        return float(getattr(self.used, what))

    def left(self, what: str) -> float:
        """How much of `tflop`, `lm_calls`, `generated_tokens` or `trained_tokens` is left (infinity if unlimited)."""
        spent = self.spent(what)
        return self.limits[what] - spent if what in self.limits else float("inf")

    def tflop(self, role: str, *, read: float = 0, written: float = 0, trained: float = 0) -> float:
        """What a model's work on so many tokens would cost, in TFLOP; 0 for a model that is not metered."""
        return self._tflop[role](read, written, trained) if role in self._tflop else 0.0

    def tflop_per_call(self, role: str) -> float:
        """The mean cost of a completion in this fit's dearest batch so far, in TFLOP; 0 before the first batch."""
        return self._dearest.get(role, 0.0)

    def for_steps(self) -> Callable[[], bool]:
        """A check for a loop of like steps, called before each step: whether the limits cover another step.

        A step may cost `MARGIN` times what the dearest one before it did. The first step is always covered.
        """
        before: dict[str, float] = {}
        dearest = dict.fromkeys(self.limits, 0.0)

        def covered() -> bool:
            for what in self.limits:
                spent = self.spent(what)
                dearest[what] = max(dearest[what], spent - before.get(what, spent))
                before[what] = spent
            return all(self.left(what) >= MARGIN * dearest[what] for what in self.limits)

        return covered

    def add(self, **counts: int) -> None:
        """Count usage; raise BudgetExceeded when it crosses a limit."""
        self.used.add(counts)
        for what, limit in self.limits.items():
            if self.spent(what) > limit:
                raise BudgetExceeded(
                    f"budget {self.name!r}: {what} reached {amount(self.spent(what))}, the limit is {amount(limit)}; "
                    "lower the method's settings or raise the budget in the preset"
                )

    def add_cost(self, cost: Mapping[str, Any]) -> None:
        """Count the cost.json of an earlier fit that this fit builds on."""
        for role, told in cost["by_model"].items():
            use = self.by_model.setdefault(role, ModelUse())
            use.usage.add(told)
            use.flops += told["flops"]
        self.add(**{name: cost[name] for name in asdict(self.used)})

    def cost(self) -> dict[str, Any]:
        """The content of cost.json: the totals, estimated FLOPs, and both per model."""
        by_model = {role: use.as_dict() for role, use in sorted(self.by_model.items())}
        return {
            **asdict(self.used),
            "flops": sum(use.flops for use in self.by_model.values()),
            "by_model": by_model,
        }

    def attach(self, lm: "LM", role: str = "model") -> None:
        """Meter a model until `detach`, including copies and PEFT wrappers made of it from now on.

        Args:
            lm: the model.
            role: the model's name in `by_model`.
        """
        import torch

        use = self.by_model.setdefault(role, ModelUse())
        head = lm.outline.get_output_embeddings().weight.numel()

        def decoder() -> Any:
            return lm.outline.get_decoder()

        def body(module: Any) -> int:
            embedding = module.get_input_embeddings().weight.numel()
            return sum(weight.numel() for weight in module.parameters()) - embedding

        def count(flops: int, **counts: int) -> None:
            use.usage.add(counts)
            use.flops += flops
            self.add(**counts)

        def tflop(read: float, written: float, trained: float) -> float:
            weights = sum(weight.numel() for weight in decoder().parameters() if weight.requires_grad)
            forward = 2 * read * body(decoder()) + 2 * written * (body(decoder()) + head)
            return (forward + trained * (4 * (body(decoder()) + head) + 2 * weights)) / 1e12

        self._tflop[role] = tflop

        def completions(prompt_tokens: int, generated_tokens: int, calls: int) -> None:
            flops = 2 * (prompt_tokens + generated_tokens) * body(decoder()) + 2 * generated_tokens * head
            self._dearest[role] = max(self._dearest.get(role, 0.0), flops / 1e12 / calls)
            count(flops, lm_calls=calls, prompt_tokens=prompt_tokens, generated_tokens=generated_tokens)

        pad, ends = lm.filler, lm.filler in lm.eos_ids

        def unpadded(ids: Any) -> int:
            """Tokens of [rows, length] that no mask describes. If `pad` ends turns, only pads behind a row are none."""
            real = ids != pad
            return int((real.flip(1).cumsum(1) > 0).sum() if ends else real.sum())

        # A plain function, so that a deepcopy of a hooked model still reports to this meter.
        def forward(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if lm.traffic.generating:
                return
            ids = kwargs.get("input_ids", args[0] if args else None)
            inputs = ids if ids is not None else kwargs["inputs_embeds"]
            rows, length = inputs.shape[:2]
            mask = kwargs.get("attention_mask")
            if mask is not None and mask.dim() == 2:
                tokens = int(mask[:, -length:].sum())
            else:
                tokens = rows * length if ids is None else unpadded(ids)
            cache = kwargs.get("past_key_values")
            if torch.is_grad_enabled():
                trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
                count(tokens * (4 * (body(module) + head) + 2 * trained), trained_tokens=tokens)
            elif cache is not None and cache.get_seq_length() > 0:
                count(2 * tokens * (body(module) + head), generated_tokens=tokens)
            else:
                count(2 * tokens * body(module), lm_calls=rows, prompt_tokens=tokens)

        attached = [True]

        def watch() -> None:
            if attached:
                self._detach.append(lm.decoder.register_forward_pre_hook(forward, with_kwargs=True).remove)

        lm.traffic.listeners.append(completions)
        self._detach += [attached.clear, lambda: lm.traffic.listeners.remove(completions)]
        lm.when_loaded(watch)

    def detach(self) -> None:
        """Stop metering."""
        while self._detach:
            self._detach.pop()()
