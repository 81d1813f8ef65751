"""Puts the folder of a fetched model in the place of its Hub id, where the folder is there."""

from pathlib import Path

from metatuner.config.parts import ModelConfig
from metatuner.config.types import Config
from metatuner.errors import UserError
from metatuner.fetch.known import how, known, place
from metatuner.integrity import DIGESTS


def with_fetched(config: Config) -> Config:
    """The config with the path and revision of each model that has `fetched` set: the fetched folder's, or the Hub's.

    A run resolves this once, so that all its jobs use the same weights.

    Raises:
        UserError: `fetched` is no known name, goes with another model's path or revision, or its folder is no fetched
            model.
    """
    models, cache = config.models, Path(config.cache)
    actor = _chosen(models.actor, "models.actor", cache)
    generators = {name: _chosen(model, f"models.generators.{name}", cache) for name, model in models.generators.items()}
    return config.model_copy(update={"models": models.model_copy(update={"actor": actor, "generators": generators})})


def _chosen(model: ModelConfig, key: str, cache: Path) -> ModelConfig:
    if model.fetched is None:
        return model
    try:
        found = known(model.fetched)
    except UserError as error:
        raise UserError(f"config key '{key}.fetched': {error}") from None
    for name, given, needed in (("path", model.path, found.hub), ("revision", model.revision, found.revision)):
        if given not in (needed, None):
            raise UserError(
                f"config key '{key}.{name}': {given!r} does not go with `fetched: {found.name}`, which is {needed}; "
                "correct it, or set fetched to null"
            )
    folder = place(found.name, cache)
    if not folder.is_dir():
        return model.model_copy(update={"revision": found.revision})
    if not (folder / DIGESTS).is_file():
        raise UserError(
            f"config key '{key}.fetched': {folder} is no fetched model; remove it and run {how(found.name, cache)}"
        )
    # A path that begins with a dot is a folder, whether it is there or not.
    path = str(folder) if folder.is_absolute() else f"./{folder}"
    return model.model_copy(update={"path": path, "revision": None})
