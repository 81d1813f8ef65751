"""What a command costs: CPU time, of it process start and imports, wall time and peak memory.

`start()` is called once, before anything heavy is imported. It wraps the two ways in which modules are loaded, so that
late imports (and libraries' lazy ones) are counted wherever they happen.
"""

import builtins
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_startup = time.process_time()  # the interpreter's own start
_wall = time.perf_counter()
_depth = 0


def _timed(load: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        global _startup, _depth
        if _depth:
            return load(*args, **kwargs)
        _depth += 1
        before = time.process_time()
        try:
            return load(*args, **kwargs)
        finally:
            _depth -= 1
            _startup += time.process_time() - before

    return wrapper


def restart() -> None:
    """Count from now on: this process is a fork of one that has everything imported."""
    global _startup, _wall
    _startup, _wall = time.process_time(), time.perf_counter()


def start() -> None:
    """Count imports from now on."""
    builtins.__import__ = _timed(builtins.__import__)
    importlib.import_module = _timed(importlib.import_module)


def write(folder: Path, step: str, pack: str) -> None:
    """Write this process's usage to `<folder>/<step>-<pack>.json`, replacing that of an earlier run of the same job."""
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = {
        "step": step,
        "pack": pack,
        "cpu_seconds": round(time.process_time() + children.ru_utime + children.ru_stime, 3),
        "startup_cpu_seconds": round(_startup, 3),
        "wall_seconds": round(time.perf_counter() - _wall, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step}-{pack}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def peak_allocated(run: Callable[[], object], device: Any) -> int:
    """The most bytes of tensors that a run holds at a time beyond what was held before it.

    By CUDA's allocator, or by the profiler's record on a CPU.
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
