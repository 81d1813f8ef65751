r"""The process in which `equivalence` compares expressions. It runs as a file; its argument is the limits as JSON.

It reads a line `["answer", "gold"]` and writes `true` or `false`. It imports neither torch nor the project. It uses
only the LaTeX grammar of math-verify, because the plain-expression parser passes text to Python's `eval`.
"""

import json
import os
import resource
import signal
import sys
from functools import lru_cache
from itertools import product

READY = "ready"
_OUT_OF_MEMORY = 3
_HEADROOM = 16 * 1024**2
STOPPED_BY = {-signal.SIGPROF: "time", -signal.SIGALRM: "time", -signal.SIGABRT: "memory", _OUT_OF_MEMORY: "memory"}
"""Why the process ended, by its exit status (big-integer libraries abort when they run out of memory)."""


def main() -> None:
    """Answer comparisons until standard input closes; a comparison that exceeds the limits ends the process."""
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy.polys.polyerrors import BasePolynomialError  # type: ignore[import-untyped]

    # SymPy raises these if it cannot compare two expressions. They then count as not equivalent.
    undecided = (ArithmeticError, AttributeError, BasePolynomialError, LookupError, RuntimeError, TypeError, ValueError)
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    @lru_cache(maxsize=4096)
    def readings(text: str) -> list:
        return parse(rf"\boxed{{{text}}}", config, parsing_timeout=None)

    def equal(answer: str, gold: str) -> bool:
        for left, right in product(readings(gold), readings(answer)):
            try:
                if verify(left, right, timeout_seconds=None, raise_on_error=True):
                    return True
            except undecided:
                continue
        return False

    limits = json.loads(sys.argv[1])
    # Only replies go to the real standard output. What a library prints is discarded.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def reply(line: str) -> None:
        replies.write(line + "\n")
        replies.flush()

    reply(READY)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        # These signals have no handler. They end the process whatever it is doing, even if its parent is gone.
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
        signal.setitimer(signal.ITIMER_REAL, limits["wall_seconds"])
        try:
            verdict = equal(answer, gold)
            bytearray(_HEADROOM)  # math-verify hides a MemoryError, so test whether memory is left
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(json.dumps(verdict))


if __name__ == "__main__":
    main()
