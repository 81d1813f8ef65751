"""What a user sees while a command runs: few lines on the terminal, everything in the log."""

import os
import sys
import time
from pathlib import Path
from typing import TextIO

_terminal: TextIO = sys.stderr
_label = ""


def to_log(path: Path, label: str, command: str) -> None:
    """Redirect what this process and its libraries print to `path`; `say` still reaches the terminal.

    The log begins with the command line that repeats this step.
    """
    global _terminal, _label
    path.parent.mkdir(parents=True, exist_ok=True)
    _label = label
    _terminal = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    print(f"$ {command}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line for the user and for the log."""
    print(text, file=sys.stderr, flush=True)
    if _terminal is not sys.stderr:
        print(f"[{_label}] {text}", file=_terminal, flush=True)


class Countdown:
    """Reports a loop's progress and approximate remaining time, at most once per `every` seconds."""

    def __init__(self, total: int, what: str, every: float = 10.0) -> None:
        self.total, self.what, self.every = total, what, every
        self.done = 0
        self._start = self._said = time.monotonic()

    def step(self, count: int = 1) -> None:
        """Count `count` more items as done."""
        self.done += count
        now = time.monotonic()
        if now - self._said >= self.every and self.done < self.total:
            self._said = now
            left = (now - self._start) / self.done * (self.total - self.done)
            say(f"{self.done}/{self.total} {self.what}, about {left:.0f} s left")
