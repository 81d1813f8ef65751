"""Stored winners are those of the code and config as they are; after a change they depend on, run the `tune` target."""

import pytest

from metatuner.harness.config import load_config
from metatuner.plan import Plan


@pytest.mark.parametrize("preset", ["nano"])
def test_stored_winners_are_current_and_come_from_as_many_trials(preset):
    plan = Plan(load_config(preset))
    assert plan.rows
    assert plan.expired == set()
    assert set(plan.winners) == set(plan.tunable)
    for winner in plan.winners.values():
        assert winner.trials == len(plan.trials(winner.method, winner.benchmark))
        assert winner.failed == 0
