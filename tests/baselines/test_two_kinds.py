"""SFT, MetaTuner and a static LoRA on a toy whose optimum is known: two kinds of query, one right word for each."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.dpo import DPO
from baselines.dpo import Settings as DPOSettings
from baselines.grpo import GRPO
from baselines.grpo import Settings as GRPOSettings
from baselines.metatuner import AlternatingConfig, MetaTunerI, MetaTunerJ, MetaTunerWarmUp
from baselines.ppo import PPO
from baselines.ppo import Settings as PPOSettings
from baselines.sft import SFT
from baselines.sft import Settings as SFTSettings
from baselines.static_lora import Settings as StaticSettings
from baselines.static_lora import StaticLoRA
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.method import Method
from metatuner.harness.policy import Policy
from metatuner.harness.query import to_query
from metatuner.harness.rows import Row
from metatuner.lm import LM
from metatuner.method.config import MetaTunerConfig, WarmUpConfig
from tests.toys.method import INITIAL, actor, generator

RIGHT = ("w40", "w41")
"""The right answer to a query of each kind."""
BENCHMARK = get_benchmark("gsm8k").with_overrides(initial_prompt=INITIAL, max_new_tokens=1)
WARM_UP = WarmUpConfig(actor_epochs=0, generator_epochs=1, batch_size=8, rollouts=2, max_prompt_tokens=3)
JOINT: dict[str, Any] = {
    "rank": 4,
    "bottleneck": 16,
    "epochs": 20,
    "batch_size": 8,
    "pooling": "mean",
    "target_modules": "all-linear",
    "hyper_learning_rate": 4e-3,
    "generator_learning_rate": 5e-3,
}
METHODS: dict[str, Method] = {
    "sft": SFT(SFTSettings(learning_rate=2e-2, epochs=12, batch_size=8)),
    "metatuner_j": MetaTunerJ(MetaTunerConfig(**JOINT)),
    "metatuner_i": MetaTunerI(AlternatingConfig(**JOINT)),
    "static_lora": StaticLoRA(
        StaticSettings(**{**JOINT, "epochs": 40, "hyper_learning_rate": 1e-2, "prompt_temperature": 0.0})
    ),
}


def rows(count: int, seed: int) -> list[Row]:
    """A query begins with the word of its kind; what follows means nothing."""
    draw, made = random.Random(seed), []
    for number in range(count):
        kind = number % 2
        query = " ".join([f"w{kind}", *(f"w{draw.randrange(2, 40)}" for _ in range(draw.randint(2, 5)))])
        made.append(Row(f"{seed}-{number}", "gsm8k", query, (RIGHT[kind],), RIGHT[kind], str(kind), query))
    return made


TRAIN, UNSEEN = rows(48, seed=0), rows(32, seed=1)


class Words(Lab):
    """An answer is right if it is the row's word."""

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [float(text.strip() == row.target) for row, text in zip(rows, completions, strict=True)]


def answering() -> LM:
    """An actor that can say the two words alone, and says them loud enough for a LoRA to be heard."""
    lm = actor()
    arms = [token for word in RIGHT for token in lm.tokenizer(word, add_special_tokens=False).input_ids]
    assert len(arms) == 2
    lm.model.generation_config.suppress_tokens = [token for token in range(len(lm.tokenizer)) if token not in arms]
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[arms] *= 10
    return lm


def lab(folder: Path, **changes: Any) -> Words:
    given = {"actor": answering(), "generator": generator(), "benchmarks": {"gsm8k": BENCHMARK}, "train": TRAIN}
    given |= {"trained_on": ("gsm8k",), "generator_name": "toy", "workdir": folder}
    return Words(**(given | changes))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What methods build on, fitted and saved."""
    folder = tmp_path_factory.mktemp("before")
    fitted: dict[str, Method] = {"metatuner_warmup": MetaTunerWarmUp(WARM_UP), "sft": SFT(SFTSettings(epochs=1))}
    for name, method in fitted.items():
        method.fit(lab(folder)).save(folder / name)
    return {name: folder / name for name in fitted}


def right(policy: Policy, folder: Path) -> float:
    """Share of right answers to rows that were not trained on."""
    found = policy.respond([to_query(row) for row in UNSEEN])
    rewards = lab(folder).reward_texts(UNSEEN, [response.completion for response in found])
    return sum(rewards) / len(rewards)


@pytest.mark.parametrize("name", METHODS)
def test_it_finds_the_right_word_of_each_kind(name: str, before: dict[str, Path], tmp_path: Path) -> None:
    untrained = lab(tmp_path).answer([to_query(row) for row in UNSEEN], INITIAL)
    start = sum(lab(tmp_path).reward_texts(UNSEEN, [each.completion for each in untrained])) / len(UNSEEN)
    assert start < 0.7
    assert right(METHODS[name].fit(lab(tmp_path, prerequisites=before)), tmp_path) > 0.95


def shortened(name: str) -> Method:
    """The method with one or two passes."""
    method = METHODS[name]
    return type(method)(replace(method.settings, epochs=2))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sft"])
def test_the_same_seed_trains_the_same_and_another_seed_another(
    name: str, before: dict[str, Path], tmp_path: Path
) -> None:
    def digest(folder: str, **changes: Any) -> str:
        shortened(name).fit(lab(tmp_path, prerequisites=before, train=TRAIN[:16], **changes)).save(tmp_path / folder)
        files = sorted((tmp_path / folder).rglob("*.safetensors"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    assert digest("first") == digest("again") != digest("other", seed=1)


TRAINED: dict[str, Method] = {
    **{name: shortened(name) for name in METHODS},
    "dpo": DPO(DPOSettings(rollouts=2, pairs=1, epochs=8, rollout_temperature=20.0)),
    "ppo": PPO(PPOSettings(steps=2)),
    "grpo": GRPO(GRPOSettings(steps=30, queries=2, group=4)),
}


@pytest.mark.parametrize("what", ["tflop", "trained_tokens"])
@pytest.mark.parametrize("name", TRAINED)
def test_training_ends_in_order_before_a_limit(name: str, what: str, before: dict[str, Path], tmp_path: Path) -> None:
    def spent(limits: dict[str, float]) -> tuple[Budget, list[dict[str, Any]], Policy]:
        budget, events = Budget(limits, "small"), []
        tight = lab(
            tmp_path, prerequisites=before, budget=budget, log_line=lambda line: events.append(json.loads(line))
        )
        for role, lm in (("actor", tight.actor), ("generator", tight.need_generator())):
            budget.attach(lm, role)
        try:
            return budget, events, TRAINED[name].fit(tight)
        finally:
            budget.detach()

    whole, events, _ = spent({})
    assert "budget" not in [event["event"] for event in events]
    limit = 0.75 * whole.spent(what)
    short, events, policy = spent({what: limit})
    assert "budget" in [event["event"] for event in events]
    least = 0.0 if name == "grpo" else 0.3 * limit  # GRPO trains on few answers, and reserves tokens for all
    assert least <= short.spent(what) <= limit
    assert policy.respond([to_query(UNSEEN[0])])
