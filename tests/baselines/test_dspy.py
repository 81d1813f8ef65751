"""COPRO, MIPROv2, GEPA and BootstrapFewShot: searches with a known optimum, DSPy's optimizers on the common ground."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import dspy
import pytest

from baselines.bootstrap_few_shot import BootstrapFewShot
from baselines.bootstrap_few_shot import Settings as BootstrapSettings
from baselines.copro import COPRO
from baselines.copro import Settings as COPROSettings
from baselines.gepa import GEPA
from baselines.gepa import Settings as GEPASettings
from baselines.miprov2 import MIPROv2
from baselines.miprov2 import Settings as MIPROSettings
from baselines.shared.dspy_program import BASE, AnswerBook, DemonstratedActor, places
from baselines.shared.dspy_proposals import InstructionAdapter, RewriteAdapter, RewriteEngine
from baselines.shared.proposing import Proposal
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import load_policy
from metatuner.harness.proposer import Reply
from metatuner.harness.query import Demo, Query, Response, to_query
from metatuner.harness.rows import Row
from tests.toys.baselines import NEW_TOKENS, PAIR, lab_settings, like, mixed_rows, sums, tiny_lm, toy_lab

WORDS = ("alpha", "beta", "gamma")
GOOD = frozenset({"alpha", "gamma"})
OWN = "as i see it"
"""What the actor writes before a right answer, and no reference does."""


def group(query: Query) -> int:
    return int(query.id.split("-")[1]) % 4


class ScriptedLab(Lab):
    """A quarter of the rows is solved whatever happens, another by each of the two good words in the instruction, the
    last by a demonstration in the actor's own words. The generator adds a random word."""

    batches: list[int]

    def answer(
        self,
        queries: Sequence[Query],
        prompts: str | Sequence[str],
        *,
        demos: Sequence[Sequence[Demo]] | None = None,
        **options: Any,
    ) -> list[Response]:
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        vars(self).setdefault("batches", []).append(len(queries))
        rows = {row.id: row for row in (*self.train, *self.dev)}
        asked = [prompts] * len(queries) if isinstance(prompts, str) else prompts
        found = []
        for query, prompt, shots in zip(queries, asked, demos or [[]] * len(queries), strict=True):
            assert query.text not in [before for before, _ in shots]
            words = set(prompt.split())
            solved = {0} | ({1} if "alpha" in words else set()) | ({2} if "gamma" in words else set())
            solved |= {3} if any(answer.startswith(OWN) for _, answer in shots) else set()
            text = f"{OWN} {rows[query.id].target}" if group(query) in solved else "no idea"
            found.append(Response(prompt, text, 1, 2, False))
        return found

    def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
        self.budget.add(lm_calls=len(queries), generated_tokens=2 * len(queries))
        return [
            f"{prompt} {Random(seed).choice(WORDS)}" for prompt, seed in zip(prompts, options["seeds"], strict=True)
        ]


def distinct(count: int, seed: int) -> list[Row]:
    """Rows of different queries, numbered through."""
    rows = list({row.query: row for row in sums(3 * count, seed)}.values())[:count]
    return [Row(**{**vars(row), "id": f"{seed}-{index}"}) for index, row in enumerate(rows)]


def scripted(workdir: Path, events: list[dict[str, Any]], *, seed: int = 0, **limits: int) -> ScriptedLab:
    settings = lab_settings(workdir, distinct(32, 0), distinct(16, 1), events)
    # A server stands for the generator where a method asks whether there is one.
    return ScriptedLab(actor=tiny_lm(), generator=tiny_lm(), seed=seed, budget=Budget(limits, "toy"), **settings)


METHODS: dict[str, tuple[Method, float]] = {
    "copro": (COPRO(COPROSettings(proposer="rewrite", breadth=6, depth=4, scored_rows=16)), 0.75),
    "miprov2": (MIPROv2(MIPROSettings(proposer="rewrite", candidates=8, trials=30)), 0.75),
    "gepa": (GEPA(GEPASettings(proposer="rewrite", answers=500, minibatch=8)), 0.75),
    "bootstrap_few_shot": (BootstrapFewShot(BootstrapSettings(bootstrapped=2, labeled=4)), 0.5),
}
"""With what is the best each can reach: COPRO and GEPA search no demonstrations; MIPROv2's instructions are p~ and one
word; BootstrapFewShot searches no instruction."""


SHORT: dict[str, Method] = {
    **{name: method for name, (method, _) in METHODS.items()},
    "gepa": GEPA(GEPASettings(proposer="rewrite", answers=150, minibatch=8)),
}
"""For searches that never get anywhere: GEPA counts answers that it does not get, and goes on."""


def fitted(name: str, workdir: Path, *, seed: int = 0, **limits: int) -> tuple[StaticPolicy, list[dict[str, Any]], Lab]:
    events: list[dict[str, Any]] = []
    lab = scripted(workdir, events, seed=seed, **limits)
    policy = METHODS[name][0].fit(lab)
    assert isinstance(policy, StaticPolicy)
    return policy, events, lab


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", METHODS)
def test_the_optimum_is_found(name: str, seed: int, tmp_path: Path) -> None:
    policy, _, lab = fitted(name, tmp_path, seed=seed)
    before = StaticPolicy(lab, {"gsm8k": lab.initial_prompt("gsm8k")}).respond([to_query(row) for row in lab.dev])
    assert sum(lab.reward(lab.dev, before)) == 4
    answers = policy.respond([to_query(row) for row in lab.dev])
    assert sum(lab.reward(lab.dev, answers)) / len(lab.dev) == METHODS[name][1]


def test_copro_copies_any_number_of_candidates(tmp_path: Path) -> None:
    limit = sys.getrecursionlimit()
    settings = COPROSettings(proposer="rewrite", breadth=8, depth=12, scored_rows=4)
    assert COPRO(settings).fit(scripted(tmp_path, [])).prompts
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_policy_and_another_seed_another_search(name: str, tmp_path: Path) -> None:
    def search(folder: str, seed: int) -> tuple[bytes, list[dict[str, Any]], int]:
        policy, events, lab = fitted(name, tmp_path, seed=seed)
        policy.save(tmp_path / folder)
        return (tmp_path / folder / "manifest.json").read_bytes(), events, lab.budget.used.lm_calls

    first, again, other = search("a", 0), search("b", 0), search("c", 1)
    assert first == again
    assert first != other
    lab = scripted(tmp_path, [])
    queries = [to_query(row) for row in lab.dev]
    assert load_policy(tmp_path / "a", lab).respond(queries) == fitted(name, tmp_path)[0].respond(queries)


@pytest.mark.parametrize(("name", "calls"), [("copro", 60), ("miprov2", 500), ("gepa", 60)])
def test_where_the_budget_ends_the_search_the_best_so_far_is_kept(name: str, calls: int, tmp_path: Path) -> None:
    policy, events, lab = fitted(name, tmp_path, lm_calls=calls)
    assert {"event": "budget", "found": True} in events
    assert 16 <= lab.budget.used.lm_calls <= calls
    assert policy.prompts["gsm8k"].startswith(lab.initial_prompt("gsm8k"))


@pytest.mark.parametrize("name", ["miprov2", "bootstrap_few_shot"])
def test_a_budget_that_ends_within_the_bootstrap_leaves_the_initial_prompt(name: str, tmp_path: Path) -> None:
    limit = {"miprov2": 40, "bootstrap_few_shot": 2}[name]
    policy, events, lab = fitted(name, tmp_path, lm_calls=limit)
    assert {"event": "budget", "found": False} in events
    assert policy.prompts == {"gsm8k": lab.initial_prompt("gsm8k")}
    assert policy.demos == {"gsm8k": []}
    assert lab.budget.used.lm_calls <= limit


@pytest.mark.parametrize("name", ["copro", "miprov2", "gepa"])
def test_a_budget_below_the_first_candidate_is_refused_before_a_call(name: str, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = scripted(tmp_path, events, lm_calls=10)
    with pytest.raises(
        UserError, match=rf"^{name}: the budget does not cover 16 answers under p~; raise it in the preset"
    ):
        METHODS[name][0].fit(lab)
    assert lab.budget.used.lm_calls == 0


@pytest.mark.parametrize("name", METHODS)
def test_an_error_of_the_actor_is_the_error_of_the_fit(name: str, tmp_path: Path) -> None:
    class Broken(ScriptedLab):
        def answer(self, *args: Any, **options: Any) -> list[Response]:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        SHORT[name].fit(like(scripted(tmp_path, []), Broken))


@pytest.mark.parametrize("error", [UserError("the generator is gone"), RuntimeError("out of memory")], ids=repr)
@pytest.mark.parametrize("name", ["copro", "miprov2", "gepa"])
def test_an_error_of_the_proposer_is_the_error_of_the_fit(name: str, error: Exception, tmp_path: Path) -> None:
    calls = []

    class Broken(ScriptedLab):
        def rewrite(self, *args: Any, **options: Any) -> list[str]:
            calls.append(1)
            raise error

    with pytest.raises(type(error), match=str(error)):
        SHORT[name].fit(like(scripted(tmp_path, []), Broken))
    assert calls == [1]


@pytest.mark.parametrize("name", ["copro", "gepa"])
def test_a_generator_that_changes_nothing_ends_the_search_at_the_budget_and_not_beyond(
    name: str, tmp_path: Path
) -> None:
    class Idle(ScriptedLab):
        def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
            self.budget.add(lm_calls=len(queries))
            return list(prompts)

    for calls in range(52, 60, 2):
        lab = like(scripted(tmp_path, [], lm_calls=calls), Idle)
        policy = SHORT[name].fit(lab)
        assert isinstance(policy, StaticPolicy)
        assert policy.prompts == {"gsm8k": lab.initial_prompt("gsm8k")}


@pytest.mark.parametrize("name", ["copro", "miprov2", "gepa"])
def test_an_empty_proposal_is_the_instruction_that_it_was_to_improve(name: str, tmp_path: Path) -> None:
    prompts: set[str] = set()

    class Mute(ScriptedLab):
        def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
            return [" "] * len(queries)

        def answer(self, queries: Sequence[Query], asked: str | Sequence[str], **options: Any) -> list[Response]:
            prompts.update([asked] if isinstance(asked, str) else asked)
            return super().answer(queries, asked, **options)

    lab = like(scripted(tmp_path, []), Mute)
    METHODS[name][0].fit(lab)
    assert prompts == {lab.initial_prompt("gsm8k")}


@pytest.mark.parametrize("name", ["miprov2", "gepa"])
def test_dev_rows_choose_where_train_rows_would_choose_otherwise(name: str, tmp_path: Path) -> None:
    class Misleading(ScriptedLab):
        """Train rows are solved by `beta`, and by nothing else; dev rows are as ever."""

        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            found = super().answer(queries, prompts, **options)
            asked = [prompts] * len(queries) if isinstance(prompts, str) else prompts
            rows = {row.id: row for row in self.train}
            return [
                Response(prompt, rows[query.id].target if "beta" in prompt else "no idea", 1, 2, False)
                if query.id in rows
                else one
                for query, prompt, one in zip(queries, asked, found, strict=True)
            ]

    policy = METHODS[name][0].fit(like(scripted(tmp_path, []), Misleading))
    assert isinstance(policy, StaticPolicy)
    words = set(policy.prompts["gsm8k"].split())
    assert "beta" not in words or words & GOOD


def test_trained_on_two_benchmarks_rows_are_bootstrapped_under_their_own_prompt(tmp_path: Path) -> None:
    asked: set[tuple[str, str]] = set()

    class Listening(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            told = [prompts] * len(queries) if isinstance(prompts, str) else prompts
            asked.update((query.benchmark, prompt) for query, prompt in zip(queries, told, strict=True))
            return super().answer(queries, prompts, **options)

    lab = like(scripted(tmp_path, []), Listening)
    lab.benchmarks = {"math": get_benchmark("math"), **lab.benchmarks}
    lab.trained_on = ("math", "gsm8k")
    lab.train = [Row(**{**vars(row), "benchmark": "math"}) if i % 2 else row for i, row in enumerate(lab.train)]
    policy = BootstrapFewShot(BootstrapSettings(bootstrapped=4, labeled=4)).fit(lab)
    assert asked == {(name, lab.initial_prompt(name)) for name in lab.trained_on}
    assert policy.prompts == {name: lab.initial_prompt(name) for name in lab.trained_on}


@pytest.mark.parametrize("name", ["copro", "miprov2", "gepa"])
def test_trained_on_two_benchmarks_the_search_starts_from_the_first_and_asks_rows_of_both(
    name: str, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []

    class Listening(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            assert not isinstance(prompts, str)
            asked.extend((query.benchmark, prompt) for query, prompt in zip(queries, prompts, strict=True))
            return super().answer(queries, prompts, **options)

    lab = toy_lab(tmp_path, mixed_rows(24), mixed_rows(12, seed=1), actor=tiny_lm(), generator=tiny_lm())
    lab = like(lab, Listening, benchmarks=PAIR, trained_on=("math", "gsm8k"))
    policy = METHODS[name][0].fit(lab)
    assert isinstance(policy, StaticPolicy)
    assert policy.prompts["gsm8k"] == policy.prompts["math"]
    first = lab.initial_prompt("math")
    assert first in {prompt for _, prompt in asked}
    assert all(prompt.startswith(first) for _, prompt in asked)
    assert {benchmark for benchmark, _ in asked} == {"gsm8k", "math"}


@pytest.mark.parametrize("what", ["lm_calls", "generated_tokens"])
@pytest.mark.parametrize("name", ["copro", "miprov2", "gepa"])
def test_a_search_begins_if_the_answers_under_p_and_its_proposals_are_left_and_else_not(
    name: str, what: str, tmp_path: Path
) -> None:
    # 16 rows score a candidate; beside them stand the proposals: COPRO's six a round, GEPA's one, MIPROv2's eight and
    # the twelve that describe the data.
    proposals, longest = {"copro": (6, 128), "gepa": (1, 512), "miprov2": (8 + 12, 128)}[name]
    needed = {"lm_calls": 16 + proposals, "generated_tokens": 16 * NEW_TOKENS + proposals * longest}[what]
    lab = scripted(tmp_path, [], **{what: needed - 1})
    short = {"copro": {"depth": 1}, "gepa": {"answers": 40}, "miprov2": {"trials": 1}}[name]
    method = type(METHODS[name][0])(replace(METHODS[name][0].settings, **short))
    with pytest.raises(UserError, match="does not cover 16 answers under p~"):
        method.fit(lab)
    assert lab.budget.used.lm_calls == 0
    method.fit(lab := scripted(tmp_path, [], **{what: needed}))
    assert lab.budget.used.lm_calls > 0
    assert lab.budget.left(what) >= 0


def test_copro_scores_on_rows_drawn_from_all_of_them(tmp_path: Path) -> None:
    asked: set[str] = set()

    class Listening(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            asked.update(query.id for query in queries)
            return super().answer(queries, prompts, **options)

    lab = like(scripted(tmp_path, []), Listening)
    METHODS["copro"][0].fit(lab)
    assert len(asked) == 16
    assert asked < {row.id for row in lab.train}
    assert asked != {row.id for row in lab.train[:16]}


def test_a_round_of_copro_has_as_many_instructions_as_it_is_broad(tmp_path: Path) -> None:
    asked: set[str] = set()

    class Listening(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            asked.update([prompts] if isinstance(prompts, str) else prompts)
            return super().answer(queries, prompts, **options)

    for depth in (1, 2):
        asked.clear()
        lab = like(scripted(tmp_path, []), Listening)
        COPRO(COPROSettings(proposer="rewrite", breadth=2, depth=depth)).fit(lab)
        assert lab.initial_prompt("gsm8k") in asked
        assert 1 < len(asked) <= 2 * depth


@pytest.mark.parametrize("shots", [1, 2])
def test_miprov2_shows_no_more_demonstrations_than_it_may(shots: int, tmp_path: Path) -> None:
    sizes: set[int] = set()

    class Listening(ScriptedLab):
        def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
            sizes.update(len(each) for each in options["demos"])
            return super().answer(queries, prompts, **options)

    method = MIPROv2(MIPROSettings(proposer="rewrite", candidates=6, trials=6, shots=shots))
    method.fit(like(scripted(tmp_path, []), Listening))
    assert max(sizes) == shots


def test_a_query_that_the_book_was_not_asked_for_comes_with_as_many_as_are_known(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    book = AnswerBook(lab)
    program = DemonstratedActor(book, dspy.LM(BASE, cache=False), "alpha")
    last = places(lab.train)[-1]
    text, reward = book.answer(program, last)
    assert (text != "no idea", reward) == (group(to_query(lab.train[-1])) in (0, 1), float(text != "no idea"))
    assert vars(lab)["batches"] == [16]
    assert book.score(program, lab.train) is None
    for place in places(lab.train):
        book.answer(program, place)
    assert vars(lab)["batches"] == [16, 16]
    assert book.score(program, lab.train) == 0.5


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_answered_in_batches(name: str, tmp_path: Path) -> None:
    _, _, lab = fitted(name, tmp_path)
    batches = vars(lab)["batches"]
    assert sum(batches) / len(batches) >= 5


def test_bootstrapped_demonstrations_are_the_actors_own_right_answers(tmp_path: Path) -> None:
    policy, _, lab = fitted("bootstrap_few_shot", tmp_path)
    targets = {row.query: row.target for row in lab.train}
    demos = policy.demos["gsm8k"]
    own = [(asked, answer) for asked, answer in demos if answer.startswith(OWN)]
    assert (len(own), len(demos)) == (2, 4)
    assert all(answer == f"{OWN} {targets[asked]}" for asked, answer in own)
    assert all(answer == targets[asked] for asked, answer in demos if (asked, answer) not in own)


def test_without_dev_rows_the_searches_score_on_train_rows(tmp_path: Path) -> None:
    for name in ("miprov2", "gepa"):
        bare = scripted(tmp_path, [])
        bare.dev = []
        policy = METHODS[name][0].fit(bare)
        assert isinstance(policy, StaticPolicy)
        assert GOOD & set(policy.prompts["gsm8k"].split())


# ---- the program ---------------------------------------------------------------------------------------------------


def test_a_program_answers_as_its_policy_does_and_never_sees_a_query_among_its_demonstrations(tmp_path: Path) -> None:
    rows = distinct(6, 0)
    lab = toy_lab(tmp_path, rows, actor=tiny_lm())
    book = AnswerBook(lab)
    program = DemonstratedActor(book, dspy.LM(BASE, cache=False), "say it")
    program.predict.demos = [{"query": row.query, "answer": row.target} for row in rows[:2]]
    found = [book.answer(program.deepcopy(), place)[0] for place in places(rows)]
    for row, text in zip(rows, found, strict=True):
        demos = {"gsm8k": [(other.query, other.target) for other in rows[:2] if other is not row]}
        (expected,) = StaticPolicy(lab, {"gsm8k": "say it"}, demos).respond([to_query(row)])
        assert text == expected.completion
    copied = program.deepcopy()
    copied.predict.signature = copied.predict.signature.with_instructions("say more")
    assert (program.instruction, copied.instruction) == ("say it", "say more")
    assert program.reset_copy().predict.demos == []


def test_the_best_of_a_book_is_the_first_of_equals_among_those_asked_on_all_rows(tmp_path: Path) -> None:
    lab = scripted(tmp_path, [])
    book = AnswerBook(lab)
    for instruction, rows in (("beta", lab.dev), ("alpha", lab.dev), ("gamma", lab.dev), ("alpha gamma", lab.train)):
        program = DemonstratedActor(book, dspy.LM(BASE, cache=False), instruction)
        book.answer(program, places(rows)[0])
    found = book.best(lab.dev)
    assert found is not None
    assert found.instruction == "alpha"
    assert book.best([*lab.dev, *lab.train]) is None


# ---- proposals -----------------------------------------------------------------------------------------------------


def test_a_rewriter_is_asked_for_the_best_instruction_with_new_rows_and_seeds(tmp_path: Path) -> None:
    class Listening(ScriptedLab):
        wanted: list[tuple[Sequence[Query], dict[str, Any]]] = []

        def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
            self.wanted.append((queries, options))
            return super().rewrite(queries, prompts, **options)

    lab = like(scripted(tmp_path, []), Listening)
    client = RewriteEngine(lab, seed=1, fan_out=4).client(temperature=0.7, max_tokens=8)
    attempts = ["Instruction #1: worse", "Prefix #1: ", "Resulting Score #1: 10", "Instruction #2: a: b"]
    with dspy.context(lm=client, adapter=RewriteAdapter()):
        predict = dspy.Predict("attempted_instructions -> proposed_instruction, prefix")
        first = predict(attempted_instructions=attempts, config={"n": 4})
        again = predict(attempted_instructions=attempts, config={"n": 4})
        basic = dspy.Predict("basic_instruction -> proposed_instruction")(basic_instruction="c d")
    texts = first.completions.proposed_instruction
    assert all(text.startswith("a: b ") and text.split()[-1] in WORDS for text in texts)
    assert texts != again.completions.proposed_instruction
    assert first.completions.prefix == [""] * 4
    assert len({query.id for queries, _ in lab.wanted for query in queries}) > 3
    assert {(o["temperature"], o["max_new_tokens"]) for _, o in lab.wanted} == {(0.7, 8)}
    seeds = [seed for _, options in lab.wanted for seed in options["seeds"]]
    assert len(set(seeds)) == len(seeds) == 12
    assert basic.proposed_instruction.startswith("c d ")


def test_a_reply_that_does_not_mark_its_instruction_is_refused_and_the_one_to_improve_stays() -> None:
    signature = dspy.Signature("basic_instruction -> proposed_instruction, prefix")
    noted: list[Proposal] = []
    adapter = InstructionAdapter(noted.append)
    turns = adapter.format(signature, [], {"basic_instruction": "be brief"})
    assert turns[-1]["content"].rindex("be brief") < turns[-1]["content"].index("[[ ## proposed_instruction ## ]]")
    marked = "[[ ## proposed_instruction ## ]]\nthink\n\n[[ ## prefix ## ]]\nso\n\n[[ ## completed ## ]]"
    assert adapter.parse(signature, marked) == {"proposed_instruction": "think", "prefix": "so"}
    assert adapter.parse(signature, marked.replace("prefix", "suffix")) == {
        "proposed_instruction": "think",
        "prefix": "",
    }
    kept = {"proposed_instruction": "be brief", "prefix": ""}
    assert adapter.parse(signature, " The answer is 7. ") == kept
    assert adapter.parse(signature, marked.replace("think", " ")) == kept | {"prefix": "so"}
    assert noted == [
        Proposal("think"),
        Proposal("think"),
        Proposal("The answer is 7.", "no marker"),
        Proposal("", "empty"),
    ]


def test_a_description_of_the_data_may_come_in_any_form_and_is_no_proposal() -> None:
    noted: list[Proposal] = []
    signature = dspy.Signature("examples -> observations")
    assert InstructionAdapter(noted.append).parse(signature, " short sums ") == {"observations": "short sums"}
    assert noted == []


@pytest.mark.parametrize("name", ["copro", "miprov2", "gepa"])
def test_a_proposer_that_answers_its_examples_makes_no_candidate_and_is_counted(name: str, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    prompts: set[str] = set()

    class Listening(ScriptedLab):
        def answer(self, queries: Sequence[Query], asked: str | Sequence[str], **options: Any) -> list[Response]:
            prompts.update([asked] if isinstance(asked, str) else asked)
            return super().answer(queries, asked, **options)

    class Answers:
        """A server whose model ignores the request."""

        calls = 0

        def chat(self, *args: Any, **options: Any) -> Reply:
            self.calls += 1
            return Reply("The answer is 7.", 5, 4, False)

    server = Answers()
    lab = like(scripted(tmp_path, events), Listening, proposer=server)
    settings = replace(SHORT[name].settings, proposer="instruct")
    policy = type(SHORT[name])(settings).fit(lab)
    assert isinstance(policy, StaticPolicy)
    assert prompts == {lab.initial_prompt("gsm8k")}
    refused = [event["text"] for event in events if event["event"] == "proposal" and event["refused"] == "no marker"]
    (told,) = [event for event in events if event["event"] == "proposals"]
    assert set(refused) == {"The answer is 7."}
    assert told == {"event": "proposals", "made": len(refused), "refused": len(refused)}
    assert lab.budget.by_model["proposer"].usage.lm_calls == server.calls >= len(refused) > 0
