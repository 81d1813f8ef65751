"""The process in which `equivalence` compares answers. Its argument is the limits as JSON.

It reads a line `["answer", "gold"]` and writes `true` or `false`, or why the comparison was stopped. It imports SymPy
once, then forks: the fork compares, under limits that the kernel enforces. If a comparison ends the fork, the next fork
is ready within milliseconds. Nothing in an answer is executed: only the LaTeX grammar of latex2sympy2 reads it.
"""

import json
import mmap
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
    comparing = mmap.mmap(-1, 1)  # shared with the fork: whether it has read a request and not replied yet
    _reply(replies, READY)
    while True:
        fork = os.fork()
        if not fork:
            _compare_all(limits, replies, comparing)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        if status == 0:
            return
        if comparing[0]:
            comparing[0] = 0
            _reply(replies, json.dumps(_STOPPED_BY.get(status, "crash")))


def _compare_all(limits: dict[str, float], replies: IO[str], comparing: mmap.mmap) -> None:
    from metatuner.harness.metrics.mathematics import equal_answers

    memory = int(limits["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        comparing[0] = 1
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
        _reply(replies, json.dumps(verdict))
        comparing[0] = 0


def _reply(replies: IO[str], line: str) -> None:
    replies.write(line + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
