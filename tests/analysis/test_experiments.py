"""Tables and figures of experiments: Table 3 against the whole method, grids over an axis, the drawn framework."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from scipy import stats

from metatuner.analysis.figures import figures_of
from metatuner.analysis.figures.bars import draw_bars
from metatuner.analysis.figures.families import best_prompt_optimiser, draw_families
from metatuner.analysis.figures.framework import Design, draw_framework, figure_2
from metatuner.analysis.figures.grids import draw_grid, draw_objectives, read_curves
from metatuner.analysis.results.comparison import Entry, compare
from metatuner.analysis.results.published import STATED, read_published
from metatuner.analysis.results.scores import read_query_scores
from metatuner.analysis.statistics import holm
from metatuner.analysis.statistics import intervals as drawn
from metatuner.analysis.tables import tables_of
from metatuner.config import Config, ExperimentConfig, load_config
from metatuner.errors import UserError
from metatuner.hashing import ROOT
from metatuner.method.config import MetaTunerConfig
from tests.toys.results import CHANCES, fake_config, fake_name, fake_run, fake_scores, few_draws, plan_rows

quick = pytest.fixture(autouse=True)(few_draws)

NANO, FULL = (load_config(preset).model_dump(mode="json")["experiments"] for preset in ("nano", "nano_full"))
NANO["sharing"] = FULL["sharing"]  # with the controls that read h at K
ADDED = ("rewriter_sft", "static_lora")
"""Methods of the ablation beside MetaTuner's variants."""
GENERATORS = {"large": {"path": "nano:generator"}, "small": {"path": "nano:generator_small"}}


def config_of(tmp_path: Path, *names: str, **changes: Any) -> Config:
    """A fake preset with experiments of the default one, on two benchmarks."""
    experiments = {name: {**NANO[name], "benchmarks": ["math", "gsm8k"], "seeds": [0], **changes} for name in names}
    config = fake_config(tmp_path, methods=[*CHANCES, *ADDED])
    values = {**config.model_dump(mode="json"), "experiments": experiments}
    values["models"]["generators"] = GENERATORS
    values["methods"]["metatuner_j"]["variants"] = {"gumbel": {}}
    return Config.model_validate(values)


def scores_of(config: Config, row: dict[str, Any]) -> np.ndarray:
    answers = read_query_scores(Path(config.results), row["cell"])
    return np.array([answers[name].score for name in sorted(answers)])


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


# ---- table 3 -------------------------------------------------------------------------------------------------------


def test_table_3_pairs_every_row_with_the_whole_method_in_the_configs_order(tmp_path: Path) -> None:
    config = config_of(tmp_path, "ablation", seeds=[0, 1, 2])
    chances = {**CHANCES, "metatuner_j.without_f": 0.2}

    def alike(row: dict[str, Any]) -> list[float]:
        """Scores that do not depend on the seed: what remains is the test of one sample of differences."""
        return fake_scores(fake_name(row), row["benchmark"], 0, 80, chances)

    rows = fake_run(config, scores=alike)
    lines = read_table(tables_of(config)["table_3"](config)[0])
    order = list(dict.fromkeys((line["method"], line["variant"]) for line in lines))
    assert order == [("metatuner_j", name) for name in NANO["ablation"]["variants"]["metatuner_j"]] + [
        (name, "default") for name in ADDED
    ]
    for benchmark in ("math", "gsm8k"):
        own = {(row["method"], row["variant"]): row for row in rows if row["benchmark"] == benchmark}
        whole = scores_of(config, own["metatuner_j", "default"])
        found = {(line["method"], line["variant"]): line for line in lines if line["benchmark"] == benchmark}
        p_values = {}
        for key, row in own.items():
            if key == ("metatuner_j", "default"):
                assert found[key]["difference"] == ""
                continue
            gaps = scores_of(config, row) - whole
            assert float(found[key]["difference"]) == pytest.approx(100 * gaps.mean(), abs=0.005)
            assert float(found[key]["difference_low"]) <= 100 * gaps.mean() <= float(found[key]["difference_high"])
            least = 2 * stats.norm.sf(np.sqrt(80 * abs(gaps.mean())))  # if all 80 queries differed alike
            p_values[key] = max(stats.ttest_1samp(gaps, 0).pvalue, least)
        for key, p_value in zip(p_values, holm(list(p_values.values())), strict=True):
            assert float(found[key]["p_holm"]) == pytest.approx(p_value, rel=0.05)  # two digits are written
            assert found[key]["mark"] == ("differs" if p_value <= 0.05 else "")
        assert found["metatuner_j", "without_f"]["mark"] == "differs"


def test_table_3_has_the_papers_ablation_beside_and_its_differences(tmp_path: Path) -> None:
    config = config_of(tmp_path, "ablation")
    fake_run(config)
    csv_file, markdown, latex, _ = tables_of(config)["table_3"](config)
    published = read_published()
    found = {(line["variant"], line["benchmark"]): line for line in read_table(csv_file) if line["method"] not in ADDED}
    for variant in ("without_f", "without_p", "without_s"):
        paper = published["metatuner", variant, "math"].score
        assert float(found[variant, "math"]["published"]) == paper
        assert float(found[variant, "math"]["published_difference"]) == pytest.approx(paper - 48.67)
        assert "not public whether -I or -J" in found[variant, "math"]["published_note"]
        assert found[f"{variant}_tuned", "math"]["published"] == ""  # which settings the paper's rows had is not known
    text = markdown.read_text(encoding="utf-8")
    assert "| 48.00 (−0.67) |" in text
    assert "48.00 ($-$0.67)" in latex.read_text(encoding="utf-8")
    assert "MetaTuner-J (w/o F, own settings)" in text
    gaps = [
        (published["metatuner", variant, name].score - published["metatuner_j", "default", name].score) / 100
        for variant in ("without_f", "without_p", "without_s")
        for name in ("math", "gsm8k")
    ]
    assert max(map(abs, gaps)) < 0.03  # well within what sampling of 450 or 1319 rows makes
    assert f" {len(gaps)} of {len(gaps)} " in text
    assert "†" not in text


def test_of_published_differences_those_that_sampling_alone_can_make_are_counted(tmp_path: Path) -> None:
    grid = {"methods": ["sft", "metatuner_i", "metatuner_j"], "benchmarks": ["math", "gsm8k"], "seeds": [0]}
    config = fake_config(tmp_path, experiments={"parts": {**grid, "generator": "large"}})
    fake_run(config, n=5)
    published = read_published()
    within = []
    for method in ("sft", "metatuner_i"):
        for name, size in (("math", 450), ("gsm8k", 1319)):
            one, other = (
                stats.binomtest(round(published[each, "default", name].score / 100 * size), size).proportion_ci(
                    method="wilson"
                )
                for each in (method, "metatuner_j")
            )
            gap = (published[method, "default", name].score - published["metatuner_j", "default", name].score) / 100
            p, q = (published[each, "default", name].score / 100 for each in (method, "metatuner_j"))
            low, high = np.hypot(p - one.low, other.high - q), np.hypot(one.high - p, q - other.low)
            within.append(gap - low <= 0 <= gap + high)
    assert 0 < sum(within) < len(within) == 4
    text = tables_of(config)["table_parts"](config)[1].read_text(encoding="utf-8")
    assert f" {sum(within)} of 4 " in text


# ---- every experiment has its table --------------------------------------------------------------------------------


def test_a_preset_has_the_tables_and_figures_of_its_experiments_and_no_others(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sharing", "rollouts")
    assert list(tables_of(config)) == ["table_sharing", "table_rollouts"]
    assert list(figures_of(config)) == ["figure_3", "figure_6"]
    main = fake_config(tmp_path)
    numbered = [f"table_{number}" for number in (1, 5, "kinds", *range(6, 12))]
    assert list(tables_of(main)) == numbered
    assert list(figures_of(main)) == ["figure_main", "figure_1", "figure_kinds", "figure_cost"]
    full = load_config("nano_full")
    assert {"table_alpha", "table_rank", "table_2", "table_4", "table_parts"} <= tables_of(full).keys()
    assert {"figure_alpha", "figure_sync", "figure_rank", "figure_scale", "figure_trainable"} <= figures_of(full).keys()


def test_the_legends_of_figure_1_stay_within_it_with_all_methods_and_prompts(tmp_path: Path) -> None:
    full = load_config("nano")
    methods = full.experiments["main"].methods
    sft = full.experiments["sft_prompts"].model_dump(mode="json")
    grid = {"methods": methods, "benchmarks": list(full.benchmarks), "seeds": [0], "generator": "large"}
    config = fake_config(
        tmp_path,
        methods=methods,
        experiments={
            "main": grid,
            "sft_prompts": {**sft, "variants": {"sft": {name: {} for name in sft["variants"]["sft"]}}},
        },
    )
    fake_run(config, n=20, chances=dict.fromkeys(methods, 0.5))
    figure = draw_families(compare(config, "main"), compare(config, "sft_prompts"), "a world")
    FigureCanvasAgg(figure).draw()
    assert " 8 prompt optimisers " in " ".join(" ".join(t.get_text() for t in figure.texts).split())
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        for text in legend.get_texts():
            box = text.get_window_extent(FigureCanvasAgg(figure).get_renderer())
            box = box.transformed(figure.transFigure.inverted())
            assert 0 < box.x0 < box.x1 < 1, text.get_text()
            assert box.y1 < 1


def test_a_table_of_several_generators_keeps_them_apart(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sharing")
    rows = fake_run(config, n=30)
    made = tables_of(config)["table_sharing"](config)
    lines = read_table(made[0])
    assert {(line["generator"], line["variant"]) for line in lines} == {
        (generator, variant) for generator in GENERATORS for variant in NANO["sharing"]["variants"]["metatuner_j"]
    }
    for line in lines:
        (row,) = [row for row in rows if all(row[key] == line[key] for key in ("generator", "variant", "benchmark"))]
        assert float(line["mean"]) == pytest.approx(100 * scores_of(config, row).mean(), abs=0.005)
    text = made[1].read_text(encoding="utf-8")
    assert "# Experiment sharing, generator large" in text
    assert "# Experiment sharing, generator small" in text


# ---- figures -------------------------------------------------------------------------------------------------------


def drawn_points(axes: Any) -> dict[str, dict[float, float]]:
    """What the axes' labelled lines go through, by label."""
    return {
        str(line.get_label()): dict(zip(map(round, line.get_xdata()), line.get_ydata(), strict=True))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def whiskers(axes: Any, side: int) -> list[tuple[float, float]]:
    """Ends of the drawn intervals, along x (0) or y (1), in the order of drawing."""
    drawn = [one for one in axes.containers if isinstance(one, ErrorbarContainer)]
    segments = [each for one in drawn for each in one.lines[2][0].get_segments()]
    return [tuple(sorted(float(point[side]) for point in segment)) for segment in segments]


def intervals(entries: Iterable[Entry]) -> list[tuple[float, float]]:
    """The intervals of entries, in percent."""
    return [(100 * entry.mean.low, 100 * entry.mean.high) for entry in entries if entry.mean]


def test_whiskers_end_where_intervals_do(tmp_path: Path) -> None:
    config = config_of(tmp_path, "rollouts", seeds=[0, 1], variants={"metatuner_j": ROLLOUTS})
    chances = {f"metatuner_j.n{number}": 0.9 for number in (1, 2, 4)}  # far from a half: intervals are lopsided
    fake_run(config, n=20, chances=chances)
    comparison = compare(config, "rollouts")
    for axes, name in zip(draw_grid(config, "rollouts", [comparison]).axes, comparison.benchmarks, strict=True):
        found, expected = whiskers(axes, 1), intervals(comparison.of(name))
        assert np.array(found) == pytest.approx(np.array(expected))
        assert any(
            abs(low + high - 200 * entry.mean.estimate) > 1
            for (low, high), entry in zip(expected, comparison.of(name), strict=True)
        )
    bars = draw_bars(comparison, "")
    for axes, name in zip(bars.axes, comparison.benchmarks, strict=True):
        assert np.array(whiskers(axes, 0)) == pytest.approx(np.array(intervals(comparison.of(name))))


ROLLOUTS = {f"n{number}": {"metatuner_warmup": {"rollouts": number}} for number in (1, 2, 4)}


def test_bars_are_marked_as_the_table_is(tmp_path: Path) -> None:
    methods = ["sft", "dpo", "opro", "metatuner_j"]
    grid = {"methods": methods, "benchmarks": ["math"], "seeds": [0, 1, 2, 3], "generator": "large"}
    config = fake_config(tmp_path, experiments={"main": grid})
    lost = next(row["cell"] for row in plan_rows(config) if (row["method"], row["seed"]) == ("dpo", 1))
    chances = {"sft": 0.2, "dpo": 0.55, "opro": 0.65, "metatuner_j": 0.7}
    fake_run(config, n=60, chances=chances, outcomes={lost: ("failed", "budget")})
    entries = {entry.method: entry for entry in compare(config, "main").of("math")}
    assert {entry.mark for entry in entries.values()} == {"best", "tied", ""}
    labels = [(text.get_text(), text.get_weight()) for text in draw_bars(compare(config, "main"), "").axes[0].texts]
    for entry in entries.values():
        mark = ("†" if entry.mark == "tied" else "") + ("*" if entry.method == "dpo" else "")
        assert (f"{100 * entry.mean.estimate:.1f}{mark}", "bold" if entry.mark == "best" else "normal") in labels


def test_figure_1_draws_both_families_beside_the_best_prompt_optimiser(tmp_path: Path) -> None:
    methods = ["zero_shot", "bpo", "opro", "sft", "ppo", "metatuner_j"]
    grid = {"methods": methods, "benchmarks": ["math", "gsm8k"], "seeds": [0, 1], "generator": "large"}
    prompts = {**grid, "methods": ["sft"], "variants": {"sft": {"default": {}, "prompt_a": {}}}}
    config = fake_config(tmp_path, experiments={"main": grid, "sft_prompts": prompts})
    chances = {"bpo": 0.3, "opro": 0.6, "sft": 0.8, "metatuner_j": 0.95, "zero_shot": 0.9, "sft.prompt_a": 0.5}
    fake_run(config, n=25, chances=chances)
    main, right = compare(config, "main"), compare(config, "sft_prompts")
    figure = draw_families(main, right, "")
    left, beside = figure.axes
    drawn = {each.get_label(): each for each in left.containers}
    assert list(drawn) == ["BPO", "OPRO", "SFT", "PPO"]
    shown = [main.entries[(method, "default"), name] for method in methods[1:5] for name in main.benchmarks]
    assert np.array(whiskers(left, 1)) == pytest.approx(np.array(intervals(shown)))
    points = [float(y) for one in left.containers for y in one.lines[0].get_ydata()]
    assert points == pytest.approx([100 * entry.mean.estimate for entry in shown])
    best = [main.entries[("opro", "default"), name] for name in main.benchmarks]
    dashed = [float(line.get_ydata()[0]) for line in beside.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([100 * entry.mean.estimate for entry in best])
    assert [entry.method for entry in map(partial(best_prompt_optimiser, main), main.benchmarks)] == ["opro", "opro"]
    bands = [
        (band.get_paths()[0].get_extents().y0, band.get_paths()[0].get_extents().y1) for band in beside.collections[-2:]
    ]
    assert np.array(bands) == pytest.approx(np.array(intervals(best)))
    assert np.array(whiskers(beside, 1)) == pytest.approx(
        np.array(intervals(right.entries[method, name] for method in right.methods for name in right.benchmarks))
    )


def test_figure_3_draws_each_mean_and_the_control_through_what_it_shares(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sharing")
    rows = fake_run(config, n=30)
    comparisons = [compare(config, "sharing", generator=name) for name in GENERATORS]
    figure = draw_grid(config, "sharing", comparisons)
    assert len(figure.axes) == 4
    for axes, (generator, benchmark) in zip(
        figure.axes, [(g, b) for g in GENERATORS for b in ("math", "gsm8k")], strict=True
    ):
        own = {
            row["variant"]: 100 * scores_of(config, row).mean()
            for row in rows
            if (row["generator"], row["benchmark"]) == (generator, benchmark)
        }
        follows = ["none", "quarter", "half", "three_quarters", "all"]
        fixed = ["none_fixed", "quarter_fixed", "half_fixed", "three_quarters_fixed", "all"]
        assert drawn_points(axes) == {
            "h read where sharing ends": pytest.approx({place: own[name] for place, name in enumerate(follows)}),
            "control: h read at K": pytest.approx({place: own[name] for place, name in enumerate(fixed)}),
        }
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "K/4", "K/2", "3K/4", "K"]
        assert axes.get_ylabel() == "Accuracy (%)"
        assert f"{generator}: n = 30, 1 seed" in {text.get_text() for text in axes.texts}
    note = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "(1 seed: " in note
    assert "Shared decoder layers k" in note
    assert STATED["sharing"] in note
    assert "large (nano:generator), small (nano:generator_small)" in note


def test_ways_are_not_joined_and_numbers_are_in_order(tmp_path: Path) -> None:
    config = config_of(tmp_path, "d2", "rollouts", seeds=[0, 1, 2, 3, 4])
    turned = dict(reversed(config.experiments["rollouts"].variants["metatuner_j"].items()))
    config.experiments["rollouts"].variants["metatuner_j"] = turned
    fake_run(config, n=20)
    ways = draw_grid(config, "d2", [compare(config, "d2")]).axes[0]
    counts = draw_grid(config, "rollouts", [compare(config, "rollouts")])
    assert all(line.get_linewidth() == 0 for line in ways.lines if not str(line.get_label()).startswith("_"))
    assert [label.get_text() for label in ways.get_xticklabels()][:1] == ["best\nrollout"]
    assert [label.get_text() for label in counts.axes[0].get_xticklabels()] == ["1", "2", "4", "8", "16"]
    note = " ".join(text.get_text().replace("\n", " ") for text in counts.texts)
    assert " and seeds" in note
    assert STATED["rollouts"] in note


def test_a_hole_in_a_grid_is_said(tmp_path: Path) -> None:
    config = config_of(tmp_path, "rollouts")
    cells = {row["variant"]: row["cell"] for row in fake_run(config_of(tmp_path / "other", "rollouts"), n=5)}
    fake_run(config, n=5, outcomes={cells["n16"]: ("failed", "budget")})
    figure = draw_grid(config, "rollouts", [compare(config, "rollouts")])
    drawn = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert ["no result" in texts for texts in drawn].count(True) >= 1
    assert any("no result: see scores.csv" in text.get_text().replace("\n", " ") for text in figure.texts)


def with_logs(config: Config, rows: list[dict[str, Any]], steps: int = 40) -> None:
    """Logs of training: a task loss that falls from 2 to 1, with the seed's number added, or, for Gumbel-Softmax, stays
    at 3 as the only loss; with the other generator it is far larger."""
    root = Path(config.results)
    for row in rows:
        (root / "cells" / row["cell"] / "cell.json").write_text(json.dumps({"fit": row["fit"]}))
        folder = root / "fits" / row["fit"]
        folder.mkdir(parents=True, exist_ok=True)
        events: list[dict[str, Any]] = [{"event": "dev", "epoch": 1, "reward": 0.5}]
        events.append({"event": "warm-up", "loss": 77.0})
        for step in range(steps):
            task = (
                {"loss": 3.0}
                if row["variant"] == "gumbel"
                else {"loss": 9.0, "task": 2 - step / (steps - 1) + row["seed"], "prompt": 7.0}
            )
            if row["generator"] == "small":
                task = {"loss": 99.0}
            events.append({"event": "joint", "step": step, **task})
        (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_figure_4_shows_scores_and_the_task_loss_of_the_same_fits(tmp_path: Path) -> None:
    config = config_of(tmp_path, "regularisation", seeds=[0, 1], generator=["large", "small"])
    with_logs(config, fake_run(config, n=20))
    curves = read_curves(config, "regularisation")
    assert {(curve.variant, curve.benchmark, curve.seed) for curve in curves} == {
        (variant, benchmark, seed)
        for variant in ("default", "gumbel")
        for benchmark in ("math", "gsm8k")
        for seed in (0, 1)
    }
    figure = draw_objectives(config, "regularisation", [compare(config, "regularisation", generator="large")], curves)
    assert len(figure.axes) == 4
    for axes in figure.axes[2:]:
        joint, gumbel = axes.lines
        # A twentieth of 40 steps is two: the first mean is of the first two steps, the last of the last two.
        # Of two seeds' losses, one apart, it draws the mean, in a band from the lower to the higher.
        ends = (2.5 - 0.5 / 39, 1.5 + 0.5 / 39)
        assert (joint.get_ydata()[0], joint.get_ydata()[-1]) == pytest.approx(ends)
        box = axes.collections[0].get_paths()[0].get_extents()
        assert (box.y0, box.y1) == pytest.approx((ends[1] - 0.5, ends[0] + 0.5))
        assert set(gumbel.get_ydata()) == {3.0}
        assert axes.get_xlabel() == "Training steps (%)"
    assert figure.axes[2].get_ylabel() == "Task loss (nats per token)"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "Supervised\nregularisation",
        "Gumbel-\nSoftmax",
    ]


def test_figure_4_is_drawn_without_logs_and_refuses_broken_ones(tmp_path: Path) -> None:
    config = config_of(tmp_path, "regularisation")
    rows = fake_run(config, n=10)
    assert all(path.stat().st_size > 0 for path in figures_of(config)["figure_4"](config))
    assert read_curves(config, "regularisation") == []
    with_logs(config, rows)
    log = tmp_path / "fits" / rows[0]["fit"] / "log.jsonl"
    log.write_text('{"step": 0, "task": 1.0}\n{broken\n')
    with pytest.raises(UserError, match=r"log.jsonl, line 2: not valid JSON"):
        figures_of(config)["figure_4"](config)


def test_tables_and_figures_are_the_same_bytes_from_another_process(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sharing", "regularisation", "main", methods=["metatuner_j"])
    main = {**config.model_dump(mode="json")["experiments"]["main"], "methods": ["sft", "my_own", "metatuner_j"]}
    config = config.model_copy(update={"experiments": {**config.experiments, "main": ExperimentConfig(**main)}})
    lost = [row["cell"] for row in plan_rows(config) if (row["method"], row["benchmark"]) == ("sft", "math")]
    rows = fake_run(config, n=10, outcomes=dict.fromkeys(lost, ("failed", "loss is 100% of_it & more | nan")))
    with_logs(config, [row for row in rows if row["experiment"] == "regularisation"])
    design = Design(asdict(MetaTunerConfig()), "nano:generator", "nano:actor", 8)
    names = ["figure_4", "figure_main"]
    paths = [path for name in names for path in figures_of(config)[name](config)] + figure_2(config, design)
    paths += [path for name in ("table_1", "table_sharing") for path in tables_of(config)[name](config)]
    before = [path.read_bytes() for path in paths]
    assert not any(b"CreationDate" in content for content in before)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    code = (
        "import json, sys; from pathlib import Path\n"
        "from metatuner.analysis.statistics import contrasts, intervals\n"
        f"intervals.RESAMPLES = contrasts.RESAMPLES = {drawn.RESAMPLES}\n"
        f"intervals.TEST_RESAMPLES = contrasts.TEST_RESAMPLES = {drawn.TEST_RESAMPLES}\n"
        "from metatuner.config import read_config; from metatuner.analysis.figures import figures_of\n"
        "from metatuner.analysis.tables import tables_of\n"
        "config = read_config(Path(sys.argv[1]))\n"
        "for name in ('figure_4', 'figure_main'): figures_of(config)[name](config)\n"
        "for name in ('table_1', 'table_sharing'): tables_of(config)[name](config)\n"
        "from metatuner.analysis.figures.framework import Design, figure_2\n"
        "figure_2(config, Design(*json.loads(sys.argv[2])))\n"
        "assert not {'torch', 'pandas', 'transformers'} & sys.modules.keys()"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "PATH": ""}
    for path in paths:
        path.unlink()
    words = [str(tmp_path / "config.json"), json.dumps([*asdict(design).values()])]
    subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment)
    assert [path.read_bytes() for path in paths] == before


# ---- the framework -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "layers", "there", "absent"),
    [
        ({}, 8, ["layers 1 to 4\n(k = 4 of K = 8)", "layers 5 to 8, LM head", "rank 8, scale 2"], ["private layers"]),
        ({}, None, ["first k = K/2 of K layers", "the layers above, LM head"], ["K = 8"]),
        ({"shared_layers": 0}, 8, ["private layers 1 to 4", "layers 1 to 8, LM head"], ["meta encoder"]),
        ({"shared_layers": 0.25, "encoder_layers": 0.5}, 8, ["k = 2 of K = 8", "private layers 3 to 4"], []),
        ({"shared_layers": 1.0}, 8, ["layers 1 to 8", "last norm, LM head"], ["layers 9"]),
        ({"prompt_branch": False}, 8, ["no prompt branch", "the task term alone"], ["prompt decoder", "CE on D2"]),
        ({"parameter_branch": "none"}, 8, ["prompt decoder"], ["parameter decoder", "rank"]),
        ({"parameter_branch": "static"}, 8, ["one static LoRA"], ["bottleneck"]),
        ({"pooling": "mean", "decoder": "layer_shared"}, 8, ["mean state", "shared by layers"], ["last token"]),
        ({"objective": "gumbel"}, 8, ["Gumbel-Softmax"], ["CE on D2"]),
        ({"objective": "alternating"}, 8, ["MetaTuner-I"], ["MetaTuner-J"]),
        ({"target_modules": "all-linear", "rank": 4}, 8, ["all-linear", "rank 4"], ["q_proj"]),
    ],
)
def test_the_framework_is_drawn_from_the_settings(
    settings: dict[str, Any], layers: int | None, there: list[str], absent: list[str]
) -> None:
    design = Design(asdict(MetaTunerConfig(**settings)), "G-7B", "M-3B", layers)
    figure = draw_framework(design, "nano")
    texts = "\n".join(text.get_text() for text in [*figure.axes[0].texts, *figure.texts]).replace("from\n", "from ")
    for words in ("G-7B", "M-3B", "nothing here is measured", *there):
        assert words in texts or words in texts.replace("\n", " ")
    assert not [words for words in absent if words in texts]
