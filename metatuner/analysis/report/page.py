"""The report's page. Every text is escaped; scripts and styles are allowed by their hashes alone."""

import base64
import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from metatuner.analysis.appendix import APPENDIX
from metatuner.analysis.claims.output import SEARCHED
from metatuner.analysis.escaping import from_csv
from metatuner.analysis.figures import figures_of
from metatuner.analysis.labels import describe_world
from metatuner.analysis.report.data import browser, cells, costs, packed
from metatuner.analysis.report.markdown import Document, read_documents, to_html
from metatuner.analysis.scores import RERUN
from metatuner.analysis.tables import tables_of
from metatuner.errors import UserError
from metatuner.files import read_json, write_text
from metatuner.harness.config import Config
from metatuner.harness.layout import Layout

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
    "evaluation, ms a query",
)


def report(config: Config) -> Path:
    """Write `report.html` from the files of the results folder; its path.

    Raises:
        UserError: a table, figure or cell that it shows is missing.
    """
    layout = Layout(config)
    experiment = next(iter(config.experiments))
    world = describe_world(config, experiment)
    sections = [
        ("overview", "Overview", _overview(config, layout, world)),
        ("claims", "Claims", _claims(layout)),
        ("tables", "Tables", _tables(config, layout, [name for name in tables_of(config) if name not in APPENDIX])),
        ("figures", "Figures", _figures(layout, _drawn(config, layout))),
        ("queries", "Queries", _queries(config)),
        ("cells", "Cells", _cells()),
        ("cost", "Cost", _cost(config)),
        ("appendix", "Appendix", _tables(config, layout, [name for name in APPENDIX if name in tables_of(config)])),
        ("world", "Nano world", _world(layout)),
        ("provenance", "Provenance", _provenance(layout)),
    ]
    sections = [section for section in sections if section[2]]
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = [_data(f"queries-{name}", told) for name, told in browser(config).items()]
    data.append(_data("cells-data", cells(config)))
    title = f"MetaTuner Bench: {config.preset}"
    text = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style></head><body>",
            f"<header><h1>{escape(title)}</h1><p class=world>{escape(world)}</p></header><nav>",
            *(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections),
            "</nav><main>",
            *(f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>' for name, heading, body in sections),
            "</main>",
            *data,
            f"<script>{script}</script></body></html>",
        ]
    )
    return write_text(layout.report, text + "\n")


def _asset(name: str) -> str:
    return files("metatuner.analysis.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(name: str, value: object) -> str:
    """A block that no browser runs; its text is base64."""
    return f'<script type="application/octet-stream" id="{escape(name)}">{packed(value)}</script>'


# ---- sections ------------------------------------------------------------------------------------------------------


def _overview(config: Config, layout: Layout, world: str) -> str:
    scores = list(_csv(layout.scores))
    cells = {row["cell"]: row["status"] for row in scores}
    counts = {status: list(cells.values()).count(status) for status in ("ok", "skipped", "failed")}
    text = (
        f"<p>{len(cells)} cells: {counts['ok']} complete, {counts['skipped']} skipped, {counts['failed']} failed.</p>"
    )
    holes = dict.fromkeys(
        (row["method"], row["variant"], row["benchmark"], row["seed"], row["status"], row["reason"])
        for row in scores
        if row["status"] != "ok"
    )
    if holes:
        header = ("method", "variant", "benchmark", "seed", "status", "reason")
        text += "<p>Holes; none of them counts as a zero:</p>" + _table(header, list(holes))
    text += (
        "<p>Numbers headed <em>paper</em> are single published numbers of the paper's models and data, from secondary "
        "sources; all others were measured in this run. The two are never mixed.</p>"
    )
    for name in ("table_1",):
        if layout.table(name, "md").is_file():
            text += _document(read_documents(_read(layout.table(name, "md")).decode())[0])
    if "figure_main" in figures_of(config):
        text += _figure(layout, "figure_main")
    return text


def _claims(layout: Layout) -> str:
    if not layout.claims("csv").is_file():
        return ""
    rows = list(_csv(layout.claims("csv")))
    text = "<p>Estimates in points, of the part that decides; p_for and p_against are of the whole claim and of its "
    text += "reverse, corrected as the verdict needs; intervals are 95 %, uncorrected. "
    text += "Published numbers are single numbers from secondary sources. "
    text += "Undecided: with the number of test queries that would tell that part, and towards which verdict.</p>"
    if layout.searches.is_file() and read_json(layout.searches, "run `metatuner scores` again"):
        text += f"<p>{escape(SEARCHED)}</p>"
    shown = ("claim", "title", "data", "verdict", "part", "estimate", "p_for", "p_against", "needed", "detail")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in shown)
    body = ""
    for row in rows:
        interval = f"{row['estimate']} [{row['low']}, {row['high']}]" if row["estimate"] else ""
        needed = f"{row['needed']} of {row['needed_of']}: {row['towards']}" if row["towards"] else row["needed"]
        told = {**row, "estimate": interval, "needed": needed}
        fields = "".join(
            f'<td class="verdict {escape(told[name].replace(" ", "-"))}">{escape(told[name])}</td>'
            if name == "verdict"
            else f"<td>{escape(told[name])}</td>"
            for name in shown[1:]
        )
        body += f'<tr><th scope="row">{escape(told[shown[0]])}</th>{fields}</tr>'
    table = f"<table class='sortable claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    text += f"<div class=wide>{table}</div>"
    how = ("claim", "estimand", "test", "threshold")
    measured = [[row[name] for name in how] for row in rows if row["data"] == "measured"]
    text += _details("How each is settled", _table(how, measured))
    if layout.claims("parts.csv").is_file():
        parts = list(_csv(layout.claims("parts.csv")))
        header = tuple(parts[0]) if parts else ()
        text += _details("Every component test", _table(header, [list(part.values()) for part in parts]))
    return text


def _tables(config: Config, layout: Layout, names: Iterable[str]) -> str:
    text = ""
    for name in names:
        for document in read_documents(_read(layout.table(name, "md")).decode()):
            links = ", ".join(f'<a href="tables/{name}.{suffix}">{suffix}</a>' for suffix in ("csv", "md", "tex"))
            text += _details(to_html(document.title), _document(document) + f"<p>As a file: {links}</p>", plain=False)
    return text


def _document(document: Document) -> str:
    rows = "".join(_row([to_html(cell) for cell in row]) for row in document.rows if any(row[1:]) or len(row) == 1)
    head = "".join(f'<th scope="col">{to_html(cell)}</th>' for cell in document.header)
    notes = "".join(f"<li>{to_html(note)}</li>" for note in document.notes)
    return (
        f"<p class=lead>{to_html(document.lead)}</p><div class=wide><table class=sortable>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        + (f"<ul class=notes>{notes}</ul>" if notes else "")
    )


def _drawn(config: Config, layout: Layout) -> list[str]:
    names = [name for name in figures_of(config) if name != "figure_main"]
    return [*names, *(["figure_2"] if layout.figure("figure_2", "png").is_file() else [])]


def _figures(layout: Layout, names: Sequence[str]) -> str:
    return "".join(_figure(layout, name) for name in sorted(names))


def _figure(layout: Layout, name: str) -> str:
    content = base64.b64encode(_read(layout.figure(name, "png"))).decode()
    title = name.replace("_", " ").capitalize()
    return (
        f'<figure><img alt="{escape(title)}" loading="lazy" src="data:image/png;base64,{content}"><figcaption>'
        f'{escape(title)} (<a href="figures/{name}.pdf">PDF</a>)</figcaption></figure>'
    )


def _queries(config: Config) -> str:
    if "main" not in config.experiments:
        return ""
    return (
        "<p>Predictions of the main experiment, query by query. Compare two methods on one seed: won, the first alone "
        "scores at least half; lost, the second alone; both; neither.</p>"
        '<form class=filters><label>Benchmark <select id="q-benchmark"></select></label>'
        '<label>Method <select id="q-first"></select></label><label>against <select id="q-second"></select></label>'
        '<label>Seed <select id="q-seed"></select></label><label>Show <select id="q-case"></select></label>'
        '<label>Text <input id="q-text" type="search"></label></form>'
        '<p id="q-counts" aria-live="polite">Loading; needs a browser with DecompressionStream (2023 or later).</p>'
        '<div id="q-list"></div><p><button id="q-more" type="button">More</button></p>'
    )


CELL_HEADER = ("method", "benchmark", "trained on", "generator", "seed", "score", "experiments", "cell")


def _cells() -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in CELL_HEADER)
    return (
        "<p>Every cell of every experiment. Its predictions are in a file beside this report, where its folder is.</p>"
        '<form class=filters><label>Text <input id="c-text" type="search"></label></form>'
        '<p id="c-counts" aria-live="polite"></p>'
        f'<div class=wide><table class=sortable><thead><tr>{head}</tr></thead><tbody id="c-list"></tbody></table></div>'
        '<div id="c-detail" tabindex="-1"></div>'
    )


def _cost(config: Config) -> str:
    rows = costs(config)
    if not rows:
        return ""
    return (
        "<p>Of the main experiment's fits, means a fit, with what it builds on counted in; times and memory are this "
        "machine's. FLOP are estimated from tokens and weights.</p>" + _table(COST_HEADER, rows)
    )


def _world(layout: Layout) -> str:
    path = layout.root / "world.md"
    return "".join(_document(one) for one in read_documents(path.read_text(encoding="utf-8"))) if path.is_file() else ""


def _provenance(layout: Layout) -> str:
    told = read_json(layout.provenance, RERUN)
    return f"<pre>{escape(json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False))}</pre>"


# ---- parts ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no file {path}; {RERUN}") from None


def _csv(path: Path) -> Iterable[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield {name: from_csv(value) for name, value in row.items()}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(_row([escape(str(value)) for value in row]) for row in rows)
    return f"<div class=wide><table class=sortable><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _row(cells: Sequence[str]) -> str:
    """A row of HTML cells; the first names it."""
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _details(summary: str, body: str, *, plain: bool = True) -> str:
    return f"<details><summary>{escape(summary) if plain else summary}</summary>{body}</details>"
