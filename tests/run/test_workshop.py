"""The steps in one process, on toy models and rows of one's own: what each reads, and what it writes down."""

import json
from pathlib import Path
from typing import Any

import pytest

from metatuner import hashing
from metatuner.config import Config, load_config, resolve
from metatuner.errors import UserError
from metatuner.harness.query import Response
from metatuner.harness.rows import read_rows
from metatuner.plan import Plan
from metatuner.plan.winners import read_winners
from metatuner.run.workshop import Workshop
from tests.toys.commands import step
from tests.toys.lm import save_tiny

TOLD = '''
from dataclasses import dataclass
from metatuner.harness.method import Method
from metatuner.harness.policy import Policy, register_policy
from metatuner.harness.query import Prepared, Response


@dataclass(frozen=True)
class Settings:
    answer: str = "2"


class Saying:
    """A ground whose actor answers with the prompt."""

    def answer(self, queries, prompts, **how):
        return [Response("p", prompt, 1, 1, False) for prompt in prompts]


@register_policy("told")
class Told(Policy):
    def __init__(self, answer):
        self.answer, self.ground = answer, Saying()

    def prepare(self, queries):
        return Prepared([self.answer for _ in queries])

    def write(self, folder):
        return {"answer": self.answer}

    @classmethod
    def read(cls, folder, state, ground):
        return cls(state["answer"])


class Mine(Method):
    """Answers everything alike."""

    name = "mine"
    title = "mine"
    family = "vanilla"
    reference = "none"
    Settings = Settings

    def fit(self, lab):
        lab.log(train=[row.id for row in lab.train], dev=[row.id for row in lab.dev], seed=lab.seed)
        return Told(self.settings.answer)
'''
"""A method whose policy answers every query with one text, that of its setting."""


def rows(name: str, split: str, count: int) -> list[dict[str, Any]]:
    """Train rows are answered by 1, test rows by 2; in HotpotQA by half of it where the text is longer."""
    answer = {"train": "1", "test": "2"}[split]
    found = []
    for index in range(count):
        row: dict[str, Any] = {"id": f"{split}-{index}", "question": f"{name} {split} {index}?"}
        if name == "gsm8k":
            row |= {"answer": f"#### {answer}"}
        else:
            row |= {"answer": f"{answer} town", "type": "bridge", "context": [["T", [f"It is {index}."]]]}
        found.append(row)
    return found


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "mine.py").write_text(TOLD)
    model = {"path": str(save_tiny(tmp_path / "model")), "device": "cpu", "window": None}
    benchmarks = {}
    for name in ("gsm8k", "hotpotqa"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        for split, count in (("train", 40), ("test", 9)):
            text = "".join(json.dumps(row) + "\n" for row in rows(name, split, count))
            (tmp_path / "rows" / name / f"{split}.jsonl").write_text(text)
        sizes = {"train": 12, "dev": 5, "tune": 6, "test": 7, "audit": 0}
        benchmarks[name] = {"source": "local", "path": str(tmp_path / "rows"), "sizes": sizes, "max_new_tokens": 4}
    grid = {"methods": ["mine"], "benchmarks": list(benchmarks), "seeds": [3, 4], "generator": "large"}
    values = {"answer": {"values": ["1", "2", "1 town", "1 city"]}}
    overrides = {
        "results": str(tmp_path / "results"),
        "cache": str(tmp_path / "cache"),
        "tuning": {"winners": str(tmp_path / "winners.json"), "trials": 4, "seed": 77},
        "extra_methods": [str(tmp_path / "mine.py")],
        "models": {"actor": model, "generators": {"large": model}},
        "benchmarks": benchmarks,
        "methods": {"mine": {"search": values}},
        "experiments.toy": grid,
        "run": "toy",
        "keep": "all",
    }
    return load_config("nano", overrides)


def test_splits_of_local_rows_are_fixed_disjoint_and_vouched_for_by_a_key(config: Config) -> None:
    plan = Plan(config)
    for name in ("gsm8k", "hotpotqa"):
        step("data", config, benchmark=name)
        folder = plan.layout.data(name)
        split = {each: {row.id for row in read_rows(folder / f"{each}.jsonl")} for each in ("pool", "tune", "test")}
        assert {each: len(ids) for each, ids in split.items()} == {"pool": 34, "tune": 6, "test": 7}
        assert not split["pool"] & split["tune"]
        assert all(id.startswith("test-") for id in split["test"])
        assert (folder / "key.txt").read_text().strip() == plan.keys.data_key(name)
    other = load_config("nano", {**_values(config), "benchmarks.gsm8k.split_seed": 5})
    with pytest.raises(UserError, match="gsm8k: no splits of this config"):
        Workshop(other).check_splits(["hotpotqa", "gsm8k"])
    Workshop(other).check_splits(["hotpotqa"])
    before = (plan.layout.data("gsm8k") / "test.jsonl").read_bytes()
    step("data", other, benchmark="gsm8k")
    assert (plan.layout.data("gsm8k") / "test.jsonl").read_bytes() != before


def _values(config: Config) -> dict[str, Any]:
    return json.loads(config.model_dump_json())


def test_a_search_fits_on_train_rows_and_is_judged_on_tune_rows_by_the_primary_metric(config: Config) -> None:
    plan = Plan(config)
    for name in ("gsm8k", "hotpotqa"):
        step("data", config, benchmark=name)
        step("tune", config, method="mine", benchmark=name)
        record = json.loads(plan.layout.tune("mine", name).read_text())
        scores = {trial["settings"].get("answer", "2"): trial["score"] for trial in record["trials"]}
        # Tune rows come from the train file, whose answer is 1; "1 city" is half of F1 and no exact match.
        right = {"gsm8k": {"1", "1 town", "1 city"}, "hotpotqa": {"1 town"}}[name]
        assert scores == {answer: 100.0 if answer in right else 0.0 for answer in ("1", "2", "1 town", "1 city")}
        # Each was fitted with the seed of tuning, which no experiment reports.
        keys = {plan.searches.fit("mine", name, trial["settings"]).key for trial in record["trials"]}
        assert {plan.searches.fit("mine", name, trial["settings"]).seed for trial in record["trials"]} == {77}
        assert keys <= {path.stem for path in (plan.layout.root / "tune" / "trials").iterdir()}
        assert list(plan.layout.root.glob("fits/*")) == []  # a trial's policy serves nothing else
        broken = plan.layout.trial(sorted(keys)[0])
        broken.write_text("[]")
        step("tune", config, method="mine", benchmark=name)
        assert json.loads(plan.layout.tune("mine", name).read_text()) == record
    assert step("winners", config) == 0
    found = read_winners(Path(str(config.tuning.winners)))
    assert found["mine", "hotpotqa"].settings == {"answer": "1 town"}
    assert (found["mine", "hotpotqa"].score, found["mine", "hotpotqa"].trials) == (100.0, 4)
    assert found["mine", "gsm8k"].rival_score == 100.0
    used = {(row.benchmark, row.settings["answer"], row.tuned) for row in Plan(config).grid.rows}
    assert ("hotpotqa", "1 town", "winner") in used


def test_a_cell_is_its_own_fits_policy_asked_the_test_rows(config: Config) -> None:
    for name in ("gsm8k", "hotpotqa"):
        step("data", config, benchmark=name)
    plan, shop = Plan(config), Workshop(config)
    drawn = {}
    for cell in plan.grid.cells.values():
        assert shop.evaluate(cell, share=False).status == "failed"  # nothing is fitted yet
        assert shop.fit(cell.fit, share=False).status == "ok"
        assert shop.evaluate(cell, share=False).status == "ok"
        folder, fitted = plan.layout.cell(cell.key), plan.layout.fit(cell.fit.key)
        told = json.loads((folder / "cell.json").read_text())
        assert (told["method"], told["benchmark"], told["seed"]) == ("mine", cell.benchmark, cell.fit.seed)
        assert (told["fit"], told["key"], told["trained_on"]) == (cell.fit.key, cell.key, [cell.benchmark])
        records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        test = read_rows(plan.layout.data(cell.benchmark) / "test.jsonl")
        assert [record["id"] for record in records] == [row.id for row in test]
        # Test rows are answered by 2: all of GSM8K's; of HotpotQA's "2 town" it is half.
        assert {record["score"] for record in records} == {1.0 if cell.benchmark == "gsm8k" else 0.0}
        log = json.loads((fitted / "log.jsonl").read_text())
        pool = {row.id for row in read_rows(plan.layout.data(cell.benchmark) / "pool.jsonl")}
        assert (len(log["train"]), len(log["dev"]), log["seed"]) == (12, 5, cell.fit.seed)
        assert {*log["train"], *log["dev"]} <= pool
        drawn[cell.benchmark, cell.fit.seed] = frozenset(log["train"])
    assert len(set(drawn.values())) == 4


def test_a_fit_whose_requirement_is_missing_fails_and_says_so(config: Config) -> None:
    step("data", config, benchmark="gsm8k")
    shop = Workshop(config)
    settings = shop.plan.settings.resolve("dpo", ("gsm8k",))
    outcome = shop.fit(shop.plan.grid.fit("dpo", settings, ("gsm8k",), "", 3), share=False)
    assert outcome.status == "failed"
    assert "sft" in outcome.reason


CAPITALS = """
from metatuner.harness.benchmarks.base import Benchmark, text_field
from metatuner.harness.rows import Row


class Capitals(Benchmark):
    id = "capitals"
    version = 1
    metrics = ("em",)
    primary = "em"
    initial_prompt = "name the capital"
    max_new_tokens = 4

    def row(self, raw):
        country, capital = text_field(raw, "country"), text_field(raw, "capital")
        return Row(raw["id"], self.id, country, (capital,), capital, "all", country)

    def extract(self, completion, row):
        return completion.strip() or None

    def score(self, extracted, row):
        return {"em": float(extracted in row.gold)}
"""
SUMS = {
    "task": "sums",
    "dataset_path": "json",
    "training_split": "train",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{a}} and 1?",
    "doc_to_target": "{{sum}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def own(config: Config, tmp_path: Path) -> Config:
    """A preset whose benchmarks are a file of the user's and a task of lm-eval's. Its method answers 2."""
    (tmp_path / "capitals.py").write_text(CAPITALS)
    (tmp_path / "rows" / "capitals").mkdir()
    (tmp_path / "task").mkdir()
    for split, count in (("train", 30), ("test", 6)):
        lines = [json.dumps({"id": f"{n}", "country": f"{split} {n}", "capital": f"{n}"}) + "\n" for n in range(count)]
        (tmp_path / "rows" / "capitals" / f"{split}.jsonl").write_text("".join(lines))
        start = 0 if split == "test" else 100
        lines = [json.dumps({"a": start + n, "sum": f"{start + n + 1}"}) + "\n" for n in range(count)]
        (tmp_path / "task" / f"{split}.jsonl").write_text("".join(lines))
    files = {split: str(tmp_path / "task" / f"{split}.jsonl") for split in ("train", "test")}
    (tmp_path / "task" / "sums.yaml").write_text(json.dumps(SUMS | {"dataset_kwargs": {"data_files": files}}))
    sizes = {"train": 8, "dev": 3, "tune": 3, "test": 6, "audit": 0}
    values = _values(config) | {
        "extra_benchmarks": [str(tmp_path / "capitals.py")],
        "tuning": {"winners": None},
        "methods": {},
        "benchmarks": {
            "capitals": {"source": "local", "path": str(tmp_path / "rows"), "sizes": sizes},
            "adding": {
                "source": "lm_eval",
                "task": "sums",
                "include_path": str(tmp_path / "task"),
                "initial_prompt": "add",
                "max_new_tokens": 4,
                "sizes": sizes,
            },
        },
        "experiments": {
            "toy": {"methods": ["mine"], "benchmarks": ["capitals", "adding"], "seeds": [3], "generator": "large"}
        },
    }
    return resolve(values)


def test_a_benchmark_of_the_users_file_and_a_task_of_lm_evals_are_fitted_and_evaluated_like_others(
    own: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step("check-data", own) == 0
    checked = capsys.readouterr().out
    assert "capitals train: 30 rows from" in checked
    assert "adding test: 6 rows from its lm-eval task" in checked
    for name in ("capitals", "adding"):
        step("data", own, benchmark=name)
    shop = Workshop(own)
    for cell in shop.plan.grid.cells.values():
        assert shop.fit(cell.fit, share=False).status == "ok"
        assert shop.evaluate(cell, share=False).status == "ok"
        folder = shop.layout.cell(cell.key)
        records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        assert {record["extracted"] for record in records} == {"2"}
        # Of six test rows, 2 answers the country with this number, and the sum of 1 and 1.
        assert [record["score"] for record in records if record["gold"] == ["2"]] == [1.0]
        assert sum(record["score"] for record in records) == 1.0
        metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
        assert list(metrics.values()) == pytest.approx([1 / 6])
        rows = read_rows(shop.layout.data(cell.benchmark) / "tune.jsonl")
        assert shop.score([Response("p", row.gold[0], 1, 1, False) for row in rows], rows) == 100.0


def test_each_own_benchmark_counts_in_its_own_keys_alone(own: Config, tmp_path: Path) -> None:
    def keys() -> dict[str, str]:
        hashing._parsed.cache_clear()  # a file is read once per process
        made = Plan(own)
        return {name: made.keys.data_key(name) for name in own.benchmarks} | {
            f"cell {cell.benchmark}": key for key, cell in made.grid.cells.items()
        }

    before = keys()
    (tmp_path / "capitals.py").write_text(CAPITALS.replace("float(extracted in row.gold)", "float(extracted is None)"))
    after = keys()
    assert {name for name in before if after[name] != before[name]} == {"capitals", "cell capitals"}
    (tmp_path / "task" / "sums.yaml").write_text((tmp_path / "task" / "sums.yaml").read_text().replace("and 1", "+ 1"))
    assert {name for name in before if keys()[name] != after[name]} == {"adding", "cell adding"}
    values = _values(own)
    other = resolve(
        {
            **values,
            "benchmarks": {**values["benchmarks"], "adding": {**values["benchmarks"]["adding"], "metric": "bleu"}},
        }
    )
    assert Plan(other).keys.data_key("adding") not in (before["adding"], keys()["adding"])


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("adding", {"task": None}, "`task` goes with `source: lm_eval`"),
        ("adding", {"initial_prompt": None}, "needs `initial_prompt` and `max_new_tokens`"),
        ("capitals", {"metric": "em"}, "go with `source: lm_eval` only"),
        ("adding", {"include_path": "/nowhere"}, "benchmarks.adding.include_path: no folder /nowhere"),
    ],
)
def test_keys_of_an_lm_eval_task_that_do_not_go_together_are_refused(
    name: str, changes: dict[str, Any], said: str, own: Config
) -> None:
    values = _values(own)
    values["benchmarks"][name] |= changes
    with pytest.raises(UserError, match=said):
        Plan(resolve(values)).keys.data_key(name)


def test_an_lm_eval_task_may_not_take_a_benchmarks_name(own: Config) -> None:
    values = _values(own)
    values["benchmarks"]["gsm8k"] = values["benchmarks"].pop("adding")
    values["experiments"]["toy"]["benchmarks"] = ["capitals", "gsm8k"]
    with pytest.raises(
        UserError, match=r"benchmarks.gsm8k: .*gsm8k.py defines 'gsm8k'; give lm-eval's task another name"
    ):
        Plan(resolve(values))
