"""Table 5 and the figure of cost against score, from files alone."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from metatuner.analysis.figures.costs import Point, draw_cost, figure_cost, pareto
from metatuner.analysis.figures.drawing import STYLE
from metatuner.analysis.names import Names
from metatuner.analysis.results.comparison import compare
from metatuner.analysis.results.costs import fit_costs
from metatuner.analysis.tables.costs import table_5
from metatuner.config import Config
from metatuner.errors import UserError
from tests.toys.results import METRICS, fake_config, fake_run, few_draws, plan_rows

quick = pytest.fixture(autouse=True)(few_draws)

HEADER = (
    "method,benchmark,seed,queries,repeats,write_ms,answer_ms,plain_ms,write_share,write_share_low,write_share_high,"
    "overhead,write_bytes,peak_memory_bytes,device"
)


def run(tmp_path: Path, **cells: Any) -> Config:
    """Zero-shot costs nothing; SFT takes 10 s and 2 TFLOP a fit, twice that with the other seed.

    OPRO with the first generator costs thrice what SFT does, and ten times that with the other, which, like a variant
    of SFT and another experiment, is no part of Table 5.
    """
    methods = ["zero_shot", "sft", "opro"]
    main = {"methods": methods, "benchmarks": list(METRICS), "seeds": [0, 1], "generator": ["large", "small"]}
    main["variants"] = {"sft": {"default": {}, "prompt_a": {}}}
    other = {"methods": ["sft"], "benchmarks": list(METRICS), "seeds": [5], "generator": "large"}
    models = {
        "actor": {"path": "nano:a"},
        "generators": {name: {"path": f"nano:{name}"} for name in ("large", "small")},
    }
    limits = {"default": {"tflop": 4.0, "trained_tokens": 30_000}}
    config = fake_config(tmp_path, models=models, experiments={"other": other, "main": main}, budgets=limits)
    for row in fake_run(config, **cells):
        if not (tmp_path / "cells" / row["cell"]).is_dir():
            continue
        times = 0 if row["method"] == "zero_shot" else 1 + row["seed"]
        times *= {"opro": 3}.get(row["method"], 1) * (10 if row["generator"] == "small" else 1)
        times *= 7 if row["variant"] == "prompt_a" else 1
        spent = {"seconds": 10.0 * times, "flops": 2e12 * times, "lm_calls": 0, "trained_tokens": 1500 * times}
        gpu = 4 * 10**8 if (row["method"], row["seed"]) == ("opro", 1) else 0
        memory = {"peak_memory_bytes": 10**8 * (1 + times), "peak_gpu_memory_bytes": gpu}
        for folder, name, value in (("cells", "cell.json", {"fit": row["fit"]}), ("fits", "cost.json", spent | memory)):
            path = tmp_path / folder / row["cell" if folder == "cells" else "fit"] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
    lines = [
        f"sft,{name},0,32,3,{write},10.0,9.0,0.2,0.1,0.3,1.{place},{2000000 + 200000 * place},1000,cpu"
        for place, (name, write) in enumerate((("math", 1.0), ("gsm8k", 3.0)))
    ]
    lines.append("opro,math,0,32,3,7.0,10.0,9.0,0.2,0.1,0.3,1.5,9000000,1000,cpu")
    (tmp_path / "efficiency.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return config


def test_costs_are_means_over_the_fits_of_a_method(tmp_path: Path) -> None:
    config = run(tmp_path)
    assert [cost["seconds"] for cost in fit_costs(config)["sft"]] == [10.0, 20.0] * 4
    with open(table_5(config)[0], encoding="utf-8", newline="") as file:
        zero, opro, sft = csv.DictReader(file)
    assert [row["method"] for row in (zero, opro, sft)] == ["Zero-shot", "OPRO", "SFT"]
    assert (sft["fit alone, s"], sft["fit, TFLOP"], sft["fit, tokens trained"]) == ("15.0", "3", "2,250")
    assert sft["fit, largest memory, MB"] == "300"
    assert [row["fit, % of budget"] for row in (zero, opro, sft)] == ["0", "225", "75"]
    assert (sft["writing, ms per query"], sft["both / plain actor"]) == ("2.00", "1.05")
    assert (sft["writing, largest memory, MB"], zero["writing, largest memory, MB"]) == ("2.2", "")
    assert (opro["fit alone, s"], opro["fit, TFLOP"], opro["fit, largest memory, MB"]) == ("45.0", "9", "400")
    assert opro["writing, ms per query"] == "7.00"
    assert zero["writing, ms per query"] == ""  # it was not timed


def test_the_papers_range_stands_apart_with_its_source(tmp_path: Path) -> None:
    config = run(tmp_path)
    page = table_5(config)[1].read_text()
    assert "0.03 to 0.53 s per query" in page
    assert "secondary sources" in page
    assert "rankings are no evidence" in page
    assert "with quartiles" not in page  # MetaTuner-J was not timed
    path = tmp_path / "efficiency.csv"
    path.write_text(path.read_text().replace("sft,", "metatuner_j,"))
    page = table_5(config)[1].read_text()
    assert "MetaTuner-J, with quartiles over rounds: nano MATH 0.20" in page


def test_methods_that_leave_more_than_half_unused_stand_with_what_their_searches_tried(tmp_path: Path) -> None:
    config = run(tmp_path)
    assert "less than half" not in table_5(config)[1].read_text()  # nothing is known of searches
    blank = {"search": {}, "settings": {}, "score": 50.0, "rival_score": None, "trials": 5, "failed": 0, "at_edge": []}
    searches = [
        {"subject": subject, "benchmark": benchmark, "status": status, "dearest": dearest, **blank}
        for subject, benchmark, status, dearest in (
            ("zero_shot", "math", "current", 1.0),
            ("zero_shot", "gsm8k", "current", 3.0),
            ("zero_shot", "hotpotqa", "expired", 4.0),  # its settings are not used
            ("sft", "math", "current", 2.0),  # it uses 75 %
        )
    ]
    (tmp_path / "searches.json").write_text(json.dumps(searches))
    note = "searches tried, in % of it (means over benchmarks): Zero-shot 50. Of settings that tie"
    assert note in table_5(config)[1].read_text()


def test_without_timings_the_target_that_makes_them_is_named(tmp_path: Path) -> None:
    config = run(tmp_path)
    (tmp_path / "efficiency.csv").unlink()
    with pytest.raises(UserError, match=r"no file .*efficiency.csv; run `snakemake --cores all efficiency`"):
        table_5(config)


def test_a_preset_that_times_no_policies_says_so_and_ignores_older_timings(tmp_path: Path) -> None:
    config = run(tmp_path).model_copy(update={"timed_rows": 0})
    csv_file, page, *_ = table_5(config)
    with open(csv_file, encoding="utf-8", newline="") as file:
        assert {row["writing, ms per query"] for row in csv.DictReader(file)} == {""}
    assert "Queries: not measured, as the preset times no policies." in page.read_text()
    (tmp_path / "efficiency.csv").unlink()
    assert table_5(config)[1].read_text() == page.read_text()


def test_the_front_holds_whatever_no_cheaper_method_matches() -> None:
    points = [Point("a", 0, 30), Point("b", 1, 25), Point("c", 2, 50), Point("d", 2, 60), Point("e", 3, 60)]
    assert [point.method for point in pareto(points)] == ["a", "d"]


def test_the_figure_is_the_same_in_every_run_and_a_method_with_a_hole_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path)
    lost = [row["cell"] for row in plan_rows(whole) if (row["method"], row["benchmark"]) == ("opro", "math")]
    config = run(tmp_path / "holes", outcomes=dict.fromkeys(lost, ("failed", "budget")))
    drawn: list[list[Point]] = []

    def kept(points: list[Point], seeds: int, names: Names, world: str) -> Figure:
        drawn.append(points)
        return draw_cost(points, seeds, names, world)

    monkeypatch.setattr("metatuner.analysis.figures.costs.draw_cost", kept)
    first = [path.read_bytes() for path in figure_cost(config)]
    assert [path.read_bytes() for path in figure_cost(config)] == first
    assert [point.method for point in drawn[0]] == ["zero_shot", "sft"]
    assert len(fit_costs(config)["opro"]) == 6
    figure_cost(whole)
    entries = compare(whole, "main").entries
    for point, flops in zip(drawn[2], (0.0, 9e12, 3e12), strict=True):
        means = [entries[(point.method, "default"), name].mean.estimate for name in METRICS]
        assert (point.flops, point.score) == pytest.approx((flops, 100 * np.mean(means)))


@pytest.mark.parametrize("costs", [(4e9, 2e11, 1.4e12), (2e11, 5e11)])
def test_tick_labels_are_plain_numbers_where_mathematics_is_off(costs: tuple[float, ...]) -> None:
    with rc_context(STYLE):
        figure = draw_cost([Point(f"m{place}", flops, 50.0) for place, flops in enumerate(costs)], 1, Names(), "")
        figure.draw_without_rendering()
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
        shown = [(tick.label1.get_text(), tick.get_loc()) for tick in ticks if low <= tick.get_loc() <= high]
    labels = [(text, place) for text, place in shown if text]
    assert labels
    for text, place in labels:
        assert float(text.replace("\N{MINUS SIGN}", "-")) == pytest.approx(place)
