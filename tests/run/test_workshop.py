"""The steps in one process, on toy models and rows of one's own: what each reads, and what it writes down."""

import json
from pathlib import Path
from typing import Any

import pytest

from metatuner.config import Config, load_config
from metatuner.errors import UserError
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
