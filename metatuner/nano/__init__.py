"""The nano world: an embedded language, four synthetic benchmarks, and tiny models pretrained on it (docs/nano.md)."""

from importlib import import_module
from pathlib import Path
from typing import Any

from metatuner.hashing import hash_code, hash_value
from metatuner.nano.recipe import RECIPES, get_recipe
from metatuner.nano.world import SPLITS, World, raw_rows, world_key, write_rows

__all__ = ["RECIPES", "SPLITS", "World", "measure", "model_key", "pretrain", "raw_rows", "world_key", "write_rows"]
_HERE = Path(__file__).parent


def model_key(role: str, world: World) -> str:
    """What a pretrained model depends on, as a hash: the world, the recipe, the code that trains it, the vocabulary."""
    get_recipe(role)
    code = hash_code(_HERE / "pretraining.py", data=[_HERE / "vocabulary.json"])
    return hash_value([role, world_key(world), code])


_LAZY = {"pretrain": "metatuner.nano.pretraining", "measure": "metatuner.nano.bars"}
"""What needs torch, which commands that only plan must not wait for. Named as text, so that the code of the bars is no
part of what a model depends on."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
