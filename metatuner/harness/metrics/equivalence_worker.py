r"""The process in which `equivalence` compares expressions: run as a file, with its limits as JSON for an argument.

Reads a line `["answer", "gold"]`, writes a line `{"equal": ...}`. It imports neither torch nor the project. Only the
LaTeX grammar is used: math-verify's plain-expression parser hands text to Python's `eval`.
"""

import json
import os
import resource
import signal
import sys

READY = "ready"
STOPPED_BY = {-signal.SIGPROF: "time", -signal.SIGALRM: "time"}


def main() -> None:
    """Answer comparisons until standard input closes."""
    from math_verify import LatexExtractionConfig, parse, verify

    limits = json.loads(sys.argv[1])
    # Replies get the real standard output to themselves; whatever a library prints goes nowhere.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def reply(line: str) -> None:
        replies.write(line + "\n")
        replies.flush()

    def expression(text: str) -> list:
        return parse(rf"\boxed{{{text}}}", config, parsing_timeout=None)

    reply(READY)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        # With their default action these signals end the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
        signal.setitimer(signal.ITIMER_REAL, limits["wall_seconds"])
        equal = verify(expression(gold), expression(answer), timeout_seconds=None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(json.dumps({"equal": bool(equal)}))


if __name__ == "__main__":
    main()
