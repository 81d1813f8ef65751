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


def test_an_expired_winner_is_kept_if_its_trial_is_one_of_the_present_and_scores_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "winners.json"
    config = load_config("nano", {"tuning.winners": str(file), "results": str(tmp_path / "results")})
    plan = Plan(config)
    (as_before, otherwise, foreign, current), trials = plan.tunable[:4], plan.trials(*plan.tunable[0])
    old = Winner("", "", {}, 50.0, len(trials), 0, (), "old")
    stored = [
        replace(old, method=as_before[0], benchmark=as_before[1], settings=trials[1]),
        replace(old, method=otherwise[0], benchmark=otherwise[1]),
        replace(old, method=foreign[0], benchmark=foreign[1], settings={"shots": 99}),
        replace(old, method=current[0], benchmark=current[1], key=plan.tuning_key(*current), score=7.0),
    ]
    write_winners(file, stored)
    asked = []

    def tried(shop, subject, benchmark, over, rows):
        asked.append(((subject, benchmark), over))
        return {"score": 50.0 if (subject, benchmark) == as_before else 49.5}

    monkeypatch.setattr(steps, "_try", tried)
    monkeypatch.setattr(steps.Workshop, "check_splits", lambda self, names: None)
    monkeypatch.setattr("metatuner.harness.rows.read_rows", lambda path: [])
    assert steps.confirm(config, argparse.Namespace()) == 1
    assert asked == [(as_before, trials[1]), (otherwise, {})]
    found = read_winners(file)
    assert found[as_before] == replace(stored[0], key=plan.tuning_key(*as_before))
    assert [found[one] for one in (otherwise, foreign, current)] == stored[1:]
