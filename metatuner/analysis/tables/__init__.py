"""The tables of a preset: the paper's tables by number, and one table for each other experiment."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from metatuner.analysis.tables.appendix import APPENDIX
from metatuner.analysis.tables.comparisons import write_comparison
from metatuner.analysis.tables.costs import table_5
from metatuner.analysis.tables.kinds import table_kinds
from metatuner.config import DEFAULT_VARIANT, Config

__all__ = ["APPENDIX", "tables_of"]

Maker = Callable[[Config], list[Path]]

SHOWN: dict[str, tuple[str, str, tuple[str, str] | None]] = {
    "table_1": ("main", "Table 1: main results", None),
    "table_2": ("small", "Table 2: main results, smaller generator", None),
    "table_3": (
        "ablation",
        "Table 3: ablation of MetaTuner-J, and further arms (empty: not in the paper)",
        ("metatuner_j", ""),
    ),
    "table_4": ("generalisation", "Table 4: each benchmark, trained on the others", None),
    "table_parts": ("parts", "MetaTuner-J against each branch alone, -I and SFT", ("metatuner_j", "")),
    "table_parts_i": ("parts", "MetaTuner-I against each branch alone, -J and SFT", ("metatuner_i", "")),
}
"""Tables of scores: the experiment that each shows, its title, and the method that the others are compared with. ""
stands for the method's default variant; None means the best of each benchmark."""
OF_MAIN: dict[str, Maker] = {"table_5": table_5, "table_kinds": table_kinds, **APPENDIX}
"""Tables of another form, for presets with the experiment `main`."""


def tables_of(config: Config) -> dict[str, Maker]:
    """The maker of each table of a preset, by name: the paper's, and `table_EXPERIMENT` for every other experiment."""
    made: dict[str, Maker] = {}
    for name, (experiment, title, reference) in SHOWN.items():
        if experiment in config.experiments:
            against = reference and (reference[0], DEFAULT_VARIANT)
            made[name] = partial(write_comparison, name=name, experiment=experiment, title=title, reference=against)
    if "main" in config.experiments:
        made |= OF_MAIN
    for experiment in config.experiments:
        if experiment not in {shown for shown, _, _ in SHOWN.values()}:
            name = f"table_{experiment}"
            made[name] = partial(write_comparison, name=name, experiment=experiment, title=f"Experiment {experiment}")
    return made
