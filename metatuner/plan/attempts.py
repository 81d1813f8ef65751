"""How often a job had to run again although its inputs were the same; `Dag.retry` says what for."""

import json
from pathlib import Path

from metatuner.config import dump_config
from metatuner.files import write_text
from metatuner.integrity import DIGESTS, altered
from metatuner.plan import Plan


def read_attempts(path: Path) -> int:
    """The stored number; 0 if there is none or the file is broken."""
    try:
        return max(0, int(path.read_bytes()[:9]))
    except (OSError, ValueError):
        return 0


def write_attempts(path: Path, attempt: int, failed: bool = False) -> None:
    """Store the number of this attempt; after a failure the next one, so that the next run tries again."""
    before = read_attempts(path)
    count = max(before, attempt) + failed
    if count != before:
        write_text(path, str(count))


def is_lost(plan: Plan, step: str, name: str) -> bool:
    """Whether something that a finished job made is missing or altered. A broken pack's file counts too.

    `step` and `name` are as in `Dag.retry`. Files that Snakemake itself sees to be missing do not count.
    """
    layout = plan.layout
    if step == "world":
        nano = [benchmark for benchmark, config in plan.config.benchmarks.items() if config.source == "nano"]
        there = all(file.is_file() for benchmark in nano for file in plan.keys.source_files(benchmark))
        return there and altered(layout.world, strangers=False) is not None
    if step == "data":
        folder = layout.data(name)
        return (folder / "splits.json").is_file() and altered(folder) is not None
    if step == "pretrain":
        folder = layout.cache / "models" / name
        return (folder / DIGESTS).is_file() and altered(folder) is not None
    if step == "results":
        stored = layout.config.read_bytes() if layout.config.is_file() else b""
        own = stored == dump_config(plan.config).encode()
        return layout.digests.is_file() and not (own and altered(layout.root, strangers=False) is None)
    path = layout.pack(step, name)
    if not path.is_file():
        return False
    try:
        outcomes = json.loads(path.read_bytes())["outcomes"]
        keys = [outcome["key"] for outcome in outcomes if outcome["status"] == "ok"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return True
    return not all(_is_there(plan, step, key) for key in keys)


def _is_there(plan: Plan, step: str, key: str) -> bool:
    if step == "evaluate":
        return plan.packs.has_cell(key)
    # A key that is no longer in the plan makes its pack run anyway.
    return key not in plan.grid.fits or plan.packs.is_complete(plan.grid.fits[key])
