"""Limits on a method's code: it must not hang, exit the process, exceed its budget unseen, or write outside its folder.

This is the best that one process can do; it is no sandbox. A fit also sets limits itself (`run.limits`,
`harness.budget`), but a method can catch their errors and continue. The limits here surround the fit and are no
`Exception`. A fit's key does not depend on them.
"""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from metatuner.errors import UserError
from metatuner.harness.budget import amount
from metatuner.run.limits import AGAIN, Overdue, limit

if TYPE_CHECKING:
    from metatuner.harness.budget import Budget
    from metatuner.run.fitting import Outcome

GRACE = 60.0
"""Seconds allowed in addition to twice a fit's limit, for loading models and saving."""

CHECKING = "METATUNER_CHECKING"
"""Environment variable that `check-method` sets for its runs. It finds itself what a run would refuse, and goes on."""


def contained(
    work: "Callable[[], Outcome]", *, key: str, failures: Path, seconds: float | None, budget: str
) -> "Outcome":
    """What `work` returns; a failed outcome if it calls `sys.exit`, or is not done after `seconds`.

    A Ctrl-C still ends the process, but a KeyboardInterrupt that the method raises does not. The process is in the same
    folder afterwards.

    Args:
        work: makes a fit or a cell, and turns every `Exception` into a failed outcome.
        key: the key of the fit or cell.
        failures: the file for a traceback.
        seconds: the limit; None for no limit.
        budget: the name of the budget that sets the limit, for the error.
    """
    from metatuner.run.fitting import failure

    try:
        with _same_folder(), _interrupts() as interrupted, limit(seconds, Overdue, again=AGAIN):
            return work()
    except Overdue as overdue:
        told = f"budget {budget!r}: not done after {seconds:g} s in all; raise budgets.{budget}.seconds in the preset"
        return failure(key, _because(told, overdue), failures)
    except SystemExit as leaving:
        told = f"it called sys.exit({leaving.code!r}); return a policy, or raise an error"
        return failure(key, _because(told, leaving), failures)
    except BaseException as error:
        if interrupted or isinstance(error, Exception):
            raise
        told = f"it raised {type(error).__name__}, which is no Exception; raise an Exception"
        return failure(key, _because(told, error), failures)


@contextmanager
def _same_folder() -> Iterator[None]:
    """Return to the current folder after the block: the paths of a run are relative to it."""
    here = os.open(".", os.O_RDONLY)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect the SIGINTs that reach the block; a Ctrl-C that the block's code caught is raised after it."""
    found: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield found
        return

    def note(number: int, frame: FrameType | None) -> Any:
        found.append(number)
        return before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)
    if found:
        raise KeyboardInterrupt


def _because(text: str, cause: BaseException) -> UserError:
    # A local variable in `contained` would form a cycle through the traceback, which would keep models in memory.
    error = UserError(text)
    error.__cause__ = cause
    return error


def overspent(budget: "Budget") -> str | None:
    """An error text if a method caught `BudgetExceeded` and continued beyond a limit; else None."""
    for name, most in budget.limits.items():
        if budget.left(name) < 0:
            return (
                f"budget {budget.name!r}: {amount(budget.spent(name))} {name} used of {amount(most)}, and the method "
                "went on; stop before the limit"
            )
    return None


# ---- what is written -----------------------------------------------------------------------------------------------

PATHS = (str, bytes, os.PathLike)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {
    "os.rename": (0, 1),  # a file that is moved in is lost elsewhere
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "shutil.rmtree": (0,),
    "os.truncate": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
}
"""Indices of the arguments that hold a changed path, by audit event."""
ITSELF = ("os.rename", "os.remove", "os.symlink", "os.link")
"""Events that change a link, not what it points to."""


def touched(event: str, arguments: tuple[Any, ...]) -> list[tuple[str, bool]]:
    """The real paths that an audit event opens or changes, each with whether it is changed; none for other events."""
    if event == "open":
        path, mode, flags = (*arguments, None, None, None)[:3]
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & WRITING)
        return [(os.path.realpath(os.fsdecode(path)), writes)] if isinstance(path, PATHS) else []
    found = []
    for index in EVENTS.get(event, ()):
        path = arguments[index] if index < len(arguments) else None
        if not isinstance(path, PATHS):
            continue
        if not os.path.isabs(path) and any(isinstance(each, int) and each > 2 for each in _folders(event, arguments)):
            continue  # relative to an open folder, as in `shutil.rmtree`, which has its own event for the whole folder
        place = os.fsdecode(path)
        if event in ITSELF:
            found.append((os.path.join(os.path.realpath(os.path.dirname(place) or "."), os.path.basename(place)), True))
        else:
            found.append((os.path.realpath(place), True))
    return found


_FIRST_FOLDER = {"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.mkdir": 2, "os.chmod": 2, "os.chown": 3}
_FIRST_FOLDER |= {"os.utime": 3, "os.truncate": 2}


def _folders(event: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an event that may be open folders; a mode, an owner or a time is none."""
    first = _FIRST_FOLDER.get(event, 1)
    return arguments[first:]


def below(path: str, folders: Sequence[Path]) -> bool:
    """Whether a path lies in one of the folders."""
    return any(Path(path).is_relative_to(folder) for folder in folders)


CACHES = (
    "HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE XDG_CACHE_HOME XDG_CONFIG_HOME TORCH_HOME TORCHINDUCTOR_CACHE_DIR "
    "TRITON_CACHE_DIR MPLCONFIGDIR DSPY_CACHEDIR PYTHONPYCACHEPREFIX"
).split()
"""Environment variables that name libraries' folders. By default these are hidden folders in the home folder."""


def open_places() -> list[Path]:
    """Folders in which any program may write: temporary folders, and folders that environment variables name."""
    named = [os.environ[name] for name in CACHES if os.environ.get(name)]
    return [Path(place).resolve() for place in (tempfile.gettempdir(), "/dev", "/proc", *named)]


def is_a_librarys(path: str, home: Path) -> bool:
    """Whether a path lies in a hidden folder of the home folder, or is byte code."""
    place = Path(path)
    hidden = place.is_relative_to(home) and place != home and place.relative_to(home).parts[0].startswith(".")
    return hidden or "__pycache__" in place.parts or place.suffix == ".pyc"


class Watch:
    """An audit hook. It can never be removed, so it does nothing while no block is watched."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Sequence[Path], Path | None, Path, set[str]]] = []

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.blocks:
            return
        for path, writes in touched(event, arguments):
            allowed, own, home, found = self.blocks[-1]
            if writes and not below(path, allowed) and not is_own(path, own) and not is_a_librarys(path, home):
                found.add(path)


def is_own(path: str, folder: Path | None) -> bool:
    """Whether a path lies in a folder that appears complete, or in the temporary one that becomes it."""
    if folder is None or not Path(path).is_relative_to(folder.parent):
        return False
    first = Path(path).relative_to(folder.parent).parts[:1]
    return first == () or first[0] == folder.name or first[0].startswith(f".{folder.name}.")


@cache
def _watch() -> Watch:
    """The hook of this process."""
    watch = Watch()
    sys.addaudithook(watch.note)
    return watch


@contextmanager
def writes_outside(folders: Sequence[Path], own: Path | None = None) -> Iterator[set[str]]:
    """Collect the paths that the block's Python code changes outside of `folders`, as far as audit events show.

    Folders in which any program may write do not count, nor does `own`, the folder of a fit or cell that is being made.
    """
    found: set[str] = set()
    # Look up everything first: the hook itself must not open anything.
    allowed = [*(folder.resolve() for folder in folders), *open_places()]
    blocks = _watch().blocks
    blocks.append((allowed, None if own is None else own.resolve(), Path.home().resolve(), found))
    try:
        yield found
    finally:
        blocks.pop()
