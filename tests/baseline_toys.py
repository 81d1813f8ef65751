"""What the tests of the baselines share: a random tiny model, toy rows, and a lab around them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.ground import Lab
from metatuner.harness.rows import Row
from metatuner.lm import LM, ModelSpec
from metatuner.nano.tokenizer import ANSWER, transformers_tokenizer

NEW_TOKENS = 20
"""Enough for every target of `sums`."""


def tiny_lm(seed: int = 0, window: int = 256, dtype: torch.dtype = torch.float32) -> LM:
    """A Llama of two layers with random weights."""
    tokenizer = transformers_tokenizer(ANSWER, window)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=window,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LM(LlamaForCausalLM(config).to(dtype).eval(), tokenizer, window, ModelSpec("tiny"))


def sums(count: int, seed: int = 0, benchmark: str = "gsm8k") -> list[Row]:
    """Rows that ask for the sum of two numbers."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        first, second = draw.randint(1, 20), draw.randint(1, 20)
        asked = f"tom has {first} apples and buys {second} more" + " today" * draw.randint(0, 3)
        raw = {"id": f"{seed}-{index}", "question": asked, "answer": f"{first} + {second}\n#### {first + second}"}
        row = get_benchmark("gsm8k").row(raw)
        rows.append(Row(**{**vars(row), "benchmark": benchmark}))
    return rows


def lab_settings(
    workdir: Path, train: Sequence[Row], dev: Sequence[Row], events: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a lab is built with besides its models; events of the fit's log go to `events`."""
    return {
        "benchmarks": {"gsm8k": get_benchmark("gsm8k").with_overrides(max_new_tokens=NEW_TOKENS)},
        "train": train,
        "dev": dev,
        "trained_on": ("gsm8k",),
        "generator_name": "large",
        "workdir": workdir,
        "log_line": lambda line: events.append(json.loads(line)),
    }


def toy_lab(workdir: Path, train: Sequence[Row], dev: Sequence[Row] = (), **changes: Any) -> Lab:
    """A lab on tiny models; `changes` replace any of its fields, `events` collects its log."""
    events = changes.pop("events", [])
    settings = lab_settings(workdir, train, dev, events) | {"actor": None, "generator": None} | changes
    return Lab(**settings)
