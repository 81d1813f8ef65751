"""OPRO: a search with a known optimum, its bookkeeping, and DSPy's programs and clients on the common ground."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request, Response, Usage

from baselines.opro import OPRO, Settings
from baselines.shared.dspy_bridge import ActorProgram, Engine, LMEngine, RewardMetric, VerbatimAdapter, examples
from baselines.shared.opro_teleprompter import OPRO as Teleprompter
from baselines.shared.opro_teleprompter import InstructProposer, Scored, render_history
from baselines.shared.proposing import Proposal, proposed
from metatuner.errors import UserError
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.policy import load_policy
from metatuner.harness.proposer import Reply
from metatuner.harness.query import Query, to_query
from metatuner.harness.query import Response as Answer
from metatuner.lm import generate, render
from tests.toys.baselines import NEW_TOKENS, PAIR, lab_settings, like, mixed_rows, sums, tiny_lm, toy_lab

WORDS = ("alpha", "beta", "gamma", "delta", "omega", "sigma")
GOOD = frozenset({"alpha", "gamma", "sigma"})


class ScriptedLab(Lab):
    """The actor solves a third of the rows for each good word of its instruction; the generator adds a random word.

    So an instruction with the three good words scores 1 and no other does.
    """

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Answer]:
        assert isinstance(prompts, str)
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        answers = {row.id: row.gold[0] for row in (*self.train, *self.dev)}
        solved = len(GOOD & set(prompts.split()))
        return [
            Answer(prompts, answers[query.id] if int(query.id.split("-")[1]) % 3 < solved else "no idea", 1, 2, False)
            for query in queries
        ]

    def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        return [
            f"{prompt} {Random(seed).choice(WORDS)}" for prompt, seed in zip(prompts, options["seeds"], strict=True)
        ]


def scripted(workdir: Path, events: list[dict[str, Any]], *, seed: int = 0, **limits: int) -> ScriptedLab:
    settings = lab_settings(workdir, sums(30), sums(12, seed=1), events)
    return ScriptedLab(actor=None, generator=None, seed=seed, budget=Budget(limits, "toy"), **settings)  # type: ignore[arg-type]


def searched(workdir: Path, *, seed: int = 0, steps: int = 12, **limits: int) -> tuple[str, list[dict[str, Any]], Lab]:
    events: list[dict[str, Any]] = []
    lab = scripted(workdir, events, seed=seed, **limits)
    policy = OPRO(Settings(proposer="rewrite", steps=steps, scored_rows=15)).fit(lab)
    return policy.prompts["gsm8k"], [event for event in events if event["event"] != "proposal"], lab


def test_finds_the_instruction_that_solves_every_row(tmp_path: Path) -> None:
    instruction, events, _ = searched(tmp_path)
    assert set(instruction.split()) >= GOOD
    assert events[-1]["dev"] == 1.0


def test_a_saved_instruction_is_asked_as_the_found_one(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    policy = OPRO(Settings(proposer="rewrite", steps=12, scored_rows=15)).fit(lab)
    policy.save(tmp_path / "policy")
    actual = toy_lab(tmp_path, [], actor=tiny_lm())
    queries = [to_query(row) for row in sums(3)]
    found = load_policy(tmp_path / "policy", actual).respond(queries)
    assert found == actual.answer(queries, policy.prompts["gsm8k"])
    assert set(found[0].prompt.split()) >= GOOD


def test_best_score_never_falls_and_ends_above_its_start(tmp_path: Path) -> None:
    _, events, _ = searched(tmp_path)
    best = [event["best"] for event in events if "best" in event]
    assert best == sorted(best)
    assert best[0] == 0.0
    assert best[-1] == 1.0


def test_stops_before_a_step_that_the_budget_does_not_cover(tmp_path: Path) -> None:
    # Start: 15 answers. A step needs 8 * 15 answers and 8 proposals, and 5 * 12 answers on dev must remain.
    _, events, lab = searched(tmp_path, steps=50, lm_calls=15 + 3 * 128 + 60)
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert any(event["event"] == "budget" for event in events)
    assert len(steps) >= 3
    assert lab.budget.left("lm_calls") >= 0


def test_counts_tokens_at_their_longest_when_it_plans_a_step(tmp_path: Path) -> None:
    # NEW_TOKENS an answer at most, 128 a proposal; 8 proposals scored on 15 rows, 5 finalists on the 12 of dev.
    step, choice = 8 * 15 * NEW_TOKENS + 8 * 128, 5 * 12 * NEW_TOKENS
    _, enough, _ = searched(tmp_path, steps=1, generated_tokens=15 * 2 + step + choice)
    _, short, _ = searched(tmp_path, steps=1, generated_tokens=15 * 2 + step + choice - 1)
    assert [event["event"] for event in enough][:2] == ["start", "step"]
    assert [event["event"] for event in short][:2] == ["start", "budget"]


def test_same_seed_same_search(tmp_path: Path) -> None:
    first, again, other = (searched(tmp_path, seed=seed)[:2] for seed in (0, 0, 1))
    assert first == again
    assert first[1] != other[1]


def test_a_step_is_taken_if_all_its_calls_are_left_and_else_not(tmp_path: Path) -> None:
    # After the 15 answers under p~: 8 proposals, each asked on 15 rows, and 5 finalists on the 12 of dev.
    step = 8 + 8 * 15 + 5 * 12
    for calls, event in ((15 + step, "step"), (15 + step - 1, "budget")):
        _, events, _ = searched(tmp_path, steps=1, lm_calls=calls)
        assert events[1]["event"] == event


class TwoBenchmarks(ScriptedLab):
    """Notes what is asked; nothing is ever right, but under the prompt of the second benchmark and one word."""

    told: list[tuple[str, tuple[str, ...]]]
    wanted: list[tuple[list[Query], list[str], dict[str, Any]]]

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Answer]:
        assert isinstance(prompts, str)
        self.told.append((prompts, tuple(query.id for query in queries)))
        self.budget.add(lm_calls=len(queries))
        good = prompts.startswith(self.initial_prompt("math")) + (prompts.split()[-1] in GOOD)
        rows = {(row.benchmark, row.id): row for row in (*self.train, *self.dev)}
        return [
            Answer(prompts, rows[each.benchmark, each.id].target if index % 4 < good else "no", 1, 2, False)
            for index, each in enumerate(queries)
        ]

    def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
        self.wanted.append((list(queries), list(prompts), options))
        return super().rewrite(queries, prompts, **options)


def two_benchmarks(workdir: Path, kind: type[Any] = TwoBenchmarks, events: Any = None, **limits: int) -> Any:
    lab = toy_lab(
        workdir,
        mixed_rows(16),
        mixed_rows(8, seed=1),
        benchmarks=PAIR,
        trained_on=("math", "gsm8k"),
        budget=Budget(limits, "toy"),
        events=[] if events is None else events,
    )
    made = like(lab, kind)
    made.told, made.wanted = [], []
    return made


def test_trained_on_two_benchmarks_it_starts_from_both_and_answers_both_alike(tmp_path: Path) -> None:
    lab = two_benchmarks(tmp_path)
    policy = OPRO(Settings(proposer="rewrite", steps=4, scored_rows=8, finalists=2)).fit(lab)
    starts = [lab.initial_prompt(name) for name in lab.trained_on]
    assert len(set(starts)) == 2
    assert [prompt for prompt, _ in lab.told[:2]] == starts
    assert policy.prompts["gsm8k"] == policy.prompts["math"]
    # Candidates are asked on the same train rows, drawn from all of them; the finalists on all rows of dev.
    *scored, one, other = [rows for _, rows in lab.told]
    assert len(set(scored)) == 1
    assert len(scored[0]) == 8
    assert set(scored[0]) <= {row.id for row in lab.train}
    assert list(scored[0]) != [row.id for row in lab.train[:8]]
    assert one == other == tuple(row.id for row in lab.dev)


def test_the_generator_rewrites_the_best_so_far_and_the_rows_own_start_in_turns(tmp_path: Path) -> None:
    lab = two_benchmarks(tmp_path)
    settings = Settings(proposer="rewrite", steps=4, samples=6, scored_rows=8, temperature=0.7, proposal_tokens=9)
    OPRO(settings).fit(lab)
    assert len(lab.wanted) == 4
    for queries, prompts, options in lab.wanted:
        assert len(set(prompts[::2])) == 1
        assert prompts[0].startswith(lab.initial_prompt("math"))  # which does better from the start
        assert prompts[1::2] == [lab.initial_prompt(query) for query in queries[1::2]]
        assert (options["temperature"], options["max_new_tokens"]) == (0.7, 9)
    assert {query.benchmark for queries, _, _ in lab.wanted for query in queries} == {"gsm8k", "math"}
    assert len({query.id for queries, _, _ in lab.wanted for query in queries}) > 8
    seeds = [seed for _, _, options in lab.wanted for seed in options["seeds"]]
    assert len(set(seeds)) == len(seeds) == 24


def test_the_longest_answers_of_all_benchmarks_are_planned_for(tmp_path: Path) -> None:
    # The second benchmark's answers are longer than the first's.
    longest = max(PAIR[name].max_new_tokens for name in ("math", "gsm8k"))
    assert longest > PAIR["math"].max_new_tokens
    needed = (2 * 8 + 5 * 8) * longest + 2 * 128
    settings = Settings(proposer="rewrite", steps=1, samples=2, scored_rows=8)
    for tokens, event in ((needed, "step"), (needed - 1, "budget")):
        events: list[dict[str, Any]] = []
        OPRO(settings).fit(two_benchmarks(tmp_path, events=events, generated_tokens=tokens))
        assert next(each["event"] for each in events[1:] if each["event"] != "proposal") == event


def test_each_step_shows_other_exemplars_of_all_train_rows(tmp_path: Path) -> None:
    shown: list[tuple[str, ...]] = []

    def recite(tried: Sequence[Scored], exemplars: Sequence[dspy.Example], count: int) -> list[Proposal]:
        shown.append(tuple(each.id for each in exemplars))
        return []

    lab = scripted(tmp_path, [])
    optimizer(lab, [[]] * 8, proposer=recite).compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    assert all(len(set(each)) == 3 for each in shown)
    assert len(set(shown)) == 8
    assert len({each for ids in shown for each in ids}) > 12


def optimizer(lab: Lab, proposals: Sequence[Sequence[str]], **changes: Any) -> Teleprompter:
    """OPRO whose proposer recites: one list a step."""
    steps = iter(proposals)
    settings: dict[str, Any] = {
        "metric": RewardMetric(lab),
        "proposer": lambda tried, exemplars, count: [proposed(text) for text in next(steps)],
        "random": Random(0),
        "steps": len(proposals),
        "samples": 8,
        "exemplars": 3,
        "scored_rows": 30,
        "max_characters": 20,
        "finalists": 5,
    }
    return Teleprompter(**settings | changes)


def test_duplicates_empty_and_long_proposals_are_not_scored(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events)
    proposals = [["alpha", " alpha ", "start", "", "x" * 21], ["alpha", "x" * 20]]
    search = optimizer(lab, proposals, report=lab.log)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    assert [event["tried"] for event in events if event["event"] != "proposal"] == [1, 2, 3]
    assert lab.budget.used.lm_calls == 3 * 30


def test_every_proposal_is_logged_with_the_reason_for_which_it_is_no_candidate(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events)
    search = optimizer(lab, [["alpha", " alpha ", "start", "", "x" * 21], ["beta"]], report=lab.log)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    told = [(event["text"], event["refused"]) for event in events if event["event"] == "proposal"]
    one = [("alpha", None), ("alpha", "repeated"), ("start", "repeated"), ("", "empty"), ("x" * 21, "too long")]
    assert told == [*one, ("beta", None)]
    assert [event["refused"] for event in events if event["event"] == "step"] == [4, 0]


def test_a_reply_without_brackets_is_no_candidate_but_costs_its_call(tmp_path: Path) -> None:
    class Mute(LMEngine):
        """Goes on with the examples, as a small model does."""

        def sample(self, *args: Any, **options: Any) -> list[Reply]:
            super().sample(*args, **options)
            return [Reply("output:\n7", 1, 1, False) for _ in options["seeds"]]

    events: list[dict[str, Any]] = []
    lab = toy_lab(tmp_path, sums(4), actor=tiny_lm(), generator=tiny_lm(seed=1, window=512), events=events)
    lab.budget.attach(lab.need_generator(), "generator")
    client = Mute(lab.need_generator(), seed=0, fan_out=3).client(temperature=1.0, max_tokens=6)
    search = optimizer(lab, [[]] * 2, proposer=InstructProposer(client, shown=20), samples=3, report=lab.log)
    best = search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    assert best.instruction == "start"
    proposals = [event for event in events if event["event"] == "proposal"]
    assert proposals == [{"event": "proposal", "text": "output:\n7", "refused": "no brackets"}] * 6
    assert [event["refused"] for event in events if event["event"] == "step"] == [3, 3]
    assert lab.budget.by_model["generator"].usage.lm_calls == 6


def test_an_initial_prompt_of_any_length_is_a_candidate(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    search = optimizer(lab, [["alpha"]], max_characters=5)
    assert search.compile(ActorProgram(lab, "gamma sigma"), trainset=examples(lab.train)).instruction == "gamma sigma"


def test_all_starting_points_are_scored_first(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    search = optimizer(lab, [], starts=["alpha gamma", "start"])
    best = search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    assert best.instruction == "alpha gamma"
    assert lab.budget.used.lm_calls == 2 * 30


def test_dev_decides_between_the_best_on_train(tmp_path: Path) -> None:
    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        if example.id.startswith("0-"):  # train
            return {"worst": 0.0, "good": 0.8, "overfit": 1.0}[prediction.answer]
        return {"worst": 1.0, "good": 0.5, "overfit": 0.1}[prediction.answer]

    class Echo(ActorProgram):
        def with_instruction(self, instruction: str) -> "Echo":
            return Echo(self.ground, instruction)

        def batch(self, examples: Sequence[dspy.Example], **options: Any) -> list[dspy.Prediction]:
            return [dspy.Prediction(answer=self.instruction) for _ in examples]

    search = optimizer(scripted(tmp_path, []), [["overfit", "good"]], metric=metric, finalists=2)
    best = search.compile(Echo(None, "worst"), trainset=examples(sums(4)), valset=examples(sums(4, seed=1)))  # type: ignore[arg-type]
    assert best.instruction == "good"


def test_history_shows_the_best_in_ascending_order_with_integer_scores() -> None:
    tried = [Scored("b", 0.666), Scored("d", 0.1), Scored("a", 1.0), Scored("c", 0.0), Scored("e", 0.1)]
    shown = [("d", 10), ("e", 10), ("b", 67), ("a", 100)]
    assert render_history(tried, 4) == "\n\n".join(f"text:\n{text}\nscore:\n{score}" for text, score in shown)


def test_instruct_proposer_shows_history_and_exemplars_and_reads_brackets() -> None:
    class Recorder(LMEngine):
        requests: list[Request] = []
        replies = itertools.cycle(["Sure: [think [hard] first]", "plain reply"])

        def complete(self, request: Request) -> Response:
            self.requests.append(request)
            text = Message.assistant(next(self.replies))
            return Response(id=None, model=request.model, message=text, finish_reason="stop", usage=Usage())

    engine = Recorder(tiny_lm(), seed=0)
    propose = InstructProposer(engine.client(temperature=1.0, max_tokens=9), shown=20)
    rows = sums(2)
    expected = [Proposal("think [hard] first"), Proposal("plain reply", "no brackets")]
    assert propose([Scored("try hard", 0.25)], examples(rows), 2) == expected
    first, second = engine.requests
    assert first == second
    assert (first.config.temperature, first.config.max_tokens) == (1.0, 9)
    asked = "".join(part.text for part in first.messages[-1].parts)
    assert "text:\ntry hard\nscore:\n25" in asked
    assert all(row.query in asked and f"output:\n{row.gold[0]}" in asked for row in rows)
    # What is asked for stands after all examples, or a model goes on with an output.
    assert asked.rindex("output:\n") < asked.index("Write the new text in square brackets")
    assert asked.endswith("in square brackets, and nothing else.")


def test_the_engines_seed_the_request_and_its_count_decide_what_is_sampled() -> None:
    class Seeds(Engine):
        name = "local/seeds"
        asked: list[tuple[int, float]] = []

        def sample(self, system: str, demos: Any, query: str, **options: Any) -> list[Reply]:
            self.asked.append((len(options["seeds"]), options["temperature"]))
            return [Reply(str(seed), 3, 5, truncated=True) for seed in options["seeds"]]

    def said(engine: Engine, query: str, *, system: str = "add", temperature: float = 1.0, limit: int = 9) -> str:
        client = engine.client(temperature=temperature, max_tokens=limit)
        with dspy.context(lm=client, adapter=VerbatimAdapter(), disable_history=True):
            return str(dspy.Predict(dspy.Signature("query -> answer", system))(query=query).answer)

    engine = Seeds(seed=1, fan_out=2)
    told = [said(engine, "a") for _ in range(4)]
    assert engine.asked == [(2, 1.0)] * 2  # two at once, twice
    assert len(set(told)) == 4

    def fresh(seed: int = 1) -> Engine:
        return Seeds(seed=seed, fan_out=2)

    others = [said(fresh(), "b"), said(fresh(), "a", system="b"), said(fresh(), "a", temperature=0.5)]
    others += [said(fresh(), "a", limit=8), said(fresh(2), "a")]
    assert said(fresh(), "a") == told[0]
    assert len({*told, *others}) == 9
    # In whatever order it is asked, a request has its own samples.
    other = fresh()
    assert [said(other, "b"), *(said(other, "a") for _ in range(4))] == [others[0], *told]
    engine.asked.clear()
    said(engine, "a", temperature=0.0)
    assert engine.asked == [(1, 0.0)]  # all would be the same


def test_an_engine_reads_demonstrations_and_tells_what_it_used() -> None:
    lm = tiny_lm()
    messages = [Message.user("1 + 1"), Message.assistant("2"), Message.user("2 + 2")]
    for limit in (3, 60):
        request = Request(model="m", messages=tuple(messages), system="add them up", config=Config(max_tokens=limit))
        told = LMEngine(lm, seed=0).complete(request)
        read = render(lm, "add them up", "2 + 2", [("1 + 1", "2")], reserve=limit).ids
        (expected,) = generate(lm, [read], max_new_tokens=limit)
        assert "".join(part.text for part in told.message.parts) == expected.text
        assert (told.usage.input_tokens, told.usage.output_tokens) == (len(read), len(expected.ids))
        assert told.finish_reason == ("length" if expected.truncated else "stop")
    assert len(read) > len(render(lm, "add them up", "2 + 2", reserve=limit).ids)


def test_a_generator_samples_a_step_in_one_batch_with_its_own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, batches = tiny_lm(window=512), []

    def counted(lm: Any, prompts: Any, **options: Any) -> Any:
        batches.append(len(prompts))
        return generate(lm, prompts, **options)

    monkeypatch.setattr("baselines.shared.dspy_bridge.generate", counted)
    ask = {"exemplars": examples(sums(1)), "count": 4}

    def proposer() -> InstructProposer:
        return InstructProposer(LMEngine(lm, seed=5, fan_out=4).client(temperature=1.0, max_tokens=6), shown=20)

    one, two = proposer(), proposer()
    first = one([Scored("a", 0.5)], **ask)
    assert batches == [4]
    assert len(set(first)) > 1
    two([Scored("b", 0.5)], **ask)  # another request in between changes nothing
    assert two([Scored("a", 0.5)], **ask) == first
    assert one([Scored("a", 0.5)], **ask) != first  # asked again, it draws anew


def test_what_the_user_can_mend_is_said_plainly() -> None:
    client = LMEngine(tiny_lm(window=64), seed=0).client(temperature=1.0, max_tokens=6)
    propose = InstructProposer(client, shown=20)
    with pytest.raises(UserError, match="window"):
        propose([Scored("a", 0.5)], examples(sums(1)), 1)


def test_engine_answers_greedily_what_generate_answers() -> None:
    lm = tiny_lm()
    client = LMEngine(lm, seed=0).client(temperature=0.0, max_tokens=8)
    with dspy.context(lm=client, adapter=VerbatimAdapter(), disable_history=True):
        said = dspy.Predict(dspy.Signature("query -> answer", "add them up"))(query="tom has 3 apples").answer
    (expected,) = generate(lm, [render(lm, "add them up", "tom has 3 apples", reserve=8).ids], max_new_tokens=8)
    assert said == expected.text.strip()


def test_verbatim_adapter_adds_nothing() -> None:
    messages = VerbatimAdapter().format(
        dspy.Signature("query -> answer", "add them up"),
        [{"query": "1 + 1", "answer": "2"}, {"query": "3 + 1", "answer": "4"}],
        {"query": "2 + 2"},
    )
    assert messages == [
        {"role": "system", "content": "add them up"},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3 + 1"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "2 + 2"},
    ]


def test_program_answers_as_the_ground_does_called_batched_or_evaluated(tmp_path: Path) -> None:
    rows = sums(4)
    lab = toy_lab(tmp_path, rows, actor=tiny_lm())
    program = ActorProgram(lab, "add them up").deepcopy()
    assert program.ground is lab
    expected = [answer.completion for answer in lab.answer([to_query(row) for row in rows], "add them up")]
    assert [each.answer for each in program.batch(examples(rows))] == expected
    assert [program(**each.inputs()).answer for each in examples(rows)] == expected
    metric = RewardMetric(lab)
    result = dspy.Evaluate(devset=examples(rows), metric=metric, num_threads=1, max_errors=1)(program)
    assert result.score == 100 * sum(lab.reward_texts(rows, expected)) / len(rows)


def test_optimizers_find_the_instruction_where_dspy_keeps_it(tmp_path: Path) -> None:
    program = ActorProgram(toy_lab(tmp_path, []), "add them up")
    ((_, predictor),) = program.named_predictors()
    predictor.signature = predictor.signature.with_instructions("take care")
    assert program.instruction == "take care"
    assert isinstance(optimizer(toy_lab(tmp_path, []), []), dspy.teleprompt.Teleprompter)


def test_without_a_generator_opro_is_skipped_with_a_reason(tmp_path: Path) -> None:
    assert "generator" in str(OPRO().skip(toy_lab(tmp_path, [])))
    assert OPRO().skip(toy_lab(tmp_path, [], generator=tiny_lm())) is None
