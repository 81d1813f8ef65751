"""Searches: what is stored of each, and when a stored winner no longer holds."""

import json
from pathlib import Path

import pytest

from metatuner.config import load_config, resolve
from metatuner.hashing import ROOT, git_state
from metatuner.plan import Plan
from metatuner.plan.winners import read_winners
from tests.toys.commands import step


@pytest.mark.parametrize("preset", ["nano"])
def test_stored_winners_are_current_and_come_from_as_many_trials(preset):
    plan = Plan(load_config(preset))
    assert plan.grid.rows
    assert plan.settings.expired == set()
    assert set(plan.settings.winners) <= set(plan.searches.all)
    # Every method of the main table is tuned; an ablation whose own search has not been run says so in its table.
    assert all("." in subject for subject, _ in set(plan.searches.all) - set(plan.settings.winners))
    for winner in plan.settings.winners.values():
        assert winner.trials == len(plan.searches.trials(winner.method, winner.benchmark))
        assert winner.failed <= winner.trials / 2


def test_a_search_stores_its_runner_up_with_its_score(tmp_path: Path):
    file = tmp_path / "winners.json"
    config = load_config("nano", {"tuning.winners": str(file), "results": str(tmp_path / "results")})
    plan = Plan(config)
    method, benchmark = one = plan.searches.all[0]
    scores = [40.0, 55.0, None, 50.0]  # one trial failed
    tried = [
        {"settings": over, "score": score} for over, score in zip(plan.searches.trials(*one), scores, strict=False)
    ]
    record = plan.layout.tune(method, benchmark)
    record.parent.mkdir(parents=True)
    record.write_text(
        json.dumps({"method": method, "benchmark": benchmark, "key": plan.settings.winner_key(*one), "trials": tried})
    )
    assert step("winners", config) == 0
    winner = read_winners(file)[one]
    assert (winner.settings, winner.score, winner.failed) == (tried[1]["settings"], 55.0, 1)
    assert (winner.rival, winner.rival_score) == (tried[3]["settings"], 50.0)
    assert winner.commit == git_state(ROOT)["commit"]
    assert winner.date is not None
    # Stored again it is what it was, with the commit and the day on which it was found.
    file.write_text(file.read_text().replace(winner.date, "2020-01-01"))
    assert step("winners", config) == 0
    assert read_winners(file)[one].date == "2020-01-01"


def test_a_search_of_what_the_preset_no_longer_asks_replaces_nothing(tmp_path: Path):
    file = tmp_path / "winners.json"
    config = load_config("nano", {"tuning.winners": str(file), "results": str(tmp_path / "results")})
    plan = Plan(config)
    method, benchmark = plan.searches.all[0]
    record = plan.layout.tune(method, benchmark)
    record.parent.mkdir(parents=True)
    tried = [{"settings": {}, "score": 40.0}]
    record.write_text(json.dumps({"method": method, "benchmark": benchmark, "key": "another", "trials": tried}))
    assert step("winners", config) == 0
    assert read_winners(file) == {}
    assert record.is_file()


def test_a_search_whose_every_trial_failed_stores_nothing_and_is_tried_again(tmp_path: Path):
    file = tmp_path / "winners.json"
    config = load_config("nano", {"tuning.winners": str(file), "results": str(tmp_path / "results")})
    plan = Plan(config)
    method, benchmark = one = plan.searches.all[0]
    record = plan.layout.tune(method, benchmark)
    record.parent.mkdir(parents=True)
    key, tried = plan.settings.winner_key(*one), [{"settings": {}, "score": None}]
    record.write_text(json.dumps({"method": method, "benchmark": benchmark, "key": key, "trials": tried}))
    assert step("winners", config) == 1
    assert read_winners(file) == {}
    assert not record.is_file()


LOG, EVEN = {"low": 1e-4, "high": 1e-2}, {"low": 0.5, "high": 1.5, "log": False}
WON = {
    # On the scale of logarithms the outer tenths are below 1.6e-4 and above 6.3e-3.
    ("sft", "gsm8k"): ({"learning_rate": 1.5e-4, "epochs": 12}, ("learning_rate",)),
    ("sft", "math"): ({"learning_rate": 4e-4, "epochs": 18}, ("epochs",)),
    ("sft", "hotpotqa"): ({"learning_rate": 9e-3, "epochs": 6}, ("epochs", "learning_rate")),
    ("sft", "cosmosqa"): ({"learning_rate": 5e-3, "epochs": 12}, ()),
    ("copro", "gsm8k"): ({"temperature": 0.55, "scored_rows": 16}, ("temperature",)),
    ("copro", "math"): ({"temperature": 0.65, "scored_rows": 16}, ()),  # one value has no edge
    ("copro", "hotpotqa"): ({"temperature": 1.35, "scored_rows": 16}, ()),
    ("copro", "cosmosqa"): ({"temperature": 1.45, "scored_rows": 16}, ("temperature",)),
}


def test_a_winner_at_the_edge_of_its_range_is_named(tmp_path: Path):
    file = tmp_path / "winners.json"
    overrides = {"tuning.winners": str(file), "results": str(tmp_path), "run": "main"}
    values = json.loads(load_config("nano", overrides).model_dump_json())
    values["experiments"]["main"]["methods"] = ["sft", "copro"]
    values["methods"]["sft"]["search"] = {"learning_rate": LOG, "epochs": {"values": [12, 18, 6]}}
    values["methods"]["copro"]["search"] = {"temperature": EVEN, "scored_rows": {"values": [16]}}
    config = resolve(values)
    plan = Plan(config)
    for (method, benchmark), (best, _) in WON.items():
        record = plan.layout.tune(method, benchmark)
        record.parent.mkdir(exist_ok=True)
        key = plan.settings.winner_key(method, benchmark)
        tried = [{"settings": {}, "score": 40.0}, {"settings": best, "score": 55.0}]
        record.write_text(json.dumps({"method": method, "benchmark": benchmark, "key": key, "trials": tried}))
    assert step("winners", config) == 0
    assert {one: winner.at_edge for one, winner in read_winners(file).items()} == {
        one: at_edge for one, (_, at_edge) in WON.items()
    }
