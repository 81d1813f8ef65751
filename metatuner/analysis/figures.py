"""Figures as PNG (200 dpi) and PDF, the same bytes from the same files."""

import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.analysis.comparison import Comparison, Entry, compare, unequal_tuning
from metatuner.analysis.files import write_bytes
from metatuner.analysis.labels import FAMILIES, METRICS, describe_world, method_family, method_title
from metatuner.analysis.statistics import LEVEL
from metatuner.harness.config import Config
from metatuner.harness.layout import Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; light enough for black interval bars.
FAMILY_COLOURS = {
    "vanilla": "#999999",
    "prompt": "#56B4E9",
    "parameter": "#E69F00",
    "hybrid": "#009E73",
    "other": "#CC79A7",
}
INK, FAINT = "#222222", "#8a8a8a"

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "pdf.fonttype": 42,
}

WIDTH = 7.6
"""Inches: a page's text width, or a slide."""

AXIS_END = 122
"""Percent: room for the number behind a bar that ends at 100."""

NOTE_LENGTH = 158
"""Characters a line, under the panels."""

HOLE_LENGTH = 26
"""Characters a line, of a hole's reason in its bar's place."""


def figure_main(config: Config) -> list[Path]:
    """Main results as bars with intervals, a panel a benchmark: `figures/figure_main.{png,pdf}`; the paths written."""
    import matplotlib

    comparison = compare(config, "main")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own style file says
        matplotlib.rcParams.update(STYLE)
        return _save(draw_bars(comparison, describe_world(config, "main")), Layout(config), "figure_main")


FIGURES: dict[str, Callable[[Config], list[Path]]] = {"figure_main": figure_main}
"""What makes each figure, by name."""


def draw_bars(comparison: Comparison, world: str) -> "Figure":
    """Panels side by side, methods down the page in the order of the table, families by colour and by place."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = len(comparison.benchmarks)
    note = _note(comparison, world)
    body = 0.30 * len(comparison.methods) + 0.15
    titles = [method_title(*method) for method in comparison.methods]
    left = 0.2 + 0.062 * max(map(len, titles))  # inches: a letter of 8 points is about so wide
    top, bottom = 0.66, 0.58 + 0.13 * len(note)
    height = top + body + bottom
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=left / WIDTH, right=1 - 0.08 / WIDTH, top=1 - top / height, bottom=bottom / height, wspace=0.13
    )
    for axes, benchmark in zip(panels, comparison.benchmarks, strict=True):
        _draw_panel(axes, comparison, benchmark)
    panels[0].set_yticks(range(len(titles)), titles)
    panels[0].set_ylim(len(titles) - 0.4, -0.6)  # the first on top
    families = dict.fromkeys(method_family(method) for method, _ in comparison.methods)
    figure.legend(
        handles=[Patch(color=FAMILY_COLOURS[family], label=FAMILIES[family]) for family in families],
        loc="upper left",
        bbox_to_anchor=(left / WIDTH, 1 - 0.06 / height),
        bbox_transform=figure.transFigure,
        ncols=len(families),
        frameon=False,
        handlelength=1.0,
        handleheight=0.9,
        columnspacing=1.4,
        borderaxespad=0.0,
        borderpad=0.0,
    )
    figure.text(
        0.1 / WIDTH, 0.08 / height, "\n".join(note), fontsize=6.5, color="#555555", linespacing=1.35, va="bottom"
    )
    return figure


def _draw_panel(axes: "Axes", comparison: Comparison, benchmark: str) -> None:
    entries = comparison.of(benchmark)
    for entry in entries:
        _draw_bar(axes, comparison.methods.index((entry.method, entry.variant)), entry)
    metric = next((entry.metric for entry in entries if entry.metric), "score")
    n = max((entry.n for entry in entries), default=0)
    seeds = max((len(entry.seeds) for entry in entries), default=0)
    axes.set_title(comparison.titles[benchmark], loc="left", fontweight="bold", pad=15)
    size = f"n = {n}, {seeds} seed{'' if seeds == 1 else 's'}" if n else "no results"
    axes.text(0, 1, size, transform=axes.transAxes, fontsize=7, color="#555555", va="bottom")
    axes.set_xlim(0, AXIS_END)
    axes.set_xlabel(f"{METRICS.get(metric, metric)} (%)", x=50 / AXIS_END)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.spines["bottom"].set_bounds(0, 100)
    axes.grid(axis="x")


def _draw_bar(axes: "Axes", place: int, entry: Entry) -> None:
    if entry.mean is None:
        text = "\n".join(textwrap.wrap(entry.hole, HOLE_LENGTH, max_lines=2, placeholder=" …"))
        axes.text(2, place, text, va="center", fontsize=6, style="italic", color="#555555", linespacing=1.0)
        return
    mean, low, high = (100 * value for value in (entry.mean.estimate, entry.mean.low, entry.mean.high))
    axes.barh(place, mean, height=0.68, color=FAMILY_COLOURS[method_family(entry.method)])
    axes.errorbar(
        mean,
        place,
        xerr=[[mean - low], [high - mean]],
        fmt="none",
        ecolor=INK,
        elinewidth=0.9,
        capsize=2.2,
        capthick=0.9,
    )
    label = f"{mean:.1f}" + ("†" if entry.mark == "tied" else "") + ("*" if entry.hole else "")
    weight = "bold" if entry.mark == "best" else "normal"
    axes.annotate(
        label, (high, place), (3, -0.3), textcoords="offset points", va="center", fontsize=7, fontweight=weight
    )


def _note(comparison: Comparison, world: str) -> list[str]:
    """What stands under the panels, in lines."""
    entries = comparison.entries.values()
    conditional = any(entry.mean and entry.mean.conditional for entry in entries)
    text = (
        f"Bars: mean over seeds and test queries; whiskers: {100 * LEVEL:.0f} % bootstrap interval over test queries"
        + (", for these seeds. " if conditional else " and seeds. ")
        + "Bold: highest mean; †: not significantly below it (paired tests, Holm)"
        + ("; marks hold for these seeds' policies, other seeds may differ. " if conditional else ". ")
        + ("*: some seeds have no result. " if any(entry.mean and entry.hole for entry in entries) else "")
        + (f"{warning} " if (warning := unequal_tuning(comparison)) else "")
        + world
    )
    return textwrap.wrap(text, NOTE_LENGTH)


def _save(figure: "Figure", layout: Layout, name: str) -> list[Path]:
    # No date and no version of the library in the files: equal data, equal bytes.
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = []
    for suffix, entries in metadata.items():
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=200, metadata=entries)
        paths.append(write_bytes(layout.figure(name, suffix), content.getvalue()))
    return paths
