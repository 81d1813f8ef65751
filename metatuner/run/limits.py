"""A limit on how long a block of code may run."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from metatuner.errors import UserError

AGAIN = 30.0
"""Seconds after which code that caught `Overdue` and went on is stopped again."""


class TimeLimitExceeded(UserError):
    """A fit ran longer than its budget allows; its cell fails and says so."""


class Overdue(BaseException):
    """Code was not done in time. No `Exception`, so that a method's `except Exception` does not catch it."""


class _Alarm:
    """The handler of SIGUSR1 inside a limit. It leaves signals that are not its own to the handler before it."""

    def __init__(self, error: Callable[[], BaseException], before: Any) -> None:
        self.error, self.before = error, before
        self.due, self.done = threading.Event(), threading.Event()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if isinstance(self.before, _Alarm) and self.before.due.is_set():  # the outer limit comes first
            self.before(number, frame)
        if self.due.is_set():
            self.due.clear()
            if not self.done.is_set():
                raise self.error()
        elif callable(self.before):  # a scheduler's warning
            self.before(number, frame)

    def remind(self, seconds: float, again: float | None) -> None:
        """Send the signal once the time is over, and again while the block goes on."""
        wait: float | None = seconds
        while wait is not None and not self.done.wait(wait):
            self.due.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            wait = again


@contextmanager
def limit(seconds: float | None, error: Callable[[], BaseException], again: float | None = None) -> Iterator[None]:
    """Raise `error()` in the block once it has run for so many seconds of real time.

    A thread keeps the time, so that a library which uses the process's alarm does not end the limit. The error reaches
    Python code, and code of a library as soon as it returns to Python. A call that never returns is not stopped.
    Signals arrive only in the main thread of a process. In other threads, and on systems without them, nothing is
    limited. Limits nest.

    Args:
        seconds: None: no limit.
        error: makes the exception.
        again: seconds after which code that caught the error is stopped again; None: never.
    """
    main = threading.current_thread() is threading.main_thread()
    if seconds is None or not main or not hasattr(signal, "pthread_kill"):
        yield
        return
    alarm = _Alarm(error, signal.getsignal(signal.SIGUSR1))
    signal.signal(signal.SIGUSR1, alarm)
    thread = threading.Thread(target=alarm.remind, args=(seconds, again), daemon=True)
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive() or not alarm.done.is_set():
            with suppress(Overdue, TimeLimitExceeded):  # raised in between, it must not leave the thread behind
                alarm.done.set()
                thread.join()
        signal.signal(signal.SIGUSR1, alarm.before)


@contextmanager
def time_limit(seconds: float | None, budget: str) -> Iterator[None]:
    """Raise TimeLimitExceeded, which names the budget, once in a block that takes longer."""

    def error() -> TimeLimitExceeded:
        return TimeLimitExceeded(
            f"budget {budget!r}: not done after {seconds:g} s; lower the method's settings or raise "
            f"budgets.{budget}.seconds in the preset"
        )

    with limit(seconds, error):
        yield
