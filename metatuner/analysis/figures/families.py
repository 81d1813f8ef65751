"""Figure 1: prompt optimisers beside fine-tuning methods, and SFT under different prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.analysis.figures.drawing import (
    COLOURS,
    FAINT,
    INK,
    NOTE_HEIGHT,
    WIDTH,
    draw,
    note_lines,
    whiskers,
    write_note,
)
from metatuner.analysis.names import METRICS, Names, describe_world, variant_title
from metatuner.analysis.results.comparison import Comparison, Entry, MethodId, compare, unequal_tuning
from metatuner.config import DEFAULT_VARIANT, Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP<>X"
FAMILIES = {"prompt": COLOURS[0], "parameter": COLOURS[1]}
"""The two families that the left side compares, with their colours."""
SPREAD = 0.36
"""Distance of the outermost point from its benchmark's place on the axis; benchmarks are 1 apart."""
HEIGHT = 2.5
"""Height of the panels, in inches."""


def figure_1(config: Config) -> list[Path]:
    """Draw `figures/figure_1.{png,pdf}`; it has a right side if the config has the experiment `sft_prompts`."""
    left = compare(config, config.main)
    right = compare(config, "sft_prompts") if "sft_prompts" in config.experiments else None
    return draw(config, "figure_1", lambda: draw_families(left, right, describe_world(config, config.main)))


def draw_families(left: Comparison, right: Comparison | None, world: str) -> "Figure":
    """Draw benchmarks along the axis and methods side by side; shapes show methods, colours show families."""
    from matplotlib.figure import Figure

    shown = [method for method in left.methods if left.names.family(method[0]) in FAMILIES]
    note = note_lines(_note(left, right, world), 0.95 * WIDTH)
    rows = -(-max(len(shown), 1) // 4)
    lines = max((len(title.split()) for title in left.titles.values()), default=1)
    top, bottom = 0.32 + 0.15 * max(rows, 2), 0.5 + 0.14 * max(lines - 2, 0) + NOTE_HEIGHT * len(note)
    height = top + HEIGHT + bottom
    figure = Figure(figsize=(WIDTH, height))
    widths = [1.45, 1] if right else [1]
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    figure.subplots_adjust(left=0.065, right=0.99, top=1 - top / height, bottom=bottom / height, wspace=0.06)
    _draw_side(panels[0], left, [(method, _style(method, shown, left.names)) for method in shown])
    panels[0].set_ylabel("Score (%)")
    _caption(panels[0], "Prompt optimisers and fine-tuning", 4)
    if right is not None:
        variants = list(right.methods)
        styles = [(method, ("*", COLOURS[index % len(COLOURS)])) for index, method in enumerate(variants)]
        _draw_side(panels[1], right, styles, size=9)
        _draw_best(panels[1], left, right)
        _caption(panels[1], "SFT, trained and tested under", 2)
    write_note(figure, note)
    return figure


def _style(method: MethodId, shown: Sequence[MethodId], names: Names) -> tuple[str, str]:
    family = names.family(method[0])
    place = [each for each in shown if names.family(each[0]) == family].index(method)
    return MARKERS[place % len(MARKERS)], FAMILIES[family]


def _draw_side(
    axes: "Axes", comparison: Comparison, styles: Sequence[tuple[MethodId, tuple[str, str]]], size: float = 4.5
) -> None:
    step = 2 * SPREAD / max(len(styles) - 1, 1)
    for index, (method, (marker, colour)) in enumerate(styles):
        entries = {place: comparison.entries.get((method, name)) for place, name in enumerate(comparison.benchmarks)}
        measured = {place: entry for place, entry in entries.items() if entry and entry.mean}
        label = variant_title(method[1]) if marker == "*" else comparison.names.title(*method)
        _draw_points(axes, measured, index * step - SPREAD if len(styles) > 1 else 0.0, marker, colour, label, size)
    titles = [comparison.titles[name].replace(" ", "\n") for name in comparison.benchmarks]
    axes.set_xticks(range(len(titles)), titles)
    axes.set_xlim(-0.6, len(titles) - 0.4)
    axes.set_ylim(0, 100)
    axes.grid(axis="y")
    for place in range(1, len(titles)):
        axes.axvline(place - 0.5, color="#dddddd", linewidth=0.6)


def _draw_points(
    axes: "Axes", entries: Mapping[int, Entry], shift: float, marker: str, colour: str, label: str, size: float
) -> None:
    means = {place: entry.mean for place, entry in entries.items() if entry.mean}
    axes.errorbar(
        [place + shift for place in means],
        [100 * mean.estimate for mean in means.values()],
        yerr=[
            [100 * (mean.estimate - mean.low) for mean in means.values()],
            [100 * (mean.high - mean.estimate) for mean in means.values()],
        ],
        fmt=marker,
        color=colour,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.4,
        ecolor=colour,
        elinewidth=0.8,
        label=label,
    )


def best_prompt_optimiser(main: Comparison, benchmark: str) -> Entry | None:
    """The prompt method with the highest mean on a benchmark; None if none has a result."""
    found = [
        entry
        for entry in main.of(benchmark)
        if main.names.family(entry.method) == "prompt" and entry.variant == DEFAULT_VARIANT and entry.mean
    ]
    return max(found, key=lambda entry: entry.mean.estimate if entry.mean else 0.0, default=None)


def _draw_best(axes: "Axes", left: Comparison, right: Comparison) -> None:
    label: str | None = "highest prompt optimiser"
    for place, name in enumerate(right.benchmarks):
        best = best_prompt_optimiser(left, name)
        if best and best.mean and best.mark != "floor":
            level = 100 * best.mean.estimate
            ends = [place - 0.45, place + 0.45]
            axes.plot(ends, [level, level], "--", color=INK, linewidth=1.0, label=label)
            axes.fill_between(ends, 100 * best.mean.low, 100 * best.mean.high, color=INK, alpha=0.08, linewidth=0)
            label = None


def _caption(axes: "Axes", title: str, columns: int) -> None:
    lines = -(-len(axes.get_legend_handles_labels()[1]) // columns)
    axes.set_title(title, loc="left", fontweight="bold", pad=4 + 11 * lines)
    if lines:
        near = {"handlelength": 1.4, "handletextpad": 0.2, "columnspacing": 0.8, "borderpad": 0.2, "borderaxespad": 0.0}
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, fontsize=6, **near)
    axes.spines["bottom"].set_color(FAINT)


def _note(left: Comparison, right: Comparison | None, world: str) -> str:
    sides = [("Left", left)] + ([("right", right)] if right else [])
    sizes = []
    for side, comparison in sides:
        entries = list(comparison.entries.values())
        n, seeds = max(entry.n for entry in entries), max(len(entry.seeds) for entry in entries)
        sizes.append(f"{side}: n = {n} test rows per benchmark, {seeds} seed{'' if seeds == 1 else 's'}")
    metric = ", ".join(
        f"{left.titles[name]} {METRICS.get(metric, metric).lower()}"
        for name in left.benchmarks
        if (metric := next((entry.metric for entry in left.of(name) if entry.metric), ""))
    )
    warning = unequal_tuning(left)
    highest = (
        f" Dashed: the highest of {len(optimisers)} prompt optimisers on these test rows (chosen by looking), with its "
        "interval."
        if right and (optimisers := [each for each in left.methods if left.names.family(each[0]) == "prompt"])
        else ""
    )
    told = whiskers(left.entries.values())
    if right and (other := whiskers(right.entries.values())) != told:
        told += f" (right, {other})"
    inherited = " SFT's rates were searched under p~; other prompts inherit them." if right else ""
    return (
        f"{'; '.join(sizes)}. Points: mean over seeds and test queries; {told}. {metric}."
        f"{highest}{inherited} {f'{warning} ' if warning else ''}{world}"
    )
