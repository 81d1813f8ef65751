"""Figures of experiments with variants that differ in one setting: a score for each value, with its interval."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from metatuner.analysis.figures.drawing import (
    COLOURS,
    FLOOR,
    NOTE_HEIGHT,
    WIDTH,
    draw,
    note_lines,
    panel_title,
    size,
    title_room,
    whiskers,
    write_note,
)
from metatuner.analysis.names import METRICS, SETTINGS, Names, describe_world, value_title
from metatuner.analysis.results.comparison import Comparison, Entry, compare, unequal_tuning
from metatuner.analysis.results.published import STATED
from metatuner.analysis.results.scores import cell_folder, read_scores
from metatuner.analysis.results.stored import fit_folder
from metatuner.analysis.statistics import Array
from metatuner.config import Config, Layout
from metatuner.files import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NARROWEST, PANEL, PANEL_HEIGHT = 5.2, 2.3, 1.75
"""Inches: a figure's minimum width, a panel's width if there are few panels, a panel's height."""

CONTROL = 1.0
"""The depth at which h_i is read in the control of the sharing experiment, as a share of K."""

CAVEATS = {
    "sharing": "At k = 0 F reads its own copy of the first half of the layers. F's own layers train at the generator's "
    "rate, as shared ones do. Rates were searched at K/2 with the main experiment's generator, and its other points "
    "inherit them; the other generator has the preset's own.",
    "d2": "Rates were searched with the best rollouts; other ways inherit them. The ways differ in the size of D2 too, "
    "and so in the generator's warm-up steps; an experiment's own budget lets each spend what it needs.",
    "rollouts": "Rates were searched with the preset's number; other points inherit them. D2 grows with the rollouts, "
    "and so does the generator's warm-up; an experiment's own budget lets each spend what it needs.",
    "regularisation": "Prompts in training: with supervised regularisation written at prompt_temperature, with "
    "Gumbel-Softmax sampled in each step at 1; the two task losses, and numbers of steps, are not alike.",
}
"""What a reader of an experiment's figure must know besides its numbers."""

MARKERS = "osD^vP"

DODGE = 0.12
"""Distance between two series at one value; values are 1 apart."""


@dataclass(frozen=True)
class Series:
    """Points that belong together: for each panel (generator, benchmark), entries by their place on the axis."""

    title: str
    points: Mapping[tuple[str, str], Mapping[int, Entry]]


def grid_figure(config: Config, name: str, experiment: str) -> list[Path]:
    """Draw scores by the value of the experiment's axis: `figures/NAME.{png,pdf}`; returns the paths written."""
    comparisons = _comparisons(config, experiment)
    return draw(config, name, lambda: draw_grid(config, experiment, comparisons))


def figure_4(config: Config) -> list[Path]:
    """Draw scores and training curves of supervised regularisation and Gumbel-Softmax: `figures/figure_4.{png,pdf}`."""
    comparisons, curves = _comparisons(config, "regularisation"), read_curves(config, "regularisation")
    return draw(config, "figure_4", lambda: draw_objectives(config, "regularisation", comparisons, curves))


def _comparisons(config: Config, experiment: str) -> list[Comparison]:
    return [compare(config, experiment, generator=name) for name in config.experiments[experiment].generators]


# ---- an axis -------------------------------------------------------------------------------------------------------


def draw_grid(config: Config, experiment: str, comparisons: Sequence[Comparison]) -> "Figure":
    """Draw one panel per benchmark and generator; lines join points only if the values on the axis are numbers."""
    design = config.experiments[experiment]
    setting, points = str(design.axis), design.points
    values = list(dict.fromkeys(points.values()))
    numbers = all(isinstance(value, int | float) for value in values)
    values = sorted(values) if numbers else values
    series = _series(config, experiment, comparisons, values)
    labels = [value_title(setting, value) for value in values]
    note = _note(config, experiment, comparisons, ["Points: mean over seeds and test queries"])
    slanted = not numbers and _shape(comparisons)[0] > 2
    labels = [label.replace("\n", " ") for label in labels] if slanted else labels
    ticks = 0.55 if slanted else 0.28 if any("\n" in label for label in labels) else 0.15
    figure, rows = _panels(comparisons, len(series) > 1, len(note), ticks)
    for (generator, benchmark), axes in rows.items():
        found = [(each.title, each.points[generator, benchmark]) for each in series]
        _draw_points(axes, labels, found, joined=numbers)
        if slanted:
            axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor", fontsize=7)
    width, height = figure.get_size_inches()
    foot = (0.16 + NOTE_HEIGHT * len(note)) / height
    figure.text(0.5 + 0.2 / width, foot, SETTINGS.get(setting, setting), ha="center", va="bottom")
    _finish(figure, rows, comparisons, note)
    return figure


def _series(config: Config, experiment: str, comparisons: Sequence[Comparison], values: Sequence[Any]) -> list[Series]:
    """One series for each way in which variants differ besides the axis, in the order of the config."""
    design = config.experiments[experiment]
    found: dict[str, dict[tuple[str, str], dict[int, Entry]]] = {}
    for (method, variant), value in design.points.items():
        for title in _series_titles(config, experiment, method, variant):
            for comparison in comparisons:
                for benchmark in comparison.benchmarks:
                    panel = found.setdefault(title, {}).setdefault((comparison.generator, benchmark), {})
                    entry = comparison.entries.get(((method, variant), benchmark))
                    if entry is not None:
                        panel[values.index(value)] = entry
    return [Series(title, points) for title, points in found.items()]


def _series_titles(config: Config, experiment: str, method: str, variant: str) -> list[str]:
    """Titles of the series that a variant belongs to: usually one."""
    design = config.experiments[experiment]
    over = design.variants[method][variant]
    if design.axis == "shared_layers":
        # If sharing ends at the control's depth, the depth that follows k and the fixed depth are the same.
        share, depth = over["shared_layers"], over.get("encoder_layers")
        follows, fixed = depth is None, depth == CONTROL or (depth is None and share == CONTROL)
        return ["h read where sharing ends"] * follows + ["control: h read at K"] * fixed
    *required, setting = str(design.axis).split(".")
    rest = {key: value for key, value in over.items() if key not in (setting, *required, "generator")}
    others = ", ".join(f"{key} = {value}" for key, value in rest.items())
    return [Names.of(config).title(method) + (f", {others}" if others else "")]


# ---- two objectives ------------------------------------------------------------------------------------------------

OBJECTIVES = {"default": "Supervised\nregularisation", "gumbel": "Gumbel-\nSoftmax"}
"""Names in print of the experiment's variants."""


@dataclass(frozen=True)
class Curve:
    """The task loss of one fit's training steps."""

    variant: str
    benchmark: str
    seed: int
    losses: Array


def read_curves(config: Config, experiment: str) -> list[Curve]:
    """The training curves of an experiment's fits with its first generator; fits without a log are left out.

    Raises:
        UserError: a log has a line that is not JSON.
    """
    layout = Layout(config)
    generator = config.experiments[experiment].generators[0]
    found = {}
    for score in read_scores(layout.scores):
        if score.experiment == experiment and score.generator == generator and score.status == "ok":
            identity = cell_folder(layout.root, score.cell) / "cell.json"
            if identity.is_file():
                log = fit_folder(layout, score.cell) / "log.jsonl"
                if log.is_file() and (losses := _task_losses(log)):
                    key = (score.variant, score.benchmark, score.seed)
                    found[key] = Curve(*key, np.array(losses))
    return list(found.values())


def _task_losses(log: Path) -> list[float]:
    """The task term of each step that has one; if nothing else is minimised, the task term is the loss."""
    losses = []
    number = (int, float, NoneType)  # NaN in a fit that diverged
    for event in read_lines(log, "remove the fit, run it again", {"task?": number, "loss?": number}):
        loss = event.get("task", event.get("loss") if "prompt" not in event else None)
        if "step" in event and loss is not None:
            losses.append(float(loss))
    return losses


def draw_objectives(
    config: Config, experiment: str, comparisons: Sequence[Comparison], curves: Sequence[Curve]
) -> "Figure":
    """Draw scores above, and the training curves of the same fits below."""
    comparison = comparisons[0]
    labels = [OBJECTIVES.get(variant, variant) for _, variant in comparison.methods]
    note = _note(
        config,
        experiment,
        comparisons[:1],
        ["Above: mean over seeds and test queries"],
        "Below: the task loss of training, each line the mean over seeds of running means over a twentieth of the steps"
        + (" (band: from the lowest seed to the highest)" if _most_seeds(comparisons) > 1 else "")
        + "; colours as above.",
    )
    figure, rows = _panels(comparisons[:1], False, len(note), 0.28, below=True)
    for (_, benchmark), axes in rows.items():
        for place, method in enumerate(comparison.methods):
            if (method, benchmark) in comparison.entries:
                _draw_entry(axes, place, comparison.entries[method, benchmark], place)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.grid(axis="y")
    lower = figure.axes[len(rows) :]
    for axes, benchmark in zip(lower, comparison.benchmarks, strict=True):
        for place, (_, variant) in enumerate(comparison.methods):
            own = [each for each in curves if (each.variant, each.benchmark) == (variant, benchmark)]
            _draw_curves(axes, own, place)
        if not axes.lines:
            axes.text(0.5, 0.5, "no logs at hand", transform=axes.transAxes, ha="center", style="italic")
        axes.set_xlabel("Training steps (%)")
        axes.grid(axis="y")
    lower[0].set_ylabel("Task loss (nats per token)")
    _finish(figure, rows, comparisons[:1], note)
    return figure


def _draw_curves(axes: "Axes", curves: Sequence[Curve], place: int) -> None:
    if not curves:
        return
    shares = np.linspace(0, 100, 101)
    smooth = []
    for curve in curves:
        width = max(1, len(curve.losses) // 20)
        running = np.convolve(curve.losses, np.ones(width) / width, mode="valid")
        smooth.append(np.interp(shares, np.linspace(0, 100, len(running)), running))
    lines = np.stack(smooth)
    axes.plot(shares, lines.mean(axis=0), color=COLOURS[place], linewidth=1.2, linestyle=("-", "--", ":")[place % 3])
    if len(lines) > 1:
        axes.fill_between(shares, lines.min(axis=0), lines.max(axis=0), color=COLOURS[place], alpha=0.2, linewidth=0)


# ---- panels --------------------------------------------------------------------------------------------------------


def _panels(
    comparisons: Sequence[Comparison], legend: bool, note: int, ticks: float, below: bool = False
) -> tuple["Figure", dict[tuple[str, str], "Axes"]]:
    """A figure, and its panels by (generator, benchmark).

    Generators go down the page, or across it if there is one benchmark. `note` is the number of lines under the panels.
    Tick labels take `ticks` inches. `below` adds a row of panels.
    """
    from matplotlib.figure import Figure

    keys = [(each.generator, benchmark) for each in comparisons for benchmark in each.benchmarks]
    columns, width = _shape(comparisons)
    rows = -(-len(keys) // columns) + below
    room = title_room(title for each in comparisons for title in each.titles.values())
    top, bottom, gap = 0.5 + 0.24 * legend + room, 0.38 + ticks + NOTE_HEIGHT * note, (0.2 if below else 0.62) + ticks
    bottom += (0.15 - ticks) * below  # one line of tick labels, whatever is above
    height = top + rows * PANEL_HEIGHT + (rows - 1) * gap + bottom
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.55 / width,
        right=1 - 0.12 / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=0.3,
        hspace=gap / PANEL_HEIGHT,
    )
    return figure, dict(zip(keys, axes.flat, strict=False))


def _shape(comparisons: Sequence[Comparison]) -> tuple[int, float]:
    """Columns of panels, and a figure's width in inches."""
    benchmarks = max(len(each.benchmarks) for each in comparisons)
    columns = len(comparisons) if benchmarks == 1 else benchmarks
    return columns, min(WIDTH, max(NARROWEST, 0.7 + PANEL * columns))


def _draw_points(
    axes: "Axes", labels: Sequence[str], series: Sequence[tuple[str, Mapping[int, Entry]]], *, joined: bool
) -> None:
    for index, (title, points) in enumerate(series):
        shift = DODGE * (index - (len(series) - 1) / 2)
        for place, entry in points.items():
            _draw_entry(axes, place + shift, entry, index)
        there = {place: entry.mean for place, entry in sorted(points.items()) if entry.mean}
        axes.plot(
            [place + shift for place in there],
            [100 * mean.estimate for mean in there.values()],
            color=COLOURS[index % len(COLOURS)],
            linewidth=1.0 if joined else 0.0,
            linestyle="-" if index == 0 else "--",
            marker=MARKERS[index % len(MARKERS)],
            markersize=0,
            label=title,
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.grid(axis="y")


def _draw_entry(axes: "Axes", x: float, entry: Entry, index: int) -> None:
    """Draw a mean with its interval, or "no result"."""
    if entry.mean is None:
        axes.text(x, 0.04, "no result", transform=axes.get_xaxis_transform(), rotation=90, fontsize=6, ha="center")
        return
    mean, low, high = (100 * value for value in (entry.mean.estimate, entry.mean.low, entry.mean.high))
    colour = COLOURS[index % len(COLOURS)]
    axes.errorbar(
        x,
        mean,
        yerr=[[mean - low], [high - mean]],
        fmt=MARKERS[index % len(MARKERS)],
        color=colour,
        markersize=4.5,
        elinewidth=0.9,
        capsize=2.2,
        capthick=0.9,
    )


def _finish(
    figure: "Figure",
    panels: Mapping[tuple[str, str], "Axes"],
    comparisons: Sequence[Comparison],
    note: list[str],
) -> None:
    """Add titles, sizes, units, the note, and a legend if there are several series."""
    by_generator = {each.generator: each for each in comparisons}
    for (generator, benchmark), axes in panels.items():
        comparison = by_generator[generator]
        entries = comparison.of(benchmark)
        which = f"{generator}: " if len(comparisons) > 1 else ""
        axes.set_title(panel_title(comparison.titles[benchmark]), loc="left", fontweight="bold", pad=13)
        n, seeds = max(entry.n for entry in entries), max(len(entry.seeds) for entry in entries)
        axes.text(
            0,
            1.01,
            which + size(n, seeds, floor=benchmark in comparison.at_floor),
            transform=axes.transAxes,
            fontsize=7,
            color="#555555",
            va="bottom",
        )
        metric = next((entry.metric for entry in entries if entry.metric), "score")
        axes.set_ylabel(f"{METRICS.get(metric, metric)} (%)")
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    width, height = figure.get_size_inches()
    if len(labels) > 1:
        for handle in handles:
            handle.set_markersize(4.5)  # type: ignore[attr-defined]
        figure.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(0.5 / width, 1 - 0.04 / height),
            ncols=len(labels),
            handlelength=2.4,
            borderpad=0.2,
        )
    write_note(figure, note)


def _most_seeds(comparisons: Iterable[Comparison]) -> int:
    return max(len(entry.seeds) for each in comparisons for entry in each.entries.values())


def _note(
    config: Config, experiment: str, comparisons: Sequence[Comparison], opening: Collection[str], more: str = ""
) -> list[str]:
    entries = [entry for each in comparisons for entry in each.entries.values()]
    warnings = dict.fromkeys(filter(None, map(unequal_tuning, comparisons)))
    worlds = dict.fromkeys(describe_world(config, experiment, each.generator) for each in comparisons)
    stated = STATED.get(experiment, "")
    models = ", ".join(
        f"{each.generator} ({config.models.generators[each.generator].title(each.generator)})" for each in comparisons
    )
    text = " ".join(
        [
            f"{'; '.join([*opening, whiskers(entries)])}.",
            *filter(None, [more]),
            *([FLOOR.strip()] if any(each.at_floor for each in comparisons) else []),
            *([f"Generators: {models}."] if len(comparisons) > 1 else []),
            f"The points of a panel share their test queries: paired differences are in table_{experiment}.",
            *(["no result: see scores.csv for the reason."] if any(not entry.mean for entry in entries) else []),
            *warnings,
            *filter(None, [CAVEATS.get(experiment), stated]),
            *worlds,
        ]
    )
    return note_lines(text, _shape(comparisons)[1])
