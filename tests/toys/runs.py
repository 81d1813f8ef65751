"""Projects for tests of the DAG, ways to run commands in them, and the contents of their results."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from metatuner.forkserver import ADDRESS, ForkServer
from metatuner.hashing import ROOT

TIMED = {"cost.json", "digests.json", "timing.json", "usage", "logs", "efficiency.csv", "report.html"}
TIMED |= {f"table_5.{suffix}" for suffix in ("csv", "md", "tex", "json")}
"""Names of files and folders that hold timings."""
PATIENCE = 300.0
"""Seconds to wait for something that takes a few seconds on an idle machine."""


def project(folder: Path) -> Path:
    """A folder with the workflow and nothing computed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "workflow", "config", "envs"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below results/ that holds no timings, by its path."""
    found = {}
    for path in sorted((folder / "results").rglob("*")):
        relative = path.relative_to(folder / "results")
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not TIMED & set(relative.parts) and not hidden:
            found[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def with_path() -> dict[str, str]:
    """This process's environment, with the console commands of its interpreter on the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@dataclass
class Runs:
    """Runs commands on one preset, in forks of a server."""

    server: ForkServer
    preset: str

    @property
    def environment(self) -> dict[str, str]:
        """An environment in which `metatuner` commands are forks of the server."""
        return {**with_path(), ADDRESS: str(self.server.address)}

    def snakemake(
        self, folder: Path, *words: str, config: Sequence[str] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `snakemake` and its jobs, all in forks. `--config` takes all words that follow, so it goes last."""
        line = ["snakemake", "--cores", "2", *words, "--config", f"preset={self.preset}", *config]
        return _checked(self.server.run(line, folder, self.environment), check)

    def metatuner(self, folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `metatuner` in a fork."""
        return _checked(self.server.run(["metatuner", *words], folder, self.environment), check)


def _checked(done: subprocess.CompletedProcess[str], check: bool) -> subprocess.CompletedProcess[str]:
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def start(folder: Path, *words: str, env: dict[str, str] | None = None, **options: object) -> subprocess.Popen[str]:
    """Start `python -m WORDS` in a separate process and process group.

    Its temporary files lie beside the project, because a killed process leaves some.
    """
    temporary = folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**(env or with_path()), "TMPDIR": str(temporary)},
        text=True,
        start_new_session=True,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options},  # type: ignore[call-overload]
    )


def wait_until(true: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Poll until it is true; the test fails if it never is."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"waited {patience:g} s for {what}"
        time.sleep(0.02)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """kill -9 a process and all its children, as a crash of the machine would."""
    root = psutil.Process(process.pid)
    for member in [*root.children(recursive=True), root]:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
