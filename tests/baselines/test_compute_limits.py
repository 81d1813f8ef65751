"""Searches under a limit of compute: they end in order, within it, with the best they have."""

import json
from pathlib import Path
from typing import Any

import pytest

from metatuner.harness.budget import Budget
from metatuner.harness.policy import Policy
from metatuner.harness.query import to_query
from tests.baselines.test_seeds_and_settings import METHODS, Right
from tests.toys.baselines import PAIR, like, mixed_rows, tiny_lm, toy_lab

SEARCHES = ["opro", "cfpo", "copro", "miprov2", "gepa", "rlprompt", "bpo", "better_together"]


def fitted(name: str, folder: Path, limits: dict[str, float]) -> tuple[Budget, list[dict[str, Any]], Policy]:
    budget, events = Budget(limits, "small"), []
    pair = {"benchmarks": PAIR, "trained_on": tuple(sorted(PAIR))}
    train, dev = mixed_rows(24), mixed_rows(12, seed=1)
    made = toy_lab(
        folder, train, dev, actor=tiny_lm(window=1024), generator=tiny_lm(seed=1, window=1024), budget=budget, **pair
    )
    lab = like(made, Right, log_line=lambda line: events.append(json.loads(line)))
    lab.asked = []
    for role, lm in (("actor", lab.actor), ("generator", lab.need_generator())):
        budget.attach(lm, role)
    try:
        return budget, events, METHODS[name][0].fit(lab)
    finally:
        budget.detach()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_ends_in_order_before_a_limit_of_compute(name: str, tmp_path: Path) -> None:
    whole, events, _ = fitted(name, tmp_path, {})
    assert "budget" not in [event["event"] for event in events]
    limit = 0.7 * whole.spent("tflop")
    short, events, policy = fitted(name, tmp_path, {"tflop": limit})
    assert "budget" in [event["event"] for event in events]
    assert 0.2 * limit < short.spent("tflop") <= limit
    assert policy.respond([to_query(row) for row in mixed_rows(2)])
