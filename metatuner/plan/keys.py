"""Hashes of models, rows and code, and the places of their files."""

import json
import platform
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metatuner import nano
from metatuner.config import BenchmarkConfig, Config, Layout, ModelConfig, expand_path, is_path
from metatuner.errors import UserError
from metatuner.fetch.known import how, known
from metatuner.files import read_json
from metatuner.harness.benchmarks import benchmark_file, benchmark_files, get_benchmark
from metatuner.harness.importing import siblings
from metatuner.harness.registry import Registry
from metatuner.hashing import ROOT, hash_code, hash_file, hash_value
from metatuner.integrity import DIGESTS

HARNESS, RUN = ROOT / "metatuner" / "harness", ROOT / "metatuner" / "run"
LOCK = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "dspy",
    "lm-eval",
    "datasets",
    "math-verify",
    "sympy",
    "latex2sympy2-extended",
    "gepa",
    "optuna",
    "numpy",
)
"""Packages that scores may depend on: keys of fits and cells hash their versions. provenance.json lists more."""
SMALL_FILE = 64 * 2**20
"""A file of a local model with fewer bytes is identified by its content."""

WEIGHTS = "model.safetensors"
"""The file of a fetched model's weights."""

_code = cache(hash_code)
"""Cached: the hash of code is the same for all plans of a process, and takes most of the time to make a plan."""


@cache
def lock_versions() -> dict[str, str]:
    """Installed versions of the packages that scores depend on, through their numerics or behaviour."""
    found = {"python": platform.python_version().rsplit(".", 1)[0]}
    for name in LOCK:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def folder_hash(folder: Path, key: str, remedy: str = "name a folder that exists, or a Hub id") -> str:
    """A hash of a local model folder: small files by their bytes, shards by name, size and time of change.

    A shard's SHA-256 takes the place of its time of change if the folder's `digests.json` has it.
    """
    if not folder.is_dir():
        raise UserError(f"config key {key!r}: no folder {folder}; {remedy}")
    digests = _digests(folder, key)
    parts = []
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        status = path.stat()
        small = status.st_size < SMALL_FILE
        changed = digests.get(path.name, {}).get("sha256", status.st_mtime_ns)
        parts.append([path.name, hash_file(path) if small else [status.st_size, changed]])
    return hash_value(parts)


def _digests(folder: Path, key: str) -> dict[str, dict[str, str]]:
    if not (folder / DIGESTS).is_file():
        return {}
    remedy = f"restore the folder that config key {key!r} names"
    found: dict[str, dict[str, str]] = read_json(folder / DIGESTS, remedy, {"*": {"sha256": str}})
    return found


def is_local(model: ModelConfig) -> bool:
    """Whether a model is a path rather than a Hub id."""
    return is_path(model.path)


class Keys:
    """The hashes that keys of fits, cells and searches are made from."""

    def __init__(self, config: Config, registry: Registry) -> None:
        self.config, self.registry = config, registry
        self.layout = Layout(config)
        self.world = nano.World(seed=config.nano.world_seed, null=config.nano.null)
        own = benchmark_files(config.extra_benchmarks)
        for name, benchmark in config.benchmarks.items():
            if benchmark.source == "lm_eval" and name in own:
                raise UserError(f"benchmarks.{name}: {own[name]} defines {name!r}; give lm-eval's task another name")

    # ---- models ------------------------------------------------------------------------------------------------

    def model_config(self, role: str) -> ModelConfig:
        """The actor's config for "actor", else the named generator's."""
        return self.config.models.actor if role == "actor" else self.config.models.generators[role]

    def is_nano(self, role: str) -> bool:
        """Whether a role is played by a nano model."""
        return self._nano_role(role) is not None

    def _nano_role(self, role: str) -> str | None:
        """The recipe of a nano model; None for any other."""
        path = self.model_config(role).path
        return path.removeprefix("nano:") if path.startswith("nano:") else None

    @cache
    def model_identity(self, role: str) -> str:
        """A hash of what a model is and how it is used, without code.

        It depends on a nano model's recipe, constants and given weights, a folder's content, or a Hub id and revision.
        """
        model = self.model_config(role)
        used = model.model_dump(mode="json", exclude={"device", "engine", "fetched"})
        if model.engine is not None:
            used["engine"] = model.engine.identity
        recipe = self._nano_role(role)
        if recipe is not None:
            return hash_value([used, nano.model_identity(recipe, self.world), self.config.nano.trained])
        if is_local(model):
            remedy = self.how_to_fetch(role)
            if remedy is None:
                return hash_value([used, folder_hash(self.model_path(role), f"{self.model_place(role)}.path")])
            used["path"] = ""  # the same files in another cache are the same model
            return hash_value([used, folder_hash(self.model_path(role), f"{self.model_place(role)}.path", remedy)])
        return hash_value(used)

    @cache
    def model_key(self, role: str) -> str:
        """A hash of a model's identity and, for a nano model, of the code and the torch version that train it."""
        recipe = self._nano_role(role)
        return hash_value([self.model_identity(role), None if recipe is None else self.nano_key(recipe)])

    def model_place(self, role: str) -> str:
        """The config key of a role's model."""
        return "models.actor" if role == "actor" else f"models.generators.{role}"

    def model_path(self, role: str) -> Path:
        """The folder of a nano or local model."""
        recipe = self._nano_role(role)
        if recipe is not None:
            return self.layout.model(recipe, self.nano_key(recipe))
        return expand_path(self.model_config(role).path, f"{self.model_place(role)}.path")

    def how_to_fetch(self, role: str) -> str | None:
        """What to do where a model is not at hand; None if `metatuner fetch-model` does not know it."""
        name = self.model_config(role).fetched
        return None if name is None else f"run {how(name, Path(self.config.cache))}"

    def fetched_weights(self) -> dict[str, dict[str, Any]]:
        """For provenance: by role, the weights of each model that has `fetched` set; empty if none has."""
        found: dict[str, Any] = {}
        for role in ("actor", *self.config.models.generators):
            model = self.model_config(role)
            if model.fetched is None:
                continue
            found[role] = {"hub": model.hub, "revision": model.revision, "weights": "the Hub's"}
            if is_local(model):
                digests = _digests(self.model_path(role), f"{self.model_place(role)}.path")
                found[role] |= {
                    "weights": known(model.fetched).weights,
                    "sha256": digests.get(WEIGHTS, {}).get("sha256"),
                }
        return {"weights": found} if found else {}

    def nano_key(self, recipe: str) -> str:
        """What a pretrained nano model depends on: its recipe's code, the world, and torch."""
        # A model that is pretrained here is not the same as the model that comes with the package.
        mark = [] if self.config.nano.given else ["trained here"]
        key = nano.model_key(recipe, self.world)
        return hash_value([key, self.config.nano.trained, lock_versions()["torch"], *mark])

    def layers(self, role: str) -> int | None:
        """Number of decoder layers of a model; None if neither its recipe nor its folder says it."""
        recipe = self._nano_role(role)
        if recipe is not None:
            return nano.RECIPES[recipe].layers
        file = self.model_path(role) / "config.json" if is_local(self.model_config(role)) else None
        if file is None or not file.is_file():
            return None
        layers: int | None = json.loads(file.read_text(encoding="utf-8")).get("num_hidden_layers")
        return layers

    @property
    def nano_roles(self) -> list[str]:
        """The recipes of the nano models that the experiments use."""
        generators = {name for experiment in self.config.experiments.values() for name in experiment.generators}
        return sorted({recipe for role in ("actor", *generators) if (recipe := self._nano_role(role)) is not None})

    # ---- rows --------------------------------------------------------------------------------------------------

    @property
    def world_key(self) -> str:
        """What the nano world's rows depend on: its constants, code and seed."""
        return nano.world_key(self.world)

    def world_sizes(self) -> dict[str, dict[str, int]]:
        """Raw rows to write per nano benchmark: what the splits take, and enough train rows for all seeds."""
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
            splits = ("train", "tune", "test", "audit")
            return tuple(self.layout.world / benchmark / f"{split}.jsonl" for split in splits)
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

    def _rows(self, benchmark: str, world: str) -> str:
        """A hash of a benchmark's rows; `world` stands for what makes the rows of the nano world."""
        config: BenchmarkConfig = self.config.benchmarks[benchmark]
        source: Any = "hub"
        if config.source == "nano":
            source = [world, self.world_sizes()[benchmark]["train"]]
        elif config.source == "local":
            source = [hash_file(file) for file in self.source_files(benchmark)]
        elif config.source == "lm_eval":
            source = [
                config.task,
                config.metric,
                config.filter,
                self._task_files(benchmark),
                lock_versions()["lm-eval"],
            ]
        places = dict.fromkeys(("path", "task", "include_path", "metric", "filter"), True)
        used = config.model_dump(mode="json", exclude={**places, "sizes": {"audit"}})
        common = {key: value for key, value in used.items() if key not in (config.model_extra or {})}
        return hash_value([{**common, **self._asked(benchmark)}, source])

    def _asked(self, benchmark: str) -> dict[str, Any]:
        """The initial prompt and the benchmark's own keys, as far as the identity of the rows' source leaves them open.

        The nano world's identity holds how its models were taught to read a benchmark, so only what differs counts.
        """
        config = self.config.benchmarks[benchmark]
        if config.source != "nano" or benchmark not in nano.BENCHMARKS:
            return {"initial_prompt": config.initial_prompt, **config.choices}
        taught = nano.as_asked(benchmark)
        asked = get_benchmark(benchmark).with_overrides(initial_prompt=config.initial_prompt, choices=config.choices)
        changed = {key: asked.chosen(key) for key in asked.takes if asked.chosen(key) != taught.chosen(key)}
        same = asked.initial_prompt == taught.initial_prompt
        return {"initial_prompt": None if same else asked.initial_prompt, **changed}

    def _task_files(self, benchmark: str) -> list[Any]:
        """The files of a task of the user's own, by content."""
        include = self.config.benchmarks[benchmark].include_path
        if include is None:
            return []
        folder = expand_path(include, f"benchmarks.{benchmark}.include_path")
        if not folder.is_dir():
            raise UserError(f"benchmarks.{benchmark}.include_path: no folder {folder}; name the folder of the task")
        files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        return [[file.relative_to(folder).as_posix(), hash_file(file)] for file in files]

    @cache
    def data_identity(self, benchmark: str) -> str:
        """A hash of a benchmark's rows, without code."""
        return self._rows(benchmark, nano.world_identity(self.world))

    @cache
    def data_key(self, benchmark: str) -> str:
        """A hash of what a benchmark's rows and its scoring depend on."""
        code = self._benchmark_code(benchmark, HARNESS / "splits.py")
        return hash_value([self._rows(benchmark, self.world_key), code])

    def _benchmark_code(self, benchmark: str, *more: Path) -> str:
        """A hash of the code of a benchmark's file and of `more`."""
        if self.config.benchmarks[benchmark].source == "lm_eval":
            return _code(HARNESS / "benchmarks" / "lm_eval_task.py", *more)
        file = benchmark_file(benchmark, self.config.extra_benchmarks)
        if file.is_relative_to(HARNESS):
            return _code(file, *more)
        return hash_code(file, *more, data=siblings(file))

    @cache
    def public_key(self, benchmark: str) -> str:
        """A hash of what is known about a benchmark without its rows."""
        config = self.config.benchmarks[benchmark]
        asked: list[Any] = [config.initial_prompt, config.max_new_tokens, self._benchmark_code(benchmark)]
        asked += [config.choices] if config.choices else []
        return hash_value(asked if config.task is None else [*asked, config.task, self._task_files(benchmark)])

    # ---- code --------------------------------------------------------------------------------------------------

    @cached_property
    def forecast(self) -> str:
        """A hash of the file that costs are predicted from."""
        path = ROOT / self.config.forecast
        if not path.is_file():
            raise UserError(f"config key 'forecast': no file {path}; name one, such as config/forecast.yaml")
        return hash_file(path)

    @cache
    def fit_code(self, method: str) -> str:
        """A hash of the code that a method's fits run."""
        registered = self.registry[method]
        if registered.beside:
            return hash_code(registered.file, RUN / "fitting.py", data=registered.beside)
        return _code(registered.file, RUN / "fitting.py")

    @cache
    def evaluation_code(self) -> str:
        """A hash of the code that evaluations run, and of their task files."""
        return hash_code(RUN / "evaluation.py", data=(HARNESS / "tasks").glob("*.yaml"))
