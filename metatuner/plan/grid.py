"""The grid of cells that the experiments need, and the fits behind them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from metatuner.config import DEFAULT_VARIANT, Config
from metatuner.errors import UserError, suggest
from metatuner.harness.method import settings_dict
from metatuner.harness.registry import Registry
from metatuner.hashing import hash_value
from metatuner.plan.keys import Keys, lock_versions
from metatuner.plan.settings import Settings
from metatuner.plan.types import Cell, Fit, PlanRow, Resolved


@dataclass(frozen=True)
class Variant:
    """One variant of a method in an experiment."""

    name: str
    subject: str
    """What the settings start from: the method, or one of the method's own variants."""
    over: dict[str, Any]
    """Settings that differ from the subject's."""
    generators: list[str]
    place: str
    """Its place in the config, for errors."""


class Grid:
    """Rows of scores.csv, cells and fits, each with its key."""

    def __init__(self, config: Config, registry: Registry, keys: Keys, settings: Settings) -> None:
        self.config, self.registry, self.keys, self.settings = config, registry, keys, settings
        for name, experiment in config.experiments.items():
            for method in experiment.methods:
                if method not in registry.names():
                    known = suggest(method, registry.names())
                    raise UserError(f"experiments.{name}.methods: unknown method {method!r}; {known}")
        self._fits: dict[str, Fit] = {}

    # ---- one fit, one cell -------------------------------------------------------------------------------------

    def fit(
        self,
        method: str,
        settings: Resolved,
        train: tuple[str, ...],
        generator: str,
        seed: int,
        rows: int | None = None,
        transfer: tuple[str, ...] = (),
        budget: str | None = None,
    ) -> Fit:
        """A fit with its key, and the fits that it requires, all under the same limits.

        `budget` names these limits; None: the method's.
        """
        cls = self.registry[method].cls
        limits = budget or self.settings.subject(method).budget
        requires = []
        for name in cls.requires:
            configured = self.settings.resolve(name, train, settings.required.get(name), generator=generator)
            requires.append(self.fit(name, configured, train, generator, seed, rows, transfer, limits))
        used_generator = generator if cls.uses_generator else ""
        depends = {
            "method": method,
            "settings": settings_dict(settings.own),
            "train": {name: self.keys.data_key(name) for name in train},
            "actor": self.keys.model_key("actor"),
            "generator": self.keys.model_key(used_generator) if used_generator else None,
            "seed": seed,
            "budget": self.config.budgets[limits].limits(train),
            "code": self.keys.fit_code(method),
            "requires": [fit.key for fit in requires],
            "lock": lock_versions(),
        }
        if rows is not None:
            depends["rows"] = rows
        if proposer := self.settings.proposer(method, settings.own):
            depends["proposer"] = proposer.identity
        if transfer:
            depends["transfer"] = {name: self.keys.public_key(name) for name in transfer}
        key = hash_value(depends)
        if key not in self._fits:
            self._fits[key] = Fit(
                key, method, settings.own, train, used_generator, seed, tuple(requires), rows, transfer, limits
            )
        return self._fits[key]

    def cell(self, fit: Fit, benchmark: str) -> Cell:
        """A cell with its key."""
        return Cell(hash_value([fit.key, self.keys.data_key(benchmark), self.keys.evaluation_code()]), fit, benchmark)

    def fit_sizes(self, benchmark: str, rows: int | None) -> tuple[int | None, int]:
        """Numbers of train and dev rows that a fit draws from a benchmark."""
        sizes = self.config.benchmarks[benchmark].sizes
        if rows is None or sizes.train is None:
            return rows or sizes.train, sizes.dev
        return rows, round(sizes.dev * rows / sizes.train)

    # ---- all of them -------------------------------------------------------------------------------------------

    @cache
    def variants(self, experiment: str, method: str) -> list[Variant]:
        """The variants of a method in an experiment, in the order of the config."""
        config = self.config.experiments[experiment]
        found = []
        for name, values in (config.variants.get(method) or {DEFAULT_VARIANT: {}}).items():
            place = f"experiments.{experiment}.variants.{method}.{name}"
            over = dict(values)
            tuned_as, generator = over.pop("tuned_as", None), over.pop("generator", None)
            if tuned_as is not None:
                own = self.settings.subject(method).variants
                if tuned_as not in own:
                    raise UserError(
                        f"{place}.tuned_as: no {tuned_as!r} in methods.{method}.variants; "
                        + (suggest(str(tuned_as), own) if own else "declare it there")
                    )
            if generator is not None and generator not in config.generators:
                raise UserError(
                    f"{place}.generator: {generator!r} is not among the experiment's; "
                    + suggest(str(generator), config.generators)
                )
            subject = method if tuned_as is None else f"{method}.{tuned_as}"
            found.append(Variant(name, subject, over, [generator] if generator else config.generators, place))
        return found

    @property
    def rows(self) -> list[PlanRow]:
        """Every cell of every experiment, in the order of the config."""
        return [row for row, _ in self.entries]

    @cached_property
    def entries(self) -> list[tuple[PlanRow, Cell]]:
        """The rows with their cells."""
        return [entry for name in self.config.experiments for entry in self._of_experiment(name)]

    def _of_experiment(self, name: str) -> Iterable[tuple[PlanRow, Cell]]:
        experiment = self.config.experiments[name]
        for method in experiment.methods:
            cls = self.registry[method].cls
            if cls.internal:
                raise UserError(f"experiments.{name}.methods: {method!r} only serves other methods; leave it out")
            for variant in self.variants(name, method):
                # A method that uses no generator gives the same fits for each, so take one.
                for generator in variant.generators[: None if cls.uses_generator else 1]:
                    for benchmark in experiment.benchmarks:
                        train = experiment.trained_on(benchmark)
                        others = tuple(each for each in self.config.benchmarks if each not in train)
                        transfer = others if experiment.train == "others" else ()
                        settings = self._settings(variant, method, train, generator)
                        for seed in experiment.seeds:
                            fit = self.fit(
                                method, settings, train, generator, seed, experiment.rows, transfer, experiment.budget
                            )
                            cell = self.cell(fit, benchmark)
                            row = PlanRow(
                                experiment=name,
                                method=method,
                                variant=variant.name,
                                benchmark=benchmark,
                                trained_on="+".join(train),
                                generator=fit.generator,
                                seed=seed,
                                cell=cell.key,
                                fit=fit.key,
                                settings=settings.values,
                                tuned=settings.tuned,
                            )
                            yield row, cell

    def _settings(self, variant: Variant, method: str, train: tuple[str, ...], generator: str) -> Resolved:
        """A variant's settings, and how they were tuned (see `PlanRow.tuned`)."""
        settings = self.settings.resolve(variant.subject, train, variant.over, generator=generator, where=variant.place)
        if settings.tuned in ("winner", "medians"):
            return replace(settings, tuned=self._winner_word(variant.subject, settings, train, generator))
        if settings.tuned == "none":
            return replace(settings, tuned=self._required_word(method, settings, train, generator))
        return settings

    def _required_word(self, method: str, settings: Resolved, train: tuple[str, ...], generator: str) -> str:
        """How a method without a search is tuned: by the winners of the methods that it builds on, if there are any."""
        required = self.registry[method].cls.requires
        words = {
            self.settings.resolve(name, train, settings.required.get(name), generator=generator).tuned
            for name in required
        }
        found = [word for word in ("expired", "untuned", "winner", "medians") if word in words]
        return "none" if not found else "inherited" if found[0] in ("winner", "medians") else found[0]

    def _winner_word(self, subject: str, settings: Resolved, train: tuple[str, ...], generator: str) -> str:
        """How far settings are a winner's own. Fits are compared, because a setting written out may be the default."""
        method = subject.partition(".")[0]
        alone = self.settings.resolve(subject, train)
        same = self.fit(method, settings, train, generator, 0).key == self.fit(method, alone, train, generator, 0).key
        return alone.tuned if same else "inherited"

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every cell once, by key; in the order of the experiments."""
        return {cell.key: cell for _, cell in self.entries}

    @cached_property
    def fits(self) -> dict[str, Fit]:
        """Every fit once, by key; the fits that a fit requires come before it."""
        return {fit.key: fit for fit in in_order(cell.fit for cell in self.cells.values())}

    @cached_property
    def benchmarks(self) -> list[str]:
        """The benchmarks that fits train on or cells test, in the order of the config."""
        used = {name for cell in self.cells.values() for name in (cell.benchmark, *cell.fit.train)}
        return [name for name in self.config.benchmarks if name in used]

    @cached_property
    def timed_cells(self) -> list[Cell]:
        """The cells of the main experiment's first seed. Their policies are timed."""
        seed = self.config.experiments[self.config.main].seeds[0]
        cells = [cell for row, cell in self.entries if row.experiment == self.config.main and row.seed == seed]
        return list({cell.key: cell for cell in cells}.values())


def in_order(fits: Iterable[Fit]) -> list[Fit]:
    """Fits and all fits that they require, each once; the fits that a fit requires come before it."""
    found: dict[str, Fit] = {}

    def add(fit: Fit) -> None:
        for needed in fit.requires:
            add(needed)
        found.setdefault(fit.key, fit)

    for fit in fits:
        add(fit)
    return list(found.values())
