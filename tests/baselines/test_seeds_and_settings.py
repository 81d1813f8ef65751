"""What decides a fit: each stream that a baseline draws from and each of its settings changes it, and no seed besides.

Streams are the lab's promise that a seed gives the same result everywhere, and that variants which draw from one name
are paired. A setting that changes nothing is one that a preset or a search sets in vain.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import pytest
import torch

from baselines.better_together import BetterTogether
from baselines.better_together import Settings as TogetherSettings
from baselines.bootstrap_few_shot import BootstrapFewShot
from baselines.bootstrap_few_shot import Settings as BootstrapSettings
from baselines.bpo import BPO
from baselines.bpo import Settings as BPOSettings
from baselines.cfpo import CFPO
from baselines.cfpo import Settings as CFPOSettings
from baselines.copro import COPRO
from baselines.copro import Settings as COPROSettings
from baselines.dpo import DPO
from baselines.dpo import Settings as DPOSettings
from baselines.few_shot import FewShot
from baselines.gepa import GEPA
from baselines.gepa import Settings as GEPASettings
from baselines.grpo import GRPO
from baselines.grpo import Settings as GRPOSettings
from baselines.miprov2 import MIPROv2
from baselines.miprov2 import Settings as MIPROSettings
from baselines.opro import OPRO
from baselines.opro import Settings as OPROSettings
from baselines.ppo import PPO
from baselines.ppo import Settings as PPOSettings
from baselines.rlprompt import RLPrompt
from baselines.rlprompt import Settings as RLPromptSettings
from baselines.sft import SFT
from baselines.sft import Settings as SFTSettings
from metatuner.harness.lab import Lab
from metatuner.harness.method import Method
from metatuner.harness.proposer import Reply
from metatuner.harness.query import Query, Response, to_query
from metatuner.hashing import derive_seed
from tests.toys.baselines import PAIR, arms_lab, like, mixed_rows, tiny_lm, toy_lab


class Right(Lab):
    """Chance says how good an answer is: 0, 0.5 or 1. So those of untrained models are good now and then."""

    asked: list[Any]

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
        self.asked.append((queries, prompts, options.get("demos")))
        return super().answer(queries, prompts, **options)

    def reward_texts(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [crc32(text.encode()) % 3 / 2 for text in completions]


class Chancy(Right):
    """The actor's answer is another for every prompt, demonstrations and query; a rewrite adds a word."""

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
        prompts = [prompts] * len(queries) if isinstance(prompts, str) else prompts
        shown = options.get("demos") or [()] * len(queries)
        self.asked.append((queries, prompts, shown))
        return [
            Response(prompt, str(crc32(f"{prompt} {list(demos)} {each.text}".encode())), 1, 2, False)
            for each, prompt, demos in zip(queries, prompts, shown, strict=True)
        ]

    def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
        self.asked.append((queries, prompts, options))
        return [
            f"{prompt} {Random(seed).choice(['so', 'now', 'then'])}"
            for prompt, seed in zip(prompts, options["seeds"], strict=True)
        ]


class Talking:
    """A server that proposes by what it is asked, in the form that is asked for."""

    def __init__(self, asked: list[Any]) -> None:
        self.asked = asked

    def chat(self, messages: Sequence[dict[str, str]], **options: Any) -> Reply:
        self.asked.append((messages, options))
        text = f"think {crc32(repr(messages).encode()) % 1000} {Random(options['seed']).choice('abc')}"
        fields = re.findall(r"`\[\[ ## (\w+_instruction) ## \]\]`", messages[-1]["content"])
        return Reply(f"[[ ## {fields[0]} ## ]]\n{text}" if fields else f"[{text}]", 1, 1, False)


METHODS: dict[str, tuple[Method, set[str]]] = {
    "few_shot": (FewShot(), {"demos"}),
    "opro": (
        OPRO(OPROSettings(proposer="rewrite", steps=3, samples=4, scored_rows=5, finalists=2)),
        {"search", "proposals"},
    ),
    "opro, instructed": (
        OPRO(OPROSettings(steps=3, samples=4, scored_rows=5, exemplars=2, shown=6)),
        {"search", "proposals"},
    ),
    "cfpo": (
        CFPO(CFPOSettings(proposer="rewrite", rounds=6, beam=2, scored_rows=5, finalists=2, all_pairs=False)),
        {"search", "proposals"},
    ),
    "cfpo, instructed": (CFPO(CFPOSettings(rounds=3, beam=2, scored_rows=5, cases=1)), {"search", "proposals"}),
    "copro": (COPRO(COPROSettings(proposer="rewrite", breadth=3, depth=2, scored_rows=5)), {"search", "proposals"}),
    "copro, instructed": (COPRO(COPROSettings(breadth=3, depth=2)), {"search", "proposals"}),
    "miprov2": (
        MIPROv2(MIPROSettings(proposer="rewrite", candidates=6, trials=6, shots=3)),
        {"search", "proposals"},
    ),
    "miprov2, instructed": (MIPROv2(MIPROSettings(candidates=3, trials=3, viewed=3)), {"search", "proposals"}),
    "gepa": (
        GEPA(GEPASettings(proposer="rewrite", answers=400, minibatch=4)),
        {"search", "proposals", "minibatches"},
    ),
    "gepa, instructed": (GEPA(GEPASettings(answers=60)), {"search", "proposals", "minibatches"}),
    "bootstrap_few_shot": (BootstrapFewShot(BootstrapSettings(bootstrapped=2, labeled=4)), {"order"}),
    "rlprompt": (
        RLPrompt(
            RLPromptSettings(
                prompt_tokens=3,
                steps=4,
                samples=4,
                scored_rows=3,
                hidden_size=8,
                eval_steps=2,
                learning_rate=1e-2,
                target_rate=0.1,
                gradient_clip=0.1,
                top_k=64,
            )
        ),
        {"policy", "rows"},
    ),
    "bpo": (
        BPO(BPOSettings(rollouts=4, epochs=2, batch_size=1, learning_rate=1e-2, prompt_tokens=4, shrink=8.0)),
        {"rollouts", "ties", "adapter", "batches", "answers"},
    ),
    "sft": (SFT(SFTSettings(learning_rate=1e-2, epochs=1, batch_size=3)), {"adapter", "sft"}),
    "dpo": (DPO(DPOSettings(rollouts=6, learning_rate=1e-2, batch_size=2)), {"pairs", "rollouts", "dpo"}),
    "ppo": (PPO(PPOSettings(steps=1, batch=5, minibatch=2, epochs=1, learning_rate=1e-2)), {"batches", "rollouts"}),
    "grpo": (GRPO(GRPOSettings(steps=1, queries=5, group=3, learning_rate=1e-2)), {"batches", "rollouts"}),
    "better_together": (
        BetterTogether(
            TogetherSettings(candidates=2, shots=1, threshold=0.5, rank=2, epochs=1, batch_size=3, learning_rate=1e-2)
        ),
        {"search", "adapter", "batches"},
    ),
}
"""With the names of the streams that each draws from."""

ALTERED: dict[str, dict[str, Any]] = {
    "few_shot": {"shots": 3},
    "opro": {
        "steps": 2,
        "samples": 3,
        "temperature": 0.5,
        "scored_rows": 4,
        "max_characters": 40,
        "proposal_tokens": 9,
        "finalists": 3,
    },
    "opro, instructed": {"temperature": 0.5, "shown": 2, "exemplars": 1, "proposal_tokens": 9},
    "cfpo": {
        "rounds": 3,
        "beam": 1,
        "diagnoses": 2,
        "variations": 2,
        "formats": 2,
        "all_pairs": True,
        "exploration": 50.0,
        "temperature": 0.9,
        "last_temperature": 0.6,
        "scored_rows": 4,
        "proposal_tokens": 9,
        "finalists": 3,
    },
    "cfpo, instructed": {"cases": 2, "temperature": 0.9, "last_temperature": 0.6, "proposal_tokens": 9},
    "copro": {"breadth": 4, "depth": 3, "temperature": 0.5, "scored_rows": 4, "proposal_tokens": 9},
    "copro, instructed": {"temperature": 0.5, "proposal_tokens": 9},
    "miprov2": {
        "candidates": 5,
        "trials": 7,
        "shots": 2,
        "threshold": 0.5,
        "temperature": 0.5,
        "proposal_tokens": 9,
    },
    "miprov2, instructed": {"viewed": 2, "temperature": 0.5, "proposal_tokens": 9},
    "gepa": {"answers": 100, "minibatch": 3, "temperature": 0.5, "proposal_tokens": 9},
    "gepa, instructed": {"temperature": 0.5, "proposal_tokens": 9},
    "bootstrap_few_shot": {"bootstrapped": 3, "labeled": 5, "threshold": 0.5},
    "rlprompt": {
        "keep_initial": True,
        "prompt_tokens": 2,
        "steps": 3,
        "samples": 5,
        "scored_rows": 4,
        "reward_scale": 1.0,
        "hidden_size": 9,
        "learning_rate": 2e-2,
        "target_rate": 0.5,
        "top_k": 2,
        "fluent_top_k": 3,
        "logit_bias": -5.0,
        "gradient_clip": 0.2,
        "eval_steps": 1,
    },
    "bpo": {
        "rollouts": 5,
        "rollout_temperature": 0.5,
        "shrink": 1.0,
        "grow": 0.2,
        "trainable": "full",
        "rank": 3,
        "learning_rate": 2e-2,
        "epochs": 1,
        "batch_size": 2,
        "warmup": 0.5,
        "temperature": 1.5,
        "top_p": 0.01,
        "prompt_tokens": 3,
    },
    "sft": {
        "learning_rate": 2e-2,
        "epochs": 2,
        "batch_size": 2,
        "warmup": 0.5,
        "weight_decay": 5.0,
        "rank": 3,
        "alpha": 5,
        "dropout": 0.2,
        "targets": ("q_proj",),
        "prompts": {"math": "add"},
    },
    "dpo": {
        "rollouts": 5,
        "rollout_temperature": 2.0,
        "pairs": 1,
        "beta": 0.5,
        "learning_rate": 2e-2,
        "epochs": 2,
        "batch_size": 3,
        "warmup": 0.5,
    },
    "better_together": {
        "strategy": "w -> p",
        "candidates": 1,
        "shots": 2,
        "threshold": 1.0,
        "learning_rate": 2e-2,
        "epochs": 2,
        "batch_size": 2,
        "gradient_clip": 0.01,
        "rank": 3,
        "alpha": 5,
        "targets": ("q_proj",),
    },
}
"""Another value of each setting; PPO's and GRPO's are tested against whole fits by hand."""
SPARED = {"proposer", "gradient_checkpointing"}
"""Who proposes is tested by what is asked, and recomputing changes nothing."""


def lab_for(name: str, home: Path, asked: list[Any]) -> Lab:
    if name in ("dpo", "ppo", "grpo"):
        return arms_lab(home)
    pair = {"benchmarks": PAIR, "trained_on": tuple(sorted(PAIR))}
    train, dev = mixed_rows(12), mixed_rows(6, seed=1)
    if name in ("sft", "better_together", "bpo"):
        lab = toy_lab(home, train[:8], actor=tiny_lm(), generator=tiny_lm(seed=1), **pair)
        made = like(lab, Right)
        made.asked = asked
        return made  # type: ignore[no-any-return]
    proposer = Talking(asked) if name.endswith("instructed") else None
    made = like(toy_lab(home, train, dev, actor=tiny_lm(), generator=tiny_lm(), proposer=proposer, **pair), Chancy)
    made.asked = asked
    return made  # type: ignore[no-any-return]


def fitted(name: str, home: Path, method: Method, *, changed: str = "", seed: int = 0) -> tuple[str, set[str]]:
    """A digest of all that a fit asks, logs and keeps, and the streams it drew from.

    The streams are those of one seed throughout, but for the one that is changed.
    """
    names: set[str] = set()
    asked: list[Any] = []
    logged: list[str] = []
    lab = lab_for(name, home, asked)

    class Streams(type(lab)):  # type: ignore[misc]
        def stream(self, stream: str) -> int:
            names.add(stream)
            return derive_seed("a stream", stream, stream == changed)

    watched = like(lab, Streams, seed=seed, log_line=logged.append)
    watched.asked = asked
    torch.manual_seed(seed)
    policy = method.fit(watched)
    drawn = set(names)
    folder = home / hashlib.sha256(repr([name, method.settings, changed, seed]).encode()).hexdigest()
    policy.save(folder)
    kept: list[Any] = [path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))]
    kept += [getattr(policy, part, None) for part in ("prompts", "demos")]
    if hasattr(policy, "write_prompts"):
        kept.append(policy.write_prompts([to_query(row) for row in watched.train]))
    # A server is asked side by side, in no order.
    said = sorted(repr(each) for each in asked) if name.endswith("instructed") else [repr(each) for each in asked]
    return hashlib.sha256(repr([said, logged, kept]).encode()).hexdigest(), drawn


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fits")


@pytest.fixture(scope="module")
def plain(home: Path) -> Callable[[str], tuple[str, set[str]]]:
    """A method as it is, fitted once."""
    return cache(lambda name: fitted(name, home, METHODS[name][0]))


@pytest.mark.parametrize("name", METHODS)
def test_named_streams_alone_decide_a_fit_and_each_of_them_does(
    name: str, home: Path, plain: Callable[[str], tuple[str, set[str]]]
) -> None:
    method, streams = METHODS[name]
    first, names = plain(name)
    assert names == streams
    assert fitted(name, home, method, seed=7)[0] == first
    for changed in sorted(names):
        assert fitted(name, home, method, changed=changed)[0] != first, changed


@pytest.mark.parametrize("name", ALTERED)
def test_every_setting_changes_the_fit(name: str, home: Path, plain: Callable[[str], tuple[str, set[str]]]) -> None:
    method, _ = METHODS[name]
    for field, value in ALTERED[name].items():
        other = type(method)(replace(method.settings, **{field: value}))
        assert getattr(method.settings, field) != value
        assert fitted(name, home, other)[0] != plain(name)[0], field


def test_no_setting_is_left_out() -> None:
    for name, altered in ALTERED.items():
        known = set(altered) | set(ALTERED.get(f"{name}, instructed", {})) | SPARED
        if not name.endswith("instructed"):
            assert {each.name for each in fields(type(METHODS[name][0]).Settings)} <= known, name
