"""Score against compute: what is drawn and written from the trials of searches."""

import csv
import json
from pathlib import Path

import pytest

from metatuner.analysis.figures.budget import Trial, best, figure_budget, so_far
from metatuner.config import Config
from metatuner.errors import UserError
from tests.toys.results import fake_config

TRIALS = {
    ("sft", "math"): [(0.1, 40.0), (0.4, 60.0), (0.5, 55.0), (1.8, 61.0)],
    ("sft", "gsm8k"): [(0.7, 30.0)],
    ("opro", "math"): [(0.2, 50.0)],
}


def searched(folder: Path) -> Config:
    config = fake_config(
        folder, methods=["sft", "opro"], budgets={"default": {"tflop": 2.4}, "small": {"tflop": 0.6}, "wide": {}}
    )
    (folder / "tune").mkdir()
    for (method, benchmark), found in TRIALS.items():
        done = [{"settings": {}, "tflop": tflop, "score": score, "status": "ok"} for tflop, score in found]
        done.append({"settings": {}, "tflop": None, "score": None, "status": "failed"})
        (folder / "tune" / f"{method}-{benchmark}.json").write_text(json.dumps({"trials": done}))
    return config


def test_the_best_score_within_each_budget_is_written(tmp_path: Path) -> None:
    png, pdf, table = figure_budget(searched(tmp_path))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["method", "benchmark", "within budget default", "within budget small"]
    assert sorted(rows[1:]) == [
        ["OPRO", "math", "50.0", "50.0"],
        ["SFT", "gsm8k", "30.0", ""],
        ["SFT", "math", "61.0", "60.0"],
    ]


def test_a_line_rises_with_the_best_trial_so_far_and_ends_at_the_dearest() -> None:
    trials = [Trial(0.5, 55.0), Trial(0.1, 40.0), Trial(0.4, 60.0), Trial(1.8, 60.0)]
    assert so_far(trials) == [Trial(0.1, 40.0), Trial(0.4, 60.0), Trial(1.8, 60.0)]
    assert best(trials, 0.39) == 40.0
    assert best(trials, 0.05) is None


def test_without_a_search_it_names_the_target_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished search; run `snakemake --cores all figure_budget`"):
        figure_budget(fake_config(tmp_path))
