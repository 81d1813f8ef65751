"""Presets: files in config/presets that each extend one base, overridden key by key and validated.

`load_config("nano", {"threads": 2})` gives the resolved preset; errors name the key and the remedy.
"""

import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from metatuner.config.fetched import with_fetched
from metatuner.config.overrides import arms, type_at
from metatuner.config.parts import BenchmarkConfig
from metatuner.config.reading import check_values, read_yaml
from metatuner.config.types import Config
from metatuner.errors import UserError, suggest
from metatuner.files import read_json
from metatuner.harness.benchmarks import Benchmark, benchmark_ids, get_benchmark
from metatuner.hashing import ROOT


def json_schema() -> dict[str, Any]:
    """The JSON schema of a resolved preset, generated from the types."""
    return Config.model_json_schema()


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge: mappings merge key by key, any other value in `over` replaces; `!key: null` is not special."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def preset_names() -> list[str]:
    """Names of the presets in config/presets."""
    return sorted(path.stem for path in (ROOT / "config" / "presets").glob("*.yaml"))


def _read_preset(name: str, chain: tuple[str, ...] = ()) -> dict[str, Any]:
    if name in chain:
        raise UserError(f"config/presets/{chain[-1]}.yaml: extends {name!r}, which extends it; break the circle")
    if name not in preset_names():
        raise UserError(f"unknown preset {name!r} (a file config/presets/NAME.yaml); {suggest(name, preset_names())}")
    place = f"config/presets/{name}.yaml"
    values = read_yaml(ROOT / place, place)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{place}: must be a mapping of keys")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{place}: extends {base!r}, which is no preset's name; {suggest('', preset_names())}")
    inherited = _read_preset(base, (*chain, name))
    inherited.pop("claims", None)  # a preset that extends one which reproduces the paper need not do so itself
    return merge(inherited, values)


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys that the config's types allow at a location."""
    return [name for arm in arms(type_at(location)) if hasattr(arm, "model_fields") for name in arm.model_fields]


def _one_line(error: ValidationError) -> str:
    found = error.errors()
    # If a key is misspelt, the right key is missing too: report the misspelling.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    location = tuple(part for part in first["loc"] if part != "[key]")
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        return f"unknown config key {key!r}; {suggest(str(location[-1]), _known_keys(location[:-1]))}"
    if first["type"] == "missing":
        return f"config key {key!r} is missing; add it to the preset"
    if first["type"] == "value_error":
        return f"config{': ' + key if key else ''}: {first['ctx']['error']}"
    if not key:
        told = reprlib.repr(first["input"])
        return f"config: must be a mapping of keys, got {told}; `metatuner config preset=NAME` prints one"
    return f"config key {key!r}: {first['msg']}, got {reprlib.repr(first['input'])}"


def resolve(values: Mapping[str, Any]) -> Config:
    """Validate a merged preset; UserError names the first key that is wrong."""
    check_values(values)
    try:
        _check_benchmark_keys(values)
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None


def _check_benchmark_keys(values: Mapping[str, Any]) -> None:
    """UserError for a key of a benchmark that neither all benchmarks take nor this one, or for a value of its own key.

    A benchmark's file is imported only if the preset has keys that not all benchmarks take.
    """
    if not _mapping(values) or not _mapping(values, "benchmarks"):
        return
    files = values.get("extra_benchmarks")
    files = [each for each in files if isinstance(each, str)] if isinstance(files, list) else []
    for name, used in values["benchmarks"].items():
        own = {key: used[key] for key in used if key not in BenchmarkConfig.model_fields} if _mapping(used) else {}
        if not own:
            continue
        task = used.get("source") == "lm_eval"
        found: Benchmark | None = None if task else get_benchmark(name, [] if name in benchmark_ids() else files)
        for key in own:
            takes = found.takes if found else {}
            if key not in takes:
                known = suggest(key, [*BenchmarkConfig.model_fields, *takes])
                raise UserError(f"unknown config key 'benchmarks.{name}.{key}'; {known}")
        if found:
            found.with_overrides(choices={key: value for key, value in own.items() if value is not None})


_REMOVABLE = (
    ("benchmarks",),
    ("models", "generators"),
    ("methods",),
    ("methods", "*", "variants"),
    ("budgets", "*", "tflop"),
    ("experiments",),
    ("experiments", "*", "variants"),
    ("experiments", "*", "variants", "*"),
)
"""Mappings from which a preset removes an inherited entry by null; `*` stands for any name."""


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """A merged preset without the entries that are null; UserError if an experiment still names a removed method."""
    removed = (
        [name for name, method in values["methods"].items() if method is None] if _mapping(values, "methods") else []
    )
    for place in _REMOVABLE:
        values = _removed(values, place)
    experiments = values["experiments"] if _mapping(values, "experiments") else {}
    for name, experiment in experiments.items():
        for method in experiment.get("methods") or [] if _mapping(experiment) else []:
            if method in removed:
                raise UserError(
                    f"experiments.{name}.methods: names {method!r}, but methods.{method} is null; leave it out of both"
                )
    return values


def _removed(values: Any, place: tuple[str, ...]) -> Any:
    """The values without the null entries of the mappings at a place."""
    if not _mapping(values):
        return values
    if not place:
        return {name: each for name, each in values.items() if each is not None}
    names = list(values) if place[0] == "*" else [place[0]]
    return {name: _removed(each, place[1:]) if name in names else each for name, each in values.items()}


def _mapping(values: Any, key: str | None = None) -> bool:
    """Whether a value, or its value of a key, is a mapping."""
    return isinstance(values if key is None else values.get(key), dict)


def _chosen(experiments: Any, run: Any) -> Any:
    """The experiments that `run` names, in its order; all if it names none."""
    names = [run] if isinstance(run, str) else run
    if not isinstance(names, list) or not isinstance(experiments, dict):
        return experiments  # validation of their types reports what is wrong
    for name in names:
        if not isinstance(name, str) or name not in experiments:
            raise UserError(f"config key 'run': no experiment {name!r}; {suggest(str(name), experiments)}")
    return {name: experiments[name] for name in names}


def load_config(preset: str = "nano", overrides: Mapping[str, Any] | None = None) -> Config:
    """The named preset, deep-merged with overrides and validated.

    Args:
        preset: a name in config/presets.
        overrides: nested keys (or dotted keys at the top level: `{"tuning.trials": 2}`) that replace the preset's.
            With other models, benchmarks or another nano world the paper's claims are not judged, unless they set
            `claims` too.

    Benchmarks, generators, methods, experiments, variants and a budget's benchmarks that are set to null are left out,
    and so are experiments that `run` does not name.
    """
    values = _read_preset(preset)
    if {key.split(".")[0] for key in overrides or {}} & {"models", "benchmarks", "nano"}:
        values.pop("claims", None)
    for key, value in (overrides or {}).items():
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        check_values({key.split(".")[0]: value})
        values = merge(values, {key.split(".")[0]: value})
    for key in ("extra_methods", "extra_benchmarks"):  # --config extra_methods=FILE gives a bare name
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
    values["experiments"] = _chosen(values.get("experiments"), values.get("run"))
    values = _without_nulls(values)
    values.setdefault("preset", preset)
    values.setdefault("results", f"results/{preset}")
    return with_fetched(resolve(values))


def read_config(path: Path) -> Config:
    """A resolved config that the DAG wrote as JSON."""
    remedy = "give a config file that a run or `metatuner snapshot` wrote, such as results/nano/config.json"
    values = read_json(path, remedy)
    try:
        return resolve(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def dump_config(config: Config) -> str:
    """A config as indented JSON, the form `read_config` takes.

    Keys keep the config's order, because cells are packed and variants are listed in tables in this order.
    """
    return json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def expand_path(text: str, key: str) -> Path:
    """A path with $VARIABLES and ~ expanded; an unset variable is an error that names the config key."""
    expanded = os.path.expanduser(os.path.expandvars(text))
    if "$" in expanded:
        variable = expanded[expanded.index("$") :].split("/")[0]
        raise UserError(f"config key {key!r}: environment variable {variable} is not set; export it or write a folder")
    return Path(expanded)


def local_folder(model: str) -> Path | None:
    """The folder that a model's path names, with $VARIABLES and ~ expanded; None for a Hub id or a nano model."""
    return expand_path(model, "models") if is_path(model) else None


def is_path(model: str) -> bool:
    """Whether a model is a path (it starts with a slash, a dot, ~ or $, or is a folder) rather than a Hub id."""
    return model.startswith(("/", ".", "~", "$")) or Path(model).is_dir()
