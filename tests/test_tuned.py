"""Stored winners are those of the code and config as they are; after a change they depend on, run the `tune` target."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from metatuner import steps
from metatuner.harness.config import load_config
from metatuner.harness.tuning import Winner, read_winners, write_winners
from metatuner.plan import Plan


@pytest.mark.parametrize("preset", ["nano"])
def test_stored_winners_are_current_and_come_from_as_many_trials(preset):
    plan = Plan(load_config(preset))
    assert plan.rows
    assert plan.expired == set()
    assert set(plan.winners) <= set(plan.tunable)
    # Every method of the main table is tuned; an ablation whose own search has not been run says so in its table.
    assert all("." in subject for subject, _ in set(plan.tunable) - set(plan.winners))
    for winner in plan.winners.values():
        assert winner.trials == len(plan.trials(winner.method, winner.benchmark))
        assert winner.failed == 0


def test_an_expired_winner_is_kept_if_only_code_changed_and_it_scores_as_before_and_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "winners.json"
    config = load_config("nano", {"tuning.winners": str(file), "results": str(tmp_path / "results")})
    plan = Plan(config)
    as_before, otherwise, foreign, current, beaten, other_data = plan.tunable[:6]
    trials = {one: plan.trials(*one) for one in plan.tunable[:6]}
    old = Winner("", "", {}, 50.0, 0, 0, (), "old")
    stored = {one: replace(old, method=one[0], benchmark=one[1], trials=len(trials[one])) for one in trials}
    stored[as_before] = replace(stored[as_before], settings=trials[as_before][1])
    stored[foreign] = replace(stored[foreign], settings={"shots": 99})
    stored[current] = replace(stored[current], key=plan.tuning_key(*current))
    stored[beaten] = replace(stored[beaten], rival=trials[beaten][2], base=plan.tuning_base(*beaten))
    stored[other_data] = replace(stored[other_data], base="of other data")
    write_winners(file, stored.values())
    asked = []

    def tried(shop, subject, benchmark, over, rows):
        one = subject, benchmark
        asked.append((one, over))
        if over != stored[one].settings:
            return {"score": 50.5 if one == beaten else 50.0}
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
    ]
    found = read_winners(file)
    kept = {"key": plan.tuning_key(*as_before), "base": plan.tuning_base(*as_before), "rival": {}}
    assert found.pop(as_before) == replace(stored.pop(as_before), **kept)
    assert found == stored
