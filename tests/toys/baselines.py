"""Shared by the tests of the baselines: a random tiny model, toy rows, and a lab around them."""

import json
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.sft import SFT
from baselines.sft import Settings as SFTSettings
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.rows import Row
from metatuner.lm import LM, ModelSpec
from metatuner.nano.tokenizer import ANSWER, transformers_tokenizer

NEW_TOKENS = 20
"""Enough for every target of `sums`."""
SHORT = {"gsm8k": "solve the problem and give the answer", "math": "find the result and give the answer"}
"""Initial prompts that a tiny model reads in a few tokens; the benchmarks' own are longer."""


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
    """The arguments of a lab, except its models; events of the fit's log go to `events`."""
    return {
        "benchmarks": {
            "gsm8k": get_benchmark("gsm8k").with_overrides(initial_prompt=SHORT["gsm8k"], max_new_tokens=NEW_TOKENS)
        },
        "train": train,
        "dev": dev,
        "trained_on": ("gsm8k",),
        "generator_name": "large",
        "workdir": workdir,
        "log_line": lambda line: events.append(json.loads(line)),
    }


def toy_lab(workdir: Path, train: Sequence[Row], dev: Sequence[Row] = (), **changes: Any) -> Lab:
    """A lab for tiny models; `changes` replace any of its fields, and `events` collects its log."""
    events = changes.pop("events", [])
    settings = lab_settings(workdir, train, dev, events) | {"actor": None, "generator": None} | changes
    return Lab(**settings)


# ---- arms: two benchmarks with answers of a few words, and a LoRA to start from --------------------------------------

ARMS = ("tom", "more")
"""The words that the actor of `arms_lab` can write, besides its end of turn."""
PAIR = {
    "gsm8k": get_benchmark("gsm8k").with_overrides(initial_prompt=SHORT["gsm8k"], max_new_tokens=4),
    "math": get_benchmark("math").with_overrides(initial_prompt=SHORT["math"], max_new_tokens=2),
}
PAIR["math"].stops = ("more more",)
"""Two benchmarks that differ in prompt, length and stops."""


def mixed_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows with distinct queries that alternate between the two benchmarks."""
    distinct = list({row.query: row for row in sums(3 * count, seed)}.values())[:count]
    names = sorted(PAIR)
    return [Row(**{**vars(row), "benchmark": names[index % 2]}) for index, row in enumerate(distinct)]


class ArmsLab(Lab):
    """An answer is right if it begins with the word of its row; the row's number determines the word."""

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [
            float(text.strip().startswith(ARMS[int(row.id.split("-")[1]) // 2 % 2]))
            for row, text in zip(rows, completions, strict=True)
        ]


def arms_lm(dtype: torch.dtype = torch.float32) -> LM:
    """An actor that writes two words and may stop after any of them. A LoRA can change which one it writes."""
    lm = tiny_lm(dtype=dtype)
    arms = [token for word in ARMS for token in lm.tokenizer(word, add_special_tokens=False).input_ids]
    assert len(arms) == 2
    arms += lm.eos_ids
    lm.model.generation_config.suppress_tokens = [token for token in range(len(lm.tokenizer)) if token not in arms]
    # A LoRA cannot change the head; with an unscaled head, no hidden state of this size makes one word much likelier.
    lm.model.lm_head.weight.data[arms] *= 10
    return lm


def arms_lab(workdir: Path, events: list[dict[str, Any]] | None = None, **changes: Any) -> ArmsLab:
    """A lab on both benchmarks in which SFT has been fitted; for one benchmark it has its own prompt."""
    trained_on = tuple(sorted(PAIR))
    given = {
        "actor": arms_lm(),
        "benchmarks": PAIR,
        "trained_on": trained_on,
        "events": [] if events is None else events,
    }
    lab = toy_lab(workdir, **({"train": mixed_rows(8)} | given | changes))
    folder = workdir / "sft"
    if not folder.exists():
        settings = SFTSettings(learning_rate=1e-2, epochs=1, rank=4, alpha=16, prompts={"math": "tom has apples"})
        SFT(settings).fit(replace(lab, actor=tiny_lm(), budget=Budget(), seed=0)).save(folder)
    return ArmsLab(**{**_fields(lab), "prerequisites": {"sft": folder}})


def _fields(lab: Lab) -> dict[str, Any]:
    return {each.name: getattr(lab, each.name) for each in fields(lab) if each.name[0] != "_"}


def like(lab: Any, kind: type[Any], **changes: Any) -> Any:
    """The same lab as an instance of another class."""
    return kind(**{**_fields(lab), **changes})
