"""A rewriter before the SFT actor: each part is what its own policy has, saved and loaded with the other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from baselines.metatuner import MetaTunerWarmUp
from baselines.rewriter_sft import RewriterSFT, RewrittenPrompts
from metatuner.errors import UserError
from metatuner.harness.ground import Ground
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import Policy, load_policy, register_policy
from metatuner.harness.query import Prepared, Query
from tests.baselines.test_metatuner import BENCHMARKS, TEST, WARM_UP, lab
from tests.toys.method import INITIAL, actor, generator


@pytest.fixture
def required(tmp_path: Path) -> dict[str, Path]:
    """Saved policies of both requirements; the adapter's weights are random, so that it matters."""
    folders = {name: tmp_path / name for name in ("metatuner_warmup", "sft")}
    MetaTunerWarmUp(WARM_UP).fit(lab()).save(folders["metatuner_warmup"])
    lm = actor()
    torch.manual_seed(0)
    model: Any = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    prompts = {name: each.initial_prompt for name, each in BENCHMARKS.items()}
    StaticPolicy(lab(actor=lm), prompts, actor=replace(lm, model=model)).save(folders["sft"])
    return folders


def fresh() -> Ground:
    return Ground(actor(), generator(), BENCHMARKS)


def test_it_asks_the_sft_actor_under_the_rewriters_prompts(required: dict[str, Path], tmp_path: Path) -> None:
    prompts = [each.prompt for each in load_policy(required["metatuner_warmup"], fresh()).respond(TEST)]
    tuned = load_policy(required["sft"], ground := fresh())
    assert isinstance(tuned, StaticPolicy)
    expected = ground.answer(TEST, prompts, actor=tuned.actor)
    policy = RewriterSFT().fit(lab(prerequisites=required))
    assert policy.respond(TEST) == expected
    assert [each.completion for each in expected] != [each.completion for each in fresh().answer(TEST, prompts)]
    # Neither part has changed the other.
    assert policy.rewriter.respond(TEST) == load_policy(required["metatuner_warmup"], fresh()).respond(TEST)
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy", fresh()).respond(TEST) == expected


@register_policy("noting")
class Noting(Policy):
    """A rewriter that looks at the actor as it is read."""

    def __init__(self, tuned: bool) -> None:
        self.tuned = tuned

    def write_prompts(self, queries: Sequence[Query]) -> list[str]:
        return [INITIAL] * len(queries)

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        raise NotImplementedError

    def write(self, folder: Path) -> dict[str, Any]:
        return {}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "Noting":
        return cls(any("lora_" in name for name, _ in ground.actor.model.named_parameters()))


def test_a_rewriter_is_read_on_the_actor_that_is_not_yet_tuned(required: dict[str, Path], tmp_path: Path) -> None:
    Noting(False).save(tmp_path / "noting")
    policy = RewrittenPrompts.of(tmp_path / "noting", required["sft"], ground := fresh())
    assert isinstance(policy.rewriter, Noting)
    assert not policy.rewriter.tuned
    assert Noting.read(tmp_path, {}, ground).tuned  # as anyone would find it now


def test_without_one_of_its_parts_it_says_which(required: dict[str, Path]) -> None:
    del required["sft"]
    with pytest.raises(UserError, match="'sft' was not fitted before"):
        RewriterSFT().fit(lab(prerequisites=required))
