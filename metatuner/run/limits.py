"""A limit on how long a block of code may run."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from metatuner.errors import UserError

AGAIN = 30.0
"""If code catches the error of a limit and continues, it is stopped again after this many seconds."""


class TimeLimitExceeded(UserError):
    """A fit ran longer than its budget allows; its cell fails with this error."""


class Overdue(BaseException):
    """Code was not done in time. This is no `Exception`, so that a method's `except Exception` does not catch it."""


@contextmanager
def limit(seconds: float | None, error: Callable[[], BaseException]) -> Iterator[None]:
    """Raise `error()` in the block after `seconds` of real time, and again while the block continues.

    The error reaches Python code, and library code as soon as it returns to Python. A call that never returns is not
    stopped. Signals arrive only in a process's main thread: in other threads, and on systems without these signals,
    nothing is limited. Limits nest: an inner limit does not change the time of the outer limit.

    Args:
        seconds: the limit; None for no limit.
        error: makes the error to raise.
    """
    alarms = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not alarms:
        yield
        return
    now, outer, left = time.monotonic(), signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]
    due, outer_due = now + seconds, now + left if left else math.inf
    over = threading.Event()

    def arm(wait: float) -> None:
        wait = min(wait, outer_due - time.monotonic())
        signal.setitimer(signal.ITIMER_REAL, max(wait, 0.001))

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal outer_due
        if over.is_set():
            return
        if time.monotonic() >= outer_due and callable(outer):
            outer_due = time.monotonic() + AGAIN
            arm(AGAIN)
            outer(number, frame)
        arm(AGAIN if time.monotonic() >= due else due - time.monotonic())
        if time.monotonic() >= due:
            raise error()

    signal.signal(signal.SIGALRM, stop)
    arm(seconds)
    try:
        try:
            yield
        finally:
            over.set()
    finally:  # also if the alarm came just before the end: the next one is far away
        over.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer)
        if outer_due < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(outer_due - time.monotonic(), 0.001))


@contextmanager
def time_limit(seconds: float | None, budget: str) -> Iterator[None]:
    """Raise TimeLimitExceeded, which names the budget, in a block that takes longer than `seconds`."""

    def error() -> TimeLimitExceeded:
        return TimeLimitExceeded(
            f"budget {budget!r}: not done after {seconds:g} s; lower the method's settings or raise "
            f"budgets.{budget}.seconds in the preset"
        )

    with limit(seconds, error):
        yield
