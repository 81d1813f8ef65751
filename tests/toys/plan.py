"""Plans of the nano preset, each made once per process: for the main experiment, or for one more grid beside it."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from metatuner.config import load_config
from metatuner.plan import Fit, Plan

OTHERS = ("ablation", "sharing", "regularisation", "d2", "rollouts", "small", "generalisation", "sft_prompts")


def plan(overrides: Mapping[str, Any] | None = None, preset: str = "nano") -> Plan:
    """The plan of the main experiment alone. It is cached unless files other than the preset decide it."""
    alone: dict[str, Any] = {f"experiments.{name}": None for name in OTHERS}
    told = {"tuning.winners": None, **alone, **(overrides or {})}
    fixed = told["tuning.winners"] is None and not any(key.startswith(("extra", "models.actor.path")) for key in told)
    return _made(preset, json.dumps(told)) if fixed else Plan(load_config(preset, told))


@cache
def _made(preset: str, overrides: str) -> Plan:
    return Plan(load_config(preset, json.loads(overrides)))


@cache
def whole_plan(preset: str = "nano") -> Plan:
    """The plan of all experiments, untuned."""
    return Plan(load_config(preset, {"tuning.winners": None}))


def plan_of(method: str = "metatuner_j", variants: Mapping[str, Any] | None = None, **keys: Any) -> Plan:
    """A plan with one more experiment, `grid`, on one benchmark with one seed."""
    grid = {"methods": [method], "benchmarks": ["gsm8k"], "seeds": [0], "generator": "large"}
    grid |= {"variants": {method: variants or {}}}
    overrides = {name.replace("__", "."): value for name, value in keys.items() if "__" in name}
    return plan({"experiments.grid": grid | {k: v for k, v in keys.items() if "__" not in k}, **overrides})


def fits_of(made: Plan, experiment: str = "grid") -> dict[Any, Fit]:
    """The fit of each variant (and generator, if there are several) of a plan's experiment."""
    rows = [row for row in made.grid.rows if row.experiment == experiment]
    several = len({row.generator for row in rows if row.generator}) > 1
    return {(row.variant, row.generator) if several else row.variant: made.grid.fits[row.fit] for row in rows}
