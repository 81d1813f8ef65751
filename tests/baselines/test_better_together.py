"""BetterTogether: a search with a known optimum over demonstrations and weights, and DSPy's steps on our ground."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
import torch
from dspy.clients.provider import TrainingJob
from safetensors.torch import load_file

from baselines.better_together import BetterTogether, Settings
from baselines.shared.adapter_training import new_adapter
from baselines.shared.better_together_program import TRAINED, InProcess, TurnAdapter, to_turn
from baselines.shared.better_together_training import train
from baselines.shared.dspy_program import BASE, AnswerBook, Asked, DemonstratedActor
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import load_policy
from metatuner.harness.query import Demo, Query, Response, to_query
from metatuner.lm import completion_ids, completion_loss, generate, render
from tests.toys.baselines import NEW_TOKENS, PAIR, lab_settings, like, mixed_rows, sums, tiny_lm, toy_lab

TOY = Settings(candidates=10, shots=3, rank=2, alpha=4, epochs=1)


def group(row_id: str) -> int:
    return int(row_id.split("-")[1]) % 4


class ScriptedLab(Lab):
    """A quarter of the rows is solved whatever happens; two more by a demonstration of the second group and one of the
    third; the last only by a trained actor. So one kind of demonstrations and training together score 1, and nothing
    else does."""

    trains = True

    def answer(
        self,
        queries: Sequence[Query],
        prompts: str | Sequence[str],
        *,
        demos: Sequence[Sequence[Demo]] | None = None,
        **options: Any,
    ) -> list[Response]:
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        rows = {row.query: row for row in (*self.train, *self.dev)}
        trained = options["actor"] is not self.actor and self.trains
        found = []
        for query, shots in zip(queries, demos or [], strict=True):
            assert query.text not in [asked for asked, _ in shots]
            solved = {0} | {group(rows[asked].id) for asked, _ in shots} & {1, 2} | ({3} if trained else set())
            text = rows[query.text].target if group(query.id) in solved else "no idea"
            found.append(Response("", text, 1, 2, False))
        return found


def distinct(count: int, seed: int) -> list[Any]:
    """Rows of different queries."""
    return list({row.query: row for row in sums(3 * count, seed)}.values())[:count]


def scripted(workdir: Path, events: list[dict[str, Any]], *, seed: int = 0, **limits: int) -> ScriptedLab:
    settings = lab_settings(workdir, distinct(24, 0), distinct(16, 1), events)
    return ScriptedLab(actor=tiny_lm(), generator=None, seed=seed, budget=Budget(limits, "toy"), **settings)


def program(book: AnswerBook, actor: str = BASE, demos: Sequence[dict[str, str]] = ()) -> DemonstratedActor:
    made = DemonstratedActor(book, dspy.LM(actor, cache=False))
    made.predict.demos = list(demos)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_demonstrations_and_the_training_that_together_solve_every_row(tmp_path: Path, seed: int) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events, seed=seed)
    policy = BetterTogether(TOY).fit(lab)
    states = {event["strategy"]: event["dev"] for event in events if event["event"] == "state"}
    assert states.keys() == {"", "p", "p -> w", "p -> w -> p"}
    assert states[""] == 0.25
    assert states[""] < states["p"] < states["p -> w"] <= states["p -> w -> p"] == 1.0
    assert policy.actor is not None
    rows = {row.query: row.id for row in lab.train}
    assert {1, 2} <= {group(rows[asked]) for asked, _ in policy.demos["gsm8k"]}
    answers = policy.respond([to_query(row) for row in lab.dev])
    assert lab.reward(lab.dev, answers) == [1.0] * 16


class PartlyRightLab(ScriptedLab):
    """A wrong answer is worth something, too; all demonstrations are written down."""

    shown: list[Sequence[Demo]]

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
        self.shown += options.get("demos") or []
        return super().answer(queries, prompts, **options)

    def reward_texts(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [max(0.5, score) for score in super().reward_texts(rows, completions)]


def test_demonstrations_are_right_answers_alone_and_no_more_than_the_shots(tmp_path: Path) -> None:
    lab = like(scripted(tmp_path, []), PartlyRightLab)
    lab.shown = []
    BetterTogether(TOY).fit(lab)
    right = {row.query: row.target for row in lab.train}
    assert {len(shots) for shots in lab.shown} >= {0, TOY.shots}
    assert max(len(shots) for shots in lab.shown) == TOY.shots
    assert [answer for shots in lab.shown for asked, answer in shots if answer != right[asked]] == []


def test_trains_on_right_answers_only_and_on_each_once(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events)
    BetterTogether(TOY).fit(lab)
    (finetune,) = [event for event in events if event["event"] == "finetune"]
    after_p = next(event["dev"] for event in events if event["event"] == "state" and event["strategy"] == "p")
    solvable = {0.25: {0}, 0.75: {0, 1, 2}}[after_p]
    shown = TOY.shots  # rows that are shown are asked without themselves, so their group may be missing then
    right = sum(group(row.id) in solvable for row in lab.train)
    assert right - shown <= finetune["answers"] <= right
    assert finetune["dropped"] == 0


def test_without_the_step_w_the_last_group_stays_unsolved(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events)
    lab.trains = False
    policy = BetterTogether(TOY).fit(lab)
    assert max(event["dev"] for event in events if event["event"] == "state") == 0.75
    # Training made nothing better, so the state before it is kept, and the actor is as it was.
    assert policy.actor is None
    lm = tiny_lm()
    assert {name: value.shape for name, value in lab.actor.model.state_dict().items()} == {
        name: value.shape for name, value in lm.model.state_dict().items()
    }
    assert all(torch.equal(lab.actor.model.state_dict()[name], value) for name, value in lm.model.state_dict().items())


def test_same_seed_same_artifact_and_another_seed_another(tmp_path: Path) -> None:
    def artifact(seed: int, name: str) -> tuple[bytes, bytes, list[dict[str, Any]]]:
        events: list[dict[str, Any]] = []
        BetterTogether(TOY).fit(scripted(tmp_path, events, seed=seed)).save(tmp_path / name)
        folder = tmp_path / name
        weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        return weights, (folder / "manifest.json").read_bytes(), events

    first, again, other = artifact(0, "a"), artifact(0, "b"), artifact(1, "c")
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    rows = distinct(6, 0)
    lab = toy_lab(tmp_path, rows, actor=tiny_lm())
    settings = Settings(rank=2, alpha=4, epochs=30, learning_rate=1e-2)
    lm = new_adapter(lab, settings)
    demos = [(row.query, row.target) for row in rows[:2]]
    turns = [(render(lm, lab.initial_prompt(row), row.query, demos).ids, completion_ids(lm, "4 5")) for row in rows]
    train(lab, lm, turns, settings)
    prompts = {"gsm8k": lab.initial_prompt("gsm8k")}
    policy = StaticPolicy(lab, prompts, {"gsm8k": demos}, lm)
    queries = [to_query(row) for row in rows]
    answers = policy.respond(queries)
    policy.save(tmp_path / "policy")
    fresh = toy_lab(tmp_path, rows, actor=tiny_lm())
    loaded = load_policy(tmp_path / "policy", fresh)
    assert isinstance(loaded, StaticPolicy)
    assert loaded.actor is not None
    assert loaded.respond(queries) == answers
    plain = fresh.answer(queries, prompts["gsm8k"], demos=[demos] * 6, actor=tiny_lm())
    assert [each.completion for each in plain] != [each.completion for each in answers]
    assert all(path.suffix in (".json", ".safetensors", ".md") for path in (tmp_path / "policy").rglob("*.*"))
    assert load_file(tmp_path / "policy" / "adapter" / "adapter_model.safetensors")


def test_what_is_trained_is_what_the_actor_reads_with_cuts_and_without_the_rows_own_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = distinct(5, 0)
    longest = max(len(tiny_lm().encode(row.query)) for row in rows)
    # A window in which two demonstrations do not always fit.
    lab = toy_lab(tmp_path, rows, actor=tiny_lm(window=NEW_TOKENS + 4 * longest))
    demos = [{"query": row.query, "answer": row.target} for row in rows[:2]]
    read: list[list[int]] = []

    def recorded(lm: Any, prompts: Any, **options: Any) -> Any:
        read.extend(list(ids) for ids in prompts)
        return generate(lm, prompts, **options)

    monkeypatch.setattr("metatuner.lm.generate", recorded)
    book, adapter = AnswerBook(lab), TurnAdapter(lab)
    signature = dspy.Signature("query -> answer")
    trained = []
    for row in rows:
        book.answer(program(book, demos=demos), ("gsm8k", row.id))
        inputs = {"query": Asked.of(row)}
        turn = to_turn(lab, adapter.format_finetune_data(signature, demos, inputs, {"answer": row.target}))
        assert turn is not None
        assert turn[1] == completion_ids(lab.actor, row.target)
        trained.append(turn[0])
    assert sorted(trained) == sorted(read)
    whole = [render(tiny_lm(), lab.initial_prompt(row), row.query, []).ids for row in rows]
    assert all(len(ids) > len(plain) for ids, plain in zip(trained, whole, strict=True))


def test_trained_on_several_benchmarks_each_query_has_its_own_prompt(tmp_path: Path) -> None:
    rows = [*distinct(4, 0), *(replace(row, benchmark="math") for row in distinct(4, 1))]
    benchmarks = {name: get_benchmark(name).with_overrides(max_new_tokens=NEW_TOKENS) for name in ("gsm8k", "math")}
    lab = toy_lab(tmp_path, rows, actor=tiny_lm(), benchmarks=benchmarks, trained_on=("gsm8k", "math"))
    signature, told = dspy.Signature("query -> answer"), {}
    for row in (rows[0], rows[-1]):
        inputs = {"query": Asked.of(row)}
        data = TurnAdapter(lab).format_finetune_data(signature, [], inputs, {"answer": "5"})
        told[row.benchmark] = data["messages"][0]["content"]
    policy = BetterTogether(Settings(candidates=1, shots=1)).fit(lab)
    assert policy.actor is None
    assert told == policy.prompts == {name: each.initial_prompt for name, each in benchmarks.items()}
    assert told["gsm8k"] != told["math"]
    assert policy.demos["gsm8k"] == policy.demos["math"]


def test_a_policy_asks_each_benchmark_under_its_own_prompt_and_demonstrations(tmp_path: Path) -> None:
    rows = mixed_rows(6)
    lab = toy_lab(tmp_path, rows, actor=tiny_lm(), benchmarks=PAIR, trained_on=("gsm8k", "math"))
    lm = new_adapter(lab, Settings(rank=2, alpha=4))
    prompts = {name: each.initial_prompt for name, each in PAIR.items()}
    demos = {"gsm8k": [(rows[0].query, "5")], "math": [(rows[1].query, "7"), (rows[2].query, "9")]}
    policy = StaticPolicy(lab, prompts, demos, lm)
    told = policy.respond([to_query(row) for row in rows])
    for row, response in zip(rows, told, strict=True):
        (alone,) = lab.answer([to_query(row)], prompts[row.benchmark], demos=[demos[row.benchmark]], actor=lm)
        assert response == alone
    assert len({each.prompt for each in told}) == 2


def test_an_answer_that_the_window_does_not_hold_is_no_turn(tmp_path: Path) -> None:
    row = distinct(1, 0)[0]
    data = {
        "messages": [{"role": "system", "content": "add"}, {"role": "user", "content": row.query}],
        "benchmark": "gsm8k",
    }
    wide = tiny_lm()
    answer = "4 5 6 " * 10
    whole = len(render(wide, "add", row.query).ids) + len(completion_ids(wide, answer))
    data["messages"].append({"role": "assistant", "content": answer})  # type: ignore[attr-defined]
    for window, kept in ((whole, True), (whole - 1, False)):
        turn = to_turn(toy_lab(tmp_path, [row], actor=tiny_lm(window=window)), data)
        assert (turn is not None) == kept


def test_training_is_adamw_at_a_rate_that_falls_in_a_line_over_all_steps(tmp_path: Path) -> None:
    rows = distinct(6, 0)
    events: list[dict[str, Any]] = []
    lab = toy_lab(tmp_path, rows, actor=tiny_lm(), events=events)
    settings = Settings(rank=2, alpha=6, epochs=3, batch_size=6, learning_rate=1e-2, gradient_clip=0.5)
    lm = new_adapter(lab, settings)
    by_hand = new_adapter(toy_lab(tmp_path, rows, actor=tiny_lm()), settings)
    turns = [(render(lm, "add", row.query).ids, completion_ids(lm, row.target)) for row in rows]
    train(lab, lm, turns, settings)
    weights = [weight for weight in by_hand.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    losses, norms = [], []
    for share in (1, 2 / 3, 1 / 3):
        optimizer.param_groups[0]["lr"] = 1e-2 * share
        optimizer.zero_grad()
        loss = completion_loss(by_hand, turns)
        loss.backward()
        norms.append(sum(float((each.grad**2).sum()) for each in weights if each.grad is not None) ** 0.5)
        for each in weights:
            assert each.grad is not None
            each.grad *= min(1.0, 0.5 / norms[-1])
        optimizer.step()
        losses.append(loss.item())
    assert max(norms) > 0.5
    assert [event["loss"] for event in events] == pytest.approx(losses, rel=1e-3)
    trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
    for weight, expected in zip(trained, weights, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-2, atol=2e-4)


def test_training_lowers_the_loss_and_checkpointing_changes_nothing(tmp_path: Path) -> None:
    rows = distinct(8, 0)

    def after(**changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
        events: list[dict[str, Any]] = []
        lab = toy_lab(tmp_path, rows, actor=tiny_lm(), events=events)
        settings = Settings(rank=4, alpha=8, epochs=4, learning_rate=5e-3, batch_size=4, **changes)
        lm = new_adapter(lab, settings)
        turns = [(render(lm, "add", row.query).ids, completion_ids(lm, row.target)) for row in rows]
        with torch.no_grad():
            before = float(completion_loss(lm, turns))
        train(lab, lm, turns, settings)
        with torch.no_grad():
            losses = [before, float(completion_loss(lm, turns))]
        return losses, {name: value for name, value in lm.model.state_dict().items() if "lora_" in name}

    losses, weights = after()
    assert losses[1] < losses[0]
    recomputed = after(gradient_checkpointing=True)
    assert recomputed[0] == pytest.approx(losses, rel=1e-5)
    for name, value in weights.items():
        assert torch.allclose(value, recomputed[1][name], atol=1e-6), name


def test_every_trained_token_is_metered_and_training_stops_at_the_limit(tmp_path: Path) -> None:
    rows = distinct(8, 0)
    actor = tiny_lm()
    turns = [(render(actor, "add", row.query).ids, completion_ids(actor, row.target)) for row in rows]
    read = sum(len(asked) + len(written) - 1 for asked, written in turns)  # the last token is only predicted
    settings = Settings(rank=2, epochs=3, batch_size=8)

    def trained(limit: int) -> tuple[int, list[str]]:
        events: list[dict[str, Any]] = []
        lab = toy_lab(tmp_path, rows, actor=tiny_lm(), events=events, budget=Budget({"trained_tokens": limit}, "toy"))
        lab.budget.attach(lab.actor, "actor")
        train(lab, new_adapter(lab, settings), turns, settings)
        return lab.budget.used.trained_tokens, [event["event"] for event in events]

    assert trained(10**9) == (3 * read, ["epoch"] * 3)
    last = 3 * read + len(turns)  # what the last step may ask for
    assert trained(last) == (3 * read, ["epoch"] * 3)
    assert trained(last - 1) == (2 * read, ["epoch", "epoch", "budget"])


def test_a_search_that_the_budget_does_not_cover_keeps_the_best_state_before(tmp_path: Path) -> None:
    def states(limit: int) -> tuple[list[str], Lab, Any]:
        events: list[dict[str, Any]] = []
        lab = scripted(tmp_path, events, lm_calls=limit)
        policy = BetterTogether(TOY).fit(lab)
        return [event.get("strategy", event["event"]) for event in events], lab, policy

    full, lab, _ = states(10**6)
    used = lab.budget.used.lm_calls
    short, lab, policy = states(used - 1)
    assert "budget" not in full
    assert "budget" in short
    assert policy.actor is not None
    assert lab.budget.left("lm_calls") >= 0
    none, lab, policy = states(15)  # not even the 16 rows of dev
    assert policy.actor is None
    assert policy.demos == {"gsm8k": []}
    assert lab.budget.used.lm_calls == 0
    assert "budget" in none


@pytest.mark.parametrize("step", ["answers", "training"])
def test_what_breaks_a_step_is_raised_and_not_a_score_of_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lab = scripted(tmp_path, [])
    if step == "training":
        monkeypatch.setattr("baselines.shared.better_together_program.new_adapter", _broken)
    else:
        calls = iter(range(100))
        whole = ScriptedLab.answer

        def answer(self: Lab, *args: Any, **options: Any) -> Any:
            return _broken() if next(calls) == 3 else whole(self, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(ScriptedLab, "answer", answer)
    with pytest.raises(ArithmeticError, match="out of order"):
        BetterTogether(TOY).fit(lab)


def _broken(*args: Any) -> Any:
    raise ArithmeticError("out of order")


def test_a_failure_within_dspy_is_an_error_that_repeats_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspy.BootstrapFewShotWithRandomSearch.compile", lambda self, student, **options: _broken())
    with pytest.raises(UserError, match=r"better_together: a step of 'p -> w -> p' failed in DSPy: .*out of order"):
        BetterTogether(TOY).fit(scripted(tmp_path, []))


def test_without_a_right_answer_nothing_is_trained_and_the_search_goes_on(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    rows = distinct(12, 0)
    lab = toy_lab(tmp_path, rows[:8], rows[8:], actor=tiny_lm(window=512), events=events)
    policy = BetterTogether(Settings(candidates=1, shots=1)).fit(lab)
    assert {"event": "finetune", "answers": 0, "dropped": 0} in events
    assert [event["strategy"] for event in events if event["event"] == "state"][-1]
    assert policy.actor is None
    assert len([event for event in events if event["event"] == "state"]) == 4
    assert len(policy.respond([to_query(row) for row in rows])) == 12


def test_rows_are_asked_in_batches_and_none_twice(tmp_path: Path) -> None:
    sizes: list[list[str]] = []

    class Counting(ScriptedLab):
        def answer(self, queries: Sequence[Query], *args: Any, **options: Any) -> list[Response]:
            sizes.append([query.id for query in queries])
            return super().answer(queries, *args, **options)

    plain = scripted(tmp_path, [])
    book = AnswerBook(like(plain, Counting))
    for row in (*plain.dev, *plain.train, *plain.train):
        text, reward = book.answer(program(book), ("gsm8k", row.id))
        assert reward == float(group(row.id) == 0) == float(text == row.target)
    assert [len(each) for each in sizes] == [16, 16, 8]
    asked = [name for each in sizes for name in each]
    assert len(set(asked)) == len(asked) == 40


def test_the_untouched_actor_is_asked_without_the_adapter_that_lies_in_it(tmp_path: Path) -> None:
    rows = distinct(6, 0)
    lab = toy_lab(tmp_path, rows, actor=tiny_lm())
    expected = [each.completion for each in lab.answer([to_query(row) for row in rows], lab.initial_prompt("gsm8k"))]
    book = AnswerBook(lab)
    provider = InProcess(book, Settings(rank=8, epochs=150, learning_rate=2e-2))
    data = [
        {
            "messages": [
                {"role": "system", "content": lab.initial_prompt(row)},
                {"role": "user", "content": row.query},
                {"role": "assistant", "content": "4 5"},
            ],
            "benchmark": "gsm8k",
        }
        for row in rows
    ]
    assert provider.finetune(TrainingJob(), BASE, data, None) == TRAINED
    places = [("gsm8k", row.id) for row in rows]
    assert [book.answer(program(book), place)[0] for place in places] == expected
    assert [book.answer(program(book, TRAINED), place)[0] for place in places] == ["4 5"] * 6
