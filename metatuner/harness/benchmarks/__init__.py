"""Benchmarks, one file each. A file `<id>.py` in this folder, or one that a preset names, is a benchmark.

A benchmark's file is imported only when it is used. So only the cells of this benchmark depend on its code.
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from metatuner.errors import UserError, suggest
from metatuner.harness.benchmarks.base import Benchmark, Choice, HubSource, Scored
from metatuner.harness.benchmarks.source import load_hub, load_raw, load_rows
from metatuner.harness.importing import import_file

__all__ = [
    "Benchmark",
    "Choice",
    "HubSource",
    "Scored",
    "benchmark_file",
    "benchmark_files",
    "benchmark_ids",
    "get_benchmark",
    "load_hub",
    "load_raw",
    "load_rows",
]

_FOLDER = Path(__file__).parent
_NOT_BENCHMARKS = frozenset({"__init__", "base", "source", "lm_eval_task"})


def benchmark_ids() -> list[str]:
    """The ids of all benchmarks, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in _NOT_BENCHMARKS)


def benchmark_files(extra: Sequence[str | Path] = ()) -> dict[str, Path]:
    """The file of each benchmark by id: the package's own, and the user's (`extra_benchmarks` of a preset).

    Raises `UserError` for a user's file that does not exist, or whose name is no id or is taken.
    """
    found = {id: _FOLDER / f"{id}.py" for id in benchmark_ids()}
    for name in extra:
        file = Path(name).resolve()
        if not file.is_file():
            raise UserError(f"extra_benchmarks: no file {file}; docs/benchmarks.md shows what to write")
        if file.suffix != ".py" or not re.fullmatch(r"[a-z][a-z0-9_]*", file.stem):
            raise UserError(f"extra_benchmarks: {file}: its name must be <id>.py, in small letters; rename it")
        if file.stem in found:
            raise UserError(f"extra_benchmarks: {file}: {found[file.stem]} defines {file.stem!r} already; rename it")
        found[file.stem] = file
    return found


def benchmark_file(id: str, extra: Sequence[str | Path] = ()) -> Path:
    """The file that defines a benchmark; `UserError` if unknown. It is imported by name, so hash it explicitly."""
    files = benchmark_files(extra)
    if id not in files:
        raise UserError(f"unknown benchmark {id!r}; {suggest(id, files)}")
    return files[id]


def get_benchmark(id: str, extra: Sequence[str | Path] = ()) -> Benchmark:
    """The benchmark with this id. If there is none, `UserError` with the closest id and the list of ids."""
    path = benchmark_file(id, extra)
    own = path.parent == _FOLDER
    module = importlib.import_module(f"{__name__}.{id}") if own else import_file(path, "extra_benchmarks")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Benchmark) and value.__module__ == module.__name__
    ]
    if len(found) != 1 or getattr(found[0], "id", None) != id:
        raise UserError(f"{path}: must define exactly one Benchmark, with id = {id!r}")
    if missing := sorted(getattr(found[0], "__abstractmethods__", ())):
        raise UserError(f"{path}: {found[0].__name__} lacks {', '.join(missing)}; docs/benchmarks.md shows an example")
    return found[0]()
