"""The one type of table, and its writers: CSV, Markdown, LaTeX, and JSON for the report.

Any text may come from a model or a method's author, so every writer escapes it for its format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metatuner.analysis.escaping import escape_latex, escape_markdown, inert
from metatuner.analysis.names import name_world
from metatuner.config import Config, Layout
from metatuner.files import csv_text, write_json, write_text

Style = Literal["plain", "bold", "italic", "small", "mark"]


@dataclass(frozen=True)
class Span:
    """Part of a cell's or note's text in one style; a `mark` is a sign after a number."""

    text: str
    style: Style = "plain"


Text = str | tuple[Span, ...]
"""A cell's or a note's text: all plain, or in spans."""


@dataclass(frozen=True)
class Table:
    """A table to write. Its text is not escaped: each format does that itself."""

    title: str
    world: str
    """What was measured, or that nothing was; shown above the rows."""
    header: Sequence[str]
    rows: Sequence[Sequence[Text]]
    """Each as long as the header."""
    notes: Sequence[Text] = ()
    groups: Sequence[tuple[str, int]] = ()
    """Headings above the header, each with the number of columns that it spans; () for none."""
    sections: Mapping[int, str] = field(default_factory=dict)
    """Headings between rows, by the index of the row below."""
    widths: Sequence[float] = ()
    """Shares of a LaTeX page's text width by column, for long texts; () for columns as wide as their text."""
    label: str = ""
    """Label in LaTeX; by default it is made from the file's name."""


def write_tables(
    config: Config, name: str, tables: Sequence[Table], records: Sequence[Sequence[str]] | None = None
) -> list[Path]:
    """Write `tables/<name>.{csv,md,tex,json}` and return the paths written.

    Args:
        config: config of the results folder.
        name: name of the files.
        tables: the tables, written one below the other.
        records: the rows of the CSV, header first. None: the rows of the only table, each with its world.
    """
    layout = Layout(config)
    if records is None:
        (table,) = tables
        world = name_world(config, config.main)
        records = [[*table.header, "world"], *([*map(plain, row), world] for row in table.rows)]
    header, *rows = records
    label = f"tab:{name.removeprefix('table_').replace('_', '-')}"
    texts = {
        "csv": csv_text([header, *([inert(value) for value in row] for row in rows)]),
        "md": "\n".join(map(as_markdown, tables)),
        "tex": "\n".join(as_latex(table, table.label or label) for table in tables),
    }
    paths = [write_text(layout.table(name, suffix), text) for suffix, text in texts.items()]
    return [*paths, write_json(layout.table(name, "json"), [as_values(table) for table in tables])]


def plain(text: Text) -> str:
    """A text without its styles."""
    return text if isinstance(text, str) else "".join(span.text for span in text)


def _spans(text: Text) -> Sequence[Span]:
    return (Span(text),) if isinstance(text, str) else text


# ---- Markdown ------------------------------------------------------------------------------------------------------


def as_markdown(table: Table) -> str:
    """A pipe table under a heading.

    A pipe table has one header line, so a group's heading replaces the header of the group's first column.
    """
    header = list(table.header)
    place = 0
    for heading, columns in table.groups:
        header[place] = heading or header[place]
        place += columns
    lines = [f"# {escape_markdown(table.title)}", "", f"**{escape_markdown(table.world)}**", ""]
    lines += [_row(map(escape_markdown, header)), _row(["---"] * len(header))]
    for index, row in enumerate(table.rows):
        if index in table.sections:
            lines.append(_row([f"*{escape_markdown(table.sections[index])}*"] + [""] * (len(header) - 1)))
        lines.append(_row(map(_markdown, row)))
    lines += ["", *(f"- {_markdown(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: Text) -> str:
    signs = {"bold": "**", "italic": "*"}
    return "".join(
        f"{sign}{escape_markdown(span.text)}{sign}" for span in _spans(text) for sign in [signs.get(span.style, "")]
    )


# ---- LaTeX ---------------------------------------------------------------------------------------------------------


def as_latex(table: Table, label: str) -> str:
    r"""A `booktabs` table: a `longtable` for long texts, else a `table*` that fits `\textwidth` (`graphicx`)."""
    caption = escape_latex(f"{table.title.partition(': ')[2] or table.title}. {table.world}")
    caption = caption[:1].upper() + caption[1:]
    body: list[str] = []
    for index, row in enumerate(table.rows):
        if index in table.sections:
            heading = escape_latex(table.sections[index])
            body += [r"\midrule"] * bool(body)
            body.append(rf"\multicolumn{{{len(table.header)}}}{{l}}{{\textit{{{heading}}}}} \\")
        body.append(" & ".join(map(_latex, row)) + r" \\")
    head = [*_latex_groups(table), " & ".join(map(escape_latex, table.header)) + r" \\"]
    notes = [_latex(note) for note in table.notes]
    if table.widths or len(table.rows) > LONG:
        columns = "".join(rf"p{{{width:.2f}\textwidth}}" for width in table.widths) or "l" * len(table.header)
        start = [r"{\footnotesize", rf"\begin{{longtable}}{{{columns}}}", rf"\caption{{{caption}}}\label{{{label}}}\\"]
        end = [r"\bottomrule", r"\end{longtable}", *notes, "}"]
        return "\n".join([*start, r"\toprule", *head, r"\midrule", r"\endhead", *body, *end, ""])
    columns = "l" * len(table.header)
    start = [r"\begin{table*}[t]", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    start += [r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\footnotesize\raggedright", *notes, r"\end{table*}"]
    return "\n".join([*start, *head, r"\midrule", *body, *end, ""])


def _latex_groups(table: Table) -> list[str]:
    if not table.groups:
        return []
    cells = [rf"\multicolumn{{{columns}}}{{c}}{{{escape_latex(text)}}}" for text, columns in table.groups]
    rules, place = "", 1
    for text, columns in table.groups:
        rules += rf"\cmidrule(lr){{{place}-{place + columns - 1}}}" if text else ""
        place += columns
    return [" & ".join(cells) + r" \\", rules]


LONG = 30
"""Rows from which on a LaTeX table may break across pages."""
_MARKS = {"†": r"$^{\dagger}$", "*": "$^{*}$"}


def _latex(text: Text) -> str:
    forms = {"bold": r"\textbf{%s}", "italic": r"\textit{%s}", "small": r"{\footnotesize{}%s}"}
    return "".join(
        _MARKS.get(span.text, escape_latex(span.text))
        if span.style == "mark"
        else forms.get(span.style, "%s").replace("%s", escape_latex(span.text))
        for span in _spans(text)
    )


# ---- JSON ----------------------------------------------------------------------------------------------------------


def as_values(table: Table) -> dict[str, Any]:
    """A table as JSON values: each text is a list of [text, style]; `sections` are [index, heading]."""
    return {
        "title": table.title,
        "world": table.world,
        "header": list(table.header),
        "groups": [list(group) for group in table.groups],
        "rows": [[_values(cell) for cell in row] for row in table.rows],
        "sections": [list(each) for each in sorted(table.sections.items())],
        "notes": [_values(note) for note in table.notes],
    }


def _values(text: Text) -> list[list[str]]:
    return [[span.text, span.style] for span in _spans(text)]
