"""A server as proposer: it is asked, metered and believed, and what goes wrong with it is one line that says so."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import dspy
import pytest

from baselines.cfpo import CFPO
from baselines.cfpo import Settings as CFPOSettings
from baselines.copro import COPRO
from baselines.copro import Settings as COPROSettings
from baselines.gepa import GEPA
from baselines.gepa import Settings as GEPASettings
from baselines.miprov2 import MIPROv2
from baselines.miprov2 import Settings as MIPROSettings
from baselines.opro import OPRO, Settings
from baselines.shared.dspy_bridge import LMEngine, VerbatimAdapter, proposer_client, user_errors
from metatuner.config import load_config
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget, BudgetExceeded
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.proposer import ProposerServer
from metatuner.harness.rows import rows_to_text
from metatuner.lm import render
from metatuner.run.fitting import FitTask, Outcome, run_fit
from metatuner.run.models import ModelPool
from tests.baselines.test_cfpo import scripted as scripted_for_cfpo
from tests.baselines.test_dspy import scripted as scripted_for_dspy
from tests.baselines.test_opro import GOOD, WORDS, scripted
from tests.toys.baselines import sums, tiny_lm, toy_lab
from tests.toys.plan import plan
from tests.toys.serving import Server as ToyServer

KEY = "sk-secret-4711"
VARIABLE = "TOY_PROPOSER_KEY"
MESSAGES = [{"role": "user", "content": "hello"}]


def completion(text: Any, **changes: Any) -> dict[str, Any]:
    """A reply in the schema of OpenAI's chat completions."""
    reply = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
    return reply | changes


class Server(ToyServer):
    """A server that proposes."""

    def proposer(self, **changes: Any) -> ProposerServer:
        return replace(ProposerServer("toy-8b", self.url), **changes)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts servers, with the key in its variable and no proxy before them."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started: list[Server] = []

    def start(answer: Any) -> Server:
        started.append(Server(answer if callable(answer) else lambda number, body: answer))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def improver(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    """Follows OPRO's meta-prompt: the best text so far, which stands last, and a word."""
    shown = body["messages"][-1]["content"].split("\n\nProblems")[0]
    best = shown.rsplit("text:\n", 1)[1].split("\nscore:")[0]
    return 200, completion(f"Sure: [{best} {Random(number).choice(WORDS)}]"), {}


def test_opro_finds_the_optimum_by_a_servers_proposals_and_every_call_is_metered(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, events = serve(improver), []  # type: ignore[var-annotated]
    lab = scripted(tmp_path, events)
    lab.proposer = server.proposer(key_variable=VARIABLE)
    policy = OPRO(Settings(steps=12, scored_rows=15)).fit(lab)
    assert set(policy.prompts["gsm8k"].split()) >= GOOD
    assert len(server.requests) == 12 * 8
    used = lab.budget.by_model["proposer"].as_dict()
    assert used == {
        "lm_calls": 96,
        "prompt_tokens": 96 * 11,
        "generated_tokens": 96 * 7,
        "trained_tokens": 0,
        "flops": 0,
    }
    answers = lab.budget.used.lm_calls - 96  # the scripted actor's: two tokens each
    assert lab.budget.used.generated_tokens == 96 * 7 + 2 * answers
    assert set(server.paths) == {"/v1/chat/completions"}
    assert set(server.keys) == {f"Bearer {KEY}"}
    first = server.requests[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("toy-8b", 1.0, 128)
    assert [turn["role"] for turn in first["messages"]] == ["system", "user"]
    assert len({body["seed"] for body in server.requests[:8]}) == 8


def test_headers_that_are_meant_for_another_server_are_not_sent(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Gateway: {KEY}\nX-Other: 1")
    monkeypatch.setenv("OPENAI_ORG_ID", KEY)
    monkeypatch.setenv("OPENAI_PROJECT_ID", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve((200, completion("x"), {}))
    server.proposer().chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)
    assert KEY not in server.headers[0]
    assert "X-Other" not in server.headers[0]


def test_cfpo_asks_the_server_too_at_a_temperature_that_falls(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve((200, completion("[alpha gamma sigma]"), {}))
    lab = scripted_for_cfpo(tmp_path, [])
    lab.proposer = server.proposer()
    policy = CFPO(CFPOSettings(rounds=3, beam=2, scored_rows=15)).fit(lab)
    assert "alpha gamma sigma" in policy.prompts["gsm8k"]
    temperatures = [round(body["temperature"], 3) for body in server.requests]
    assert temperatures[0] > temperatures[-1] == 0.7
    assert set(server.keys) == {None}


MARKED = "[[ ## {} ## ]]\nalpha gamma"


@pytest.mark.parametrize(
    ("reply", "taken"),
    [("alpha gamma", False), (MARKED, True), (f"{MARKED}\n\n[[ ## completed ## ]]", True)],
    ids=["without the marker", "cut off", "whole"],
)
@pytest.mark.parametrize(
    "method",
    [
        COPRO(COPROSettings(breadth=3, depth=2, scored_rows=16)),
        MIPROv2(MIPROSettings(candidates=4, trials=8)),
        GEPA(GEPASettings(answers=100, minibatch=8)),
    ],
    ids=lambda method: method.name,
)
def test_dspys_own_optimizers_ask_the_server_too_and_take_what_it_marks_as_the_instruction(
    method: Method, reply: str, taken: bool, serve: Callable[..., Server], tmp_path: Path
) -> None:
    field = "new_instruction" if method.name == "gepa" else "proposed_instruction"
    server = serve((200, completion(reply.format(field)), {}))
    lab = scripted_for_dspy(tmp_path, [])
    lab.proposer = server.proposer()
    policy = method.fit(lab)
    assert isinstance(policy, StaticPolicy)
    assert policy.prompts == {"gsm8k": "alpha gamma" if taken else lab.initial_prompt("gsm8k")}
    assert lab.budget.by_model["proposer"].usage.lm_calls == len(server.requests) > 0
    p = lab.initial_prompt("gsm8k")
    assert any(p in turn["content"] for body in server.requests for turn in body["messages"])


@pytest.mark.parametrize("method", [COPRO(), MIPROv2(), GEPA(GEPASettings(answers=60))], ids=lambda method: method.name)
def test_a_server_that_refuses_ends_a_search_of_dspys_with_its_one_line(
    method: Method, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve((401, {"error": {"message": "who are you"}}, {}))
    lab = scripted_for_dspy(tmp_path, [])
    lab.proposer = server.proposer()
    with pytest.raises(UserError, match=r"^config key 'models.proposer.key_variable': .* wants a key \(401"):
        method.fit(lab)


class TinyPool(ModelPool):
    """A pool of random models made on the spot."""

    def __init__(self) -> None:
        super().__init__({})

    def get(self, role: str, *, share: bool) -> Any:
        return tiny_lm(window=512)


def fitted(folder: Path, server: ProposerServer | None) -> Outcome:
    """What becomes of an OPRO fit whose rows, models and files are those of the harness."""
    pool = folder / "pool.jsonl"
    pool.write_text(rows_to_text(sums(20)), encoding="utf-8")
    task = FitTask(
        key="k",
        method=OPRO(Settings(steps=1, samples=2, scored_rows=4)),
        benchmarks={"gsm8k": get_benchmark("gsm8k").with_overrides(max_new_tokens=3)},
        pools={"gsm8k": pool},
        sizes={"gsm8k": (8, 4)},
        generator="large",
        seed=0,
        budget=Budget(),
        prerequisites={},
        batch_tokens=512,
        identity={},
        proposer=server,
    )
    return run_fit(task, TinyPool(), folder / "fit", folder / "failed.txt", share=False)


def test_a_fit_says_in_its_log_what_cannot_be_repeated_and_writes_the_key_nowhere(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve((200, completion("[add them]"), {}))
    assert fitted(tmp_path, server.proposer(key_variable=VARIABLE)).status == "ok"
    first = json.loads((tmp_path / "fit" / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (first["event"], first["model"], first["server"]) == ("proposer", "toy-8b", server.url)
    assert "not reproducible" in first["note"]
    cost = json.loads((tmp_path / "fit" / "cost.json").read_text(encoding="utf-8"))
    assert cost["by_model"]["proposer"]["lm_calls"] == 2
    assert cost["lm_calls"] == sum(each["lm_calls"] for each in cost["by_model"].values())
    assert server.keys == [f"Bearer {KEY}"] * 2
    assert_no_key(tmp_path)


def test_a_refused_key_fails_the_fit_and_is_not_repeated_in_any_file(
    serve: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve((401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}, {}))
    outcome = fitted(tmp_path, server.proposer(key_variable=VARIABLE))
    assert outcome.status == "failed"
    assert outcome.reason.startswith("config key 'models.proposer.key_variable': ")
    assert "Incorrect API key provided: ***." in outcome.reason
    assert not (tmp_path / "fit").exists()
    assert len(server.requests) <= 2  # those of one step, and no further tries
    assert_no_key(tmp_path)
    assert KEY not in "".join(capsys.readouterr())


def assert_no_key(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": "no"}, "key_variable.*refuses the key in TOY_PROPOSER_KEY.*401: no.*export"),
        (403, b"", "key_variable.*403.*export"),
        (404, {"error": {"message": "no such model"}}, "base_url.*toy-8b.*no such model.*/v1.*or model"),
        (400, {"error": {"message": "max_tokens\nis too large"}}, "model.*400: max_tokens is too large.*name a model"),
        (302, b"", "base_url.*sends elsewhere.*name the address"),
        (200, b"<html>hello</html>", r"base_url.*no chat completion.*choices\[0\].*OpenAI-compatible"),
        (200, [], r"base_url.*choices\[0\]"),
        (200, completion([1]), "base_url.*is no text"),
        (200, completion("x", usage=None), "base_url.*usage.*metered"),
        (200, completion("x", usage={"prompt_tokens": 3, "completion_tokens": -1}), "usage"),
    ],
)
def test_what_no_further_try_mends_is_one_line_at_once(
    serve: Callable[..., Server], status: int, body: Any, said: str
) -> None:
    server = serve((status, body, {"Location": "http://127.0.0.1:9/"} if status == 302 else {}))
    with pytest.raises(UserError, match=rf"^config key 'models\.proposer\..*{said}") as caught:
        server.proposer(key_variable=VARIABLE).chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_server_that_wants_a_key_where_none_is_named_says_where_to_name_it(serve: Callable[..., Server]) -> None:
    server = serve((401, b"", {}))
    with pytest.raises(UserError, match=r"key_variable.*wants a key.*name the variable"):
        server.proposer().chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_as_often_as_the_config_says(serve: Callable[..., Server], status: int) -> None:
    server = serve((status, {"error": {"message": "busy"}}, {"Retry-After": "0"}))
    with pytest.raises(UserError, match=f"failed up to 3 times .{status}: busy.; try later"):
        server.proposer().chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)
    assert len(server.requests) == 3
    mended = serve(lambda number, body: (200, completion("well"), {}) if number else (status, b"", {}))
    assert mended.proposer().chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0).text == "well"
    assert len(mended.requests) == 2


def test_silence_and_absence_are_told_apart(serve: Callable[..., Server]) -> None:
    release = threading.Event()

    def silent(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        release.wait(5)
        return 200, completion("late"), {}

    server = serve(silent)
    with pytest.raises(UserError, match=r"proposer\.timeout.*silent for 0\.1 s once; raise it"):
        server.proposer(timeout=0.1, retries=0).chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)
    release.set()
    gone = serve((200, b"", {}))
    gone.stop()
    with pytest.raises(UserError, match=r"proposer\.base_url.*no answer from .*refused.*asked up to 3 times; start"):
        gone.proposer().chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)


def test_no_answer_without_a_key_in_the_environment(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve((200, completion("x"), {}))
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=f"key_variable': the environment variable {VARIABLE} is not set; export it"):
        server.proposer(key_variable=VARIABLE).chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)
    monkeypatch.setenv(VARIABLE, "two\nlines")
    with pytest.raises(UserError, match="holds no key") as caught:
        server.proposer(key_variable=VARIABLE).chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)
    assert "lines" not in str(caught.value)
    assert not server.requests


def test_an_empty_reply_is_a_proposal_and_a_cut_one_is_marked(serve: Callable[..., Server]) -> None:
    reply = completion(None)
    reply["choices"][0]["finish_reason"] = "length"
    answer = serve((200, reply, {})).proposer().chat(MESSAGES, temperature=1.0, max_tokens=9, seed=0)
    assert (answer.text, answer.truncated) == ("", True)


def test_a_server_is_shown_the_demonstrations_before_the_query_and_each_sample_is_metered(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        usage = {"prompt_tokens": 10 + number, "completion_tokens": 100 * (1 + number)}
        return 200, completion(f"reply {body['seed']}", usage=usage), {}

    server = serve(answer)
    lab = toy_lab(tmp_path, [], proposer=server.proposer())
    client = proposer_client(lab, temperature=0.8, max_tokens=9, fan_out=2)
    predict = dspy.Predict(dspy.Signature("query -> answer", "say"))
    predict.demos = [{"query": "a", "answer": "b"}, {"query": "c", "answer": "d"}]
    with dspy.context(lm=client, adapter=VerbatimAdapter(), disable_history=True):
        told = predict(query="e", config={"n": 2}).completions.answer
    assert len(set(told)) == 2
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    expected = [{"role": role, "content": text} for role, text in zip(roles, ["say", *"abcde"], strict=True)]
    assert [body["messages"] for body in server.requests] == [expected] * 2
    assert {(body["temperature"], body["max_tokens"]) for body in server.requests} == {(0.8, 9)}
    used = lab.budget.by_model["proposer"].usage
    assert (used.lm_calls, used.prompt_tokens, used.generated_tokens) == (2, 21, 300)
    assert lab.budget.used == used
    # Another seed of the lab asks with others.
    other = proposer_client(toy_lab(tmp_path, [], proposer=server.proposer(), seed=1), temperature=0.8, max_tokens=9)
    with dspy.context(lm=other, adapter=VerbatimAdapter(), disable_history=True):
        predict(query="e")
    assert len({body["seed"] for body in server.requests}) == 3


def test_no_request_goes_out_beyond_the_budget(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve((200, completion("x"), {}))
    lab = toy_lab(tmp_path, [], proposer=server.proposer(), budget=Budget({"lm_calls": 5}, "five"))
    client = proposer_client(lab, temperature=1.0, max_tokens=9, fan_out=3)
    predict = dspy.Predict(dspy.Signature("query -> answer", "say"))
    with dspy.context(lm=client, adapter=VerbatimAdapter(), disable_history=True):
        assert predict(query="a", config={"n": 3}).completions.answer == ["x"] * 3
        with pytest.raises(BudgetExceeded, match="five"), user_errors():
            predict(query="b", config={"n": 3})
    assert len(server.requests) == 3


def test_without_a_server_the_generator_proposes_as_its_engine_does(tmp_path: Path) -> None:
    lm = tiny_lm()
    lab = toy_lab(tmp_path, [], generator=lm)

    def said(client: dspy.LM) -> list[str]:
        with dspy.context(lm=client, adapter=VerbatimAdapter(), disable_history=True):
            predict = dspy.Predict(dspy.Signature("query -> answer", "say"))
            return [*predict(query="a", config={"n": 3}).completions.answer, predict(query="a").answer]

    engine = LMEngine(lm, seed=lab.stream("proposals"), fan_out=3)
    expected = said(engine.client(temperature=1.0, max_tokens=5))
    assert len(set(expected)) > 1
    assert said(proposer_client(lab, temperature=1.0, max_tokens=5, fan_out=3)) == expected


def test_a_request_that_the_generators_window_cuts_is_in_the_log(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = toy_lab(tmp_path, [], generator=tiny_lm(window=32), events=events)
    predict = dspy.Predict(dspy.Signature("query -> answer", "say"))
    client = proposer_client(lab, temperature=0.0, max_tokens=5)
    with dspy.context(lm=client, adapter=VerbatimAdapter(), disable_history=True):
        predict(query="a")
        assert events == []
        predict(query="tom has 3 apples " * 20)
    long, short = (len(render(tiny_lm(), "say", query).ids) for query in ("tom has 3 apples " * 20, "a"))
    assert long > 32 > short
    assert events == [{"event": "request cut", "tokens": long - (32 - 5), "demos": 0}]


SERVER = {"model": "toy-8b", "base_url": "http://127.0.0.1:8000/v1"}


def test_only_fits_that_ask_the_server_depend_on_it() -> None:
    methods = {"experiments.main.methods": ["opro", "cfpo", "sft", "metatuner_j"]}
    instruct = methods | {"methods.opro": {"settings": {"proposer": "instruct"}}}

    def keys(overrides: dict[str, Any], server: dict[str, Any] | None) -> dict[str, set[str]]:
        made = plan(overrides | {"models.proposer": server})
        found: dict[str, set[str]] = {}
        for fit in made.grid.fits.values():
            found.setdefault(fit.method, set()).add(fit.key)
        found["search"] = {made.settings.winner_key("opro", "gsm8k")}
        return found

    assert keys(methods, None) == keys(methods, SERVER)
    without, named = keys(instruct, None), keys(instruct, SERVER)
    changed = {name for name in without if without[name] != named[name]}
    assert changed == {"opro", "search"}
    assert not without["opro"] & named["opro"]
    for other in ({"model": "toy-70b"}, {"base_url": "https://elsewhere.org/v1"}):
        assert not named["opro"] & keys(instruct, SERVER | other)["opro"]
    reached = {"timeout": 5.0, "retries": 0, "key_variable": VARIABLE}
    assert named == keys(instruct, SERVER | reached)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key_variable": KEY}, "models.proposer.*name of an environment variable"),
        ({"base_url": f"https://me:{KEY}@host/v1"}, "models.proposer.*without user, password or query"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "models.proposer.*without user, password or query"),
        ({"base_url": "127.0.0.1:8000"}, "models.proposer.*http://"),
        ({"timeout": 0.0}, "models.proposer.timeout"),
        ({"modle": "x"}, "unknown config key 'models.proposer.modle'"),
    ],
)
def test_a_wrong_proposer_is_refused_before_anything_runs_and_its_key_not_shown(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_config("nano", {"models.proposer": SERVER | changes})
    assert KEY not in str(caught.value)
