"""Evaluation runs any policy through lm-eval and records every answer; the policy here is scripted."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import metatuner.harness.benchmarks as benchmarks
from metatuner.errors import UserError
from metatuner.harness.benchmarks import benchmark_ids, get_benchmark
from metatuner.harness.policy import Prepared
from metatuner.harness.query import Query
from metatuner.harness.rows import Row
from metatuner.run.evaluation import TASKS, evaluate_policy
from tests.toys.policy import ANSWERS, Scripted, split_file


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
        "leaks": False,
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
        "leaks": 0,
        "stopped": {},
    }


class Prompts(Scripted):
    """Gives each query the prompt that it is given."""

    def __init__(self, prompts: dict[str, str]) -> None:
        super().__init__(ANSWERS)
        self.prompts = prompts

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        return Prepared([self.prompts[query.id] for query in queries])


def test_prompts_that_state_an_answer_are_marked_and_counted(tmp_path: Path) -> None:
    prompts = {"a": "add , then answer", "b": "the answer is 2", "c": "3", "d": "the answer is 5"}
    records, summary = evaluate_policy(Prompts(prompts), get_benchmark("gsm8k"), split_file(tmp_path), tmp_path)
    assert {record["id"]: record["leaks"] for record in records} == {"a": False, "b": True, "c": True, "d": False}
    assert summary["leaks"] == 2


def test_one_prompt_for_all_queries_was_written_for_none_so_whether_it_leaks_is_not_asked(tmp_path: Path) -> None:
    policy = Prompts(dict.fromkeys("abcd", "the answer is 2"))
    records, summary = evaluate_policy(policy, get_benchmark("gsm8k"), split_file(tmp_path), tmp_path)
    assert [record["leaks"] for record in records] == [None] * 4
    assert summary["leaks"] is None


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

    def extract(self, completion, row):
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


@pytest.mark.parametrize("prompt", [3, None, ["a"], b"a"])
def test_a_prompt_that_is_no_text_is_never_scored(prompt: Any, tmp_path: Path) -> None:
    class Odd(Scripted):
        def prepare(self, queries: Sequence[Query]) -> Prepared:
            return Prepared([prompt for _ in queries])

    with pytest.raises(UserError, match=r"prompt for query .* is .*, no text; `prepare` returns texts"):
        evaluate_policy(Odd(ANSWERS), get_benchmark("gsm8k"), split_file(tmp_path), tmp_path)
