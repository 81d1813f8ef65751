"""The default world's models that come with the package, because other machines would train other weights.

Each folder of `weights/` is what `metatuner pretrain` wrote on one machine. Pretraining gives the same bytes only on
processors of one kind. On others, thousands of steps make another model of the same recipe.
"""

import hashlib
import shutil
from pathlib import Path

from metatuner.errors import UserError
from metatuner.files import complete_folder, write_json
from metatuner.nano.keys import WEIGHTS, model_key, read_index
from metatuner.nano.world import World


def given(role: str, world: World, folder: Path = WEIGHTS) -> Path | None:
    """The packaged folder of a model pretrained with the current recipe in this world; None if there is none."""
    known = read_index(folder).get(role)
    return folder / role if known is not None and known["key"] == model_key(role, world) else None


def copy_given(source: Path, out: Path) -> None:
    """Copy a model's folder to `out`, whole or not at all.

    Raises:
        UserError: its weights do not have the digest that the index names.
    """
    weights = source / "model.safetensors"
    digest = read_index(source.parent)[source.name]["sha256"]
    if not weights.is_file() or hashlib.sha256(weights.read_bytes()).hexdigest() != digest:
        raise UserError(f"{weights}: not the weights that index.json names; restore it, or set nano.given to false")
    with complete_folder(out) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)
        if out.exists() and not (out / "pretraining.json").is_file():
            shutil.rmtree(out)  # leftovers of a killed run


def write_index(folder: Path, world: World) -> Path:
    """Write `index.json` for the models in a folder: each one's key and the digest of its weights."""
    found = {
        weights.parent.name: {
            "key": model_key(weights.parent.name, world),
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
        for weights in sorted(folder.glob("*/model.safetensors"))
    }
    return write_json(folder / "index.json", found)
