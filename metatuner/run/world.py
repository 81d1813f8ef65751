"""Put a nano model where the run needs it: copied from the package, or trained."""

import shutil
from pathlib import Path

from metatuner import nano, progress
from metatuner.errors import UserError, suggest
from metatuner.integrity import DIGESTS, altered, write_digests
from metatuner.nano.given import copy_given, given
from metatuner.plan import Plan


def pretrain_model(plan: Plan, role: str) -> Path:
    """Make a nano model's folder in the cache unless it is there; returns the folder.

    A folder that is not as its digests say is made again.

    Raises:
        UserError: no recipe has this name, or the folder holds another model than the package's.
    """
    if role not in nano.RECIPES:
        raise UserError(f"--role {role!r} is no nano model; {suggest(role, nano.RECIPES)}")
    config, world = plan.config.nano, plan.keys.world
    out = plan.layout.model(role, plan.keys.nano_key(role))
    source = given(role, world) if config.given and config.trained else None
    damage = altered(out) if (out / DIGESTS).is_file() else None
    if damage is not None:
        progress.say(f"{out}: {damage}; made again")
        shutil.rmtree(out)
    weights = "model.safetensors"
    if (out / "pretraining.json").is_file() and (out / weights).is_file():
        if source is not None and (out / weights).read_bytes() != (source / weights).read_bytes():
            raise UserError(
                f"{out}: another model of this recipe, from before one came with the package; remove that folder and "
                f"{plan.layout.root}, or set nano.given to false"
            )
        progress.say(f"{role}: already there, {out}")
    elif source is not None:
        copy_given(source, out)
        progress.say(f"{role}: as it comes with the package (nano.given), {out}")
    else:
        nano.pretrain(role, world, out, untrained=not config.trained, progress=progress.say)
    if not (out / DIGESTS).is_file():
        write_digests(out)
    return out
