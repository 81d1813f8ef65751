"""Hashes of the world's rows and models. Keys include the code that makes them; identities do not."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metatuner.hashing import hash_code, hash_file, hash_value
from metatuner.nano.constants import constants_hash
from metatuner.nano.problems import BENCHMARKS, as_asked
from metatuner.nano.recipe import get_recipe
from metatuner.nano.world import World

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
"""The models that come with the package, and `index.json`: the key and the digest of each."""
VOCABULARY = HERE / "vocabulary.json"


def world_identity(world: World) -> str:
    """Hash of what defines the rows of a world: its constants and its seed."""
    return hash_value([constants_hash(), asdict(world)])


def world_key(world: World) -> str:
    """Hash of what a world's rows depend on: its identity, the code that writes them, the benchmarks' versions."""
    versions = {name: as_asked(name).version for name in BENCHMARKS}
    return hash_value([world_identity(world), hash_code(HERE / "world.py"), versions])


def model_identity(role: str, world: World) -> str:
    """Hash of what defines a pretrained model: its world, its recipe, the vocabulary, and the packaged weights."""
    get_recipe(role)
    given = read_index(WEIGHTS).get(role, {}).get("sha256")
    return hash_value([role, world_identity(world), hash_file(VOCABULARY), given])


def model_key(role: str, world: World) -> str:
    """Hash of what a pretrained model depends on: the world, the recipe, the code that trains it, the vocabulary."""
    get_recipe(role)
    return hash_value([role, world_key(world), hash_code(HERE / "pretraining.py", data=[VOCABULARY])])


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """`key` and `sha256` of each model in a folder of given models, by role; empty without an index."""
    path = folder / "index.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
