"""How often a job had to run again although its inputs were the same; `Dag.retry` says what for."""

from pathlib import Path

from metatuner.files import write_text


def read_attempts(path: Path) -> int:
    """The stored number; 0 if there is none or the file is broken."""
    try:
        return max(0, int(path.read_bytes()[:9]))
    except (OSError, ValueError):
        return 0


def write_attempts(path: Path, attempt: int, failed: bool = False) -> None:
    """Store the number of this attempt; after a failure the next one, so that the next run tries again."""
    before = read_attempts(path)
    count = max(before, attempt) + failed
    if count != before:
        write_text(path, str(count))
