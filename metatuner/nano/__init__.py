"""The nano world: an embedded language, four synthetic benchmarks, and tiny models pretrained on it (docs/nano.md)."""

from importlib import import_module
from typing import Any

from metatuner.nano.keys import model_identity, model_key, world_identity, world_key
from metatuner.nano.problems import BENCHMARKS, as_asked
from metatuner.nano.recipe import RECIPES
from metatuner.nano.world import SPLITS, World, raw_rows, write_rows

__all__ = [
    "BENCHMARKS",
    "RECIPES",
    "SPLITS",
    "World",
    "as_asked",
    "measure",
    "model_identity",
    "model_key",
    "pretrain",
    "raw_rows",
    "world_identity",
    "world_key",
    "write_rows",
]

_LAZY = {"pretrain": "metatuner.nano.pretraining", "measure": "metatuner.nano.bars"}
"""What needs torch: commands that only plan must not wait for it. Modules are named as text, so that a model's key does
not depend on the code of the bars."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
