"""Loading model folders, and what an LM says of itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metatuner.errors import UserError
from metatuner.lm import ModelSpec, load_lm
from tests.toys.lm import BEGIN, END, ENDS, PAD, WORDS, save_tiny, tiny_lm, tiny_model, word_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_saved_folder_loads_with_the_same_weights_and_tokens(tmp_path: Path, architecture: str) -> None:
    lm = load_lm(ModelSpec(str(save_tiny(tmp_path, architecture)), device="cpu"))
    reference = tiny_model(architecture)
    assert not lm.model.training
    assert lm.window == 128
    assert lm.is_chat
    assert lm.encode("w1 w2\nw3") == [WORDS.index(word) for word in ("w1", "w2", "\n", "w3")]
    ids = torch.tensor([[8, 9, 10]])
    assert torch.equal(lm.model(ids).logits, reference(ids).logits)


def test_dtype_and_window_are_as_asked(folder: Path) -> None:
    lm = load_lm(ModelSpec(str(folder), dtype="bfloat16", window=64))
    assert lm.head.weight.dtype == torch.bfloat16
    assert lm.window == 64
    assert load_lm(ModelSpec(str(folder), window=128)).window == 128


def test_a_model_that_changes_its_logits_after_the_head_is_found_out(tmp_path: Path, folder: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    capped = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=2.0)
    Gemma2ForCausalLM(capped).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert not load_lm(ModelSpec(str(tmp_path))).plain_head
    assert load_lm(ModelSpec(str(folder))).plain_head


def test_the_end_of_turn_is_what_the_chat_template_writes_after_an_answer() -> None:
    template = "{% for turn in messages %}{{ turn.content }}<q>{% endfor %}"
    lm = tiny_lm(chat=template)
    assert lm.end_of_turn == WORDS.index("<q>")
    assert lm.eos_ids == {WORDS.index("<q>"), *ENDS}
    assert tiny_lm(chat=None).end_of_turn == END


def test_without_a_token_of_the_template_a_turn_ends_with_eos_wherever_that_is_named() -> None:
    lm = tiny_lm(chat=None)
    lm.tokenizer.eos_token = None
    assert lm.end_of_turn == ENDS[0]
    one = tiny_lm(chat=None)
    one.tokenizer.eos_token = None
    one.model.generation_config.eos_token_id = 33
    assert (one.end_of_turn, one.eos_ids) == (33, {33})
    none = tiny_lm(chat=None)
    none.tokenizer.eos_token = None
    none.model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="no EOS token"):
        _ = none.end_of_turn


def test_padded_positions_hold_padding_or_else_the_end_of_turn() -> None:
    assert tiny_lm().filler == PAD
    lm = tiny_lm()
    lm.tokenizer.pad_token = None
    assert lm.filler == END


def test_begin_tokens_are_those_that_the_tokenizer_itself_adds() -> None:
    assert tiny_lm().begin_ids == []
    assert tiny_lm(begins=True).begin_ids == [BEGIN]
    assert tiny_lm(begins=True).encode("w1") == tiny_lm().encode("w1")


def test_never_generated_are_padding_begin_the_suppressed_and_what_the_tokenizer_does_not_know() -> None:
    lm = tiny_lm(vocab_size=len(WORDS) + 2)
    lm.model.generation_config.suppress_tokens = [4, END]
    assert lm.suppressed_ids == [0, 1, 4, len(WORDS), len(WORDS) + 1]


def test_a_changed_model_runs_as_the_same_lm() -> None:
    lm = tiny_lm()
    other = replace(lm, model=tiny_model(seed=1))
    assert other.end_of_turn == lm.end_of_turn
    assert other.head is not lm.head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float8"}, "unknown dtype 'float8'; known: float32"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"window": 129}, r"window 129 is not in 2\.\.128"),
        ({"window": 1}, r"window 1 is not in 2\.\.128"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_lm(ModelSpec(str(folder), **changes))  # type: ignore[arg-type]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        load_lm(ModelSpec(str(tmp_path)))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"knows {len(WORDS)} tokens, the embedding has 60 rows"):
        load_lm(ModelSpec(str(save_tiny(tmp_path, vocab_size=60))))


def test_missing_weights_are_refused_and_not_drawn_at_random(tmp_path: Path) -> None:
    config = json.loads((save_tiny(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lack \d+ tensors \(model.layers.2"):
        load_lm(ModelSpec(str(tmp_path)))


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors weights cannot be loaded"):
        load_lm(ModelSpec(str(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        load_lm(ModelSpec(str(tmp_path)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors weights cannot be loaded"):
        load_lm(ModelSpec(str(tmp_path)))


def test_what_is_neither_a_folder_nor_reachable_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_lm(ModelSpec(str(tmp_path / "missing")))
    with pytest.raises(UserError, match="give the path of its folder") as caught:
        load_lm(ModelSpec("nobody/no-such-model"))
    assert "\n" not in str(caught.value)


def test_a_rewrite_without_the_query_is_refused() -> None:
    with pytest.raises(UserError, match=r"must hold \{query\} once"):
        ModelSpec("tiny", rewrite_user="{prompt}")


# ---- folders that are not whole --------------------------------------------------------------------------------------


def changed(folder: Path, file: str, **values: object) -> None:
    """Change keys of one of the folder's JSON files."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_refused(folder: Path, message: str) -> None:
    """Loading raises one line that names the folder, what is wrong and a remedy."""
    with pytest.raises(UserError, match=message) as caught:
        load_lm(ModelSpec(str(folder), device="cpu"))
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    assert any(word in text for word in ("restore", "save"))
    assert "Hub" not in text


CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "fewer layers": ({"num_hidden_layers": 1}, r"\d+ tensors that its config\.json has no place for"),
    "no layers": ({"num_hidden_layers": -1}, r"\d+ tensors that its config\.json has no place for"),
    "no heads": ({"num_attention_heads": 0}, "cannot be loaded"),
    "a text for a number": ({"hidden_size": "many"}, "cannot be loaded"),
    "another width": ({"intermediate_size": 40}, "cannot be loaded|other shapes"),
    "another vocabulary": ({"vocab_size": len(WORDS) + 9}, "cannot be loaded|other shapes"),
    "an unknown architecture": ({"model_type": "abacus"}, "cannot be loaded"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_that_of_the_weights_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = CONFIGS[case]
    save_tiny(tmp_path)
    changed(tmp_path, "config.json", **changes)
    assert_refused(tmp_path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "no JSON object but a list"),
        (b"{", "no JSON in UTF-8"),
        ('{"model_type": "llama"}'.encode("utf-16"), "no JSON in UTF-8"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (save_tiny(tmp_path / name) / name).write_bytes(content)
        assert_refused(tmp_path / name, message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert_refused(tmp_path, r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinite values")


def test_weights_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    load_lm(ModelSpec(str(tmp_path), device="cpu"))
    with pytest.raises(UserError, match="as float16; restore the weights, or use a wider dtype"):
        load_lm(ModelSpec(str(tmp_path), device="cpu", dtype="float16"))


def test_cut_off_weights_and_tokenizers_are_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        file = save_tiny(tmp_path / name) / name
        file.write_bytes(file.read_bytes()[:-20])
        assert_refused(file.parent, "cannot be loaded")


TEMPLATES = {
    "{% for turn in messages %}{{ turn.content }}": "its chat template fails \\(TemplateSyntaxError",
    "{{ raise_exception('no') }}": "its chat template fails \\(TemplateError: no",
    "{{ messages + 1 }}": "its chat template fails \\(TypeError",
    "{% for turn in messages %}{% if turn.role == 'assistant' %}{{ turn.content }}</s>{% endif %}{% endfor %}": (
        "its chat template drops the user's turn"
    ),
    "{% for turn in messages %}{% if turn.role == 'user' %}{{ turn.content }}{% endif %}{% endfor %}": (
        "its chat template drops the assistant's turn"
    ),
    "{{ messages[0].content }}{% if messages[0].role != 'system' %}{{ messages[-1].content }}</s>{% endif %}": (
        "its chat template drops the user's turn"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_that_fails_or_loses_a_turn_is_refused(tmp_path: Path, template: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    word_tokenizer(template).save_pretrained(tmp_path)
    assert_refused(tmp_path, TEMPLATES[template])
    assert not load_lm(ModelSpec(str(tmp_path), device="cpu", chat=False)).is_chat


def test_a_template_that_rejects_a_system_turn_in_any_way_is_used_without_one(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    template = "{% if messages[0].role == 'system' %}{{ 1 + 'x' }}{% endif %}"
    word_tokenizer(template + "{% for turn in messages %}{{ turn.content }}</s>{% endfor %}").save_pretrained(tmp_path)
    assert not load_lm(ModelSpec(str(tmp_path), device="cpu")).takes_system


def test_a_folder_that_names_no_end_of_a_turn_is_refused(tmp_path: Path) -> None:
    model = tiny_model(eos_token_id=None)
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer = word_tokenizer(None)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="name no EOS token; set one"):
        load_lm(ModelSpec(str(tmp_path), device="cpu"))
