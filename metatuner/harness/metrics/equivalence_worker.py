"""The process in which `equivalence` compares answers. Its argument is the limits as JSON.

It reads a line `["answer", "gold"]` and writes `true` or `false`, or why the comparison was stopped. It imports SymPy
once, then forks: the fork compares, under limits that the kernel enforces. If a comparison ends the fork, the next fork
is ready within milliseconds. Nothing in an answer is executed: only the LaTeX grammar of latex2sympy2 reads it.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from typing import IO

READY = "ready"
_OUT_OF_MEMORY = 3
_HEADROOM = 16 * 1024**2
_STOPPED_BY = {-signal.SIGPROF: "time", -signal.SIGALRM: "time", -signal.SIGABRT: "memory", _OUT_OF_MEMORY: "memory"}
"""Why a fork ended, by its exit status (big-integer libraries abort when they run out of memory)."""


def main() -> None:
    """Answer comparisons until standard input closes."""
    from metatuner.harness.metrics.mathematics import equal_answers

    equal_answers("x+1", "1+x")  # builds the grammar's tables before the first fork
    limits = json.loads(sys.argv[1])
    # Only replies go to the real standard output. What a library prints is discarded.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    _write(replies, READY)
    fork: _Fork | None = None
    for line in sys.stdin:
        fork = fork or _Fork(limits, replies)
        reply = fork.ask(line)
        if reply is None:
            reply, fork = json.dumps(_STOPPED_BY.get(fork.end(), "crash")), None
        _write(replies, reply.strip())


class _Fork:
    """A copy of this process that compares one request after the other, until a limit ends it."""

    def __init__(self, limits: dict[str, float], replies: IO[str]) -> None:
        (requests_out, requests_in), (answers_out, answers_in) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(requests_in)
            os.close(answers_out)
            os.close(replies.fileno())
            sys.stdin.close()
            _compare_all(
                limits, os.fdopen(requests_out, encoding="utf-8"), os.fdopen(answers_in, "w", encoding="utf-8")
            )
            os._exit(0)
        os.close(requests_out)
        os.close(answers_in)
        self.requests = os.fdopen(requests_in, "w", encoding="utf-8")
        self.answers = os.fdopen(answers_out, encoding="utf-8")

    def ask(self, line: str) -> str | None:
        """The reply to a request; None if the fork ended instead."""
        try:
            self.requests.write(line)
            self.requests.flush()
        except BrokenPipeError:
            return None
        return self.answers.readline() or None

    def end(self) -> int:
        """The exit status of a fork that ended."""
        self.answers.close()
        with contextlib.suppress(BrokenPipeError):
            self.requests.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _compare_all(limits: dict[str, float], requests: IO[str], replies: IO[str]) -> None:
    from metatuner.harness.metrics.mathematics import equal_answers

    memory = int(limits["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in requests:
        # These signals have no handler. They end the process whatever it is doing, even if its parent is gone.
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
        signal.setitimer(signal.ITIMER_REAL, limits["wall_seconds"])
        try:
            verdict = equal_answers(*json.loads(line))
            bytearray(_HEADROOM)  # a library may hide a MemoryError, so test whether memory is left
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, json.dumps(verdict))


def _write(file: IO[str], line: str) -> None:
    file.write(line + "\n")
    file.flush()


if __name__ == "__main__":
    main()
