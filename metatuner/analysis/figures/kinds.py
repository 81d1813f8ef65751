"""The main experiment by kind of query, as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metatuner.analysis.figures.drawing import (
    INK,
    NOTE_HEIGHT,
    WIDTH,
    draw,
    note_lines,
    panel_title,
    printable,
    title_room,
    write_note,
)
from metatuner.analysis.names import Names, describe_world, title_in
from metatuner.analysis.results.kinds import ByKind, by_kind
from metatuner.config import Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND_LENGTH = 24
"""Maximum characters of a kind's name under a panel."""
MOST_KINDS = 8
"""Maximum kinds in a panel, the most frequent of the benchmark; the table has all kinds."""


def figure_kinds(config: Config) -> list[Path]:
    """Draw `figures/figure_kinds.{png,pdf}`: a panel per benchmark, methods by kinds, each field with its mean."""
    found, names = by_kind(config), Names.of(config)
    titles = {name: title_in(config, name) for name in config.benchmarks}
    world = describe_world(config, config.main)
    return draw(config, "figure_kinds", lambda: draw_kinds(found, titles, names, world))


def draw_kinds(found: Sequence[ByKind], titles: Mapping[str, str], names: Names, world: str) -> "Figure":
    """Draw fields that are darker for a higher mean, with the mean in print; n is under each kind."""
    from matplotlib.figure import Figure

    methods = sorted(dict.fromkeys(one.method for one in found), key=names.rank)
    benchmarks = list(dict.fromkeys(one.benchmark for one in found))
    kinds = {benchmark: _shown(found, benchmark) for benchmark in benchmarks}
    note = note_lines(
        "Mean over seeds and the test rows of a kind (n under its name), in %; intervals are in the table, and at "
        "these n are wide: differences of ten points are often noise. " + world
    )
    left = 0.2 + 0.062 * max(len(names.title(method)) for method in methods)
    top = 0.3 + title_room(titles[name] for name in benchmarks)
    body, bottom = 0.19 * len(methods), 0.75 + NOTE_HEIGHT * len(note)
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
        axes.set_title(panel_title(titles[benchmark]), loc="left", fontweight="bold")
        axes.spines["bottom"].set_visible(False)
    panels[0].set_yticks(range(len(methods)), [names.title(method) for method in methods])
    write_note(figure, note)
    return figure


def _shown(found: Sequence[ByKind], benchmark: str) -> list[str]:
    sizes = {one.kind: one.n for one in found if one.benchmark == benchmark}
    most = sorted(sizes, key=lambda kind: (-sizes[kind], kind))[:MOST_KINDS]
    return [kind for kind in sizes if kind in most]
