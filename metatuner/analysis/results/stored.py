"""Files of a results folder that several tables, figures and the report read; each is checked as far as it is used."""

from pathlib import Path
from types import NoneType
from typing import Any

from metatuner.analysis.results.scores import RERUN, cell_folder
from metatuner.config import Layout
from metatuner.errors import UserError
from metatuner.files import NUMBER, read_json, read_lines

COLLECT = "run `metatuner scores` again"

_TEXT = (str, NoneType)
_FIT_COST = {
    **dict.fromkeys(("seconds", "flops", "lm_calls", "trained_tokens"), NUMBER),
    **dict.fromkeys(("peak_memory_bytes", "peak_gpu_memory_bytes", "prompt_tokens?", "generated_tokens?"), NUMBER),
}
_METHOD = {
    "name": str,
    "title?": str,
    "family": str,
    "reference": str,
    "deviations": [str],
    "requires": [str],
    "settings": [{"name": str, "default": object, "meaning": str}],
}
_SEARCH = {
    **dict.fromkeys(("subject", "benchmark", "status"), str),
    "search": {"*": {"values?": list, "low?": NUMBER, "high?": NUMBER, "log?": bool}},
    "settings": (dict, NoneType),
    **dict.fromkeys(("score", "rival_score", "trials", "failed"), (int, float, NoneType)),
    "at_edge": (list, NoneType),
    "date?": _TEXT,
    "dearest?": (int, float, NoneType),
}
_ROW = {"id": str, "query": str, "kind": str, "group": str, "gold": [str]}
_ANSWER = {
    **dict.fromkeys(("id", "prompt", "completion"), str),
    "score": NUMBER,
    "gold?": [str],
    "extracted?": _TEXT,
    "leaks?": object,
}
_BAR = {
    "benchmark": str,
    "name": str,
    **dict.fromkeys(("low", "high"), (int, float, NoneType)),
    "measured": NUMBER,
    "met": bool,
}


def fit_folder(layout: Layout, cell: str) -> Path:
    """The folder of a cell's fit."""
    return layout.fit(read_json(layout.cell(cell) / "cell.json", RERUN, {"fit": str})["fit"])


def read_fit_cost(fit: Path) -> dict[str, Any]:
    """The cost of a fit, with what it builds on."""
    return dict(read_json(fit / "cost.json", RERUN, _FIT_COST))


def read_cell_cost(layout: Layout, cell: str) -> dict[str, Any]:
    """The cost of a cell's evaluation."""
    return dict(read_json(layout.cell(cell) / "cost.json", RERUN, {"seconds": NUMBER}))


def read_methods(layout: Layout) -> list[dict[str, Any]]:
    """Descriptions of the run's methods."""
    return list(read_json(layout.methods, COLLECT, [_METHOD]))


def read_searches(layout: Layout) -> list[dict[str, Any]]:
    """What is known about each search."""
    found = list(read_json(layout.searches, COLLECT, [_SEARCH]))
    for search in found:
        if search["status"] != "none" and None in (search["settings"], search["score"]):
            raise UserError(f"{layout.searches}: {search['subject']} is searched, but has no score; {COLLECT}")
    return found


def read_test_rows(layout: Layout, benchmark: str) -> list[dict[str, Any]]:
    """A benchmark's test rows."""
    return read_lines(layout.data(benchmark) / "test.jsonl", RERUN, _ROW)


def read_split_sizes(layout: Layout, benchmark: str) -> dict[str, int]:
    """Rows of a benchmark's pool, tune and test splits."""
    path = layout.data(benchmark) / "splits.json"
    splits = read_json(path, RERUN, {"splits": {name: {"n": int} for name in ("pool", "tune", "test")}})["splits"]
    return {name: each["n"] for name, each in splits.items()}


def read_answers(layout: Layout, cell: str) -> dict[str, dict[str, Any]]:
    """A cell's predictions by id, in the order of their file."""
    path = cell_folder(layout.root, cell) / "predictions.jsonl"
    return {record["id"]: record for record in read_lines(path, RERUN, _ANSWER)}


def read_world(layout: Layout) -> dict[str, Any]:
    """The nano world's bars."""
    return dict(read_json(layout.root / "world.json", RERUN, {"trained": bool, "bars": [_BAR]}))
