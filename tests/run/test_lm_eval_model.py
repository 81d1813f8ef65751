"""lm-eval used as its users use it: its command line, its caches and its own tasks, with saved policies as models."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.caching.cache
import lm_eval.tasks
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

import metatuner.run.lm_eval_model as lm_eval_model
from metatuner.config import Config, load_config
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.query import Query
from metatuner.harness.rows import Row
from metatuner.hashing import ROOT
from metatuner.lm import ModelSpec, load_lm
from metatuner.method import MetaTuner, MetaTunerConfig
from metatuner.plan import Plan
from metatuner.run.lm_eval_model import MODEL_FILE, SavedPolicyLM, lm_eval_command
from metatuner.run.saved import Saved, open_named
from metatuner.run.workshop import Workshop
from tests.toys.commands import step
from tests.toys.lm import save_tiny
from tests.toys.method import shake
from tests.toys.policy import ANSWERS, ROWS, Scripted, split_file


def model(script: Any = "ok", identity: str = "it", ask_as: str = "") -> SavedPolicyLM:
    return SavedPolicyLM(Saved(Scripted(script), identity), ask_as)


def request(text: str, until: Any = (), number: int = 0, task: str = "theirs", **how: Any) -> Instance:
    """A request of a task of lm-eval's own."""
    return Instance(
        request_type="generate_until",
        doc={},
        arguments=(
            text,
            {**({"until": list(until) if isinstance(until, tuple) else until} if until is not None else {}), **how},
        ),
        idx=0,
        metadata=(task, number, 1),
    )


# ---- requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "kept"),
    [
        ([], "one. two\n\nthree\nfour"),
        (None, "one. two\n\nthree\nfour"),
        (["\n\n"], "one. two"),
        (" two", "one."),
        (["\n"], "one. two"),
        (["four", "."], "one"),
        ([".", "four"], "one"),
        (["five"], "one. two\n\nthree\nfour"),
        (["", "three"], "one. two\n\n"),
        (["one"], ""),
    ],
)
def test_an_answer_to_a_foreign_task_ends_before_the_first_of_its_stops(until: Any, kept: str) -> None:
    made = model("one. two\n\nthree\nfour", ask_as="gsm8k")
    assert made.generate_until([request("x", until), request("y", None)]) == [kept, "one. two\n\nthree\nfour"]


def test_a_foreign_task_is_asked_as_the_benchmark_that_is_named() -> None:
    made = model(ask_as="hotpotqa")
    made.generate_until([request("first", [], 4), request("second", [], 7)])
    assert made.policy.asked == [Query("theirs-4", "hotpotqa", "first"), Query("theirs-7", "hotpotqa", "second")]
    with pytest.raises(UserError, match=r"task theirs .*ask_as=BENCHMARK"):
        model().generate_until([request("x", [])])
    with pytest.raises(UserError, match="'hotpot' is not part of this cell; did you mean hotpotqa"):
        model(ask_as="hotpot").generate_until([request("x", [])])


def test_a_foreign_tasks_own_limit_of_new_tokens_holds_for_its_requests_alone() -> None:
    made = model(ask_as="gsm8k")
    wanted: list[dict[str, Any]] = [{"max_gen_toks": 7}, {}, {"max_new_tokens": 7}, {"max_tokens": 9}]
    made.generate_until([request(str(n), number=n, **limit) for n, limit in enumerate(wanted)])
    actor = made.policy.ground
    limits = {query.text: limit for query, limit in zip(actor.asked, actor.limits, strict=True)}
    assert limits == {"0": 7, "1": 512, "2": 7, "3": 9}
    assert actor.benchmarks["gsm8k"].max_new_tokens == 512


def test_a_task_that_samples_is_refused_and_one_of_temperature_0_is_not() -> None:
    made = model(ask_as="gsm8k")
    with pytest.raises(UserError, match=r"task theirs samples.*do_sample=false"):
        made.generate_until([request("x", do_sample=True, temperature=0.7)])
    with pytest.raises(UserError, match="samples"):  # lm-eval samples too if only a temperature is given
        made.generate_until([request("x", temperature=0.7)])
    assert made.generate_until([request("x", do_sample=True, temperature=0.0)]) == ["ok"]


def test_tasks_that_rank_answers_are_refused() -> None:
    for refused in (model().loglikelihood, model().loglikelihood_rolling):
        with pytest.raises(UserError, match="generate_until"):
            refused([])


def test_model_arguments_but_ask_as_name_the_policy_and_a_device_that_the_user_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def opened(**names: Any) -> Saved:
        asked.append(names)
        return Saved(Scripted("ok"), "it", "gsm8k")

    monkeypatch.setattr(lm_eval_model, "open_named", opened)
    told = {"pretrained": "abc", "ask_as": "math"}
    assert SavedPolicyLM.create_from_arg_obj(told, {"device": "cuda:0", "batch_size": 1}).ask_as == "math"
    assert SavedPolicyLM.create_from_arg_obj({"pretrained": "abc"}, {"device": "cpu"}).ask_as == "gsm8k"
    assert asked == [{"pretrained": "abc"}, {"pretrained": "abc", "device": "cpu"}]
    assert told == {"pretrained": "abc", "ask_as": "math"}


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs lm-eval's command line on a policy and a folder of rows; gives its results by task."""
    # Its own thousands of task files are left out: to index them takes half a minute on a busy machine.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr(lm_eval.caching.cache, "PATH", str(tmp_path / "requests"))
    runs = iter(range(100))

    def run(saved: Saved, rows: Path, *words: str, tasks: str = "metatuner_gsm8k") -> dict[str, Any]:
        monkeypatch.setattr(lm_eval_model, "open_named", lambda **names: saved)
        out = tmp_path / f"out {next(runs)}"
        lm_eval_command(
            [
                *["--model", "metatuner", "--model_args", "pretrained=abc", "--tasks", tasks],
                *["--metadata", json.dumps({"rows": str(rows)}), "--output_path", str(out), *words],
            ]
        )
        (results,) = out.rglob("results_*.json")
        return json.loads(results.read_text(encoding="utf-8"))["results"]

    return run


def test_lm_evals_command_line_finds_our_model_and_tasks(
    command: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = Scripted(ANSWERS)
    split_file(tmp_path / "data" / "gsm8k")
    results = command(Saved(policy, "it"), tmp_path / "data")
    assert [query.id for query in policy.asked] == [row.id for row in ROWS]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "|accuracy" in line]
    assert "metatuner_gsm8k" in line
    assert "0.5" in line
    assert results["metatuner_gsm8k"]["accuracy,extract"] == 0.5


def test_a_benchmark_of_the_users_file_is_a_task_once_a_task_file_names_it(
    command: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (task,) = re.findall(r"```yaml\n(include:.*?)```", page, re.DOTALL)
    (tmp_path / "capitals.py").write_text(code, encoding="utf-8")
    (tmp_path / "own").mkdir()
    task = task.replace("/path/to/metatuner/", f"{ROOT / 'metatuner'}/").replace("/path/to/", f"{tmp_path}/")
    (tmp_path / "own" / "metatuner_capitals.yaml").write_text(task, encoding="utf-8")
    rows = [Row(id, "capitals", id, (id,), id, "all", id) for id in "ab"]
    policy = Scripted({"a": "A", "b": "c"})
    policy.ground.benchmarks = {"capitals": get_benchmark("capitals", [tmp_path / "capitals.py"])}
    words = ("--include_path", str(tmp_path / "own"))
    results = command(Saved(policy, "it"), split_file(tmp_path / "rows", rows), *words, tasks="metatuner_capitals")
    assert results["metatuner_capitals"]["em,extract"] == 0.5


def test_cached_requests_of_one_data_set_are_not_asked_or_scored_for_another(
    command: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folders, policies = {}, {}
    for name, gold in (("first", "1"), ("second", "2")):
        rows = [Row(f"{name} {n}", "gsm8k", f"{name} {n}?", (gold,), f"#### {gold}", "all", f"{n}") for n in range(3)]
        folders[name] = split_file(tmp_path / name, rows)
        policies[name] = Scripted({row.id: f"#### {gold if n else 7}" for n, row in enumerate(rows)})
    for name in ("first", "second", "first"):
        policies[name].asked.clear()
        results = command(Saved(policies[name], "it"), folders[name], "--cache_requests", "true")
        assert [query.text for query in policies[name].asked] == [f"{name} {n}?" for n in range(3)]
        assert results["metatuner_gsm8k"]["accuracy,extract"] == pytest.approx(2 / 3)


def test_cached_answers_are_the_same_policys_only(command: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    rows = split_file(tmp_path / "rows", ROWS[:1])
    answers = ["--use_cache", str(tmp_path / "cache")]
    right, wrong = Scripted("#### 3"), Scripted("#### 4")
    for policy, identity, score in ((right, "a", 1.0), (wrong, "b", 0.0)):
        assert command(Saved(policy, identity), rows, *answers)["metatuner_gsm8k"]["accuracy,extract"] == score
        assert len(policy.asked) == 1
    again = Scripted("not asked")
    assert command(Saved(again, "a"), rows, *answers)["metatuner_gsm8k"]["accuracy,extract"] == 1.0
    assert again.asked == []


def test_cached_answers_are_one_benchmarks_only(command: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    text = "The same text"
    for name, gold in (("gsm8k", "3"), ("math", "4")):
        split_file(tmp_path / "rows" / name, [Row("r", name, text, (gold,), gold, "all", "g")])

    class ByBenchmark(Scripted):
        def prepare(self, queries: Any) -> Any:
            self.ground.script = {"gsm8k": "#### 3", "math": r"\boxed{4}"}[queries[0].benchmark]
            return super().prepare(queries)

    for name in ("gsm8k", "math"):
        words = ("--use_cache", str(tmp_path / "cache"))
        results = command(Saved(ByBenchmark(""), "it"), tmp_path / "rows", *words, tasks=f"metatuner_{name}")
        assert results[f"metatuner_{name}"]["accuracy,extract"] == 1.0


def test_asking_as_another_benchmark_finds_no_cached_answers(tmp_path: Path) -> None:
    for ask_as in ("gsm8k", "math", "gsm8k"):
        made = model(f"as {ask_as}", ask_as=ask_as)
        assert CachingLM(made, str(tmp_path / "cache.db")).generate_until([request("x")]) == [f"as {ask_as}"]


def test_a_policy_without_identity_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--use_cache"):
        CachingLM(model(identity=""), str(tmp_path / "cache.db"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--apply_chat_template"], "own chat template; leave it out"),
        (["--system_instruction", "Be brief."], "leave out --system_instruction"),
    ],
)
def test_options_that_would_change_what_a_policy_reads_are_refused(
    words: list[str], said: str, command: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    policy = Scripted(ANSWERS)
    with pytest.raises(UserError, match=said):
        command(Saved(policy, "it"), split_file(tmp_path / "rows"), *words)
    assert policy.asked == []


# ---- saved policies ------------------------------------------------------------------------------------------------

TASK = {
    "task": "towns",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
QUESTIONS = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9"]


def task_of(folder: Path, answers: list[str]) -> Path:
    """A folder with a task of lm-eval's own kind; its golds are `answers`."""
    folder.mkdir()
    rows = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, answers, strict=True)]
    (folder / "towns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = TASK | {"dataset_kwargs": {"data_files": {"test": str(folder / "towns.jsonl")}}}
    (folder / "towns.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tuner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MetaTuner]:
    """A MetaTuner, saved; its base models are in folders of their own."""
    folder = tmp_path_factory.mktemp("tuner")
    specs = [
        ModelSpec(str(save_tiny(folder / "g", seed=1, num_hidden_layers=4)), rewrite_user="{prompt} {query}"),
        ModelSpec(str(save_tiny(folder / "a", seed=2))),
    ]
    made = MetaTuner(*(load_lm(spec) for spec in specs), MetaTunerConfig(), max_prompt_tokens=5, initial_prompt="w1 w9")
    shake(made)
    made.save_pretrained(folder / "tuner")
    return folder / "tuner", made


def first_lines(made: MetaTuner, prompt: str | None = None) -> list[str]:
    """What a user of the library would get, cut at the task's stop."""
    answers = made.generate(QUESTIONS, max_new_tokens=6, prompt=prompt, stops=["\n"])
    return [answer.completion for answer in answers]


def test_a_saved_metatuner_answers_any_task_as_the_library_does(tuner: tuple[Path, MetaTuner]) -> None:
    folder, made = tuner
    requests = [request(text, ["\n"], number, max_gen_toks=6) for number, text in enumerate(QUESTIONS)]
    opened = SavedPolicyLM.create_from_arg_obj({"pretrained": str(folder)}, {"device": "cuda:0", "batch_size": 1})
    assert opened.generate_until(requests) == first_lines(made)
    other = SavedPolicyLM.create_from_arg_obj({"pretrained": str(folder), "prompt": "w7 w7 w3"})
    assert other.generate_until(requests) == first_lines(made, "w7 w7 w3")
    assert other.identity != opened.identity
    assert SavedPolicyLM.create_from_arg_obj({"pretrained": str(folder)}).identity == opened.identity


def test_a_saved_metatuner_whose_actor_has_moved_is_refused_until_its_place_is_named(
    tuner: tuple[Path, MetaTuner], tmp_path: Path
) -> None:
    folder, made = tuner
    copy = tmp_path / "tuner"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    described = json.loads((copy / "metatuner.json").read_text())
    described["models"]["actor"]["spec"]["path"] = "/nowhere/a"
    (copy / "metatuner.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"its actor: model /nowhere/a: no such folder.*actor=FOLDER"):
        open_named(pretrained=str(copy))
    opened = SavedPolicyLM(open_named(pretrained=str(copy), actor=str(folder.parent / "a")))
    assert opened.generate_until([request(QUESTIONS[0], ["\n"], max_gen_toks=6)]) == first_lines(made)[:1]
    with pytest.raises(UserError, match="actor was another model"):
        open_named(pretrained=str(copy), actor=str(save_tiny(tmp_path / "other", seed=5)))


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[Config, Path]:
    """A preset, and the folder of its one fit: few-shot on GSM8K."""
    spec = {"path": str(save_tiny(tmp_path / "model")), "device": "cpu", "window": None}
    for split, count in (("train", 20), ("test", 3)):
        lines = [
            json.dumps({"id": f"{split}-{n}", "question": f"w{n} w{n + 1}?", "answer": f"w{n} #### {n}"}) + "\n"
            for n in range(count)
        ]
        (tmp_path / "rows" / "gsm8k").mkdir(parents=True, exist_ok=True)
        (tmp_path / "rows" / "gsm8k" / f"{split}.jsonl").write_text("".join(lines))
    sizes = {"train": 6, "dev": 2, "tune": 2, "test": 3, "audit": 0}
    rules = {"source": "local", "path": str(tmp_path / "rows"), "sizes": sizes, "max_new_tokens": 4}
    overrides = {
        "results": str(tmp_path / "results"),
        "cache": str(tmp_path / "cache"),
        "tuning": {"winners": None},
        "models": {"actor": spec, "generators": {"large": spec}},
        "benchmarks": {"gsm8k": {**rules, "initial_prompt": "w3 w4"}},
        "experiments.toy": {"methods": ["few_shot"], "benchmarks": ["gsm8k"], "seeds": [0], "generator": "large"},
        "run": "toy",
        "keep": "all",
    }
    config = load_config("nano", overrides)
    step("data", config, benchmark="gsm8k")
    shop = Workshop(config)
    (fit,) = shop.plan.grid.fits.values()
    assert shop.fit(fit, share=False).status == "ok"
    return config, shop.layout.fit(fit.key)


def test_a_fits_folder_alone_answers_as_its_cell_does(fitted: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = fitted
    plan = Plan(config)
    (cell,) = plan.grid.cells.values()
    (tmp_path / "results").joinpath("config.json").write_text(config.model_dump_json())
    by_cell = open_named(config=str(tmp_path / "results" / "config.json"), cell=cell.key)
    requests = [request(text, ["\n"], number) for number, text in enumerate(QUESTIONS)]
    expected = SavedPolicyLM(by_cell, "gsm8k").generate_until(requests)
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    for place in (moved, moved / "policy"):
        opened = SavedPolicyLM(open_named(pretrained=str(place)))
        assert opened.ask_as == "gsm8k"
        assert opened.policy.ground.benchmark("gsm8k").initial_prompt == "w3 w4"
        assert opened.generate_until(requests) == expected
        with pytest.raises(UserError, match="benchmark 'math' is not part"):
            SavedPolicyLM(open_named(pretrained=str(place)), "math").generate_until(requests)


def test_what_a_saved_policy_lacks_is_said_in_one_line(fitted: tuple[Config, Path], tmp_path: Path) -> None:
    _, folder = fitted
    (tmp_path / "empty").mkdir()
    record = json.loads((folder / "fit.json").read_text())
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "no policy is named; name pretrained=FOLDER"),
        ({"pretrained": str(tmp_path / "empty")}, r"no saved policy \(manifest.json\) and no saved MetaTuner"),
        ({"pretrained": str(folder), "promt": "x"}, "unknown 'promt'; did you mean prompt"),
        ({"pretrained": str(folder), "prompt": "x"}, "a fit's policy has its own prompts"),
        ({"pretrained": str(folder), "batch_tokens": "many"}, "batch_tokens must be a whole number"),
        ({"pretrained": str(folder), "actor": "/nowhere/x"}, "its actor: model /nowhere/x: no such folder"),
    ]
    for names, said in cases:
        with pytest.raises(UserError, match=said):
            open_named(**names)
    (folder / "fit.json").write_text(json.dumps({key: value for key, value in record.items() if key != "models"}))
    with pytest.raises(UserError, match=r"fit.json: names no models.*fit again"):
        open_named(pretrained=str(folder))
    (folder / "fit.json").unlink()
    with pytest.raises(UserError, match=r"no file .*fit.json; it names the models"):
        open_named(pretrained=str(folder))


def test_a_policy_of_a_users_own_kind_is_opened_with_the_file_of_its_method(
    fitted: tuple[Config, Path], tmp_path: Path
) -> None:
    _, folder = fitted
    page = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    (code,) = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "nearest_demos" in each]
    (tmp_path / "own.py").write_text(code.replace("nearest_demos", "nearest_here"), encoding="utf-8")
    state = {"prompts": {"gsm8k": "w5"}, "demos": [["w1", "w2"]], "shots": 1}
    manifest = {"format": 1, "kind": "nearest_here", "state": state}
    (folder / "policy" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="unknown policy kind 'nearest_here'"):
        open_named(pretrained=str(folder))
    policy = open_named(pretrained=str(folder), methods=str(tmp_path / "own.py")).policy
    (response,) = policy.respond([Query("q", "gsm8k", "w1 w1")])
    assert response.prompt == "w5"


# ---- lm-eval's own command -----------------------------------------------------------------------------------------


def own_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command `lm-eval` as installed, where this package can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "TMPDIR": str(folder)}
    environment.pop("METATUNER_FORK_SERVER", None)
    line = [str(Path(sys.executable).with_name("lm-eval")), *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_lm_evals_own_command_runs_a_saved_metatuner_on_a_task_of_lm_evals_own_kind(
    tuner: tuple[Path, MetaTuner], tmp_path: Path
) -> None:
    folder, made = tuner
    answers = first_lines(made)
    tasks = task_of(tmp_path / "tasks", [*answers[:2], "something else"])
    words = ["--model", "metatuner", "--tasks", str(MODEL_FILE), "towns", "--include_path", str(tasks)]
    done = own_command(
        tmp_path, *words, "--model_args", f"pretrained={folder}", "--output_path", "out", "--log_samples"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"]["towns"]["exact_match,none"]
    assert found == pytest.approx(2 / 3)
    lost = own_command(tmp_path, *words, "--model_args", f"pretrained={tmp_path / 'lost'}")
    assert lost.returncode != 0
    assert lost.stderr.splitlines()[-1].startswith("metatuner: pretrained=")
    assert "Traceback" not in lost.stderr


def test_the_file_that_makes_the_model_known_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lm_eval_command(["path"])
    assert Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8").splitlines()[-3].startswith("group:")
