"""Packs: the fits or cells that one job computes in one process, and which of them are on disk."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from metatuner.config import Config, Layout
from metatuner.harness.registry import Registry
from metatuner.integrity import altered
from metatuner.plan.grid import Grid
from metatuner.plan.types import Cell, Fit, Pack

Item = TypeVar("Item", Fit, Cell)


class Packs:
    """Jobs by name, and which fits are complete."""

    def __init__(self, config: Config, registry: Registry, grid: Grid, layout: Layout) -> None:
        self.config, self.registry, self.grid, self.layout = config, registry, grid, layout

    @cached_property
    def fits(self) -> dict[str, Pack]:
        """Fit jobs by name. A pack holds one method's fits, in the order of the grid."""
        packs: dict[str, Pack] = {}
        home: dict[str, str] = {}
        for method, fits in _by_method(self.grid.fits.values()).items():
            config = self.config.methods.get(method)
            size = (config.pack if config else None) or self.config.pack
            for index, chunk in enumerate(_chunks(fits, size)):
                name = f"{method}-{index:02d}"
                home |= {fit.key: name for fit in chunk}
                needs = tuple(dict.fromkeys(home[needed.key] for fit in chunk for needed in fit.requires))
                packs[name] = Pack(name, tuple(fit.key for fit in chunk), needs)
        return packs

    @cached_property
    def evaluations(self) -> dict[str, Pack]:
        """Evaluation jobs by name. A pack holds cells of one method, at most as many as the preset's `pack`."""
        home = {key: pack.name for pack in self.fits.values() for key in pack.keys}
        packs: dict[str, Pack] = {}
        for method, cells in _by_method(self.grid.cells.values()).items():
            for index, chunk in enumerate(_chunks(cells, self.config.pack)):
                name = f"{method}-{index:02d}"
                needs = tuple(dict.fromkeys(home[cell.fit.key] for cell in chunk))
                packs[name] = Pack(name, tuple(cell.key for cell in chunk), needs)
        return packs

    def step(self, name: str) -> str:
        """The rule that computes a fit pack: `warmup` for internal methods, else `fit`."""
        method = self.grid.fits[self.fits[name].keys[0]].method
        return "warmup" if self.registry[method].cls.internal else "fit"

    def fit_file(self, name: str) -> Path:
        """The file with a fit pack's outcomes."""
        return self.layout.pack(self.step(name), name)

    def evaluation_file(self, name: str) -> Path:
        """The file with an evaluation pack's outcomes."""
        return self.layout.pack("evaluate", name)

    @property
    def files(self) -> list[Path]:
        """The outcome files of all packs."""
        return [*map(self.fit_file, self.fits), *map(self.evaluation_file, self.evaluations)]

    # ---- the main experiment -----------------------------------------------------------------------------------

    @cached_property
    def _main(self) -> set[str]:
        cells = [cell for row, cell in self.grid.entries if row.experiment == self.config.main]
        needed = {each.key for cell in cells for each in (cell.fit, *cell.fit.requires)}
        return needed | {cell.key for cell in cells}

    def comes_first(self, pack: Pack) -> bool:
        """Whether the main experiment needs something from a pack; such packs run before all others."""
        return not self._main.isdisjoint(pack.keys)

    @property
    def spare_policies(self) -> list[Path]:
        """The policies that `keep` removes once all cells exist."""
        if self.config.keep == "all":
            return []
        return [self.layout.fit(key) / "policy" for key in self.grid.fits if key not in self._main]

    # ---- what is there -----------------------------------------------------------------------------------------

    @cached_property
    def _uses(self) -> dict[str, tuple[list[Cell], list[Fit]]]:
        """What is made from each fit: its cells, and the fits that require it."""
        uses: dict[str, tuple[list[Cell], list[Fit]]] = {key: ([], []) for key in self.grid.fits}
        for cell in self.grid.cells.values():
            uses[cell.fit.key][0].append(cell)
        for fit in self.grid.fits.values():
            for needed in fit.requires:
                uses[needed.key][1].append(fit)
        return uses

    def damage(self, fit: Fit, *, thorough: bool = False) -> str | None:
        """What differs between a fit's folder and its digests; None if nothing does. See `integrity.altered`."""
        return altered(self.layout.fit(fit.key), thorough=thorough, removable="policy")

    def has_cell(self, key: str) -> bool:
        """Whether a cell is there as its digests say."""
        return altered(self.layout.cell(key)) is None

    def is_complete(self, fit: Fit) -> bool:
        """Whether a fit is there as its digests say.

        Without its policy (see `keep`), it is complete while all that is made from it exists.
        """
        if self.damage(fit) is not None:
            return False
        if (self.layout.fit(fit.key) / "policy").is_dir():
            return True
        if fit.key not in self._uses:  # a search's warm-up: what will be made from it is not known here
            return False
        cells, fits = self._uses[fit.key]
        return all(self.has_cell(cell.key) for cell in cells) and all(map(self.is_complete, fits))


def _by_method(items: Iterable[Item]) -> dict[str, list[Item]]:
    grouped: dict[str, list[Item]] = {}
    for item in items:
        grouped.setdefault((item if isinstance(item, Fit) else item.fit).method, []).append(item)
    return grouped


def _chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
