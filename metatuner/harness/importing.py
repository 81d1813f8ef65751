"""Files of other people's methods and benchmarks: import them with the process intact.

This guards against mistakes. It is no sandbox: code that wants to do harm can.
"""

import ast
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from metatuner.errors import UserError

IMPORT_SECONDS = 120.0
"""Longest time that a file's import may take. Importing torch takes seconds."""


class BrokenFile(UserError):
    """A user's file does not import (the author's error is the cause), or does not define what it should."""


class _TooLong(BaseException):
    """Raised inside an import that does not end."""


def import_file(file: Path, key: str) -> ModuleType:
    """Import a file as a module of its own.

    Args:
        file: the file.
        key: the config key that names it ("extra_methods"). Files of different keys may have one name.

    Raises:
        BrokenFile: it is no UTF-8 text, does not import, ends the process, or does not come to an end.
    """
    name = f"{key}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {file} is no Python file; name one that ends in .py")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BrokenFile(f"{file}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise BrokenFile(f"{file}: {error.strerror}; make it a file that can be read") from None
    if text.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"):
        raise BrokenFile(f"{file}: begins with a byte order mark; save it as UTF-8 without one")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _guarded(file):
            spec.loader.exec_module(module)
    except _TooLong:
        raise BrokenFile(
            f"{file} does not import: not done after {IMPORT_SECONDS:g} s; move its work into a function"
        ) from None
    except SystemExit as error:
        raise BrokenFile(f"{file} does not import: SystemExit: it ends the process; mend the file") from error
    except Exception as error:  # the author's file may raise anything; what needs it says so
        raise BrokenFile(f"{file} does not import: {told(error)}; mend the file") from error
    return module


def told(error: BaseException) -> str:
    """An error of other people's code on one line: its type, and its text if it has one."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"


@contextmanager
def _guarded(file: Path) -> Iterator[None]:
    """Turn the end of the process into SystemExit, and raise `_TooLong` in a block that does not end."""
    alarms = 0

    def stop(*_: object) -> NoReturn:
        nonlocal alarms
        alarms += 1
        if alarms > 3:  # it catches everything
            print(
                f"metatuner: {file} does not import: it cannot be stopped; mend the file", file=sys.stderr, flush=True
            )
            end(2)
        raise _TooLong

    def leave(status: int) -> NoReturn:
        raise SystemExit(status)

    end = os._exit
    os._exit = leave
    timed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if timed:
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS, 1.0)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        os._exit = end


def siblings(file: Path) -> tuple[Path, ...]:
    """The Python files in the same folder that a user's file imports by name."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ()  # importing it will say why
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    found = {file.with_name(f"{name.split('.')[0]}.py") for name in names}
    return tuple(sorted(each for each in found if each.is_file() and each != file))
