"""A preset whose models answer on a server: its keys, its fits and cells, and what it says about them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metatuner.config import Config, load_config
from metatuner.errors import UserError
from metatuner.hashing import hash_value
from metatuner.lm import ModelSpec, load_lm
from metatuner.plan import Plan
from metatuner.run.efficiency import measure
from metatuner.run.workshop import Workshop
from metatuner.supervision import Steps
from tests.toys.commands import step
from tests.toys.lm import save_tiny
from tests.toys.plan import plan
from tests.toys.serving import Server, completer

ENGINE = {"model": "toy", "base_url": "http://127.0.0.1:8000/v1"}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts servers, with no proxy before them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started: list[Server] = []

    def start(answer: Any) -> Server:
        started.append(Server(answer))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def preset(tmp_path: Path) -> Callable[..., Config]:
    """A config of some methods on one benchmark, with the keys of an engine, or without one."""
    folder = save_tiny(tmp_path / "model")
    (tmp_path / "rows" / "gsm8k").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [
            {"id": f"{split}-{index}", "question": f"w{9 + index} w{40 - index}", "answer": "w3\n#### 1"}
            for index in range(30)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows" / "gsm8k" / f"{split}.jsonl").write_text(text)

    def config(methods: list[str], engine: dict[str, Any] | None, generator: dict[str, Any] | None = None) -> Config:
        model = {"path": str(folder), "device": "cpu", "window": None}
        sizes = {"train": 8, "dev": 4, "tune": 4, "test": 8, "audit": 0}
        rows = {"source": "local", "path": str(tmp_path / "rows"), "sizes": sizes, "max_new_tokens": 6}
        overrides = {
            "results": str(tmp_path / ("served" if engine or generator else "local")),
            "tuning": {"winners": None},
            "models": {"actor": {**model, "engine": engine}, "generators": {"large": {**model, "engine": generator}}},
            "benchmarks": {"gsm8k": rows},
            "budgets": {"default": {"tflop": None}},
            "experiments.toy": {"methods": methods, "benchmarks": ["gsm8k"], "seeds": [0], "generator": "large"},
            "run": "toy",
            "keep": "all",
        }
        return load_config("smoke", overrides)

    return config


def run(config: Config) -> dict[str, Any]:
    """Fit and evaluate; each method's answers."""
    step("data", config, benchmark="gsm8k")
    shop, found = Workshop(config), dict[str, Any]()
    for cell in shop.plan.grid.cells.values():
        for fit in (*cell.fit.requires, cell.fit):
            outcome = shop.fit(fit, share=False)
            assert outcome.status == "ok", outcome.reason
        outcome = shop.evaluate(cell, share=False)
        assert outcome.status == "ok", outcome.reason
        lines = (shop.layout.cell(cell.key) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        keys = ("id", "prompt", "completion", "score", "prompt_tokens", "completion_tokens", "truncated")
        found[cell.fit.method] = [{key: json.loads(line)[key] for key in keys} for line in lines]
    return found


def test_methods_get_from_a_server_what_the_model_in_process_answers(
    preset: Callable[..., Config], serve: Callable[..., Server], tmp_path: Path
) -> None:
    methods = ["zero_shot", "few_shot", "sft"]
    server = serve(completer(load_lm(ModelSpec(str(tmp_path / "model"), device="cpu"))))
    engine = ENGINE | {"base_url": server.url, "server": "transformers"}
    assert run(preset(methods, engine)) == run(preset(methods, None))
    # SFT trains the actor here, and its adapter answers here; the others' cells ask the server.
    assert len(server.requests) == 2 * 8
    shop = Workshop(preset(methods, engine))
    for fit in shop.plan.grid.fits.values():
        folder = shop.layout.fit(fit.key)
        first = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert (first["event"], first["role"], first["model"]) == ("engine", "actor", "toy")
        assert "repeat" in first["note"]
        assert json.loads((folder / "fit.json").read_text())["engines"] == {
            "actor": {"model": "toy", "server": "transformers"}
        }
        assert server.url not in "".join(path.read_text() for path in folder.glob("*.json*"))


def test_a_generators_rewrites_come_from_its_server_until_it_is_trained(
    preset: Callable[..., Config], serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(completer(load_lm(ModelSpec(str(tmp_path / "model"), device="cpu"))))
    engine = ENGINE | {"base_url": server.url, "server": "transformers", "parallel": 1}
    config = preset(["bpo"], None, engine)
    step("data", config, benchmark="gsm8k")
    shop = Workshop(config)
    (cell,) = shop.plan.grid.cells.values()
    outcome = shop.fit(cell.fit, share=False)
    assert outcome.status == "ok", outcome.reason
    cost = json.loads((shop.layout.fit(cell.fit.key) / "cost.json").read_text())
    assert cost["by_model"]["generator"]["lm_calls"] == len(server.requests) > 0
    assert cost["by_model"]["generator"]["flops"] > 0
    asked = len(server.requests)
    assert shop.evaluate(cell, share=False).status == "ok"
    assert len(server.requests) == asked  # the trained generator writes here, and the actor has no server


def test_a_server_that_is_down_fails_what_asks_it_and_nothing_else(
    preset: Callable[..., Config], serve: Callable[..., Server]
) -> None:
    gone = serve((200, b"", {}))
    gone.stop()
    config = preset(["zero_shot", "sft"], ENGINE | {"base_url": gone.url, "retries": 0})
    step("data", config, benchmark="gsm8k")
    shop, found = Workshop(config), {}
    for cell in shop.plan.grid.cells.values():
        assert shop.fit(cell.fit, share=False).status == "ok"
        found[cell.fit.method] = shop.evaluate(cell, share=False)
        assert shop.layout.cell(cell.key).exists() == (cell.fit.method == "sft")
    assert found["sft"].status == "ok"
    assert found["zero_shot"].status == "failed"
    assert found["zero_shot"].reason.startswith("config key 'models.actor.engine.base_url': no answer from ")
    assert found["zero_shot"].reason.endswith("start the server or correct the address")


def test_policies_that_a_server_answers_for_are_not_timed(
    preset: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Workshop(preset(["zero_shot"], ENGINE))
    assert measure(shop, list(shop.plan.grid.cells.values()), Steps()) == []
    assert "zero_shot on gsm8k is not timed: models.actor.engine names a server" in "".join(capsys.readouterr())


def test_keys_depend_on_the_served_model_and_not_on_where_it_is_served() -> None:
    methods = {"experiments.main.methods": ["zero_shot", "sft", "bpo"]}

    def keys(key: str, engine: dict[str, Any] | None) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for fit in plan(methods | {key: engine}).grid.fits.values():
            found.setdefault(fit.method, set()).add(fit.key)
        return found

    actor, generator = "models.actor.engine", "models.generators.large.engine"
    without = keys(actor, None)
    assert keys(generator, None) == without
    served = keys(actor, ENGINE)
    assert not any(served[method] & without[method] for method in without)
    assert {name for name, each in keys(generator, ENGINE).items() if each != without[name]} == {"bpo"}
    elsewhere = {
        "base_url": "https://elsewhere.org/v1",
        "timeout": 5.0,
        "retries": 0,
        "parallel": 2,
        "key_variable": "K",
    }
    assert keys(actor, ENGINE | elsewhere) == served
    for other in ({"model": "other"}, {"server": "sglang"}):
        assert not any(served[method] & each for method, each in keys(actor, ENGINE | other).items())


def test_without_an_engine_a_model_is_known_as_before_there_were_engines() -> None:
    """Stored winners depend on this identity."""
    keys = Plan(load_config("paper")).keys
    told = keys.model_config("actor")
    fields = ("path", "revision", "dtype", "window", "rewrite_system", "rewrite_user")
    assert keys.model_identity("actor") == hash_value({name: getattr(told, name) for name in fields})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "127.0.0.1:8000"}, "models.actor.engine.*http://"),
        ({"base_url": "https://host/v1?key=sk-secret"}, "models.actor.engine.*without user, password or query"),
        ({"key_variable": "sk-secret"}, "models.actor.engine.*name of an environment variable"),
        ({"server": "ollama"}, "models.actor.engine.server"),
        ({"parallel": 0}, "models.actor.engine.parallel"),
        ({"url": "http://x"}, "unknown config key 'models.actor.engine.url'"),
    ],
)
def test_a_wrong_engine_is_refused_before_anything_runs(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_config("nano", {"models.actor.engine": ENGINE | changes})
    assert "sk-secret" not in str(caught.value)


def test_provenance_names_the_engine_and_says_that_answers_are_its_own(preset: Callable[..., Config]) -> None:
    config = preset(["zero_shot"], ENGINE)
    step("provenance", config)
    told = json.loads(Plan(config).layout.provenance.read_text())["dependencies"]["engines"]
    assert told["actor"]["model"] == "toy"
    assert "repeat" in told["actor"]["note"]
    assert list(told) == ["actor"]
