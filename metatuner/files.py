"""Reading and writing files: even after a crash, a path holds the old file or the whole new one."""

import csv
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
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
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"no file {path}; {remedy}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; {remedy}") from None


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON with sorted keys."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


NUMBER = (int, float)
"""A shape: a finite number."""
Shape = Any
"""What a JSON value must be, as far as it is read.

A type or types; a list with the shape of each element; or a mapping with the shape of each key. A key that ends in "?"
may be missing, and the key "*" stands for every key.
"""


def _check(value: Any, shape: Shape, remedy: str, place: str, key: str = "") -> None:
    """UserError that names the place and the key unless a value has a shape."""
    where = f"{place}, key {key!r}" if key else place
    inner = f"{key}." if key else ""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise UserError(f"{where}: no JSON object; {remedy}")
        for name, each in ((name, shape["*"]) for name in value) if "*" in shape else shape.items():
            plain = name.removesuffix("?")
            if plain in value:
                _check(value[plain], each, remedy, place, f"{inner}{plain}")
            elif plain == name:
                raise UserError(f"{where}: key {plain!r} is missing; {remedy}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise UserError(f"{where}: no JSON list; {remedy}")
        for number, each in enumerate(value):
            _check(each, shape[0], remedy, place, f"{inner}{number}")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape not in (bool, object)):
        raise UserError(f"{where}: {_names(shape)} is needed, not {json.dumps(value)[:60]}; {remedy}")
    elif shape is NUMBER and not math.isfinite(value):
        raise UserError(f"{where}: a finite number is needed, not {value}; {remedy}")


def _names(shape: Any) -> str:
    words = {dict: "an object", list: "a list", str: "a text", bool: "true or false", NoneType: "null", int: "a number"}
    types = shape if isinstance(shape, tuple) else (shape,)
    return " or ".join(words[each] for each in types if each is not float)


def _parse(text: str, path: Path, remedy: str, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {line or error.lineno}: not valid JSON ({error.msg}); {remedy}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        place = f"{path}, line {line}" if line else f"{path}"
        raise UserError(f"{place}: not valid JSON ({str(error)[:100]}); {remedy}") from None


def read_json(path: Path, remedy: str, shape: Shape = object) -> Any:
    """A JSON file's value; UserError names the file, the line or key, and the remedy unless it has the shape."""
    value = _parse(read_text(path, remedy), path, remedy)
    _check(value, shape, remedy, str(path))
    return value


def write_lines(path: Path, records: Iterable[dict[str, Any]], *, sort_keys: bool = False) -> Path:
    """Write JSON Lines."""
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=sort_keys) + "\n" for record in records]
    return write_text(path, "".join(lines))


def read_lines(path: Path, remedy: str, shape: Shape = dict) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; UserError names the file, the line and the remedy unless each has the shape."""
    found = []
    for number, line in enumerate(read_text(path, remedy).split("\n"), 1):
        if line.strip():
            record = _parse(line, path, remedy, number)
            _check(record, shape, remedy, f"{path}, line {number}")
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


def read_csv(path: Path, columns: Iterable[str], remedy: str, numbers: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file by column.

    UserError if a column, or a value of a row, is missing, or a value in a column of `numbers` is not a finite number.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, remedy), newline=""))
    try:
        header, rows = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}); {remedy}") from None
    numbers = list(numbers)
    missing = [name for name in [*columns, *numbers] if name not in header]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; {remedy}")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, row {number}: {len(header)} columns expected; {remedy}")
        for name in numbers:
            if not _is_number(row[name]):
                raise UserError(f"{path}, row {number}: {name} {row[name]!r} is no finite number; {remedy}")
    return rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


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
