"""Benchmarks, one file each. A new file `<id>.py` in this folder is a new benchmark.

A benchmark's file is imported only when it is used. So only the cells of this benchmark depend on its code.
"""

import importlib
from pathlib import Path

from metatuner.errors import UserError, suggest
from metatuner.harness.benchmarks.base import Benchmark, HubSource, Scored
from metatuner.harness.benchmarks.source import load_hub, load_raw, load_rows

__all__ = [
    "Benchmark",
    "HubSource",
    "Scored",
    "benchmark_file",
    "benchmark_ids",
    "get_benchmark",
    "load_hub",
    "load_raw",
    "load_rows",
]

_FOLDER = Path(__file__).parent
_NOT_BENCHMARKS = frozenset({"__init__", "base", "source"})


def benchmark_ids() -> list[str]:
    """The ids of all benchmarks, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in _NOT_BENCHMARKS)


def benchmark_file(id: str) -> Path:
    """The file that defines a benchmark; `UserError` if unknown. It is imported by name, so hash it explicitly."""
    if id not in benchmark_ids():
        raise UserError(f"unknown benchmark {id!r}; {suggest(id, benchmark_ids())}")
    return _FOLDER / f"{id}.py"


def get_benchmark(id: str) -> Benchmark:
    """The benchmark with this id. If there is none, `UserError` with the closest id and the list of ids."""
    path = benchmark_file(id)
    module = importlib.import_module(f"{__name__}.{id}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Benchmark) and value.__module__ == module.__name__
    ]
    if len(found) != 1 or getattr(found[0], "id", None) != id:
        raise UserError(f"{path}: must define exactly one Benchmark, with id = {id!r}")
    return found[0]()
