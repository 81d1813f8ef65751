"""Models in half precision: what is trained on them is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from metatuner.lm import render
from metatuner.lm.adapters import frozen_view, lora_linears, merged
from metatuner.method import MetaTuner, WarmUpConfig, train_joint, warm_up_actor
from metatuner.method.data import draw_seeds
from metatuner.method.tuned import to_train, trainable
from tests.toys.method import INITIAL, PROMPT_TOKENS, actor, examples, generator, rewrites, tuner, with_lora

HALF = torch.bfloat16
D1 = examples()
QUERIES = [row.query for row in D1]


def quiet(**event: Any) -> None:
    """A log that nobody reads."""


def test_a_lora_is_of_full_precision_and_an_exact_model_keeps_its_own() -> None:
    for model, lora in ((HALF, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)):
        trained = to_train(actor(model), "lora", rank=2, seed=0)
        assert {parameter.dtype for parameter in trainable(trained).values()} == {lora}
        assert trained.model.dtype == model
        assert {parameter.dtype for parameter in trained.model.parameters()} == {model, lora}


def test_a_step_smaller_than_half_precision_shows_is_not_lost() -> None:
    config = WarmUpConfig(actor_rank=2, actor_epochs=1, batch_size=3, actor_learning_rate=1e-7)
    trained = warm_up_actor(actor(HALF), generator(HALF), D1, config, seed=0, log=quiet)
    start = to_train(actor(HALF), "lora", rank=2, seed=draw_seeds(0, 3)[2])
    before, after = trainable(start), trainable(trained)
    downs = [name for name in after if "lora_A" in name]
    assert downs
    for name in downs:
        # A's gradient is not zero once the first step has moved B.
        assert not torch.equal(after[name], before[name])
        assert (after[name].to(HALF) == before[name].to(HALF)).float().mean() > 0.9


def test_a_lora_is_merged_in_full_precision_and_rounded_once() -> None:
    carrying = with_lora(actor(HALF))
    one = merged(carrying)
    assert {parameter.dtype for parameter in one.model.parameters()} == {HALF}
    for name, module in lora_linears(carrying).items():
        a, b = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
        exact = module.get_base_layer().weight.double() + 2 * b @ a
        rounded = one.model.get_submodule(name).weight.double()
        # Half a unit in the last of 8 binary places, and what float32 loses before.
        assert ((rounded - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("variant", [{"what": "lora"}, {"what": "lora", "actor": "lora"}], ids=str)
def test_a_half_precision_tuner_trains_saves_loads_and_exports(variant: dict[str, Any], tmp_path: Path) -> None:
    made = tuner(dtype=HALF, warmed=True, epochs=1, **variant)
    train_joint(made, D1, rewrites(), seed=0, log=quiet)
    assert {p.dtype for part in made.parameters.values() for p in part} == {torch.float32}
    made.save_pretrained(tmp_path / "tuner")
    loaded = MetaTuner.from_pretrained(tmp_path / "tuner", generator=generator(HALF), actor=actor(HALF))
    for name, part in made.parameters.items():
        assert all(torch.equal(p, q) for p, q in zip(part, loaded.parameters[name], strict=True))
    assert loaded.generate(QUERIES, max_new_tokens=8) == made.generate(QUERIES, max_new_tokens=8)

    prompt = loaded.export_adapter(QUERIES[0], tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(frozen_view(actor(HALF)).model, tmp_path / "adapter").eval()
    ids = torch.tensor([render(loaded.actor, prompt, QUERIES[0], reserve=PROMPT_TOKENS).ids])
    with torch.no_grad(), loaded.adapted([INITIAL], QUERIES[:1]):
        expected = loaded.actor.model(input_ids=ids).logits.float()
    with torch.no_grad():
        got, plain = adapted(input_ids=ids).logits.float(), actor(HALF).model(input_ids=ids).logits.float()
    assert (got - expected).norm() < 0.05 * (plain - expected).norm()
