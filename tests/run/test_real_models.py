"""The path of the paper's models: Qwen2.5's architecture, tokenizer and chat template with random weights, rows in the
real schema, the DAG of the `paper` preset."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2TokenizerFast

from metatuner import cli
from metatuner.config import load_config
from metatuner.hashing import ROOT
from metatuner.lm import ModelSpec, load_lm, render, render_rewrite
from metatuner.plan.dag import Dag
from tests.toys.runs import Runs

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The turns of Qwen2.5-Instruct's template (without tools)."""


def save_qwen(folder: Path, width: int, layers: int, seed: int) -> Path:
    """A folder as Qwen2.5-Instruct's on the Hub: byte-level BPE, im_start and im_end, QKV biases, grouped heads."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["solve the problem and give the answer, step by step"] * 5,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False),
    )
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 21,  # as Qwen2.5, whose embeddings are longer than its vocabulary
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("qwen")
    return save_qwen(root / "actor", 32, 2, 0), save_qwen(root / "generator", 48, 4, 1)


def test_inputs_are_the_templates_own(folders):
    lm = load_lm(ModelSpec(str(folders[0]), dtype="bfloat16"))
    assert lm.model.dtype == torch.bfloat16
    ids = render(lm, "be brief", "1 + 1?", [("2 + 2?", "4")]).ids
    assert lm.tokenizer.decode(ids) == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert lm.eos_ids == {lm.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    rewrite = render_rewrite(load_lm(ModelSpec(str(folders[1]))), "be brief", "1 + 1?").ids
    assert "1 + 1?" in lm.tokenizer.decode(rewrite)


def project(folder: Path) -> Path:
    """A folder with the workflow and nothing computed."""
    folder.mkdir()
    for name in ("workflow", "config", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def write_rows(folder: Path) -> None:
    """Rows of GSM8K in its real schema."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        lines = [
            json.dumps({"id": f"{split}-{i}", "question": f"{split}: {i} + 1?", "answer": f"one more\n#### {i + 1}"})
            for i in range(30)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def overrides(actor: Path, generator: Path, methods: list[str]) -> dict[str, Any]:
    """What makes the paper's preset small, and local."""
    small = {"window": 512, "device": "cpu"}
    sizes = {"train": 8, "dev": 4, "tune": 4, "test": 6}
    return {
        "models": {"actor": small | {"path": str(actor)}, "generators": {"large": small | {"path": str(generator)}}},
        "benchmarks": {"gsm8k": {"source": "local", "path": "rows", "max_new_tokens": 4, "sizes": sizes}},
        "run": ["main"],
        "experiments": {"main": {"methods": methods, "benchmarks": ["gsm8k"], "seeds": [0]}},
        "methods": {"metatuner_warmup": {"settings": {"rollouts": 2, "max_prompt_tokens": 8}}},
    }


def check_results(results: Path, folders: tuple[Path, Path], methods: list[str]) -> None:
    """Every policy was scored on all test rows, and the table names the models."""
    with open(results / "scores.csv", newline="") as lines:
        scores = list(csv.DictReader(lines))
    assert {row["method"] for row in scores} == set(methods)
    assert {row["status"] for row in scores} == {"ok"}
    assert {row["n"] for row in scores} == {"6"}
    table = (results / "tables" / "table_1.md").read_text()
    assert f"Actor {folders[0].name}, generator {folders[1].name}" in table
    assert "local files" in table


def test_the_paper_presets_steps_run_to_the_table_on_local_folders(folders, tmp_path, monkeypatch):
    methods = ["metatuner_j"]
    monkeypatch.chdir(project(tmp_path / "paper"))
    write_rows(Path("rows/gsm8k"))
    dag = Dag(load_config("paper", overrides(*folders, methods)))
    dag.write_config()

    def step(*words: str) -> None:
        assert cli.main([words[0], "--config", dag.config_file, *words[1:]]) == 0

    step("data", "--benchmark", "gsm8k")
    fitted: set[str] = set()
    while left := {name: pack for name, pack in dag.plan.packs.fits.items() if name not in fitted}:
        name = next(name for name, pack in left.items() if fitted.issuperset(pack.needs))
        step("fit", "--pack", name)
        fitted.add(name)
    for name in dag.plan.packs.evaluations:
        step("evaluate", "--pack", name)
    step("scores")
    step("table", "--name", "table_1")
    check_results(dag.layout.root, folders, methods)


@pytest.mark.slow
def test_the_paper_preset_runs_to_its_table_on_local_folders(folders, tmp_path, server):
    folder, methods = project(tmp_path / "paper"), ["few_shot", "sft", "metatuner_j"]
    write_rows(folder / "rows" / "gsm8k")
    words = [f"{key}={json.dumps(value)}" for key, value in overrides(*folders, methods).items()]
    Runs(server, "paper").snakemake(folder, config=words)
    check_results(folder / "results" / "paper", folders, methods)
