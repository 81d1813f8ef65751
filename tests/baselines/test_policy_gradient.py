"""PPO and GRPO against whole fits by hand: one answer at a time, no padding, and numbers instead of tensors.

The answers are those that the fit sampled, on two benchmarks of different lengths; everything learnt from them is
computed again.
"""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import dpo, grpo, ppo
from baselines.shared.policy_gradient import Updates
from baselines.shared.rollouts import sample, sft_policy
from metatuner.errors import UserError
from metatuner.harness.budget import Budget
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import load_policy
from metatuner.harness.query import to_query
from metatuner.harness.rows import Row
from metatuner.lm import generate, render
from tests.toys.baselines import ARMS, PAIR, ArmsLab, arms_lab, like, mixed_rows


@dataclass
class Sampled:
    """An answer as the actor read and wrote it."""

    step: int
    prompt: list[int]
    answer: list[int]
    text: str
    seed: int
    reward: float = 0.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SFT's policy."""
    folder = tmp_path_factory.mktemp("arms")
    arms_lab(folder)
    return folder


@dataclass
class Watched:
    """What a fit asked its actor for."""

    answers: list[Sampled] = field(default_factory=list)
    temperatures: set[float] = field(default_factory=set)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Notes what is sampled. A step asks for the answers of one benchmark after those of the other."""
    told, calls = Watched(), []

    def noted(lm: Any, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
        found = generate(lm, prompts, **options)
        if options.get("temperature"):
            calls.append(1)
            told.temperatures.add(options["temperature"])
            for prompt, completion, seed in zip(prompts, found, options["seeds"], strict=True):
                told.answers.append(Sampled((len(calls) - 1) // 2, list(prompt), completion.ids, completion.text, seed))
        return found

    monkeypatch.setattr("metatuner.lm.generate", noted)
    return told


def rewarded(lab: ArmsLab, answers: Sequence[Sampled]) -> dict[int, list[Sampled]]:
    """The answers of each step with their rewards, by the row whose prompt the actor read."""
    policy = load_policy(lab.prerequisites["sft"], arms_lab(lab.workdir))
    assert isinstance(policy, StaticPolicy)
    rows = {tuple(asked(policy, row)): row for row in lab.train}
    steps: dict[int, list[Sampled]] = defaultdict(list)
    for each in answers:
        (each.reward,) = lab.reward_texts([rows[tuple(each.prompt)]], [each.text])
        steps[each.step].append(each)
    return steps


def asked(policy: StaticPolicy, row: Row) -> list[int]:
    limit = PAIR[row.benchmark].max_new_tokens
    return list(render(policy.actor, policy.prompts[row.benchmark], row.query, reserve=limit).ids)


class ByHand:
    """A policy that is trained as a paper says it, token by token."""

    def __init__(self, folder: Path, rate: float, steps: int, clip: float) -> None:
        policy = load_policy(folder / "sft", arms_lab(folder))
        assert isinstance(policy, StaticPolicy)
        self.lm = policy.actor
        self.weights = [weight for name, weight in self.lm.model.named_parameters() if "lora_" in name]
        for name, weight in self.lm.model.named_parameters():
            weight.requires_grad_("lora_" in name)
        self.start = [weight.detach().clone() for weight in self.weights]
        self.head = torch.zeros(self.lm.model.config.hidden_size, requires_grad=True)
        self.bias = torch.zeros((), requires_grad=True)
        self.groups = [(self.weights, rate)]
        self.steps, self.clip, self.taken, self.clipped = steps, clip, 0, 0
        self.optimizer: Any = None

    def log_probs(self, each: Sampled) -> list[torch.Tensor]:
        read = torch.tensor([each.prompt + each.answer])
        told = self.lm.model(input_ids=read).logits[0].log_softmax(-1)
        return [told[len(each.prompt) - 1 + place, token] for place, token in enumerate(each.answer)]

    def values(self, each: Sampled) -> list[torch.Tensor]:
        """By a linear head on the last hidden states, which get no gradient of it."""
        read = torch.tensor([each.prompt + each.answer])
        states = self.lm.model(input_ids=read, output_hidden_states=True).hidden_states[-1][0].detach()
        first = len(each.prompt) - 1
        return [states[first + place] @ self.head + self.bias for place in range(len(each.answer))]

    @contextmanager
    def as_at_first(self) -> Iterator[None]:
        now = [weight.data for weight in self.weights]
        for weight, before in zip(self.weights, self.start, strict=True):
            weight.data = before
        yield
        for weight, value in zip(self.weights, now, strict=True):
            weight.data = value

    def descend(self, loss: torch.Tensor) -> None:
        """AdamW at a rate that falls in a line, its gradient cut to a norm."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW([{"params": p, "lr": r} for p, r in self.groups], weight_decay=0.0)
        for (_, rate), group in zip(self.groups, self.optimizer.param_groups, strict=True):
            group["lr"] = rate * (1 - self.taken / self.steps)
        self.taken += 1
        parameters = [each for params, _ in self.groups for each in params]
        self.optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((each.grad**2).sum()) for each in parameters if each.grad is not None))
        if norm > self.clip:
            self.clipped += 1
            for each in parameters:
                each.grad *= self.clip / norm
        self.optimizer.step()


def numbers(told: Sequence[torch.Tensor]) -> list[float]:
    return [float(each) for each in told]


def clipped(new: torch.Tensor, old: float, gain: float, clip: float) -> torch.Tensor:
    """What a token adds to the objective: nothing is gained by going on beyond the bound."""
    ratio = (new - old).exp()
    beyond = float(ratio.detach()) > 1 + clip if gain > 0 else float(ratio.detach()) < 1 - clip
    return torch.tensor((1 + clip if gain > 0 else 1 - clip) * gain) if beyond else ratio * gain


def grpo_by_hand(settings: grpo.Settings, steps: dict[int, list[Sampled]], folder: Path) -> ByHand:
    policy = ByHand(folder, settings.learning_rate, settings.steps * settings.updates, settings.gradient_clip)
    for answers in steps.values():
        groups: dict[tuple[int, ...], list[Sampled]] = defaultdict(list)
        for each in answers:
            groups[tuple(each.prompt)].append(each)
        taught: list[tuple[Sampled, float]] = []
        for members in groups.values():
            assert len(members) == settings.group
            rewards = [each.reward for each in members]
            if len(set(rewards)) > 1:
                mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
                taught += [(each, (each.reward - mean) / deviation) for each in members]
        assert 0 < len(taught) < len(answers)  # groups of both kinds
        with torch.no_grad():
            old = [numbers(policy.log_probs(each)) for each, _ in taught]
            with policy.as_at_first():
                reference = [numbers(policy.log_probs(each)) for each, _ in taught]
        for _ in range(settings.updates):
            answers_losses = []
            for (each, gain), before, first in zip(taught, old, reference, strict=True):
                losses = []
                for new, was, kept in zip(policy.log_probs(each), before, first, strict=True):
                    divergence = (kept - new).exp() - (kept - new) - 1
                    losses.append(settings.beta * divergence - clipped(new, was, gain, settings.clip))
                answers_losses.append(sum(losses) / len(losses))
            policy.descend(sum(answers_losses) / len(taught))  # type: ignore[arg-type]
    return policy


def ppo_by_hand(settings: ppo.Settings, steps: dict[int, list[Sampled]], folder: Path) -> tuple[ByHand, list[float]]:
    """With the coefficients of the divergence, step by step."""
    policy = ByHand(folder, settings.learning_rate, settings.steps * settings.epochs, settings.gradient_clip)
    policy.groups.append(([policy.head, policy.bias], settings.value_learning_rate))  # type: ignore[list-item]
    coefficients = [settings.kl_coefficient]
    for answers in steps.values():
        with torch.no_grad():
            old = [numbers(policy.log_probs(each)) for each in answers]
            values = [numbers(policy.values(each)) for each in answers]
            with policy.as_at_first():
                reference = [numbers(policy.log_probs(each)) for each in answers]
        gains = []
        for each, was, kept, value in zip(answers, old, reference, values, strict=True):
            rewards = [-coefficients[-1] * (one - other) for one, other in zip(was, kept, strict=True)]
            rewards[-1] += each.reward
            following = [*value[1:], 0.0]
            deltas = [r + settings.discount * n - v for r, n, v in zip(rewards, following, value, strict=True)]
            decay = settings.discount * settings.gae_lambda
            gains.append([sum(decay ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))])
        returns = [[g + v for g, v in zip(*pair, strict=True)] for pair in zip(gains, values, strict=True)]
        flat = [gain for each in gains for gain in each]
        mean, deviation = statistics.mean(flat), math.sqrt(statistics.pvariance(flat) + 1e-8)
        white = [[(gain - mean) / deviation for gain in each] for each in gains]
        for _ in range(settings.epochs):
            loss: Any = 0.0
            for index, each in enumerate(answers):
                told = zip(policy.log_probs(each), policy.values(each), strict=True)
                for place, (new, value) in enumerate(told):
                    loss = loss - clipped(new, old[index][place], white[index][place], settings.clip)
                    before, wanted = values[index][place], returns[index][place]
                    near = before + (value - before).clamp(-settings.clip, settings.clip)
                    error = torch.maximum((value - wanted) ** 2, (near - wanted) ** 2)
                    loss = loss + settings.value_weight * 0.5 * error
            policy.descend(loss / len(flat))
        moved = statistics.mean(sum(was) - sum(kept) for was, kept in zip(old, reference, strict=True))
        error = min(0.2, max(-0.2, moved / settings.kl_target - 1))
        coefficients.append(coefficients[-1] * (1 + error * len(answers) / settings.kl_horizon))
    return policy, coefficients


def compare(policy: StaticPolicy, other: ByHand) -> None:
    """Both LoRAs have moved, and to the same place."""
    trained = [weight.detach() for name, weight in policy.actor.model.named_parameters() if "lora_" in name]
    for weight, expected, start in zip(trained, other.weights, other.start, strict=True):
        torch.testing.assert_close(weight, expected.detach(), rtol=2e-3, atol=2e-4)
        assert (weight - start).abs().max() > 1e-2


def test_grpo_learns_what_a_loop_over_answers_and_tokens_learns(watched: Watched, home: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = arms_lab(home, events)
    settings = grpo.Settings(
        steps=2, queries=6, group=3, updates=3, clip=0.05, beta=0.2, learning_rate=2e-2, gradient_clip=0.5
    )
    policy = grpo.GRPO(settings).fit(lab)
    steps = rewarded(lab, watched.answers)
    assert len({len(each.answer) for each in watched.answers}) > 2
    told = [event["reward"] for event in events if event["event"] == "step"]
    assert told == pytest.approx([statistics.mean(each.reward for each in steps[step]) for step in (0, 1)], abs=1e-4)
    other = grpo_by_hand(settings, steps, home)
    assert other.clipped
    compare(policy, other)


def test_ppo_learns_what_a_loop_over_answers_and_tokens_learns(watched: Watched, home: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = arms_lab(home, events)
    settings = ppo.Settings(
        steps=3,
        batch=8,
        epochs=3,
        minibatch=8,
        clip=0.05,
        discount=0.9,
        gae_lambda=0.8,
        value_weight=0.5,
        kl_coefficient=0.4,
        kl_target=2.2,
        kl_horizon=20.0,
        learning_rate=2e-2,
        value_learning_rate=5e-2,
        gradient_clip=0.5,
    )
    policy = ppo.PPO(settings).fit(lab)
    steps = rewarded(lab, watched.answers)
    assert len({len(each.answer) for each in watched.answers}) > 2
    other, coefficients = ppo_by_hand(settings, steps, home)
    told = [event["kl_coefficient"] for event in events if event["event"] == "step"]
    assert told == pytest.approx(coefficients[:3], rel=1e-3)
    changes = [after / before for before, after in itertools.pairwise(coefficients)]
    bound = 0.2 * 8 / settings.kl_horizon
    assert any(abs(change - 1) < 0.99 * bound for change in changes)  # not only by the bounded step
    assert other.clipped
    compare(policy, other)


def test_the_rate_of_ppo_falls_in_a_line_over_the_minibatches_of_all_steps(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = Updates.step

    def watched_step(self: Updates, parts: Any) -> float:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, parts)

    monkeypatch.setattr(Updates, "step", watched_step)
    ppo.PPO(ppo.Settings(steps=2, batch=6, minibatch=4, epochs=2, learning_rate=1e-3)).fit(arms_lab(home))
    assert rates == pytest.approx([1e-3 * (1 - done / 8) for done in range(8)])


# ---- what is sampled -----------------------------------------------------------------------------------------------


def test_each_answer_is_that_of_its_row_asked_alone_with_its_own_seed(home: Path) -> None:
    lab = arms_lab(home)
    policy = sft_policy(lab)
    rows = [row for row in mixed_rows(6) for _ in range(3)]
    seeds = [7 * index + 5 for index in range(len(rows))]
    told = sample(lab, policy, rows, seeds=seeds, temperature=1.5)
    assert told.rows == rows
    assert len(told) == len(rows)
    other = arms_lab(home)
    tuned = sft_policy(other)
    for index, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        prompt = tuned.prompts[row.benchmark]
        (alone,) = other.answer([to_query(row)], prompt, seeds=[seed], temperature=1.5, actor=tuned.actor)
        assert told.texts[index] == alone.completion
        assert told.prompts[index] == asked(tuned, row)
        assert len(told.completions[index]) == alone.completion_tokens
        assert told.rewards[index] == other.reward_texts([row], [alone.completion])[0]
    assert set(told.rewards) == {0.0, 1.0}
    stopped = [len(ids) for ids, text in zip(told.completions, told.texts, strict=True) if not text]
    assert {1, 2} <= set(stopped)  # by the end of turn, and by the stop of one benchmark


LEARNERS: dict[str, Method] = {
    "dpo": dpo.DPO(dpo.Settings(rollouts=4, pairs=2, epochs=3, rollout_temperature=1.25)),
    "ppo": ppo.PPO(ppo.Settings(steps=2, batch=6, minibatch=4, epochs=2)),
    "grpo": grpo.GRPO(grpo.Settings(steps=2, queries=5, group=3, updates=2)),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_answer_has_a_seed_of_its_own_that_the_labs_seed_decides(name: str, watched: Watched, home: Path) -> None:
    def sampled(seed: int) -> list[Sampled]:
        watched.answers.clear()
        LEARNERS[name].fit(arms_lab(home, seed=seed))
        return list(watched.answers)

    first, other = sampled(0), sampled(1)
    for told in (first, other):
        assert len({each.seed for each in told}) == len(told) > 10
    assert not {each.seed for each in first} & {each.seed for each in other}
    assert watched.temperatures == {1.25 if name == "dpo" else 1.0}
    if name != "dpo":  # which asks all rows
        assert [each.prompt for each in first] != [each.prompt for each in other]
        steps = [[each.prompt for each in first if each.step == step] for step in (0, 1)]
        assert steps[0] != steps[1]


@pytest.mark.parametrize(
    ("name", "what"),
    # DPO knows its answers' lengths before it trains, and reserves nothing for training.
    [
        (name, what)
        for name in LEARNERS
        for what in ("lm_calls", "generated_tokens", "trained_tokens")
        if (name, what) != ("dpo", "trained_tokens")
    ],
)
def test_a_step_is_taken_if_the_budget_covers_it_at_its_longest_and_else_costs_nothing(
    name: str, what: str, home: Path
) -> None:
    rows = mixed_rows(5)
    prompts = sum(len(asked(sft_policy(arms_lab(home)), row)) for row in rows)
    written = sum(PAIR[row.benchmark].max_new_tokens for row in rows)
    # Sampled and trained answers to a row; with the two log-probabilities of each, or the one of DPO's reference,
    # which reads each once.
    answers, trained = {"dpo": (4, 2 * 3 * 2), "ppo": (1, 2), "grpo": (3, 2 * 3)}[name]
    scored = {"dpo": 2 * 2, "ppo": 2, "grpo": 2 * 3}[name]
    needed = {
        "lm_calls": 5 * (answers + scored),
        "generated_tokens": answers * written,
        "trained_tokens": trained * (prompts + written),
    }[what]

    def left(limit: int) -> tuple[float, list[str]]:
        events: list[dict[str, Any]] = []
        lab = arms_lab(home, events, train=rows, budget=Budget({what: limit}, "tight"))
        lab.budget.attach(lab.actor)
        refuses = name == "dpo" and limit < needed
        with pytest.raises(UserError, match="does not cover") if refuses else nullcontext():
            LEARNERS[name].fit(lab)
        assert lab.budget.left(what) >= 0
        return getattr(lab.budget.used, what), [event["event"] for event in events]

    used, told = left(needed)
    assert used > 0
    assert "step" in told
    used, told = left(needed - 1)
    assert used == 0
    assert "step" not in told


def test_each_epoch_of_ppo_reads_every_answer_once_in_an_order_of_its_own(home: Path) -> None:
    lab, read = arms_lab(home, train=mixed_rows(8)), []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            read.append([tuple(ids) for ids in kwargs["input_ids"].tolist()])

    lab.actor.decoder.register_forward_pre_hook(note, with_kwargs=True)
    ppo.PPO(ppo.Settings(steps=1, batch=8, minibatch=3, epochs=3, learning_rate=1e-6)).fit(lab)
    assert [len(each) for each in read] == [3, 3, 2] * 3

    def without_padding(ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(token for token in ids if token != lab.actor.filler)

    epochs = [[without_padding(ids) for part in read[start : start + 3] for ids in part] for start in (0, 3, 6)]
    assert len({tuple(sorted(each)) for each in epochs}) == 1
    assert len({tuple(each) for each in epochs}) == 3


# ---- DPO's pairs ---------------------------------------------------------------------------------------------------


class Graded(ArmsLab):
    """Rewards of many values: the share of the row's word among four."""

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [text.split().count(ARMS[0]) / 4 for text in completions]


def test_pairs_are_the_best_with_the_worst_inwards_and_equal_answers_count_once(watched: Watched, home: Path) -> None:
    lab = like(arms_lab(home), Graded)
    policy = sft_policy(lab)
    pairs = dpo.find_pairs(lab, policy, dpo.Settings(rollouts=12, pairs=2, rollout_temperature=2.0))
    answers: dict[tuple[int, ...], dict[str, list[int]]] = defaultdict(dict)
    for each in watched.answers:
        answers[tuple(each.prompt)].setdefault(each.text, each.answer)
    expected = []
    for prompt, texts in answers.items():
        rewards = sorted(text.split().count(ARMS[0]) for text in texts)
        inwards = zip(rewards[::-1], rewards, strict=True)
        expected += [(prompt, best, worst) for best, worst in inwards if best > worst][:2]
    texts_of = {(prompt, tuple(ids)): text for prompt, texts in answers.items() for text, ids in texts.items()}

    def count(prompt: Sequence[int], ids: Sequence[int]) -> int:
        return texts_of[tuple(prompt), tuple(ids)].split().count(ARMS[0])

    found = [
        (tuple(p["prompt_ids"]), count(p["prompt_ids"], p["chosen_ids"]), count(p["prompt_ids"], p["rejected_ids"]))
        for p in pairs
    ]
    assert sorted(found) == sorted(expected)
    assert len({prompt for prompt, _, _ in found}) < len(found)  # some rows have two
    assert [prompt for prompt, _, _ in found] != sorted((p for p, _, _ in found), key=list(answers).index)


def test_the_order_of_pairs_and_of_batches_is_the_seeds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(lm: Any, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
        return generate(lm, prompts, **{**options, "seeds": list(range(len(prompts)))})

    monkeypatch.setattr("metatuner.lm.generate", always)
    settings = dpo.Settings(rollouts=4, learning_rate=1e-2, batch_size=2)

    def pairs(seed: int) -> list[dict[str, list[int]]]:
        lab = arms_lab(home, seed=seed)
        return dpo.find_pairs(lab, sft_policy(lab), settings)

    first, other = pairs(0), pairs(1)
    assert sorted(map(str, first)) == sorted(map(str, other))
    assert first != other

    def trained(seed: int) -> torch.Tensor:
        lab = arms_lab(home, seed=seed)
        policy = sft_policy(lab)
        dpo.train(lab, policy, first, settings)
        return torch.cat([p.flatten() for name, p in policy.actor.model.named_parameters() if "lora_" in name])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))
