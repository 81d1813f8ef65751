"""DPO, PPO and GRPO: their formulas against closed forms and slow loops, and bandits whose best arm they find."""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import dpo, grpo, ppo
from baselines.sft import SFT
from baselines.sft import Settings as SFTSettings
from baselines.shared.policy_gradient import (
    Updates,
    adapter_weights,
    clipped_loss,
    frozen,
    kl_estimate,
    log_probs,
    token_mask,
)
from baselines.shared.rollouts import sample, sft_policy
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import load_policy
from metatuner.harness.query import to_query
from metatuner.harness.rows import Row
from metatuner.lm import completion_loss
from tests.toys.baselines import sums, tiny_lm, toy_lab

ROWS = sums(16)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for fits, in which SFT's policy is kept."""
    return tmp_path_factory.mktemp("bandits")


class Bandit(Lab):
    """Two arms: the actor can write one of two words, and the one with an even number of letters is right."""

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [float(len(text) % 2 == 0) for text in completions]


def bandit(
    workdir: Path,
    events: list[dict[str, Any]] | None = None,
    tokens: int = 1,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Bandit:
    benchmark, actor = get_benchmark("gsm8k").with_overrides(max_new_tokens=tokens), tiny_lm(dtype=dtype)
    arms = [token for word in ("tom", "more") for token in actor.tokenizer(word, add_special_tokens=False).input_ids]
    assert len(arms) == 2
    others = [token for token in range(len(actor.tokenizer)) if token not in arms]
    actor.model.generation_config.suppress_tokens = others
    # A LoRA cannot move the head; at its usual scale no hidden state of this size makes one word much likelier.
    actor.model.lm_head.weight.data[arms] *= 10
    found = toy_lab(workdir, ROWS, actor=actor, events=[] if events is None else events, **changes)
    lab = Bandit(**{**vars(found), "benchmarks": {"gsm8k": benchmark}})
    return replace(lab, prerequisites={"sft": hardly_trained(workdir / "sft")})


def hardly_trained(folder: Path) -> Path:
    """SFT's policy with a LoRA that has hardly moved."""
    if not folder.exists():
        settings = SFTSettings(learning_rate=1e-6, epochs=1, rank=4, alpha=16)
        SFT(settings).fit(toy_lab(folder.parent, ROWS, actor=tiny_lm())).save(folder)
    return folder


METHODS: dict[str, Method] = {
    "dpo": dpo.DPO(dpo.Settings(learning_rate=2e-2, epochs=12, beta=0.1)),
    "ppo": ppo.PPO(ppo.Settings(steps=12, batch=16, minibatch=8, learning_rate=2e-2, kl_coefficient=0.01)),
    "grpo": grpo.GRPO(grpo.Settings(steps=12, queries=8, group=6, learning_rate=2e-2, beta=0.0)),
}


def right(lab: Lab, policy: StaticPolicy) -> float:
    """Share of sampled answers that are right."""
    rows = [row for row in ROWS for _ in range(8)]
    return sum(sample(lab, policy, rows, seeds=range(len(rows)), temperature=1.0).rewards) / len(rows)


@pytest.mark.parametrize("name", METHODS)
def test_the_better_arm_is_found(name: str, home: Path) -> None:
    lab, other = bandit(home), bandit(home)
    before = right(other, sft_policy(other))
    after = right(lab, METHODS[name].fit(lab))
    assert 0.2 < before < 0.8
    assert after > 0.95


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bytes_and_a_saved_policy_answers_as_before(
    name: str, home: Path, tmp_path: Path
) -> None:
    def fitted(folder: str, seed: int = 0) -> str:
        policy = METHODS[name].fit(bandit(home, seed=seed))
        policy.save(tmp_path / folder)
        return hashlib.sha256(next((tmp_path / folder).rglob("*.safetensors")).read_bytes()).hexdigest()

    assert fitted("first") == fitted("again") != fitted("other", seed=1)
    queries = [to_query(row) for row in ROWS]
    policy = METHODS[name].fit(bandit(home))
    assert load_policy(tmp_path / "first", bandit(home)).respond(queries) == policy.respond(queries)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_training_ends_before_a_batch_that_the_budget_does_not_cover(name: str, home: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = bandit(home, events, budget=Budget({"lm_calls": 400}, "small"))
    lab.budget.attach(lab.actor, "actor")
    METHODS[name].fit(lab)
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert {"event": "budget", "steps": len(steps)} in events
    assert 1 <= len(steps) < 12
    assert lab.budget.used.lm_calls <= 400


def test_rollouts_beyond_the_budget_are_refused_before_they_are_made(home: Path) -> None:
    lab = bandit(home, budget=Budget({"lm_calls": 100}, "small"))
    lab.budget.attach(lab.actor, "actor")
    with pytest.raises(UserError, match="does not cover 8 rollouts of 16 rows; lower `rollouts`"):
        METHODS["dpo"].fit(lab)
    assert lab.budget.used.lm_calls == 0


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_answers_read_in_chunks_and_activations_recomputed_change_nothing(name: str, home: Path) -> None:
    def trained(**settings: Any) -> dict[str, torch.Tensor]:
        few = {"ppo": {"batch": 10, "minibatch": 5, "epochs": 2}, "grpo": {"queries": 4}}[name]
        method = {"ppo": ppo.PPO, "grpo": grpo.GRPO}[name]
        made = method(method.Settings(steps=2, **few, learning_rate=1e-2, **settings))
        policy = made.fit(bandit(home, tokens=3))
        assert not policy.actor.model.training
        return {key: value.detach() for key, value in policy.actor.model.named_parameters() if "lora_" in key}

    whole = trained()
    for settings in ({"chunk": 3}, {"chunk": 2, "gradient_checkpointing": True}):
        for key, value in trained(**settings).items():
            torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_an_actor_in_half_precision_is_trained(name: str, home: Path) -> None:
    lab = bandit(home, dtype=torch.bfloat16)
    lab.actor = replace(lab.actor, spec=replace(lab.actor.spec, dtype="bfloat16"))
    before = {key: value.clone() for key, value in sft_policy(bandit(home)).actor.model.named_parameters()}
    policy = METHODS[name].fit(lab)
    after = {key: value for key, value in policy.actor.model.named_parameters() if "lora_" in key}
    assert all(value.isfinite().all() for value in after.values())
    assert any((value.float() - before[key].float()).abs().max() > 1e-3 for key, value in after.items())


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_heavy_divergence_keeps_the_policy_where_it_started(name: str, home: Path) -> None:
    def after(leash: float) -> float:
        methods: dict[str, Method] = {
            "ppo": ppo.PPO(ppo.Settings(steps=30, batch=16, minibatch=8, learning_rate=2e-3, kl_coefficient=leash)),
            "grpo": grpo.GRPO(grpo.Settings(steps=60, queries=8, group=6, learning_rate=2e-3, beta=leash)),
        }
        lab = bandit(home)
        policy = methods[name].fit(lab)
        assert isinstance(policy, StaticPolicy)
        return right(lab, policy)

    other = bandit(home)
    before = right(other, sft_policy(other))
    assert after(0.0) > before + 0.2
    assert abs(after(20.0) - before) < 0.1


def test_a_loss_that_is_not_finite_stops_with_the_remedy(home: Path) -> None:
    changed = ppo.PPO(ppo.Settings(steps=5, batch=16, learning_rate=1e30))
    with pytest.raises(UserError, match=r"ppo: loss (nan|inf).* at optimizer step \d+; lower learning_rate"):
        changed.fit(bandit(home))
    weight = torch.nn.Parameter(torch.ones(1))
    updates = Updates([{"params": [weight], "lr": 0.1}], steps=2, gradient_clip=1.0, what="grpo")
    updates.step([weight.sum()])
    with pytest.raises(UserError, match="grpo: loss nan at optimizer step 2; lower learning_rate"):
        updates.step([weight.sum(), weight.sum() * math.nan])
    diverging = dpo.DPO(dpo.Settings(learning_rate=1e30, epochs=6))
    with pytest.raises(UserError, match=r"dpo: loss nan and gradient norm nan at step \d+ of \d+; lower learning_rate"):
        diverging.fit(bandit(home))


# ---- log-probabilities ---------------------------------------------------------------------------------------------

PROMPTS, ANSWERS = [[7, 8, 9], [10], [11, 12]], [[13, 14], [15, 16, 17], [18]]


def test_log_probabilities_are_those_of_each_answer_alone() -> None:
    lm = tiny_lm(dtype=torch.float64)
    told = log_probs(lm, PROMPTS, ANSWERS)
    assert told.shape == (3, 3)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        each = [logits[len(prompt) - 1 + place, token] for place, token in enumerate(answer)]
        torch.testing.assert_close(told[row, : len(answer)], torch.stack(each))
        assert not told[row, len(answer) :].any()
    losses = completion_loss(lm, list(zip(PROMPTS, ANSWERS, strict=True)), reduction="row")
    torch.testing.assert_close(-told.sum(1), losses)


def test_a_frozen_policy_is_the_one_that_was_copied_and_leaves_the_other_as_it_was(home: Path) -> None:
    policy = sft_policy(bandit(home))
    weights = adapter_weights(policy.actor.model)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    before = log_probs(policy.actor, PROMPTS, ANSWERS).detach()
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(0.1)
    changed = log_probs(policy.actor, PROMPTS, ANSWERS).detach()
    with frozen(weights, start):
        torch.testing.assert_close(log_probs(policy.actor, PROMPTS, ANSWERS).detach(), before)
    torch.testing.assert_close(log_probs(policy.actor, PROMPTS, ANSWERS).detach(), changed)
    assert not torch.allclose(before, changed)


# ---- formulas ------------------------------------------------------------------------------------------------------


def random_batch(seed: int = 0) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    mask = token_mask([4, 2, 5], "cpu").double()
    return (*(torch.randn(3, 5, generator=draw, dtype=torch.float64) * mask for _ in range(4)), mask)


def test_the_clipped_objective_is_its_formula() -> None:
    new, old, advantages, _, mask = random_batch()
    told = clipped_loss(new, old, advantages, mask, 0.2)
    for row in range(3):
        for token in range(5):
            ratio = math.exp(new[row, token] - old[row, token])
            gain = float(advantages[row, token])
            expected = -min(ratio * gain, min(max(ratio, 0.8), 1.2) * gain) * float(mask[row, token])
            assert float(told[row, token]) == pytest.approx(expected)


def test_the_divergence_is_estimated_without_bias_and_is_never_negative() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    other = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    each = kl_estimate(policy.log(), other.log())
    assert (each >= 0).all()
    assert float((policy * each).sum()) == pytest.approx(float((policy * (policy / other).log()).sum()))


def test_advantages_are_discounted_sums_of_temporal_differences() -> None:
    rewards, values, _, _, mask = random_batch(1)
    beyond = 1 - mask  # what stands after an answer's end means nothing
    told = ppo.gae(rewards + 3 * beyond, values - 2 * beyond, mask, 0.9, 0.7)
    for row, length in enumerate((4, 2, 5)):
        after = [*values[row, :length].tolist(), 0.0]
        deltas = [float(rewards[row, t]) + 0.9 * after[t + 1] - after[t] for t in range(length)]
        for t in range(length):
            expected = sum((0.9 * 0.7) ** (k - t) * deltas[k] for k in range(t, length))
            assert float(told[row, t]) == pytest.approx(expected)
        assert not told[row, length:].any()


def test_the_score_stands_on_the_last_token_and_the_divergence_on_each() -> None:
    new, reference, _, _, mask = random_batch(2)
    scores = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    told = ppo.token_rewards(scores, new, reference, mask, 0.3)
    expected = -0.3 * (new - reference) * mask
    for row, last in enumerate((3, 1, 4)):
        expected[row, last] += scores[row]
    torch.testing.assert_close(told, expected)


def test_whitening_and_value_loss_look_at_tokens_alone() -> None:
    values, old, returns, _, mask = random_batch(3)
    white = ppo.whitened(values, mask)
    tokens = white[mask.bool()]
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-12)
    assert float(tokens.var(correction=0)) == pytest.approx(1, rel=1e-6)
    expected = [
        max((v - r) ** 2, (o + min(max(v - o, -0.2), 0.2) - r) ** 2)
        for v, o, r in zip(*(each[mask.bool()].tolist() for each in (values, old, returns)), strict=True)
    ]
    told = ppo.value_loss(values, old, returns, mask, 0.2)
    assert float(told) == pytest.approx(0.5 * sum(expected))


def test_the_controller_moves_towards_its_target_by_a_bounded_step() -> None:
    controller = ppo.KLController(0.2, target=6.0, horizon=1000)
    controller.update(6.6, 100)  # a tenth above: 0.1 * 100 / 1000
    assert controller.coefficient == pytest.approx(0.2 * 1.01)
    controller.update(600.0, 100)
    assert controller.coefficient == pytest.approx(0.2 * 1.01 * 1.02)
    controller.update(0.0, 100)
    assert controller.coefficient == pytest.approx(0.2 * 1.01 * 1.02 * 0.98)


def test_advantages_of_a_group_are_its_standard_scores() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.25, 0.5, 1.0]])
    told = grpo.group_advantages(rewards)
    assert told[0, 0] == pytest.approx(0.5 / math.sqrt(1 / 3))
    assert told[0, 1] == pytest.approx(-0.5 / math.sqrt(1 / 3))
    assert told[1].tolist() == [0.0] * 4
    torch.testing.assert_close(told[2], (rewards[2] - rewards[2].mean()) / rewards[2].std())
    for reward in (0.1, 1 / 3, 2 / 3):  # whose mean over eight is another number
        assert grpo.group_advantages(torch.full((1, 8), reward)).tolist() == [[0.0] * 8]


# ---- DPO -----------------------------------------------------------------------------------------------------------


def test_dpo_starts_at_log_2_and_parts_the_two_arms(home: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = bandit(home, events)
    policy = sft_policy(lab)
    arms = [[7, 8], [7, 8]], [[13, 14], [15, 16, 17]]
    start = copy.deepcopy(policy.actor.model)
    before = log_probs(policy.actor, *arms).sum(1).detach()
    pairs = [{"prompt_ids": [7, 8], "chosen_ids": arms[1][0], "rejected_ids": arms[1][1]}] * 8
    settings = dpo.Settings(learning_rate=2e-2, epochs=10, batch_size=8, beta=0.3)
    dpo.train(lab, policy, pairs, settings)
    after = log_probs(policy.actor, *arms).sum(1).detach()
    steps = [event for event in events if event["event"] == "step"]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    gains = after - before
    assert gains[0] > gains[1]
    # What TRL logs as the margin of a step is beta times the difference of both gains; the last step ends near the end.
    assert steps[-1]["margin"] == pytest.approx(0.3 * float(gains[0] - gains[1]), rel=0.2)
    assert steps[-1]["loss"] == pytest.approx(math.log1p(math.exp(-steps[-1]["margin"])), abs=1e-3)
    assert set(policy.actor.model.peft_config) == {"default"} == set(start.peft_config)


def test_pairs_are_right_and_wrong_answers_of_one_row(home: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = bandit(home, events)
    policy = sft_policy(lab)
    pairs = dpo.find_pairs(lab, policy, dpo.Settings(rollouts=6, pairs=2))
    decode = lab.actor.tokenizer.decode

    def odd(ids: list[int]) -> bool:
        return bool(len(decode(ids, skip_special_tokens=True)) % 2)

    assert pairs
    assert not any(odd(pair["chosen_ids"]) for pair in pairs)
    assert all(odd(pair["rejected_ids"]) for pair in pairs)
    assert events[-1]["pairs"] == events[-1]["mixed"] == len(pairs)  # two different answers make one pair


def test_where_every_answer_scores_alike_the_actor_of_sft_is_returned_and_counted(home: Path) -> None:
    events: list[dict[str, Any]] = []
    sft = {"sft": hardly_trained(home / "sft")}
    lab = toy_lab(home, ROWS, actor=tiny_lm(), events=events, prerequisites=sft)  # nothing is ever right
    policy = dpo.DPO(dpo.Settings(rollouts=2)).fit(lab)
    assert [event["pairs"] for event in events if event["event"] == "pairs"] == [0]
    assert not [event for event in events if event["event"] == "step"]
    assert policy.respond([to_query(ROWS[0])])
