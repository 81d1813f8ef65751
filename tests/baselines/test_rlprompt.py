"""RLPrompt: its loss against a loop, its policy against plain forwards, and a search with a known optimum."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from baselines.rlprompt import RLPrompt, Settings
from baselines.shared.rlprompt_policy import PromptPolicy, path_consistency_loss, z_scores
from metatuner.errors import UserError
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.policy import load_policy
from metatuner.harness.query import Query, Response, to_query
from metatuner.lm import LM
from tests.toys.baselines import NEW_TOKENS, PAIR, lab_settings, like, sums, toy_lab
from tests.toys.baselines import tiny_lm as nano_like_lm
from tests.toys.lm import ENDS, SPECIAL, tiny_lm

GOOD = "w9"
TOY = Settings(prompt_tokens=3, steps=80, samples=16, scored_rows=6, hidden_size=64, learning_rate=1e-2, top_k=64)


class ScriptedLab(Lab):
    """The actor solves a third of the rows for each `GOOD` in its prompt: three of them solve all, and nothing else."""

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        gold = {row.id: row.gold[0] for row in (*self.train, *self.dev)}
        return [
            Response(
                prompt,
                gold[query.id] if int(query.id.split("-")[1]) % 3 < prompt.split().count(GOOD) else "no idea",
                1,
                2,
                False,
            )
            for query, prompt in zip(queries, prompts, strict=True)
        ]


def scripted(workdir: Path, events: list[dict[str, Any]], *, seed: int = 0, dev: int = 12, **limits: int) -> Lab:
    given = lab_settings(workdir, sums(30), sums(dev, seed=1), events)
    return ScriptedLab(actor=None, generator=tiny_lm(), seed=seed, budget=Budget(limits, "toy"), **given)  # type: ignore[arg-type]


def searched(
    workdir: Path, settings: Settings = TOY, *, seed: int = 0, dev: int = 12, **limits: int
) -> tuple[str, list[dict[str, Any]], Lab]:
    events: list[dict[str, Any]] = []
    lab = scripted(workdir, events, seed=seed, dev=dev, **limits)
    lab.budget.attach(lab.need_generator())
    policy = RLPrompt(settings).fit(lab)
    return policy.prompts["gsm8k"], events, lab


def policy(lm: LM | None = None, **changes: Any) -> PromptPolicy:
    settings: dict[str, Any] = {
        "prompt_tokens": 4,
        "hidden_size": 16,
        "top_k": 64,
        "fluent_top_k": None,
        "logit_bias": 0.0,
        "learning_rate": 1e-2,
        "target_rate": 0.1,
        "gradient_clip": 5.0,
        "seed": 0,
    }
    return PromptPolicy(lm or tiny_lm(), **settings | changes)


def shaken(written: PromptPolicy) -> PromptPolicy:
    """The same with an MLP far from its start, where all tokens are about equally likely."""
    with torch.no_grad():
        for parameter in written.online.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return written


def test_loss_is_the_two_path_consistencies_of_a_loop_over_prompts_and_tokens() -> None:
    stream = torch.Generator().manual_seed(0)
    logits, target = (torch.randn(3, 4, 7, generator=stream, dtype=torch.float64) for _ in range(2))
    actions = torch.randint(7, (3, 4), generator=stream)
    rewards = torch.randn(3, generator=stream, dtype=torch.float64)
    expected = 0.0
    for row in range(3):
        value = [math.log(sum(math.exp(q) for q in place)) for place in target[row].tolist()]
        advantage = [
            place[action] - math.log(sum(math.exp(q) for q in place))
            for place, action in zip(logits[row].tolist(), actions[row].tolist(), strict=True)
        ]
        reward = rewards[row].item()
        for t in range(4):
            following = reward if t == 3 else value[t + 1]
            single = (advantage[t] - (following - value[t])) ** 2
            multiple = (sum(advantage[t:]) - (reward - value[t])) ** 2
            expected += (single + multiple) / 2 / 3
    assert path_consistency_loss(logits, target, actions, rewards).item() == pytest.approx(expected, rel=1e-12)


def test_loss_is_zero_where_the_policy_is_the_soft_optimum() -> None:
    # One token of two: Q is the reward, up to a constant that V takes away; with a reward for each token the policy
    # exp(reward) / Z and V = ln Z satisfy both consistencies.
    rewards = torch.tensor([0.3, 1.2], dtype=torch.float64)
    logits = rewards.repeat(2, 1)[:, None]  # [prompts, 1, 2]
    loss = path_consistency_loss(logits, logits, torch.tensor([[0], [1]]), rewards)
    assert loss.item() == pytest.approx(0, abs=1e-20)
    assert path_consistency_loss(logits, logits, torch.tensor([[1], [0]]), rewards).item() > 0.1


def test_z_scores() -> None:
    rewards = [0.0, 0.25, 1.0, 0.5]
    expected = [(reward - fmean(rewards)) / (pstdev(rewards) + 1e-4) for reward in rewards]
    assert z_scores(rewards) == pytest.approx(expected)
    assert z_scores([0.5, 0.5]) == [0.0, 0.0]


def test_states_are_those_of_a_plain_forward_over_the_whole_prompt() -> None:
    written = shaken(policy())
    ids, states = written.sample(5)
    begin = torch.full((5, 1), written.lm.end_of_turn)  # the toy has no begin-of-text token of its own
    with torch.no_grad():
        hidden = written.lm.decoder(input_ids=torch.cat([begin, ids[:, :-1]], 1), use_cache=False).last_hidden_state
    torch.testing.assert_close(states, hidden)
    logits = written.logits(written.online, hidden)
    first, activation, second = written.online
    own = torch.nn.functional.linear(second(activation(first(hidden))), written.lm.head.weight)
    open_to_choice = ~written.barred
    torch.testing.assert_close(logits[..., open_to_choice], own[..., open_to_choice])


def test_greedy_takes_the_likeliest_token_at_each_place() -> None:
    written = shaken(policy())
    ids: list[int] = []
    for _ in range(written.prompt_tokens):
        with torch.no_grad():
            read = torch.tensor([[written.lm.end_of_turn, *ids]])
            hidden = written.lm.decoder(input_ids=read, use_cache=False).last_hidden_state[0, -1]
            ids.append(int(written.logits(written.online, hidden).argmax()))
    assert written.greedy() == written.lm.decode(ids)


def test_samples_come_from_the_likeliest_tokens_only() -> None:
    written = shaken(policy(top_k=3, prompt_tokens=1))
    ids, states = written.sample(200)
    logits = written.logits(written.online, states[0, 0])
    assert set(ids.flatten().tolist()) == set(logits.topk(3).indices.tolist())


def test_fluent_tokens_are_those_the_language_model_finds_likeliest() -> None:
    written = shaken(policy(fluent_top_k=5))
    _, states = written.sample(2)
    own = written.lm.head(states).masked_fill(written.barred, -torch.inf)
    logits = written.logits(written.online, states)
    for row in range(2):
        for place in range(written.prompt_tokens):
            finite = logits[row, place].isfinite().nonzero().flatten().tolist()
            assert sorted(finite) == sorted(own[row, place].topk(5).indices.tolist())


def test_tokens_without_a_printable_text_are_never_chosen() -> None:
    toy = policy()
    names = toy.lm.tokenizer.convert_ids_to_tokens(toy.barred.nonzero().flatten().tolist())
    assert set(names) == {*SPECIAL, "\n", *toy.lm.tokenizer.convert_ids_to_tokens(ENDS)}
    bytes_and_words = policy(nano_like_lm())
    allowed = (~bytes_and_words.barred).nonzero().flatten().tolist()
    texts = [bytes_and_words.lm.decode([token]) for token in allowed]
    assert all(text.isprintable() and text and "\ufffd" not in text for text in texts)
    assert "answer" in {text.strip() for text in texts}


def test_target_network_follows_by_its_rate() -> None:
    written = shaken(policy(target_rate=0.1))
    start = [parameter.clone() for parameter in written.target.parameters()]
    ids, states = written.sample(4)
    live = [parameter.clone() for parameter in written.online.parameters()]
    written.learn(ids, states, [1.0, -1.0, 0.5, 0.0])
    for before, followed, now in zip(start, live, written.target.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * followed)
    assert all(parameter.grad is None for parameter in written.target.parameters())
    assert not any(parameter.requires_grad for parameter in written.lm.model.parameters())


def test_learns_the_prompt_that_solves_every_row(tmp_path: Path) -> None:
    prompt, events, _ = searched(tmp_path)
    assert prompt.split() == [GOOD] * 3
    rewards = [event["reward"] for event in events if event["event"] == "step"]
    assert fmean(rewards[:10]) < 0.15
    assert fmean(rewards[-10:]) > 0.5
    assert events[-1] == {"event": "choice", "prompt": prompt, "dev": 1.0}


def test_learns_at_a_rate_and_a_number_of_steps_that_searches_chose(tmp_path: Path) -> None:
    chosen = replace(TOY, learning_rate=1e-4, hidden_size=512, steps=60, samples=8)
    prompt, _, _ = searched(tmp_path, chosen)
    assert prompt.split() == [GOOD] * 3


def test_dev_decides_between_greedy_and_sampled_prompts(tmp_path: Path) -> None:
    prompt, events, _ = searched(tmp_path, replace(TOY, steps=25))
    judged = {event["prompt"]: event["reward"] for event in events if event["event"] == "dev"}
    assert judged[prompt] == max(judged.values())
    assert [event["step"] for event in events if event["event"] == "dev"][-1] == 25


def test_the_best_sampled_prompt_since_the_last_evaluation_is_judged(tmp_path: Path) -> None:
    rewards: list[dict[str, float]] = []

    class Noted(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            found = super().answer(queries, prompts, **options)
            if queries[0].id.startswith("0-"):  # train rows
                told = dict.fromkeys(prompts, 0.0)
                for row, each in zip(self.train_rows(queries), found, strict=True):
                    told[each.prompt] += self.reward([row], [each])[0]
                rewards.append(told)
            return found

        def train_rows(self, queries: Sequence[Query]) -> list[Any]:
            rows = {row.id: row for row in self.train}
            return [rows[query.id] for query in queries]

    events: list[dict[str, Any]] = []
    lab = like(scripted(tmp_path, events), Noted, log_line=lambda line: events.append(json.loads(line)))
    RLPrompt(replace(TOY, steps=20, eval_steps=5)).fit(lab)
    assert len(rewards) == 20
    judged: set[str] = set()
    for end in (5, 10, 15, 20):
        judged |= {event["prompt"] for event in events if event["event"] == "dev" and event["step"] == end}
        since: dict[str, float] = {}
        for told in rewards[end - 5 : end]:
            since.update(told)
        assert max(since, key=since.__getitem__) in judged, end
    assert len({frozenset(told) for told in rewards}) == 20


def test_each_step_scores_on_rows_of_its_own(tmp_path: Path) -> None:
    asked: list[frozenset[str]] = []

    class Noted(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            asked.append(frozenset(query.id for query in queries))
            return super().answer(queries, prompts, **options)

    lab = like(scripted(tmp_path, []), Noted)
    RLPrompt(replace(TOY, steps=8, eval_steps=10)).fit(lab)
    trained = [each for each in asked if all(name.startswith("0-") for name in each)]
    assert len(trained) == len(set(trained)) == 8
    assert all(len(each) == 6 for each in trained)
    assert {each for each in asked if each not in trained} == {frozenset(row.id for row in lab.dev)}


@pytest.mark.parametrize(
    ("what", "needed"),
    [("lm_calls", 16 * 6 + 2 * 12 + 17), ("generated_tokens", (16 * 6 + 2 * 12) * NEW_TOKENS + 17 * 3)],
)
def test_a_step_leaves_the_budget_for_the_evaluation_after_it(what: str, needed: int, tmp_path: Path) -> None:
    # 16 prompts on 6 rows; then the greedy and the best prompt on 12 dev rows, after the greedy one is written.
    for limit, event in ((needed, "step"), (needed - 1, "budget")):
        _, events, lab = searched(tmp_path, replace(TOY, steps=1), **{what: limit})
        assert events[0]["event"] == event
        assert lab.budget.left(what) >= 0


def test_trained_on_two_benchmarks_each_keeps_its_own_initial_prompt(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    lab.benchmarks, lab.trained_on = PAIR, ("gsm8k", "math")
    lab.train = [replace(row, benchmark="math") if index % 2 else row for index, row in enumerate(lab.train)]
    policy = RLPrompt(replace(TOY, steps=2, keep_initial=True)).fit(lab)
    tokens = policy.prompts["gsm8k"].removeprefix(lab.initial_prompt("gsm8k"))
    assert policy.prompts == {name: lab.initial_prompt(name) + tokens for name in ("gsm8k", "math")}
    bare = RLPrompt(replace(TOY, steps=2)).fit(lab)
    assert bare.prompts["gsm8k"] == bare.prompts["math"]


def test_a_bias_is_added_to_the_logits_of_all_tokens() -> None:
    plain, shifted = (shaken(policy(logit_bias=bias)) for bias in (0.0, -10.0))
    _, states = plain.sample(2)
    one, other = (each.logits(each.online, states) for each in (plain, shifted))
    open_to_choice = ~plain.barred
    torch.testing.assert_close(other[..., open_to_choice], one[..., open_to_choice] - 10.0)
    assert (other[..., plain.barred] == -torch.inf).all()


def test_initial_prompt_may_stay_in_front(tmp_path: Path) -> None:
    bare, _, _ = searched(tmp_path, replace(TOY, steps=2))
    kept, _, lab = searched(tmp_path, replace(TOY, steps=2, keep_initial=True))
    assert kept == f"{lab.initial_prompt('gsm8k')} {bare}"


def test_same_seed_same_search(tmp_path: Path) -> None:
    short = replace(TOY, steps=12)
    first, again, other = (searched(tmp_path, short, seed=seed)[:2] for seed in (0, 0, 1))
    assert first == again
    assert first[1] != other[1]


def test_stops_before_a_step_that_the_budget_does_not_cover(tmp_path: Path) -> None:
    # A step: 16 prompts, each at most asked on 6 rows; then two evaluations on 12 dev rows and a greedy prompt.
    _, events, lab = searched(tmp_path, lm_calls=3 * (16 * 6 + 16) + 2 * 12 + 1)
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert len(steps) >= 3
    assert {"event": "budget", "steps": len(steps)} in events
    assert lab.budget.left("lm_calls") >= 0
    assert lab.budget.used.trained_tokens == len(steps) * 16 * 3


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    lab = toy_lab(tmp_path, sums(6), sums(4, seed=1), actor=nano_like_lm(), generator=nano_like_lm(seed=1))
    settings = Settings(steps=2, samples=3, scored_rows=2, hidden_size=8, eval_steps=1)
    fitted = RLPrompt(settings).fit(lab)
    queries = [to_query(row) for row in lab.dev]
    fitted.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy", lab).respond(queries) == fitted.respond(queries)


def test_a_loss_that_is_not_finite_stops_the_fit_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptPolicy, "learn", lambda *arguments: math.nan)
    with pytest.raises(UserError, match="lower learning_rate"):
        searched(tmp_path)


def test_without_a_generator_it_is_skipped_with_a_reason(tmp_path: Path) -> None:
    assert "generator" in str(RLPrompt().skip(toy_lab(tmp_path, [])))
