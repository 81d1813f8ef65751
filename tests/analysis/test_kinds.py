"""Means by kind of query, in the table and the figure, are those of the cells."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metatuner.analysis.figures.kinds import MOST_KINDS, draw_kinds
from metatuner.analysis.names import Names
from metatuner.analysis.results.kinds import by_kind
from metatuner.analysis.statistics import mean_interval
from metatuner.analysis.tables.kinds import table_kinds
from metatuner.config import Config
from tests.toys.results import fake_config, fake_run, few_draws

quick = pytest.fixture(autouse=True)(few_draws)

MODELS = {"actor": {"path": "nano:a"}, "generators": {name: {"path": f"nano:{name}"} for name in ("large", "small")}}
EXPERIMENTS = {
    "main": {
        "methods": ["zero_shot", "sft", "metatuner_j"],
        "benchmarks": ["gsm8k", "math"],
        "seeds": [3, 4],
        "generator": ["large", "small"],
        "variants": {"sft": {"default": {}, "prompt_a": {}}},
    },
    "other": {"methods": ["ppo"], "benchmarks": ["math"], "seeds": [0], "generator": "large"},
}


def kind_of(benchmark: str, index: int) -> str:
    return f"level {index % 3}" if benchmark == "math" else f"type {min(index // 4, 9):02}"


def run(results: Path, **cells: Any) -> tuple[Config, list[dict[str, Any]]]:
    """Graded scores on rows of several kinds, three rows a group; every file has its rows in another order."""
    config = fake_config(results, models=MODELS, experiments=EXPERIMENTS)
    rng = np.random.default_rng(0)
    rows = fake_run(config, **{"scores": lambda row: rng.random(60), "rows_a_group": {"math": 9}, **cells})
    for place, row in enumerate(rows):
        path = results / "cells" / row["cell"] / "predictions.jsonl"
        if path.is_file():
            records = [json.loads(line) for line in path.read_text().splitlines()]
            for index, record in enumerate(records):
                record["kind"] = kind_of(row["benchmark"], index)
            rolled = records[place:] + records[:place]
            path.write_text("".join(json.dumps(record) + "\n" for record in rolled))
    return config, rows


def scores_of(results: Path, rows: list[dict[str, Any]], kind: str) -> np.ndarray:
    """(cells, queries of a kind)."""
    found = []
    for row in rows:
        lines = (results / "cells" / row["cell"] / "predictions.jsonl").read_text().splitlines()
        records = sorted((json.loads(line) for line in lines), key=lambda record: record["id"])
        found.append([record["score"] for record in records if record["kind"] == kind])
    return np.array(found)


def test_means_are_over_the_seeds_and_rows_of_a_kind_of_the_main_experiment_alone(tmp_path: Path) -> None:
    config, rows = run(tmp_path)
    found = {(one.benchmark, one.kind, one.method): one for one in by_kind(config)}
    methods = ("zero_shot", "sft", "metatuner_j")
    kinds = {"math": [f"level {index}" for index in range(3)], "gsm8k": [f"type {index:02}" for index in range(10)]}
    assert list(found) == [(name, kind, method) for name, own in kinds.items() for method in methods for kind in own]
    for (benchmark, kind, method), one in found.items():
        cells = [
            row
            for row in rows
            if (row["experiment"], row["method"], row["variant"], row["benchmark"])
            == ("main", method, "default", benchmark)
            and row["generator"] in ("", "large")
        ]
        scores = scores_of(tmp_path, cells, kind)
        assert (one.n, one.seeds) == scores.shape[::-1]
        assert one.mean.estimate == pytest.approx(scores.mean())
        assert one.mean.low < one.mean.estimate < one.mean.high


def test_rows_of_a_kind_that_share_a_context_are_drawn_together_in_draws_of_their_own(tmp_path: Path) -> None:
    shared = np.random.default_rng(1).random(60)
    shared[:] = np.repeat(shared[::9][:7], 9)[:60]  # the rows of a group are answered alike
    config, _ = run(tmp_path, scores=lambda row: shared)
    found = [one for one in by_kind(config) if (one.benchmark, one.kind) == ("math", "level 1")]
    assert len({one.mean.estimate for one in found}) == 1
    assert len({(one.mean.low, one.mean.high) for one in found}) == len(found) == 3
    alone = mean_interval(np.array([shared[1::3]]), seed=0)
    assert all(one.mean.high - one.mean.low > 1.3 * (alone.high - alone.low) for one in found)


def test_the_order_of_rows_in_a_file_changes_no_bit(tmp_path: Path) -> None:
    config, rows = run(tmp_path)
    before = by_kind(config)
    for row in rows:
        path = tmp_path / "cells" / row["cell"] / "predictions.jsonl"
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert by_kind(config) == before


def test_the_tidy_file_has_a_line_a_kind_and_method_and_the_page_a_column_a_method(tmp_path: Path) -> None:
    config, rows = run(tmp_path)
    lost = [row["cell"] for row in rows if (row["method"], row["benchmark"]) == ("sft", "math")]
    config, rows = run(tmp_path / "holes", outcomes=dict.fromkeys(lost, ("failed", "budget")))
    tidy, markdown, _, _ = table_kinds(config)
    with open(tidy, encoding="utf-8", newline="") as file:
        lines = {(row["benchmark"], row["kind"], row["method"]): row for row in csv.DictReader(file)}
    means = {(one.benchmark, one.kind, one.method): one for one in by_kind(config)}
    assert lines.keys() == means.keys()
    assert ("math", "level 0", "sft") not in lines
    for key, line in lines.items():
        mean = means[key].mean
        assert [float(line[name]) for name in ("mean", "low", "high")] == pytest.approx(
            [100 * mean.estimate, 100 * mean.low, 100 * mean.high], abs=0.0051
        )
        assert (line["n"], line["seeds"]) == (str(means[key].n), "2")
    page = [line.split(" | ") for line in markdown.read_text(encoding="utf-8").splitlines()]
    (cells,) = [cells for cells in page if cells[0] == "| nano MATH" and cells[1] == "level 2"]
    mean = means["math", "level 2", "metatuner_j"].mean
    assert cells[2:5:2] == ["20", ""]  # rows of the kind; SFT has a hole
    assert cells[5].replace("\\", "") == f"{100 * mean.estimate:.0f} [{100 * mean.low:.0f}, {100 * mean.high:.0f}] |"


def test_the_figure_shows_each_mean_of_the_most_frequent_kinds(tmp_path: Path) -> None:
    config, _ = run(tmp_path)
    found = by_kind(config)
    figure = draw_kinds(found, {"math": "A", "gsm8k": "B"}, Names.of(config), "a world")
    methods = ["zero_shot", "sft", "metatuner_j"]
    for axes, benchmark in zip(figure.axes, ("math", "gsm8k"), strict=True):
        own = {(one.method, one.kind): one for one in found if one.benchmark == benchmark}
        sizes = {kind: own["sft", kind].n for _, kind in own}
        kinds = sorted(sorted(sizes, key=lambda kind: (-sizes[kind], kind))[:MOST_KINDS])
        labels = [label.get_text().split("\n") for label in axes.get_xticklabels()]
        assert labels == [[kind, f"n = {sizes[kind]}"] for kind in kinds]
        drawn = {(text.get_position()): text.get_text() for text in axes.texts}
        assert drawn == {
            (column, row): f"{100 * own[method, kind].mean.estimate:.0f}"
            for row, method in enumerate(methods)
            for column, kind in enumerate(kinds)
        }
    assert len(figure.axes[1].get_xticklabels()) == MOST_KINDS < 10
    assert sizes["type 09"] == 24  # the last by name, and the most frequent
