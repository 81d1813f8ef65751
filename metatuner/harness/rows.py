"""Rows: the common form of all benchmarks, real or synthetic, for methods and evaluation."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from metatuner.errors import UserError


@dataclass(frozen=True)
class Row:
    """One question of a benchmark with its reference answer."""

    id: str
    """Unique within the benchmark."""
    benchmark: str
    query: str
    """The query (x), rendered by the benchmark."""
    gold: tuple[str, ...]
    """Reference answers in the form the metric compares; the best match counts."""
    target: str
    """The completion to train on: the rationale if the data has one, then the answer in its extractable form."""
    kind: str
    """Level or type, for breakdowns."""
    group: str
    """Rows of one group are never in two splits."""

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return {**asdict(self), "gold": list(self.gold)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Row":
        """The row that `to_json` gave; `UserError` if a field is missing or has the wrong type."""
        for field in fields(cls):
            value = record.get(field.name)
            texts = value if field.name == "gold" and isinstance(value, list) and value else [value]
            if not all(isinstance(text, str) for text in texts):
                raise UserError(f"field {field.name!r} is missing or of the wrong type; write the splits again")
        return cls(**{field.name: record[field.name] for field in fields(cls)} | {"gold": tuple(record["gold"])})


def normalise_text(text: str) -> str:
    """Lower case, with white space collapsed. Two queries that are then equal are the same question."""
    return " ".join(text.lower().split())


def numbered_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The (line number, object) pairs of a JSON Lines file.

    Blank lines are skipped. `UserError` names file and line if bytes are not UTF-8, the JSON is broken, a value is not
    an object, or an `id` is missing or repeated. It names the file if the file is absent or has no row.
    """
    seen: dict[str, int] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give the path of a readable JSON Lines file") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        value = _decode(line, place)
        name = value.get("id")
        if not isinstance(name, str) or not name:
            raise UserError(f"{place}: field 'id' must be text that is not empty, is {name!r}; give each row an id")
        if name in seen:
            raise UserError(f"{place}: id {name!r} is already used on line {seen[name]}; make ids unique")
        seen[name] = number
        yield number, value
    if not seen:
        raise UserError(f"{path}: no rows; write one JSON object a line")


def _decode(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: broken JSON, column {error.colno}: {error.msg}; write one object a line") from None
    except (RecursionError, ValueError):
        raise UserError(f"{place}: JSON nested too deeply or a number too long to read; simplify the row") from None
    if "\\ud" in line.decode("utf-8-sig").lower():  # escapes that may be half of a character
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{place}: an escape \\ud800 to \\udfff stands alone; it is half of a character") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: a JSON {type(value).__name__}, not an object; write one object a line")
    return value


def read_rows(path: Path) -> list[Row]:
    """The rows of a split file, in file order; `UserError` as in `numbered_objects`, or if a field is invalid."""
    rows = []
    for number, record in numbered_objects(path):
        try:
            rows.append(Row.from_json(record))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
    return rows


def rows_to_text(rows: Iterable[Row]) -> str:
    """Rows as JSON Lines; the same rows give the same bytes."""
    return "".join(json.dumps(row.to_json(), ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
