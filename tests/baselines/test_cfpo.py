"""CFPO: a search with a known optimum in content and format, its bandit, and its editors."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import dspy
import pytest
from dspy.lm15 import Message, Request, Response, Usage

from baselines.cfpo import CFPO, Settings
from baselines.shared.cfpo_teleprompter import CFPO as Teleprompter
from baselines.shared.cfpo_teleprompter import (
    QUERY_FORMATS,
    RENDERERS,
    Candidate,
    Case,
    Edit,
    Formats,
    InstructEditor,
    RewriteEditor,
)
from baselines.shared.dspy_bridge import ActorProgram, LMEngine, RewardMetric, examples
from baselines.shared.proposing import Proposal, bracketed, proposed
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.policy import load_policy
from metatuner.harness.query import Query, to_query
from metatuner.harness.query import Response as Answer
from tests.baselines.test_opro import two_benchmarks
from tests.toys.baselines import NEW_TOKENS, lab_settings, like, sums, tiny_lm, toy_lab

WORDS = ("alpha", "beta", "gamma", "delta")
GOOD = frozenset({"alpha", "gamma"})
TOY = Settings(proposer="rewrite", rounds=6, beam=4, diagnoses=2, variations=2, scored_rows=16)


class ScriptedLab(Lab):
    """The actor solves a quarter of the rows for each good word of its prompt, for XML and for a last line `Input:`.

    So a prompt of score 1 has both words in that format. The generator adds a random word.
    """

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Answer]:
        assert isinstance(prompts, str)
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        gold = {row.id: row.gold[0] for row in (*self.train, *self.dev)}
        solved = sum(word in prompts for word in (*GOOD, "<task_instruction>", "Input:"))
        return [
            Answer(prompts, gold[query.id] if int(query.id.split("-")[1]) % 4 < solved else "no idea", 1, 2, False)
            for query in queries
        ]

    def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        return [
            f"{prompt} {Random(seed).choice(WORDS)}" for prompt, seed in zip(prompts, options["seeds"], strict=True)
        ]


def scripted(workdir: Path, events: list[dict[str, Any]], *, seed: int = 0, **limits: int) -> ScriptedLab:
    given = lab_settings(workdir, sums(32), sums(12, seed=1), events)
    return ScriptedLab(actor=None, generator=None, seed=seed, budget=Budget(limits, "toy"), **given)  # type: ignore[arg-type]


def searched(
    workdir: Path, settings: Settings = TOY, *, seed: int = 0, **limits: int
) -> tuple[str, list[dict[str, Any]], Lab]:
    events: list[dict[str, Any]] = []
    lab = scripted(workdir, events, seed=seed, **limits)
    prompt = CFPO(settings).fit(lab).prompts["gsm8k"]
    return prompt, [event for event in events if event["event"] != "proposal"], lab


@pytest.mark.parametrize("all_pairs", [True, False])
def test_finds_the_instruction_and_the_format_that_solve_every_row(all_pairs: bool, tmp_path: Path) -> None:
    prompt, events, _ = searched(tmp_path, replace(TOY, all_pairs=all_pairs))
    assert all(part in prompt for part in (*GOOD, "<task_instruction>"))
    assert prompt.endswith("\n\nInput:")
    assert events[-1]["dev"] == 1.0
    best = [event["best"] for event in events if "best" in event]
    assert best == sorted(best)
    assert best[0] == 0.0


def test_rounds_of_content_keep_the_format_and_rounds_of_format_the_content(tmp_path: Path) -> None:
    tried: list[str] = []

    class Noted(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Answer]:
            assert isinstance(prompts, str)
            tried.append(prompts)
            return super().answer(queries, prompts, **options)

    events: list[dict[str, Any]] = []
    lab = like(scripted(tmp_path, []), Noted, log_line=lambda line: events.append(json.loads(line)))
    search = optimizer(lab, [["alpha"], ["gamma"]], rounds=3, beam=1, report=lab.log)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    ends = [event["tried"] for event in events if "tried" in event]
    content, formats, again = (tried[start:end] for start, end in itertools.pairwise(ends))
    assert content == ["alpha"]
    every = [Candidate("alpha", renderer, lead).text for renderer in RENDERERS for lead in QUERY_FORMATS]
    assert sorted(formats) == sorted(set(every) - {"alpha"})
    assert again == [Candidate("gamma", "xml", "input").text]


def optimizer(lab: Lab, edits: Sequence[Sequence[str]], **changes: Any) -> Teleprompter:
    """CFPO whose editor recites: one list a round of content."""
    rounds = iter(edits)
    settings: dict[str, Any] = {
        "metric": RewardMetric(lab),
        "editor": lambda asked, *, temperature: [proposed(text) for text in next(rounds)],
        "random": Random(0),
        "rounds": 1,
        "beam": 8,
        "diagnoses": 0,
        "variations": 1,
        "formats": 1,
        "all_pairs": True,
        "cases": 2,
        "exploration": 0.001,
        "temperatures": (1.0, 0.7),
        "scored_rows": 32,
        "finalists": 4,
    }
    return Teleprompter(**settings | changes)


def test_uct_is_its_closed_form() -> None:
    arms = Formats(["a", "b", "c"], exploration=0.5)
    assert arms.uct("a") == 0.0
    for name, score in [("a", 0.25), ("b", 1.0), ("a", 0.75), ("b", 0.5), ("b", 0.0)]:
        arms.update(name, score)
    assert arms.uct("a") == pytest.approx(1.0 / 3 + 0.5 * math.sqrt(math.log(5) / 3))
    assert arms.uct("b") == pytest.approx(1.5 / 4 + 0.5 * math.sqrt(math.log(5) / 4))
    assert arms.uct("c") == pytest.approx(0.5 * math.sqrt(math.log(5)))
    assert arms.best(1, besides="c") == ["a"]  # 0.70, b has 0.69, c has 0.63
    assert arms.best(5, besides="a") == ["b", "c"]


def test_only_formats_that_a_prompt_took_up_are_credited(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    search = optimizer(lab, [["alpha"]], rounds=2, beam=1, all_pairs=False)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    assert search.renderers.counts == {name: int(name != "joint") for name in RENDERERS}
    assert search.query_formats.counts == {name: int(name != "bare") for name in QUERY_FORMATS}
    assert search.renderers.totals["xml"] == 0.5  # alpha and XML: two of four quarters
    assert search.renderers.totals["html"] == 0.25


def test_later_rounds_of_formats_take_the_best_by_uct(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events)
    search = optimizer(lab, [["alpha"], [""]], rounds=4, beam=1, all_pairs=False, report=lab.log)
    best = search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    # Round 2 finds XML and `Input:` each by itself; round 4 puts the one to the other.
    assert best.instruction == Candidate("alpha", "xml", "input").text
    assert [event["best"] for event in events if "best" in event] == [0.0, 0.25, 0.5, 0.5, 0.75]


def test_a_prompt_is_tried_in_the_best_formats_that_it_does_not_have(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events)
    search = optimizer(lab, [["alpha"], [""], [""]], rounds=6, beam=1, all_pairs=False, report=lab.log)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    # Round 4 ends with XML and `Input:`, the best of both kinds; round 6 changes each of them to the next best.
    tried = [event["tried"] for event in events if "tried" in event]
    assert tried[6] - tried[5] == 2


def test_each_text_is_scored_once_and_empty_ones_never(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    search = optimizer(lab, [["alpha", " alpha ", "", "start"]], variations=4)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    assert lab.budget.used.lm_calls == 2 * 32


def test_what_the_editor_writes_is_logged_and_a_reply_without_brackets_is_no_candidate(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events)

    def editor(edits: Sequence[Edit], *, temperature: float) -> list[Proposal]:
        return [bracketed(reply) for reply in ("So: [alpha]", "The answer is alpha gamma.", "[ ]", "[alpha]")]

    search = optimizer(lab, [], editor=editor, variations=4, report=lab.log)
    assert search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train)).instruction == "alpha"
    assert [(event["text"], event["refused"]) for event in events if event["event"] == "proposal"] == [
        ("alpha", None),
        ("The answer is alpha gamma.", "no brackets"),
        ("", "empty"),
        ("alpha", "repeated"),
    ]
    assert [event["refused"] for event in events if event["event"] == "round"] == [3]


def test_every_format_holds_the_instruction_and_is_read_as_it_was_scored(tmp_path: Path) -> None:
    instruction = 'say "42"\nthen stop'
    texts = {}
    for renderer in RENDERERS:
        for lead in QUERY_FORMATS:
            text = Candidate(instruction, renderer, lead).text
            assert ActorProgram(toy_lab(tmp_path, []), text).instruction == text
            assert text.endswith(QUERY_FORMATS[lead])
            texts[text] = renderer
            if renderer != "json":
                assert instruction in text
    assert len(texts) == len(RENDERERS) * len(QUERY_FORMATS)
    assert Candidate(instruction).text == instruction
    assert json.loads(Candidate(instruction, "json").text) == {"task_instruction": instruction}


def test_cases_are_those_that_the_prompt_got_wrong_and_right(tmp_path: Path) -> None:
    asked: list[Edit] = []
    lab = scripted(tmp_path, [])

    def editor(edits: Sequence[Edit], *, temperature: float) -> list[Proposal]:
        asked.extend(edits)
        return [Proposal("alpha")] * len(edits)

    search = optimizer(lab, [], editor=editor, diagnoses=1, variations=1)
    search.compile(ActorProgram(lab, "gamma"), trainset=examples(lab.train))
    diagnosis, paraphrase = asked
    assert [len(diagnosis.wrong), len(diagnosis.right)] == [2, 2]
    assert all(int(case.example.id.split("-")[1]) % 4 > 0 and case.answer == "no idea" for case in diagnosis.wrong)
    assert all(case.answer == case.example.row.gold[0] for case in diagnosis.right)
    assert paraphrase == Edit("gamma")


def test_an_answer_of_less_than_the_full_metric_is_a_wrong_case(tmp_path: Path) -> None:
    asked: list[Edit] = []

    def editor(edits: Sequence[Edit], *, temperature: float) -> list[Proposal]:
        asked.extend(edits)
        return [proposed("")] * len(edits)

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return (0.0, 0.5, 1.0)[int(example.id.split("-")[1]) % 3]

    lab = scripted(tmp_path, [])
    search = optimizer(lab, [], editor=editor, metric=metric, diagnoses=8, variations=0, cases=3)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    shown = [({each.example.id for each in edit.wrong}, {each.example.id for each in edit.right}) for edit in asked]
    assert all(len(wrong) == len(right) == 3 for wrong, right in shown)
    kinds = [{int(name.split("-")[1]) % 3 for ids in part for name in ids} for part in zip(*shown, strict=True)]
    assert kinds == [{0, 1}, {2}]
    assert len({frozenset(wrong) for wrong, _ in shown}) > 4  # drawn anew for each


def test_trained_on_two_benchmarks_it_starts_from_both_and_scores_on_rows_drawn_from_both(tmp_path: Path) -> None:
    lab = two_benchmarks(tmp_path)
    settings = Settings(
        proposer="rewrite", rounds=3, beam=2, scored_rows=8, finalists=2, temperature=0.9, proposal_tokens=9
    )
    policy = CFPO(settings).fit(lab)
    starts = [lab.initial_prompt(name) for name in lab.trained_on]
    assert [prompt for prompt, _ in lab.told[:2]] == starts
    assert policy.prompts["gsm8k"] == policy.prompts["math"]
    *scored, one, other = [rows for _, rows in lab.told]
    assert len(set(scored)) == 1
    assert len(scored[0]) == 8
    assert list(scored[0]) != [row.id for row in lab.train[:8]]
    assert one == other == tuple(row.id for row in lab.dev)
    seeds = [seed for _, _, options in lab.wanted for seed in options["seeds"]]
    assert len(set(seeds)) == len(seeds) > 4
    assert {options["max_new_tokens"] for _, _, options in lab.wanted} == {9}
    assert [options["temperature"] for _, _, options in lab.wanted] == pytest.approx([0.9 - 0.2 / 3, 0.7])


def test_the_beam_is_the_best_of_all_that_were_tried(tmp_path: Path) -> None:
    edited: list[list[str]] = []
    scores = {"start": 0.5, "worse": 0.1, "better": 0.9, "good": 0.7}

    def editor(edits: Sequence[Edit], *, temperature: float) -> list[Proposal]:
        edited.append([edit.instruction for edit in edits])
        return [proposed(text) for text in ["worse", "better", "good", *[""] * len(edits)][: len(edits)]]

    class Echo(ActorProgram):
        def with_instruction(self, instruction: str) -> "Echo":
            return Echo(self.ground, instruction)

        def batch(self, examples: Sequence[dspy.Example], **options: Any) -> list[dspy.Prediction]:
            return [dspy.Prediction(answer=self.instruction) for _ in examples]

    search = optimizer(
        scripted(tmp_path, []),
        [],
        editor=editor,
        metric=lambda example, prediction: scores.get(prediction.answer, 0.0),
        rounds=3,
        beam=2,
        variations=3,
        all_pairs=False,
    )
    best = search.compile(Echo(None, "start"), trainset=examples(sums(4)))  # type: ignore[arg-type]
    assert edited == [["start"] * 3, ["better"] * 3 + ["good"] * 3]
    assert best.instruction == "better"


def test_temperature_falls_in_a_line(tmp_path: Path) -> None:
    temperatures: list[float] = []
    lab = scripted(tmp_path, [])

    def editor(edits: Sequence[Edit], *, temperature: float) -> list[Proposal]:
        temperatures.append(temperature)
        return [Proposal(f"{len(temperatures)}")] * len(edits)

    search = optimizer(lab, [], editor=editor, rounds=5, beam=1, all_pairs=False)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    assert temperatures == pytest.approx([1 - 0.3 / 5, 1 - 0.3 * 3 / 5, 0.7])


def test_dev_decides_between_the_best_on_train(tmp_path: Path) -> None:
    scores = {"start": (0.0, 1.0), "good": (0.8, 0.5), "overfit": (1.0, 0.1)}

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return scores[prediction.answer][0 if example.id.startswith("0-") else 1]

    class Echo(ActorProgram):
        def with_instruction(self, instruction: str) -> "Echo":
            return Echo(self.ground, instruction)

        def batch(self, examples: Sequence[dspy.Example], **options: Any) -> list[dspy.Prediction]:
            return [dspy.Prediction(answer=self.instruction) for _ in examples]

    search = optimizer(scripted(tmp_path, []), [["overfit", "good"]], metric=metric, finalists=2, variations=2)
    best = search.compile(Echo(None, "start"), trainset=examples(sums(4)), valset=examples(sums(4, seed=1)))  # type: ignore[arg-type]
    assert best.instruction == "good"


def test_stops_before_a_round_that_the_budget_does_not_cover(tmp_path: Path) -> None:
    # Start: 16 answers. Round 1: one prompt, 4 edits, each scored. Round 2: 4 prompts in 41 other formats.
    finalists = TOY.finalists * 12
    enough = 16 + 4 * (1 + 16) + finalists
    _, events, lab = searched(tmp_path, lm_calls=enough)
    assert [event["event"] for event in events] == ["start", "round", "budget", "choice"]
    _, events, _ = searched(tmp_path, lm_calls=enough - 1)
    assert [event["event"] for event in events] == ["start", "budget"]
    assert lab.budget.left("lm_calls") >= 0


def test_a_round_is_planned_with_all_its_answers_and_edits(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    asked: list[tuple[int, int]] = []

    def affordable(answers: int, edits: int) -> bool:
        asked.append((answers, edits))
        return True

    edits = [["alpha", "beta", "alpha"], ["x"] * 24]
    search = optimizer(lab, edits, rounds=4, diagnoses=2, affordable=affordable)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train), valset=examples(lab.dev))
    choice = search.finalists * len(lab.dev)
    children = [3, 3 * 41, 8 * 3, 8 * 2]  # of 1 prompt, of 3, of a full beam twice
    assert [answers for answers, _ in asked] == [count * 32 + choice for count in children]
    assert [written for _, written in asked] == [3, 0, 24, 0]
    asked.clear()
    search = optimizer(lab, [["gamma"]], rounds=2, all_pairs=False, affordable=affordable)
    search.compile(ActorProgram(lab, "start"), trainset=examples(lab.train))
    # Each of two prompts in the other renderers and the other query formats; without dev no choice follows.
    assert asked[1] == (2 * (len(RENDERERS) - 1 + len(QUERY_FORMATS) - 1) * 32, 0)


@pytest.mark.parametrize(("proposer", "calls"), [("rewrite", 1), ("instruct", 2)])
def test_answers_and_edits_count_as_long_as_they_may_get(
    proposer: Literal["rewrite", "instruct"], calls: int, tmp_path: Path
) -> None:
    settings = replace(TOY, proposer=proposer, rounds=1)
    round_one = (4 * 16 + TOY.finalists * 12) * NEW_TOKENS + calls * 4 * TOY.proposal_tokens
    for short, event in ((0, "round"), (1, "budget")):
        events: list[dict[str, Any]] = []
        lab = scripted(tmp_path, events, generated_tokens=16 * 2 + round_one - short)
        lab.generator = tiny_lm(window=1024)
        CFPO(settings).fit(lab)
        assert next(each["event"] for each in events[1:] if each["event"] != "proposal") == event


def test_same_seed_same_search(tmp_path: Path) -> None:
    first, again, other = (searched(tmp_path, replace(TOY, rounds=3), seed=seed)[:2] for seed in (0, 0, 1))
    assert first == again
    assert first[1] != other[1]


def test_instruct_editor_diagnoses_revises_and_paraphrases() -> None:
    class Recorder(LMEngine):
        requests: list[Request] = []
        replies = itertools.cycle(["be exact", "Here: [add slowly]", "[sum them]"])

        def complete(self, request: Request) -> Response:
            self.requests.append(request)
            text = Message.assistant(next(self.replies))
            return Response(id=None, model=request.model, message=text, finish_reason="stop", usage=Usage())

    wrong, right = (Case(example, answer) for example, answer in zip(examples(sums(2)), ("none", "12"), strict=True))
    editor = InstructEditor(Recorder(tiny_lm(), seed=0).client(temperature=1.0, max_tokens=9))
    assert editor([Edit("add", [wrong], [right]), Edit("add")], temperature=0.8) == [
        Proposal("add slowly"),
        Proposal("sum them"),
    ]
    asked = ["".join(part.text for part in request.messages[-1].parts) for request in Recorder.requests]
    assert len(asked) == 3
    assert all("Instruction:\nadd" in text for text in asked)
    assert asked[0].index(wrong.example.query) < asked[0].index("Solved:\n") < asked[0].index(right.example.query)
    assert f"right answer:\n{wrong.example.row.gold[0]}\nthe model's answer:\nnone" in asked[0]
    assert "Suggestion:\nbe exact" in asked[1]
    # Each ends in what is asked for.
    ends = ("what should be changed in the instruction.", "and nothing else.", "and nothing else.")
    assert all(text.endswith(end) for text, end in zip(asked, ends, strict=True))
    assert {(each.config.temperature, each.config.max_tokens) for each in Recorder.requests} == {(0.8, 9)}


def test_rewrite_editor_rewrites_for_a_query_that_was_answered_wrongly(tmp_path: Path) -> None:
    class Recording(ScriptedLab):
        asked: list[tuple[str, str]] = []

        def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
            self.asked += [(query.id, prompt) for query, prompt in zip(queries, prompts, strict=True)]
            assert options["temperature"] == 0.9
            return super().rewrite(queries, prompts, **options)

    given = lab_settings(tmp_path, sums(32), [], [])
    lab = Recording(actor=None, generator=None, **given)  # type: ignore[arg-type]
    cases = [Case(example, "no idea") for example in examples(lab.train[3:5])]
    editor = RewriteEditor(lab, max_tokens=9)
    written = editor([Edit("add", cases), Edit("sum")] * 20, temperature=0.9)
    words = [each.text.split() for each in written]
    assert all(start in ("add", "sum") and added in WORDS for start, added in words)
    assert {name for name, prompt in lab.asked if prompt == "add"} == {row.id for row in lab.train[3:5]}
    assert len({name for name, prompt in lab.asked if prompt == "sum"}) > 5


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    lab = toy_lab(tmp_path, sums(4), sums(4, seed=1), actor=tiny_lm(window=512), generator=tiny_lm(seed=1, window=512))
    settings = Settings(rounds=2, beam=1, all_pairs=False, cases=1, scored_rows=2, proposal_tokens=6)
    fitted = CFPO(settings).fit(lab)
    queries = [to_query(row) for row in lab.dev]
    fitted.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy", lab).respond(queries) == fitted.respond(queries)


def test_without_a_generator_it_is_skipped_with_a_reason(tmp_path: Path) -> None:
    assert "generator" in str(CFPO().skip(toy_lab(tmp_path, [])))
