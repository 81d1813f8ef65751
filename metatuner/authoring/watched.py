"""Runs `metatuner` and records what it opens: `python -m metatuner.authoring.watched FILE words...`."""

import json
import os
import sys
from typing import Any

from metatuner.run.guard import touched


def main() -> int:
    """Install the hook, then run the command line."""
    from metatuner.cli import main as command

    # Use one file descriptor, opened before the hook is installed. Calling `open` later would itself be an event.
    out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    seen: set[tuple[str, bool]] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        for each in touched(event, arguments):
            if each not in seen:
                seen.add(each)
                os.write(out, (json.dumps({"path": each[0], "writes": each[1]}) + "\n").encode())

    sys.addaudithook(hook)
    return command(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
