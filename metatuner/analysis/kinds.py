"""The main experiment by kind of query: a table and a figure."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metatuner.analysis import statistics
from metatuner.analysis.drawing import INK, NOTE_HEIGHT, WIDTH, draw, note_lines, printable, write_note
from metatuner.analysis.escaping import inert
from metatuner.analysis.labels import (
    DEFAULT_VARIANT,
    benchmark_rank,
    benchmark_title,
    describe_world,
    method_rank,
    method_title,
    name_world,
)
from metatuner.analysis.plain_tables import PlainTable, write_plain
from metatuner.analysis.scores import QueryScore, read_query_scores, read_scores
from metatuner.analysis.statistics import Interval
from metatuner.files import write_text
from metatuner.harness.config import Config
from metatuner.harness.layout import Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND_LENGTH = 24
"""Characters of a kind under a panel."""
MOST_KINDS = 8
"""Kinds of one benchmark that a panel shows, the most frequent; the table has all."""


@dataclass(frozen=True)
class ByKind:
    """A method's mean on the test rows of one kind."""

    benchmark: str
    kind: str
    method: str
    n: int
    """Test rows of the kind."""
    seeds: int
    mean: Interval


def by_kind(config: Config) -> list[ByKind]:
    """Means of the main experiment's methods by benchmark and kind; holes are left out."""
    layout = Layout(config)
    generator = config.experiments["main"].generators[0]
    cells: dict[tuple[str, str], list[dict[str, QueryScore]]] = {}
    for cell in dict.fromkeys(
        (score.benchmark, score.method, score.seed, score.cell)
        for score in read_scores(layout.scores)
        if score.experiment == "main"
        and score.variant == DEFAULT_VARIANT
        and score.status == "ok"
        and score.generator in ("", generator)
    ):
        benchmark, method, _, key = cell
        cells.setdefault((benchmark, method), []).append(read_query_scores(layout.root, key))
    found = []
    ordered = sorted(cells, key=lambda each: (benchmark_rank(each[0]), method_rank(each[1])))
    for benchmark, method in ordered:
        runs = cells[benchmark, method]
        kinds: dict[str, list[str]] = {}
        for query, answer in sorted(runs[0].items()):
            kinds.setdefault(answer.kind, []).append(query)
        for kind, queries in sorted(kinds.items()):
            scores = np.array([[run[query].score for query in queries] for run in runs])
            groups = [runs[0][query].group for query in queries]
            seed = statistics.derive_seed("kind", benchmark, method, kind)
            mean = statistics.mean_interval(scores, groups, seed=seed)
            found.append(ByKind(benchmark, kind, method, len(queries), len(runs), mean))
    return found


def table_kinds(config: Config) -> list[Path]:
    """`tables/table_kinds.{csv,md,tex}`: a line a benchmark and kind, a column a method; the CSV is tidy."""
    found = by_kind(config)
    methods = list(dict.fromkeys(one.method for one in found))
    methods.sort(key=method_rank)
    titles = _titles(config)
    rows = []
    for benchmark, kind in dict.fromkeys((one.benchmark, one.kind) for one in found):
        own = {one.method: one for one in found if (one.benchmark, one.kind) == (benchmark, kind)}
        n = next(iter(own.values())).n
        cells = [_cell(own[method].mean) if method in own else "" for method in methods]
        rows.append([titles[benchmark], kind, str(n), *cells])
    notes = [
        "Mean over seeds and the test rows of a kind, in %, with its 95 % bootstrap interval; not corrected for the "
        "number of kinds looked at, and no kind was chosen beforehand."
    ]
    header = ["benchmark", "kind", "n", *(method_title(method) for method in methods)]
    table = PlainTable("Table by kind of query", describe_world(config, "main"), header, rows, notes)
    paths = write_plain(config, "table_kinds", table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["preset", "world", "benchmark", "kind", "method", "n", "seeds", "mean", "low", "high"])
    world = name_world(config, "main")
    for one in found:
        mean = [f"{100 * value:.2f}" for value in (one.mean.estimate, one.mean.low, one.mean.high)]
        names = [inert(text) for text in (config.preset, world, one.benchmark, one.kind, one.method)]
        writer.writerow([*names, str(one.n), str(one.seeds), *mean])
    write_text(paths[0], text.getvalue())
    return paths


def figure_kinds(config: Config) -> list[Path]:
    """`figures/figure_kinds.{png,pdf}`: a panel a benchmark, methods by kinds, each field with its mean."""
    found = by_kind(config)
    return draw(config, "figure_kinds", lambda: draw_kinds(found, _titles(config), describe_world(config, "main")))


def draw_kinds(found: Sequence[ByKind], titles: Mapping[str, str], world: str) -> "Figure":
    """Fields as dark as their mean is high, with the mean in print; n under each kind."""
    from matplotlib.figure import Figure

    methods = sorted(dict.fromkeys(one.method for one in found), key=method_rank)
    benchmarks = list(dict.fromkeys(one.benchmark for one in found))
    kinds = {benchmark: _shown(found, benchmark) for benchmark in benchmarks}
    note = note_lines(
        "Mean over seeds and the test rows of a kind (n under its name), in %; intervals are in the table, and at "
        "these n are wide: differences of ten points are often noise. " + world
    )
    left = 0.2 + 0.062 * max(len(method_title(method)) for method in methods)
    body, top, bottom = 0.19 * len(methods), 0.3, 0.75 + NOTE_HEIGHT * len(note)
    height = top + body + bottom
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplots(
        1, len(benchmarks), squeeze=False, sharey=True, width_ratios=[len(kinds[name]) for name in benchmarks]
    )[0]
    figure.subplots_adjust(left=left / WIDTH, right=0.99, top=1 - top / height, bottom=bottom / height, wspace=0.05)
    for axes, benchmark in zip(panels, benchmarks, strict=True):
        own = {(one.method, one.kind): one for one in found if one.benchmark == benchmark}
        grid = np.full((len(methods), len(kinds[benchmark])), np.nan)
        for row, method in enumerate(methods):
            for column, kind in enumerate(kinds[benchmark]):
                if one := own.get((method, kind)):
                    grid[row, column] = 100 * one.mean.estimate
                    dark = grid[row, column] > 60
                    axes.text(
                        column,
                        row,
                        f"{grid[row, column]:.0f}",
                        ha="center",
                        va="center",
                        fontsize=6.5,
                        color="white" if dark else INK,
                    )
        axes.imshow(grid, cmap="Blues", vmin=0, vmax=110, aspect="auto")
        sizes = [next(one.n for (_, each), one in own.items() if each == kind) for kind in kinds[benchmark]]
        labels = [f"{printable(kind, KIND_LENGTH)}\nn = {n}" for kind, n in zip(kinds[benchmark], sizes, strict=True)]
        axes.set_xticks(range(len(labels)), labels, fontsize=6.5, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_title(titles[benchmark], loc="left", fontweight="bold")
        axes.spines["bottom"].set_visible(False)
    panels[0].set_yticks(range(len(methods)), [method_title(method) for method in methods])
    write_note(figure, note)
    return figure


def _shown(found: Sequence[ByKind], benchmark: str) -> list[str]:
    sizes = {one.kind: one.n for one in found if one.benchmark == benchmark}
    most = sorted(sizes, key=lambda kind: (-sizes[kind], kind))[:MOST_KINDS]
    return [kind for kind in sizes if kind in most]


def _titles(config: Config) -> dict[str, str]:
    return {name: benchmark_title(name, config.benchmarks[name].source) for name in config.benchmarks}


def _cell(mean: Interval) -> str:
    return f"{100 * mean.estimate:.0f} [{100 * mean.low:.0f}, {100 * mean.high:.0f}]"
