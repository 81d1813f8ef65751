"""From a resolved config to what must be computed: settings, fits, cells, packs, and keys of what each depends on.

This package does not import torch, because every call of snakemake builds the DAG from it.
"""

from typing import Any

from metatuner.config import Config
from metatuner.harness.describe import describe_method
from metatuner.harness.registry import Registry
from metatuner.plan.grid import Grid
from metatuner.plan.keys import Keys
from metatuner.plan.packs import Packs
from metatuner.plan.searches import Searches
from metatuner.plan.settings import Settings
from metatuner.plan.types import Cell, Fit, Pack, PlanRow, Resolved
from metatuner.plan.winners import Winner

__all__ = ["Cell", "Fit", "Pack", "Plan", "PlanRow", "Resolved", "Winner"]


class Plan:
    """All that a config requires. Building it validates methods, settings and variants by name."""

    def __init__(self, config: Config) -> None:
        self.registry = Registry(config.extra_methods)
        self.config = _with_extra_methods(config, self.registry)
        self.keys = Keys(self.config, self.registry)
        self.layout = self.keys.layout
        self.settings = Settings(self.config, self.registry, self.keys)
        self.grid = Grid(self.config, self.registry, self.keys, self.settings)
        self.packs = Packs(self.config, self.registry, self.grid, self.layout)
        self.searches = Searches(self.config, self.settings, self.grid)

    def check(self) -> "Plan":
        """Resolve all that the experiments need, and return the plan itself. UserError names what is wrong."""
        assert self.packs.evaluations
        return self

    @property
    def descriptions(self) -> list[dict[str, Any]]:
        """Descriptions of the methods in use, sorted by name; see `describe_method`."""
        used = {fit.method for fit in self.grid.fits.values()}
        return [describe_method(self.registry[name].cls) for name in sorted(used)]


def _with_extra_methods(config: Config, registry: Registry) -> Config:
    """The config, with the user's own methods added to the main experiment unless an experiment names them."""
    named = {method for experiment in config.experiments.values() for method in experiment.methods}
    joining = [name for name in registry.extra if name not in named and not registry[name].cls.internal]
    if not joining:
        return config
    main = config.experiments[config.main]
    longer = main.model_copy(update={"methods": [*main.methods, *joining]})
    return config.model_copy(update={"experiments": {**config.experiments, config.main: longer}})
