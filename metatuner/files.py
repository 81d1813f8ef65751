"""Reading and writing files: even after a crash, a path holds the old file or the whole new one."""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metatuner.errors import UserError


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file completely or not at all; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    r"""Write a UTF-8 text file, with line ends as given, completely or not at all.

    Half of a surrogate pair, which UTF-8 cannot hold, becomes its escape (`\ud800`). JSON readers turn it back.
    """
    return write_bytes(path, text.encode(errors="backslashreplace"))


def read_text(path: Path, remedy: str) -> str:
    """A UTF-8 text file; UserError names the file and the remedy."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no file {path}; {remedy}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; {remedy}") from None


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON with sorted keys."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _parse(text: str, path: Path, remedy: str, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {line or error.lineno}: not valid JSON ({error.msg}); {remedy}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        place = f"{path}, line {line}" if line else f"{path}"
        raise UserError(f"{place}: not valid JSON ({str(error)[:100]}); {remedy}") from None


def read_json(path: Path, remedy: str) -> Any:
    """A JSON file's value; UserError names the file (and line) and the remedy."""
    return _parse(read_text(path, remedy), path, remedy)


def write_lines(path: Path, records: Iterable[dict[str, Any]], *, sort_keys: bool = False) -> Path:
    """Write JSON Lines."""
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=sort_keys) + "\n" for record in records]
    return write_text(path, "".join(lines))


def read_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; UserError names the file, the line and the remedy."""
    found = []
    for number, line in enumerate(read_text(path, remedy).split("\n"), 1):
        if line.strip():
            record = _parse(line, path, remedy, number)
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: no JSON object; {remedy}")
            found.append(record)
    return found


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows, the header first, as CSV with line feeds."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    """Write rows, the header first, as CSV with line feeds."""
    return write_text(path, csv_text(rows))


def read_csv(path: Path, columns: Iterable[str], remedy: str) -> list[dict[str, str]]:
    """The rows of a CSV file by column; UserError if a column, or a value of a row, is missing."""
    reader = csv.DictReader(io.StringIO(read_text(path, remedy), newline=""))
    try:
        header, rows = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}); {remedy}") from None
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; {remedy}")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: {len(header)} columns expected; {remedy}")
    return rows


@contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """A temporary sibling folder that is renamed to `final` if the block succeeds, and removed if it fails.

    If another process has made `final` in the meantime, that folder stays: equal keys mean equal contents.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        try:
            os.replace(temporary, final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
