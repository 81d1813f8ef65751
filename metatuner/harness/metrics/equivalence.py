r"""Equivalence of mathematical expressions in LaTeX (MATH), decided in a worker process with limits.

An expression comes from a model, so it may be endless or huge. Therefore SymPy compares expressions in a worker
process, which is started when first needed. The kernel enforces its memory limit and its timer. An expression that
exceeds a limit scores 0, and the reason is recorded. If the worker itself is killed, a new one repeats the comparison.
"""

import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import metatuner
from metatuner.harness.metrics import equivalence_worker
from metatuner.harness.metrics.latex import canonical

_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Limits:
    """What one comparison may use."""

    cpu_seconds: float = 1.5
    """Processor time rather than wall-clock time, so that a busy machine does not change scores."""
    wall_seconds: float = 60.0
    """Stops a process that waits instead of computing."""
    memory_bytes: int = 2 * 1024**3
    """Address space of a comparison, including its libraries (0.3 GB)."""
    characters: int = 2000
    """Longer expressions are not compared; the longest answer in MATH has 159."""


@dataclass(frozen=True)
class Verdict:
    """Whether two expressions are equivalent and, if the comparison was stopped, why."""

    equal: bool
    stopped: str | None = None
    """"time", "memory", "length" or "crash"; None if the comparison finished."""


class Comparer:
    """A worker process that compares expressions one at a time; started when first needed, replaced if it dies."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def compare(self, answer: str, gold: str) -> Verdict:
        """Whether the LaTeX answers mean the same (`mathematics.equal_answers`), within the limits."""
        if max(len(answer), len(gold)) > self.limits.characters:
            return Verdict(False, "length")
        with self._lock:
            for _ in range(2):  # a worker that something else killed is replaced, and its comparison repeated once
                verdict = self._ask(answer, gold)
                if verdict.stopped != "crash":
                    return verdict
            return verdict

    def _ask(self, answer: str, gold: str) -> Verdict:
        stdin, stdout = _pipes(self._running())
        try:
            stdin.write(json.dumps([answer, gold]) + "\n")
            stdin.flush()
            reply = stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply.endswith("\n"):
            self._end()
            return Verdict(False, "crash")
        found = json.loads(reply)
        return Verdict(found) if isinstance(found, bool) else Verdict(False, found)

    def close(self) -> None:
        """End the worker; the next comparison starts another."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._end()

    def forget(self) -> None:
        """Forget a worker that belongs to the parent process, after a fork."""
        self._lock, self._process = threading.Lock(), None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[str]:
        # A fresh interpreter inherits neither this process's memory (a model's weights) nor its modules.
        command = [sys.executable, "-P", "-m", equivalence_worker.__name__, json.dumps(asdict(self.limits))]
        paths = [str(Path(metatuner.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        if _pipes(process)[1].readline().strip() != equivalence_worker.READY:
            raise RuntimeError(f"the worker that compares expressions did not start (exit status {process.wait()})")
        return process

    def _end(self) -> None:
        """Reap a process that has ended or is about to."""
        if self._process is not None:
            for pipe in _pipes(self._process):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process.wait()
            self._process = None


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


_comparer = Comparer()
atexit.register(_comparer.close)
os.register_at_fork(after_in_child=_comparer.forget)


def equivalent(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[Verdict]:
    """For each (answer, references): whether the answer is equivalent to any reference. One worker compares all pairs.

    The worker is not used for texts with one canonical form, for plain integers, or for the same pair a second time.
    """
    return [_any_equal(answer, tuple(golds)) for answer, golds in pairs]


@lru_cache(maxsize=65536)
def _any_equal(answer: str, golds: tuple[str, ...]) -> Verdict:
    if len(answer) > _comparer.limits.characters:
        return Verdict(False, "length")
    plain, plain_golds = canonical(answer), [canonical(gold) for gold in golds]
    if plain in plain_golds:
        return Verdict(True)
    if all(map(_INTEGER.fullmatch, [plain, *plain_golds])):
        return Verdict(int(plain) in map(int, plain_golds))
    verdicts = [_comparer.compare(answer, gold) for gold in golds]
    return max(verdicts, key=lambda verdict: (verdict.equal, verdict.stopped is not None))
