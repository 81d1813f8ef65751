r"""Equivalence of mathematical expressions in LaTeX (MATH), decided in a worker process with limits.

math-verify parses both expressions into SymPy and compares them. An expression comes from a model, so it may be endless
or huge. Therefore the comparison runs in one worker process, which is started when first needed. The kernel enforces
its memory limit and its timer. If the worker is stopped, that expression scores 0, the reason is recorded, and a new
worker replaces it.
"""

import atexit
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

from metatuner.harness.metrics import equivalence_worker

_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Limits:
    """What one comparison may use."""

    cpu_seconds: float = 3.0
    """Processor time rather than wall-clock time, so that a busy machine does not change scores."""
    wall_seconds: float = 60.0
    """Stops a process that waits instead of computing."""
    memory_bytes: int = 2 * 1024**3
    """Address space of the worker, including its libraries (0.3 GB)."""
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
        """Whether math-verify finds the LaTeX expressions `answer` and `gold` equivalent, within the limits."""
        if max(len(answer), len(gold)) > self.limits.characters:
            return Verdict(False, "length")
        with self._lock:
            process = self._running()
            stdin, stdout = _pipes(process)
            stdin.write(json.dumps([answer, gold]) + "\n")
            stdin.flush()
            reply = stdout.readline()
            if reply:
                return Verdict(json.loads(reply))
            return Verdict(False, equivalence_worker.STOPPED_BY.get(process.wait(), "crash"))

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
        # A fresh interpreter on one file inherits neither this process's memory (a model's weights) nor its modules.
        command = [sys.executable, "-P", str(Path(equivalence_worker.__file__)), json.dumps(asdict(self.limits))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        if _pipes(process)[1].readline().strip() != equivalence_worker.READY:
            raise RuntimeError(f"the worker that compares expressions did not start (exit status {process.wait()})")
        return process

    def _end(self) -> None:
        """Reap a process that has ended or is about to."""
        if self._process is not None:
            self._process.communicate()
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

    The worker is not used for texts that are equal after light normalisation, for plain integers, or for the same pair
    a second time.
    """
    return [_any_equal(answer, tuple(golds)) for answer, golds in pairs]


@lru_cache(maxsize=65536)
def _any_equal(answer: str, golds: tuple[str, ...]) -> Verdict:
    plain, plain_golds = normalise_latex(answer), [normalise_latex(gold) for gold in golds]
    if plain in plain_golds:
        return Verdict(True)
    if all(map(_INTEGER.fullmatch, [plain, *plain_golds])):
        return Verdict(int(plain) in map(int, plain_golds))
    verdicts = [_comparer.compare(answer, gold) for gold in golds]
    return max(verdicts, key=lambda verdict: (verdict.equal, verdict.stopped is not None))


def normalise_latex(text: str) -> str:
    r"""Normalise what only changes looks: `\dfrac`, `\left(`, `\!`, `$`, runs of white space, a final full stop."""
    for written, plain in ((r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\!", ""), ("$", "")):
        text = text.replace(written, plain)
    for size in (r"\left", r"\right"):
        for bracket in "()[]|":
            text = text.replace(size + bracket, bracket)
    return " ".join(text.split()).removesuffix(".")


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}` (also `\fbox{...}` and `\boxed 5`); None if there is none."""
    starts = []
    for command in (r"\boxed", r"\fbox"):
        at = text.find(command)
        while at >= 0:
            starts.append(at + len(command))
            at = text.find(command, at + 1)
    for start in sorted(starts, reverse=True):
        inside = _argument(text, start)
        if inside is not None:
            return inside.strip()
    return None


def _argument(text: str, start: int) -> str | None:
    """A command's argument: the content of balanced braces, or text up to white space or `$`; None if unbalanced."""
    while start < len(text) and text[start] == " ":
        start += 1
    if not text.startswith("{", start):
        bare = text[start:].split("$")[0].split()
        return bare[0] if bare else None
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 1  # an escaped brace is a character, not a bracket
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return text[start + 1 : at]
        at += 1
    return None
