"""Time and memory of a block of code, and of a whole process."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metatuner.files import write_json

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of `ru_maxrss`."""


# ---- a block -------------------------------------------------------------------------------------------------------


@dataclass
class Meter:
    """Time and memory of a block, filled in when it ends."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_gpu_memory_bytes: int = 0


@contextlib.contextmanager
def measured() -> Iterator[Meter]:
    """Measure a block."""
    meter = Meter()
    _reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield meter
    finally:
        meter.seconds = round(time.perf_counter() - wall, 3)
        meter.cpu_seconds = round(time.process_time() - cpu, 3)
        meter.peak_memory_bytes = _peak_memory()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            meter.peak_gpu_memory_bytes = torch.cuda.max_memory_allocated()


def _reset_peak_memory() -> None:
    """Start a new measurement of peak memory if the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    """Peak resident bytes since `_reset_peak_memory` (on systems other than Linux: since the process began)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def peak_allocated(run: Callable[[], object], device: Any) -> int:
    """The peak bytes of tensors that a run holds, beyond what was held before it.

    Measured by CUDA's allocator or, on a CPU, by the profiler.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    results: Any = record.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        held += change
        peak = max(peak, held)
    return peak


# ---- a process -----------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """What a command's process has used since it began."""

    wall: float = field(default_factory=time.perf_counter)
    startup: float | None = None
    earlier: float = 0.0
    """CPU seconds of its parent before it was forked: its own clock began at zero then."""

    def started(self) -> None:
        """Mark the end of process start and imports; what follows is the command's work. The last mark counts."""
        self.startup = self.earlier + time.process_time()

    def write(self, folder: Path, step: str, pack: str) -> None:
        """Write the usage to `<folder>/<step>-<pack>.json`, in place of an earlier run's file of the same job."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = self.earlier + time.process_time()
        record = {
            "step": step,
            "pack": pack,
            "cpu_seconds": round(used + children.ru_utime + children.ru_stime, 3),
            "startup_cpu_seconds": round(used if self.startup is None else self.startup, 3),
            "wall_seconds": round(time.perf_counter() - self.wall, 3),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT,
        }
        write_json(folder / f"{step}-{pack}.json", record)
