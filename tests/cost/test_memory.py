"""Predicted memory against what autograd keeps, against parameters of real architectures, and as jobs declare it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from metatuner.config import ModelConfig
from metatuner.cost import describe
from metatuner.cost.assumptions import Assumptions
from metatuner.cost.declared import Memory
from metatuner.cost.memory import kept_bytes
from metatuner.cost.predicted import Line
from metatuner.cost.shapes import shape_of
from metatuner.errors import UserError
from metatuner.hashing import ROOT
from metatuner.lm import grouped_adapter
from metatuner.method.optimising import recomputed
from tests.toys.plan import plan

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


def model(kind: str, folder: Path, **more: Any) -> Any:
    """A model of random weights, with its config.json in a folder."""
    config = AutoConfig.for_model(kind, **SIZES, **more)
    config.save_pretrained(folder)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("kind", "more"), [("llama", {}), ("qwen2", {"tie_word_embeddings": True}), ("mistral", {})])
def test_the_shape_in_a_folder_has_the_weights_of_the_model(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    made = model(kind, tmp_path, **more)
    shape = shape_of(tmp_path)
    assert shape.weights == sum(weight.numel() for weight in made.parameters())
    assert shape.head == made.get_output_embeddings().weight.numel()
    assert shape.body == sum(weight.numel() for weight in made.model.parameters()) - 128 * 96
    assert shape.keys == made.model.layers[0].self_attn.k_proj.out_features


def test_a_shape_without_a_width_names_the_file_the_key_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 64}))
    with pytest.raises(
        UserError, match=r"config\.json: key 'hidden_size' is None.*`models` of the preset's `forecast`"
    ):
        shape_of(tmp_path)


def test_the_folder_that_a_variable_names_has_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model("llama", tmp_path)
    monkeypatch.setenv("MY_MODEL", str(tmp_path))
    assumed = Assumptions.read(ROOT / "config" / "forecast.yaml")
    assert assumed.shape("$MY_MODEL") == shape_of(tmp_path)
    monkeypatch.delenv("MY_MODEL")
    with pytest.raises(UserError, match=r"environment variable \$MY_MODEL is not set"):
        assumed.shape("$MY_MODEL")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_training_step_is_predicted_to_keep_no_less_than_autograd_does(checkpointed: bool, tmp_path: Path) -> None:
    made = get_peft_model(model("llama", tmp_path), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    own = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # it stays, so its address is not used again
        return tensor

    decoder = made.get_base_model().model
    rows, length = 3, 40
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with grouped_adapter(made), recomputed(list(decoder.layers) if checkpointed else []), hooks:
        decoder(input_ids=torch.randint(0, 128, (rows, length)), use_cache=False)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    predicted = kept_bytes(shape_of(tmp_path), rows * length, recomputed=checkpointed)
    if checkpointed:  # one layer is computed again at a time in the backward pass, which the hooks do not see
        predicted -= kept_bytes(shape_of(tmp_path), rows * length) / SIZES["num_hidden_layers"]
    # The last norm keeps as much as one more layer keeps if it is computed again.
    assert predicted / 1.5 <= found <= predicted * (1.4 if checkpointed else 1.0)


def test_every_job_of_nano_has_a_prediction_and_two_fit_into_five_gigabytes() -> None:
    memory = Memory(plan())
    assert min(memory.by_method.values()) > 650
    assert 2 * max(memory.by_method.values()) < 5000
    searches = memory.plan.searches.all
    assert memory.of_search(*searches[0]) > 650
    assert memory.of_timings > 650


def test_larger_batches_and_longer_rows_need_more_and_recomputing_needs_less() -> None:
    def of(**settings: Any) -> int:
        over = {f"methods.sft.settings.{name}": value for name, value in settings.items()}
        return Memory(plan({**over, "batch_tokens": 64})).by_method["sft"]

    small, large = of(batch_size=16), of(batch_size=256)
    assert large > 2 * small
    assert of(batch_size=256, gradient_checkpointing=True) < 0.6 * large
    assert Memory(plan(), batch_tokens=2**20).by_method["zero_shot"] > 2 * Memory(plan()).by_method["zero_shot"]


def test_nothing_is_declared_where_nothing_is_known_of_the_model_or_the_rows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    unknown = Memory(plan({"models.actor.path": str(tmp_path)}))
    assert set(unknown.by_method.values()) == {0}
    assert unknown.of_timings == 0
    assert set(Memory(plan({"forecast": "config/none.yaml"})).by_method.values()) == {0}


def test_a_model_behind_a_variable_is_named_by_its_folder_and_else_by_its_role(monkeypatch: pytest.MonkeyPatch) -> None:
    named = ModelConfig(path="$MY_MODELS/small-chat/")
    monkeypatch.setenv("MY_MODELS", "/data/models")
    assert named.title("actor") == "small-chat"
    monkeypatch.delenv("MY_MODELS")
    assert named.title("actor") == "actor"
    assert ModelConfig(path="/data/small-chat").title("actor") == "small-chat"
    assert ModelConfig(path="Qwen/Qwen2.5-3B-Instruct").title("actor") == "Qwen/Qwen2.5-3B-Instruct"
    assert ModelConfig(path="nano:actor").title("large") == "nano:actor"


def test_the_speed_of_a_slow_machine_is_not_printed_as_zero() -> None:
    nano = Assumptions.read(ROOT / "config" / "forecast_nano.yaml")
    assert "CPU core at 0.09 TFLOP" in describe({"sft": Line()}, nano, 0.0)
