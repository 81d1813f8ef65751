"""Limits on a method's code in a run: it may not hang, leave the process, spend more than its budget unseen, or write
outside its folder. The best that one process can do; no sandbox.

A fit sets limits itself (`harness.limits`, `harness.budget`), whose errors a method can catch and go on; these here lie
around it, are no `Exception`, and are no part of what a fit's key depends on.
"""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from metatuner.errors import UserError

if TYPE_CHECKING:
    from metatuner.harness.budget import Budget
    from metatuner.harness.fitting import Outcome

GRACE = 60.0
"""Seconds beyond twice a fit's limit: for loading models and saving."""
AGAIN = 30.0
"""Seconds after which code that caught `Overdue` and went on is stopped again."""


CHECKING = "METATUNER_CHECKING"
"""Set by `check-method` for its runs: it finds out itself what a run would refuse, and goes on."""


class Overdue(BaseException):
    """Code was not done in time. No `Exception`, so that a method's `except Exception` does not catch it."""


def contained(
    work: "Callable[[], Outcome]", *, key: str, failures: Path, seconds: float | None, budget: str
) -> "Outcome":
    """What `work` returns; a failed outcome where it calls `sys.exit`, or is not done after `seconds`.

    Args:
        work: makes a fit or a cell, and fails with an outcome for all that is an `Exception`.
        key: the fit's or cell's.
        failures: the file for a traceback.
        seconds: None: no limit.
        budget: whose limit it is, for the error.
    """
    from metatuner.harness.fitting import failure

    try:
        with deadline(seconds):
            return work()
    except Overdue as overdue:
        told = f"budget {budget!r}: not done after {seconds:g} s in all; raise budgets.{budget}.seconds in the preset"
        return failure(key, _because(told, overdue), failures)
    except SystemExit as leaving:
        told = f"it called sys.exit({leaving.code!r}); return a policy, or raise an error"
        return failure(key, _because(told, leaving), failures)


def _because(text: str, cause: BaseException) -> UserError:
    # A local variable for it in `contained` would be a cycle through the traceback, which keeps models in memory.
    error = UserError(text)
    error.__cause__ = cause
    return error


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise Overdue in the block once it has run for so many seconds of real time, and again while it goes on.

    It reaches Python code, and a library's as soon as that returns to Python. Signals arrive in the main thread alone:
    elsewhere, and where a system has none, nothing is limited.
    """
    main = threading.main_thread()
    if seconds is None or threading.current_thread() is not main or not hasattr(signal, "pthread_kill"):
        yield
        return
    done, due = threading.Event(), threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if due.is_set() and not done.is_set():
            due.clear()
            raise Overdue
        if callable(before):  # a scheduler's own warning
            before(number, frame)

    def remind() -> None:
        wait = seconds
        while not done.wait(wait):
            due.set()
            signal.pthread_kill(main.ident or 0, signal.SIGUSR1)
            wait = AGAIN

    before = signal.signal(signal.SIGUSR1, stop)
    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        while thread.is_alive():
            with suppress(Overdue):  # raised in between, it must not leave the thread behind
                done.set()
                thread.join()
        signal.signal(signal.SIGUSR1, before)


def overspent(budget: "Budget") -> str | None:
    """What a budget's meter counts beyond its limit: a method that caught `BudgetExceeded` and went on."""
    for name, limit in budget.limits.items():
        if budget.left(name) < 0:
            used = getattr(budget.used, name)
            return (
                f"budget {budget.name!r}: {used} {name} used of {limit}, and the method went on; stop before the limit"
            )
    return None


# ---- what is written -----------------------------------------------------------------------------------------------

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "shutil.rmtree": 0,
    "os.truncate": 0,
    "os.link": 1,
}
"""Which argument of an audit event is the path that it changes."""


def touched(event: str, arguments: tuple[Any, ...]) -> tuple[str, bool] | None:
    """The real path that an audit event opens or changes, and whether it changes it; None for all other events."""
    if event == "open":
        path, mode, flags = (*arguments, None, None, None)[:3]
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & WRITING)
    elif event in EVENTS and len(arguments) > EVENTS[event]:
        path, writes = arguments[EVENTS[event]], True
    else:
        return None
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None
    if (
        event in EVENTS
        and not os.path.isabs(path)
        and any(isinstance(each, int) and each > 2 for each in arguments[1:])
    ):
        return None  # relative to an open folder, as in `shutil.rmtree`, which tells of the whole itself
    return os.path.realpath(os.fsdecode(path)), writes


def below(path: str, folders: Sequence[Path]) -> bool:
    """Whether a path lies in one of the folders."""
    return any(Path(path).is_relative_to(folder) for folder in folders)


CACHES = (
    "HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE XDG_CACHE_HOME XDG_CONFIG_HOME TORCH_HOME TORCHINDUCTOR_CACHE_DIR "
    "TRITON_CACHE_DIR MPLCONFIGDIR DSPY_CACHEDIR PYTHONPYCACHEPREFIX"
).split()
"""Environment variables that name libraries' folders; by default these are hidden ones in the home folder."""


def open_places() -> list[Path]:
    """Folders in which any program may write: temporary ones, and those that environment variables name."""
    named = [os.environ[name] for name in CACHES if os.environ.get(name)]
    return [Path(place).resolve() for place in (tempfile.gettempdir(), "/dev", "/proc", *named)]


def is_a_librarys(path: str, home: Path) -> bool:
    """Whether a path lies in a hidden folder of the home folder, or is byte code."""
    place = Path(path)
    hidden = place.is_relative_to(home) and place != home and place.relative_to(home).parts[0].startswith(".")
    return hidden or "__pycache__" in place.parts or place.suffix == ".pyc"


_watching: list[tuple[Sequence[Path], Path, set[str]]] = []
_hooked = False


@contextmanager
def writes_outside(folders: Sequence[Path]) -> Iterator[set[str]]:
    """The paths that the block's Python code changes outside of `folders`, as far as audit events tell; those that are
    open to all do not count."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_note)  # never to be removed; it does nothing while no block is watched
        _hooked = True
    found: set[str] = set()
    # All is looked up before: the hook itself must not open anything.
    allowed = [*(folder.resolve() for folder in folders), *open_places()]
    _watching.append((allowed, Path.home().resolve(), found))
    try:
        yield found
    finally:
        _watching.pop()


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or (each := touched(event, arguments)) is None or not each[1]:
        return
    allowed, home, found = _watching[-1]
    if not below(each[0], allowed) and not is_a_librarys(each[0], home):
        found.add(each[0])
