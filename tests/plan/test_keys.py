"""Keys: each changes with everything that its results depend on, and with nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from metatuner.config import load_config
from metatuner.hashing import ROOT
from metatuner.plan import Plan, keys
from metatuner.plan.keys import LOCK
from metatuner.plan.winners import Winner, write_winners
from tests.toys.plan import plan, plan_of

GENERATED = {"opro", "cfpo", "copro", "miprov2", "gepa", "rlprompt", "bpo"}
GENERATED |= {"rewriter_sft", "static_lora", "metatuner_i", "metatuner_j"}
"""Methods that use a generator."""
ON_SFT = {"sft", "dpo", "ppo", "grpo", "rewriter_sft"}
ON_WARM_UP = {"metatuner_i", "metatuner_j", "static_lora", "rewriter_sft"}
ALL = GENERATED | ON_SFT | {"zero_shot", "few_shot", "bootstrap_few_shot", "better_together"}


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ({"methods.sft.settings.rank": 4}, ON_SFT),
        ({"methods.metatuner_warmup.settings.rollouts": 5}, ON_WARM_UP),
        ({"nano.world_seed": 1}, ALL),
        ({"nano.null": True}, ALL),
        ({"nano.trained": False}, ALL),
        ({"nano.given": False}, ALL),
        ({"budgets.default.lm_calls": 30000}, ALL),
        ({"models.actor.window": 512}, ALL),
        ({"models.actor.dtype": "bfloat16"}, ALL),
        ({"models.generators.large.window": 512}, GENERATED),
        ({"models.generators.large.path": "nano:generator_small"}, GENERATED),
        ({"models.generators.small.window": 512}, set()),
        ({"batch_tokens": 8192}, set()),
        ({"pack": 3}, set()),
        ({"threads": 2}, set()),
        ({"keep": "all"}, set()),
        ({"tuning.seed": 77, "tuning.trials": 2}, set()),
        ({"budgets.default.seconds": 5.0}, set()),
        ({"models.actor.device": "cuda"}, set()),
        ({"methods.sft.search.rank": {"values": [2, 4]}}, set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_cells_key_changes_with_what_it_depends_on_and_nothing_else(override: dict[str, Any], changes: set[str]):
    before, after = plan(), plan(override)
    methods = {cell.fit.method for key, cell in before.grid.cells.items() if key not in after.grid.cells}
    assert methods == changes
    # Of these methods no cell stays as it was.
    assert {cell.fit.method for key, cell in before.grid.cells.items() if key in after.grid.cells} == ALL - changes


@pytest.mark.parametrize(
    ("key", "value", "changes"),
    [
        ("split_seed", 7, True),
        ("initial_prompt", "another", True),
        ("max_new_tokens", 47, True),
        ("sizes.train", 127, True),
        ("sizes.dev", 63, True),
        ("sizes.tune", 199, True),
        ("sizes.test", 299, True),
        ("sizes.audit", 299, False),
    ],
)
def test_a_benchmarks_rows_and_rules_are_part_of_its_own_cells_keys(key: str, value: Any, changes: bool):
    methods = {"experiments.main.methods": ["zero_shot", "sft"]}
    before, after = plan(methods), plan({**methods, f"benchmarks.gsm8k.{key}": value})
    changed = [cell for name, cell in before.grid.cells.items() if name not in after.grid.cells]
    assert {cell.benchmark for cell in changed} == ({"gsm8k"} if changes else set())
    assert len(changed) == (6 if changes else 0)  # two methods, three seeds
    fits = [fit for name, fit in before.grid.fits.items() if name not in after.grid.fits]
    assert {fit.train for fit in fits} == ({("gsm8k",)} if changes else set())
    assert len(fits) == len(changed)
    for each in ("gsm8k", "math"):
        assert (before.keys.data_key(each) == after.keys.data_key(each)) is not (changes and each == "gsm8k")


def test_a_cell_depends_on_the_rows_it_is_tested_on_though_its_fit_does_not():
    names = ["math", "gsm8k", "hotpotqa"]

    def cells(**changes: Any) -> dict[str, tuple[str, str]]:
        made = plan_of(method="sft", benchmarks=names, train="others", rows=43, **changes)
        return {row.benchmark: (row.fit, row.cell) for row in made.grid.rows if row.experiment == "grid"}

    before, after = cells(), cells(benchmarks__gsm8k__split_seed=7)
    assert after["gsm8k"][0] == before["gsm8k"][0]
    assert after["gsm8k"][1] != before["gsm8k"][1]
    assert after["math"][0] != before["math"][0]


def test_a_fits_cells_differ_by_benchmark_seed_and_generator():
    made = plan()
    assert (
        len({row.cell for row in made.grid.rows})
        == len({row.fit for row in made.grid.rows})
        == len(made.grid.rows)
        == 19 * 4 * 3
    )
    found = {(fit.method, repr(fit.settings), fit.train, fit.generator, fit.seed) for fit in made.grid.fits.values()}
    # Fitted and not tested: the warm-up, and the SFT that methods with rewards, and the rewriter, start from.
    assert len(found) == len(made.grid.fits) == (19 + 3) * 4 * 3
    used = {method: {fit.generator for fit in made.grid.fits.values() if fit.method == method} for method in ALL}
    assert {method for method, generators in used.items() if generators == {"large"}} == GENERATED
    assert {method for method, generators in used.items() if generators == {""}} == ALL - GENERATED


# ---- package versions ----------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterable[dict[str, str]]:
    """Versions to be taken for those installed."""
    told: dict[str, str] = {}
    monkeypatch.setattr(keys, "version", lambda name: told.get(name) or version(name))
    keys.lock_versions.cache_clear()
    yield told
    keys.lock_versions.cache_clear()


@pytest.mark.parametrize("package", ["torch", "transformers", "lm-eval", "math-verify"])
def test_another_version_of_a_package_makes_all_cells_anew_and_leaves_stored_winners(
    package: str, installed: dict[str, str]
):
    assert package in LOCK
    config = load_config("nano", {"experiments": {"main": {"methods": ["zero_shot", "sft"]}}, "run": "main"})

    def of_plan() -> tuple[set[str], set[str], list[str]]:
        keys.lock_versions.cache_clear()
        made = Plan(config)
        return (
            set(made.grid.fits),
            set(made.grid.cells),
            [made.settings.winner_key(*each) for each in made.searches.all],
        )

    before = of_plan()
    installed[package] = version(package).split("+")[0] + "+another.build"
    assert of_plan() == before
    installed[package] = "99.9"
    fits, cells, tuning = of_plan()
    assert not fits & before[0]
    assert not cells & before[1]
    assert tuning == before[2]


# ---- models on disk ------------------------------------------------------------------------------------------------


def test_a_local_model_is_known_by_what_its_folder_holds(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    weights, large = tmp_path / "model.safetensors", tmp_path / "shard.safetensors"
    weights.write_bytes(b"\0" * 64)
    large.touch()
    os.truncate(large, 64 * 2**20)  # a hole, not bytes
    os.utime(large, ns=(10**18, 10**18))

    def keys() -> tuple[str, ...]:
        made = plan({"models.actor.path": str(tmp_path), "experiments.main.methods": ["zero_shot"]})
        assert made.keys.layers("actor") == 3
        return (*sorted(made.grid.fits), made.settings.winner_key("sft", "gsm8k"))

    seen = [keys()]
    assert keys() == seen[0]
    weights.touch()  # another time of change, the same bytes
    assert keys() == seen[0]
    (tmp_path / ".cache").mkdir()
    assert keys() == seen[0]

    def changed() -> None:
        now = keys()
        for before in seen:
            assert not set(now) & set(before)
        seen.append(now)

    weights.write_bytes(b"\0" * 63 + b"\1")  # of the same size
    changed()
    weights.rename(tmp_path / "other.safetensors")
    changed()
    os.utime(large, ns=(10**18 + 1, 10**18 + 1))  # a shard is known by size and time alone
    changed()
    os.truncate(large, 64 * 2**20 + 1)
    os.utime(large, ns=(10**18 + 1, 10**18 + 1))
    changed()
    (tmp_path / "generation_config.json").write_text("{}")
    changed()


# ---- searches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ({"tuning.trials": 7}, ALL),
        ({"tuning.finalists": 2}, ALL),
        ({"tuning.seed": 7}, ALL),
        ({"nano.trained": False}, ALL),
        ({"nano.world_seed": 1}, ALL),
        ({"models.actor.window": 512}, ALL),
        ({"models.generators.large.window": 512}, GENERATED),
        ({"experiments.main.generator": ["small", "large"]}, GENERATED),
        ({"methods.sft.settings.rank": 4}, ON_SFT),
        ({"methods.sft.search.rank": {"values": [2, 4]}}, {"sft"}),
        ({"methods.metatuner_warmup.settings.rollouts": 5}, ON_WARM_UP),
        ({"nano.given": False}, set()),
        ({"models.generators.small.window": 512}, set()),
        ({"budgets.default.lm_calls": 30000}, ALL),
        ({"budgets.default.seconds": 5.0}, set()),
        ({"experiments.main.seeds": [5]}, set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_searchs_key_changes_with_what_it_depends_on_and_nothing_else(override: dict[str, Any], changes: set[str]):
    before, after = plan(), plan(override)
    same: dict[bool, set[str]] = {True: set(), False: set()}
    for subject, name in before.searches.all:
        same[before.settings.winner_key(subject, name) == after.settings.winner_key(subject, name)].add(subject)
    searched = same[True] | same[False]
    assert same == {False: changes & searched, True: searched - changes}


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ({"benchmarks.cosmosqa.options": "letter_last"}, False),  # as the nano preset says
        ({"benchmarks.cosmosqa.options": "letter_first"}, True),
        ({"benchmarks.cosmosqa.options": None}, True),
        ({"benchmarks.cosmosqa.initial_prompt": "choose"}, True),
        ({"benchmarks.cosmosqa.initial_prompt": None}, True),
        ({"benchmarks.hotpotqa.contexts": "all"}, False),
        ({"benchmarks.hotpotqa.contexts": "gold"}, True),
    ],
    ids=str,
)
def test_a_nano_benchmark_has_other_rows_exactly_if_it_is_asked_as_its_models_were_not_taught(override, changes):
    (key,) = override
    name = key.split(".")[1]
    before, after = Plan(load_config("nano")), Plan(load_config("nano", override))
    assert (before.keys.data_identity(name) != after.keys.data_identity(name)) == changes
    assert before.keys.data_identity("math") == after.keys.data_identity("math")


def test_stored_winners_of_the_nano_preset_hold():
    made = Plan(load_config("nano"))
    stored = made.settings.winners
    assert len(stored) == 88
    assert [key for key, winner in stored.items() if winner.key != made.settings.winner_key(*key)] == []


def test_a_searchs_key_is_its_benchmarks_own():
    before, after = plan(), plan({"benchmarks.gsm8k.split_seed": 7})
    for subject, name in before.searches.all:
        same = before.settings.winner_key(subject, name) == after.settings.winner_key(subject, name)
        assert same is (name != "gsm8k")


def test_a_search_depends_on_the_stored_winner_of_what_its_method_requires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("metatuner.plan.settings.ROOT", tmp_path)
    before = plan()
    won = Winner("sft", "gsm8k", {"rank": 3}, 50.0, 8, 0, (), before.settings.winner_key("sft", "gsm8k"))
    write_winners(tmp_path / "winners.json", [won])
    after = plan({"tuning.winners": "winners.json"})
    changed = {
        one for one in before.searches.all if before.settings.winner_key(*one) != after.settings.winner_key(*one)
    }
    assert changed == {(method, "gsm8k") for method in ("dpo", "ppo", "grpo", "rewriter_sft")}


def test_each_search_has_draws_of_its_own():
    made = plan()

    def rates(made: Plan, subject: str, benchmark: str) -> list[float]:
        return [trial["learning_rate"] for trial in made.searches.trials(subject, benchmark)[1:]]

    base = rates(made, "sft", "gsm8k")
    assert base == rates(plan({"pack": 3}), "sft", "gsm8k")
    others = [rates(made, "sft", "math"), rates(plan({"tuning.seed": 7}), "sft", "gsm8k")]
    # Two subjects of one range.
    same = {"methods.dpo.search": {"learning_rate": {"low": 0.001, "high": 0.015}}}
    others.append(rates(plan(same), "dpo", "gsm8k"))
    for other in others:
        assert not set(base) & set(other)


def test_draws_fill_their_range_evenly_on_its_scale():
    space = {"learning_rate": {"low": 1e-4, "high": 1e-1}, "rank": {"values": [2, 4, 8]}}
    made = plan({"methods.sft.search": space, "tuning.trials": 301})
    drawn = [trial for trial in made.searches.trials("sft", "gsm8k")[1:] if "learning_rate" in trial]
    assert len(drawn) == 300
    decades = [sum(low <= trial["learning_rate"] < 10 * low for trial in drawn) for low in (1e-4, 1e-3, 1e-2)]
    assert sum(decades) == 300
    assert min(decades) > 75  # 100 each, were they exactly even
    assert min([trial["rank"] for trial in drawn].count(rank) for rank in (2, 4, 8)) > 75
    even = plan({"methods.copro.search.temperature": {"low": 0.5, "high": 1.5, "log": False}, "tuning.trials": 201})
    below = sum(trial["temperature"] < 1.0 for trial in even.searches.trials("copro", "gsm8k")[1:])
    assert 75 < below < 125


# ---- code ----------------------------------------------------------------------------------------------------------

CODE = r"""
import json, multiprocessing, sys
from pathlib import Path
from metatuner.config import load_config
from metatuner.plan import Plan, keys

methods = ["zero_shot", "sft", "dpo", "opro"]
main = {"experiments.main.methods": methods, "experiments.main.benchmarks": ["gsm8k", "math"]}
config = load_config("nano", {"tuning.winners": None, "run": "main", **main})

def keys():
    made = Plan(config)
    told = {f"fit {fit.method} {fit.train[0]} {fit.seed}": key for key, fit in made.grid.fits.items()}
    told |= {f"cell {cell.fit.method} {cell.benchmark} {cell.fit.seed}": key for key, cell in made.grid.cells.items()}
    told |= {f"tune {subject} {name}": made.settings.winner_key(subject, name) for subject, name in made.searches.all}
    told |= {f"data {name}": made.keys.data_key(name) for name in ("gsm8k", "math")}
    told |= {f"model {role}": made.keys.nano_key(role) for role in ("actor", "generator")}
    told["world"] = made.keys.world_key
    return told

# In a fork of this process each, as a file is read once a process.
fork = multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1)
before, found = fork.apply(keys), {}
for name in json.loads(sys.argv[1]):
    path = Path(name)
    text = path.read_text()
    path.write_text(text + ("\n# of no effect: true\n" if name.endswith(".yaml") else "\nCHANGED_HERE = 1\n"))
    after = fork.apply(keys)
    path.write_text(text)
    found[name] = sorted({" ".join(each.split()[:2]) for each in before if before[each] != after[each]})
assert fork.apply(keys) == before
print(json.dumps(found))
"""
EVERY_FIT = {f"{what} {method}" for what in ("fit", "cell") for method in ("zero_shot", "sft", "dpo", "opro")}
EVERY_CELL = {each for each in EVERY_FIT if each.startswith("cell")}
BOTH_DATA = {"data gsm8k", "data math"}
MODELS = {"model actor", "model generator"}
OF_CODE: dict[str, set[str]] = {
    "metatuner/run/evaluation.py": EVERY_CELL,
    "metatuner/harness/tasks/_rows.yaml": EVERY_CELL,
    "metatuner/run/fitting.py": EVERY_FIT,
    "metatuner/lm/generation.py": EVERY_FIT,
    "metatuner/harness/splits.py": EVERY_FIT | BOTH_DATA,
    "metatuner/harness/rows.py": EVERY_FIT | BOTH_DATA | MODELS | {"world"},
    "metatuner/harness/benchmarks/gsm8k.py": EVERY_FIT | {"data gsm8k"},
    "metatuner/harness/metrics/numeric.py": EVERY_FIT | {"data gsm8k", "data math"},
    "baselines/sft.py": {"fit sft", "fit dpo", "cell sft", "cell dpo"},
    "baselines/dpo.py": {"fit dpo", "cell dpo"},
    "metatuner/nano/pretraining.py": EVERY_FIT | MODELS,
    "metatuner/nano/bars.py": set(),
    "metatuner/analysis/statistics/intervals.py": set(),
    "metatuner/plan/grid.py": set(),
}
"""File -> the keys that a change in it changes, by what they are of. No search's: only a search replaces a search."""


def test_a_change_of_code_changes_the_keys_of_what_runs_it_and_no_others(tmp_path: Path):
    for name in ("metatuner", "baselines", "config"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "weights", "report"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(OF_CODE))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {name: set(changed) for name, changed in json.loads(done.stdout).items()}
    assert found == OF_CODE
