"""Runs `metatuner` and writes down what it opens: `python -m metatuner.authoring.watched FILE words...`."""

import json
import os
import sys
from typing import Any

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
"""Which argument of an event is the path that it changes."""


def main() -> int:
    """Install the hook, then run the command line."""
    from metatuner.cli import main as command

    # One file descriptor, opened before and written without `open`, which would be an event itself.
    out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    seen: set[tuple[str, bool]] = set()

    def note(path: Any, writes: bool) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        place = os.path.realpath(os.fsdecode(path))
        if (place, writes) not in seen:
            seen.add((place, writes))
            os.write(out, (json.dumps({"path": place, "writes": writes}) + "\n").encode())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = (*arguments, None, None, None)[:3]
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & WRITING)
            note(path, writes)
        elif event in EVENTS and len(arguments) > EVENTS[event]:
            note(arguments[EVENTS[event]], True)

    sys.addaudithook(hook)
    return command(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
