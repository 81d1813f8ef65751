"""The main results as bars."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.analysis.figures.drawing import (
    FAMILY_COLOURS,
    FLOOR,
    INK,
    WIDTH,
    draw,
    note_lines,
    panel_title,
    printable,
    size,
    title_room,
    whiskers,
    write_note,
)
from metatuner.analysis.names import FAMILIES, METRICS, describe_world
from metatuner.analysis.results.comparison import Comparison, Entry, compare, unequal_tuning
from metatuner.analysis.statistics import MIN_SEEDS
from metatuner.config import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS_END = 122
"""End of the axis in percent, with room for the number after a bar that ends at 100."""

HOLE_LENGTH = 26
"""Characters per line of a hole's reason, which is shown in place of the bar."""


def figure_main(config: Config) -> list[Path]:
    """Draw the main results as bars with intervals, a panel per benchmark: `figures/figure_main.{png,pdf}`."""
    comparison = compare(config, config.main)
    return draw(config, "figure_main", lambda: draw_bars(comparison, describe_world(config, config.main)))


def draw_bars(comparison: Comparison, world: str) -> "Figure":
    """Panels side by side, methods down the page in the order of the table, families by colour and by place."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = len(comparison.benchmarks)
    note = _note(comparison, world)
    body = 0.30 * len(comparison.methods) + 0.15
    titles = [comparison.names.title(*method) for method in comparison.methods]
    left = 0.2 + 0.062 * max(map(len, titles))  # inches; a letter of 8 points is about 0.062 wide
    top, bottom = 0.66 + title_room(comparison.titles.values()), 0.58 + 0.13 * len(note)
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
    families = dict.fromkeys(comparison.names.family(method) for method, _ in comparison.methods)
    figure.legend(
        handles=[Patch(color=FAMILY_COLOURS[family], label=FAMILIES[family]) for family in families],
        loc="upper left",
        bbox_to_anchor=(left / WIDTH, 1 - 0.06 / height),
        bbox_transform=figure.transFigure,
        ncols=len(families),
        handlelength=1.0,
        handleheight=0.9,
        borderpad=0.0,
    )
    write_note(figure, note)
    return figure


def _draw_panel(axes: "Axes", comparison: Comparison, benchmark: str) -> None:
    entries = comparison.of(benchmark)
    for entry in entries:
        colour = FAMILY_COLOURS[comparison.names.family(entry.method)]
        _draw_bar(axes, comparison.methods.index((entry.method, entry.variant)), entry, colour)
    metric = next((entry.metric for entry in entries if entry.metric), "score")
    n = max((entry.n for entry in entries), default=0)
    seeds = max((len(entry.seeds) for entry in entries), default=0)
    axes.set_title(panel_title(comparison.titles[benchmark]), loc="left", fontweight="bold", pad=15)
    told = size(n, seeds, floor=benchmark in comparison.at_floor)
    axes.text(0, 1, told, transform=axes.transAxes, fontsize=7, color="#555555", va="bottom")
    axes.set_xlim(0, AXIS_END)
    axes.set_xlabel(f"{METRICS.get(metric, metric)} (%)", x=50 / AXIS_END)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.spines["bottom"].set_bounds(0, 100)
    axes.grid(axis="x")


def _draw_bar(axes: "Axes", place: int, entry: Entry, colour: str) -> None:
    if entry.mean is None:
        text = "\n".join(textwrap.wrap(printable(entry.hole), HOLE_LENGTH, max_lines=2, placeholder=" …"))
        axes.text(2, place, text, va="center", fontsize=6, style="italic", color="#555555", linespacing=1.0)
        return
    mean, low, high = (100 * value for value in (entry.mean.estimate, entry.mean.low, entry.mean.high))
    axes.barh(place, mean, height=0.68, color=colour)
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
    """The note under the panels, as lines."""
    entries = comparison.entries.values()
    untested = any(entry.mark == "untested" for entry in entries)
    tested = any(entry.p_holm is not None for entry in entries)
    return note_lines(
        f"Bars: mean over seeds and test queries; {whiskers(entries)}. "
        + "Bold: highest mean"
        + ("; †: not significantly below it (paired tests, Holm)" if tested else "")
        + (f"; differences of fewer than {MIN_SEEDS} seeds are not tested. " if untested else ". ")
        + (FLOOR if comparison.at_floor else "")
        + ("*: some seeds have no result. " if any(entry.mean and entry.hole for entry in entries) else "")
        + (f"{warning} " if (warning := unequal_tuning(comparison)) else "")
        + world
    )
