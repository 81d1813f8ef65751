"""What `fit` returns and `evaluate` uses. A policy prepares queries, and is saved as deltas over named base models."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from metatuner.errors import UserError, suggest
from metatuner.files import write_json
from metatuner.harness.ground import Ground
from metatuner.harness.query import Prepared, Query, Response

FORMAT = 1
_KINDS: dict[str, type["Policy"]] = {}


class Policy(ABC):
    """Prepares each query; the ground answers it.

    Register a subclass under the name of its kind with `@register_policy`. The manifest of a saved policy names the
    kind.
    """

    kind: ClassVar[str]
    ground: Ground
    """The models and the decoding rules that the policy is used with."""

    @abstractmethod
    def prepare(self, queries: Sequence[Query]) -> Prepared:
        """The prompt, demonstrations and adaptation of each query, in the same order."""

    @final
    def respond(self, queries: Sequence[Query]) -> list[Response]:
        """One response per query, in the same order."""
        prepared = self.prepare(queries)
        return self.ground.answer(
            queries, prepared.prompts, demos=prepared.demos, adapt=prepared.adapt, actor=prepared.actor
        )

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Any]:
        """Write weights (safetensors) below `folder`; return what the manifest keeps (JSON values)."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "Policy":
        """Load the policy that `write` saved, on the given models."""

    def save(self, folder: Path) -> None:
        """Save to `folder`; `manifest.json` is written last, so a folder that has one is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        state = self.write(folder)
        manifest = {"format": FORMAT, "kind": self.kind, "state": state}
        write_json(folder / "manifest.json", manifest)


def register_policy(kind: str) -> Callable[[type[Policy]], type[Policy]]:
    """Class decorator: makes policies of this class loadable by `kind`."""

    def register(cls: type[Policy]) -> type[Policy]:
        known = _KINDS.get(kind)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"policy kind {kind!r} is defined twice: {known.__module__}.{known.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}; rename one"
            )
        cls.kind = kind
        _KINDS[kind] = cls
        return cls

    return register


def load_policy(folder: Path, ground: Ground) -> Policy:
    """Load a saved policy. The module that registers its kind must have been imported (the registry does this)."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder}: no manifest.json, so no complete policy is saved here; fit it again")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT}; fit it again")
    kind = manifest["kind"]
    if kind not in _KINDS:
        raise UserError(f"{path}: unknown policy kind {kind!r}; {suggest(kind, _KINDS)}")
    return _KINDS[kind].read(folder, manifest["state"], ground)
