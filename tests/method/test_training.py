"""Training: what is minimised falls, the same seeds give the same weights, and failures say what to change."""

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch

from metatuner.errors import UserError
from metatuner.lm import LM
from metatuner.method import (
    MetaTuner,
    WarmUpConfig,
    objectives,
    train_joint,
    training,
    warm_up_actor,
    warm_up_generator,
)
from metatuner.method.data import Example, Rewrite, draw_seeds, shuffled_batches
from metatuner.method.optimising import cosine_with_warm_up
from metatuner.method.prompt_decoder import write_prompts
from metatuner.method.tuned import trainable
from tests.toys.method import INITIAL, PROMPT_TOKENS, actor, examples, generator, rewrites, tuner

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


def quiet(**event: Any) -> None:
    """A log that nobody reads."""


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
    assert {"norm_phi_s", "norm_phi_p", "norm_phi_q"} <= events[0].keys()


@pytest.mark.parametrize("objective", ["joint", "alternating"])
def test_alpha_weighs_the_prompt_term_of_every_step(objective: str) -> None:
    for alpha in (0.25, 3.0):
        made, other = (tuner(epochs=1, alpha=weight, objective=objective, **FAST) for weight in (alpha, 1.0))
        d2 = rewrites()[: made.config.batch_size]  # no short batch
        events, plain = joint(made, d2), joint(other, d2)
        for event in events:
            weighted = event.get("task", 0.0) + alpha * event.get("prompt", 0.0)
            assert event["loss"] == pytest.approx(weighted, rel=1e-6)
            assert event["loss"] > 0
        # Only the prompt term reaches phi_p: at the start its gradient is alpha times that of weight 1.
        first = next(step for step, event in enumerate(events) if "prompt" in event)
        assert events[0].keys() == plain[0].keys()
        if first == 0:
            assert events[0]["norm_phi_p"] == pytest.approx(alpha * plain[0]["norm_phi_p"], rel=1e-4)
            assert events[0]["norm_phi_q"] == pytest.approx(plain[0]["norm_phi_q"], rel=1e-4)


def test_the_short_last_batch_of_d2_counts_by_its_tokens() -> None:
    made, d2 = tuner(epochs=4, batch_size=3, **FAST), rewrites()[:5]
    lengths = [len(objectives.rewrite_pair(made.generator, row, PROMPT_TOKENS)[1]) for row in d2]
    events = joint(made, d2, seed=4)
    batches = shuffled_batches(range(len(d2)), 3, draw_seeds(4, 2)[1])
    shares = []
    for event in events:
        batch = next(batches)
        tokens = sum(lengths[row] for row in batch)
        shares.append(1.0 if len(batch) == 3 else tokens / (3 * sum(lengths) / len(lengths)))
        assert event["loss"] == pytest.approx(event["task"] + shares[-1] * event["prompt"], rel=1e-6)
    assert min(shares) < 0.9 < max(shares)


@pytest.mark.parametrize("shared", [1, 0])
def test_layers_private_to_the_parameter_branch_learn_from_the_task_as_shared_ones_do(shared: int) -> None:
    settings = {"encoder_layers": 2, "alpha": 0.0, "epochs": 2, "refresh_epochs": 2.0, "dtype": torch.float64}
    rates = {"hyper_learning_rate": 1e-2, "generator_learning_rate": 1e-3}
    whole, apart = (tuner(shaken=False, shared_layers=k, **settings, **rates) for k in (2, shared))
    before = {name: parameter.detach().clone() for name, parameter in apart.private.items()}
    events = [joint(made, [])[-1] for made in (apart, whole)]
    expected = dict(whole.meta_encoder.named_parameters())
    for name, parameter in apart.private.items():
        assert not torch.equal(parameter, before[name])
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-9)
    assert events[0]["norm_private"] > 0
    assert events[0]["norm_phi_q"] == pytest.approx(events[1]["norm_phi_q"])
    assert events[0]["norm_private"] ** 2 + events[0]["norm_phi_s"] ** 2 == pytest.approx(events[1]["norm_phi_s"] ** 2)
    assert "norm_private" not in events[1]


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not() -> None:
    runs = []
    for seed in (0, 0, 1):
        made = tuner(epochs=2, **FAST)
        joint(made, rewrites(), seed)
        runs.append(weights(made))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def orders(events: "Seen") -> tuple[list[list[str]], list[list[str]]]:
    """The queries of D1 and of D2 in the order in which each of the passes visits them (6 rows each, batches of 3)."""
    return tuple(  # type: ignore[return-value]
        [[row.query for batch in batches[start : start + 2] for row in batch] for start in range(0, len(batches), 2)]
        for batches in (events.d1, events.d2)
    )


@pytest.mark.parametrize("refreshed", [False, True])
def test_every_pass_over_d1_and_d2_has_an_order_of_its_own_drawn_from_the_seed(
    monkeypatch: pytest.MonkeyPatch, refreshed: bool
) -> None:
    d2 = rewrites(6)
    settings = {"epochs": 4, "d2_refresh_epochs": 1.0 if refreshed else None}
    found = []
    for seed in (0, 0, 1):
        seen = Seen(monkeypatch, real=False)
        monkeypatch.setattr(MetaTuner, "write_prompts", lambda self, prompts, queries, **options: list(prompts))
        joint(tuner(**settings), d2, seed, refresh=(lambda: list(d2)) if refreshed else None)
        found.append(orders(seen))
        monkeypatch.undo()
    assert found[0] == found[1]
    for rows, passes, others in ((D1, found[0][0], found[2][0]), (d2, found[0][1], found[2][1])):
        assert len(passes) == 4
        assert all(sorted(one) == sorted(row.query for row in rows) for one in passes)
        # Eight orders out of 720.
        assert len({tuple(one) for one in passes + others}) == 8


def test_a_new_d2_is_visited_from_the_start_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two turns an interval, three a pass over D2: no row comes twice before D2 is collected anew.
    d2 = rewrites(9)
    seen = Seen(monkeypatch, real=False)
    monkeypatch.setattr(MetaTuner, "write_prompts", lambda self, prompts, queries, **options: list(prompts))
    joint(tuner(epochs=6, d2_refresh_epochs=1.0), d2, refresh=lambda: list(d2))
    assert len(seen.d2) == 12
    for start in range(0, 12, 2):
        assert len({row.query for rows in seen.d2[start : start + 2] for row in rows}) == 6


def test_a_row_gets_a_prompt_of_another_random_stream_at_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    still = {"hyper_learning_rate": 1e-12, "generator_learning_rate": 1e-12}

    def written(seed: int, **settings: Any) -> list[dict[str, str]]:
        """The prompt of each query in each of three passes, by a generator that stays as it is."""
        seen = Seen(monkeypatch, real=False)
        joint(tuner(epochs=3, **still, **settings), [], seed)
        monkeypatch.undo()
        queries = [row.query for rows in seen.d1 for row in rows]
        pairs = list(zip(queries, seen.prompts, strict=True))
        return [dict(pairs[start : start + 6]) for start in range(0, 18, 6)]

    def shared(one: dict[str, str], other: dict[str, str]) -> int:
        return sum(one[query] == other[query] for query in one)

    sampled = written(0, prompt_temperature=1.0)
    assert sampled == written(0, prompt_temperature=1.0)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert shared(sampled[one], sampled[other]) <= 1
    assert shared(sampled[0], written(1, prompt_temperature=1.0)[0]) <= 1
    # Two passes an interval: the second reads what was written for the first.
    first, second, third = written(0, prompt_temperature=1.0, refresh_epochs=2.0)
    assert first == second
    assert shared(first, third) <= 1
    greedy = written(0, prompt_temperature=0.0)
    assert greedy[0] == greedy[1] == written(1, prompt_temperature=0.0)[2]


def changes(one: LM, other: LM) -> int:
    """How many of two models' trained tensors differ."""
    pairs = zip(trainable(one).values(), trainable(other).values(), strict=True)
    return sum(not torch.equal(first, second) for first, second in pairs)


def test_a_warm_ups_seed_draws_its_lora() -> None:
    # No epochs: what is drawn is the LoRA's A.
    none = replace(WARM_UP, actor_epochs=0, generator_epochs=0)
    for warm in (
        lambda seed, settings: warm_up_actor(actor(), generator(), D1, settings, seed=seed, log=quiet),
        lambda seed, settings: warm_up_generator(generator(), rewrites(), settings, seed=seed, log=quiet),
    ):
        start = [warm(seed, none) for seed in (0, 0, 1)]
        assert changes(start[0], start[1]) == 0
        assert changes(start[0], start[2]) == len(trainable(start[0])) / 2
        assert changes(warm(0, WARM_UP), warm(0, WARM_UP)) == 0


def test_the_passes_of_the_generators_warm_up_have_orders_of_their_own_drawn_from_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    d2 = rewrites(6)
    settings = replace(WARM_UP, generator_epochs=3)
    found = []
    for seed in (0, 0, 1):
        seen = Seen(monkeypatch, real=False)
        warm_up_generator(generator(), d2, settings, seed=seed, log=quiet)
        found.append(orders(seen)[1])
        monkeypatch.undo()
    assert found[0] == found[1]
    assert all(sorted(one) == sorted(row.query for row in d2) for one in found[0])
    assert len({tuple(one) for one in found[0] + found[2]}) == 6


@pytest.mark.parametrize("source", ["initial", "rollouts", "cold rollouts"])
def test_the_passes_of_the_actors_warm_up_have_orders_and_rollouts_of_their_own_drawn_from_the_seed(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    settings = replace(WARM_UP, actor_prompts=source.removeprefix("cold "), actor_epochs=3)
    if source == "cold rollouts":  # so cold that they are the greedy ones
        settings = replace(settings, rollout_temperature=1e-4)
    read: list[tuple[list[int], list[int]]] = []

    def completion_loss(lm: LM, batch: list[tuple[list[int], list[int]]], **options: Any) -> torch.Tensor:
        read.extend(batch)
        return next(iter(trainable(lm).values())).square().mean()

    monkeypatch.setattr(training, "completion_loss", completion_loss)

    def passes(seed: int) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        read.clear()
        warm_up_actor(actor(), generator(), D1, settings, seed=seed, log=quiet)
        return [[(tuple(target), tuple(asked)) for asked, target in read[start : start + 6]] for start in (0, 6, 12)]

    found, other = passes(0), passes(1)
    assert passes(0) == found
    assert len({tuple(target for target, _ in one) for one in found + other}) == 6
    asked = [dict(one) for one in found + other]
    assert all(one.keys() == asked[0].keys() and len(one) == 6 for one in asked)
    for one, following in combinations(asked, 2):
        same_input = sum(one[target] == following[target] for target in one)
        assert same_input <= 1 if source == "rollouts" else same_input == 6


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
    made = tuner(epochs=1)
    train_joint(made, [long], [], seed=0, log=lambda **event: events.append(event))
    assert [event["tokens"] for event in events] == [made.actor.window // 2] == [64]


def test_every_pass_visits_every_row_once_in_an_order_of_its_own() -> None:
    batches = shuffled_batches(range(10), 4, seed=0)
    passes = [[next(batches) for _ in range(3)] for _ in range(3)]
    assert all([len(batch) for batch in one] == [4, 4, 2] for one in passes)
    assert all(sorted(row for batch in one for row in batch) == list(range(10)) for one in passes)
    assert passes[0] != passes[1]


def test_a_longer_list_of_seeds_begins_with_the_shorter_one() -> None:
    assert draw_seeds(3, 8)[:4] == draw_seeds(3, 4)
    assert len(set(draw_seeds(3, 1000))) == 1000


class Seen:
    """The rows that each loss term is asked for, in order; the losses are the real ones, unless they do not matter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, real: bool = True) -> None:
        self.terms: list[str] = []
        self.d1: list[list[Example]] = []
        self.d2: list[list[Rewrite]] = []
        self.prompts: list[str] = []
        task, prompt = objectives.task_loss, objectives.prompt_loss

        def task_loss(made: MetaTuner, rows: list[Example], prompts: list[str]) -> torch.Tensor:
            self.terms.append("task")
            self.d1.append(rows)
            self.prompts += prompts
            return task(made, rows, prompts) if real else made.parameters["phi_s"][0].square().mean()

        def prompt_loss(lm: LM, rows: list[Rewrite], max_prompt_tokens: int) -> torch.Tensor:
            self.terms.append("prompt")
            self.d2.append(rows)
            return prompt(lm, rows, max_prompt_tokens) if real else next(iter(trainable(lm).values())).square().mean()

        monkeypatch.setattr(objectives, "task_loss", task_loss)
        monkeypatch.setattr(objectives, "prompt_loss", prompt_loss)


def test_alternating_visits_the_batches_of_joint_in_the_same_order_in_twice_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, rates = [], {}
    for settings in ({}, {"objective": "alternating"}, {"objective": "alternating", "alternation_steps": 4}):
        seen = Seen(monkeypatch)
        rates[len(runs)] = [event["rate"] for event in joint(tuner(epochs=3, **settings), rewrites())]
        runs.append(seen)
        monkeypatch.undo()
    simultaneous, one_by_one, in_blocks = runs
    assert len(simultaneous.d1) == len(simultaneous.d2) == 6
    for other in (one_by_one, in_blocks):
        assert other.d1 == simultaneous.d1
        assert other.d2 == simultaneous.d2
    assert one_by_one.terms == ["task", "prompt"] * 6
    assert in_blocks.terms == ["task"] * 4 + ["prompt"] * 4 + ["task"] * 2 + ["prompt"] * 2
    assert rates[0] == [cosine_with_warm_up(step, 6, 0.1) for step in range(6)]
    assert rates[1] == rates[2] == [cosine_with_warm_up(step, 12, 0.1) for step in range(12)]


def test_a_step_of_alternating_moves_only_what_its_term_reaches() -> None:
    made = tuner(epochs=3, objective="alternating", **FAST)
    states: list[dict[str, list[torch.Tensor]]] = []

    def copied() -> dict[str, list[torch.Tensor]]:
        return {name: [p.detach().clone() for p in part] for name, part in made.parameters.items()}

    states.append(copied())
    events: list[dict[str, Any]] = []

    def log(**event: Any) -> None:
        states.append(copied())
        events.append(event)

    train_joint(made, D1, rewrites(), seed=0, log=log)
    for step, (before, after) in enumerate(pairwise(states)):
        moved = {
            name for name in before if any(map(torch.ne, map(torch.sum, before[name]), map(torch.sum, after[name])))
        }
        assert moved == ({"phi_s", "phi_q"} if step % 2 == 0 else {"phi_s", "phi_p"})
        assert events[step].keys() >= {"task" if step % 2 == 0 else "prompt", "norm_phi_p"}
        assert ("prompt" in events[step]) == bool(step % 2)


def test_alternating_without_d2_is_the_task_loss_alone() -> None:
    one, other = tuner(epochs=2, **FAST), tuner(epochs=2, objective="alternating", **FAST)
    assert joint(one, []) == joint(other, [])
    assert same(weights(one), weights(other))


def test_terms_alternate_too_where_d2_comes_only_later(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    made = tuner(epochs=2, objective="alternating", d2_refresh_epochs=1.0)
    events = joint(made, [], refresh=lambda: rewrites())
    assert sum(event["event"] == "joint" for event in events) == 2 * 4
    assert seen.terms == ["task", "task", "task", "prompt", "task", "prompt"]


def test_a_prompt_term_of_weight_zero_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    events = joint(tuner(epochs=2, alpha=0.0, objective="alternating"), rewrites())
    assert seen.terms == ["task"] * 4
    assert [event["prompt"] for event in events] == [0.0] * 4


def test_without_a_prompt_branch_the_actor_reads_the_initial_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    monkeypatch.setattr(MetaTuner, "write_prompts", None)
    joint(tuner(epochs=2, prompt_branch=False), rewrites())
    assert seen.terms == ["task"] * 4
    assert seen.prompts == [INITIAL] * 12


def test_without_a_parameter_branch_only_the_prompt_term_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    d2 = rewrites()[:3]  # whole batches, which count fully
    seen = Seen(monkeypatch)
    with_both = joint(tuner(epochs=2), d2)
    expected = seen.d2
    monkeypatch.undo()
    seen = Seen(monkeypatch)
    monkeypatch.setattr(MetaTuner, "write_prompts", None)
    events = joint(tuner(epochs=2, parameter_branch="none"), d2)
    assert seen.terms == ["prompt"] * 4
    assert seen.d2 == expected
    assert len(events) == len(with_both)
    assert all(event["task"] == 0 and event["loss"] == event["prompt"] for event in events)


def test_without_a_parameter_branch_and_d2_nothing_moves() -> None:
    made = tuner(epochs=1, parameter_branch="none")
    before = {name: parameter.detach().clone() for name, parameter in trainable(made.generator).items()}
    events = joint(made, [])
    assert [event["tokens"] for event in events] == [0, 0]
    assert same(before, dict(trainable(made.generator)))


def test_the_gumbel_objective_is_asked_for_each_batch_at_a_falling_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[Example], float, int]] = []

    def gumbel_loss(made: MetaTuner, rows: list[Example], *, temperature: float, seed: int) -> torch.Tensor:
        asked.append((rows, temperature, seed))
        return sum(parameter.square().sum() for parameter in made.parameters["phi_p"])

    seen = Seen(monkeypatch)
    joint(tuner(epochs=3), rewrites())
    expected = seen.d1
    seen.terms.clear()
    monkeypatch.setattr(objectives, "gumbel_loss", gumbel_loss, raising=False)
    settings = {"objective": "gumbel", "gumbel_temperature": 2.0, "gumbel_final_temperature": 0.0625}
    events = joint(tuner(epochs=3, **settings), rewrites())
    assert seen.terms == []
    assert [rows for rows, _, _ in asked] == expected
    assert [temperature for _, temperature, _ in asked] == pytest.approx([2.0, 1.0, 0.5, 0.25, 0.125, 0.0625])
    assert len({seed for _, _, seed in asked}) == 6
    assert all(event["loss"] == event["task"] > 0 for event in events)
    parts = tuner(epochs=1, accumulation=3, **settings)
    asked.clear()
    joint(parts, [])
    assert [len(rows) for rows, _, _ in asked] == [1] * 6
    assert len({seed for _, _, seed in asked}) == 6


def test_d2_is_collected_anew_at_the_intervals_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [[Rewrite(INITIAL, "w5", f"w{10 + turn}")] * 2 for turn in range(3)]
    fresh = iter([*given[:2], []])
    seen = Seen(monkeypatch)
    events = joint(tuner(epochs=4, d2_refresh_epochs=1.0), rewrites(), refresh=lambda: next(fresh))
    assert [row.rewrite for rows in seen.d2[2:] for row in rows] == ["w10"] * 4 + ["w11"] * 4
    refreshed = [(event["step"], event["d2"]) for event in events if event["event"] == "d2"]
    assert refreshed == [(2, 2), (4, 2), (6, 0)]
    assert seen.terms[-2:] == ["task", "task"]
    with pytest.raises(UserError, match="d2_refresh_epochs is set, but `refresh` is not given"):
        joint(tuner(d2_refresh_epochs=1.0), rewrites())


def moved(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """How far the parameter that moved farthest went."""
    return max((new - old).abs().max().item() for new, old in zip(after, before, strict=True))


def test_every_part_is_trained_at_its_own_rate() -> None:
    rates = {"generator_learning_rate": 1e-4, "hyper_learning_rate": 1e-3, "actor_learning_rate": 1e-2}
    layers = {"shared_layers": 1, "encoder_layers": 3}
    made = tuner(actor="lora", warmed=True, epochs=1, batch_size=6, warm_up_share=0.0, **layers, **rates)
    before = {name: [parameter.detach().clone() for parameter in part] for name, part in made.parameters.items()}
    (event,) = joint(made, rewrites())
    assert event["rate"] == 1
    # Adam's first step moves each element by its rate, whatever its gradient.
    found = {name: moved(before[name], part) for name, part in made.parameters.items()}
    expected = {"phi_s": 1e-4, "phi_p": 1e-4, "private": 1e-4, "phi_q": 1e-3, "actor": 1e-2}
    assert found == pytest.approx(expected, rel=0.02)
    assert all(event[f"norm_{name}"] > 0 for name in expected)


def test_without_a_rate_of_its_own_the_parameter_decoder_is_trained_by_its_widths() -> None:
    made = tuner(epochs=1, batch_size=6, warm_up_share=0.0, factor_learning_rate=1e-3)
    rates = made.parameter_decoder.rates(1e-3)
    before = {name: [parameter.detach().clone() for parameter in part] for name, (part, _) in rates.items()}
    (event,) = joint(made, rewrites())
    for name, (part, rate) in rates.items():
        # Adam's first step moves each element by its rate; W_d has a gradient only through factors above zero.
        assert moved(before[name], part) == pytest.approx(rate, rel=0.02)
        assert event[f"norm_{name}"] > 0


def test_each_warm_up_is_trained_at_its_own_rate() -> None:
    rates = {"actor_learning_rate": 1e-2, "generator_learning_rate": 1e-3}
    settings = replace(WARM_UP, batch_size=6, warm_up_share=0.0, **rates)
    none = replace(settings, actor_epochs=0, generator_epochs=0)
    one, start = (warm_up_actor(actor(), generator(), D1, each, seed=0, log=quiet) for each in (settings, none))
    assert moved(list(trainable(start).values()), list(trainable(one).values())) == pytest.approx(1e-2, rel=0.02)
    one, start = (warm_up_generator(generator(), rewrites(), each, seed=0, log=quiet) for each in (settings, none))
    assert moved(list(trainable(start).values()), list(trainable(one).values())) == pytest.approx(1e-3, rel=0.02)
