"""Which fits count as diverged, by logs like those of real fits, and what becomes of their scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metatuner.analysis.results.comparison import compare
from metatuner.analysis.results.divergence import LOSSES, why_diverged, with_diverged
from metatuner.analysis.results.scores import read_scores, write_scores
from metatuner.analysis.tables import tables_of
from metatuner.config import Config, Layout
from tests.toys.results import fake_config, fake_run


def log(losses: Sequence[float], name: str = "task", norms: Sequence[float] = ()) -> list[dict[str, Any]]:
    """Events of a log with a loss in each, and gradient norms."""
    events: list[dict[str, Any]] = [{"event": "joint", "step": step, name: loss} for step, loss in enumerate(losses)]
    for event, norm in zip(events, norms, strict=False):
        event |= {"norm_phi_p": 0.6 * norm, "norm_phi_q": 0.8 * norm}
    return events


def falling(steps: int = 96, start: float = 1.0, end: float = 0.05, noise: float = 0.2) -> np.ndarray:
    """A healthy curve: it falls, with noise that is larger where the loss is."""
    curve = end + (start - end) * np.exp(-4 * np.arange(steps) / steps)
    return curve * (1 + noise * np.random.default_rng(0).standard_normal(steps))


def test_a_healthy_fit_is_none_and_one_that_breaks_down_is_with_its_numbers() -> None:
    healthy = falling()
    assert why_diverged(log(healthy), "metatuner_j") == ""
    broken = healthy.copy()
    broken[30:] = 3.0 + 0.1 * healthy[30:]
    reason = why_diverged(log(broken), "metatuner_j")
    assert reason.startswith("the loss rose from 0.")
    assert "to 3.0" in reason
    # It counts though the loss comes down again: a policy that forgot all is not the method's.
    broken[60:] = healthy[60:]
    assert "the loss rose" in why_diverged(log(broken), "metatuner_j")


def test_one_bad_batch_is_no_divergence() -> None:
    curve = falling()
    curve[40] += 4.0
    assert why_diverged(log(curve), "metatuner_j") == ""


def test_a_loss_that_ends_above_its_beginning_diverged_and_one_that_stays_did_not() -> None:
    rising = np.linspace(0.5, 0.9, 40)
    assert why_diverged(log(rising), "metatuner_i") == "the loss began at 0.52 and ended at 0.88"
    flat = 0.693 + 0.02 * np.random.default_rng(1).standard_normal(40)
    assert why_diverged(log(flat, "loss"), "dpo") == ""


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_diverged(bad: float) -> None:
    curve = [0.5, 0.4, bad, 0.3]
    assert why_diverged(log(curve), "metatuner_j") == "the loss is not finite at value 2 of 4"


def test_a_gradient_norm_far_above_the_first_ones_diverged() -> None:
    curve, norms = falling(), np.full(96, 4.0)
    norms[50] = 140.0  # 35 times the first ones: seen in healthy fits
    assert why_diverged(log(curve, norms=norms), "metatuner_j") == ""
    norms[50] = 400.0
    assert why_diverged(log(curve, norms=norms), "metatuner_j") == "the gradient norm rose from 4.0 to 400.0"


def test_losses_that_follow_rewards_are_not_judged_and_a_methods_own_task_loss_is() -> None:
    rising = np.linspace(0.1, 5.0, 40)
    for method in ("ppo", "grpo", "rlprompt", "a_new_method"):
        assert why_diverged(log(rising, "loss"), method) == ""
    for method in LOSSES:
        assert why_diverged(log(rising, "loss"), method)
    assert why_diverged(log(rising), "a_new_method")


def test_parts_of_a_training_are_judged_on_their_own_and_short_logs_are_not() -> None:
    # Warm-up ends low, the next part begins high: no rise within either.
    parts = [
        {**event, "event": name} for name, start in (("one", 0.5), ("two", 3.0)) for event in log(falling(20, start))
    ]
    assert why_diverged(parts, "metatuner_j") == ""
    assert why_diverged(log([0.1, 3.0, 4.0, 5.0, 6.0]), "metatuner_j") == ""  # five values say too little
    assert why_diverged(log([0.1, 0.1, 0.1, 3.0, 4.0, 5.0]), "metatuner_j")


def with_logs(results: Path, diverged: tuple[str, str, int]) -> tuple[Config, list[dict[str, Any]]]:
    """A run in which the fit of one method, on a benchmark and with a seed, diverged."""
    config = fake_config(results, methods=["sft", "metatuner_j"])
    rows = fake_run(config)
    layout = Layout(config)
    for row in rows:
        (layout.cell(row["cell"]) / "cell.json").write_text(json.dumps({"fit": row["fit"]}))
        bad = (row["method"], row["benchmark"], row["seed"]) == diverged
        curve = np.linspace(0.2, 4.0, 30) if bad else falling(30)
        name = "loss" if row["method"] == "sft" else "task"
        layout.fit(row["fit"]).mkdir(parents=True)
        lines = (json.dumps(event) for event in log(curve, name))
        (layout.fit(row["fit"]) / "log.jsonl").write_text("\n".join(lines))
    return config, rows


@pytest.mark.parametrize("method", ["sft", "metatuner_j"])
def test_a_diverged_fit_has_a_reason_in_place_of_its_score(tmp_path: Path, method: str) -> None:
    config, rows = with_logs(tmp_path, (method, "math", 1))
    outcomes = with_diverged(rows, {}, Layout(config))
    (key,) = outcomes
    write_scores(rows, outcomes, tmp_path)
    (hole,) = [line for line in read_scores(tmp_path / "scores.csv") if line.status != "ok"]
    assert (hole.method, hole.benchmark, hole.seed, hole.cell) == (method, "math", 1, key)
    assert (hole.status, hole.score, hole.n) == ("diverged", None, 0)
    assert hole.reason.startswith("the loss rose from ")
    assert "(it scores " in hole.reason
    entry = compare(config, "main").entries[(method, "default"), "math"]
    assert entry.seeds == (0, 2)
    assert entry.hole.startswith("diverged on seed 1: the loss rose")
    page = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    assert "diverged on seed 1" in page
    assert "skipped and diverged cells have no score" in page


def test_cells_that_failed_or_have_no_log_stay_as_they_are(tmp_path: Path) -> None:
    config, rows = with_logs(tmp_path, ("sft", "math", 1))
    (row,) = [row for row in rows if (row["method"], row["benchmark"], row["seed"]) == ("sft", "math", 1)]
    failed = {row["cell"]: ("failed", "ValueError: no loss")}
    assert with_diverged(rows, failed, Layout(config)) == failed
    (Layout(config).fit(row["fit"]) / "log.jsonl").unlink()
    assert with_diverged(rows, {}, Layout(config)) == {}
