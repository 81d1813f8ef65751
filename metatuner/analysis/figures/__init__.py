"""The figures of a preset, as PNG and PDF: equal files give equal bytes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from metatuner.analysis.figures.bars import figure_main
from metatuner.analysis.figures.costs import figure_cost
from metatuner.analysis.figures.families import figure_1
from metatuner.analysis.figures.grids import figure_4, grid_figure
from metatuner.analysis.figures.kinds import figure_kinds
from metatuner.config import Config

__all__ = ["figures_of"]

Maker = Callable[[Config], list[Path]]

SHOWN: dict[str, tuple[str, Maker]] = {
    "figure_main": ("main", figure_main),
    "figure_1": ("main", figure_1),
    "figure_kinds": ("main", figure_kinds),
    "figure_cost": ("main", figure_cost),
    "figure_3": ("sharing", partial(grid_figure, name="figure_3", experiment="sharing")),
    "figure_4": ("regularisation", figure_4),
    "figure_5": ("d2", partial(grid_figure, name="figure_5", experiment="d2")),
    "figure_6": ("rollouts", partial(grid_figure, name="figure_6", experiment="rollouts")),
}
"""The experiment that each figure shows, and the function that draws it; `framework.figure_2` draws Figure 2."""


def figures_of(config: Config) -> dict[str, Maker]:
    """The maker of each figure of a preset, by name: the paper's, and `figure_EXPERIMENT` for others with an axis."""
    made = {name: draw for name, (experiment, draw) in SHOWN.items() if experiment in config.experiments}
    for experiment, design in config.experiments.items():
        if design.axis and experiment not in {shown for shown, _ in SHOWN.values()}:
            made[f"figure_{experiment}"] = partial(grid_figure, name=f"figure_{experiment}", experiment=experiment)
    return made
