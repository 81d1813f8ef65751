"""The models that come with the package: of the present recipe, whole, and only taken where they are asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metatuner import nano
from metatuner.config import load_config
from metatuner.errors import UserError
from metatuner.lm import ModelSpec, generate, load_lm
from metatuner.nano.given import copy_given, given, write_index
from metatuner.nano.keys import WEIGHTS
from metatuner.nano.world import World
from metatuner.plan import Plan
from tests.toys.commands import step


@pytest.mark.parametrize("role", nano.RECIPES)
def test_each_model_is_of_the_present_recipe_and_of_the_default_world_alone(role: str, tmp_path: Path) -> None:
    source = given(role, World())
    assert source is not None, "the recipe has changed: pretrain with nano.given=false and write the index again"
    assert given(role, World(seed=1)) is given(role, World(null=True)) is None
    told = json.loads((source / "pretraining.json").read_text())
    recipe = nano.RECIPES[role]
    assert (told["role"], told["world"]) == (role, {"seed": 0, "null": False})
    assert told["steps"] == recipe.steps + recipe.copy_steps
    assert json.loads((WEIGHTS / "index.json").read_text()) == json.loads(
        write_index(shutil.copytree(WEIGHTS, tmp_path / "weights"), World()).read_text()
    )


def test_the_actor_was_trained_and_says_what_the_language_wants() -> None:
    lm = load_lm(ModelSpec(str(WEIGHTS / "actor"), window=1024))
    config = load_config("nano")
    plan = Plan(config)
    from metatuner.harness.benchmarks import get_benchmark
    from metatuner.harness.rows import Row
    from metatuner.lm import render

    raw = nano.raw_rows(plan.keys.world, "gsm8k", "audit", 40)
    benchmark = get_benchmark("gsm8k")
    rows: list[Row] = [benchmark.row(each) for each in raw]
    asked = [render(lm, "think step by step and end with #### .", row.query, reserve=48).ids for row in rows]
    found = generate(lm, asked, max_new_tokens=48, stops=benchmark.stops)
    scored = benchmark.score_all(
        [benchmark.extract(each.text, row) for each, row in zip(found, rows, strict=True)], rows
    )
    right = sum(one.metrics[benchmark.primary] for one in scored) / len(rows)
    assert right > 0.3  # an untrained model never is


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> tuple[Path, list[str]]:
    """`metatuner pretrain --role actor`: the folder it is for, and the roles that were pretrained."""
    trained: list[str] = []
    monkeypatch.setattr(nano, "pretrain", lambda role, *others, **options: trained.append(role), raising=False)
    config = load_config("nano", {"cache": str(tmp_path), **overrides})
    assert step("pretrain", config, role="actor") == 0
    plan = Plan(config)
    return plan.layout.model("actor", plan.keys.nano_key("actor")), trained


def test_the_step_copies_it_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trained = run(tmp_path, monkeypatch)
    assert trained == []
    names = {path.name for path in folder.iterdir()}
    assert names == {"digests.json", *(path.name for path in (WEIGHTS / "actor").iterdir())}
    assert (folder / "model.safetensors").read_bytes() == (WEIGHTS / "actor" / "model.safetensors").read_bytes()
    for changed in ({"nano.given": False}, {"nano.world_seed": 1}, {"nano.null": True}, {"nano.trained": False}):
        other, trained = run(tmp_path, monkeypatch, **changed)
        assert trained == ["actor"]
        assert other != folder


def test_models_trained_here_are_others_to_every_fit() -> None:
    one, other = (Plan(load_config("nano", {"nano.given": value, "tuning.winners": None})) for value in (True, False))
    assert not one.grid.fits.keys() & other.grid.fits.keys()
    assert one.keys.data_key("gsm8k") == other.keys.data_key("gsm8k")


def test_damaged_weights_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    copy = shutil.copytree(WEIGHTS, tmp_path / "weights")
    with open(copy / "actor" / "model.safetensors", "r+b") as file:
        file.seek(10_000)
        file.write(b"\0\0\0\0")
    with pytest.raises(UserError, match=r"model.safetensors: not the weights that index.json names.*nano.given"):
        copy_given(copy / "actor", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert given("actor", World(), tmp_path) is None
