"""Table 5, what methods cost, and the figure of cost against score."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from metatuner.analysis.comparison import Comparison, compare
from metatuner.analysis.drawing import COLOURS, INK, NOTE_HEIGHT, WIDTH, draw, note_lines, write_note
from metatuner.analysis.labels import (
    DEFAULT_VARIANT,
    benchmark_title,
    describe_world,
    method_family,
    method_rank,
    method_title,
)
from metatuner.analysis.plain_tables import PlainTable, write_plain
from metatuner.analysis.scores import RERUN, read_scores
from metatuner.errors import UserError
from metatuner.files import read_json
from metatuner.harness.config import Config
from metatuner.harness.layout import Layout

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


def fit_costs(config: Config) -> dict[str, list[dict[str, Any]]]:
    """cost.json of the main experiment's fits by method; what a fit builds on is counted in."""
    layout, found = Layout(config), {}
    generator = config.experiments["main"].generators[0]
    for score in read_scores(layout.scores):
        wanted = (score.experiment, score.variant, score.status) == ("main", DEFAULT_VARIANT, "ok")
        if wanted and score.generator in ("", generator):
            found[score.cell] = score.method
    costs: dict[str, list[dict[str, Any]]] = {}
    for cell, method in found.items():
        fit = read_json(layout.cell(cell) / "cell.json", RERUN)["fit"]
        costs.setdefault(method, []).append(read_json(layout.fit(fit) / "cost.json", RERUN))
    return {method: costs[method] for method in sorted(costs, key=method_rank)}


def table_5(config: Config) -> list[Path]:
    """What fitting costs, and what a query costs: `tables/table_5.{csv,md,tex}`; the paths written."""
    layout = Layout(config)
    timings = _timings(layout.efficiency)
    rows = []
    for method, costs in fit_costs(config).items():
        own = [row for row in timings if row["method"] == method]

        def told(name: str, own: Sequence[Mapping[str, str]] = own) -> str:
            return f"{mean(float(row[name]) for row in own):.2f}" if own else ""

        peak = max(cost["peak_gpu_memory_bytes"] or cost["peak_memory_bytes"] for cost in costs)
        rows.append(
            [
                method_title(method),
                f"{mean(cost['seconds'] for cost in costs):.1f}",
                f"{mean(cost['flops'] for cost in costs) / 1e12:.3g}",
                f"{mean(cost['lm_calls'] for cost in costs):,.0f}",
                f"{mean(cost['trained_tokens'] for cost in costs):,.0f}",
                f"{peak / 1e6:,.0f}",
                told("write_ms"),
                told("answer_ms"),
                told("write_share"),
                told("overhead"),
                _megabytes(own),
            ]
        )
    header = ["method", "fit, s", "fit, TFLOP", "fit, LM calls", "fit, tokens trained", "fit, largest memory, MB"]
    header += ["writing, ms a query", "answering, ms a query", "writing / answering", "both / plain actor"]
    header.append("writing, largest memory, MB")
    devices = ", ".join(sorted({row["device"] for row in timings})) or "none"
    titles = [benchmark_title(name, config.benchmarks[name].source) for name in config.experiments["main"].benchmarks]
    queries = (
        f"{timings[0]['queries']} tune rows a benchmark, {timings[0]['repeats']} rounds" if timings else "not timed"
    )
    notes = [
        f"Fits: means over seeds and {', '.join(titles)}, with what a method builds on; seconds are those of `fit` "
        "itself. FLOP are estimated from tokens and weights.",
        f"Queries: one seed, {queries}, on {devices}; writing is a query's prompt and parameters, the plain actor "
        "answers under p~. Ratios are means over benchmarks of medians over rounds, not ratios of these columns. Other "
        "work on the machine blurs times, less their ratios. Memory is what writing for these "
        "rows at once holds beyond the models.",
        *_shares(timings, config),
        "Paper (secondary sources): 0.03 to 0.53 s a query for prompt and parameters, on A100 GPUs with its 7B and 3B "
        "models; not comparable with these.",
    ]
    table = PlainTable("Table 5: efficiency", describe_world(config, "main"), header, rows, notes)
    return write_plain(config, "table_5", table)


def _shares(timings: Sequence[Mapping[str, str]], config: Config) -> list[str]:
    """MetaTuner-J's share of writing on each benchmark, with its quartiles over rounds: what claim 10 is about."""
    told = [
        f"{benchmark_title(row['benchmark'], config.benchmarks[row['benchmark']].source)} "
        f"{float(row['write_share']):.2f} [{float(row['write_share_low']):.2f}, {float(row['write_share_high']):.2f}]"
        for row in timings
        if row["method"] == "metatuner_j"
    ]
    name = method_title("metatuner_j")
    return [f"Writing / answering of {name}, with quartiles over rounds: {', '.join(told)}."] if told else []


def _megabytes(timings: Sequence[Mapping[str, str]]) -> str:
    """The largest memory of writing; "" where nothing was timed, or by a version that did not measure it."""
    found = [float(row["write_bytes"]) for row in timings if row.get("write_bytes")]
    return f"{max(found) / 1e6:,.1f}" if found else ""


def _timings(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"no file {path}; run `snakemake --cores all efficiency` with this run's preset") from None


# ---- cost against score --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A method's mean cost and score."""

    method: str
    flops: float
    """Of a fit, with what it builds on."""
    score: float
    """0 to 100, averaged over benchmarks."""


def pareto(points: Sequence[Point]) -> list[Point]:
    """Points that no other matches at a lower cost, from the cheapest: each scores above all cheaper ones."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.flops, -each.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def figure_cost(config: Config) -> list[Path]:
    """Score against the cost of fitting: `figures/figure_cost.{png,pdf}`; the paths written."""
    comparison, costs = compare(config, "main"), fit_costs(config)
    points = _points(comparison, costs)
    sizes = [entry for entry in comparison.entries.values() if entry.mean]
    seeds = max((len(entry.seeds) for entry in sizes), default=0)
    return draw(config, "figure_cost", lambda: draw_cost(points, seeds, describe_world(config, "main")))


def _points(comparison: Comparison, costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Point]:
    found = []
    for method, spent in costs.items():
        entries = [comparison.entries.get(((method, DEFAULT_VARIANT), name)) for name in comparison.benchmarks]
        means = [entry.mean.estimate for entry in entries if entry and entry.mean]
        if len(means) == len(comparison.benchmarks):  # an average over fewer would be another quantity
            found.append(Point(method, mean(float(cost["flops"]) for cost in spent), 100 * mean(means)))
    return found


def draw_cost(points: Sequence[Point], seeds: int, world: str) -> "Figure":
    """A point a method; those that cost nothing stand at the left edge, and the front is a staircase."""
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
        family = method_family(point.method)
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
            label=method_title(point.method),
            zorder=3,
        )
    front = pareto(points)
    axes.step([places[each.method] for each in front], [each.score for each in front], where="post", color=INK, lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")  # a log axis writes its powers as mathematics otherwise, which is off
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.set_xlabel("Cost of fitting (TFLOP, estimated; left edge: none)")
    axes.set_ylabel("Mean score (%)")
    axes.grid(axis="both")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=7, handletextpad=0.3)
    write_note(figure, note)
    return figure
