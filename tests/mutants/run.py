"""Make one listed change to the code at a time and run the tests that should notice it; print those that nobody did.

    make mutants                          # the whole list
    make mutants ARGS="a07 cfpo"          # those with these ids, or with these words in their file's name
    make mutants ARGS="--unchanged a07"   # run the named tests on the unchanged code first

Each `*.toml` beside this file lists changes ("mutants") of one room:

    [[mutant]]
    id = "a07"
    file = "metatuner/analysis/statistics/intervals.py"
    old = "return (1 + as_extreme) / (1 + resamples)"   # stands exactly once in the file
    new = "return as_extreme / resamples"
    tests = ["tests/analysis/test_intervals.py"]       # what pytest is given
    equivalent = "why no test can notice it"            # optional: then it is not run

Changes are made in copies of the checkout, never in the checkout itself. A mutant is killed by a failed test. It is
WRONG, and the exit status is 2, if it cannot be imported, if all its tests are skipped, or (`--unchanged`) if they fail
without it. The exit status is 1 if a mutant survived.
"""

import argparse
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ("pytest", "hypothesis", "torch", "transformers.models.llama.modeling_llama", "peft", "dspy", "lm_eval")
PRELOADED += ("trl", "matplotlib.figure", "sympy", "pydantic", "datasets", "accelerate")
"""Imported once; every test run is a fork of this process. None of them imports the project."""
LIMIT = 600.0
"""Seconds that a test run may take: a change may make a loop endless. It then counts as TIMEOUT, not as killed."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
"""What libraries, and the interpreter, read when they start."""


@dataclass(frozen=True)
class Mutant:
    """One change and the tests that should fail under it."""

    id: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def changed(self, root: Path = ROOT) -> str:
        """The text of the file with the change; ValueError unless `old` stands in it exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"mutant {self.id}: `old` stands {text.count(self.old)} times in {self.file}, not once")
        return text.replace(self.old, self.new)


def read_mutants(folder: Path = Path(__file__).parent) -> list[Mutant]:
    """All mutants of the lists in a folder; ValueError if two have the same id."""
    found: dict[str, Mutant] = {}
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
            if mutant.id in found:
                raise ValueError(f"{path.name}: mutant {mutant.id} is listed twice")
            found[mutant.id] = mutant
    return list(found.values())


def copy_checkout(folder: Path) -> None:
    """Copy what git tracks, and new files that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@dataclass
class Run:
    """A forked test run in a copy of the checkout."""

    copy: Path
    label: str
    tests: Sequence[str]
    done: Callable[[int | None, str, float], None]
    started: float = field(default_factory=time.perf_counter)
    pid: int = 0

    def start(self) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        status = 3
        try:
            os.setpgid(0, 0)
            log = os.open(self.copy / ".mutant.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            os.chdir(self.copy)
            os.environ["PYTHONPATH"] = str(self.copy)
            sys.path.insert(0, str(self.copy))
            sys.dont_write_bytecode = True
            import pytest

            words = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", ""]
            status = int(pytest.main([*words, *self.tests]))
            sys.stdout.flush()
        finally:
            os._exit(status)

    def ended(self) -> bool:
        """Whether the run is over; then `done` was called with its status (None: it took too long), its last failed
        test (or last lines) and its seconds."""
        seconds = time.perf_counter() - self.started
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0 and seconds < LIMIT:
            return False
        if pid == 0:
            self.kill()
        lines = (self.copy / ".mutant.log").read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), "")
        skipped = bool(lines) and re.search(r"\bskipped\b", lines[-1]) and not re.search(r"\bpassed\b", lines[-1])
        code = None if pid == 0 else 5 if skipped and not status else os.waitstatus_to_exitcode(status)
        self.done(code, last or "\n".join(lines[-15:]), seconds)
        return True

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def run_all(waiting: list[Callable[[Path], Run]], copies: Sequence[Path]) -> None:
    """Run everything that waits, as many at once as there are copies."""
    free: list[Path] = list(copies)
    running: list[Run] = []
    try:
        while waiting or running:
            while waiting and free:
                run = waiting.pop(0)(free.pop())
                run.start()
                running.append(run)
            over = [run for run in running if run.ended()]
            running = [run for run in running if run not in over]
            free += [run.copy for run in over]
            time.sleep(0.05)
    finally:  # Ctrl-C leaves no test run behind
        for run in running:
            run.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the listed mutants and print the survivors.")
    parser.add_argument("words", nargs="*", help="only mutants with this id, or with this in their file's name")
    parser.add_argument("--jobs", type=int, default=2, help="test runs at a time")
    parser.add_argument("--unchanged", action="store_true", help="first run all named tests on the unchanged code")
    arguments = parser.parse_args()
    mutants = [each for each in read_mutants() if not arguments.words or _named(each, arguments.words)]
    mutants = [each for each in mutants if each.changed() and not each.equivalent]
    if not mutants:
        parser.error(f"no mutant has the id, or is in a file, named {' '.join(arguments.words)}")
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ENVIRONMENT})
    for name in PRELOADED:
        importlib.import_module(name)
    wrong: list[str] = []
    survivors: list[str] = []
    timeouts: list[str] = []

    def unchanged(copy: Path) -> Run:
        def done(status: int | None, last: str, seconds: float) -> None:
            if status:
                wrong.append(f"without any change these tests fail: {last}")

        return Run(copy, "unchanged", sorted({test for each in mutants for test in each.tests}), done)

    def trial(mutant: Mutant) -> Callable[[Path], Run]:
        def start(copy: Path) -> Run:
            path = copy / mutant.file
            before = path.read_text(encoding="utf-8")
            path.write_text(mutant.changed(), encoding="utf-8")

            def done(status: int | None, last: str, seconds: float) -> None:
                path.write_text(before, encoding="utf-8")
                word = {None: "TIMEOUT", 0: "SURVIVED", 1: "killed"}.get(status, "WRONG")
                if word == "TIMEOUT":
                    timeouts.append(mutant.id)
                if status == 1 and last.startswith("ERROR") and "import" in last.lower():
                    word = "WRONG"
                if word == "SURVIVED":
                    survivors.append(mutant.id)
                if word == "WRONG":
                    wrong.append(f"{mutant.id}: pytest ended with status {status}: {last}")
                print(
                    f"{mutant.id:8}{word:10}{seconds:6.1f} s  {mutant.file}  {last if status == 1 else ''}", flush=True
                )

            return Run(copy, mutant.id, mutant.tests, done)

        return start

    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        copies = [Path(home) / str(number) for number in range(arguments.jobs)]
        for copy in copies:
            copy_checkout(copy)
        if arguments.unchanged:
            run_all([unchanged], copies)
        if not wrong:
            run_all([trial(each) for each in mutants], copies)
    print(f"{len(mutants)} mutants, {len(survivors)} survived: {' '.join(sorted(survivors)) or 'none'}")
    if timeouts:
        print(f"{len(timeouts)} not done after {LIMIT:g} s: {' '.join(sorted(timeouts))}")
    for line in wrong:
        print(line, file=sys.stderr)
    return 2 if wrong else int(bool(survivors))


def _named(mutant: Mutant, words: Sequence[str]) -> bool:
    return any(word == mutant.id or word in mutant.file for word in words)


if __name__ == "__main__":
    sys.exit(main())
