"""Training: what is minimised falls, the same seeds give the same weights, and failures say what to change."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from method_toys import INITIAL, PROMPT_TOKENS, actor, examples, generator, rewrites, tuner

from metatuner.errors import UserError
from metatuner.method import MetaTuner, WarmUpConfig, train_joint, warm_up_actor, warm_up_generator
from metatuner.method.data import Rewrite, draw_seeds, shuffled_batches
from metatuner.method.prompt_decoder import write_prompts
from metatuner.method.tuned import trainable

D1 = examples()
WARM_UP = WarmUpConfig(
    actor_epochs=1,
    actor_rank=2,
    actor_learning_rate=1e-2,
    generator_rank=2,
    generator_epochs=1,
    generator_learning_rate=1e-2,
    batch_size=3,
    max_prompt_tokens=PROMPT_TOKENS,
)
FAST = {"hyper_learning_rate": 1e-2, "generator_learning_rate": 1e-2}


def joint(made: MetaTuner, d2: list[Rewrite], seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    train_joint(made, D1, d2, seed=seed, log=lambda **event: events.append(event), **options)
    return events


def weights(made: MetaTuner) -> dict[str, torch.Tensor]:
    named = {name: parameter.detach().clone() for name, parameter in trainable(made.generator).items()}
    return named | {name: parameter.detach().clone() for name, parameter in made.parameter_decoder.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_joint_training_lowers_both_terms() -> None:
    events = joint(tuner(shaken=False, epochs=12, **FAST), rewrites())
    assert [event["step"] for event in events] == list(range(24))
    assert events[-1]["task"] < 0.8 * events[0]["task"]
    assert events[-1]["prompt"] < 0.5 * events[0]["prompt"]
    assert all(event["loss"] == pytest.approx(event["task"] + event["prompt"]) for event in events)
    assert {"norm_phi_s", "norm_phi_p", "norm_phi_q"} <= events[0].keys()


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not() -> None:
    runs = []
    for seed in (0, 0, 1):
        made = tuner(epochs=2, **FAST)
        joint(made, rewrites(), seed)
        runs.append(weights(made))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_without_d2_only_the_task_loss_is_minimised() -> None:
    made = tuner(epochs=1, **FAST)
    before = weights(made)
    events = joint(made, [])
    after = weights(made)
    assert all(event["prompt"] == 0 and event["loss"] == event["task"] for event in events)
    assert all(torch.equal(before[name], after[name]) for name in made.upper)
    assert not same(before, after)


@pytest.mark.parametrize(
    ("sync", "refresh", "syncs", "written"),
    [(1.0, 1.0, 2, [6, 6]), (2.0, 0.5, 1, [3, 3, 3, 3]), (0.01, 2.0, 4, [6])],
)
def test_prompts_are_written_and_copied_at_the_intervals_that_are_set(
    monkeypatch: pytest.MonkeyPatch, sync: float, refresh: float, syncs: int, written: list[int]
) -> None:
    calls: dict[str, list[int]] = {"sync": [], "write": []}
    real_sync, real_write = MetaTuner.sync, MetaTuner.write_prompts

    def counted_sync(self: MetaTuner) -> None:
        calls["sync"].append(1)
        real_sync(self)

    def counted_write(self: MetaTuner, prompts: list[str], queries: list[str], **options: Any) -> list[str]:
        assert options["frozen"]
        calls["write"].append(len(queries))
        return real_write(self, prompts, queries, **options)

    made = tuner(epochs=2, sync_epochs=sync, refresh_epochs=refresh)
    monkeypatch.setattr(MetaTuner, "sync", counted_sync)
    monkeypatch.setattr(MetaTuner, "write_prompts", counted_write)
    joint(made, rewrites())
    assert len(calls["sync"]) == syncs
    assert calls["write"] == written


def test_the_dev_reward_is_logged_after_each_epoch_if_asked() -> None:
    rewards = iter([0.25, 0.5])
    events = joint(tuner(epochs=2), rewrites(), evaluate=lambda: next(rewards))
    dev = [event for event in events if event["event"] == "dev"]
    assert dev == [{"event": "dev", "epoch": 1, "reward": 0.25}, {"event": "dev", "epoch": 2, "reward": 0.5}]


def test_a_loss_that_is_not_finite_stops_with_a_remedy() -> None:
    made = tuner(epochs=1)
    with torch.no_grad():
        made.parameter_decoder.down.fill_(float("nan"))
    with pytest.raises(UserError, match=r"joint: loss nan .* at step 0 of 2; lower the learning rates"):
        joint(made, rewrites())


@pytest.mark.parametrize("what", ["full", "lora"])
def test_a_warmed_generator_writes_the_prompts_of_d2(what: str) -> None:
    d2 = rewrites(3)
    settings = replace(WARM_UP, trainable=what, generator_rank=8, generator_epochs=60)
    events: list[dict[str, Any]] = []
    lm = warm_up_generator(generator(), d2, settings, seed=0, log=lambda **event: events.append(event))
    asked = [INITIAL] * 3, [row.query for row in d2]
    assert write_prompts(lm, *asked, max_prompt_tokens=PROMPT_TOKENS) == [row.rewrite for row in d2]
    assert len(events) == 60


def test_an_actor_is_warmed_on_the_prompts_that_are_asked_for() -> None:
    trained = {}
    for source in ("initial", "rollouts"):
        events: list[dict[str, Any]] = []
        settings = replace(WARM_UP, actor_prompts=source, actor_epochs=10)
        lm = warm_up_actor(actor(), generator(), D1, settings, seed=0, log=lambda *, into=events, **e: into.append(e))
        assert events[-1]["loss"] < events[0]["loss"]
        trained[source] = {name: parameter.detach() for name, parameter in trainable(lm).items()}
    assert all(".lora_" in name for name in trained["initial"])
    assert not same(trained["initial"], trained["rollouts"])


def test_no_epochs_leave_the_model_as_it_is() -> None:
    settings = replace(WARM_UP, actor_epochs=0, generator_epochs=0)
    ids = torch.tensor([[8, 9, 10]])
    for base, warmed in (
        (actor(), warm_up_actor(actor(), generator(), D1, settings, seed=0, log=print)),
        (generator(), warm_up_generator(generator(), [], settings, seed=0, log=print)),
    ):
        assert torch.equal(base.model(input_ids=ids).logits, warmed.model(input_ids=ids).logits)


def test_a_target_longer_than_half_the_window_is_cut() -> None:
    long = replace(D1[0], target=" ".join(["w1"] * 500))
    events: list[dict[str, Any]] = []
    train_joint(tuner(epochs=1), [long], [], seed=0, log=lambda **event: events.append(event))
    assert len(events) == 1


def test_every_pass_visits_every_row_once_in_an_order_of_its_own() -> None:
    batches = shuffled_batches(range(10), 4, seed=0)
    passes = [[next(batches) for _ in range(3)] for _ in range(3)]
    assert all([len(batch) for batch in one] == [4, 4, 2] for one in passes)
    assert all(sorted(row for batch in one for row in batch) == list(range(10)) for one in passes)
    assert passes[0] != passes[1]


def test_a_longer_list_of_seeds_begins_with_the_shorter_one() -> None:
    assert draw_seeds(3, 8)[:4] == draw_seeds(3, 4)
    assert len(set(draw_seeds(3, 1000))) == 1000
