"""What per-query LoRA, the joint step and rollouts cost, as ratios of times measured interleaved in one process.

Models are of the Qwen2 architecture with random weights, made in memory. Every arm of a comparison is first checked to
compute the same numbers as the per-query LoRA (losses and gradients, or logits and completions), then all are timed in
turn, A B C A B C; a ratio is the median over rounds, with the quartiles.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any, cast

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported; its profiler reports to stderr otherwise

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from metatuner.errors import UserError, suggest
from metatuner.lm import LM, ModelSpec, PerQueryLoRA, completion_loss, generate
from metatuner.lm.generation import batch_by_length, padding_share
from metatuner.method import Example, MetaTuner, MetaTunerConfig, Rewrite, joint_loss
from metatuner.method.objectives import prompt_loss, task_pair
from metatuner.method.tuned import frozen_view, to_train

LEAST_REPEATS = 9
LEAST_SECONDS = 0.2
"""A single timing runs an arm as often as it takes to last so long."""
SCALE = 2.0
PAD, END = 0, 1
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest deviation of an arm from the per-query LoRA, relative to the norm of what is compared."""
H200 = {"TFLOP/s": 790.0, "GB/s": 4300.0}
"""What dense bfloat16 products and copies reach on one NVIDIA H200."""


@dataclass(frozen=True)
class Shape:
    """A model and what it reads; lengths in tokens."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int
    batch: int
    """Queries, each with factors of its own."""
    prompt: int
    completion: int
    """Trained on."""
    new: int
    """Written in generation."""
    rank: int = 8

    def with_sizes(self, width: int | None, layers: int | None, batch: int | None, rank: int | None) -> "Shape":
        """Another width keeps the width of a head and the proportion of the feed-forward layer."""
        shape = replace(self, layers=layers or self.layers, batch=batch or self.batch, rank=rank or self.rank)
        if width is None:
            return shape
        head = self.width // self.heads
        if width % head:
            raise UserError(f"--width {width} is no multiple of {head}, the width of a head; choose another")
        heads = width // head
        groups = self.key_value_heads if heads % self.key_value_heads == 0 else heads
        feed_forward = self.feed_forward * width // self.width
        return replace(shape, width=width, heads=heads, key_value_heads=groups, feed_forward=feed_forward)


SHAPES = {
    "nano": Shape(128, 4, 4, 4, 320, 686, batch=32, prompt=48, completion=16, new=48),
    "d512": Shape(512, 2, 8, 8, 1408, 2048, batch=8, prompt=96, completion=32, new=32),
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, batch=32, prompt=256, completion=256, new=64),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, batch=32, prompt=256, completion=256, new=64),
}
"""nano: the nano world's actor; d512: the bars' least width; 3b, 7b: Qwen2.5's published sizes."""
ACTORS = {"7b": "3b"}
"""The actor of a joint step where it is not of its generator's shape: the paper's pair."""


@dataclass
class Measurement:
    """Times of the arms of one comparison."""

    name: str
    shape: str
    what: str
    against: tuple[str, ...]
    """The arms that others are put in proportion to."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Arm -> a time each round."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Arm -> why it was not measured."""
    megabytes: dict[str, float] = field(default_factory=dict)
    """Arm -> peak memory of a run, beyond what was held before it."""
    notes: list[str] = field(default_factory=list)

    def ratio(self, arm: str, to: str) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile over rounds of one arm's time by another's."""
        ratios = [a / b for a, b in zip(self.seconds[arm], self.seconds[to], strict=True)]
        lower, _, upper = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return lower, median(ratios), upper


@dataclass(frozen=True)
class Bar:
    """What a ratio of medians is held to."""

    measurement: str
    shape: str
    arm: str
    to: str
    bound: float
    at_least: bool = False

    def verdict(self, measured: Measurement) -> str | None:
        if (self.measurement, self.shape) != (measured.name, measured.shape):
            return None
        if not {self.arm, self.to} <= measured.seconds.keys():
            return None
        ratio = measured.ratio(self.arm, self.to)[1]
        met = ratio >= self.bound if self.at_least else ratio <= self.bound
        sign = ">=" if self.at_least else "<="
        return f"{self.arm} / {self.to}: {ratio:.2f}, bar {sign} {self.bound:.2f}: {'met' if met else 'MISSED'}"


BARS = (
    Bar("training", "d512", "per_query", "base", 1.15),
    Bar("training", "d512", "per_query", "shared", 0.95),
    Bar("generation", "d512", "per_query", "base", 1.20),
    Bar("generation", "d512", "per_query", "shared", 1.05),
    Bar("generation", "nano", "loop_peft", "per_query", 10.0, at_least=True),
    Bar("generation", "nano", "loop", "per_query", 10.0, at_least=True),
    Bar("joint", "d512", "parameter_decoder", "step", 0.10),
)
"""For float32 on a CPU at the shapes' own sizes."""


@dataclass(frozen=True)
class Bench:
    """How everything is measured."""

    device: torch.device
    dtype: str = "float32"
    repeats: int = LEAST_REPEATS
    least_seconds: float = LEAST_SECONDS

    def time(self, arms: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds a run of each arm, by round; a run of each beforehand warms up and sets how often it is repeated."""
        times: dict[str, list[float]] = {name: [] for name in arms}
        inner: dict[str, int] = {}
        for name, run in arms.items():
            inner[name] = max(1, math.ceil(self.least_seconds / self._seconds(run, 1)))
        for _ in range(self.repeats):
            for name, run in arms.items():
                times[name].append(self._seconds(run, inner[name]))
        return times

    def _seconds(self, run: Callable[[], object], count: int) -> float:
        self._synchronise()
        start = time.perf_counter()
        for _ in range(count):
            run()
        self._synchronise()
        return (time.perf_counter() - start) / count

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_megabytes(self, run: Callable[[], object]) -> float:
        """The most memory that a run allocates at a time: by CUDA's allocator, or by the profiler's record on a CPU."""
        if self.device.type == "cuda":
            self._synchronise()
            held = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            run()
            return (torch.cuda.max_memory_allocated(self.device) - held) / 1e6
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            run()
        results = cast(Any, record.profiler).kineto_results
        changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
        held = peak = 0
        for _, change in sorted(changes, key=lambda one: one[0]):
            held += change
            peak = max(peak, held)
        return peak / 1e6

    def available_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available

    def lm(self, shape: Shape, seed: int = 0) -> LM:
        """A random model whose tokenizer has one word a token; its end of text is never the likeliest token."""
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=PAD,
            dtype=self.dtype,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            with self.device:
                model = Qwen2ForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        model.requires_grad_(False).eval()
        model.lm_head.weight[END] = 0
        words = {"<pad>": PAD, "</s>": END} | {f"w{index}": index for index in range(2, shape.vocabulary)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
        return LM(model, wrapped, config.max_position_embeddings, ModelSpec("random", dtype=self.dtype))


def random_ids(shape: Shape, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Ids of ordinary words, by length."""
    draw = Random(seed)
    return [[draw.randrange(2, shape.vocabulary) for _ in range(length)] for length in lengths]


# ---- ways to give each query a LoRA of its own -----------------------------------------------------------------------


@dataclass
class Arm:
    """A model with factors in it, and the tensors that their gradients go to."""

    lm: LM
    values: Tensor
    """The factors it runs, in `PerQueryLoRA`'s flat layout, [queries, flat_size]."""
    applied: Callable[[list[int]], AbstractContextManager[Any]]
    """Given the rows of a batch, a context in which the model is adapted to them."""
    gradient: Callable[[], Tensor] | None = None
    """The gradients of the factors in that layout; None where there are no factors."""
    leaves: Sequence[Tensor] = ()
    one_by_one: bool = False
    """Rows are run each alone."""
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
        """After the last token of each prompt; all are of one length."""
        rows = list(range(len(prompts)))
        found = []
        for part in [[row] for row in rows] if self.one_by_one else [rows]:
            with self.applied(part):
                ids = torch.tensor([prompts[row] for row in part], device=self.lm.device)
                found.append(self.lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1])
        return torch.cat(found).float()


@torch.inference_mode()
def stock_generate(lm: LM, prompts: Sequence[list[int]], new: int, **sampling: Any) -> list[list[int]]:
    """What transformers' `generate` writes after prompts padded on the left, as one batch."""
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
    """The ways to run factors on all linears of one model, sharing its weights, and why others are left out."""
    lora = PerQueryLoRA(lm.model, rank=shape.rank, scale=SCALE)
    stream = torch.Generator().manual_seed(1)
    values = torch.randn(shape.batch, lora.flat_size, generator=stream).mul_(0.02).to(lm.device, lm.model.dtype)
    ours = _per_query(lm, lora, values)
    base = frozen_view(lm)
    base.model.enable_input_require_grads()  # the floor of a training step: activations' gradients, no others
    arms = {
        "base": Arm(base, torch.zeros_like(values), lambda rows: nullcontext()),
        "per_query": ours,
        "shared": _shared(lm, lora, values),
        "adapter_names": _adapter_names(lm, lora, values),
        "loop": replace(ours, one_by_one=True),
        "loop_peft": _loop_peft(lm, lora, values),
    }
    skipped = {}
    copies = sum(site.d_in * site.d_out for site in lora.sites) * shape.batch * values.element_size()
    if 3 * copies > bench.available_bytes():  # the weights, their gradients, and what a pass needs beside
        skipped["materialised"] = f"the linears once for each query are {copies / 1e9:.0f} GB, their gradients as many"
    else:
        arms["materialised"] = _materialised(lm, lora, values)
    return lora, arms, skipped


def _per_query(lm: LM, lora: PerQueryLoRA, values: Tensor) -> Arm:
    flat = values.clone().requires_grad_()
    return Arm(lm, values, lambda rows: lora.applied(flat[rows]), lambda: cast(Tensor, flat.grad), [flat])


def _peft(lm: LM, lora: PerQueryLoRA, values: Tensor, names: Sequence[str]) -> tuple[PeftModel, Arm]:
    """A view of the model with one stock adapter a name, holding the factors of the row of the same number."""
    view = frozen_view(lm)
    targets = sorted({site.name.rpartition(".")[2] for site in lora.sites})
    config = LoraConfig(r=lora.rank, lora_alpha=round(SCALE * lora.rank), target_modules=targets, lora_dropout=0.0)
    # Adapters in the model's own precision: faster than stock's float32 ones where the model's is lower.
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
    """PEFT's mixed batches. It refuses them in training mode; the model is in evaluation mode, which has no dropout."""
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
        for name, linear in linears.items():
            a, b = (each[inside] for each in factors[name])
            weights = torch.baddbmm(linear.weight, b.transpose(1, 2), a, alpha=SCALE)

            def forward(x: Tensor, weights: Tensor = weights, bias: Tensor | None = linear.bias) -> Tensor:
                product = torch.bmm(x, weights.transpose(1, 2))
                return product if bias is None else product + bias

            linear.forward = forward  # type: ignore[assignment, method-assign]
        try:
            yield None
        finally:
            for linear in linears.values():
                del linear.forward

    def gradient() -> Tensor:
        return lora.pack({name: (cast(Tensor, a.grad), cast(Tensor, b.grad)) for name, (a, b) in factors.items()})

    return Arm(view, values, applied, gradient, [each for pair in factors.values() for each in pair])


def deviation(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _check(arm: str, what: str, value: float, dtype: str) -> None:
    if not value <= TOLERANCE[dtype]:
        raise RuntimeError(f"bench: {arm} does not compute what per_query does: {what} differ by {value:.2g}")


# ---- measurements ----------------------------------------------------------------------------------------------------


def training(bench: Bench, name: str, shape: Shape) -> Measurement:
    """A training step of the factors, the model frozen: time, and peak memory."""
    lm = bench.lm(shape)
    lora, arms, skipped = lora_arms(bench, shape, lm)
    # Completions of unequal length, as training batches have.
    lengths = [max(1, shape.completion - 2 * (row % 4)) for row in range(shape.batch)]
    prompts = random_ids(shape, [shape.prompt] * shape.batch, 2)
    batch = list(zip(prompts, random_ids(shape, lengths, 3), strict=True))
    for arm_name, arm in arms.items():
        ours = _per_query(lm, lora, arm.values)
        expected = ours.train(batch)
        _check(arm_name, "losses", abs(arm.train(batch) - expected) / expected, bench.dtype)
        if arm.gradient is not None and ours.gradient is not None:
            gradient = ours.gradient().sum(0, keepdim=True) if arm.summed else ours.gradient()
            _check(arm_name, "gradients", deviation(arm.gradient(), gradient), bench.dtype)
        arm.clear()

    def step(arm: Arm) -> Callable[[], None]:
        def run() -> None:
            arm.train(batch)
            arm.clear()

        return run

    runs = {arm_name: step(arm) for arm_name, arm in arms.items()}
    width = max(len(prompt) + len(completion) for prompt, completion in batch)
    share = 1 - sum(len(prompt) + len(completion) for prompt, completion in batch) / (width * len(batch))
    measured = Measurement(
        "training", name, "forward and backward pass, LoRA on all linears", ("base", "shared"), skipped=skipped
    )
    measured.notes.append(f"{share:.1%} of the batch's positions are padding")
    measured.megabytes = {arm_name: bench.peak_megabytes(run) for arm_name, run in runs.items()}
    measured.seconds = bench.time(runs)
    tokens = shape.batch * (shape.prompt + shape.completion)
    # Forward and backward through activations; causal attention; no gradients of weights.
    matrix = sum(site.d_in * site.d_out for site in lora.sites)
    flops = 4 * tokens * (matrix + shape.layers * shape.width * (shape.prompt + shape.completion))
    flops += 4 * shape.batch * shape.completion * shape.width * shape.vocabulary
    for arm_name in ("base", "per_query"):
        reached = flops / median(measured.seconds[arm_name]) / 1e12
        note = f"{arm_name}: {reached:.3g} TFLOP/s, counting the bare model's products"
        measured.notes.append(note + _of_peak(reached, "TFLOP/s", bench))
    return measured


def generation(bench: Bench, name: str, shape: Shape) -> Measurement:
    """Greedy completions of a batch of queries, with a KV cache."""
    lm = bench.lm(shape)
    lora, arms, skipped = lora_arms(bench, shape, lm)
    prompts = random_ids(shape, [shape.prompt] * shape.batch, 2)
    for arm_name, arm in arms.items():
        ours = _per_query(lm, lora, arm.values)
        _check(arm_name, "logits", deviation(arm.logits(prompts), ours.logits(prompts)), bench.dtype)
        if bench.dtype == "float32":  # lower precisions have ties
            written = zip(arm.write(prompts, 8), ours.write(prompts, 8), strict=True)
            _check(arm_name, "completions", sum(a != b for a, b in written) / shape.batch, bench.dtype)
    what = f"{shape.new} new tokens a query, LoRA on all linears"
    measured = Measurement("generation", name, what, ("base", "shared"), skipped=skipped)

    def write(arm: Arm, new: int) -> Callable[[], object]:
        return lambda: arm.write(prompts, new)

    measured.seconds = bench.time({arm_name: write(arm, shape.new) for arm_name, arm in arms.items()})
    # A decoding step reads the weights, the cache and, with LoRA, the factors.
    size = lm.model.dtype.itemsize
    weights = sum(site.d_in * site.d_out for site in lora.sites) + shape.width * shape.vocabulary
    heads = shape.width // shape.heads * shape.key_value_heads
    cache = 2 * shape.batch * shape.layers * heads * (shape.prompt + shape.new // 2)
    read = {"base": weights + cache, "per_query": weights + cache + shape.batch * lora.flat_size}
    first = bench.time({arm_name: write(arms[arm_name], 1) for arm_name in read})
    for arm_name, numbers in read.items():
        step = (median(measured.seconds[arm_name]) - median(first[arm_name])) / (shape.new - 1)
        reached = numbers * size / step / 1e9
        note = f"{arm_name}: {1e3 * step:.3g} ms a decoding step, {reached:.3g} GB/s"
        measured.notes.append(note + _of_peak(reached, "GB/s", bench))
    return measured


def _of_peak(reached: float, unit: str, bench: Bench) -> str:
    if bench.device.type != "cuda" or "H200" not in torch.cuda.get_device_name(bench.device):
        return ""
    return f" ({reached / H200[unit]:.0%} of {H200[unit]:.0f})"


def joint(bench: Bench, name: str, shape: Shape) -> Measurement:
    """A step of joint training, and each of its parts alone: forward and backward pass, and AdamW's update."""
    words = Random(4)

    def text(length: int) -> str:
        return " ".join(f"w{words.randrange(2, shape.vocabulary)}" for _ in range(length))

    prompt = text(shape.prompt // 4)
    rows = range(shape.batch)
    examples = [Example(prompt, text(shape.prompt // 2), text(shape.completion - 1)) for _ in rows]
    rewrites = [Rewrite(prompt, text(shape.prompt // 2), text(shape.prompt // 4)) for _ in rows]
    written = [text(shape.prompt // 4) for _ in rows]
    generator = to_train(bench.lm(shape), "lora", 16, seed=5)
    actor = bench.lm(SHAPES[ACTORS.get(name, name)] if name in ACTORS else shape, seed=6)
    config = MetaTunerConfig(rank=shape.rank, batch_size=shape.batch)
    tuner = MetaTuner(generator, actor, config, max_prompt_tokens=shape.prompt // 2, seed=7)
    groups = tuner.parameters
    decoder, others = groups["phi_q"], [*groups["phi_s"], *groups["phi_p"]]
    prompts, queries = [example.prompt for example in examples], [example.query for example in examples]
    pairs = [task_pair(tuner.actor, one, example) for one, example in zip(written, examples, strict=True)]
    states = tuner.encode(prompts, queries).detach().requires_grad_()
    factors = tuner.parameter_decoder(states).detach().requires_grad_()
    optimisers = {id(group): torch.optim.AdamW(group, lr=1e-9, weight_decay=0.0) for group in (decoder, others)}

    def clear() -> None:
        for tensor in (*decoder, *others, states, factors):
            tensor.grad = None

    def update(group: list[nn.Parameter]) -> None:
        optimisers[id(group)].step()

    def step() -> None:
        joint_loss(tuner, examples, written, rewrites).total.backward()
        update(decoder)
        update(others)
        clear()

    def meta_encoder() -> None:
        h = tuner.encode(prompts, queries)
        h.backward(torch.ones_like(h))
        clear()

    def prompt_branch() -> None:
        prompt_loss(generator, rewrites, tuner.max_prompt_tokens).backward()
        clear()

    zeros = {id(group): [torch.zeros_like(each) for each in group] for group in (decoder, others)}

    def parameter_decoder() -> None:
        emitted = tuner.parameter_decoder(states)
        emitted.backward(torch.ones_like(emitted))
        update(decoder)
        clear()

    def acting() -> None:
        with tuner.lora.applied(factors):
            completion_loss(tuner.actor, pairs).backward()
        clear()

    def generator_update() -> None:
        for parameter, zero in zip(others, zeros[id(others)], strict=True):
            parameter.grad = zero
        update(others)
        clear()

    measured = Measurement("joint", name, "a joint training step and its parts, each alone", ("step",))
    measured.seconds = bench.time(
        {
            "step": step,
            "meta_encoder": meta_encoder,
            "prompt_branch": prompt_branch,
            "parameter_decoder": parameter_decoder,
            "actor": acting,
            "generator_update": generator_update,
        }
    )
    weights = sum(parameter.numel() for parameter in decoder)
    measured.notes.append(f"parameter_decoder: {weights / 1e6:.1f} M weights, {tuner.lora.flat_size} factors a query")
    return measured


def rollouts(bench: Bench, name: str, shape: Shape) -> Measurement:
    """Sampled rewrites of queries of log-normal length: ours, and `model.generate` on batches padded to the left."""
    lm = bench.lm(shape)
    draw = Random(8)
    count = 4 * shape.batch
    drawn = [round(shape.prompt * draw.lognormvariate(-0.5, 0.6)) for _ in range(count)]
    lengths = [min(max(length, 4), 8 * shape.prompt) for length in drawn]
    prompts = random_ids(shape, lengths, 9)
    bounds: dict[str, Any] = {"batch_tokens": 2 * shape.batch * (shape.prompt + shape.new), "max_rows": 2 * shape.batch}
    sorted_batches = batch_by_length(prompts, shape.new, **bounds)
    size = math.ceil(count / len(sorted_batches))
    arrived = [list(range(start, min(start + size, count))) for start in range(0, count, size)]

    def stock(batches: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for batch in batches:
            written = stock_generate(lm, [prompts[index] for index in batch], shape.new, **sampling)
            found.update(zip(batch, written, strict=True))
        return [found[index] for index in range(count)]

    def ours(**sampling: Any) -> list[list[int]]:
        done = generate(lm, prompts, max_new_tokens=shape.new, **sampling, **bounds)
        return [completion.ids for completion in done]

    if bench.dtype == "float32":
        for arm_name, batches in {"model.generate": sorted_batches, "model.generate, as they come": arrived}.items():
            pairs = list(zip(ours(), stock(batches, do_sample=False), strict=True))
            differing = sum(a != b[: len(a)] for a, b in pairs)
            _check(arm_name, "greedy completions", differing / count, bench.dtype)
    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    measured = Measurement(
        "rollouts", name, f"{count} rewrites of {shape.new} tokens, sampled at temperature 1", ("model.generate",)
    )
    measured.seconds = bench.time(
        {
            "generate": lambda: ours(temperature=1.0, seeds=range(count)),
            "model.generate": lambda: stock(sorted_batches, **sampled),
            "model.generate, as they come": lambda: stock(arrived, **sampled),
        }
    )
    for arm_name, times in measured.seconds.items():
        measured.notes.append(f"{arm_name}: {count / median(times):.3g} rollouts/s")
    shares = padding_share(prompts, sorted_batches), padding_share(prompts, arrived)
    measured.notes.append(f"padding: {shares[0]:.1%} of prompt positions by length, {shares[1]:.1%} as they come")
    return measured


MEASUREMENTS: dict[str, Callable[[Bench, str, Shape], Measurement]] = {
    "training": training,
    "generation": generation,
    "joint": joint,
    "rollouts": rollouts,
}
DEFAULT = (
    ("training", "d512"),
    ("generation", "d512"),
    ("joint", "d512"),
    ("generation", "nano"),
    ("rollouts", "nano"),
)
"""What is measured when neither a measurement nor a shape is named."""


def run(
    *,
    device: str = "auto",
    dtype: str = "float32",
    shape: str | None = None,
    width: int | None = None,
    layers: int | None = None,
    batch: int | None = None,
    rank: int | None = None,
    repeats: int = LEAST_REPEATS,
    only: str | None = None,
    json_file: Path | None = None,
) -> None:
    """Measure and print; `UserError` for a name, a size or a device that there is not.

    Args:
        shape: a key of `SHAPES`; all measurements are then made at it.
        width, layers, batch, rank: in place of the shape's own.
        only: a key of `MEASUREMENTS`.
        json_file: also gets all times.
    """
    for what, value, known in (
        ("dtype", dtype, TOLERANCE),
        ("shape", shape, SHAPES),
        ("measurement", only, MEASUREMENTS),
    ):
        if value is not None and value not in known:
            raise UserError(f"unknown {what} {value!r}; {suggest(value, known)}")
    if repeats < LEAST_REPEATS:
        raise UserError(f"--repeats {repeats}: a median of fewer than {LEAST_REPEATS} says little; raise it")
    for option, size in (("width", width), ("layers", layers), ("batch", batch), ("rank", rank)):
        if size is not None and size < 1:
            raise UserError(f"--{option} must be at least 1, got {size}")
    bench = Bench(_device(device), dtype, repeats)
    pairs = list(DEFAULT) if shape is None else [(name, shape) for name in MEASUREMENTS]
    if only is not None:
        pairs = [pair for pair in pairs if pair[0] == only]
    machine = _machine(bench)
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    done: list[dict[str, Any]] = []
    for name, at in pairs:
        sizes = SHAPES[at].with_sizes(width, layers, batch, rank)
        measured = MEASUREMENTS[name](bench, at, sizes)
        own = sizes == SHAPES[at] and bench.device.type == "cpu" and dtype == "float32"
        bars = [verdict for bar in BARS if own and (verdict := bar.verdict(measured))]
        print(table(measured, sizes), *(f"  {line}" for line in [*measured.notes, *bars]), sep="\n", flush=True)
        done.append({**asdict(measured), "sizes": asdict(sizes), "bars": bars})
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine, "measurements": done}, indent=1) + "\n", encoding="utf-8")


def table(measured: Measurement, shape: Shape) -> str:
    """A measurement as aligned lines: median milliseconds, and ratios with quartiles."""
    sizes = f"width {shape.width}, {shape.layers} layers, {shape.batch} queries, rank {shape.rank}"
    head = ["arm", "ms", *(f"x {other}" for other in measured.against)]
    if measured.megabytes:
        head.append("peak MB")
    lines = [head]
    for arm, times in measured.seconds.items():
        line = [arm, f"{1e3 * median(times):.4g}"]
        for other in measured.against:
            lower, middle, upper = measured.ratio(arm, other)
            line.append("1" if arm == other else f"{middle:.3f} ({lower:.3f} to {upper:.3f})")
        if measured.megabytes:
            line.append(f"{measured.megabytes[arm]:.0f}")
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    texts += [f"  {arm}  n/a: {reason}" for arm, reason in measured.skipped.items()]
    title = f"\n{measured.name} at {measured.shape} ({sizes}): {measured.what}"
    return "\n".join([title, *(text.rstrip() for text in texts)])


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda asked, but torch sees no GPU; use cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}; use auto, cpu or cuda")
    return torch.device(name)


def _machine(bench: Bench) -> dict[str, str]:
    cuda = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(bench.device) if cuda else f"{platform.machine()} CPU",
        "threads": str(torch.get_num_threads()),
        "dtype": bench.dtype,
        "torch": torch.__version__,
        "repeats": str(bench.repeats),
    }
