"""Evaluation through lm-eval: one model class wraps any policy, and the tasks are the YAML files in `tasks/`."""

import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from metatuner.errors import UserError
from metatuner.files import write_json, write_lines
from metatuner.harness.benchmarks import Benchmark
from metatuner.harness.policy import Policy
from metatuner.harness.query import Query, Response
from metatuner.harness.rows import Row
from metatuner.harness.tasks.functions import STOPPED, offer
from metatuner.hashing import ROOT

TASKS = ROOT / "metatuner" / "harness" / "tasks"


class PolicyLM(LM):
    """A policy as an lm-eval model of this project's tasks. It has its own prompts and its benchmark's decoding rules.

    `metatuner.run.lm_eval_model` is the model that lm-eval's command line knows.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.responses: dict[str, Response] = {}
        """The last responses, by query id."""

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The policy's completions, in order."""
        queries = [Query(request.doc["id"], request.doc["benchmark"], request.args[0]) for request in requests]
        responses = self.policy.respond(queries)
        for query, response in zip(queries, responses, strict=True):
            if not isinstance(response.prompt, str):
                told = f"{response.prompt!r:.60}, no text; `prepare` returns texts"
                raise UserError(f"the policy's prompt for query {query.id} is {told}")
        self.responses = {query.id: response for query, response in zip(queries, responses, strict=True)}
        return [response.completion for response in responses]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Always raises `UserError`: a policy answers in text only."""
        raise UserError("model metatuner only generates; choose tasks with output_type generate_until")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Always raises `UserError`: a policy answers in text only."""
        raise UserError("model metatuner only generates; choose tasks with output_type generate_until")


def evaluate_policy(
    policy: Policy, benchmark: Benchmark, test_file: Path, out: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Let a policy answer every test row, score the answers, and write `predictions.jsonl` and `metrics.json` to `out`.

    The files hold no times: the same policy gives the same bytes.

    Args:
        policy: the policy to evaluate.
        benchmark: the benchmark with the task to run.
        test_file: a split file of rows.
        out: an existing folder.

    Returns:
        The records, one per row, in the order of the test file: id, kind, group (a hash of the row's group), prompt,
        completion, extracted, gold, score (the primary metric), metrics, stopped (why scoring stopped early, or None),
        prompt_tokens, completion_tokens, truncated, cut_tokens, cut_demos, leaks (`Benchmark.leaks` of the prompt; None
        if all queries have the same prompt, so that none was written for a query). And the summary: task, version, n,
        primary, metrics (means, 0 to 1), and how many rows were truncated, cut, without some demonstrations,
        unextracted, stopped (by reason), and have a prompt that leaks (or None).
    """
    model = PolicyLM(policy)
    offer(benchmark)
    tasks = _load_task(benchmark, test_file)
    (name,) = tasks["tasks"]
    results = lm_eval.evaluate(lm=model, task_dict=tasks, bootstrap_iters=0)
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    written = len({response.prompt for response in model.responses.values()}) > 1
    records = [_record(sample, model.responses[sample["doc"]["id"]], benchmark, written) for sample in samples]
    summary = {
        "task": name,
        "version": benchmark.version,
        "n": len(records),
        "primary": benchmark.primary,
        "metrics": {metric: float(results["results"][name][f"{metric},extract"]) for metric in benchmark.metrics},
        "truncated": sum(record["truncated"] for record in records),
        "cut": sum(record["cut_tokens"] > 0 for record in records),
        "cut_demos": sum(record["cut_demos"] > 0 for record in records),
        "unextracted": sum(record["extracted"] is None for record in records),
        "leaks": sum(record["leaks"] for record in records) if written else None,
        STOPPED: dict(Counter(record[STOPPED] for record in records if record[STOPPED] is not None)),
    }
    write_lines(out / "predictions.jsonl", records, sort_keys=True)
    write_json(out / "metrics.json", summary)
    return records, summary


def _load_task(benchmark: Benchmark, test_file: Path) -> dict[str, Any]:
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"rows": str(test_file)})
    name = f"metatuner_{benchmark.id}"
    if name in manager.all_tasks:
        return manager.load(name)
    # A benchmark that is only one file has no task file: its class gives what `_rows.yaml` leaves open.
    mean = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in benchmark.metrics]
    config = {
        "include": str(TASKS / "_rows.yaml"),
        "task": name,
        "dataset_kwargs": {"benchmark": benchmark.id},
        "metric_list": [*mean, {"metric": STOPPED, "aggregation": "metatuner_share", "higher_is_better": False}],
        "metadata": {"version": benchmark.version},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        return manager.load(str(path))


def _record(sample: dict[str, Any], response: Response, benchmark: Benchmark, written: bool) -> dict[str, Any]:
    row = sample["doc"]
    return {
        "id": row["id"],
        "kind": row["kind"],
        "group": hashlib.sha256(row["group"].encode()).hexdigest()[:12],
        "prompt": response.prompt,
        "completion": response.completion,
        "extracted": sample["filtered_resps"][0],
        "gold": list(row["gold"]),
        "score": sample[benchmark.primary],
        "metrics": {metric: sample[metric] for metric in benchmark.metrics},
        STOPPED: sample[STOPPED],
        "prompt_tokens": response.prompt_tokens,
        "completion_tokens": response.completion_tokens,
        "truncated": response.truncated,
        "cut_tokens": response.cut_tokens,
        "cut_demos": response.cut_demos,
        "leaks": benchmark.leaks(response.prompt, Row.from_json(row)) if written else None,
    }
