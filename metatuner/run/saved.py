"""Opens saved policies for use on other tasks: a finished cell, a fit's folder, or a MetaTuner saved by the library."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from baselines.shared.saved_tuner import FILE as TUNER
from baselines.shared.saved_tuner import open_tuner, tuner_prompt
from metatuner.config import read_config
from metatuner.errors import UserError, suggest
from metatuner.files import read_json
from metatuner.harness.benchmarks import Benchmark, benchmark_ids, get_benchmark
from metatuner.harness.ground import Ground
from metatuner.harness.policy import Policy, load_policy
from metatuner.harness.registry import Registry
from metatuner.harness.rows import Row
from metatuner.hashing import hash_file, hash_value
from metatuner.lm import LM, ModelSpec, load_lm
from metatuner.plan.keys import folder_hash
from metatuner.run.workshop import Workshop, asked

MANIFEST = "manifest.json"
MOST_NEW_TOKENS = 256
"""Of a task that says no limit, as in lm-eval."""
ANY = "any"
"""Stands for a benchmark where a saved MetaTuner answers any task under its own p~."""
HOW = "name pretrained=FOLDER (a fit's folder or a saved MetaTuner), or config=FILE,cell=KEY"


@dataclass(frozen=True)
class Saved:
    """A saved policy, opened."""

    policy: Policy
    identity: str
    """A hash of all that its answers depend on; "" if it is not known."""
    ask_as: str = ""
    """The benchmark as which it is asked queries of other tasks; "" if several could be meant."""


class Asked(Benchmark):
    """How queries are asked, without rows and scores."""

    version = 0
    metrics = ()
    primary = ""

    def __init__(self, initial_prompt: str, max_new_tokens: int, stops: tuple[str, ...] = ()) -> None:
        self.initial_prompt, self.max_new_tokens, self.stops = initial_prompt, max_new_tokens, stops

    def row(self, raw: dict[str, Any]) -> Row:
        raise NotImplementedError

    def extract(self, completion: str, row: Row) -> str | None:
        raise NotImplementedError

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        raise NotImplementedError


def open_named(**names: Any) -> Saved:
    """The saved policy that lm-eval's `--model_args` names; `UserError` says what is missing.

    Args:
        **names: `config` and `cell`, or `pretrained` and fields of `Choices`.
    """
    if set(names) == {"config", "cell"}:
        return open_cell(Path(str(names["config"])), str(names["cell"]))
    if "pretrained" not in names:
        raise UserError(f"--model_args: no policy is named; {HOW}")
    folder = Path(str(names.pop("pretrained"))).expanduser()
    known = [field.name for field in fields(Choices)]
    for name in names:
        if name not in known:
            raise UserError(f"--model_args: unknown {name!r}; {suggest(name, [*known, 'pretrained', 'ask_as'])}")
    return open_pretrained(folder, Choices(**names))


def open_cell(config: Path, key: str) -> Saved:
    """The policy of a finished cell.

    Args:
        config: `results/<preset>/config.json`.
        key: the cell's key in scores.csv.
    """
    shop = Workshop(read_config(config))
    cell = shop.plan.grid.cells.get(key)
    if cell is None:
        raise UserError(f"cell {key!r} is not in the plan of {config}; take a key from scores.csv of the same preset")
    policy = shop.open_policy(cell.fit, share=True)
    known = {*cell.fit.train, *cell.fit.transfer, cell.benchmark}
    policy.ground.benchmarks = {name: each for name, each in shop.benchmarks.items() if name in known}
    return Saved(policy, hash_value([cell.fit.key, _asked(policy.ground.benchmarks)]), cell.benchmark)


@dataclass(frozen=True)
class Choices:
    """What `--model_args` may choose beside the folder."""

    prompt: str | None = None
    """p~, for a saved MetaTuner; by default its own."""
    max_new_tokens: int | None = None
    """Limit of answers to tasks that name none; by default the benchmark's, or `MOST_NEW_TOKENS`."""
    actor: str | None = None
    """The base model's folder or Hub id, if it is not where the saved policy says."""
    generator: str | None = None
    """Likewise."""
    methods: str | None = None
    """A file of methods that defines the policy's kind, if no installed package does."""
    device: str = "auto"
    """Of both models."""
    batch_tokens: int = 16384
    """Padded tokens that a generation batch may hold."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UserError(f"--model_args: {name} must be a whole number above 0, is {value!r}")


def open_pretrained(folder: Path, choices: Choices) -> Saved:
    """The policy in a folder that a fit or `MetaTuner.save_pretrained` wrote.

    Args:
        folder: a fit's folder (with fit.json and policy/), its policy/, or a saved MetaTuner.
        choices: see `Choices`.
    """
    if (folder / TUNER).is_file():
        return _open_tuner(folder, choices)
    fit = folder if (folder / "policy").is_dir() else folder.resolve().parent
    if not (fit / "policy" / MANIFEST).is_file():
        raise UserError(f"pretrained={folder}: no saved policy ({MANIFEST}) and no saved MetaTuner ({TUNER}); {HOW}")
    if choices.prompt is not None:
        raise UserError("--model_args: prompt goes with a saved MetaTuner; a fit's policy has its own prompts")
    return _open_fit(fit, choices)


def _open_tuner(folder: Path, choices: Choices) -> Saved:
    prompt = tuner_prompt(folder) if choices.prompt is None else str(choices.prompt)
    limit = choices.max_new_tokens
    benchmarks: dict[str, Benchmark] = {
        name: get_benchmark(name).with_overrides(initial_prompt=prompt, max_new_tokens=limit)
        for name in benchmark_ids()
    }
    if prompt is not None:
        benchmarks[ANY] = Asked(prompt, limit or MOST_NEW_TOKENS)
    bases = []

    def load(role: str, spec: dict[str, Any]) -> LM:
        lm = _load(folder, role, spec, choices)
        bases.append(_base(lm.spec))
        return lm

    policy = open_tuner(folder, load, benchmarks)
    return Saved(policy, hash_value([_files(folder), bases, _asked(benchmarks)]), "" if prompt is None else ANY)


def _open_fit(fit: Path, choices: Choices) -> Saved:
    record = read_json(fit / "fit.json", f"it names the models; {HOW}")
    if "models" not in record:
        raise UserError(f"{fit / 'fit.json'}: names no models, as an older version wrote it; fit again, or {HOW}")
    benchmarks: dict[str, Benchmark] = {
        name: Asked(rules["initial_prompt"], choices.max_new_tokens or rules["max_new_tokens"], tuple(rules["stops"]))
        for name, rules in record["benchmarks"].items()
    }
    Registry([choices.methods] if choices.methods else [])  # registers the kinds of policies
    models = {role: _load(fit, role, spec, choices) for role, spec in record["models"].items()}
    ground = Ground(models["actor"], models.get("generator"), benchmarks, choices.batch_tokens)
    policy = load_policy(fit / "policy", ground)
    bases = [_base(lm.spec) for lm in models.values()]
    identity = hash_value([record["key"], _files(fit / "policy"), bases, _asked(benchmarks)])
    trained_on = record["trained_on"]
    return Saved(policy, identity, trained_on[0] if len(trained_on) == 1 else "")


def _load(folder: Path, role: str, saved: Mapping[str, Any], choices: Choices) -> LM:
    """A base model: where `choices` say, else at its saved path, seen from here or from a folder above the policy."""
    spec = {**saved, "device": choices.device}
    chosen = getattr(choices, role)
    if chosen is not None:
        spec |= {"path": str(chosen), "revision": None}
    elif not Path(spec["path"]).expanduser().is_dir():
        above = (parent / spec["path"] for parent in folder.resolve().parents)
        spec["path"] = next((str(place) for place in above if place.is_dir()), spec["path"])
    try:
        return replace(load_lm(ModelSpec(**spec)), batch_tokens=choices.batch_tokens)
    except UserError as error:
        raise UserError(f"{folder}: its {role}: {error}; {role}=FOLDER in --model_args names another place") from None


def _base(spec: ModelSpec) -> list[Any]:
    """A base model as part of an identity."""
    used = asdict(spec) | {"device": ""}
    folder = Path(spec.path).expanduser()
    if folder.is_dir():
        return [used | {"path": ""}, folder_hash(folder, "pretrained")]
    return [used]


def _files(folder: Path) -> list[list[str]]:
    """The files of a saved policy, by content."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [[file.relative_to(folder).as_posix(), hash_file(file)] for file in files]


def _asked(benchmarks: Mapping[str, Benchmark]) -> dict[str, Any]:
    return {name: asked(each) for name, each in benchmarks.items()}
