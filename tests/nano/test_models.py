"""Pretraining: ordinary folders, the same bytes every time, heads that start out as they are meant to."""

import json
from dataclasses import replace

import pytest
import torch

from metatuner.errors import UserError
from metatuner.hashing import hash_file
from metatuner.lm import ModelSpec, completion_ids, generate, load_lm, render, render_rewrite
from metatuner.nano import RECIPES, World, pretrain
from metatuner.nano.model import OFFSETS, build_model
from metatuner.nano.tokenizer import ANSWER, BEGIN, PAD, QUERY, REWRITE, alike, vocabulary


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    short = replace(RECIPES["generator_small"], copy_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "generator_small", short)
        for name in ("once", "twice"):
            pretrain("generator_small", World(), folder / name, steps=3)
    return folder


def test_the_same_bytes_every_time(trained):
    files = sorted(path.name for path in (trained / "once").iterdir() if path.name != "timing.json")
    assert {"config.json", "model.safetensors", "pretraining.json", "tokenizer.json"} <= set(files)
    for name in files:
        assert hash_file(trained / "once" / name) == hash_file(trained / "twice" / name), name


def test_a_folder_says_what_was_done_and_nothing_half_done_is_left(trained):
    done = json.loads((trained / "once" / "pretraining.json").read_text())
    assert done["steps"] == 2 + 3
    assert done["tokens"] > 1000
    assert done["world"] == {"seed": 0, "null": False}
    assert sorted(path.name for path in trained.iterdir()) == ["once", "twice"]


def test_worlds_and_roles_have_models_of_their_own(trained, tmp_path):
    pretrain("generator_small", World(1), tmp_path / "other", untrained=True)
    pretrain("generator_small", World(0), tmp_path / "same", untrained=True)
    folders = (tmp_path / "other", tmp_path / "same", trained / "once")
    hashes = {hash_file(folder / "model.safetensors") for folder in folders}
    assert len(hashes) == 3


def test_an_unknown_role_is_an_error(tmp_path):
    with pytest.raises(UserError, match="did you mean generator"):
        pretrain("generater", World(), tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("role", RECIPES)
def test_models_load_and_answer_like_any_other(tmp_path, role):
    pretrain(role, World(), tmp_path / role, untrained=True)
    lm = load_lm(ModelSpec(str(tmp_path / role)))
    assert lm.window >= 1024
    assert lm.is_chat
    assert lm.takes_system
    assert lm.model.get_input_embeddings().weight.shape[0] == len(lm.tokenizer)
    ids = vocabulary()
    rendered = (render if role == "actor" else render_rewrite)(lm, "choose the best option", "tom was hungry .").ids
    words = ["Ġchoose", "Ġthe", "Ġbest", "Ġoption", QUERY, "Ġtom", "Ġwas", "Ġhungry", "Ġ."]
    assert rendered == [ids[token] for token in (BEGIN, *words, ANSWER if role == "actor" else REWRITE)]
    assert completion_ids(lm, "#### 26") == [ids[token] for token in ("Ġ####", "Ġ2", "6", "</s>")]
    written = generate(lm, [rendered] * 8, max_new_tokens=30, temperature=2.0, seeds=list(range(8)))
    never = {ids[token] for token in (PAD, BEGIN, QUERY, ANSWER, REWRITE)}
    assert not never & {token for text in written for token in text.ids}


def test_first_heads_look_back_by_their_offsets_and_copies_are_foreseen_untrained():
    model = build_model(RECIPES["actor"], 0).eval()
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    text = torch.randperm(400, generator=generator)[:24] + 262
    ids = torch.cat([text, text])[None]
    with torch.no_grad():
        found = model(input_ids=ids, output_attentions=True)
    for head, offset in enumerate(OFFSETS):
        looked = found.attentions[0][0, head, offset:].argmax(-1)
        assert (looked == torch.arange(len(looked))).float().mean() > 0.9
    # An induction head looks, at the second copy of a token, to what followed the first.
    looked = found.attentions[1][0, 0, 24:].argmax(-1)
    assert (looked == torch.arange(24) + 1).float().mean() > 0.5


def test_twin_tokens_start_with_one_embedding():
    weights = build_model(RECIPES["generator_small"], 0).get_input_embeddings().weight
    for spaced, bare in alike(vocabulary()):
        assert torch.equal(weights[spaced], weights[bare])
