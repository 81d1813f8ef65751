"""A tuner as a folder, and one query's LoRA as a PEFT adapter."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from metatuner.errors import UserError
from metatuner.lm import ModelSpec, generate, load_lm, render
from metatuner.lm.adapters import frozen_view, lora_linears, merged
from metatuner.method import MetaTuner, MetaTunerConfig
from metatuner.method.objectives import task_loss
from metatuner.method.tuned import load_tensors, save_tensors, to_train, trainable
from tests.toys.lm import save_tiny, tiny_lm
from tests.toys.method import INITIAL, PROMPT_TOKENS, actor, examples, generator, shake, tuner, with_lora

D1 = examples()
QUERIES = [row.query for row in D1]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"what": "lora", "warmed": True},
    {"shared_layers": 0},
    {"shared_layers": 1, "encoder_layers": 3, "what": "lora"},
    {"decoder": "layer_shared"},
    {"parameter_branch": "static"},
    {"parameter_branch": "none"},
    {"prompt_branch": False},
    {"prompt_branch": False, "parameter_branch": "static", "warmed": True},
    {"actor": "lora", "warmed": True},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_loaded_tuner_answers_as_the_saved_one(variant: dict[str, Any], tmp_path: Path) -> None:
    made = tuner(**variant)
    if variant.get("what") == "lora":  # both base models from the folder, else those at hand
        made.save_pretrained(tmp_path, include_base=True)
        loaded = MetaTuner.from_pretrained(tmp_path)
    else:
        made.save_pretrained(tmp_path)
        loaded = MetaTuner.from_pretrained(tmp_path, generator=generator(), actor=actor())
    assert loaded.config == made.config
    assert loaded.max_prompt_tokens == PROMPT_TOKENS
    answers = made.generate(QUERIES, max_new_tokens=8)
    assert loaded.generate(QUERIES, max_new_tokens=8) == answers
    written = [answer.prompt for answer in answers]
    torch.testing.assert_close(task_loss(loaded, D1, written), task_loss(made, D1, written), rtol=0, atol=0)
    for name, part in made.parameters.items():
        assert all(torch.equal(p, q) for p, q in zip(part, loaded.parameters[name], strict=True))


def test_the_base_models_are_found_by_path(tmp_path: Path) -> None:
    specs = [
        ModelSpec(str(save_tiny(tmp_path / "g", seed=1, num_hidden_layers=4)), rewrite_user="{prompt} {query}"),
        ModelSpec(str(save_tiny(tmp_path / "a", seed=2))),
    ]
    base, answers = (load_lm(spec) for spec in specs)
    made = MetaTuner(
        to_train(base, "lora", 2, seed=0),
        with_lora(answers),
        MetaTunerConfig(rank=2, bottleneck=4),
        max_prompt_tokens=PROMPT_TOKENS,
        initial_prompt=INITIAL,
    )
    shake(made)
    made.save_pretrained(tmp_path / "tuner")
    assert not (tmp_path / "tuner" / "generator").exists()
    expected = made.generate(QUERIES, max_new_tokens=8)
    assert MetaTuner.from_pretrained(tmp_path / "tuner").generate(QUERIES, max_new_tokens=8) == expected
    given = MetaTuner.from_pretrained(tmp_path / "tuner", generator=base, actor=answers)
    assert given.generate(QUERIES, max_new_tokens=8) == expected
    assert given.generator.spec == specs[0]

    save_tiny(tmp_path / "a", seed=3)
    with pytest.raises(UserError, match=r"its actor was another model than .*/a: the weights differ"):
        MetaTuner.from_pretrained(tmp_path / "tuner")
    with pytest.raises(UserError, match=r"its generator was another model"):
        MetaTuner.from_pretrained(tmp_path / "tuner", generator=tiny_lm(seed=5, num_hidden_layers=4), actor=answers)


def test_an_included_base_is_an_ordinary_model_folder_without_loras(tmp_path: Path) -> None:
    made = tuner(what="lora", warmed=True)
    made.save_pretrained(tmp_path, include_base=True)
    ids = torch.tensor([[1, 8, 9, 10]])
    for name, base in (("generator", generator()), ("actor", actor())):
        written = load_lm(ModelSpec(str(tmp_path / name)))
        assert torch.equal(written.model(input_ids=ids).logits, base.model(input_ids=ids).logits)
        assert written.tokenizer.chat_template == base.tokenizer.chat_template


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    made = tuner(what="lora", warmed=True)
    digests = []
    for name in ("one", "two"):
        made.save_pretrained(tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        digests.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert digests[0] == digests[1]
    assert set(digests[0]) == {
        "metatuner.json",
        "generator.safetensors",
        "parameter_decoder.safetensors",
        "state_norm.safetensors",
        "actor.safetensors",
    }


@pytest.mark.parametrize("variant", [{}, {"actor": "lora"}], ids=str)
def test_loras_of_another_scale_are_loaded_with_it(variant: dict[str, Any], tmp_path: Path) -> None:
    loras = [
        to_train(base, "lora", rank=3, seed=0, scale=scale) for base, scale in ((generator(), 0.7), (actor(), 5.0))
    ]
    config = MetaTunerConfig(rank=3, bottleneck=8, **variant)
    made = MetaTuner(*loras, config, max_prompt_tokens=PROMPT_TOKENS, initial_prompt=INITIAL)
    with torch.no_grad():
        for lora in (*loras, made.actor):
            for parameter in trainable(lora).values():
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(7))
    if not variant:  # merged with the values it has now
        made = MetaTuner(*loras, config, max_prompt_tokens=PROMPT_TOKENS, initial_prompt=INITIAL)
    made.sync()
    made.save_pretrained(tmp_path, include_base=True)
    saved = json.loads((tmp_path / "metatuner.json").read_text())["models"]
    assert [saved[name]["lora_scale"] for name in ("generator", "actor")] == [0.7, 5.0]
    loaded = MetaTuner.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 8, 9, 10]])
    for one, other in ((made.generator, loaded.generator), (made.actor, loaded.actor)):
        assert torch.equal(one.model(input_ids=ids).logits, other.model(input_ids=ids).logits)
    plain = to_train(actor(), "lora", rank=3, seed=0)
    load_tensors(dict(trainable(plain)), tmp_path / f"actor{'_lora' if variant else ''}.safetensors")
    assert not torch.allclose(plain.model(input_ids=ids).logits, made.actor.model(input_ids=ids).logits)


def test_a_lora_of_several_scales_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = tuner(warmed=True)
    next(iter(lora_linears(made.actor_with_lora).values())).scaling["default"] = 0.5
    with pytest.raises(UserError, match=r"the actor's LoRA has 2 ranks or scales.*; merge it into the actor"):
        made.save_pretrained(tmp_path / "tuner")
    assert not (tmp_path / "tuner").exists()


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_saving_over_an_older_folder_leaves_nothing_of_it(tmp_path: Path) -> None:
    tuner(what="lora", warmed=True, shared_layers=0).save_pretrained(tmp_path, include_base=True)
    (tmp_path / "notes.txt").write_text("the user's own")
    assert {"generator", "actor", "meta_encoder.safetensors", "actor.safetensors"} <= contents(tmp_path)
    tuner(parameter_branch="none").save_pretrained(tmp_path)
    assert contents(tmp_path) == {"metatuner.json", "generator.safetensors", "notes.txt"}


def test_base_models_that_the_tuner_was_made_of_stay(tmp_path: Path) -> None:
    made = tuner(what="lora", warmed=True)
    expected = made.generate(QUERIES, max_new_tokens=8)
    made.save_pretrained(tmp_path, include_base=True)
    for include_base in (True, False):
        loaded = MetaTuner.from_pretrained(tmp_path)
        assert loaded.generator.spec.path == str(tmp_path / "generator")
        loaded.save_pretrained(tmp_path, include_base=include_base)
        assert MetaTuner.from_pretrained(tmp_path).generate(QUERIES, max_new_tokens=8) == expected


def test_an_interrupted_save_is_no_tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner(shared_layers=0).save_pretrained(tmp_path)

    def killed(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name == "parameter_decoder.safetensors":
            raise KeyboardInterrupt
        save_tensors(tensors, path)

    monkeypatch.setattr("metatuner.method.model.save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        tuner().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"metatuner\.json; name a folder that"):
        MetaTuner.from_pretrained(tmp_path)
    monkeypatch.undo()
    made = tuner()
    made.save_pretrained(tmp_path, include_base=True)
    assert MetaTuner.from_pretrained(tmp_path).generate(QUERIES, max_new_tokens=8) == made.generate(
        QUERIES, max_new_tokens=8
    )


def test_an_initial_prompt_may_be_given_for_the_stored_one(tmp_path: Path) -> None:
    made = tuner()
    answers = made.generate(QUERIES, max_new_tokens=8, prompt="w9 w8")
    expected = made.answer(["w9 w8"] * len(QUERIES), QUERIES, max_new_tokens=8)
    assert [answer.completion for answer in answers] == [completion.text for completion in expected]
    assert answers != made.generate(QUERIES, max_new_tokens=8)
    made.initial_prompt = None
    with pytest.raises(UserError, match="no initial prompt"):
        made.generate(QUERIES, max_new_tokens=8)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    made = tuner()
    with pytest.raises(UserError, match=r"metatuner\.json; name a folder that"):
        MetaTuner.from_pretrained(tmp_path)
    made.save_pretrained(tmp_path, include_base=True)
    with pytest.raises(UserError, match=r"another configuration: shared_layers 0\.5 \(here 1\);"):
        tuner(shared_layers=1).load(tmp_path)
    with pytest.raises(UserError, match=r"another configuration: rank 3 \(here 2\)"):
        tuner(rank=2).load(tmp_path)
    state = json.loads((tmp_path / "metatuner.json").read_text())
    refused = [
        ("{", "not valid JSON"),
        (json.dumps(state | {"format": 1}), "not a tuner of format 2"),
        (json.dumps(state | {"config": state["config"] | {"ranks": 2}}), "ranks"),
        (json.dumps(state | {"config": state["config"] | {"rank": 33}}), r"rank 33 is not in 1\.\."),
        (json.dumps(state | {"config": state["config"] | {"target_modules": ["q_prj"]}}), "no target module 'q_prj'"),
        (json.dumps(state | {"config": state["config"] | {"shared_layers": 0}}), r"meta_encoder\.safetensors: no such"),
    ]
    for text, message in refused:
        (tmp_path / "metatuner.json").write_text(text)
        with pytest.raises(UserError, match=message):
            MetaTuner.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(tmp_path: Path, value: float) -> None:
    made = tuner()
    made.save_pretrained(tmp_path, include_base=True)
    for file in sorted(tmp_path.glob("*.safetensors")):
        before = file.read_bytes()
        tensors = load_file(file)
        name = sorted(tensors)[-1]
        tensors[name].flatten()[0] = value
        save_file(tensors, file)
        message = f"{re.escape(file.name)}: {re.escape(name)} holds NaN or infinite values"
        with pytest.raises(UserError, match=message):
            MetaTuner.from_pretrained(tmp_path)
        file.write_bytes(before[:-8])
        with pytest.raises(UserError, match=f"{re.escape(file.name)}: no whole safetensors file"):
            MetaTuner.from_pretrained(tmp_path)
        file.write_bytes(before)
    with torch.no_grad():
        made.parameters["phi_q"][0].flatten()[0] = value
    with pytest.raises(UserError, match=r"not saved: .* holds NaN or infinite values; training diverged"):
        made.save_pretrained(tmp_path / "again")
    with pytest.raises(UserError, match=r"metatuner\.json; name a folder that"):
        MetaTuner.from_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"warmed": True},
        {"warmed": True, "actor": "lora", "target_modules": "all-linear"},
        {"parameter_branch": "static", "scale": 0.7},
        {"parameter_branch": "none", "warmed": True},
    ],
    ids=str,
)
def test_an_exported_adapter_is_the_querys_lora_in_peft(variant: dict[str, Any], tmp_path: Path) -> None:
    made = tuner(**variant)
    base = actor()  # without any LoRA
    for number, query in enumerate(QUERIES[:2]):
        folder = tmp_path / str(number)
        prompt = made.export_adapter(query, folder)
        assert prompt == made.write_prompts([INITIAL], [query])[0]
        adapted = PeftModel.from_pretrained(frozen_view(base).model, folder).eval()
        ids = render(made.actor, prompt, query, reserve=8).ids
        with torch.no_grad(), made.adapted([INITIAL], [query]):
            expected = made.actor.model(input_ids=torch.tensor([ids])).logits
        with torch.no_grad():
            got = adapted(input_ids=torch.tensor([ids])).logits
            assert (base.model(input_ids=torch.tensor([ids])).logits - expected).abs().max() > 1e-2
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        answer = made.answer([INITIAL], [query], max_new_tokens=8)[0]
        greedy = adapted.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            suppress_tokens=made.actor.suppressed_ids,
        )
        assert greedy[0, len(ids) :].tolist() == answer.ids


def test_an_exported_adapter_names_its_base_and_its_rank(tmp_path: Path) -> None:
    made = tuner(warmed=True)
    prompt = made.export_adapter(QUERIES[0], tmp_path / "warmed")
    config = json.loads((tmp_path / "warmed" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == made.actor.spec.path
    assert config["r"] == config["lora_alpha"] == 3 + 2
    beside = json.loads((tmp_path / "warmed" / "metatuner.json").read_text())
    assert beside["prompt"] == prompt
    assert beside["query"] == QUERIES[0]
    # The same original actor, whether or not it was warmed up; one merged before it was given is another.
    plain, before = tuner(), with_lora(actor())
    plain.export_adapter(QUERIES[0], tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "metatuner.json").read_text())["base"] == beside["base"]
    given = MetaTuner(plain.generator, merged(before), plain.config, max_prompt_tokens=PROMPT_TOKENS)
    given.export_adapter(QUERIES[0], tmp_path / "merged", prompt=INITIAL)
    base = json.loads((tmp_path / "merged" / "metatuner.json").read_text())["base"]
    assert base["fingerprint"] != beside["base"]["fingerprint"]
    tensors = load_file(tmp_path / "merged" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(given.lora.sites)
    assert {min(tensor.shape) for tensor in tensors.values()} == {3}


def test_there_must_be_something_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to export"):
        tuner(parameter_branch="none").export_adapter(QUERIES[0], tmp_path)


def test_a_fitted_folder_serves_other_queries_with_the_librarys_own_generation(tmp_path: Path) -> None:
    made = tuner()
    made.save_pretrained(tmp_path, include_base=True)
    loaded = MetaTuner.from_pretrained(tmp_path)
    written, adapt = loaded.prepare([INITIAL] * len(QUERIES), QUERIES)
    inputs = [render(loaded.actor, p, q, reserve=8).ids for p, q in zip(written, QUERIES, strict=True)]
    texts = [done.text for done in generate(loaded.actor, inputs, max_new_tokens=8, adapt=adapt)]
    assert texts == [answer.completion for answer in made.generate(QUERIES, max_new_tokens=8)]
