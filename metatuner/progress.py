"""What a user sees while a command runs: few lines on the terminal, everything in the log."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

T = TypeVar("T")

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


def left(start: float, last: float, done: int, total: int) -> str:
    """How long the rest of a loop takes, if it goes on as between `start` and `last`, when the last item was done."""
    seconds = max(0.0, (last - start) / done * (total - done) - (time.monotonic() - last))
    return f"about {seconds:.0f} s left" if seconds < 600 else f"about {seconds / 60:.0f} min left"


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
            say(f"{self.done}/{self.total} {self.what}, {left(self._start, now, self.done, self.total)}")


# ---- inside a fit or an evaluation ---------------------------------------------------------------------------------

EVERY = 30.0
"""Seconds between two lines about one fit or evaluation, at least. A shorter one has no line."""


class _Work:
    """A fit or an evaluation, with the loops that it is in, outermost first."""

    def __init__(self, name: str) -> None:
        self.name, self.said = name, time.monotonic()
        self.loops: list[_Loop] = []
        self.done: dict[str, int] = {}
        """How much of each kind was done, in all its loops."""

    def report(self, what: str) -> None:
        """Say where it stands, unless it did less than `EVERY` seconds ago."""
        now = time.monotonic()
        if now - self.said < EVERY:
            return
        self.said = now
        going = [loop.text() for loop in self.loops if loop.done < loop.total]
        say(f"{self.name}: {'; '.join(going) if going else f'{self.done[what]} {what} so far'}")


class _Loop:
    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        self.start = self.last = time.monotonic()

    def text(self) -> str:
        rest = f", {left(self.start, self.last, self.done, self.total)}" if self.done else ""
        return f"{self.done}/{self.total} {self.what}{rest}"


_work: _Work | None = None


@contextmanager
def at_work(name: str) -> Iterator[None]:
    """While this context lasts, the loops in it (`loop`, `each`) report what is done of `name`, and about how long
    the rest takes."""
    global _work
    before, _work = _work, _Work(name)
    try:
        yield
    finally:
        _work = before


@contextmanager
def loop(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A loop over `total` items (`what`, in the plural); call what it gives with the number of items just done.

    Outside of `at_work` it reports nothing.
    """
    work, here = _work, _Loop(total, what)

    def step(count: int) -> None:
        here.done += count
        here.last = time.monotonic()
        if work is not None:
            work.done[what] = work.done.get(what, 0) + count
            work.report(what)

    if work is not None:
        work.loops.append(here)
    try:
        yield step
    finally:
        if work is not None:
            work.loops.remove(here)


def each(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one by one; they are a `loop`."""
    with loop(len(items), what) as step:
        for item in items:
            yield item
            step(1)
