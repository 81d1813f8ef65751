"""Resume an interrupted run: unlock if none of its processes is alive, then run what is missing."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from metatuner import progress
from metatuner.config import Layout, parse_overrides
from metatuner.errors import UserError

PROGRAMS = ("snakemake", "metatuner", "metatuner.forkserver")
DYING = 5.0
"""Seconds in which the jobs of a killed run end on their own."""


def living_runs(folder: Path) -> list[tuple[int, str]]:
    """Live processes of a run in `folder`: (pid, command line), without this process and its parents."""
    import psutil

    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    alive = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            here = (
                process.pid not in mine and Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile, or belongs to another user
        programs = {Path(word).name for word in words[:3]}
        writes = "metatuner" not in programs or "--config" in words  # lm-eval's and other commands only read
        if here and writes and programs & set(PROGRAMS):
            alive.append((process.pid, " ".join(words)[:100]))
    return alive


def resume_run(overrides: Sequence[str], cores: str, layout: Layout) -> NoReturn:
    """Unlock if a killed run left its lock, then become `snakemake --rerun-incomplete`.

    Raises UserError if a process of the old run is alive, because two runs would write the same files.
    """
    folder = Path.cwd()
    if not (folder / "Snakefile").is_file():
        raise UserError(f"{folder}: no Snakefile here; run this from the project's folder")
    until = time.monotonic() + DYING
    while (alive := living_runs(folder)) and time.monotonic() < until:
        if any("snakemake" in words for _, words in alive):
            break
        time.sleep(0.1)
    if alive:
        named = "; ".join(f"{pid} ({words})" for pid, words in alive)
        raise UserError(f"the old run is still alive: {named}; wait for it, or stop it, then resume")
    snakemake = [sys.executable, "-m", "snakemake"]
    configured = ["--config", *map(_nested, overrides)] if overrides else []
    remove_unfinished(layout)  # the old run is not alive
    locks = folder / ".snakemake" / "locks"
    if locks.is_dir() and any(locks.iterdir()):
        progress.say("removing the lock of the interrupted run")
        unlocked = subprocess.run([*snakemake, "--unlock", *configured], capture_output=True, text=True, check=False)
        if unlocked.returncode:
            raise UserError(f"snakemake --unlock failed: {' '.join(unlocked.stderr.split())[-300:]}")
    sys.stdout.flush()
    sys.stderr.flush()
    # Replace this process, so that a signal (Ctrl-C) reaches Snakemake, which then ends its jobs and removes its lock.
    os.execv(sys.executable, [*snakemake, "--cores", cores, "--rerun-incomplete", *configured])


UNFINISHED = re.compile(r"\..+\.(\d+|[a-z0-9_]{8})\.tmp")
"""The names of `files.write_bytes` and `files.complete_folder`."""


def remove_unfinished(layout: Layout) -> None:
    """Remove what `unfinished` lists. A file in an unfinished folder is gone with it."""
    for left in unfinished(layout):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def unfinished(layout: Layout) -> list[Path]:
    """Unfinished files and folders that killed jobs left where this run writes, wherever its folders are."""
    parts = ("cells", "data", "figures", "fits", "logs", "packs", "tables", "tune", "usage", "world")
    places = [layout.root, *(layout.root / part for part in parts), layout.cache / "models", layout.cache / "logs"]
    found = [path for place in places for path in (place.glob if place == layout.root else place.rglob)(".*.tmp")]
    return [path for path in found if UNFINISHED.fullmatch(path.name)]


def _nested(word: str) -> str:
    """`a.b=c` as Snakemake's --config takes it: `a={"b": "c"}`."""
    key = word.partition("=")[0]
    first, *rest = key.split(".")
    if not rest:
        return word
    (value,) = parse_overrides([word]).values()
    for part in reversed(rest):
        value = {part: value}
    return f"{first}={json.dumps(value, ensure_ascii=False)}"
