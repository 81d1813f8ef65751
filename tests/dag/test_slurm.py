"""The profile `slurm-cpu` on a real Slurm of one node: the bytes of a local run, failures, refusals."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, rmtree
from typing import IO

import pytest

from tests.toys.runs import contents, kill_tree, project, start, wait_until
from tests.toys.slurm import Cluster, missing

pytestmark = pytest.mark.slow
PROFILE = ("snakemake", "--workflow-profile", "workflow/profiles/slurm-cpu")
LIMIT = 1800.0
"""Seconds for a run on a busy machine; a few minutes are usual."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that runs; skips only if Slurm's programs are not installed."""
    if absent := missing():
        needed = "on Debian: apt-get install slurmctld slurmd slurm-client munge"
        pytest.skip(f"needs Slurm, but there is no {', '.join(absent)}; {needed}")
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Run:
    """Snakemake with the profile, in a process of its own; its messages are in a file."""

    def __init__(self, cluster: Cluster, folder: Path, *words: str) -> None:
        self.messages = folder.parent / f"{folder.name}.messages"
        self.out: IO[str] = self.messages.open("w")
        line = (*PROFILE, *words, "--config", "preset=tiny")
        self.process = start(folder, *line, env=cluster.environment, stderr=self.out, stdout=self.out)

    def end(self) -> tuple[int, str]:
        """Wait; returns the exit status and the messages."""
        try:
            return self.process.wait(LIMIT), self.messages.read_text()
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            kill_tree(self.process)
        self.out.close()


def test_a_run_through_slurm_has_the_bytes_of_a_local_one_though_slurmd_is_killed(
    cluster: Cluster, finished: Path, tmp_path: Path
) -> None:
    folder = project(tmp_path / "slurm")
    run = Run(cluster, folder)
    try:
        fits = folder / "results" / "tiny" / "fits"
        wait_until(lambda: run.process.poll() is not None or any(fits.glob(".*.tmp")), "a fit", LIMIT)
        cluster.kill_node()
        cluster.start_node()
    finally:
        status, messages = run.end()
    assert status == 0, messages[-4000:]
    assert contents(folder) == contents(finished)
    # One prepares; four fit and evaluate (zero_shot; opro; sft with dpo, which builds on it; metatuner_j); one draws.
    assert messages.count("has been submitted with SLURM jobid") == 6


def test_a_job_that_slurm_cancels_fails_alone_and_resume_ends_the_run(
    cluster: Cluster, finished: Path, tmp_path: Path
) -> None:
    folder = copytree(finished, tmp_path / "cancelled")
    results = folder / "results" / "tiny"
    methods = ("sft", "opro")
    for method in methods:
        for step, place in (("fit", "fits"), ("evaluate", "cells")):
            for path in results.glob(f"packs/{step}/{method}-*.json"):
                for outcome in json.loads(path.read_text())["outcomes"]:
                    rmtree(results / place / outcome["key"])
                path.unlink()
    run = Run(cluster, folder, "--retries", "0")
    try:
        wait_until(lambda: run.process.poll() is not None or any(results.glob("fits/.*.tmp")), "a fit", LIMIT)
        cancelled = cluster.ask("squeue", "-h", "-t", "RUNNING", "-o", "%i").splitlines()[0]
        subprocess.run(["scancel", cancelled], env=cluster.environment, check=True)
    finally:
        status, messages = run.end()
    assert status != 0
    assert "Error in group cells" in messages
    there = {method: (results / f"packs/evaluate/{method}-00.json").is_file() for method in methods}
    assert sorted(there.values()) == [False, True], messages[-4000:]
    expected = contents(finished)
    found = contents(folder)
    assert {path: expected.get(path) for path in found} == found
    resumed = start(folder, "metatuner.cli", "resume", "--cores", "2", "preset=tiny", stderr=subprocess.PIPE)
    _, errors = resumed.communicate(timeout=LIMIT)
    assert resumed.returncode == 0, errors[-4000:]
    assert contents(folder) == expected


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--default-resources", "slurm_partition=nowhere"), "invalid partition specified: nowhere"),
        (("--set-resources", "figure_2:gpu=1"), "use workflow/profiles/slurm-cpu"),
    ],
    ids=["partition", "gpu"],
)
def test_what_slurm_refuses_is_said_in_one_line_before_anything_is_submitted(
    words: tuple[str, ...], line: str, cluster: Cluster, tmp_path: Path
) -> None:
    status, messages = Run(cluster, project(tmp_path / "refused"), *words, "--until", "figure_2").end()
    assert status == 1
    (said,) = [each for each in messages.splitlines() if each.startswith("metatuner: ")]
    assert "sbatch refuses rule figure_2" in said
    assert line in said
    assert "submitted" not in messages
