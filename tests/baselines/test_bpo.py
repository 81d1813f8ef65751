"""BPO: which rewrites become targets, what training does, and a policy that is the same however it is asked."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from baselines.bpo import BPO, RewriterPolicy, Settings, targets
from baselines.shared.bpo_rewriter import rate_share, to_train
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.ground import Ground
from metatuner.harness.lab import Lab
from metatuner.harness.policy import load_policy
from metatuner.harness.query import Query, Response, to_query
from metatuner.harness.rows import Row
from metatuner.lm import completion_ids, completion_loss, generate, render_rewrite
from tests.toys.lm import tiny_lm
from tests.toys.method import INITIAL, words

BENCHMARK = get_benchmark("gsm8k").with_overrides(initial_prompt=INITIAL, max_new_tokens=6)
GOOD = ("w9", "w30")
TOY = Settings(rollouts=16, rank=4, learning_rate=3e-2, epochs=10, batch_size=8, prompt_tokens=5)
SMALL = replace(TOY, rollouts=4, epochs=2)


def rows(count: int, seed: int) -> list[Row]:
    draw = random.Random(seed)
    drawn = [(words(draw, 4, 12), words(draw, 2, 5)) for _ in range(count)]
    return [
        Row(f"{seed}-{number}", "gsm8k", query, ("0.5",), target, "all", f"group {number}")
        for number, (query, target) in enumerate(drawn)
    ]


TRAIN, TEST = rows(48, seed=0), [to_query(row) for row in rows(32, seed=1)]
FEW = TRAIN[:8]
LENGTHS = {"shrink": 2.0, "grow": 6.0}


class EchoLab(Lab):
    """The actor answers with its prompt, which is rewarded if its first word is a good one."""

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        return [Response(prompt, prompt, 1, 2, False) for prompt in prompts]

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [float(text.startswith(GOOD)) for text in completions]


class PraisingLab(Lab):
    """Untrained models answer nothing right, so this reward praises every second letter count."""

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [float(len(completion) % 2) for completion in completions]


def lab(events: list[dict[str, Any]] | None = None, *, kind: type[Lab] = PraisingLab, **changes: Any) -> Lab:
    made = kind(
        **{
            "actor": tiny_lm(seed=2),
            "generator": tiny_lm(seed=1),
            "benchmarks": {"gsm8k": BENCHMARK},
            "train": FEW,
            "trained_on": ("gsm8k",),
            "generator_name": "toy",
        }
        | changes
    )
    for lm in (made.actor, made.generator):
        made.budget.attach(lm)
    if events is not None:
        made.log = lambda **event: events.append(event)  # type: ignore[method-assign]
    return made


def ground() -> Ground:
    return Ground(tiny_lm(seed=2), tiny_lm(seed=1), {"gsm8k": BENCHMARK})


def test_targets_are_the_best_of_those_that_beat_another() -> None:
    assert targets("a b", ["c d", "e f", "g h"], [0.0, 1.0, 0.5], **LENGTHS) == ["e f"]
    assert targets("a b", ["c d", "e f", "c d"], [1.0, 0.5, 1.0], **LENGTHS) == ["c d", "c d"]
    assert targets("a b", ["c d", "e f"], [1.0, 1.0], **LENGTHS) == []
    assert targets("a b", ["c d", "e f"], [0.0, 0.0], **LENGTHS) == []


@pytest.mark.parametrize(("words", "kept"), [(1, False), (2, True), (4, True), (24, True), (25, False), (0, False)])
def test_rewrites_that_shrink_or_grow_too_much_are_no_targets(words: int, kept: bool) -> None:
    rewrite = " ".join(["x"] * words)
    assert targets("a b c d", [rewrite, "y y y y"], [1.0, 0.0], **LENGTHS) == ([rewrite] if kept else [])


def test_a_fitting_rewrite_that_is_only_second_best_may_be_the_target() -> None:
    assert targets("a b c d", ["x", "y y y y", "z z z z"], [1.0, 0.5, 0.0], **LENGTHS) == ["y y y y"]


def found_pairs(settings: Settings) -> list[tuple[Row, str]]:
    """Train rows with their targets: the pairs that a fit trains on, which takes the best of each row's rewrites."""
    told: list[tuple[Row, str]] = []

    class Listening(PraisingLab):
        def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
            texts = super().rewrite(queries, prompts, **options)
            answers = self.answer(queries, texts)
            draws = self.random("ties")
            for start in range(0, len(texts), settings.rollouts):
                part = slice(start, start + settings.rollouts)
                rewards = self.reward_texts([], [each.completion for each in answers[part]])
                row = next(row for row in self.train if row.id == queries[start].id)
                best = targets(self.initial_prompt(row), texts[part], rewards, shrink=2.0, grow=6.0)
                place = draws.random()
                told.extend([(row, best[int(place * len(best))])] if best else [])
            return texts

    BPO(replace(settings, epochs=1)).fit(lab(kind=Listening))
    return told


@pytest.mark.parametrize(("trainable", "rate"), [("lora", 3e-2), ("full", 1e-2)])
def test_the_rewriter_learns_what_is_rewarded(trainable: Literal["lora", "full"], rate: float) -> None:
    events: list[dict[str, Any]] = []
    given = lab(events, kind=EchoLab, train=TRAIN)
    policy = BPO(replace(TOY, trainable=trainable, learning_rate=rate)).fit(given)
    untrained = RewriterPolicy(given, tiny_lm(seed=1), TOY, policy.seed)
    before, after = (fmean(given.reward(TRAIN, each.respond(TEST))) for each in (untrained, policy))
    assert before < 0.1
    assert after > 0.8
    assert events[0]["rollouts"] == len(TRAIN) * TOY.rollouts
    assert 0 < events[0]["pairs"] < len(TRAIN)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_zero() -> None:
    shares = [rate_share(step, 10, 0.2) for step in range(10)]
    assert shares == pytest.approx([1 / 3, 2 / 3, *(1 - fallen / 8 for fallen in range(8))])
    assert rate_share(0, 1, 0.1) == 0.5
    assert rate_share(0, 4, 0.0) == 1.0


def test_training_starts_from_the_loss_of_the_target_given_prompt_and_query() -> None:
    events: list[dict[str, Any]] = []
    settings = replace(SMALL, epochs=1, batch_size=len(FEW))
    pairs = found_pairs(settings)
    BPO(settings).fit(lab(events))
    lm = tiny_lm(seed=1)
    batch = [
        (render_rewrite(lm, BENCHMARK.initial_prompt, row.query, reserve=5).ids, completion_ids(lm, text)[:5])
        for row, text in pairs
    ]
    (first,) = [event["loss"] for event in events if event["event"] == "step"]
    assert first == pytest.approx(completion_loss(lm, batch).item(), abs=1e-4)


def test_training_is_adamw_on_all_pairs_at_a_rate_that_rises_and_falls_with_a_clipped_gradient() -> None:
    events: list[dict[str, Any]] = []
    settings = replace(SMALL, epochs=4, batch_size=len(FEW), learning_rate=1e-2, warmup=0.25, rollouts=8)
    pairs = found_pairs(settings)
    trained = BPO(settings).fit(lab(events)).generator
    assert len(pairs) > 1
    # By hand, from the adapter that the same stream draws.
    lm = tiny_lm(seed=1)
    to_train(lm, "lora", settings.rank, lab().stream("adapter"))
    adapted = [module for module in lm.model.modules() if hasattr(module, "lora_A")]
    scales = {scale for module in adapted for scale in module.scaling.values()}
    assert scales == {2.0}  # alpha is twice the rank
    batch = [
        (render_rewrite(lm, BENCHMARK.initial_prompt, row.query, reserve=5).ids, completion_ids(lm, text)[:5])
        for row, text in pairs
    ]
    weights = [weight for weight in lm.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    losses, norms = [], []
    for share in (1 / 2, 1, 2 / 3, 1 / 3):  # one step of four to rise in
        optimizer.param_groups[0]["lr"] = 1e-2 * share
        optimizer.zero_grad()
        loss = completion_loss(lm, batch)
        loss.backward()
        norms.append(sum(float((each.grad**2).sum()) for each in weights if each.grad is not None) ** 0.5)
        for each in weights:
            assert each.grad is not None
            each.grad *= min(1.0, 1 / norms[-1])
        optimizer.step()
        losses.append(loss.item())
    assert max(norms) > 1.1
    told = [event["loss"] for event in events if event["event"] == "step"]
    assert told == pytest.approx(losses, rel=1e-3)
    after = [weight for weight in trained.model.parameters() if weight.requires_grad]
    for weight, expected in zip(after, weights, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-2, atol=2e-4)


def test_what_is_trained_of_a_generator_in_half_precision_is_not_half() -> None:
    half = tiny_lm(seed=1)
    half.model.to(torch.bfloat16)
    trained = BPO(SMALL).fit(lab(generator=half)).generator.model
    kinds = {(weight.requires_grad, weight.dtype) for weight in trained.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_saved_and_loaded_it_answers_the_same(trainable: Literal["lora", "full"], tmp_path: Path) -> None:
    given = lab()
    policy = BPO(replace(SMALL, trainable=trainable)).fit(given)
    expected = policy.respond(TEST)
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy", ground()).respond(TEST) == expected
    names = set(load_file(tmp_path / "policy" / "generator.safetensors"))
    assert all((".lora_" in name) == (trainable == "lora") for name in names)
    other = Ground(tiny_lm(seed=2), tiny_lm(seed=1, num_hidden_layers=3), {"gsm8k": BENCHMARK})
    with pytest.raises(UserError, match="do not belong"):
        load_policy(tmp_path / "policy", other)


def test_a_query_gets_the_same_prompt_whatever_else_is_asked() -> None:
    policy = RewriterPolicy(lab(), tiny_lm(seed=1), TOY, seed=3)
    together = policy.write_prompts(TEST)
    assert policy.write_prompts(TEST[::-1]) == together[::-1]
    assert [policy.write_prompts([query])[0] for query in TEST] == together
    assert RewriterPolicy(lab(), tiny_lm(seed=1), TOY, seed=4).write_prompts(TEST) != together
    renamed = [replace(query, id=f"other-{query.id}") for query in TEST]
    assert policy.write_prompts(renamed) == together


def test_each_benchmark_has_its_own_initial_prompt_and_draws() -> None:
    # Two of the same prompt draw differently; a third rewrites another prompt.
    benchmarks = {"gsm8k": BENCHMARK, "math": copy.copy(BENCHMARK)}
    benchmarks["hotpotqa"] = BENCHMARK.with_overrides(initial_prompt="w5 w6 w7")
    policy = RewriterPolicy(Ground(tiny_lm(seed=2), tiny_lm(seed=1), benchmarks), tiny_lm(seed=1), TOY, seed=3)
    asked = [replace(query, benchmark=name) for query in TEST[:8] for name in benchmarks]
    told = policy.write_prompts(asked)
    assert [policy.write_prompts([query])[0] for query in asked] == told
    assert told[::3] != told[1::3]
    greedy = RewriterPolicy(policy.ground, policy.generator, replace(TOY, top_p=1e-6), seed=3).write_prompts(asked)
    assert greedy[::3] == greedy[1::3]
    assert greedy[::3] != greedy[2::3]


def test_prompts_are_sampled_at_the_settings_of_the_policy() -> None:
    lm = tiny_lm(seed=1)
    read = [render_rewrite(lm, BENCHMARK.initial_prompt, query.text, reserve=5).ids for query in TEST]
    greedy = [each.text for each in generate(lm, read, max_new_tokens=5)]
    narrow = RewriterPolicy(lab(), lm, replace(TOY, top_p=1e-6), seed=3)
    assert narrow.write_prompts(TEST) == greedy  # of the likeliest tokens one remains
    assert RewriterPolicy(lab(), lm, TOY, seed=3).write_prompts(TEST) != greedy


def test_the_actor_is_asked_as_it_is() -> None:
    policy = BPO(SMALL).fit(given := lab())
    untouched = tiny_lm(seed=2).model.state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in given.actor.model.state_dict().items())
    assert policy.respond(TEST) == ground().answer(TEST, policy.write_prompts(TEST))


def test_same_seed_same_policy() -> None:
    first, again, other = ([each.prompt for each in BPO(SMALL).fit(lab(seed=seed)).respond(TEST)] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_without_pairs_the_generator_stays_as_it_is() -> None:
    class Hard(PraisingLab):
        def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
            return [0.0] * len(completions)

    events: list[dict[str, Any]] = []
    policy = BPO(SMALL).fit(lab(events, kind=Hard))
    assert events == [{"event": "pairs", "pairs": 0, "rollouts": len(FEW) * SMALL.rollouts, "reward": 0.0}]
    untrained = RewriterPolicy(lab(), tiny_lm(seed=1), TOY, policy.seed)
    assert policy.write_prompts(TEST) == untrained.write_prompts(TEST)


@pytest.mark.parametrize("what", ["lm_calls", "generated_tokens"])
def test_rollouts_are_made_if_all_of_a_chunk_is_left_and_else_none(what: str) -> None:
    calls = len(FEW) * SMALL.rollouts
    needed = {"lm_calls": 2 * calls, "generated_tokens": calls * (SMALL.prompt_tokens + BENCHMARK.max_new_tokens)}
    for limit, made in ((needed[what], calls), (needed[what] - 1, 0)):
        events: list[dict[str, Any]] = []
        BPO(SMALL).fit(lab(events, budget=Budget({what: limit}, "toy")))
        assert next(event["rollouts"] for event in events if event["event"] == "pairs") == made


@pytest.mark.parametrize("short", [0, 1])
def test_a_training_step_is_taken_if_all_that_it_reads_and_writes_is_left(short: int) -> None:
    settings = replace(SMALL, epochs=1, batch_size=len(FEW))
    lm = tiny_lm(seed=1)
    needed = sum(
        len(render_rewrite(lm, BENCHMARK.initial_prompt, row.query, reserve=5).ids) + len(completion_ids(lm, text)[:5])
        for row, text in found_pairs(settings)
    )
    events: list[dict[str, Any]] = []
    given = lab(events, budget=Budget({"trained_tokens": needed - short}, "toy"))
    BPO(settings).fit(given)
    assert [event["event"] for event in events] == ["pairs", "budget" if short else "step"]
    assert (given.budget.used.trained_tokens > 0) is not bool(short)


def test_rollouts_stop_before_the_budget_does_not_cover_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.bpo.CHUNK", 2)
    events: list[dict[str, Any]] = []
    chunk = 2 * 2 * SMALL.rollouts  # rewrites and answers of two rows
    given = lab(events, budget=Budget({"lm_calls": 3 * chunk - 1}, "toy"))
    BPO(SMALL).fit(given)
    assert {"event": "budget", "rows": 4} in events
    assert given.budget.left("lm_calls") >= 0


def test_training_stops_before_the_budget_does_not_cover_a_step() -> None:
    events: list[dict[str, Any]] = []
    given = lab(events, budget=Budget({"trained_tokens": 80}, "toy"))
    BPO(SMALL).fit(given)
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert len(steps) == 1
    assert {"event": "budget", "steps": len(steps)} in events
    assert 0 < given.budget.used.trained_tokens <= 80


def test_without_a_generator_it_is_skipped_with_a_reason() -> None:
    made = lab()
    made.generator = None
    assert "generator" in str(BPO().skip(made))
