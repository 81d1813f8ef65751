"""Evaluation runs any policy through lm-eval and records every answer; the policy here is scripted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import yaml
from lm_eval.api.instance import Instance

import metatuner.harness.benchmarks as benchmarks
from metatuner.errors import UserError
from metatuner.harness.benchmarks import benchmark_ids, get_benchmark
from metatuner.harness.ground import Ground
from metatuner.harness.policy import Policy
from metatuner.harness.query import Prepared, Query, Response
from metatuner.harness.rows import Row, rows_to_text
from metatuner.run.evaluation import TASKS, PolicyLM, evaluate_policy, lm_eval_command


class Actor(Ground):
    """Answers each query by its script: by its id, or all by one text."""

    def __init__(self, script: Mapping[str, str] | str) -> None:
        self.script = script
        self.asked: list[Query] = []

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **how: Any) -> list[Response]:
        self.asked += queries
        if isinstance(self.script, str):
            return [Response("p", self.script, 1, 1, False) for _ in queries]
        return [
            Response(
                prompt=prompt,
                completion=self.script[query.id],
                prompt_tokens=len(query.text),
                completion_tokens=len(self.script[query.id]),
                truncated=query.id == "b",
                cut_tokens=3 if query.id == "c" else 0,
                cut_demos=2 if query.id in "ad" else 0,
            )
            for query, prompt in zip(queries, prompts, strict=True)
        ]


class Scripted(Policy):
    """Its ground answers each query by a script."""

    ground: Actor

    def __init__(self, script: Mapping[str, str] | str) -> None:
        self.ground = Actor(script)

    @property
    def asked(self) -> list[Query]:
        return self.ground.asked

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        return Prepared([f"prompt of {query.id}" for query in queries])

    def write(self, folder: Path) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Any) -> "Scripted":
        raise NotImplementedError


GOLDS = {"c": "3", "a": "1", "d": "4", "b": "2"}
ROWS = [
    Row(id, "gsm8k", f"  Q {id}?\n", (gold,), f"#### {gold}", f"kind {id}", f"group é of {id}")
    for id, gold in GOLDS.items()
]
ANSWERS = {"a": "#### 1", "b": "#### 2.0", "c": "none", "d": "é 5"}


def split_file(folder: Path, rows: Sequence[Row] = ROWS) -> Path:
    path = folder / "test.jsonl"
    path.write_text(rows_to_text(rows), encoding="utf-8")
    return path


def test_records_and_means_say_what_the_policy_answered(tmp_path: Path) -> None:
    policy = Scripted(ANSWERS)
    records, summary = evaluate_policy(policy, get_benchmark("gsm8k"), split_file(tmp_path), tmp_path)
    assert [query.id for query in policy.asked] == ["c", "a", "d", "b"]
    assert policy.asked[0] == Query("c", "gsm8k", "  Q c?\n")
    assert [record["id"] for record in records] == ["c", "a", "d", "b"]
    assert records[3] == {
        "id": "b",
        "kind": "kind b",
        "group": hashlib.sha256("group é of b".encode()).hexdigest()[:12],
        "prompt": "prompt of b",
        "completion": "#### 2.0",
        "extracted": "2.0",
        "gold": ["2"],
        "score": 1.0,
        "metrics": {"accuracy": 1.0},
        "stopped": None,
        "prompt_tokens": 7,
        "completion_tokens": 8,
        "truncated": True,
        "cut_tokens": 0,
        "cut_demos": 0,
    }
    assert summary == {
        "task": "metatuner_gsm8k",
        "version": get_benchmark("gsm8k").version,
        "n": 4,
        "primary": "accuracy",
        "metrics": {"accuracy": 0.5},
        "truncated": 1,
        "cut": 1,
        "cut_demos": 2,
        "unextracted": 1,
        "stopped": {},
    }


def test_the_files_hold_the_records_and_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    test = split_file(tmp_path)
    written = []
    for name in ("first", "second"):
        out = tmp_path / name
        out.mkdir()
        records, summary = evaluate_policy(Scripted(ANSWERS), get_benchmark("gsm8k"), test, out)
        lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == records
        assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == summary
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1]


def test_rows_of_one_group_share_its_hash_and_others_do_not(tmp_path: Path) -> None:
    rows = [Row(id, "gsm8k", f"q {id}", ("1",), "#### 1", "all", "xy"[id in "ad"]) for id in "cadb"]
    records, _ = evaluate_policy(Scripted(ANSWERS), get_benchmark("gsm8k"), split_file(tmp_path, rows), tmp_path)
    groups = {record["id"]: record["group"] for record in records}
    assert groups["a"] == groups["d"] != groups["c"] == groups["b"]


def test_of_two_metrics_the_primary_one_is_the_score_and_both_are_averaged_over_all_rows(tmp_path: Path) -> None:
    rows = [Row(id, "hotpotqa", id, ("old town", "hamlet"), "Answer: old town", "bridge", id) for id in "abc"]
    answers = {"a": "Answer: old town", "b": "Answer: old city", "c": "Answer: hamlet"}
    records, summary = evaluate_policy(
        Scripted(answers), get_benchmark("hotpotqa"), split_file(tmp_path, rows), tmp_path
    )
    assert [record["metrics"] for record in records] == [{"em": 1, "f1": 1}, {"em": 0, "f1": 0.5}, {"em": 1, "f1": 1}]
    assert [record["score"] for record in records] == [1.0, 0.0, 1.0]
    assert records[1]["gold"] == ["old town", "hamlet"]
    assert summary["primary"] == "em"
    assert summary["metrics"] == pytest.approx({"em": 2 / 3, "f1": 2.5 / 3})


def test_an_answer_whose_scoring_was_stopped_is_recorded_and_counted(tmp_path: Path) -> None:
    rows = [Row(id, "math", id, ("x",), r"\boxed{x}", "Level 1", f"group {id}") for id in "ab"]
    answers = {"a": r"\boxed{x}", "b": r"\boxed{" + "y+" * 3000 + "y}"}
    records, summary = evaluate_policy(Scripted(answers), get_benchmark("math"), split_file(tmp_path, rows), tmp_path)
    assert [record["stopped"] for record in records] == [None, "length"]
    assert [record["score"] for record in records] == [1.0, 0.0]
    assert summary["stopped"] == {"length": 1}


@pytest.mark.parametrize("name", benchmark_ids())
def test_a_task_file_states_its_benchmarks_metrics_and_version(name: str) -> None:
    task = yaml.safe_load((TASKS / f"metatuner_{name}.yaml").read_text(encoding="utf-8"))
    benchmark = get_benchmark(name)
    assert task["metadata"]["version"] == benchmark.version
    assert [entry["metric"] for entry in task["metric_list"]] == [*benchmark.metrics, "stopped"]
    assert task["dataset_kwargs"] == {"benchmark": name}


ECHO = """
from metatuner.harness.benchmarks.base import Benchmark


class Echo(Benchmark):
    id = "echo"
    version = 7
    metrics = ("same", "length")
    primary = "same"
    initial_prompt = "repeat"
    max_new_tokens = 8

    def row(self, raw):
        raise NotImplementedError

    def extract(self, completion):
        return completion

    def score(self, extracted, row):
        return {"same": float(extracted in row.gold), "length": len(extracted) / 4}
"""


def test_a_benchmark_of_one_file_is_evaluated_without_a_task_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo.py").write_text(ECHO, encoding="utf-8")
    monkeypatch.setattr(benchmarks, "_FOLDER", tmp_path)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    rows = [Row(id, "echo", id, ("ab",), "ab", "all", f"group {id}") for id in "ab"]
    policy = Scripted({"a": "ab", "b": "abcd"})
    records, summary = evaluate_policy(policy, get_benchmark("echo"), split_file(tmp_path, rows), tmp_path)
    assert summary["metrics"] == {"same": 0.5, "length": 0.75}
    assert [record["score"] for record in records] == [1.0, 0.0]
    assert (summary["task"], summary["version"]) == ("metatuner_echo", 7)


def test_rows_of_another_benchmark_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds rows of gsm8k, not of math"):
        evaluate_policy(Scripted(ANSWERS), get_benchmark("math"), split_file(tmp_path), tmp_path)


# ---- tasks that are not ours ---------------------------------------------------------------------------------------


def request(text: str, until: Any, number: int = 0, task: str = "theirs") -> Instance:
    """A request of a task of lm-eval's own."""
    return Instance(
        request_type="generate_until",
        doc={},
        arguments=(text, {"until": until} if until is not None else {}),
        idx=0,
        metadata=(task, number, 1),
    )


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
    model = PolicyLM(Scripted("one. two\n\nthree\nfour"), ask_as="gsm8k")
    assert model.generate_until([request("x", until), request("y", None)]) == [kept, "one. two\n\nthree\nfour"]


def test_a_foreign_task_is_asked_as_the_benchmark_that_is_named() -> None:
    policy = Scripted("ok")
    model = PolicyLM(policy, ask_as="hotpotqa")
    model.generate_until([request("first", [], 4), request("second", [], 7)])
    assert policy.asked == [Query("theirs-4", "hotpotqa", "first"), Query("theirs-7", "hotpotqa", "second")]
    with pytest.raises(UserError, match=r"task theirs .*ask_as=BENCHMARK"):
        PolicyLM(policy).generate_until([request("x", [])])


def test_ask_as_is_ours_and_the_other_model_arguments_are_the_policys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def open_policy(**names: Any) -> Policy:
        asked.append(names)
        return Scripted("ok")

    monkeypatch.setattr(PolicyLM, "open_policy", staticmethod(open_policy))
    told = {"fit": "abc", "ask_as": "math"}
    assert PolicyLM.create_from_arg_obj(told).ask_as == "math"
    assert asked == [{"fit": "abc"}]
    assert told == {"fit": "abc", "ask_as": "math"}


def test_tasks_that_rank_answers_are_refused() -> None:
    model = PolicyLM(Scripted("ok"))
    for refused in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(UserError, match="generate_until"):
            refused([])


def test_a_policy_cannot_be_opened_outside_the_command_line() -> None:
    with pytest.raises(UserError, match="use `metatuner lm-eval`"):
        PolicyLM.create_from_arg_obj({"fit": "x"})


def test_lm_evals_command_line_finds_our_model_and_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its own thousands of task files are left out: to index them takes half a minute on a busy machine.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    split_file(folder)
    policy, asked = Scripted(ANSWERS), []

    def open_policy(**names: str) -> Policy:
        asked.append(names)
        return policy

    lm_eval_command(
        [
            *["--model", "metatuner_policy", "--model_args", "preset=smoke,fit=abc", "--tasks", "metatuner_gsm8k"],
            *["--metadata", json.dumps({"rows": str(tmp_path)}), "--output_path", str(tmp_path / "out")],
        ],
        open_policy,
    )
    assert asked == [{"preset": "smoke", "fit": "abc"}]
    assert len(policy.asked) == 4
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "|accuracy" in line]
    assert "metatuner_gsm8k" in line
    assert "0.5" in line
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text(encoding="utf-8"))["results"]["metatuner_gsm8k"]["accuracy,extract"] == 0.5
