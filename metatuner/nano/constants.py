"""All constants that define the nano world, and their frozen hash."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from metatuner.hashing import hash_value
from metatuner.nano import instructions, problems, recipe, words

FROZEN_FILE = Path(__file__).with_name("frozen.json")
"""Hashes taken when the world was frozen, before methods were compared in it."""


def constants() -> dict[str, Any]:
    """Every constant of the language and of the models' sizes and training, as JSON values by module and name."""
    return {module.__name__.rpartition(".")[2]: _of(module) for module in (words, problems, instructions, recipe)}


def constants_hash() -> str:
    """The hash of `constants()`."""
    return hash_value(constants())


def frozen() -> dict[str, str]:
    """The frozen hashes: "constants" and "vocabulary" (SHA-256 of the file)."""
    found: dict[str, str] = json.loads(FROZEN_FILE.read_text(encoding="utf-8"))
    return found


def _of(module: ModuleType) -> dict[str, Any]:
    return {name: _plain(value) for name, value in sorted(vars(module).items()) if name.isupper() and name[0] != "_"}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return sorted(value) if isinstance(value, frozenset) else value
