"""Limits on a method's code in a run: it may not hang, leave the process, spend more than its budget unseen, or write
outside its folder. The best that one process can do; no sandbox.

A fit sets limits itself (`run.limits`, `harness.budget`), whose errors a method can catch and go on; these here lie
around it, are no `Exception`, and are no part of what a fit's key depends on.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.errors import UserError
from metatuner.run.limits import Overdue, limit

if TYPE_CHECKING:
    from metatuner.harness.budget import Budget
    from metatuner.run.fitting import Outcome

GRACE = 60.0
"""Seconds beyond twice a fit's limit: for loading models and saving."""

CHECKING = "METATUNER_CHECKING"
"""Set by `check-method` for its runs: it finds out itself what a run would refuse, and goes on."""


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
    from metatuner.run.fitting import failure

    try:
        with limit(seconds, Overdue):
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


def overspent(budget: "Budget") -> str | None:
    """What a budget's meter counts beyond its limit: a method that caught `BudgetExceeded` and went on."""
    for name, most in budget.limits.items():
        if budget.left(name) < 0:
            used = getattr(budget.used, name)
            return (
                f"budget {budget.name!r}: {used} {name} used of {most}, and the method went on; stop before the limit"
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


class Watch:
    """An audit hook, which can never be removed: it does nothing while no block is watched."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Sequence[Path], Path, set[str]]] = []

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.blocks or (each := touched(event, arguments)) is None or not each[1]:
            return
        allowed, home, found = self.blocks[-1]
        if not below(each[0], allowed) and not is_a_librarys(each[0], home):
            found.add(each[0])


@cache
def _watch() -> Watch:
    """The hook of this process."""
    watch = Watch()
    sys.addaudithook(watch.note)
    return watch


@contextmanager
def writes_outside(folders: Sequence[Path]) -> Iterator[set[str]]:
    """The paths that the block's Python code changes outside of `folders`, as far as audit events say; those that are
    open to all do not count."""
    found: set[str] = set()
    # All is looked up before: the hook itself must not open anything.
    allowed = [*(folder.resolve() for folder in folders), *open_places()]
    blocks = _watch().blocks
    blocks.append((allowed, Path.home().resolve(), found))
    try:
        yield found
    finally:
        blocks.pop()
