"""The nano world: an embedded language, four synthetic benchmarks, and tiny models pretrained on it (docs/nano.md)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.hashing import hash_code, hash_value
from metatuner.nano.recipe import RECIPES, get_recipe
from metatuner.nano.world import SPLITS, World, raw_rows, world_key, write_rows

if TYPE_CHECKING:
    from metatuner.nano.bars import measure
    from metatuner.nano.pretraining import pretrain

__all__ = ["RECIPES", "SPLITS", "World", "measure", "model_key", "pretrain", "raw_rows", "world_key", "write_rows"]
_HERE = Path(__file__).parent


def model_key(role: str, world: World) -> str:
    """What a pretrained model depends on, as a hash: the world, the recipe, the code that trains it, the vocabulary."""
    get_recipe(role)
    code = hash_code(_HERE / "pretraining.py", data=[_HERE / "vocabulary.json"])
    return hash_value([role, world_key(world), code])


def __getattr__(name: str) -> Any:
    # Both need torch, which commands that only plan must not wait for.
    if name == "pretrain":
        from metatuner.nano.pretraining import pretrain

        return pretrain
    if name == "measure":
        from metatuner.nano.bars import measure

        return measure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
