"""Tables of words: a header and rows as CSV, Markdown and LaTeX. All text may be a model's, so all is escaped."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metatuner.analysis.escaping import escape_latex, escape_markdown, inert
from metatuner.analysis.labels import name_world
from metatuner.files import write_text
from metatuner.harness.config import Config
from metatuner.harness.layout import Layout


@dataclass(frozen=True)
class PlainTable:
    """What is written: text as it is, escaped by each format for itself."""

    title: str
    world: str
    """What was measured, or that nothing was; stands above the rows."""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    widths: Sequence[float] = ()
    """Shares of a LaTeX page's text width by column; () for columns as wide as their text."""


def write_plain(config: Config, name: str, table: PlainTable) -> list[Path]:
    """Write `tables/<name>.{csv,md,tex}`; the paths written."""
    layout = Layout(config)
    texts = {
        "csv": as_csv(table, name_world(config, next(iter(config.experiments)))),
        "md": as_markdown(table),
        "tex": as_latex(table, f"tab:{name.removeprefix('table_')}"),
    }
    return [write_text(layout.table(name, suffix), text) for suffix, text in texts.items()]


def as_csv(table: PlainTable, world: str) -> str:
    """The header and rows, each ending in the world that it is of.

    Fields that a spreadsheet would compute are made text by a leading apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.header, "world"])
    writer.writerows([[inert(value) for value in (*row, world)] for row in table.rows])
    return text.getvalue()


def as_markdown(table: PlainTable) -> str:
    """A pipe table under a heading."""
    lines = [f"# {escape_markdown(table.title)}", "", f"**{escape_markdown(table.world)}**", ""]
    lines += [_row(table.header), _row(["---"] * len(table.header))]
    lines += [_row([escape_markdown(value) for value in row]) for row in table.rows]
    lines += ["", *(f"- {escape_markdown(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def as_latex(table: PlainTable, label: str) -> str:
    """A `longtable` with `booktabs`, as such tables may be longer than a page."""
    columns = "".join(rf"p{{{width:.2f}\textwidth}}" for width in table.widths) or "l" * len(table.header)
    caption = escape_latex(f"{table.title.partition(': ')[2] or table.title}. {table.world}")
    lines = [
        r"{\footnotesize",
        rf"\begin{{longtable}}{{{columns}}}",
        rf"\caption{{{caption[:1].upper()}{caption[1:]}}}\label{{{label}}}\\",
        r"\toprule",
        " & ".join(map(escape_latex, table.header)) + r" \\",
        r"\midrule",
        r"\endhead",
        *(" & ".join(map(escape_latex, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{longtable}",
        *(escape_latex(note) for note in table.notes),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
