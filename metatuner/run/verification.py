"""Compares every stored file of a run with its digest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from metatuner.config import Config, dump_config
from metatuner.files import read_json
from metatuner.integrity import DIGESTS, altered
from metatuner.plan import Plan
from metatuner.plan.keys import is_local

AGAIN = "run again"


@dataclass
class Verified:
    """What was compared, and what differs."""

    differing: list[str] = field(default_factory=list)
    """One line per folder: its first file that differs, and the remedy."""
    folders: int = 0
    files: int = 0
    without: int = 0
    """Folders without digests: of a snapshot, or of an earlier version."""

    @property
    def summary(self) -> str:
        """One line of counts."""
        older = f"; {self.without} folders of earlier versions have no digests" if self.without else ""
        verdict = f"{len(self.differing)} folders differ" if self.differing else "all are as their digests say"
        return f"{self.folders} folders compared ({self.files} files in those without a fault): {verdict}{older}"


def verify(config: Config) -> Verified:
    """Compare the files of a results folder, and of the cached models that it uses, with their digests.

    A folder that this version made must have digests. Others, which older code made, are counted if they have none.
    """
    plan, found = Plan(config), Verified()
    layout = plan.layout
    for folder, remedy, ours, how in _folders(plan):
        if not (folder / DIGESTS).is_file() and not ours:
            found.without += 1
            continue
        why = altered(folder, thorough=True, **how)  # type: ignore[arg-type]
        found.folders += 1
        if why is not None:
            found.differing.append(f"{folder}: {why}; {remedy}")
        else:
            found.files += len(read_json(folder / DIGESTS, remedy))
    stored = layout.config.read_bytes() if layout.config.is_file() else b""
    if layout.digests.is_file() and stored != dump_config(config).encode():
        found.differing.append(f"{layout.config}: not this config; {AGAIN}")
    return found


def _folders(plan: Plan) -> Iterator[tuple[Path, str, bool, dict[str, object]]]:
    """Folders with digests: the remedy, whether this code made them, and how they are compared (see `altered`)."""
    layout, names = plan.layout, plan.config.benchmarks
    made: list[tuple[Callable[[str], Path], list[str], dict[str, object]]] = [
        (layout.fit, list(plan.grid.fits), {"removable": "policy"}),
        (layout.cell, list(plan.grid.cells), {}),
    ]
    current = any(layout.cell(key).is_dir() for key in plan.grid.cells)
    for place, keys, how in made:
        here = place("").iterdir() if place("").is_dir() else ()
        for folder in sorted(path for path in here if path.is_dir() and not path.name.startswith(".")):
            yield folder, f"remove {folder} and {AGAIN}", folder.name in keys, how
    for name in names:
        if layout.data(name).is_dir():
            drawn = f"`metatuner data --config {layout.config} --benchmark {name}` draws them again"
            yield layout.data(name), drawn, current, {}
    if layout.world.is_dir():
        yield layout.world, f"remove {layout.world} and {AGAIN}", current, {"strangers": False}
    for role in plan.keys.nano_roles:
        folder = layout.model(role, plan.keys.nano_key(role))
        if folder.is_dir():
            yield folder, f"remove {folder} and {AGAIN}", False, {}
    for role in ("actor", *plan.config.models.generators):
        fetching = plan.keys.how_to_fetch(role)
        if fetching is not None and is_local(plan.keys.model_config(role)):
            folder = plan.keys.model_path(role)
            yield folder, f"remove {folder} and {fetching}", True, {}
    if layout.scores.is_file():
        collected = f"`metatuner scores --config {layout.config}` collects them again"
        yield layout.root, collected, current, {"strangers": False}
