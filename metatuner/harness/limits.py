"""A limit on how long a method's code may run."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from metatuner.errors import UserError


class TimeLimitExceeded(UserError):
    """A fit ran longer than its budget allows; its cell fails and says so."""


@contextlib.contextmanager
def time_limit(seconds: float | None, name: str) -> Iterator[None]:
    """Raise TimeLimitExceeded in the block once it has run for so many seconds of real time.

    It reaches Python code, and code of a library as soon as that returns to Python; a call that never does is not
    stopped. Signals arrive in a process's main thread alone: elsewhere, and where a system has none, nothing is
    limited.

    Args:
        seconds: None: no limit.
        name: of the budget, for the error.
    """
    alarms = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not alarms:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitExceeded(
            f"budget {name!r}: not done after {seconds:g} s; lower the method's settings or raise "
            f"budgets.{name}.seconds in the preset"
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
