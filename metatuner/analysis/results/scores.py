"""scores.csv: one line per cell and metric of each experiment; all later analysis starts from it."""

import csv
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from metatuner.analysis.escaping import from_csv, inert
from metatuner.config import DEFAULT_VARIANT, Config, Layout
from metatuner.errors import UserError
from metatuner.files import NUMBER, read_csv, read_json, read_lines, write_csv, write_text
from metatuner.hashing import canonical, hash_value

STATUSES = ("ok", "skipped", "failed", "diverged")
"""diverged: the fit's losses say that training broke down, so its score counts as none (`results/divergence.py`)."""
RERUN = "run `snakemake --cores all` again, with this run's preset (`--config preset=NAME`)"
"""What to do if a file of a run is missing or broken."""


@dataclass(frozen=True)
class Score:
    """One line of scores.csv."""

    experiment: str
    method: str
    variant: str
    benchmark: str
    trained_on: str
    """The train benchmark, or several joined by "+"."""
    generator: str
    """The generator's name in the config; "" for a method that uses none."""
    seed: int
    metric: str
    score: float | None
    """0 to 100; None (an empty field in the file) unless the status is ok."""
    n: int
    """Test rows scored: 0 unless the status is ok."""
    status: str
    reason: str
    """Why a cell was skipped, failed or diverged."""
    cell: str
    """The cell's key: its folder's name below cells/."""


COLUMNS = tuple(field.name for field in fields(Score))
CELL_KEY = re.compile("[0-9a-f]{16}")
IDENTITY = ("experiment", "method", "variant", "benchmark", "trained_on", "generator", "seed", "metric")


_METRICS = {"metrics": {"*": NUMBER}, "primary": str, "n": int, "leaks?": (int, NoneType)}


def cell_folder(root: Path, cell: str) -> Path:
    """The folder of a cell in a results folder."""
    return root / "cells" / cell


def read_metrics(root: Path, cell: str) -> dict[str, Any]:
    """A cell's metrics.json: `metrics` (means in 0..1), `primary`, `n`, `leaks` (missing in older cells)."""
    path = cell_folder(root, cell) / "metrics.json"
    there = path.parent.is_dir()
    remedy = f"remove the cell's folder and {RERUN}" if there else f"restore cells/ beside scores.csv, or {RERUN}"
    found = dict(read_json(path, remedy, _METRICS))
    if found["primary"] not in found["metrics"]:
        raise UserError(f"{path}: no metric {found['primary']!r}, the primary one; {remedy}")
    return found


@dataclass(frozen=True)
class QueryScore:
    """A cell's result on one test row."""

    score: float
    """The primary metric, 0..1."""
    group: str
    """Rows of one group are not independent (they share a context, for example); the row's id if no group is named."""
    kind: str = ""
    """Kind of query (level, type), for breakdowns."""


QUERY_SCORES = "query_scores.json"
"""File with the scores of all cells' test rows, without texts, for results folders that keep no cells."""


def write_query_scores(cells: Iterable[str], root: Path) -> Path:
    """Collect the scores of a results folder's cells, by test row, into `<root>/query_scores.json`.

    `rows` has the ids, groups and kinds of each set of test rows, by a hash of them. `cells` has, by cell key, the hash
    of the cell's rows and the scores in the order of the rows. If all scores are 0 or 1, they form one string. Cells
    without a result are left out.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    found: dict[str, dict[str, Any]] = {}
    for cell in dict.fromkeys(cells):
        if not _predictions(root, cell).is_file():
            continue
        answers = read_query_scores(root, cell)
        columns = {
            "ids": list(answers),
            "groups": [answer.group for answer in answers.values()],
            "kinds": [answer.kind for answer in answers.values()],
        }
        key = hash_value(columns)
        rows[key] = columns
        scores = [answer.score for answer in answers.values()]
        binary = all(score in (0.0, 1.0) for score in scores)
        found[cell] = {"rows": key, "scores": "".join(f"{score:.0f}" for score in scores) if binary else scores}
    return write_text(root / QUERY_SCORES, f'{{"rows": {_by_lines(rows)},\n"cells": {_by_lines(found)}}}\n')


def _by_lines(values: Mapping[str, Any]) -> str:
    """A JSON object with one line per key."""
    lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _predictions(root: Path, cell: str) -> Path:
    return cell_folder(root, cell) / "predictions.jsonl"


def has_query_scores(root: Path, cell: str) -> bool:
    """Whether a results folder has a cell's score for each test row."""
    return _predictions(root, cell).is_file() or cell in _collected(root).get("cells", {})


def _collected(root: Path) -> dict[str, Any]:
    """The content of query_scores.json; empty if there is no such file."""
    path = root / QUERY_SCORES
    return _read_collected(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=2)
def _read_collected(path: Path, changed: int) -> dict[str, Any]:
    remedy = "run `metatuner scores` again, or restore it"
    return dict(read_json(path, remedy, {"rows": dict, "cells": dict}))


def _read_from_collected(root: Path, cell: str) -> dict[str, QueryScore] | None:
    collected = _collected(root)
    try:
        own = collected.get("cells", {}).get(cell)
        if own is None:
            return None
        rows, scores = collected["rows"][own["rows"]], [float(score) for score in own["scores"]]
        if not all(0 <= score <= 1 for score in scores):
            raise ValueError("a score is not in 0..1")
        read = zip(rows["ids"], scores, rows["groups"], rows["kinds"], strict=True)
        return {name: QueryScore(score, group, kind) for name, score, group, kind in read}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{root / QUERY_SCORES}, cell {cell}: no score of each row ({error!r}); run `metatuner scores` again"
        ) from None


def read_query_scores(root: Path, cell: str) -> dict[str, QueryScore]:
    """A cell's score for each test row, by row id: from its predictions, or else from query_scores.json."""
    path = _predictions(root, cell)
    remedy = "remove the cell's folder and run the evaluation again"
    if not path.is_file():
        collected = _read_from_collected(root, cell)
        if collected is None:
            raise UserError(f"no file {path}; run the evaluation again, or restore the cells beside scores.csv")
        return collected
    scores: dict[str, QueryScore] = {}
    for number, row in enumerate(read_lines(path, remedy, {"id": object, "score": NUMBER}), 1):
        name, score = str(row["id"]), float(row["score"])
        if name in scores:
            raise UserError(f"{path}, line {number}: duplicate id {name!r}; {remedy}")
        if not 0 <= score <= 1:
            raise UserError(f"{path}, line {number}: score {score} is not in 0..1; {remedy}")
        scores[name] = QueryScore(score, str(row.get("group", name)), str(row.get("kind", "")))
    if not scores:
        raise UserError(f"{path}: no line; {remedy}")
    return scores


def write_scores(rows: Iterable[Mapping[str, Any]], outcomes: Mapping[str, tuple[str, str]], root: Path) -> Path:
    """Collect the cells of a plan into `<root>/scores.csv`.

    A skipped, failed or diverged cell has one line per metric that other cells of its benchmark report, or one line
    without a metric if none does. Its score is empty, never zero, and the line gives the reason.

    Args:
        rows: rows of the plan, in the order of the lines, with experiment, method, variant, benchmark, trained_on,
            generator, seed, cell.
        outcomes: status and reason by cell key. A cell with a result needs none.
        root: the results folder, `results/<preset>`.

    Raises:
        UserError: a cell has neither a result nor a reason for having none.
    """
    rows = list(rows)
    found = {key: _result(root, key, outcomes) for key in dict.fromkeys(row["cell"] for row in rows)}
    reported: dict[str, list[str]] = {}
    for row in rows:
        result = found[row["cell"]]
        if isinstance(result, dict):
            reported.setdefault(row["benchmark"], list(result["metrics"]))
    lines = []
    for row in rows:
        identity = [row[name] for name in IDENTITY[:-1]]
        result = found[row["cell"]]
        if isinstance(result, dict):
            for metric, value in result["metrics"].items():
                lines.append([*identity, metric, f"{100 * value:.4f}", result["n"], "ok", "", row["cell"]])
        else:
            status, reason = result
            for metric in reported.get(row["benchmark"], [""]):
                lines.append([*identity, metric, "", 0, status, inert(reason), row["cell"]])
    return write_csv(root / "scores.csv", [COLUMNS, *lines])


def _result(root: Path, cell: str, outcomes: Mapping[str, tuple[str, str]]) -> dict[str, Any] | tuple[str, str]:
    """A cell's metrics, or the status and reason of a hole."""
    status, reason = outcomes.get(cell, ("ok", ""))
    stored = (cell_folder(root, cell) / "metrics.json").is_file()
    if status == "ok" or (stored and status != "diverged"):
        if not cell_folder(root, cell).is_dir():
            raise UserError(f"cell {cell} has no result in {root / 'cells'}; {RERUN}")
        return read_metrics(root, cell)
    return status, " ".join(reason.split()) or "no reason given"


def read_scores(path: Path) -> list[Score]:
    """Read and check scores.csv.

    Raises:
        UserError: a column is missing or foreign, a value has the wrong type, is out of range or NaN, a score is there
            without status ok or the reverse, a hole has no reason, or two lines are about the same thing. The message
            names the line.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            _check_header(header, path)
            scores: list[Score] = []
            seen: dict[tuple[object, ...], int] = {}
            for values in lines:
                try:
                    score = _parse(header, values, f"{path}, line {lines.line_num}")
                except UserError as error:
                    raise UserError(f"{error}, or run `metatuner scores` again") from None
                identity = tuple(getattr(score, name) for name in IDENTITY)
                if identity in seen:
                    raise UserError(
                        f"{path}, line {lines.line_num}: repeats line {seen[identity]} "
                        f"(same {', '.join(IDENTITY)}); keep one"
                    )
                seen[identity] = lines.line_num
                scores.append(score)
    except FileNotFoundError:
        raise UserError(f"no file {path}; {RERUN}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8, or run `metatuner scores` again") from None
    except csv.Error as error:
        raise UserError(f"{path}: not valid CSV ({error}); {RERUN}") from None
    if not scores:
        raise UserError(f"{path}: no line below the header; {RERUN}")
    return scores


def main_scores(config: Config, *, complete: bool = True) -> list[Score]:
    """The cells of the main experiment, each once: default variants, under its first generator.

    If `complete`, only cells with a score.
    """
    generator = config.experiments[config.main].generators[0]
    found = {
        score.cell: score
        for score in read_scores(Layout(config).scores)
        if (score.experiment, score.variant) == (config.main, DEFAULT_VARIANT)
        and (score.status == "ok" or not complete)
        and score.generator in ("", generator)
    }
    return list(found.values())


def _check_header(header: Sequence[str], path: Path) -> None:
    if not header:
        raise UserError(f"{path}: the file is empty; {RERUN}")
    missing = [name for name in COLUMNS if name not in header]
    foreign = [name for name in header if name not in COLUMNS]
    if missing:
        raise UserError(f"{path}, line 1: no column {', '.join(missing)}; the columns are {', '.join(COLUMNS)}")
    if foreign:
        raise UserError(f"{path}, line 1: foreign column {', '.join(foreign)}; the columns are {', '.join(COLUMNS)}")
    if len(set(header)) < len(header):
        raise UserError(f"{path}, line 1: a column stands twice; the columns are {', '.join(COLUMNS)}")


def _parse(header: Sequence[str], values: Sequence[str], where: str) -> Score:
    if len(values) != len(header):
        raise UserError(
            f"{where}: {len(values)} fields, the header has {len(header)}; run `metatuner scores` again if the "
            "file was cut off, or quote fields that hold commas"
        )
    field = dict(zip(header, values, strict=True))
    for name in ("experiment", "method", "benchmark", "trained_on", "cell"):
        if not field[name]:
            raise UserError(f"{where}: {name} is empty; every line names it")
    if not CELL_KEY.fullmatch(field["cell"]):
        raise UserError(f"{where}: cell {field['cell']!r} is no key of 16 hexadecimal digits; was the file cut off?")
    if field["status"] not in STATUSES:
        raise UserError(f"{where}: status {field['status']!r}; it is one of {', '.join(STATUSES)}")
    numbers = {}
    for name in ("seed", "n"):
        if not re.fullmatch("[0-9]{1,18}", field[name]):
            raise UserError(f"{where}: {name} {field[name]!r} is not a whole number, 0 or more")
        numbers[name] = int(field[name])
    score = None
    if field["status"] == "ok":
        try:
            score = float(field["score"])
        except ValueError:
            raise UserError(
                f"{where}: score {field['score']!r} is not a number; only skipped, failed and diverged cells have none"
            ) from None
        if not 0 <= score <= 100:  # NaN fails this too
            raise UserError(f"{where}: score {field['score']} is not in 0 to 100; scores are percentages")
        if not field["metric"] or not numbers["n"]:
            raise UserError(f"{where}: an ok line needs a metric and n of at least 1")
    elif field["score"]:
        raise UserError(f"{where}: status {field['status']} with a score; leave the score empty")
    elif not field["reason"]:
        raise UserError(f"{where}: status {field['status']} without a reason; say why there is no score")
    return Score(**{**field, **numbers, "score": score, "reason": from_csv(field["reason"])})  # type: ignore[arg-type]


SETTINGS_COLUMNS = ("experiment", "method", "variant", "benchmark", "generator", "tuned", "settings")


def write_settings(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Write settings.csv: the settings of each method, variant and benchmark, and where they come from.

    `rows` are rows of the plan, as for `write_scores`, with `settings` (JSON values) and `tuned` added.
    """
    shown = ({**row, "settings": canonical(row["settings"])} for row in rows)
    lines = dict.fromkeys(tuple(row[column] for column in SETTINGS_COLUMNS) for row in shown)
    return write_csv(path, [SETTINGS_COLUMNS, *lines])


def read_settings(path: Path) -> list[dict[str, str]]:
    """The lines of settings.csv; empty if there is no file: results folders of older versions have none.

    Raises:
        UserError: the columns are wrong, or `tuned` has an unknown word (see `read_tuned`); the message names the line.
    """
    if not path.is_file():
        return []
    remedy = "run `metatuner scores` again"
    found = read_csv(path, SETTINGS_COLUMNS, remedy)
    for number, row in enumerate(found, 2):
        word = row["tuned"]
        if word not in ("winner", "inherited", "medians", "expired", "untuned", "none"):
            raise UserError(f"{path}, line {number}: tuned is {word!r}, no known word; {remedy}")
        try:
            is_object = isinstance(json.loads(row["settings"]), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise UserError(f"{path}, line {number}: settings are no JSON object; {remedy}")
    return found


def read_tuned(
    path: Path, experiment: str, generators: Collection[str] | None = None
) -> dict[tuple[str, str, str], str]:
    """Where an experiment's settings come from, by (method, variant, benchmark), as settings.csv says.

    If `generators` is given, only lines of these generators are read; "" stands for methods that use none. The result
    is empty if there is no file: results folders of older versions have none. The words are:

    - `winner`: of random search on the tune split.
    - `inherited`: a variant under the winner of the method without its changes, or a method that builds on winners.
    - `medians`: of the winners of several train benchmarks.
    - `expired`: a winner that is no longer current, so the preset's own settings are used.
    - `untuned`: a search space, but no winner for this generator.
    - `none`: nothing to search.

    Raises:
        UserError: the columns or words are wrong, or two lines contradict each other; the message names the line.
    """
    tuned: dict[tuple[str, str, str], str] = {}
    for number, row in enumerate(read_settings(path), 2):  # no field holds a line break
        key, word = (row["method"], row["variant"], row["benchmark"]), row["tuned"]
        asked = row["experiment"] == experiment and (generators is None or row["generator"] in generators)
        if asked and tuned.setdefault(key, word) != word:
            raise UserError(
                f"{path}, line {number}: {' '.join(key)} is {word!r} here, {tuned[key]!r} above; "
                "run `metatuner scores` again"
            )
    return tuned
