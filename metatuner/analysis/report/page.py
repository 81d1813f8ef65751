"""The report's page: what the template shows. Only scripts and styles with known hashes are allowed."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from metatuner.analysis.claims.output import COLUMNS, NOT_ASKED, PART_COLUMNS, SEARCHED
from metatuner.analysis.escaping import from_csv
from metatuner.analysis.figures import figures_of
from metatuner.analysis.names import describe_world
from metatuner.analysis.report.data import browser, cells, costs, packed
from metatuner.analysis.results.scores import RERUN, read_scores
from metatuner.analysis.results.stored import COLLECT, read_world
from metatuner.analysis.tables import APPENDIX, tables_of
from metatuner.config import Config, Layout
from metatuner.errors import UserError
from metatuner.files import read_csv, read_json, write_text

COST_HEADER = (
    "method",
    "fits",
    "LM calls",
    "tokens read",
    "tokens written",
    "tokens trained",
    "TFLOP, estimated",
    "seconds",
    "largest memory, MB",
    "evaluation, ms per query",
)
JUDGE = "judge the claims again with `metatuner claims`"
DRAW = "make it again with `metatuner table --name {}`"
_SPANS = [[str]]
_TABLE = {
    **dict.fromkeys(("title", "world"), str),
    "header": [str],
    "rows": [[_SPANS]],
    "notes": [_SPANS],
    "groups": [list],
    "sections": [list],
}
CLAIM_HEADER = ("claim", "title", "data", "verdict", "part", "estimate", "p_for", "p_against", "needed", "detail")


def report(config: Config) -> Path:
    """Write `report.html` from the files of the results folder and return its path.

    Raises:
        UserError: a table, figure or cell that it shows is missing.
    """
    layout = Layout(config)
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    tables, figures = tables_of(config), figures_of(config)
    drawn = sorted(name for name in figures if name != "figure_main")
    if layout.figure("figure_2", "png").is_file():
        drawn = sorted([*drawn, "figure_2"])
    text = _template().render(
        preset=config.preset,
        world=describe_world(config, config.main),
        policy=policy,
        style=style,
        script=script,
        **_overview(layout),
        first_table=_tables(layout, ["table_1"])[0][1] if "table_1" in tables else None,
        main_figure=_figure(layout, "figure_main") if "figure_main" in figures else None,
        claims=_claims(layout),
        not_asked="" if config.claims == "paper" else NOT_ASKED,
        searched=SEARCHED if config.claims == "paper" and _has_searches(layout) else "",
        tables=_tables(layout, [name for name in tables if name not in APPENDIX]),
        appendix=_tables(layout, [name for name in APPENDIX if name in tables]),
        figures=[_figure(layout, name) for name in drawn],
        has_main="main" in config.experiments,
        cost_header=COST_HEADER,
        costs=costs(config),
        nano=_nano(layout),
        provenance=json.dumps(read_json(layout.provenance, RERUN), indent=1, sort_keys=True, ensure_ascii=False),
        data=[
            *((f"queries-{name}", packed(shown)) for name, shown in browser(config).items()),
            ("cells-data", packed(cells(config))),
        ],
    )
    return write_text(layout.report, text + "\n")


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("report.html.jinja"))


def _asset(name: str) -> str:
    return files("metatuner.analysis.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- what it shows -------------------------------------------------------------------------------------------------


def _overview(layout: Layout) -> dict[str, Any]:
    rows = read_scores(layout.scores)
    status = [row.status for row in {row.cell: row for row in rows}.values()]
    holes = dict.fromkeys(
        (row.method, row.variant, row.benchmark, row.seed, row.status, row.reason) for row in rows if row.status != "ok"
    )
    counts = {name: status.count(name) for name in ("ok", "skipped", "failed", "diverged")}
    return {"counts": {"all": len(status), **counts}, "holes": list(holes)}


def _has_searches(layout: Layout) -> bool:
    return layout.searches.is_file() and bool(read_json(layout.searches, COLLECT, [dict]))


def _claims(layout: Layout) -> dict[str, Any] | None:
    """The claims' lines; None if the claims were not judged."""
    if not layout.claims("csv").is_file():
        return None
    rows = _csv(layout.claims("csv"), COLUMNS)
    how = ("claim", "estimand", "test", "threshold")
    parts = _csv(layout.claims("parts.csv"), PART_COLUMNS) if layout.claims("parts.csv").is_file() else []
    return {
        "header": CLAIM_HEADER,
        "rows": [_claim(row) for row in rows],
        "how": [[row[name] for name in how] for row in rows if row["data"] == "measured"],
        "parts": [list(parts[0]), *(list(part.values()) for part in parts)] if parts else [],
    }


def _claim(row: Mapping[str, str]) -> dict[str, str]:
    interval = f"{row['estimate']} [{row['low']}, {row['high']}]" if row["estimate"] else ""
    needed = f"{row['needed']} of {row['needed_of']}: {row['towards']}" if row["towards"] else row["needed"]
    return {**row, "estimate": interval, "needed": needed}


def _tables(layout: Layout, names: Iterable[str]) -> list[tuple[str, Any]]:
    """Pairs of a file's name and a table as JSON values, from the tables' own JSON files."""
    found = []
    for name in names:
        path, remedy = layout.table(name, "json"), DRAW.format(name)
        shown = read_json(path, remedy, [_TABLE])
        if not shown:
            raise UserError(f"{path}: it has no table; {remedy}")
        found += [(name, each) for each in shown]
    return found


def _figure(layout: Layout, name: str) -> dict[str, str]:
    path = layout.figure(name, "png")
    if not path.is_file():
        raise UserError(f"no file {path}; {RERUN}")
    png = base64.b64encode(path.read_bytes()).decode()
    return {"name": name, "title": name.replace("_", " ").capitalize(), "png": png}


def _nano(layout: Layout) -> dict[str, Any] | None:
    """The nano world's bars; None if the preset has no such world."""
    path = layout.root / "world.json"
    if not path.is_file():
        return None
    world = read_world(layout)
    bars = world["bars"]
    missed = sum(not bar["met"] for bar in bars)
    verdict = f"{missed} of {len(bars)} bars are missed." if missed else f"All {len(bars)} bars are met."
    if not world["trained"]:
        verdict = "The models have their initial weights: the bars do not apply."
    return {"verdict": verdict, "rows": [_bar(bar) for bar in bars]}


def _bar(bar: Mapping[str, Any]) -> Sequence[str]:
    low, high = bar["low"], bar["high"]
    required = f"<= {high:g}" if low is None else f">= {low:g}" if high is None else f"{low:g} to {high:g}"
    return [bar["benchmark"], bar["name"], required, f"{bar['measured']:.1f}", "met" if bar["met"] else "missed"]


def _csv(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """A CSV file's rows as they were before `inert`."""
    return [{name: from_csv(value) for name, value in row.items()} for row in read_csv(path, columns, JUDGE)]
