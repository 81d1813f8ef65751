"""Score against compute: what the trials of a search reached on tune rows, by what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.analysis.figures.costs import FAMILY_INK
from metatuner.analysis.figures.drawing import FAINT, NOTE_HEIGHT, WIDTH, draw, note_lines, write_note
from metatuner.analysis.names import Names, describe_world, title_in
from metatuner.config import Config, Layout
from metatuner.errors import UserError
from metatuner.files import read_json, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))
SEARCH_FIRST = "run `snakemake --cores all figure_budget` with this preset"


@dataclass(frozen=True)
class Trial:
    """What one setting of a method cost, and what it reached on the tune rows."""

    tflop: float
    """With what it builds on."""
    score: float
    """0 to 100."""


def figure_budget(config: Config) -> list[Path]:
    """Draw each method's best score so far against compute, and write the best score within each budget.

    Returns:
        The paths written: `figures/figure_budget.{png,pdf,csv}`.
    """
    layout, names = Layout(config), Names.of(config)
    trials = {key: found for key in _searched(config) if (found := _trials(layout.tune(*key)))}
    if not trials:
        raise UserError(f"{layout.root}: no finished search; {SEARCH_FIRST}")
    limited = {name: budget for name, budget in config.budgets.items() if budget.tflop is not None}
    limits = {
        benchmark: {name: float(budget.limits((benchmark,))["tflop"] or 0) for name, budget in limited.items()}
        for benchmark in config.benchmarks
    }
    benchmarks = [name for name in config.benchmarks if any(benchmark == name for _, benchmark in trials)]
    lines = [
        [names.title(method), benchmark, *(_shown(best(found, limit)) for limit in limits[benchmark].values())]
        for (method, benchmark), found in trials.items()
    ]
    table = layout.figure("figure_budget", "csv")
    written = write_csv(table, [["method", "benchmark", *(f"within budget {name}" for name in limited)], *lines])
    titles = {name: title_in(config, name) for name in benchmarks}
    world = describe_world(config, config.main)
    return [*draw(config, "figure_budget", lambda: _drawn(trials, titles, limits, names, world)), written]


def best(trials: Sequence[Trial], limit: float) -> float | None:
    """The best score of the trials that keep the limit (TFLOP); None if none does."""
    return max((trial.score for trial in trials if trial.tflop <= limit), default=None)


def so_far(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that score above all cheaper ones, cheapest first; then the dearest, at the best score."""
    found: list[Trial] = []
    ordered = sorted(trials, key=lambda trial: (trial.tflop, -trial.score))
    for trial in ordered:
        if not found or trial.score > found[-1].score:
            found.append(trial)
    return [*found, Trial(ordered[-1].tflop, found[-1].score)]


def _searched(config: Config) -> list[tuple[str, str]]:
    """Methods and benchmarks of the main experiment."""
    main = config.experiments[config.main]
    return [(method, benchmark) for method in main.methods for benchmark in main.benchmarks]


def _trials(path: Path) -> list[Trial]:
    if not path.is_file():
        return []
    record = read_json(path, SEARCH_FIRST, {"trials": [{"status": str}]})
    done = [each for each in record["trials"] if each["status"] == "ok" and each.get("tflop")]
    return [Trial(float(each["tflop"]), float(each["score"])) for each in done]


def _shown(score: float | None) -> str:
    return "" if score is None else f"{score:.1f}"


def _drawn(
    trials: dict[tuple[str, str], list[Trial]],
    titles: dict[str, str],
    limits: dict[str, dict[str, float]],
    names: Names,
    world: str,
) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    note = note_lines(
        "Best score on tune rows among settings that cost at most so much (one seed, one setting after the other; no "
        "test row is read). Vertical lines: budgets. A maximum over more trials is higher by chance alone. " + world
    )
    columns = min(2, len(titles))
    rows = -(-len(titles) // columns)
    top, body, bottom = 0.25, 2.3 * rows, 0.55 + NOTE_HEIGHT * len(note)
    height = top + body + bottom
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    figure.subplots_adjust(
        left=0.07, right=0.75, top=1 - top / height, bottom=bottom / height, hspace=0.25, wspace=0.18
    )
    methods = list(dict.fromkeys(method for method, _ in trials))
    styles: dict[str, object] = {}
    for family in FAMILY_INK:
        own = [method for method in methods if names.family(method) == family]
        styles |= dict(zip(own, cycle(STYLES), strict=False))
    for place, (benchmark, title) in enumerate(titles.items()):
        panel = axes[place // columns][place % columns]
        for method in methods:
            if (method, benchmark) in trials:
                line = so_far(trials[method, benchmark])
                panel.step(
                    [trial.tflop for trial in line],
                    [trial.score for trial in line],
                    where="post",
                    color=FAMILY_INK[names.family(method)],
                    linestyle=styles[method],
                    lw=1.2,
                    label=names.title(method),
                )
        for limit in limits[benchmark].values():
            panel.axvline(limit, color=FAINT, lw=0.6)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")  # by default a log axis needs mathematical text, which is off
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_title(title, loc="left")
        panel.grid(axis="both")
    for unused in list(axes.flat)[len(titles) :]:
        unused.set_visible(False)
    figure.supxlabel(
        "Compute of a fit with what it builds on (TFLOP, estimated)", y=(bottom - 0.42) / height, fontsize=8
    )
    axes[0][0].set_ylabel("Best tune score (%)")
    handles = {
        text: handle for panel in axes.flat for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="upper left",
        bbox_to_anchor=(0.76, 1 - top / height),
        fontsize=6.5,
        handlelength=2.4,
    )
    write_note(figure, note)
    return figure
