"""Stored winners are those of the code and config as they are; after a change they depend on, run the `tune` target."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from metatuner import steps
from metatuner.config import load_config, resolve
from metatuner.plan import Plan
from metatuner.plan.winners import Winner, read_winners, write_winners


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
        assert winner.failed == 0


def test_an_expired_winner_is_kept_if_only_code_changed_and_it_scores_as_before_and_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "winners.json"
    config = load_config("nano", {"tuning.winners": str(file), "results": str(tmp_path / "results")})
    plan = Plan(config)
    as_before, otherwise, foreign, current, beaten, other_data, worse, same = plan.searches.all[:8]
    trials = {one: plan.searches.trials(*one) for one in plan.searches.all[:8]}
    old = Winner("", "", {}, 50.0, 0, 0, (), "old")
    stored = {one: replace(old, method=one[0], benchmark=one[1], trials=len(trials[one])) for one in trials}
    stored[as_before] = replace(stored[as_before], settings=trials[as_before][1])
    stored[foreign] = replace(stored[foreign], settings={"shots": 99})
    stored[current] = replace(stored[current], key=plan.settings.winner_key(*current))
    stored[beaten] = replace(stored[beaten], rival=trials[beaten][2], base=plan.tuning_base(*beaten))
    stored[other_data] = replace(stored[other_data], base="of other data")
    for one, rival_score in ((worse, 49.0), (same, 48.0)):  # a loser that scores less than before has changed too
        known = {"rival": trials[one][2], "rival_score": rival_score, "base": plan.tuning_base(*one)}
        stored[one] = replace(stored[one], **known)
    write_winners(file, stored.values())
    asked = []

    def tried(shop, subject, benchmark, over, rows):
        one = subject, benchmark
        asked.append((one, over))
        if over != stored[one].settings:
            return {"score": {beaten: 50.5, worse: 48.0, same: 48.0}.get(one, 50.0)}
        return {"score": 49.5 if one == otherwise else 50.0}

    monkeypatch.setattr(steps, "_try", tried)
    monkeypatch.setattr(steps.Workshop, "check_splits", lambda self, names: None)
    monkeypatch.setattr("metatuner.harness.rows.read_rows", lambda path: [])
    assert steps.confirm(config, argparse.Namespace()) == 1
    assert asked == [
        (as_before, trials[as_before][1]),
        (as_before, {}),
        (otherwise, {}),
        (otherwise, trials[otherwise][1]),
        (beaten, {}),
        (beaten, trials[beaten][2]),
        (worse, {}),
        (worse, trials[worse][2]),
        (same, {}),
        (same, trials[same][2]),
    ]
    found = read_winners(file)
    for one in (as_before, same, current):  # the trial drawn first is no rival to store: it was not found by a search
        renewed = {"key": plan.settings.winner_key(*one), "base": plan.tuning_base(*one)}
        assert found.pop(one) == replace(stored.pop(one), **renewed)
    assert found == stored


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
    steps.winners(config, argparse.Namespace())
    winner = read_winners(file)[one]
    assert (winner.settings, winner.score, winner.failed) == (tried[1]["settings"], 55.0, 1)
    assert (winner.rival, winner.rival_score) == (tried[3]["settings"], 50.0)
    assert winner.base == plan.tuning_base(*one)


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
        tried = [{"settings": {}, "score": 40.0}, {"settings": best, "score": 55.0}]
        record.write_text(json.dumps({"method": method, "benchmark": benchmark, "key": "k", "trials": tried}))
    assert steps.winners(config, argparse.Namespace()) == 0
    assert {one: winner.at_edge for one, winner in read_winners(file).items()} == {
        one: at_edge for one, (_, at_edge) in WON.items()
    }
