"""A run on one machine starts a fork server for its jobs, and no run does where forks cannot compute."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from metatuner.errors import UserError
from metatuner.forkserver import ADDRESS
from metatuner.plan.dag import Dag
from metatuner.run import jobs, machine
from tests.toys.plan import plan
from tests.toys.runs import Runs, project, with_path


def test_the_jobs_of_a_run_get_a_server_that_ends_with_the_run(tmp_path: Path) -> None:
    folder, bin = project(tmp_path / "mine"), tmp_path / "bin"
    bin.mkdir()
    environment = {name: value for name, value in with_path().items() if name != ADDRESS}
    real = shutil.which("metatuner", path=environment["PATH"])
    (bin / "metatuner").write_text(f'#!/bin/sh\necho "${ADDRESS}" >> "{tmp_path}/seen"\nexec "{real}" "$@"\n')
    (bin / "metatuner").chmod(0o755)
    environment["PATH"] = f"{bin}{os.pathsep}{environment['PATH']}"
    words = ["snakemake", "--cores", "1", "results/tiny/data/gsm8k/pool.jsonl", "--config", "preset=tiny"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = (tmp_path / "seen").read_text().split()
    assert len(seen) == 2  # the world's rows, and the splits drawn from them
    (address,) = set(seen)
    assert Path(address).name == "s"
    assert not Path(address).parent.exists()


class Started:
    address = Path("/tmp/mt-there/s")

    def stop(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """The servers that were started."""
    found: list[Started] = []

    def start() -> Started:
        found.append(Started())
        return found[-1]

    monkeypatch.setattr(jobs, "ForkServer", start)
    monkeypatch.setattr(jobs.atexit, "register", lambda stop: None)
    monkeypatch.setattr(machine, "GPUS", (Path("/nowhere"),))
    monkeypatch.delenv(ADDRESS, raising=False)
    return found


def test_a_server_is_started_once_and_named_to_the_jobs(started: list[Started]) -> None:
    jobs.start_server(local=True, deployed=False)
    assert os.environ[ADDRESS] == "/tmp/mt-there/s"
    jobs.start_server(local=True, deployed=False)
    assert len(started) == 1
    del os.environ[ADDRESS]


@pytest.mark.parametrize("why", ["cluster", "conda", "gpu", "broken", "full"])
def test_jobs_are_processes_of_their_own_where_forks_cannot_serve(
    why: str, started: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Started:
        raise {"broken": UserError, "full": OSError}[why]("the fork server does not start: no memory")

    if why == "gpu":
        monkeypatch.setattr(machine, "GPUS", (Path("/nowhere"), tmp_path))
    if why in ("broken", "full"):
        monkeypatch.setattr(jobs, "ForkServer", broken)
    jobs.start_server(local=why != "cluster", deployed=why == "conda")
    assert started == []
    assert ADDRESS not in os.environ
    assert ("each job imports everything itself" in capfd.readouterr().err) == (why in ("broken", "full"))


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        ("--cores 2 --config preset=tiny", False),
        ("--target-jobs scores: --local-groupid 1 --executor slurm-jobstep --jobs 1 --mode remote", False),
        ("--target-jobs scores: --local-groupid 1 --cores all --mode remote", True),
        ("--target-jobs fit:pack=sft-00 --cores 1 --force-use-threads --mode remote", False),
    ],
)
def test_a_job_of_a_cluster_that_runs_a_group_has_a_server_of_its_own(words: str, runs: bool) -> None:
    assert jobs.runs_group(words.split()) == runs


def test_jobs_declare_their_predicted_memory_and_none_more_than_a_given_limit(tiny: Runs, tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    plain, limited = tiny.snakemake(folder, "-n"), tiny.snakemake(folder, "-n", "--resources", "mem_mb=500")
    declared = [int(found) for found in re.findall(r"mem_mb=(\d+)", plain.stdout + plain.stderr)]
    assert min(declared) > 650  # a process with its libraries
    assert len(set(declared)) > 1
    assert set(re.findall(r"mem_mb=(\d+)", limited.stdout + limited.stderr)) == {"500"}


@pytest.mark.parametrize("why", ["cluster", "gpu", "cuda"])
def test_nothing_is_declared_elsewhere_or_on_a_gpu(
    why: str, started: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if why == "gpu":
        monkeypatch.setattr(machine, "GPUS", (tmp_path,))
    dag = Dag(plan({"models.actor.device": "cuda"} if why == "cuda" else {}).config)
    assert not any(jobs.memory_of(dag, local=why != "cluster").values())
    if why == "cluster":
        assert all(jobs.memory_of(dag, local=True).values())
