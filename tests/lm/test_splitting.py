"""A tokenizer class that splits texts in another way than tokenizer.json says is reported when a model is loaded."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metatuner.lm import ModelSpec, load_lm
from metatuner.lm.splitting import saved_splitting
from tests.toys.lm import save_tiny, tiny_model

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", *LETTERS, "12"]


def save(folder: Path, tokenizer_class: str) -> Path:
    """A model with a tokenizer that takes each digit alone, under a class's name."""
    bpe = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(TOKENS)}, merges=[("1", "2")]))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    tiny_model(vocab_size=len(TOKENS)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": tokenizer_class}))
    return folder


def loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[int], list[str]]:
    """How the loaded model reads 12, and what was said about its tokenizer."""
    capsys.readouterr()
    ids = load_lm(ModelSpec(str(folder), device="cpu")).encode("12")
    return ids, [line for line in capsys.readouterr().err.splitlines() if "tokenizer.json" in line]


def test_a_class_that_loses_the_digits_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids, said = loaded(save(tmp_path, "GPT2Tokenizer"), capsys)
    assert ids == [TOKENS.index("12")]  # not what the model was trained on
    (line,) = said
    assert line.startswith(f"model {tmp_path}: GPT2Tokenizer splits texts by ByteLevel, not by Digits and ByteLevel")
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in line


def test_a_class_that_keeps_the_files_own_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids, said = loaded(save(tmp_path, "PreTrainedTokenizerFast"), capsys)
    assert ids == [TOKENS.index("1"), TOKENS.index("2")]
    assert said == []
    assert loaded(save_tiny(tmp_path / "words"), capsys)[1] == []


def test_what_a_file_leaves_out_or_says_of_offsets_is_no_difference(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(
        json.dumps({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}})
    )
    short = saved_splitting(file)
    file.write_text(Tokenizer(models.BPE()).to_str())
    assert saved_splitting(file) is None
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    file.write_text(bpe.to_str())
    assert saved_splitting(file) == short
