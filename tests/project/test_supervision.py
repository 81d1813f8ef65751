"""Jobs in a child process: however a step ends its process, it has failed and says how, and the others go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from metatuner.hashing import ROOT
from tests.toys.runs import wait_until

JOB = """
import ctypes, json, os, signal, sys, threading, time
from pathlib import Path
from metatuner import supervision
from metatuner.errors import UserError

supervision.PATIENCE = supervision.LEAVING = 0.2
supervision._LOOK = supervision.PASSING_ON = 0.05
out = Path(sys.argv[1])

def died(key, reason):
    with open(out / "died", "a") as file:
        print(key, reason, file=file)

def stubborn():
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            pass

try:
    steps = supervision.supervised(died)
except supervision.Ended as ended:
    sys.exit(ended.status)
except UserError as error:
    sys.exit(f"job: {{error}}")
found = {{}}
for key in "abcd":
    def work():
        with open(out / "begun", "a") as file:
            print(key, file=file)
        if key == "b":
            {bad}
        return {{"status": "ok", "reason": ""}}
    found[key] = steps.run(key, work, {seconds})
(out / "found.json").write_text(json.dumps(found))
steps.finish()
{after}
supervision.leave(0)
"""


def job(folder: Path, bad: str = "pass", seconds: float | None = None, after: str = "") -> list[str]:
    """The command line of a job of four steps, whose second one runs `bad`."""
    script = folder / "job.py"
    script.write_text(JOB.format(bad=bad, seconds=seconds, after=after))
    return [sys.executable, str(script), str(folder)]


def run(folder: Path, *what: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(job(folder, *what), capture_output=True, text=True, timeout=60, env=environment)  # type: ignore[arg-type]


def test_a_child_leaves_what_belongs_to_its_parent(tmp_path: Path) -> None:
    script = """
import tempfile
from pathlib import Path
from metatuner import supervision
held = tempfile.TemporaryDirectory()
try:
    steps = supervision.supervised(print)
except supervision.Ended:
    print(Path(held.name).is_dir())
else:
    steps.finish()
    supervision.leave(0)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.stdout, done.stderr) == ("True\n", "")


DEATHS = {
    "os.kill(os.getpid(), signal.SIGKILL)": "the process was killed (signal 9), as the system does when memory",
    "ctypes.string_at(0)": "the process was ended by signal 11 (SIGSEGV)",
    "os._exit(0)": "the process ended with status 0, as by os._exit",
    "os._exit(7)": "the process ended with status 7, as by os._exit",
    "os.abort()": "the process was ended by signal 6 (SIGABRT)",
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_step_that_ends_its_process_has_failed_and_the_others_are_done_once(tmp_path: Path, death: str) -> None:
    done = run(tmp_path, death)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {key: value["status"] for key, value in found.items()} == {"a": "ok", "b": "failed", "c": "ok", "d": "ok"}
    assert DEATHS[death] in found["b"]["reason"]
    assert (tmp_path / "died").read_text().startswith(f"b {DEATHS[death]}")
    assert (tmp_path / "begun").read_text().split() == ["a", "b", "c", "d"]


def test_a_step_that_outlives_its_limit_whatever_is_raised_in_it_is_killed(tmp_path: Path) -> None:
    done = run(tmp_path, "stubborn()", 0.3)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [key for key in found if found[key]["status"] == "failed"] == ["b"]
    assert "it went on after the error that ends it; the process was killed" in found["b"]["reason"]


@pytest.mark.parametrize(
    "after", ["threading.Thread(target=time.sleep, args=(600,)).start()", "stubborn()", "os._exit(3)", "1 / 0"]
)
def test_a_job_whose_work_is_done_has_succeeded_however_its_process_ends(tmp_path: Path, after: str) -> None:
    assert run(tmp_path, "pass", None, after).returncode == 0
    assert len(json.loads((tmp_path / "found.json").read_text())) == 4


def test_an_error_of_the_job_itself_is_its_status_and_no_failed_step(tmp_path: Path) -> None:
    done = run(tmp_path, "raise ValueError('of the job')")
    assert done.returncode == 1
    assert "ValueError: of the job" in done.stderr
    assert not (tmp_path / "died").exists()
    script = tmp_path / "job.py"
    script.write_text(script.read_text().replace("found = {}", "os.kill(os.getpid(), signal.SIGKILL)"))
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == 1
    assert "job: the process was killed (signal 9)" in killed.stderr
    assert "run it again" in killed.stderr


def started(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A job that hangs in its second step, and its child."""
    words = job(folder, "time.sleep(600)")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, the job would inherit that it is ignored
    parent = subprocess.Popen(words, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGHUP, before)
    begun = folder / "begun"
    wait_until(lambda: begun.is_file() and "b" in begun.read_text(), "the second step")
    (child,) = psutil.Process(parent.pid).children()
    return parent, child.pid


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_job_ends_by_its_signal_with_its_child_and_records_no_failure(
    tmp_path: Path, number: signal.Signals
) -> None:
    parent, child = started(tmp_path)
    parent.send_signal(number)
    assert parent.wait(60) == -number
    wait_until(lambda: ended(child), "the child to end")
    told = tmp_path / "died"
    if number != signal.SIGINT:  # which Python code can clean up after itself
        assert told.read_text() == "b \n"
    assert not told.exists() or told.read_text() == "b \n"
    assert not (tmp_path / "found.json").exists()


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    parent, child = started(tmp_path)
    parent.kill()
    parent.wait()
    wait_until(lambda: ended(child), "the child to end")
