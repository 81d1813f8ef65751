"""From a resolved config to what must be computed: fits, cells, packs, and the keys that say what each depends on.

No torch here: the DAG is built from this on every call of snakemake.
"""

import json
import platform
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median_low
from typing import Any

from metatuner import nano
from metatuner.errors import UserError, suggest
from metatuner.harness.benchmarks import benchmark_file
from metatuner.harness.config import (
    BenchmarkConfig,
    Config,
    MethodConfig,
    ModelConfig,
    ProposerConfig,
    SearchConfig,
    expand_path,
    merge,
)
from metatuner.harness.describe import describe_method
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

_code = cache(hash_code)
"""The hash of code is the same for all plans of a process, and takes most of the time of making one."""


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
    rows: int | None = None
    """Train rows of each train benchmark, dev rows in proportion; None: the benchmark's own sizes."""
    told: tuple[str, ...] = ()
    """Benchmarks that it does not train on but may be asked about: it knows their initial prompts and limits."""


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
    """As canonical JSON; what the variant sets of a required method stands under that one's name."""
    tuned: str
    """Where they come from: winner, inherited (a variant that changes settings, under the winner of its subject without
    the changes; or a method without a search that builds on winners), medians (of the winners of several train
    benchmarks), any of these `of GENERATOR` where the search was made with another generator, expired, untuned (no
    winner is stored), none (the method has no search space)."""


@dataclass(frozen=True)
class Pack:
    """Fits or cells that one job computes in one process."""

    name: str
    keys: tuple[str, ...]
    needs: tuple[str, ...]
    """Names of the fit packs that must be there before."""


@dataclass(frozen=True)
class Variant:
    """One of the variants in which an experiment wants a method."""

    name: str
    subject: str
    """Whose settings it starts from: the method's, or those of one of its own variants (see `Plan.subject`)."""
    over: dict[str, Any]
    """Settings that differ from these."""
    generators: list[str]
    place: str
    """Where it stands in the config."""


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
        self.registry = Registry(config.extra_methods)
        self.config = config = self._with_extra_methods(config)
        self.layout = Layout(config)
        self.world = nano.World(seed=config.nano.world_seed, null=config.nano.null)
        for name, method in config.methods.items():
            known = self.registry[name].cls  # an unknown name is an error here
            if known.internal and (method.search or method.variants):
                key = "search" if method.search else "variants"
                raise UserError(
                    f"methods.{name}.{key}: {name!r} only serves other methods and is not tuned; leave it out"
                )
            for subject in (name, *(f"{name}.{variant}" for variant in method.variants)):
                self._check_subject(subject)
        for name, experiment in config.experiments.items():
            for method_name in experiment.methods:
                if method_name not in self.registry.names():
                    known_names = suggest(method_name, self.registry.names())
                    raise UserError(f"experiments.{name}.methods: unknown method {method_name!r}; {known_names}")
        winners = config.tuning.winners
        self.winners: dict[tuple[str, str], Winner] = read_winners(ROOT / winners) if winners else {}
        self.expired: set[tuple[str, str]] = set()

    def _with_extra_methods(self, config: Config) -> Config:
        """The config with methods of the user's own files in the first experiment, unless an experiment names them."""
        named = {method for experiment in config.experiments.values() for method in experiment.methods}
        joining = [name for name in self.registry.extra if name not in named and not self.registry[name].cls.internal]
        if not joining:
            return config
        first, experiment = next(iter(config.experiments.items()))
        longer = experiment.model_copy(update={"methods": [*experiment.methods, *joining]})
        return config.model_copy(update={"experiments": {**config.experiments, first: longer}})

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
            recipe = nano.model_key(model.path.removeprefix("nano:"), self.world)
            return hash_value([used, recipe, self.config.nano.trained])
        if self.is_local(model):
            return hash_value([used, _folder_hash(self.model_path(role), self._model_place(role))])
        return hash_value(used)

    @cache
    def model_key(self, role: str) -> str:
        """A model's recipe, and for a nano model the torch version that trains it."""
        if not self.model_config(role).path.startswith("nano:"):
            return hash_value([self.model_recipe(role), None])
        return hash_value([self.model_recipe(role), lock_versions()["torch"], *self._trained_here])

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
        told = [nano.model_key(role, self.world), self.config.nano.trained, lock_versions()["torch"]]
        return hash_value([*told, *self._trained_here])

    @property
    def _trained_here(self) -> list[str]:
        """A mark for models that are pretrained although others come with the package: they are not the same."""
        return [] if self.config.nano.given else ["trained here"]

    def layers(self, role: str) -> int | None:
        """Decoder layers of a model, as far as its recipe or its folder tells without a library."""
        model = self.model_config(role)
        if model.path.startswith("nano:"):
            return nano.RECIPES[model.path.removeprefix("nano:")].layers
        file = self.model_path(role) / "config.json" if self.is_local(model) else None
        return (
            json.loads(file.read_text(encoding="utf-8")).get("num_hidden_layers") if file and file.is_file() else None
        )

    @property
    def nano_roles(self) -> list[str]:
        """The nano models that the experiments use, by the name of their recipe."""
        generators = {name for experiment in self.config.experiments.values() for name in experiment.generators}
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
    def _data_recipe(self, benchmark: str) -> str:
        """What a benchmark's rows depend on, code left out but for the nano world's."""
        config: BenchmarkConfig = self.config.benchmarks[benchmark]
        if config.source == "nano":
            source: Any = [self.world_key, self.world_sizes()[benchmark]["train"]]
        elif config.source == "local":
            source = [hash_file(file) for file in self.source_files(benchmark)]
        else:
            source = "hub"
        used = config.model_dump(mode="json", exclude={"path": True, "sizes": {"audit"}})
        return hash_value([used, source])

    @cache
    def data_key(self, benchmark: str) -> str:
        """What a benchmark's rows and its scoring depend on."""
        return hash_value([self._data_recipe(benchmark), _code(benchmark_file(benchmark), HARNESS / "splits.py")])

    @cache
    def _fit_code(self, method: str) -> str:
        registered = self.registry[method]
        if registered.beside:
            return hash_code(registered.file, HARNESS / "fitting.py", data=registered.beside)
        return _code(registered.file, HARNESS / "fitting.py")

    @cache
    def _evaluation_code(self) -> str:
        return hash_code(HARNESS / "evaluation.py", data=(HARNESS / "tasks").glob("*.yaml"))

    @cache
    def fit(
        self,
        method: str,
        settings: str,
        train: tuple[str, ...],
        generator: str,
        seed: int,
        rows: int | None = None,
        told: tuple[str, ...] = (),
    ) -> Fit:
        """A fit with its key. `settings` is what the method of this name gives: all fields of the method's Settings as
        canonical JSON, and what differs in the methods it requires.
        """
        cls = self.registry[method].cls
        own, required = self._split(method, json.loads(settings))
        settings = canonical(own)
        requires = []
        for name in cls.requires:
            configured = self.settings(name, train, required.get(name))[0]
            requires.append(self.fit(name, configured, train, generator, seed, rows, told))
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
            "budget": budget.counts,
            "code": self._fit_code(method),
            "requires": [fit.key for fit in requires],
            "lock": lock_versions(),
        }
        if rows is not None:
            depends["rows"] = rows
        if proposer := self.proposer(method, settings):
            depends["proposer"] = proposer.identity
        if told:
            depends["told of"] = {name: self._public_key(name) for name in told}
        return Fit(hash_value(depends), method, settings, train, used_generator, seed, tuple(requires), rows, told)

    def proposer(self, method: str, settings: str) -> ProposerConfig | None:
        """The server that proposes prompts to a method, under the settings of a fit; None where it asks none."""
        server, cls = self.config.models.proposer, self.registry[method].cls
        return server if server and cls(make_settings(cls, json.loads(settings), method)).asks_proposer else None

    def fit_sizes(self, benchmark: str, rows: int | None) -> tuple[int | None, int]:
        """Train and dev rows that a fit draws of a benchmark."""
        sizes = self.config.benchmarks[benchmark].sizes
        if rows is None or sizes.train is None:
            return rows or sizes.train, sizes.dev
        return rows, round(sizes.dev * rows / sizes.train)

    @cache
    def _public_key(self, benchmark: str) -> str:
        """What is known of a benchmark without its rows."""
        config = self.config.benchmarks[benchmark]
        return hash_value([config.initial_prompt, config.max_new_tokens, _code(benchmark_file(benchmark))])

    def cell(self, fit: Fit, benchmark: str) -> Cell:
        """A cell with its key."""
        return Cell(hash_value([fit.key, self.data_key(benchmark), self._evaluation_code()]), fit, benchmark)

    @property
    def framework(self) -> dict[str, Any] | None:
        """What the drawing of MetaTuner shows: settings, models, K. None where no experiment has it."""
        used = {method for experiment in self.config.experiments.values() for method in experiment.methods}
        if "metatuner_j" not in used:
            return None
        role = self.tuning_generator
        return {
            "settings": json.loads(self.settings("metatuner_j", (), winners=False)[0]),
            "generator": self.model_config(role).path.rsplit("/", 1)[-1],
            "actor": self.model_config("actor").path.rsplit("/", 1)[-1],
            "layers": self.layers(role),
        }

    # ---- settings and tuning -----------------------------------------------------------------------------------

    # A *subject* of tuning is a method ("metatuner_j") or one of its own variants ("metatuner_j.without_p").

    @cache
    def subject(self, subject: str) -> MethodConfig:
        """A subject's config: the method's, with what the variant sets."""
        name, _, variant = subject.partition(".")
        method = self.config.methods.get(name) or MethodConfig()  # type: ignore[call-arg]
        if not variant:
            return method
        if variant not in method.variants:
            raise UserError(f"methods.{name}.variants: no variant {variant!r}; {suggest(variant, method.variants)}")
        own = method.variants[variant]
        search = method.search if own.search is None else own.search
        return method.model_copy(update={"settings": merge(method.settings, own.settings), "search": search})

    def _place(self, subject: str, key: str) -> str:
        """Where a subject's key stands in the config."""
        method, _, variant = subject.partition(".")
        return f"methods.{method}.variants.{variant}.{key}" if variant else f"methods.{method}.{key}"

    def _check_subject(self, subject: str) -> None:
        config = self.subject(subject)
        for over in ({}, *({setting: _first(space)} for setting, space in config.search.items())):
            place = self._place(subject, "search" if over else "settings")
            self._checked(subject.partition(".")[0], {**config.settings, **over}, place)

    def _split(self, method: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """A method's own settings, and those of the methods it requires, by name."""
        required = self.registry[method].cls.requires
        own = {name: value for name, value in values.items() if name not in required}
        return own, {name: values[name] for name in required if name in values}

    def _checked(self, method: str, values: Mapping[str, Any], where: str) -> str:
        """Settings of a method and of those it requires as canonical JSON; the method's own are complete."""
        return self._checked_json(method, canonical(values), where)

    @cache
    def _checked_json(self, method: str, values: str, where: str) -> str:
        cls = self.registry[method].cls
        own, required = self._split(method, json.loads(values))
        if self.registry[method].broken:
            own = {}
        known = [field.name for field in fields(cls.Settings)] + list(cls.requires)
        for name in own:
            if name not in known:
                raise UserError(f"{where}: unknown setting {name!r} of method {method}; {suggest(name, known)}")
        for name, over in required.items():
            if not isinstance(over, dict):
                raise UserError(f"{where}.{name}: must be a mapping of {name}'s settings, got {over!r}")
            make_settings(self.registry[name].cls, over, f"{where}.{name}")
        return canonical(settings_dict(make_settings(cls, own, where)) | required)

    def tuning_key(self, subject: str, benchmark: str) -> str:
        """What a stored winner depends on; package versions are left out, so that an update does not void tuning."""
        return hash_value(self._tuning_depends(subject, benchmark))

    def tuning_base(self, subject: str, benchmark: str) -> str:
        """The same without code: what may not change if a winner is to be confirmed instead of searched again."""
        depends = self._tuning_depends(subject, benchmark)
        return hash_value({**depends, "data": self._data_recipe(benchmark), "code": ""})

    @cache
    def _tuning_depends(self, subject: str, benchmark: str) -> dict[str, Any]:
        config, method = self.subject(subject), subject.partition(".")[0]
        cls = self.registry[method].cls
        generator = self.tuning_generator if cls.uses_generator else ""
        own, required = self._split(method, config.settings)
        proposer = self.proposer(method, canonical(own))
        return {
            **({"proposer": proposer.identity} if proposer else {}),
            "search": {name: space.model_dump(mode="json") for name, space in config.search.items()},
            "fixed": config.settings,
            "required": [self.settings(name, (benchmark,), required.get(name))[0] for name in cls.requires],
            "data": self.data_key(benchmark),
            "actor": self.model_recipe("actor"),
            "generator": self.model_recipe(generator) if generator else None,
            "code": self._fit_code(method),
            "trials": self.config.tuning.trials,
            "seed": self.config.tuning.seed,
        }

    @property
    def tuning_generator(self) -> str:
        """Tuning uses the first experiment's first generator."""
        return next(iter(self.config.experiments.values())).generators[0]

    def settings(
        self,
        subject: str,
        train: tuple[str, ...],
        over: Mapping[str, Any] | None = None,
        *,
        winners: bool = True,
        where: str = "",
    ) -> tuple[str, str]:
        """A fit's settings as canonical JSON, and where they come from (winner, expired, untuned, none).

        Order: the dataclass's defaults, the preset's `settings`, those of the method's variant that the subject names,
        the subject's stored winner of this benchmark if nothing it depends on has changed, then `over`, an experiment's
        variant; `where` is its place in the config. Trained on several benchmarks, each searched setting has the median
        of its values in their winners (the lower one, of an even number), so that no row of another benchmark chooses.
        """
        config = self.subject(subject)
        values: dict[str, Any] = dict(config.settings)
        tuned = "none"
        if winners and config.search and train:
            found, tuned = self._winners_of(subject, train)
            if found and len(train) == 1:
                values |= found[0].settings
            elif found:
                own = json.loads(self._checked(subject.partition(".")[0], values, self._place(subject, "settings")))
                for name in config.search:
                    values[name] = median_low([winner.settings.get(name, own[name]) for winner in found])
        place = where or self._place(subject, "settings")
        return self._checked(subject.partition(".")[0], merge(values, over or {}), place), tuned

    def _winners_of(self, subject: str, train: tuple[str, ...]) -> tuple[list[Winner], str]:
        """A current winner for each train benchmark, and what to call that; none where one is missing or expired."""
        stored = {name: self.winners.get((subject, name)) for name in train}
        found = [one for name, one in stored.items() if one and one.key == self.tuning_key(subject, name)]
        if len(found) == len(train):
            return found, "winner" if len(train) == 1 else "medians"
        self.expired |= {(subject, name) for name, one in stored.items() if one and one not in found}
        return [], "expired" if all(stored.values()) else "untuned"

    @cached_property
    def tunable(self) -> list[tuple[str, str]]:
        """The (subject, benchmark) pairs that `tune` searches: what the experiments use, where they use it."""
        used: dict[str, set[str]] = {}
        for name, experiment in self.config.experiments.items():
            for method in experiment.methods:
                for variant in self._variants(name, method):
                    used.setdefault(variant.subject, set()).update(experiment.benchmarks)
        return [
            (subject, benchmark)
            for subject, benchmarks in used.items()
            if self.subject(subject).search
            for benchmark in self.config.benchmarks
            if benchmark in benchmarks
        ]

    def tuning_needs(self, benchmark: str) -> list[Fit]:
        """What the searches on a benchmark build on (warm-ups), each once; what one of these requires before it."""
        found: dict[str, Fit] = {}

        def add(fits: Iterable[Fit]) -> None:
            for fit in fits:
                add(fit.requires)
                found.setdefault(fit.key, fit)

        for subject, where in self.tunable:
            if where == benchmark:
                settings, _ = self.settings(subject, (benchmark,), winners=False)
                method = subject.partition(".")[0]
                add(self.fit(method, settings, (benchmark,), self.tuning_generator, self.config.tuning.seed).requires)
        return list(found.values())

    def trials(self, subject: str, benchmark: str) -> list[dict[str, Any]]:
        """What random search tries: the preset's own settings, then draws, none twice; keys may stand in any order."""
        config, method = self.subject(subject), subject.partition(".")[0]
        rng = random.Random(derive_seed("tune", subject, benchmark, self.config.tuning.seed))
        own = json.loads(self._checked(method, config.settings, self._place(subject, "settings")))
        seen = [{name: own[name] for name in config.search}]
        drawn: list[dict[str, Any]] = [{}]
        for _ in range(100 * self.config.tuning.trials):  # a small grid may hold fewer settings than trials
            if len(drawn) == self.config.tuning.trials:
                break
            trial = {name: _draw(space, rng) for name, space in sorted(config.search.items())}
            if trial not in seen:
                seen.append(trial)
                drawn.append(trial)
        return drawn

    # ---- the grid ----------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[PlanRow]:
        """Every cell of every experiment, in the order of the config."""
        return [row for row, _ in self._grid]

    def _variants(self, experiment: str, method: str) -> list[Variant]:
        """What an experiment wants of a method, in the order of the config."""
        config = self.config.experiments[experiment]
        found = []
        for name, values in (config.variants.get(method) or {DEFAULT_VARIANT: {}}).items():
            place = f"experiments.{experiment}.variants.{method}.{name}"
            over = dict(values)
            tuned_as, generator = over.pop("tuned_as", None), over.pop("generator", None)
            if tuned_as is not None:
                own = self.subject(method).variants
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

    @cached_property
    def _grid(self) -> list[tuple[PlanRow, Cell]]:
        grid = []
        for name, experiment in self.config.experiments.items():
            for method in experiment.methods:
                cls = self.registry[method].cls
                if cls.internal:
                    raise UserError(f"experiments.{name}.methods: {method!r} only serves other methods; leave it out")
                for variant in self._variants(name, method):
                    # The same for each generator, if it uses none.
                    for generator in variant.generators[: None if cls.uses_generator else 1]:
                        for benchmark in experiment.benchmarks:
                            train = experiment.trained_on(benchmark)
                            told = tuple(name for name in self.config.benchmarks if name not in train)
                            told = told if experiment.train == "others" else ()
                            settings, tuned = self.settings(variant.subject, train, variant.over, where=variant.place)
                            if tuned in ("winner", "medians"):
                                tuned = self._whose_winner(variant.subject, settings, train, generator)
                            elif tuned == "none":
                                tuned = self._required_winners(method, settings, train)
                            for seed in experiment.seeds:
                                fit = self.fit(method, settings, train, generator, seed, experiment.rows, told)
                                cell = self.cell(fit, benchmark)
                                row = PlanRow(
                                    name,
                                    method,
                                    variant.name,
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

    def _required_winners(self, method: str, settings: str, train: tuple[str, ...]) -> str:
        """How a method without a search is tuned: by the winners of what it builds on, if that was searched."""
        required = self._split(method, json.loads(settings))[1]
        words = {self.settings(name, train, required.get(name))[1] for name in self.registry[method].cls.requires}
        found = [word for word in ("expired", "untuned", "winner", "medians") if word in words]
        return "none" if not found else "inherited" if found[0] in ("winner", "medians") else found[0]

    def _whose_winner(self, subject: str, settings: str, train: tuple[str, ...], generator: str) -> str:
        """How far settings are a winner's own: fits are compared, as a setting written out may be the default's."""
        method = subject.partition(".")[0]
        alone, own = self.settings(subject, train)
        same = self.fit(method, settings, train, generator, 0).key == self.fit(method, alone, train, generator, 0).key
        word = own if same else "inherited"
        elsewhere = self.registry[method].cls.uses_generator and generator != self.tuning_generator
        return f"{word} of {self.tuning_generator}" if elsewhere else word

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

    @cached_property
    def _first(self) -> set[str]:
        first = next(iter(self.config.experiments))
        cells = [cell for row, cell in self._grid if row.experiment == first]
        needed = {each.key for cell in cells for each in (cell.fit, *cell.fit.requires)}
        return needed | {cell.key for cell in cells}

    @cached_property
    def _uses(self) -> dict[str, tuple[list[Cell], list[Fit]]]:
        """What is made from each fit: its cells, and the fits that require it."""
        uses: dict[str, tuple[list[Cell], list[Fit]]] = {key: ([], []) for key in self.fits}
        for cell in self.cells.values():
            uses[cell.fit.key][0].append(cell)
        for fit in self.fits.values():
            for needed in fit.requires:
                uses[needed.key][1].append(fit)
        return uses

    def is_complete(self, fit: Fit) -> bool:
        """Whether a fit is there; without its policy (see `keep`) it is while all that is made from it is there."""
        folder = self.layout.fit(fit.key)
        if not folder.is_dir() or (folder / "policy").is_dir():
            return folder.is_dir()
        if fit.key not in self._uses:  # a search's warm-up: what is to be made from it is not known here
            return False
        cells, fits = self._uses[fit.key]
        return all(self.layout.cell(cell.key).is_dir() for cell in cells) and all(map(self.is_complete, fits))

    @cached_property
    def timed_cells(self) -> list[Cell]:
        """The first experiment's cells of its first seed, whose policies are timed."""
        name, experiment = next(iter(self.config.experiments.items()))
        cells = [cell for row, cell in self._grid if row.experiment == name and row.seed == experiment.seeds[0]]
        return list({cell.key: cell for cell in cells}.values())

    @property
    def spare_policies(self) -> list[Path]:
        """The policies that `keep` does not want once all cells are there."""
        if self.config.keep == "all":
            return []
        return [self.layout.fit(key) / "policy" for key in self.fits if key not in self._first]

    def comes_first(self, pack: Pack) -> bool:
        """Whether the first experiment needs something of a pack; such packs run before all others."""
        return not self._first.isdisjoint(pack.keys)

    @cached_property
    def descriptions(self) -> list[dict[str, Any]]:
        """What the methods in use say of themselves, by name; see `describe_method`."""
        used = {fit.method for fit in self.fits.values()}
        return [describe_method(self.registry[name].cls) for name in sorted(used)]

    @cached_property
    def searches(self) -> list[dict[str, Any]]:
        """What is known of each search that the experiments rest on: its ranges, and its stored winner if there is one.

        `status`: current, expired (what it depends on has changed; the preset's own settings are used) or none.
        """
        found = []
        for subject, benchmark in self.tunable:
            winner = self.winners.get((subject, benchmark))
            current = winner is not None and winner.key == self.tuning_key(subject, benchmark)
            told = asdict(winner) if winner else {}
            spaces = self.subject(subject).search.items()
            found.append(
                {
                    "subject": subject,
                    "benchmark": benchmark,
                    "status": "current" if current else "expired" if winner else "none",
                    "search": {name: space.model_dump(mode="json", exclude_none=True) for name, space in spaces},
                    "generator": self.tuning_generator,
                    **{name: told.get(name) for name in ("settings", "score", "trials", "failed", "at_edge")},
                    **{name: told.get(name) for name in ("rival", "rival_score")},
                }
            )
        return found

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
