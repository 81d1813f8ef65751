"""From a resolved config to what must be computed: fits, cells, packs, and the keys that say what each depends on.

No torch here: the DAG is built from this on every call of snakemake.
"""

import platform
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metatuner import nano
from metatuner.errors import UserError, suggest
from metatuner.harness.benchmarks import benchmark_file
from metatuner.harness.config import BenchmarkConfig, Config, ModelConfig, SearchConfig, expand_path
from metatuner.harness.ground import derive_seed
from metatuner.harness.layout import Layout
from metatuner.harness.method import make_settings, settings_dict
from metatuner.harness.registry import Registry
from metatuner.harness.tuning import Winner, read_winners
from metatuner.hashing import ROOT, canonical, hash_code, hash_file, hash_value

HARNESS = ROOT / "metatuner" / "harness"
LOCK = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "trl",
    "accelerate",
    "dspy",
    "lm-eval",
    "datasets",
    "math-verify",
    "numpy",
)
DEFAULT_VARIANT = "default"


@dataclass(frozen=True)
class Fit:
    """One call of a method's `fit`: everything that its policy depends on, and the key that hashes it."""

    key: str
    method: str
    settings: str
    """The settings dataclass as canonical JSON (hashable; `json.loads` gives the values)."""
    train: tuple[str, ...]
    generator: str
    """Name of the generator; "" for a method that uses none."""
    seed: int
    requires: tuple["Fit", ...] = ()


@dataclass(frozen=True)
class Cell:
    """A fit's policy asked one benchmark's test rows."""

    key: str
    fit: Fit
    benchmark: str


@dataclass(frozen=True)
class PlanRow:
    """A cell's place in an experiment: one line of scores.csv a metric."""

    experiment: str
    method: str
    variant: str
    benchmark: str
    trained_on: str
    generator: str
    seed: int
    cell: str
    fit: str
    settings: str
    """As canonical JSON."""
    tuned: str
    """Where they come from: winner, winner of ANOTHER GENERATOR, expired, untuned (no winner is stored), none (the
    method has no search space)."""


@dataclass(frozen=True)
class Pack:
    """Fits or cells that one job computes in one process."""

    name: str
    keys: tuple[str, ...]
    needs: tuple[str, ...]
    """Names of the fit packs that must be there before."""


@cache
def lock_versions() -> dict[str, str]:
    """Installed versions of the packages whose numerics or behaviour scores depend on."""
    found = {"python": platform.python_version().rsplit(".", 1)[0]}
    for name in LOCK:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _folder_hash(folder: Path, key: str) -> str:
    """What a local model folder holds: small files by their bytes, shards by name, size and time of change."""
    if not folder.is_dir():
        raise UserError(f"config key {key!r}: no folder {folder}; name a folder that exists, or a Hub id")
    parts = []
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        status = path.stat()
        small = status.st_size < 64 * 2**20
        parts.append([path.name, hash_file(path) if small else [status.st_size, status.st_mtime_ns]])
    return hash_value(parts)


class Plan:
    """All that a config asks for. Building it validates methods, settings and variants by name."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.layout = Layout(config)
        self.registry = Registry(config.extra_methods)
        self.world = nano.World(seed=config.nano.world_seed, null=config.nano.null)
        for name, method in config.methods.items():
            known = self.registry[name].cls  # an unknown name is an error here
            make_settings(known, method.settings, f"methods.{name}.settings")
            if known.internal and method.search:
                raise UserError(
                    f"methods.{name}.search: {name!r} only serves other methods and is not tuned; leave it out"
                )
            for setting in method.search:
                make_settings(
                    known, {**method.settings, setting: _first(method.search[setting])}, f"methods.{name}.search"
                )
        for name, experiment in config.experiments.items():
            for method_name in experiment.methods:
                if method_name not in self.registry.names():
                    known_names = suggest(method_name, self.registry.names())
                    raise UserError(f"experiments.{name}.methods: unknown method {method_name!r}; {known_names}")
        winners = config.tuning.winners
        self.winners: dict[tuple[str, str], Winner] = read_winners(ROOT / winners) if winners else {}
        self.expired: set[tuple[str, str]] = set()

    # ---- what things depend on ---------------------------------------------------------------------------------

    def model_config(self, role: str) -> ModelConfig:
        """The actor's config for "actor", else the named generator's."""
        return self.config.models.actor if role == "actor" else self.config.models.generators[role]

    @cache
    def model_recipe(self, role: str) -> str:
        """What a model is: its nano recipe, its folder's content, or its Hub id and revision; and how it is used."""
        model = self.model_config(role)
        used = model.model_dump(mode="json", exclude={"device"})
        if model.path.startswith("nano:"):
            return hash_value(
                [used, nano.model_key(model.path.removeprefix("nano:"), self.world), self.config.nano.trained]
            )
        if self.is_local(model):
            return hash_value([used, _folder_hash(self.model_path(role), self._model_place(role))])
        return hash_value(used)

    @cache
    def model_key(self, role: str) -> str:
        """A model's recipe, and for a nano model the torch version that trains it."""
        trained_here = self.model_config(role).path.startswith("nano:")
        return hash_value([self.model_recipe(role), lock_versions()["torch"] if trained_here else None])

    def _model_place(self, role: str) -> str:
        return "models.actor.path" if role == "actor" else f"models.generators.{role}.path"

    @staticmethod
    def is_local(model: ModelConfig) -> bool:
        """A path (with a slash at its start, a dot or a variable) rather than a Hub id."""
        return model.path.startswith(("/", ".", "~", "$")) or Path(model.path).is_dir()

    def model_path(self, role: str) -> Path:
        """The folder of a nano or local model."""
        model = self.model_config(role)
        if model.path.startswith("nano:"):
            name = model.path.removeprefix("nano:")
            return self.layout.model(name, self.nano_key(name))
        return expand_path(model.path, self._model_place(role))

    def nano_key(self, role: str) -> str:
        """What a pretrained nano model depends on: its recipe's code, the world, and torch."""
        return hash_value([nano.model_key(role, self.world), self.config.nano.trained, lock_versions()["torch"]])

    @property
    def nano_roles(self) -> list[str]:
        """The nano models that the experiments use, by the name of their recipe."""
        generators = {experiment.generator for experiment in self.config.experiments.values()}
        models = [self.model_config(role) for role in ("actor", *generators)]
        return sorted({model.path.removeprefix("nano:") for model in models if model.path.startswith("nano:")})

    @property
    def world_key(self) -> str:
        """What the nano world's rows depend on: its constants, code and seed."""
        return nano.world_key(self.world)

    def world_sizes(self) -> dict[str, dict[str, int]]:
        """Raw rows to write for each nano benchmark: what the splits take, and train rows enough for all seeds."""
        sizes = {}
        for name, config in self.config.benchmarks.items():
            if config.source == "nano":
                wanted = config.sizes
                if wanted.train is None or wanted.test is None:
                    raise UserError(f"benchmarks.{name}.sizes: the nano world has no end; give train and test a number")
                pool = max(2000, 4 * (wanted.train + wanted.dev))
                sizes[name] = {"train": pool, "tune": wanted.tune, "test": wanted.test, "audit": wanted.audit}
        return sizes

    @cache
    def source_files(self, benchmark: str) -> tuple[Path, ...]:
        """The raw files of a local or nano benchmark: train, test and, in the nano world, tune and audit."""
        config = self.config.benchmarks[benchmark]
        if config.source == "nano":
            return tuple(
                self.layout.world / benchmark / f"{split}.jsonl" for split in ("train", "tune", "test", "audit")
            )
        if config.source == "local":
            folder = expand_path(str(config.path), f"benchmarks.{benchmark}.path") / benchmark
            files = (folder / "train.jsonl", folder / "test.jsonl")
            for file in files:
                if not file.is_file():
                    raise UserError(
                        f"benchmarks.{benchmark}.path: no file {file}; see docs/benchmarks.md for the schema"
                    )
            return files
        return ()

    @cache
    def data_key(self, benchmark: str) -> str:
        """What a benchmark's rows and its scoring depend on."""
        config: BenchmarkConfig = self.config.benchmarks[benchmark]
        if config.source == "nano":
            source: Any = [self.world_key, self.world_sizes()[benchmark]["train"]]
        elif config.source == "local":
            source = [hash_file(file) for file in self.source_files(benchmark)]
        else:
            source = "hub"
        used = config.model_dump(mode="json", exclude={"path": True, "sizes": {"audit"}})
        code = hash_code(benchmark_file(benchmark), HARNESS / "splits.py")
        return hash_value([used, source, code])

    @cache
    def _fit_code(self, method: str) -> str:
        return hash_code(self.registry[method].file, HARNESS / "fitting.py")

    @cache
    def _evaluation_code(self) -> str:
        return hash_code(HARNESS / "evaluation.py", data=(HARNESS / "tasks").glob("*.yaml"))

    @cache
    def fit(self, method: str, settings: str, train: tuple[str, ...], generator: str, seed: int) -> Fit:
        """A fit with its key. `settings` is canonical JSON of all fields of the method's Settings."""
        cls = self.registry[method].cls
        requires = []
        for name in cls.requires:
            configured = self.settings(name, train)[0]
            requires.append(self.fit(name, configured, train, generator, seed))
        used_generator = generator if cls.uses_generator else ""
        method_config = self.config.methods.get(method)
        budget = self.config.budgets[method_config.budget if method_config else "default"]
        depends = {
            "method": method,
            "settings": settings,
            "train": {name: self.data_key(name) for name in train},
            "actor": self.model_key("actor"),
            "generator": self.model_key(used_generator) if used_generator else None,
            "seed": seed,
            "budget": budget.model_dump(mode="json"),
            "code": self._fit_code(method),
            "requires": [fit.key for fit in requires],
            "lock": lock_versions(),
        }
        return Fit(hash_value(depends), method, settings, train, used_generator, seed, tuple(requires))

    def cell(self, fit: Fit, benchmark: str) -> Cell:
        """A cell with its key."""
        return Cell(hash_value([fit.key, self.data_key(benchmark), self._evaluation_code()]), fit, benchmark)

    # ---- settings and tuning -----------------------------------------------------------------------------------

    @cache
    def tuning_key(self, method: str, benchmark: str) -> str:
        """What a stored winner depends on; package versions are left out, so that an update does not void tuning."""
        config = self.config.methods[method]
        cls = self.registry[method].cls
        generator = self.tuning_generator if cls.uses_generator else ""
        return hash_value(
            {
                "search": {name: space.model_dump(mode="json") for name, space in config.search.items()},
                "fixed": config.settings,
                "required": [self.settings(name, (benchmark,))[0] for name in cls.requires],
                "data": self.data_key(benchmark),
                "actor": self.model_recipe("actor"),
                "generator": self.model_recipe(generator) if generator else None,
                "code": self._fit_code(method),
                "trials": self.config.tuning.trials,
                "seed": self.config.tuning.seed,
            }
        )

    @property
    def tuning_generator(self) -> str:
        """Tuning uses the first experiment's generator."""
        return next(iter(self.config.experiments.values())).generator

    def settings(
        self, method: str, train: tuple[str, ...], over: dict[str, Any] | None = None, *, winners: bool = True
    ) -> tuple[str, str]:
        """A fit's settings as canonical JSON, and where they come from (winner, expired, untuned, none).

        Order: the dataclass's defaults, the preset's `settings`, the stored winner of this benchmark if nothing it
        depends on has changed, the variant's own.
        """
        cls = self.registry[method].cls
        config = self.config.methods.get(method)
        values: dict[str, Any] = dict(config.settings) if config else {}
        tuned = "none"
        if winners and config and config.search and len(train) == 1:
            winner = self.winners.get((method, train[0]))
            if winner is not None and winner.key == self.tuning_key(method, train[0]):
                values |= winner.settings
                tuned = "winner"
            elif winner is not None:
                self.expired.add((method, train[0]))
                tuned = "expired"
            else:
                tuned = "untuned"
        values |= over or {}
        return canonical(settings_dict(make_settings(cls, values, f"methods.{method}.settings"))), tuned

    @property
    def tunable(self) -> list[tuple[str, str]]:
        """The (method, benchmark) pairs that `tune` searches."""
        methods = [
            name for name in self._methods_in_use if name in self.config.methods and self.config.methods[name].search
        ]
        return [(method, benchmark) for method in methods for benchmark in self.config.benchmarks]

    def trials(self, method: str, benchmark: str) -> list[dict[str, Any]]:
        """What random search tries: the preset's own settings first, then draws, none twice."""
        config = self.config.methods[method]
        rng = random.Random(derive_seed("tune", method, benchmark, self.config.tuning.seed))
        own = make_settings(self.registry[method].cls, config.settings, f"methods.{method}.settings")
        seen = [{name: settings_dict(own)[name] for name in config.search}]
        drawn: list[dict[str, Any]] = [{}]
        for _ in range(100 * self.config.tuning.trials):  # a small grid may hold fewer settings than trials
            if len(drawn) == self.config.tuning.trials:
                break
            trial = {name: _draw(space, rng) for name, space in config.search.items()}
            if trial not in seen:
                seen.append(trial)
                drawn.append(trial)
        return drawn

    # ---- the grid ----------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[PlanRow]:
        """Every cell of every experiment, in the order of the config."""
        return [row for row, _ in self._grid]

    @cached_property
    def _grid(self) -> list[tuple[PlanRow, Cell]]:
        grid = []
        for name, experiment in self.config.experiments.items():
            for method in experiment.methods:
                cls = self.registry[method].cls
                if cls.internal:
                    raise UserError(f"experiments.{name}.methods: {method!r} only serves other methods; leave it out")
                variants = experiment.variants.get(method) or {DEFAULT_VARIANT: {}}
                for variant, over in variants.items():
                    for benchmark in experiment.benchmarks:
                        train = (benchmark,)
                        settings, tuned = self.settings(method, train, over)
                        if tuned == "winner" and cls.uses_generator and experiment.generator != self.tuning_generator:
                            tuned = f"winner of {self.tuning_generator}"
                        for seed in experiment.seeds:
                            fit = self.fit(method, settings, train, experiment.generator, seed)
                            cell = self.cell(fit, benchmark)
                            row = PlanRow(
                                name,
                                method,
                                variant,
                                benchmark,
                                "+".join(train),
                                fit.generator,
                                seed,
                                cell.key,
                                fit.key,
                                settings,
                                tuned,
                            )
                            grid.append((row, cell))
        return grid

    @property
    def _methods_in_use(self) -> list[str]:
        return list(
            dict.fromkeys(method for experiment in self.config.experiments.values() for method in experiment.methods)
        )

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every cell once, by key, the first experiment's first."""
        return {cell.key: cell for _, cell in self._grid}

    @cached_property
    def fits(self) -> dict[str, Fit]:
        """Every fit once, by key; what a fit requires stands before it."""
        found: dict[str, Fit] = {}

        def add(fit: Fit) -> None:
            for needed in fit.requires:
                add(needed)
            found.setdefault(fit.key, fit)

        for cell in self.cells.values():
            add(cell.fit)
        return found

    def _pack_size(self, method: str) -> int:
        config = self.config.methods.get(method)
        return (config.pack if config else None) or self.config.pack

    @cached_property
    def fit_packs(self) -> dict[str, Pack]:
        """Fit jobs by name. A pack holds one method's fits, in the order of the grid."""
        packs: dict[str, Pack] = {}
        home: dict[str, str] = {}
        for method, fits in _by_method(self.fits.values()).items():
            for index, chunk in enumerate(_chunks(fits, self._pack_size(method))):
                name = f"{method}-{index:02d}"
                home |= {fit.key: name for fit in chunk}
                needs = tuple(dict.fromkeys(home[needed.key] for fit in chunk for needed in fit.requires))
                packs[name] = Pack(name, tuple(fit.key for fit in chunk), needs)
        return packs

    def fit_step(self, pack: str) -> str:
        """The rule that computes a fit pack: `warmup` for internal methods, else `fit`."""
        method = self.fits[self.fit_packs[pack].keys[0]].method
        return "warmup" if self.registry[method].cls.internal else "fit"

    @cached_property
    def evaluate_packs(self) -> dict[str, Pack]:
        """Evaluation jobs by name: one method's cells each, as many as the preset packs."""
        home = {key: pack.name for pack in self.fit_packs.values() for key in pack.keys}
        packs: dict[str, Pack] = {}
        for method, cells in _by_method(self.cells.values()).items():
            for index, chunk in enumerate(_chunks(cells, self.config.pack)):
                name = f"{method}-{index:02d}"
                needs = tuple(dict.fromkeys(home[cell.fit.key] for cell in chunk))
                packs[name] = Pack(name, tuple(cell.key for cell in chunk), needs)
        return packs

    def row_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain dicts."""
        return [asdict(row) for row in self.rows]


def _by_method(items: Iterable[Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for item in items:
        method = item.method if isinstance(item, Fit) else item.fit.method
        grouped.setdefault(method, []).append(item)
    return grouped


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _first(space: SearchConfig) -> Any:
    return space.values[0] if space.values is not None else space.low


def _draw(space: SearchConfig, rng: random.Random) -> Any:
    if space.values is not None:
        return rng.choice(space.values)
    assert space.low is not None
    assert space.high is not None
    if not space.log:
        return float(f"{rng.uniform(space.low, space.high):.4g}")
    return float(f"{space.low * (space.high / space.low) ** rng.random():.4g}")
