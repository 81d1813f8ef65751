"""OPRO: a search with a known optimum, its bookkeeping, and DSPy's programs and clients on the common ground."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import dspy
import pytest
from baseline_toys import NEW_TOKENS, lab_settings, sums, tiny_lm, toy_lab
from dspy.lm15 import Message, Request, Response, Usage

from baselines._opro_teleprompter import OPRO as Teleprompter
from baselines._opro_teleprompter import InstructProposer, Scored, render_history
from baselines.opro import OPRO, Settings
from metatuner.errors import UserError
from metatuner.harness.budget import Budget
from metatuner.harness.dspy_bridge import ActorProgram, LMEngine, RewardMetric, VerbatimAdapter, examples
from metatuner.harness.ground import Lab, to_query
from metatuner.harness.policy import Query, load_policy
from metatuner.harness.policy import Response as Answer
from metatuner.lm import generate, render

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
    return policy.prompts["gsm8k"], events, lab


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


def optimizer(lab: Lab, proposals: Sequence[Sequence[str]], **changes: Any) -> Teleprompter:
    """OPRO whose proposer recites: one list a step."""
    steps = iter(proposals)
    settings: dict[str, Any] = {
        "metric": RewardMetric(lab),
        "proposer": lambda tried, exemplars, count: list(next(steps)),
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
    assert [event["tried"] for event in events] == [1, 2, 3]
    assert lab.budget.used.lm_calls == 3 * 30


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
        replies = itertools.cycle(["Sure: [think first]", "plain reply"])

        def complete(self, request: Request) -> Response:
            self.requests.append(request)
            text = Message.assistant(next(self.replies))
            return Response(id=None, model=request.model, message=text, finish_reason="stop", usage=Usage())

    engine = Recorder(tiny_lm(), seed=0)
    propose = InstructProposer(engine.client(temperature=1.0, max_tokens=9), shown=20)
    rows = sums(2)
    assert propose([Scored("try hard", 0.25)], examples(rows), 2) == ["think first", "plain reply"]
    first, second = engine.requests
    assert first == second
    assert (first.config.temperature, first.config.max_tokens) == (1.0, 9)
    asked = "".join(part.text for part in first.messages[-1].parts)
    assert "text:\ntry hard\nscore:\n25" in asked
    assert all(row.query in asked and f"output:\n{row.gold[0]}" in asked for row in rows)


def test_a_generator_samples_a_step_in_one_batch_with_its_own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, batches = tiny_lm(window=512), []

    def counted(lm: Any, prompts: Any, **options: Any) -> Any:
        batches.append(len(prompts))
        return generate(lm, prompts, **options)

    monkeypatch.setattr("metatuner.harness.dspy_bridge.generate", counted)
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
        dspy.Signature("query -> answer", "add them up"), [{"query": "1 + 1", "answer": "2"}], {"query": "2 + 2"}
    )
    assert messages == [
        {"role": "system", "content": "add them up"},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
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
