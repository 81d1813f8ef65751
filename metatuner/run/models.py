"""The models of a job. Each is loaded once, and no fit sees the changes that another fit makes to it."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metatuner.lm import LM, ModelSpec
    from metatuner.lm.engine import Engine


class ModelPool:
    """Loads models by role; hands out copies (`share=False`) or the model itself (`share=True`, for the last use)."""

    def __init__(
        self,
        specs: "Mapping[str, ModelSpec]",
        engines: "Mapping[str, Engine] | None" = None,
        instead: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            specs: models by role.
            engines: servers that answer for models, by role; the weights of these are loaded when they are needed.
            instead: by role, what to do if the Hub cannot be reached; see `load_lm`.
        """
        self._specs, self.engines = specs, dict(engines or {})
        self._instead = {role: {"instead": text} for role, text in (instead or {}).items()}
        self._loaded: dict[str, LM] = {}

    def get(self, role: str, *, share: bool) -> "LM":
        """An unchanged model. With `share` it leaves the pool, so that a job with one fit never holds two copies."""
        if role not in self.engines:
            return self._local(role, share=share)
        from metatuner.lm.engine import load_served

        return load_served(self._specs[role], self.engines[role], partial(self._local, role, share=share))

    def _local(self, role: str, *, share: bool) -> "LM":
        from metatuner.lm import Traffic, load_lm

        lm = self._loaded.pop(role, None) or load_lm(self._specs[role], **self._instead.get(role, {}))
        if share:
            return lm
        self._loaded[role] = lm
        return replace(lm, model=copy.deepcopy(lm.model), traffic=Traffic())
