"""The models of a job: each loaded once, and handed out so that no fit sees what another did to it."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metatuner.lm import LM, ModelSpec


class ModelPool:
    """Loads models by role; hands out copies (`share=False`) or the model itself (`share=True`, for the last use)."""

    def __init__(self, specs: "Mapping[str, ModelSpec]") -> None:
        self._specs = specs
        self._loaded: dict[str, LM] = {}

    def get(self, role: str, *, share: bool) -> "LM":
        """A pristine model. With `share` it leaves the pool, so that a job of one fit never holds two."""
        from metatuner.lm import Traffic, load_lm

        lm = self._loaded.pop(role, None) or load_lm(self._specs[role])
        if share:
            return lm
        self._loaded[role] = lm
        return replace(lm, model=copy.deepcopy(lm.model), traffic=Traffic())
