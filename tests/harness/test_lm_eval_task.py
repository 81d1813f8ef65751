"""A task of lm-eval's as a benchmark. The truth is lm-eval's own evaluation of the same answers."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from metatuner.errors import UserError
from metatuner.harness.benchmarks import load_hub
from metatuner.harness.benchmarks.lm_eval_task import LmEvalBenchmark, Task
from metatuner.harness.splits import check_data

TASK: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "training_split": "train",
    "test_split": "test",
    "output_type": "generate_until",
    "description": "Add.\n\n",
    "doc_to_text": "Q: {{a}} + {{b}}?\nA:",
    "doc_to_target": "{{sum}}",
    "generation_kwargs": {"until": ["\n\n"], "do_sample": False},
    "filter_list": [
        {
            "name": "strict",
            "filter": [{"function": "regex", "regex_pattern": r"= (\d+)"}, {"function": "take_first"}],
        },
        {
            "name": "last",
            "filter": [
                {"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1},
                {"function": "take_first"},
            ],
        },
    ],
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_punctuation": True},
        {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
        {"metric": "ter", "aggregation": "ter", "higher_is_better": False},
    ],
    "metadata": {"version": 3.0},
}
ANSWERS = ["it = 3", "= 9 or 7", "11", "none", " = 5\n\n= 6"]


def task_files(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """A folder with a task of sums; each answer's sum is the number of the row and the row's two addends."""
    folder.mkdir(exist_ok=True)
    for split, start in (("train", 10), ("test", 0)):
        rows = [{"a": n, "b": n + 3, "sum": 2 * n + 3} for n in range(start, start + len(ANSWERS))]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    task = {**TASK, "dataset_kwargs": {"data_files": files}, **changes}
    for key in drop:
        del task[key]
    (folder / "sums.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


class Answering(LM):
    """An lm-eval model with fixed answers."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.texts = [request.args[0] for request in requests]
        return [answer.split("\n\n")[0] for answer in ANSWERS]

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.mark.parametrize("filter", ["strict", "last"])
def test_queries_answers_and_scores_are_lm_evals_own(filter: str, tmp_path: Path) -> None:
    folder = task_files(tmp_path / "t")
    model = Answering()
    tasks = TaskManager(include_path=folder, include_defaults=False).load("sums")
    found = lm_eval.evaluate(lm=model, task_dict=tasks, bootstrap_iters=0)["samples"]["sums"]
    theirs = {each["doc_id"]: each for each in found if each["filter"] == filter}

    benchmark = LmEvalBenchmark("adding", Task("sums", folder, filter=filter))
    rows = load_hub(benchmark, "test")
    assert [f"Add.\n\n{row.query}" for row in rows] == model.texts
    assert [row.gold for row in rows] == [(str(2 * n + 3),) for n in range(5)]
    assert {row.benchmark for row in rows} == {"adding"}
    assert benchmark.stops == ("\n\n",)
    assert benchmark.version == 3.0
    for number, row in enumerate(rows):
        extracted = benchmark.extract(ANSWERS[number].split("\n\n")[0], row)
        found = theirs[number]["filtered_resps"][0]
        assert extracted == (None if found == "[invalid]" else found)
        assert benchmark.score(extracted, row) == {"exact_match": theirs[number]["exact_match"]}
    assert len({each["exact_match"] for each in theirs.values()}) == 2
    assert benchmark.score(None, rows[0]) == {"exact_match": 0.0}


def test_the_first_filter_is_used_if_none_is_named(tmp_path: Path) -> None:
    benchmark = LmEvalBenchmark("adding", Task("sums", task_files(tmp_path / "t")))
    assert benchmark.extract("= 9 or 7", load_hub(benchmark, "test")[0]) == "9"


def test_train_rows_come_from_a_split_that_is_not_tested(tmp_path: Path) -> None:
    benchmark = LmEvalBenchmark("adding", Task("sums", task_files(tmp_path / "t")))
    assert [row.id for row in load_hub(benchmark, "train")] == [f"training-{n}" for n in range(5)]
    assert [row.target for row in load_hub(benchmark, "train")] == [str(2 * n + 3) for n in range(10, 15)]
    lines = list(check_data(benchmark, ()))
    assert lines[0] == "adding train: 5 rows from its lm-eval task"

    validated = task_files(tmp_path / "v", drop=("training_split",), validation_split="train")
    assert load_hub(LmEvalBenchmark("v", Task("sums", validated)), "train")[0].id == "validation-0"
    untrained = task_files(tmp_path / "u", drop=("training_split", "test_split"), validation_split="test")
    benchmark = LmEvalBenchmark("u", Task("sums", untrained))
    assert load_hub(benchmark, "test")[0].id == "validation-0"
    with pytest.raises(UserError, match="sums has no rows to train on, only its validation split"):
        load_hub(benchmark, "train")


def test_rows_drawn_from_other_data_are_not_scored(tmp_path: Path) -> None:
    folder = task_files(tmp_path / "t")
    rows = load_hub(LmEvalBenchmark("adding", Task("sums", folder)), "test")
    other = LmEvalBenchmark("adding", Task("sums", task_files(tmp_path / "o", doc_to_text="{{a}} and {{b}}?")))
    with pytest.raises(UserError, match=r"asks something else in row test-1 now.*draw the splits again"):
        other.score("5", rows[1])


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        (Task("sumz"), {}, r"task sumz is in no file below .*"),
        (Task("sums", metric="accuracy"), {}, r"no metric 'accuracy' .*set metric: exact_match, bleu"),
        (Task("sums", metric="ter"), {}, "no metric 'ter' where higher is better"),
        (Task("sums", filter="first"), {}, "no filter 'first'; set strict, last"),
        (Task("sums"), {"output_type": "loglikelihood", "generation_kwargs": None}, "does not generate text"),
        (Task("sums"), {"repeats": 4}, "repeats its questions"),
        (Task("sums"), {"unsafe_code": True}, "runs code"),
        (Task("sums"), {"dataset_path": "nobody/nothing"}, r"does not load \(.*connect to the network"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_a_benchmark_is_refused_in_one_line(
    task: Task, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = task_files(tmp_path / "t", **changes)
    with pytest.raises(UserError, match=said) as refused:
        load_hub(LmEvalBenchmark("adding", Task(task.name, folder, task.metric, task.filter)), "test")
    assert "\n" not in str(refused.value)


def test_a_metric_that_is_no_share_is_refused(tmp_path: Path) -> None:
    benchmark = LmEvalBenchmark("adding", Task("sums", task_files(tmp_path / "t"), metric="bleu"))
    with pytest.raises(UserError, match="as bleu of row test-0, not a share; set another metric"):
        benchmark.score("3", load_hub(benchmark, "test")[0])


def test_lm_evals_own_tasks_are_found_by_name() -> None:
    assert Task("asdiv")._own_file().name == "default.yaml"
    assert Task("gsm8k")._own_file().parent.name == "gsm8k"
    with pytest.raises(UserError, match="task gsm8kk does not exist; `metatuner lm-eval ls tasks`"):
        Task("gsm8kk")._own_file()
