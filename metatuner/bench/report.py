"""The command: which measurements run, the bars, and the output."""

import gc
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from metatuner.bench.measure import LEAST_REPEATS, Bench, Measurement, within_memory
from metatuner.bench.measurements import MEASUREMENTS, TOLERANCE
from metatuner.bench.shapes import SHAPES, Shape
from metatuner.errors import UserError, suggest
from metatuner.files import write_json

DEFAULT = (
    ("training", "d512"),
    ("generation", "d512"),
    ("joint", "d512"),
    ("generation", "nano"),
    ("rollouts", "nano"),
)
"""What is measured when neither a measurement nor a shape is named."""
FLOOR = "floor"
PRECISION = {"cpu": "float32", "cuda": "bfloat16"}
"""The precision that bars apply to, by device."""


@dataclass(frozen=True)
class Verdict:
    """A bar and the measured value."""

    bar: str
    result: Literal["met", "missed", "unmeasured"]
    measured: float | None = None
    reason: str = ""
    """Why it is unmeasured."""

    def __str__(self) -> str:
        value = "" if self.measured is None else f": {self.measured:.3f}x"
        return f"bar {self.bar}{value}: {self.result}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Bar:
    """A bound on a median over rounds: of the ratio of two arms' times, or of an arm's rate to its floor's rate."""

    measurement: str
    shape: str
    arm: str
    to: str
    """An arm, or `FLOOR`."""
    bound: float
    at_least: bool = False
    device: Literal["cpu", "cuda"] = "cpu"

    def __str__(self) -> str:
        arms = f"rate of {self.arm} / rate of its floor" if self.to == FLOOR else f"{self.arm} / {self.to}"
        return f"{self.measurement} at {self.shape}, {arms} {'>=' if self.at_least else '<='} {self.bound:.2f}x"

    def verdict(self, measured: Measurement, bench: Bench, own_sizes: bool = True) -> Verdict:
        """The verdict on a measurement at this bar's shape.

        Args:
            own_sizes: False if the command line changed the shape's sizes.
        """
        if not own_sizes:
            return self.unmeasured("not at the shape's own sizes")
        if (bench.device.type, bench.dtype) != (self.device, PRECISION[self.device]):
            return self.unmeasured(f"for {PRECISION[self.device]} on {self.device}")
        for arm in (self.arm, self.to):
            if arm != FLOOR and arm not in measured.seconds:
                return self.unmeasured(f"no time of {arm}")
        value: float | None
        if self.to == FLOOR:
            value = measured.rates[self.arm].share
            if value is None:
                return self.unmeasured("no floor known for this device")
        else:
            value = measured.ratio(self.arm, self.to)[1]
        met = value >= self.bound if self.at_least else value <= self.bound
        return Verdict(str(self), "met" if met else "missed", value)

    def unmeasured(self, reason: str) -> Verdict:
        return Verdict(str(self), "unmeasured", reason=reason)


BARS = (
    Bar("training", "d512", "per_query", "base", 1.15),
    Bar("training", "d512", "per_query", "shared", 0.95),
    Bar("generation", "d512", "per_query", "base", 1.20),
    Bar("generation", "d512", "per_query", "shared", 1.05),
    Bar("generation", "nano", "loop_peft", "per_query", 10.0, at_least=True),
    Bar("generation", "nano", "loop", "per_query", 10.0, at_least=True),
    Bar("joint", "d512", "parameter_decoder", "step", 0.10),
    Bar("generation", "3b", "per_query", "base", 1.25, device="cuda"),
    Bar("generation", "7b", "per_query", "base", 1.25, device="cuda"),
    Bar("joint", "3b", "step", FLOOR, 0.40, at_least=True, device="cuda"),
    Bar("joint", "7b", "step", FLOOR, 0.40, at_least=True, device="cuda"),
)
"""Bars on a CPU are for float32, bars on a GPU for bfloat16. Only an H200 has a known floor (`measure.H200`)."""


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
    """Measure and print; `UserError` for an unknown name, a bad size, or a device or folder that does not exist.

    Args:
        shape: a key of `SHAPES`; all measurements are then made at it.
        width, layers, batch, rank: replace the sizes of the shape and of its actor.
        only: a key of `MEASUREMENTS`.
        json_file: also gets all times; it is rewritten after each measurement.
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
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise UserError(
            f"--json {json_file}: not a file in a folder that exists; make the folder, or name another file"
        )
    bench = Bench(_device(device), dtype, repeats)
    pairs = list(DEFAULT) if shape is None else [(name, shape) for name in MEASUREMENTS]
    if only is not None:
        pairs = [pair for pair in pairs if pair[0] == only]
    machine = _machine(bench)
    print("; ".join(f"{key} {value}" for key, value in machine.items()))
    sizes = {at: SHAPES[at].with_sizes(width, layers, batch, rank) for _, at in pairs}
    done: list[dict[str, Any]] = []
    rest = [bar.unmeasured("not asked for") for bar in BARS if (bar.measurement, bar.shape) not in pairs]
    for name, at in pairs:
        measured = _measure(bench, name, at, sizes[at])
        bars = [
            bar.verdict(measured, bench, sizes[at] == SHAPES[at])
            for bar in BARS
            if (bar.measurement, bar.shape) == (name, at)
        ]
        print(table(measured, sizes[at]))
        rates = [f"{arm}: {rate}" for arm, rate in measured.rates.items()]
        print(*(f"  {line}" for line in [*measured.notes, *rates, *bars]), sep="\n", flush=True)
        reached = {
            arm: {**asdict(rate), "reached": rate.reached, "share": rate.share} for arm, rate in measured.rates.items()
        }
        verdicts = [asdict(bar) for bar in bars]
        done.append({**asdict(measured), "rates": reached, "sizes": asdict(sizes[at]), "bars": verdicts})
        if json_file is not None:
            write_json(
                json_file, {"machine": machine, "measurements": done, "other_bars": [asdict(bar) for bar in rest]}
            )
    if rest:
        print("\nnot measured in this run", *(f"  {bar}" for bar in rest), sep="\n", flush=True)


def _measure(bench: Bench, name: str, at: str, sizes: Shape) -> Measurement:
    """A measurement; it has no times if its models alone do not fit in memory."""
    gc.collect()  # frees earlier models: modules with hooks are reference cycles
    skipped: dict[str, str] = {}
    with within_memory("all arms", "before any was timed", skipped):
        return MEASUREMENTS[name](bench, at, sizes)
    return Measurement(name, at, "not measured", (), skipped=skipped)


def table(measured: Measurement, shape: Shape) -> str:
    """A measurement as aligned lines: median milliseconds, ratios with quartiles, and peak memory where measured."""
    sizes = f"width {shape.width}, {shape.layers} layers, {shape.batch} queries, rank {shape.rank}"
    if shape.actor is not None:
        sizes += f", actor: width {shape.actor.width}, {shape.actor.layers} layers"
    against = [other for other in measured.against if other in measured.seconds]
    head = ["arm", "ms", *(f"x {other}" for other in against)]
    if measured.megabytes:
        head.append("peak MB")
    lines = [head]
    for arm, times in measured.seconds.items():
        line = [arm, f"{1e3 * median(times):.4g}"]
        for other in against:
            lower, middle, upper = measured.ratio(arm, other)
            line.append("1" if arm == other else f"{middle:.3f} ({lower:.3f} to {upper:.3f})")
        if measured.megabytes:
            line.append(f"{measured.megabytes[arm]:.1f}")
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
