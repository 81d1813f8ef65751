"""Resume an interrupted run: unlock if none of its processes is alive, then run what is missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from metatuner import progress
from metatuner.errors import UserError

PROGRAMS = ("snakemake", "metatuner")


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
        if here and programs & set(PROGRAMS):
            alive.append((process.pid, " ".join(words)[:100]))
    return alive


def resume_run(overrides: Sequence[str], cores: str) -> NoReturn:
    """Unlock if a killed run left its lock, then become `snakemake --rerun-incomplete`.

    Raises UserError if a process of the old run is alive, because two runs would write the same files.
    """
    folder = Path.cwd()
    if not (folder / "Snakefile").is_file():
        raise UserError(f"{folder}: no Snakefile here; run this from the project's folder")
    alive = living_runs(folder)
    if alive:
        named = "; ".join(f"{pid} ({words})" for pid, words in alive)
        raise UserError(f"the old run is still alive: {named}; wait for it, or stop it, then resume")
    snakemake = [sys.executable, "-m", "snakemake"]
    configured = ["--config", *map(_nested, overrides)] if overrides else []
    for left in folder.glob("results/**/.*.tmp"):  # unfinished files of killed jobs; the old run is not alive
        shutil.rmtree(left) if left.is_dir() else left.unlink()
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


def _nested(word: str) -> str:
    """`a.b=c` as Snakemake's --config takes it: `a={b: c}`."""
    key, _, value = word.partition("=")
    first, *rest = key.split(".")
    for part in reversed(rest):
        value = f"{{{part}: {value}}}"
    return f"{first}={value}"
