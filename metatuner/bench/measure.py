"""How times of arms run in turn, peak memory and rates are measured, and the random models that arms run on."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from statistics import median, quantiles

import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from metatuner.bench.shapes import Shape
from metatuner.lm import LM, ModelSpec
from metatuner.metering import peak_allocated
from metatuner.method.optimising import OUT_OF_MEMORY

LEAST_REPEATS = 9
LEAST_SECONDS = 0.2
"""A single timing repeats an arm often enough to last this long."""
PAD, END = 0, 1
H200 = {"TFLOP/s": 790.0, "GB/s": 4300.0}
"""What dense bfloat16 products and copies reach on one NVIDIA H200. Floors assume these rates."""


@dataclass(frozen=True)
class Rate:
    """The least work of a run, divided by the time it took."""

    of: str
    """What was run, such as "a joint step"."""
    seconds: float
    work: float
    """In units of 10^12 FLOP or 10^9 bytes; see `shapes`."""
    unit: str
    """TFLOP/s or GB/s."""
    peak: float | None
    """What the device reaches at best, in this unit; None if unknown."""

    @property
    def reached(self) -> float:
        return self.work / self.seconds

    @property
    def share(self) -> float | None:
        """The share of the peak, which is the floor's time divided by the time taken; None without a peak."""
        return None if self.peak is None else self.reached / self.peak

    def __str__(self) -> str:
        unit = self.unit.removesuffix("/s")
        text = f"{1e3 * self.seconds:.4g} ms {self.of}, {self.reached:.3g} {self.unit} ({self.work:.3g} {unit})"
        if self.peak is None:
            return f"{text}; floor unmeasured (no peak {self.unit} known)"
        floor = f"{1e3 * self.work / self.peak:.4g} ms at {self.peak:.0f} {self.unit}"
        return f"{text}; floor {floor}: {self.share:.0%} of its rate"


@dataclass
class Measurement:
    """Times of the arms of one comparison."""

    name: str
    shape: str
    what: str
    against: tuple[str, ...]
    """The arms that others are compared with, by ratio."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Arm -> one time per round."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Arm -> why it was not measured."""
    megabytes: dict[str, float] = field(default_factory=dict)
    """Arm -> peak memory of a run, beyond what was held before it."""
    rates: dict[str, Rate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratio(self, arm: str, to: str) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile over rounds of one arm's time divided by another's."""
        ratios = [a / b for a, b in zip(self.seconds[arm], self.seconds[to], strict=True)]
        lower, _, upper = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return lower, median(ratios), upper


@contextmanager
def within_memory(arm: str, doing: str, skipped: dict[str, str]) -> Iterator[None]:
    """If memory runs out inside, leave the context and put the reason into `skipped`; other errors are raised."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        first = str(error).strip().partition("\n")[0]
        skipped[arm] = f"out of memory {doing}: {first}" if first else f"out of memory {doing}"


@dataclass(frozen=True)
class Bench:
    """How everything is measured."""

    device: torch.device
    dtype: str = "float32"
    repeats: int = LEAST_REPEATS
    least_seconds: float = LEAST_SECONDS

    def measure(self, measured: Measurement, arms: Mapping[str, Callable[[], object]], *, memory: bool = False) -> None:
        """Fill in times and, with `memory`, peak memory of the arms that are not in `skipped`.

        Arms that run out of memory are added to `skipped`.
        """
        runs = {name: run for name, run in arms.items() if name not in measured.skipped}
        for name, run in runs.items() if memory else ():
            with within_memory(name, "in a run", measured.skipped):
                run()  # allocates what later runs reuse, such as AdamW's state
                measured.megabytes[name] = self.peak_megabytes(run)
        fitting = {name: run for name, run in runs.items() if name not in measured.skipped}
        measured.seconds = self.time(fitting, measured.skipped)
        for name in measured.skipped:
            measured.megabytes.pop(name, None)

    def time(self, arms: Mapping[str, Callable[[], object]], skipped: dict[str, str]) -> dict[str, list[float]]:
        """Seconds per run of each arm, by round.

        One run of each arm beforehand warms up and sets the number of repetitions. An arm that runs out of memory goes
        to `skipped`, with the reason; the others go on.
        """
        times: dict[str, list[float]] = {name: [] for name in arms}
        inner: dict[str, int] = {}
        for name, run in arms.items():
            with within_memory(name, "in a run", skipped):
                inner[name] = max(1, math.ceil(self.least_seconds / self._seconds(run, 1)))
        for _ in range(self.repeats):
            for name, run in arms.items():
                if name not in skipped:
                    with within_memory(name, "in a run", skipped):
                        times[name].append(self._seconds(run, inner[name]))
        return {name: one for name, one in times.items() if name not in skipped}

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
        """The peak memory that a run allocates."""
        return peak_allocated(run, self.device) / 1e6

    def peak(self, unit: str) -> float | None:
        """The rate of a floor, in TFLOP/s or GB/s; None if it is not known for the device or precision."""
        known = self.device.type == "cuda" and "H200" in torch.cuda.get_device_name(self.device)
        return H200[unit] if known and (unit == "GB/s" or self.dtype == "bfloat16") else None

    def available_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available

    def lm(self, shape: Shape, seed: int = 0) -> LM:
        """A random model. Its tokenizer has one word per token; its end of text is never the likeliest token."""
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
    """Rows of random ids of ordinary words, one row per length."""
    draw = Random(seed)
    return [[draw.randrange(2, shape.vocabulary) for _ in range(length)] for length in lengths]
