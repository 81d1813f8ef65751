"""Commands in forks of one process: they do what a process of their own does, and die with their caller."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from metatuner.forkserver import ADDRESS, ForkServer
from tests.toys.runs import start, wait_until, with_path

WAITING = """
import os, time
from pathlib import Path
Path("began").write_text(str(os.getpid()))
time.sleep(600)
"""
"""A method's file that never ends being imported."""
COMMAND = Path(sys.executable).with_name("metatuner")


def waiting_command(server: ForkServer, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A caller whose command runs until it is stopped, and the process of the command."""
    (folder / "waiting.py").write_text(WAITING)
    caller = start(
        folder, "metatuner.cli", "methods", "extra_methods=[waiting.py]", env=server.environment, stderr=subprocess.PIPE
    )
    began = folder / "began"
    wait_until(lambda: began.is_file() and began.read_text(), "the command to begin")
    return caller, int(began.read_text())


@pytest.mark.parametrize(
    "words", [["config", "preset=tiny"], ["config", "preset=tyni"], ["fit", "--pack"], ["--help"]], ids=" ".join
)
def test_a_command_says_and_returns_what_it_does_in_a_process_of_its_own(
    server: ForkServer, tmp_path: Path, words: list[str]
) -> None:
    alone = subprocess.run(
        [COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, env=with_path(), check=False
    )
    forked = server.run(["metatuner", *words], tmp_path)
    asked = subprocess.run(
        [COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, env=server.environment, check=False
    )
    for done in (forked, asked):
        assert (done.returncode, done.stdout, done.stderr) == (alone.returncode, alone.stdout, alone.stderr)


LOOKING = """
import os, sys
from pathlib import Path
Path(os.environ.get("SEEN", "seen")).write_text(f"{'torch' in sys.modules} {os.environ.get('MINE')} {os.getcwd()}")
raise SystemExit("no method here")
"""
"""A method's file that writes down where it is imported. Listing methods alone does not import torch."""


def test_snakemakes_jobs_are_forks_in_the_callers_folder_and_environment(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "looking.py").write_text(LOOKING)
    (tmp_path / "Snakefile").write_text(
        'rule all:\n    output: "made"\n    shell: "SEEN=made metatuner methods extra_methods=[looking.py] > listed"\n'
    )
    environment = {**with_path(), ADDRESS: str(server.address), "MINE": "of the caller"}
    done = server.run(["snakemake", "--cores", "1"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text() == f"True of the caller {tmp_path}"
    assert "metatuner_j" in (tmp_path / "listed").read_text()
    # What one caller set is not there for the next.
    server.run(["metatuner", "methods", "extra_methods=[looking.py]"], tmp_path)
    assert (tmp_path / "seen").read_text() == f"True None {tmp_path}"


def test_a_fork_counts_its_own_time_alone(finished: Path) -> None:
    used = [json.loads(path.read_text()) for path in (finished / "results" / "tiny" / "usage").glob("*.json")]
    assert len(used) > 20
    assert all(each["startup_cpu_seconds"] >= 0 for each in used)
    assert all(each["startup_cpu_seconds"] <= each["cpu_seconds"] for each in used)


def test_many_commands_at_once_do_not_mix(server: ForkServer, tmp_path: Path) -> None:
    def resolved(number: int) -> str:
        words = ["metatuner", "config", "preset=tiny", f"tuning.seed={100 + number}"]
        return str(json.loads(server.run(words, tmp_path).stdout)["tuning"]["seed"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(resolved, range(16))) == [str(100 + number) for number in range(16)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_caller_stops_the_command(server: ForkServer, tmp_path: Path, number: int) -> None:
    caller, command = waiting_command(server, tmp_path)
    caller.send_signal(number)
    caller.communicate(timeout=120)
    assert caller.returncode == 128 + number
    assert not psutil.pid_exists(command)


def test_a_killed_caller_takes_its_command_with_it(server: ForkServer, tmp_path: Path) -> None:
    caller, command = waiting_command(server, tmp_path)
    caller.kill()
    caller.communicate(timeout=120)
    wait_until(lambda: not psutil.pid_exists(command), "the command to end")
    assert server.run(["metatuner", "--help"], tmp_path).returncode == 0  # the server goes on


def test_a_command_that_dies_gives_its_signals_status(server: ForkServer, tmp_path: Path) -> None:
    caller, command = waiting_command(server, tmp_path)
    os.kill(command, signal.SIGKILL)
    caller.communicate(timeout=120)
    assert caller.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("killed", ["owner", "server"])
def test_a_server_ends_with_its_owner_and_takes_commands_along(killed: str, tmp_path: Path) -> None:
    code = (
        "from metatuner.forkserver import ForkServer; server = ForkServer(); print(server.address, flush=True); input()"
    )
    long = tmp_path / ("long" * 30)  # a folder for temporary files that no socket could lie in
    long.mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(long)},
    )
    assert owner.stdout is not None
    address = owner.stdout.readline().strip()
    (process,) = psutil.Process(owner.pid).children()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "waiting.py").write_text(WAITING)
    caller = start(
        tmp_path / "work",
        "metatuner.cli",
        *("methods", "extra_methods=[waiting.py]"),
        env={**os.environ, ADDRESS: address},
        stderr=subprocess.PIPE,
    )
    began = tmp_path / "work" / "began"
    wait_until(lambda: began.is_file() and began.read_text(), "the command to begin")
    if killed == "owner":
        owner.kill()
        owner.communicate(timeout=120)
    else:
        process.kill()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "the server to end")
    _, errors = caller.communicate(timeout=120)
    assert caller.returncode == 70
    assert errors == "metatuner: the fork server ended, or had no memory for this command; run it again\n"
    wait_until(lambda: not psutil.pid_exists(int(began.read_text())), "the command to end")
    if killed == "owner":
        assert not Path(address).parent.exists()
    else:
        owner.kill()
        owner.communicate(timeout=120)
        shutil.rmtree(Path(address).parent)


def test_where_no_server_answers_signals_act_as_before(tmp_path: Path) -> None:
    code = (
        "import signal; from metatuner import forkserver\n"
        "try: forkserver.become(['metatuner'])\n"
        "except forkserver.NoServer: print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    )
    env = {**os.environ, ADDRESS: str(tmp_path / "nobody")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_where_no_server_answers_the_command_says_so_and_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "config"],
        capture_output=True,
        text=True,
        env={**with_path(), ADDRESS: str(tmp_path / "nobody")},
        check=False,
    )
    assert done.returncode == 0
    assert "preset" in done.stdout
    assert f"{ADDRESS}={tmp_path / 'nobody'}: no fork server answers there" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_other_programs_are_refused(server: ForkServer, tmp_path: Path) -> None:
    done = server.run(["ls"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "metatuner and snakemake" in done.stderr
