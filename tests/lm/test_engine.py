"""A server answers for a model: as the model in process does, until something needs the weights here."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget, BudgetExceeded
from metatuner.lm import LM, ModelSpec, completion_loss, generate, load_lm, render, render_rewrite
from metatuner.lm.engine import Engine, load_served
from metatuner.nano.keys import WEIGHTS
from tests.toys.baselines import sums
from tests.toys.lm import END, ENDS, random_prompts, tiny_model, word_tokenizer
from tests.toys.serving import Answer, Server, completed, completer

KINDS = ("vllm", "transformers")
STOPS = ("w12", "w30 w31")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts servers, with no proxy before them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started: list[Server] = []

    def start(answer: Any, **how: Any) -> Server:
        started.append(Server(answer if callable(answer) else lambda number, body: answer, **how))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "begins"])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A saved model; `begins`: its tokenizer itself puts a begin of text before every text."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    word_tokenizer(begins=request.param).save_pretrained(folder)
    return ModelSpec(str(folder), device="cpu")


def never() -> LM:
    raise AssertionError("the weights were loaded")


def served(spec: ModelSpec, at: Server, load: Callable[[], LM] = never, **changes: Any) -> LM:
    engine = Engine("toy", at.url, retries=0, timeout=30, place="models.actor.engine")
    return load_served(spec, replace(engine, **changes), load)


def inputs(lm: LM) -> list[list[int]]:
    """Prompts as an actor reads them; the last is cut by the window."""
    queries = [" ".join(f"w{token}" for token in ids) for ids in random_prompts(12, seed=3)]
    return [render(lm, "w1 w2", query, reserve=10).ids for query in [*queries, "w40 " * 200]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_servers_greedy_answers_are_those_of_the_model_in_process(
    kind: str, spec: ModelSpec, serve: Callable[..., Server]
) -> None:
    local = load_lm(spec)
    server = serve(completer(local))
    lm = served(spec, server, server=kind)
    prompts = inputs(local)
    assert inputs(lm) == prompts
    how: dict[str, Any] = {"max_new_tokens": 10, "stops": STOPS}
    expected, found = generate(local, prompts, **how), generate(lm, prompts, **how)
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.prompt_tokens for each in found] == [len(prompt) for prompt in prompts]
    assert [each.generated_tokens for each in found] == [len(each.ids) for each in expected]
    assert [each.truncated for each in found] == [each.truncated for each in expected]
    # The prompts try all ends: a stop string, an end of turn, the limit.
    assert {each.truncated for each in expected} == {False, True}
    assert any(each.ids[-1] in ENDS for each in expected)
    assert any(not each.truncated and each.ids[-1] not in ENDS for each in expected)
    assert set(server.paths) == {"/v1/completions"}
    assert lm.engine is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_nano_models_answer_and_rewrite_on_a_server_as_in_process(kind: str, serve: Callable[..., Server]) -> None:
    for role in ("actor", "generator"):
        spec = ModelSpec(str(WEIGHTS / role), device="cpu")
        local = load_lm(spec)
        lm = served(spec, serve(completer(local)), server=kind)
        write = render if role == "actor" else render_rewrite
        prompts = [
            write(local, get_benchmark(row.benchmark).initial_prompt, row.query, reserve=32).ids for row in sums(6)
        ]
        expected, found = (generate(each, prompts, max_new_tokens=32, stops=("Q:",)) for each in (local, lm))
        assert [each.text for each in found] == [each.text for each in expected]
        assert [each.generated_tokens for each in found] == [len(each.ids) for each in expected]
        assert any(each.text for each in expected)


def test_a_prompt_that_no_text_gives_is_refused_unless_it_differs_at_one_cut(serve: Callable[..., Server]) -> None:
    spec = ModelSpec(str(WEIGHTS / "actor"), device="cpu")
    local = load_lm(spec)
    lm = served(spec, serve(completer(local)), server="transformers")
    whole = local.encode("apples")
    letters = [local.encode(letter)[-1] for letter in "pples"]  # the tokenizer joins them to fewer tokens
    (found,) = generate(lm, [[*letters, *whole * 5]], max_new_tokens=2)
    assert found.prompt_tokens != len(letters) + 5 * len(whole)  # what the server read
    with pytest.raises(UserError, match=r"engine\.server': .*no text becomes the tokens .* such as vllm"):
        generate(lm, [[*letters, *whole * 5, *letters]], max_new_tokens=2)


def test_ids_of_an_answer_are_its_tokens_and_the_end_of_turn(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    server = serve(lambda number, body: (200, completed("w3 w4", len(body["prompt"]), 5), {}))
    (found,) = generate(served(spec, server), [[9, 10]], max_new_tokens=8)
    assert [found.ids, found.generated_tokens, found.truncated] == [
        [*word_tokenizer()("w3 w4").input_ids, END],
        5,
        False,
    ]


def test_a_text_that_the_server_did_not_cut_is_cut_here(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        whole = {"text": "w3 w12 w4", "finish_reason": "length"}
        return 200, completed("", len(body["prompt"]), 3, choices=[whole]), {}

    (found,) = generate(served(spec, serve(answer)), [[9, 10]], max_new_tokens=3, stops=STOPS)
    assert (found.text.strip(), found.truncated, found.generated_tokens) == ("w3", False, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_their_own_seeds_and_no_rules_but_those_asked(
    kind: str, spec: ModelSpec, serve: Callable[..., Server]
) -> None:
    local = load_lm(spec)
    server = serve(completer(local))
    lm = served(spec, server, server=kind, parallel=1)
    prompts = random_prompts(5, seed=1)
    seeds = [2**40 + 1, 2, 3, 4, 5]
    how: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.7, "top_p": 0.9, "seeds": seeds}
    first = generate(lm, prompts, **how)
    assert [each.text for each in generate(lm, prompts, **how)] == [each.text for each in first]
    assert sorted(body["seed"] for body in server.requests[:5]) == [1, 2, 3, 4, 5]
    told = server.requests[0]
    rules = json.loads(told["generation_config"]) if kind == "transformers" else told
    assert (rules["temperature"], rules["top_p"]) == (0.7, 0.9)
    assert rules["top_k"] in (0, -1)  # all tokens
    assert rules.get("repetition_penalty", 1.0) == 1.0
    assert sorted(rules["eos_token_id" if kind == "transformers" else "stop_token_ids"]) == ENDS
    assert told["max_tokens"] == 6


def test_once_the_weights_are_here_they_answer(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    local, calls = load_lm(spec), []

    def load() -> LM:
        calls.append(1)
        return load_lm(spec)

    server = serve(completer(local))
    lm = served(spec, server, load)
    wide = lm.within(64)
    prompts = random_prompts(4)
    expected = [each.ids for each in generate(local, prompts, max_new_tokens=5)]
    assert [lm.window, lm.device, lm.eos_ids, lm.suppressed_ids, lm.filler] == [
        local.window,
        local.device,
        local.eos_ids,
        local.suppressed_ids,
        local.filler,
    ]
    assert calls == []
    assert (lm.plain_head, lm.model.dtype) == (local.plain_head, torch.float32)
    assert lm.engine is None
    assert wide.engine is None
    assert wide.model is lm.model
    assert [each.ids for each in generate(wide, prompts, max_new_tokens=5)] == expected
    assert (calls, server.requests) == ([1], [])


def test_an_adapted_or_changed_model_is_not_asked_at_the_server(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    from contextlib import nullcontext

    local = load_lm(spec)
    server = serve(completer(local))
    prompts = random_prompts(3)
    expected = [each.ids for each in generate(local, prompts, max_new_tokens=5)]
    adapted = generate(served(spec, server, lambda: local), prompts, max_new_tokens=5, adapt=lambda _: nullcontext())
    changed = replace(served(spec, server, lambda: local), model=local.model)
    assert [each.ids for each in adapted] == expected
    assert [each.ids for each in generate(changed, prompts, max_new_tokens=5)] == expected
    assert server.requests == []


@pytest.mark.parametrize("chat", [True, False])
def test_the_meter_counts_a_servers_work_as_the_local_models(
    chat: bool, spec: ModelSpec, serve: Callable[..., Server]
) -> None:
    spec = replace(spec, chat=chat)
    local = load_lm(spec)
    lm = served(spec, serve(completer(local)), lambda: load_lm(spec))
    costs = []
    for each in (local, lm):
        budget = Budget()
        budget.attach(each, "actor")
        generate(each, inputs(each), max_new_tokens=10, stops=STOPS)
        costs.append([budget.cost(), budget.tflop_per_call("actor"), budget.tflop("actor", read=3, written=2)])
        completion_loss(each, [([9, 10], [11, 12])])  # in process: the weights are here now
        assert budget.used.trained_tokens == 3  # what the last token predicts is not needed
        budget.detach()
        completion_loss(each, [([9, 10], [11, 12])])
        assert budget.used.trained_tokens == 3
    assert costs[0] == costs[1]
    assert lm.engine is None


def test_a_model_that_is_loaded_after_the_meter_left_is_not_metered(
    spec: ModelSpec, serve: Callable[..., Server]
) -> None:
    budget = Budget()
    lm = served(spec, serve(completer(load_lm(spec))), lambda: load_lm(spec))
    budget.attach(lm, "actor")
    budget.detach()
    completion_loss(lm, [([9, 10], [11, 12])])
    assert budget.used.trained_tokens == 0


def test_a_limit_ends_the_requests(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    server = serve(completer(load_lm(spec)))
    lm = served(spec, server, parallel=1)
    budget = Budget({"lm_calls": 3}, "three")
    budget.attach(lm, "actor")
    with pytest.raises(BudgetExceeded, match="three"):
        generate(lm, random_prompts(40), max_new_tokens=3, batch_tokens=60)
    assert len(server.requests) < 20


def test_requests_go_out_side_by_side_and_no_more_than_named(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    together, lock, now, most = threading.Barrier(3), threading.Lock(), [0], [0]

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(20)
        with lock:
            now[0] -= 1
        return 200, completed(f"w{body['prompt'][0]}", len(body["prompt"]), 1), {}

    lm = served(spec, serve(answer, side_by_side=True), parallel=3)
    prompts = [[40 + index] for index in range(9)]
    assert [each.text for each in generate(lm, prompts, max_new_tokens=2)] == [f"w{ids[0]}" for ids in prompts]
    assert most == [3]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reply", "said"),
    [
        (
            404,
            {"error": {"message": "no such model"}},
            "base_url': .*no completions of 'toy' .404: no such model.*model",
        ),
        (400, {"error": {"message": "too\nlong"}}, "model': .*refuses the request .400: too long"),
        (400, {"detail": "Server is pinned to 'b'; requested 'toy'."}, "model': .*400: Server is pinned to 'b'"),
        (401, b"", "key_variable': .*wants a key"),
        (500, b"oops", "base_url': .*failed once .500: oops.; try later"),
        (200, b"<html>", r"base_url': .*is no completion .no choices\[0\].text"),
        (200, {"choices": [{"message": {"content": "chat"}}]}, r"base_url': .*no choices\[0\].text"),
        (200, completed("w3", 2, 1, usage=None), "base_url': .*usage"),
        (200, completed("w3", 2, 1, model="other-7b"), "model': .*answers with 'other-7b', not 'toy'; correct it"),
        (200, completed("w3", 3, 1), "model': .*read 3 tokens where the prompt has 2: its tokenizer is another"),
    ],
)
def test_a_wrong_reply_is_one_line_with_the_key_to_change(
    status: int, reply: Any, said: str, spec: ModelSpec, serve: Callable[..., Server]
) -> None:
    lm = served(spec, serve((status, reply, {})))
    with pytest.raises(UserError, match=rf"^config key 'models\.actor\.engine\.{said}") as caught:
        generate(lm, [[9, 10]], max_new_tokens=4)
    assert "\n" not in str(caught.value)


def test_a_name_that_the_server_completes_by_a_revision_is_the_models(
    spec: ModelSpec, serve: Callable[..., Server]
) -> None:
    answers: list[Answer] = [
        lambda number, body: (200, completed("w3", len(body["prompt"]), 1, model="toy@main"), {}),
        lambda number, body: (200, completed("w3", len(body["prompt"]), 1, model=None), {}),
    ]
    for answer in answers:
        (found,) = generate(served(spec, serve(answer)), [[9, 10]], max_new_tokens=4)
        assert found.text == "w3"


def test_a_silent_and_an_absent_server_are_told_apart(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    release = threading.Event()

    def silent(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        release.wait(10)
        return 200, completed("late", 2, 1), {}

    with pytest.raises(UserError, match=r"engine\.timeout': .*silent for 0\.1 s once; raise it"):
        generate(served(spec, serve(silent), timeout=0.1), [[9, 10]], max_new_tokens=4)
    release.set()
    gone = serve((200, b"", {}))
    gone.stop()
    with pytest.raises(UserError, match=r"engine\.base_url': no answer from .*asked once; start the server"):
        generate(served(spec, gone), [[9, 10]], max_new_tokens=4)


def test_a_busy_server_is_asked_again(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    server = serve(
        lambda number, body: (
            (200, completed("w3", len(body["prompt"]), 1), {}) if number else (503, b"", {"Retry-After": "0"})
        )
    )
    (found,) = generate(served(spec, server, retries=1), [[9, 10]], max_new_tokens=4)
    assert (found.text, len(server.requests)) == ("w3", 2)


def test_after_an_error_no_further_request_goes_out(spec: ModelSpec, serve: Callable[..., Server]) -> None:
    server = serve((400, {"error": "no"}, {}))
    with pytest.raises(UserError):
        generate(served(spec, server, parallel=2), [[9, 10]] * 50, max_new_tokens=4)
    assert len(server.requests) < 10


def test_a_folder_without_weights_can_be_served_but_not_one_without_tokenizer(
    spec: ModelSpec, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(lambda number, body: (200, completed("w3", len(body["prompt"]), 1), {}))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((Path(spec.path) / name).read_bytes())
    bare = replace(spec, path=str(tmp_path))
    lm = served(bare, server, lambda: load_lm(bare))
    assert generate(lm, [[9, 10]], max_new_tokens=4)[0].text == "w3"
    with pytest.raises(UserError, match=r"safetensors weights cannot be loaded"):
        _ = lm.model
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        served(bare, server)
