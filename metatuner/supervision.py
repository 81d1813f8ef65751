"""A job's work in a child process: a step in which the child dies has failed, and the other steps go on.

    steps = supervised(died)   # the child goes on here; its parent waits, and raises Ended
    for key in keys:
        outcome = steps.run(key, work)
    steps.finish()

If a step is killed (as when memory runs out), crashes or calls `os._exit`, the parent notes the step as failed and
forks again. The new child takes the steps that are known and does the others. POSIX only; elsewhere nothing is
supervised.
"""

import atexit
import ctypes
import faulthandler
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from metatuner.errors import UserError

PATIENCE = 60.0
"""Seconds after a step's limit within which the child must have stopped it; then it is killed."""
LEAVING = 10.0
"""Seconds in which the child must end once its work is done: it may hang in a thread or at exit."""
PASSING_ON = 1.0
"""Seconds after which a stop signal is passed on, unless the child has ended: a terminal signals both."""
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK = 1.0
"""Seconds between two looks at the child's time, at most."""


class Steps:
    """The steps of one job, each with the name of what it makes."""

    def __init__(self, journal: BinaryIO | None = None, known: Mapping[str, dict[str, Any]] | None = None) -> None:
        self._journal = journal
        self._known = dict(known or {})

    def run(self, key: str, work: Callable[[], dict[str, Any]], seconds: float | None = None) -> dict[str, Any]:
        """What `work` returns (JSON values), or what is known of this step.

        A step in which an earlier child died has `status` "failed" and a `reason`. What `work` raises is raised.
        `seconds` is the limit that the step sets itself.
        """
        if key in self._known:
            return self._known[key]
        self._note(begun=key, seconds=seconds)
        try:
            found = work()
        except BaseException:
            self._note(left=key)
            raise
        self._note(ended=key, found=found)
        return found

    def finish(self) -> None:
        """Note that the job has written what it makes: however the process ends now, the job has succeeded."""
        self._note(done=True)

    def _note(self, **record: Any) -> None:
        if self._journal is not None:
            os.write(self._journal.fileno(), (json.dumps(record) + "\n").encode())


class _Journal:
    """What a child has noted."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.place = file, 0
        self.known: dict[str, dict[str, Any]] = {}
        self.working: str | None = None
        self.due: float | None = None
        self.done = False
        self.late = ""

    def overdue(self) -> bool:
        """Whether the child must be killed; if so, `late` says why."""
        if self.due is None or time.monotonic() < self.due:
            return False
        if not self.done:
            self.late = (
                f"not done {PATIENCE:g} s after its limit, and it went on after the error that ends it; the process "
                "was killed"
            )
        return True

    def read(self) -> None:
        """Read what was noted since."""
        found = os.pread(self.file.fileno(), os.fstat(self.file.fileno()).st_size - self.place, self.place)
        whole = found[: found.rfind(b"\n") + 1]
        self.place += len(whole)
        for record in map(json.loads, whole.splitlines()):
            self.working, self.due, self.late = record.get("begun"), None, ""
            if record.get("seconds") is not None:
                self.due = time.monotonic() + record["seconds"] + PATIENCE
            if "ended" in record:
                self.known[record["ended"]] = record["found"]
            if "done" in record:
                self.done, self.due = True, time.monotonic() + LEAVING


class Ended(Exception):
    """In the parent: the child has ended, with this exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


_child = False


def supervised(died: Callable[[str, str], None]) -> Steps:
    """Go on in a child process; the parent waits for it, and forks again after a step in which it died.

    Nothing is supervised where a fork cannot compute: torch has a GPU or threads already.

    Args:
        died: called in the parent with the key and the reason of such a step, to clean up after it. The reason is
            empty if the job was stopped by a signal.

    Raises:
        Ended: in the parent.
        UserError: in the parent, if the child died in no step.
    """
    global _child
    torch = sys.modules.get("torch")
    if not hasattr(os, "fork") or (torch is not None and (torch.cuda.is_initialized() or torch.get_num_threads() > 1)):
        return Steps()
    journal = _Journal(tempfile.TemporaryFile(mode="a+b", buffering=0))  # noqa: SIM115
    while True:
        sys.stdout.flush()
        sys.stderr.flush()
        childs, parents = os.pipe(), os.pipe()  # the write end of each closes with its process
        pid = os.fork()
        if pid == 0:
            _child = True
            forget_exit_functions()
            _follow(childs, parents)
            return Steps(journal.file, journal.known)
        status, stopped = _watch(pid, childs, parents, journal)
        key, journal.working = journal.working, None
        if stopped is not None:
            if key is not None:
                died(key, "")
            signal.signal(stopped, signal.SIG_DFL)
            os.kill(os.getpid(), stopped)
        if journal.done:
            raise Ended(0)
        if key is None:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise Ended(os.WEXITSTATUS(status))
            raise UserError(f"{_how(status)}, before or after its fits and evaluations; run it again")
        reason = journal.late if journal.late else f"{_how(status)} while it was at work on this"
        journal.known[key] = {"status": "failed", "reason": reason}
        died(key, reason)


def forget_exit_functions() -> None:
    """In a fork: do not clean up what belongs to the parent, such as its temporary folders."""
    atexit._clear()
    finalizers: Any = weakref.finalize
    finalizers._registry.clear()
    finalizers._registered_with_atexit = False


def end_with_parent(parent: int, status: int) -> None:
    """In a fork, on Linux: be killed when the parent ends, however it ends; elsewhere do nothing.

    `parent` is its process id; if it has ended already, the fork ends with `status`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(status)


def is_child() -> bool:
    """Whether this process is a supervised one."""
    return _child


def leave(status: int) -> NoReturn:
    """End a supervised process, whatever threads it has left."""
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _how(status: int) -> str:
    """How a process ended, by its wait status."""
    if not os.WIFSIGNALED(status):
        return f"the process ended with status {os.WEXITSTATUS(status)}, as by os._exit"
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL:
        return "the process was killed (signal 9), as the system does when memory runs out,"
    return f"the process was ended by signal {number} ({signal.Signals(number).name})"


def _follow(childs: tuple[int, int], parents: tuple[int, int]) -> None:
    """In the child: end when the parent does, and show where a crash happens."""
    os.close(childs[0])
    os.close(parents[1])

    def wait() -> None:
        os.read(parents[0], 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
    with suppress(AttributeError, ValueError, OSError):  # stderr may be replaced
        faulthandler.enable(all_threads=False)


def _watch(pid: int, childs: tuple[int, int], parents: tuple[int, int], journal: _Journal) -> tuple[int, int | None]:
    """In the parent: wait for the child. Returns its wait status, and the stop signal that the parent got, if any."""
    os.close(childs[1])
    os.close(parents[0])
    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda got, frame: stopped.append(got))
        for number in _STOPPING
        if signal.getsignal(number) != signal.SIG_IGN  # `nohup` ignores SIGHUP
    }
    passing = [PASSING_ON, LEAVING]
    since = time.monotonic()
    try:
        while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if select.select([childs[0]], [], [], 0.05 if stopped else _LOOK)[0]:
                time.sleep(0.01)  # it has ended, or is about to
            journal.read()
            if journal.overdue():
                os.kill(pid, signal.SIGKILL)
            if not stopped:
                since = time.monotonic()
            elif passing and time.monotonic() - since > passing[0]:
                os.kill(pid, stopped[0] if len(passing) == 2 else signal.SIGKILL)
                del passing[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(childs[0])
        os.close(parents[1])
    journal.read()
    return found[1], stopped[0] if stopped else None
