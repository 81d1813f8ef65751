"""A run that is killed, interrupted or still alive: taken up again, it has the bytes of one that was never stopped."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.toys.runs import PATIENCE, Runs, contents, kill_tree, project, start, wait_until

RUN = ("snakemake", "--cores", "2", "--rerun-incomplete", "--nolock", "--config", "preset=tiny")
RESUME = ("metatuner.cli", "resume", "--cores", "1", "preset=tiny")


def resume(folder: Path, env: dict[str, str] | None = None) -> None:
    """Take a run up on one core, to its end."""
    process = start(folder, *RESUME, env=env, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-4000:]


def forks_in(folder: Path) -> list[int]:
    """Processes, forks of a server among them, that run in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def kill_at(folder: Path, pattern: str, env: dict[str, str] | None = None) -> None:
    """Start a run and kill it, with all its processes, once a file of the pattern is there."""
    process = start(folder, *RUN, env=env)
    results = folder / "results" / "tiny"
    wait_until(lambda: process.poll() is not None or any(results.glob(pattern)), pattern)
    assert process.poll() is None, f"the run ended before it could be killed at {pattern}"
    kill_tree(process)


def test_a_run_killed_in_a_fit_and_ended_on_one_core_has_the_same_bytes(
    finished: Path, tiny: Runs, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "killed")
    results = folder / "results" / "tiny"
    for step in ("fit/sft-00", "evaluate/sft-00"):
        path = results / "packs" / f"{step}.json"
        for outcome in json.loads(path.read_text())["outcomes"]:
            shutil.rmtree(results / ("cells" if step.startswith("evaluate") else "fits") / outcome["key"])
        path.unlink()
    kill_at(folder, "fits/.*.tmp", tiny.environment)
    wait_until(lambda: not forks_in(folder), "the forks of the killed run to end")
    resume(folder, tiny.environment)
    assert contents(folder) == contents(finished)
    assert list((folder / "results").rglob(".*.tmp")) == []


@pytest.mark.slow
def test_a_run_killed_again_and_again_has_the_same_bytes(finished: Path, tiny: Runs, tmp_path: Path) -> None:
    """Until two kills every process is one of its own, as in a user's run; then jobs are forks, which is faster."""
    folder = project(tmp_path / "killed")
    # While splits are drawn, in fits and evaluations (a temporary folder is there), each a while after it has begun.
    draw, kills = random.Random(0), 0
    kill_at(folder, "data/gsm8k/test.jsonl")
    for mark, env in (("fits/.*.tmp", None), ("cells/.*.tmp", tiny.environment), ("fits/.*.tmp", tiny.environment)):
        for left in (folder / "results" / "tiny").glob(mark):  # so that the next one is killed in one of its own
            shutil.rmtree(left)
        process = start(folder, *RUN, env=env)
        wait_until(lambda: process.poll() is not None or any((folder / "results" / "tiny").glob(mark)), mark)  # noqa: B023
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 2))
        if process.poll() is None:
            kill_tree(process)
            kills += 1
        wait_until(lambda: not forks_in(folder), "the forks of the killed run to end")
    assert kills >= 2, "the runs ended before they could be killed"
    resume(folder, tiny.environment)
    assert contents(folder) == contents(finished)
    assert list((folder / "results").rglob(".*.tmp")) == []


def test_a_resumed_run_that_is_interrupted_ends_in_order_and_is_taken_up_again(
    finished: Path, tiny: Runs, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "interrupted")
    results, before = folder / "results" / "tiny", contents(folder)
    pack = results / "packs" / "evaluate" / "sft-00.json"
    for outcome in json.loads(pack.read_text())["outcomes"]:
        shutil.rmtree(results / "cells" / outcome["key"])
    process = start(folder, *RESUME, stderr=subprocess.PIPE)
    wait_until(lambda: process.poll() is not None or not pack.exists(), "the evaluation to start")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    locks = folder / ".snakemake" / "locks"
    assert not locks.is_dir() or not list(locks.iterdir())
    resume(folder, tiny.environment)
    assert contents(folder) == before


def test_resume_refuses_while_the_old_run_lives(tmp_path: Path, tiny: Runs) -> None:
    folder = project(tmp_path / "alive")
    process = start(folder, *RUN)
    try:
        done = tiny.metatuner(folder, "resume", "preset=tiny", check=False)
        assert process.poll() is None, "the run ended too early"
    finally:
        kill_tree(process)
    assert done.returncode == 2
    assert "the old run is still alive" in done.stderr
    assert str(process.pid) in done.stderr
