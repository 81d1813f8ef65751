"""Score against the cost of fitting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from metatuner.analysis.figures.drawing import COLOURS, INK, NOTE_HEIGHT, WIDTH, draw, note_lines, write_note
from metatuner.analysis.names import Names, describe_world
from metatuner.analysis.results.comparison import Comparison, compare
from metatuner.analysis.results.costs import fit_costs
from metatuner.config import DEFAULT_VARIANT, Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP<>Xp*h"
FAMILY_INK = {
    "vanilla": "#555555",
    "prompt": COLOURS[0],
    "parameter": COLOURS[1],
    "hybrid": COLOURS[2],
    "other": COLOURS[3],
}


@dataclass(frozen=True)
class Point:
    """A method's mean cost and score."""

    method: str
    flops: float
    """FLOP of a fit, including what it builds on."""
    score: float
    """0 to 100, averaged over benchmarks."""


def pareto(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, cheapest point first: each point scores above all cheaper points."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.flops, -each.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def figure_cost(config: Config) -> list[Path]:
    """Draw score against the cost of fitting: `figures/figure_cost.{png,pdf}`; returns the paths written."""
    comparison, costs = compare(config, config.main), fit_costs(config)
    points = _points(comparison, costs)
    sizes = [entry for entry in comparison.entries.values() if entry.mean]
    seeds = max((len(entry.seeds) for entry in sizes), default=0)
    world = describe_world(config, config.main)
    return draw(config, "figure_cost", lambda: draw_cost(points, seeds, comparison.names, world))


def _points(comparison: Comparison, costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Point]:
    found = []
    for method, spent in costs.items():
        entries = [comparison.entries.get(((method, DEFAULT_VARIANT), name)) for name in comparison.benchmarks]
        means = [entry.mean.estimate for entry in entries if entry and entry.mean]
        if len(means) == len(comparison.benchmarks):  # a mean over fewer is another quantity
            found.append(Point(method, mean(float(cost["flops"]) for cost in spent), 100 * mean(means)))
    return found


def draw_cost(points: Sequence[Point], seeds: int, names: Names, world: str) -> "Figure":
    """Draw one point per method and the front as a staircase; methods that cost nothing are at the left edge."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    note = note_lines(
        "Mean score over the benchmarks and "
        f"{seeds} seed{'' if seeds == 1 else 's'}, against the estimated FLOP of a fit, what it builds on counted in. "
        "Line: Pareto front, no cheaper method scores as high; it does not say that differences are significant. "
        + world
    )
    top, body, bottom = 0.15, 2.6, 0.5 + NOTE_HEIGHT * len(note)
    height = top + body + bottom
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.07, right=0.74, top=1 - top / height, bottom=bottom / height)
    spent = [point.flops for point in points if point.flops > 0]
    edge = min(spent, default=1.0) / 3
    places = {point.method: (point.flops or edge) / 1e12 for point in points}
    counts: dict[str, int] = {}
    for point in points:
        family = names.family(point.method)
        marker = MARKERS[counts.setdefault(family, 0) % len(MARKERS)]
        counts[family] += 1
        axes.plot(
            places[point.method],
            point.score,
            marker,
            color=FAMILY_INK[family],
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linestyle="none",
            label=names.title(point.method),
            zorder=3,
        )
    front = pareto(points)
    axes.step([places[each.method] for each in front], [each.score for each in front], where="post", color=INK, lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")  # by default a log axis needs mathematical text, which is off
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.set_xlabel("Cost of fitting (TFLOP, estimated; left edge: none)")
    axes.set_ylabel("Mean score (%)")
    axes.grid(axis="both")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=7, handletextpad=0.3)
    write_note(figure, note)
    return figure
