"""Tables and the figure show what the cells hold: measured beside published, holes as holes, always the same bytes."""

import csv
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from metatuner.analysis.figures import figures_of
from metatuner.analysis.names import Names, benchmark_title, describe_world, name_world
from metatuner.analysis.results.comparison import compare
from metatuner.analysis.results.published import FOLDER, published_beside, read_published
from metatuner.analysis.results.scores import read_query_scores
from metatuner.analysis.tables import tables_of
from metatuner.config import Config, ExperimentConfig
from metatuner.errors import UserError
from tests.toys.results import (
    CHANCES,
    METRICS,
    fake_config,
    fake_run,
    fake_scores,
    few_draws,
    plan_rows,
    write_cell,
    write_settings,
)

quick = pytest.fixture(autouse=True)(few_draws)


def read_table(config: Config) -> dict[tuple[str, str], dict[str, str]]:
    text = (Path(config.results) / "tables" / "table_1.csv").read_text(encoding="utf-8")
    return {(row["method"], row["benchmark"]): row for row in csv.DictReader(io.StringIO(text))}


@pytest.fixture
def with_holes(tmp_path: Path) -> Config:
    """SFT failed on MATH, few-shot was skipped on CosmosQA, OPRO lost one seed on GSM8K; a method of a user's own."""
    config = fake_config(tmp_path, methods=[*CHANCES, "my_own"])
    outcomes = {}
    for row in plan_rows(config):
        match row["method"], row["benchmark"], row["seed"]:
            case "sft", "math", _:
                outcomes[row["cell"]] = ("failed", "ValueError: loss is 100% of_it & more | nan")
            case "few_shot", "cosmosqa", _:
                outcomes[row["cell"]] = ("skipped", "needs rationales")
            case "opro", "gsm8k", 1:
                outcomes[row["cell"]] = ("failed", "budget")
    fake_run(config, outcomes=outcomes)
    return config


def test_each_mean_is_that_of_its_cells_and_lies_in_its_interval(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    rows = fake_run(config)
    tables_of(config)["table_1"](config)
    table = read_table(config)
    assert len(table) == 20
    for (method, benchmark), line in table.items():
        cells = [row["cell"] for row in rows if (row["method"], row["benchmark"]) == (method, benchmark)]
        mean = np.mean([[row.score for row in read_query_scores(tmp_path, cell).values()] for cell in cells])
        assert float(line["mean"]) == pytest.approx(100 * mean, abs=0.005)
        assert float(line["low"]) < 100 * mean < float(line["high"])
        assert (line["n"], line["seeds"]) == ("40", "0 1 2")


def test_methods_stand_by_family_and_benchmarks_as_in_the_paper(with_holes: Config) -> None:
    comparison = compare(with_holes, "main")
    assert [method for method, _ in comparison.methods] == [
        "zero_shot",
        "few_shot",
        "opro",
        "sft",
        "metatuner_j",
        "my_own",
    ]
    assert comparison.benchmarks == ("math", "gsm8k", "hotpotqa", "cosmosqa")


def test_marks_follow_paired_tests_against_the_best_with_holms_correction(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    # Seeds that answer alike: what remains is the test of one sample of differences.
    rows = fake_run(config, scores=lambda row: fake_scores(row["method"], row["benchmark"], 0, 120, CHANCES))
    for benchmark in ("math", "cosmosqa"):
        scores = {}
        for row in rows:
            if row["benchmark"] == benchmark:
                by_query = read_query_scores(tmp_path, row["cell"])
                scores[row["method"]] = np.array([by_query[name].score for name in sorted(by_query)])
        best = max(scores, key=lambda method: scores[method].mean())
        p_values = {}
        for method in scores.keys() - {best}:
            p_values[method] = stats.ttest_1samp(scores[method] - scores[best], 0).pvalue
        entries = {entry.method: entry for entry in compare(config, "main").of(benchmark)}
        worst_so_far = 0.0
        for rank, method in enumerate(sorted(p_values, key=lambda each: p_values[each])):
            worst_so_far = max(worst_so_far, min(1.0, (10 - rank) * p_values[method]))
            assert entries[method].p_holm == pytest.approx(worst_so_far)
            assert entries[method].mark == ("tied" if worst_so_far > 0.05 else "")
        assert entries[best].mark == "best"


def test_no_two_comparisons_share_their_draws(tmp_path: Path) -> None:
    experiments = {
        name: {
            "methods": ["sft", "opro", "metatuner_j"],
            "benchmarks": ["math", "gsm8k"],
            "seeds": [0, 1],
            "generator": "large",
            "variants": {"sft": {"default": {}, "prompt_a": {}}},
        }
        for name in ("main", "other")
    }
    config = fake_config(tmp_path, experiments=experiments)
    values, better = np.random.default_rng(0).random((2, 2, 500))
    fake_run(
        config,
        scores=lambda row: list(
            0.3 + 0.3 * values[row["seed"]] + 0.6 * (better[row["seed"]] - 0.48) * (row["method"] == "opro")
        ),
    )
    found = [compare(config, name) for name in experiments]
    alike = [each for comparison in found for each in comparison.entries.values() if each.method != "opro"]
    assert len({each.mean.estimate for each in alike}) == 1
    assert len({(each.mean.low, each.mean.high) for each in alike}) == len(alike) == 12
    behind = [each.behind for each in alike[: len(alike) // 2]]  # an experiment's name is no part of a difference
    assert len({each.estimate for each in behind}) == 1
    assert len({(each.low, each.high) for each in behind}) == len({each.p for each in behind}) == len(behind)
    references = [("sft", "default"), ("sft", "prompt_a"), ("metatuner_j", "default")]
    by_other = [compare(config, "main", reference=each).entries for each in references]
    ahead = [entries[("opro", "default"), "math"].behind for entries in by_other]
    assert len({each.estimate for each in ahead}) == 1
    assert len({(each.low, each.high) for each in ahead}) == len(ahead)


def test_what_is_compared_is_drawn_the_same_whatever_else_is_compared(tmp_path: Path) -> None:
    few, many = ["sft", "metatuner_j"], ["zero_shot", "metatuner_j", "ppo", "sft"]
    chances = {**CHANCES, "zero_shot": 0.1, "ppo": 0.1}
    configs = [fake_config(tmp_path / name, methods=each) for name, each in (("few", few), ("many", many))]
    for config in configs:
        fake_run(config, n=30, chances=chances)
    own, other = (compare(config, "main").entries for config in configs)
    for key, entry in own.items():
        assert (entry.mean, entry.behind, entry.seed_sd) == (other[key].mean, other[key].behind, other[key].seed_sd)


def test_the_order_of_rows_in_a_cells_file_changes_no_bit(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft", "opro", "metatuner_j"], seeds=range(5))  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    rows = fake_run(config, scores=lambda row: rng.random(40), rows_a_group={"math": 3, "hotpotqa": 1})
    before = compare(config, "main")
    for place, row in enumerate(rows):
        path = tmp_path / "cells" / row["cell"] / "predictions.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[(7 * index + place) % 40] for index in range(40)))
    assert compare(config, "main") == before


def test_a_generators_table_has_the_settings_that_its_own_searches_found(tmp_path: Path) -> None:
    config = fake_config(
        tmp_path,
        methods=["sft", "opro"],
        models={
            "actor": {"path": "nano:actor"},
            "generators": {"large": {"path": "nano:large"}, "small": {"path": "nano:small"}},
        },
        experiments={
            "main": {"methods": ["sft", "opro"], "benchmarks": ["math"], "seeds": [0], "generator": ["large", "small"]}
        },
    )
    fake_run(config, n=10)
    write_settings(config, {("sft", "math"): "winner"})
    path = tmp_path / "settings.csv"
    path.write_text(path.read_text().replace("opro,default,math,small,none", "opro,default,math,small,winner"))
    for generator, word in (("large", "none"), ("small", "winner")):
        entries = compare(config, "main", generator=generator).entries
        assert entries[("opro", "default"), "math"].tuned == word
        assert entries[("sft", "default"), "math"].tuned == "winner"


def test_methods_that_answer_alike_are_all_best_and_what_could_be_found_cannot_be_told(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config, n=5, chances=dict.fromkeys(CHANCES, 9.0))
    entries = compare(config, "main").of("gsm8k")
    assert [entry.mark for entry in entries] == ["best"] * 5
    assert sum(entry.behind is None for entry in entries) == 1
    text = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    assert text.count("**100.0** [56.6, 100.0]") == 20
    assert "nano GSM8K unknown" in text
    assert read_table(config)["sft", "gsm8k"]["p_holm"] in ("", "1")


def test_a_difference_beyond_doubt_has_no_p_value_of_zero(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config, n=400, chances={**CHANCES, "zero_shot": -1.0, "metatuner_j": 9.0})
    tables_of(config)["table_1"](config)
    p_value = read_table(config)["zero_shot", "gsm8k"]["p_holm"]
    assert p_value == f"{10 * 2 * stats.norm.sf(20):.2g}"  # nothing else seen on 400 queries
    assert float(p_value) > 0


def test_the_smallest_detectable_difference_is_the_median_over_methods(tmp_path: Path) -> None:
    config = fake_config(tmp_path, seeds=[0])
    rows = fake_run(config, n=100)
    cells = {row["method"]: row["cell"] for row in rows if row["benchmark"] == "gsm8k"}
    scores = {
        name: np.array([each.score for each in read_query_scores(tmp_path, cells[name]).values()]) for name in cells
    }
    top = max(scores.values(), key=np.mean)
    errors = [(own - top).std(ddof=1) / 10 for own in scores.values() if own is not top]
    expected = 100 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.median(errors)
    text = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    strict = expected * (stats.norm.ppf(1 - 0.025 / 10) + stats.norm.ppf(0.8))  # five methods make ten pairs
    strict /= stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert f"nano GSM8K {expected:.1f} ({strict:.1f})" in text


def test_rows_that_share_a_context_are_drawn_together_and_the_legend_says_so(tmp_path: Path) -> None:
    alone, grouped = (
        fake_config(tmp_path / name, methods=["sft", "opro", "metatuner_j"], seeds=[0, 1]) for name in ("a", "b")
    )
    for config, rows_a_group in ((alone, {}), (grouped, {"cosmosqa": 6})):
        rng = np.random.default_rng(0)  # the six rows of a context are answered alike
        fake_run(
            config, scores=lambda row, rng=rng: np.repeat(rng.random(60) < 0.5, 6) * 1.0, rows_a_group=rows_a_group
        )
        tables_of(config)["table_1"](config)
    before, after = read_table(alone), read_table(grouped)
    methods = {name for name, benchmark in before if benchmark == "cosmosqa"}
    assert {key for key in before if before[key] != after[key]} == {(name, "cosmosqa") for name in methods}
    for name in methods:
        one, other = before[name, "cosmosqa"], after[name, "cosmosqa"]
        assert (other["n"], other["groups"], other["mean"]) == ("360", "60", one["mean"])
        assert (other["difference"], other["mark"] == "best") == (one["difference"], one["mark"] == "best")
        for low, high in (("low", "high"), ("difference_low", "difference_high")):
            if one[low]:  # that of the best has no difference
                wider = (float(other[high]) - float(other[low])) / (float(one[high]) - float(one[low]))
                assert wider == pytest.approx(6**0.5, rel=0.15)
    text = (tmp_path / "b" / "tables" / "table_1.md").read_text(encoding="utf-8")
    assert re.findall(r"nano (\w+) has (\d+) in (\d+) groups", text) == [("CosmosQA", "360", "60")]
    assert "groups" not in (tmp_path / "a" / "tables" / "table_1.md").read_text(encoding="utf-8")


def test_the_spread_of_seeds_is_that_of_their_means_and_empty_for_one(tmp_path: Path) -> None:
    three, one = fake_config(tmp_path / "a"), fake_config(tmp_path / "b", seeds=[0])
    rows = fake_run(three)
    fake_run(one)
    for config in (three, one):
        tables_of(config)["table_1"](config)
    cells = [row["cell"] for row in rows if (row["method"], row["benchmark"]) == ("sft", "math")]
    means = [np.mean([each.score for each in read_query_scores(tmp_path / "a", cell).values()]) for cell in cells]
    assert read_table(three)["sft", "math"]["seed_sd"] == f"{100 * np.std(means, ddof=1):.2f}"
    assert read_table(one)["sft", "math"]["seed_sd"] == ""
    spreads = {key: float(row["seed_sd"]) for key, row in read_table(three).items()}
    (method, benchmark), largest = max(spreads.items(), key=lambda each: each[1])
    name = f"{Names().title(method)} on {benchmark_title(benchmark, 'nano')}"
    legend = tables_of(three)["table_1"](three)[1].read_text(encoding="utf-8")
    assert f"median {np.median(list(spreads.values())):.1f}, largest {largest:.1f} ({name})" in legend
    assert "largest" not in tables_of(one)["table_1"](one)[1].read_text(encoding="utf-8")


def test_the_legend_says_how_each_method_was_tuned_and_warns_first_where_that_is_unequal(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config)
    tuned = {("sft", name): "winner" for name in METRICS} | {("opro", name): "winner" for name in METRICS}
    tuned |= {("few_shot", name): "winner" for name in METRICS} | {("metatuner_j", name): "untuned" for name in METRICS}
    tuned |= {("metatuner_j", "cosmosqa"): "winner", ("sft", "gsm8k"): "expired"}
    write_settings(config, tuned)
    text = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert notes[0].startswith("- Unequal tuning: ")
    unequal = notes[0].removeprefix("- Unequal tuning: ").removesuffix(".").split("; ")
    assert unequal == [
        "on nano MATH, nano HotpotQA: Few-shot, OPRO, SFT tuned, MetaTuner-J not",
        "on nano GSM8K: Few-shot, OPRO tuned, SFT, MetaTuner-J not",
    ]
    (settings,) = [note.removeprefix("- Settings: ").removesuffix(".") for note in notes if "- Settings: " in note]
    told = [part.rpartition(": ")[::2] for part in settings.split("; ")]
    for (heading, names), (word, expected) in zip(
        told,
        (
            (
                "random search",
                "Few-shot, OPRO, SFT (nano MATH, nano HotpotQA, nano CosmosQA), MetaTuner-J (nano CosmosQA)",
            ),
            ("preset's own", "MetaTuner-J (nano MATH, nano GSM8K, nano HotpotQA)"),
            ("expired", "SFT (nano GSM8K)"),
            ("nothing", "Zero-shot"),
        ),
        strict=True,
    ):
        assert word in heading
        assert names == expected
    assert any("one search" in note for note in notes)
    assert read_table(config)["sft", "gsm8k"]["tuned"] == "expired"


@pytest.mark.parametrize("word", ["winner", "untuned", "none"])
def test_equal_tuning_is_no_reason_to_warn(tmp_path: Path, word: str) -> None:
    config = fake_config(tmp_path)
    fake_run(config)
    write_settings(config, {(method, name): word for method in ("sft", "opro") for name in METRICS})
    text = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    assert "Unequal" not in text
    assert "Settings: " in text


def test_a_folder_without_a_file_of_settings_says_nothing_of_tuning(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config)
    text = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    assert "Settings" not in text
    assert {line["tuned"] for line in read_table(config).values()} == {""}


def test_holes_show_their_reason_and_no_number(with_holes: Config) -> None:
    paths = {path.suffix: path.read_text(encoding="utf-8") for path in tables_of(with_holes)["table_1"](with_holes)}
    line = read_table(with_holes)["sft", "math"]
    assert (line["mean"], line["n"], line["hole"]) == ("", "0", "failed: ValueError: loss is 100% of_it & more | nan")
    assert read_table(with_holes)["opro", "gsm8k"]["hole"] == "failed on seed 1: budget"
    assert r"| *failed: ValueError: loss is 100% of\_it & more \| nan* |" in paths[".md"]
    assert r"failed: ValueError: loss is 100\% of\_it \& more \textbar{} nan" in paths[".tex"]
    assert "skipped: needs rationales" in paths[".md"]
    assert "(2 seeds; failed on seed 1: budget)" in paths[".md"]
    assert " 0.0 [" not in paths[".md"]


def test_a_line_that_is_gone_from_the_scores_is_a_hole_with_its_reason(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["zero_shot", "sft", "metatuner_j"])
    fake_run(config)
    path = tmp_path / "scores.csv"
    lines = path.read_text().splitlines(keepends=True)
    gone = [
        line for line in lines if ",sft,default,math," in line or ",metatuner_j,default,gsm8k,gsm8k,large,1," in line
    ]
    assert len(gone) == 4  # a method's whole cell, and one seed of another's
    path.write_text("".join(line for line in lines if line not in gone))
    tables_of(config)["table_1"](config)
    found = read_table(config)
    whole, seed = found["sft", "math"], found["metatuner_j", "gsm8k"]
    assert (whole["mean"], whole["seeds"]) == ("", "")
    assert whole["hole"] == "missing: no line in scores.csv; run `metatuner scores` again"
    assert seed["seeds"] == "0 2"
    assert seed["hole"] == "missing on seed 1: no line in scores.csv; run `metatuner scores` again"
    assert found["zero_shot", "math"]["hole"] == ""


def test_where_everything_failed_there_is_a_table_and_a_figure_of_reasons(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    rows = plan_rows(config)
    fake_run(config, outcomes={row["cell"]: ("failed", f"x{row['seed']}") for row in rows})
    markdown = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    assert markdown.count("failed on seed 0: x0; failed on seed 1: x1; failed on seed 2: x2") == 20
    assert "Measured" not in markdown
    assert all(path.stat().st_size > 0 for path in figures_of(config)["figure_main"](config))


def test_markdown_and_latex_rows_have_as_many_cells_as_columns(with_holes: Config) -> None:
    _, markdown, latex, _ = (path.read_text(encoding="utf-8") for path in tables_of(with_holes)["table_1"](with_holes))
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {8}
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")


def test_measured_and_published_stand_in_columns_of_their_own(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config)
    markdown = tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    table = read_table(config)
    assert table["metatuner_j", "gsm8k"]["published"] == "78.92"
    assert table["few_shot", "gsm8k"]["published"] == ""
    assert "off the grid" in table["metatuner_j", "hotpotqa"]["published_note"]
    cells = next(line for line in markdown.splitlines() if line.startswith("| MetaTuner-J")).split(" | ")
    assert [cell.strip(" |") for cell in cells[2::2]] == ["48.67", "78.92", "54.56", "92.25"]
    assert "secondary sources" in markdown
    # The widest half of Wilson's intervals: of MATH that at 48.67 % of 450 rows.
    z, size, share = stats.norm.ppf(0.975), 450, 0.4867
    half = 100 * z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    assert f"MATH up to ±{half:.1f}" in markdown


def test_beside_training_on_the_other_benchmarks_nothing_published_stands(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    grid = config.experiments["main"].model_dump(mode="json") | {"train": "others"}
    others = config.model_copy(update={"experiments": {"generalisation": ExperimentConfig(**grid)}})
    assert published_beside(config, "main").scores
    assert not published_beside(others, "generalisation").scores


@pytest.mark.parametrize(
    ("actor", "generator", "heading"),
    [
        ("nano:actor", "nano:generator", "paper (7B + 3B)"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "paper (7B + 3B)"),
        ("Qwen/Qwen2.5-3B-Instruct", "nano:generator", "paper (7B + 3B)"),
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "paper"),
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-7B", "paper"),
    ],
)
def test_published_columns_name_the_papers_models_beside_others(
    tmp_path: Path, actor: str, generator: str, heading: str
) -> None:
    models = {"actor": {"path": actor}, "generators": {"large": {"path": generator}}}
    config = fake_config(tmp_path, models=models)
    fake_run(config, n=5)
    _, markdown, latex, _ = (path.read_text(encoding="utf-8") for path in tables_of(config)["table_1"](config))
    assert markdown.count(f"| {heading} |") == 4
    assert latex.count(f"measured & {heading}") == 4


def test_synthetic_rows_do_not_pass_for_the_real_benchmarks(tmp_path: Path) -> None:
    sources = {name: {"source": "hub" if name == "math" else "nano", "sizes": {}} for name in METRICS}
    config = fake_config(tmp_path, benchmarks=sources)
    fake_run(config, n=5)
    _, markdown, latex, _ = (path.read_text(encoding="utf-8") for path in tables_of(config)["table_1"](config))
    header = next(line for line in markdown.splitlines() if line.startswith("| Method"))
    assert header.startswith("| Method | MATH, accuracy in % (n = 5, 3 seeds) | paper (7B + 3B) | nano GSM8K, accuracy")
    assert "{nano CosmosQA, accuracy" in latex
    assert "{MATH, accuracy" in latex
    line = read_table(config)["sft", "gsm8k"]
    assert (line["preset"], line["world"]) == ("nano", "real rows, nano models")


def test_gold_paragraphs_are_said_wherever_the_benchmark_is_shown(tmp_path: Path) -> None:
    benchmarks = {name: {"source": "local", "path": "rows", "sizes": {"train": 8}} for name in METRICS}
    benchmarks["hotpotqa"]["contexts"] = "gold"
    config = fake_config(
        tmp_path, benchmarks=benchmarks, models={"actor": {"path": "a"}, "generators": {"large": {"path": "g"}}}
    )
    fake_run(config, n=5)
    said = "HotpotQA (gold paragraphs)"
    comparison = compare(config, "main")
    assert [title for title in comparison.titles.values() if "(" in title] == [said]
    assert describe_world(config, "main").endswith(f"from local files. Changed by this preset: {said}.")
    paths = tables_of(config)["table_1"](config)
    _, markdown, latex, values = (path.read_text(encoding="utf-8") for path in paths)
    assert f"| {said}, exact match in %" in markdown
    assert f"{{{said}, exact match in" in latex
    assert all(said in text.splitlines()[2] for text in (markdown,))
    assert said in values
    assert all(row["world"].endswith(f", {said}") for row in read_table(config).values())
    from metatuner.analysis.figures.bars import draw_bars

    figure = draw_bars(comparison, describe_world(config, "main"))
    assert [panel.get_title("left") for panel in figure.axes][2:] == ["HotpotQA\n(gold paragraphs)", "CosmosQA"]
    whole = fake_config(
        tmp_path / "whole", benchmarks={**benchmarks, "hotpotqa": {**benchmarks["hotpotqa"], "contexts": "all"}}
    )
    assert "Changed" not in describe_world(whole, "main")


def test_f1_stands_beside_exact_match_and_the_ranks_are_of_exact_match(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    rows = fake_run(config)
    _, markdown, *_ = (path.read_text(encoding="utf-8") for path in tables_of(config)["table_1"](config))
    found = read_table(config)
    for method in CHANCES:
        f1 = []
        for row in rows:
            if (row["method"], row["benchmark"]) == (method, "hotpotqa"):
                scores = [each.score for each in read_query_scores(tmp_path, row["cell"]).values()]
                f1.append(100 * np.mean(np.minimum(1, np.array(scores) + 0.25)))
        line = found[method, "hotpotqa"]
        assert line["beside"].split()[0] == "f1"
        assert float(line["beside"].split()[1]) == pytest.approx(np.mean(f1), abs=0.006)
        assert re.search(rf"{float(line['mean']):.1f}[^|]*\], F1 {np.mean(f1):.1f}", markdown)
    assert {line["beside"] for (_, name), line in found.items() if name != "hotpotqa"} == {""}
    assert markdown.count(", F1 ") == len(CHANCES)
    assert "- F1: mean over the same rows; intervals, marks and tests are the first metric's." in markdown


def test_a_column_of_zeros_is_a_floor_and_has_no_best(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    drawn = lambda row: fake_scores(row["method"], row["benchmark"], row["seed"], 40, CHANCES)  # noqa: E731
    fake_run(config, scores=lambda row: [0.0] * 40 if row["benchmark"] == "gsm8k" else drawn(row))
    comparison = compare(config, "main")
    assert comparison.at_floor == ("gsm8k",)
    assert {entry.mark for entry in comparison.of("gsm8k")} == {"floor"}
    assert [entry.mark for entry in comparison.of("math")].count("best") == 1
    _, markdown, *_ = (path.read_text(encoding="utf-8") for path in tables_of(config)["table_1"](config))
    header = next(line for line in markdown.splitlines() if line.startswith("| Method"))
    assert [cell.endswith(": floor ") for cell in header.split("|") if " in % " in cell] == [False, True, False, False]
    assert "**0.0**" not in markdown
    assert (
        "- Floor: all methods are at the floor on nano GSM8K (0 on every row), so no method is best there." in markdown
    )
    from metatuner.analysis.figures.bars import draw_bars

    figure = draw_bars(comparison, "w")
    told = [text.get_text() for panel in figure.axes for text in panel.texts if text.get_text().startswith("n = ")]
    assert [text.endswith("; floor") for text in told] == [False, True, False, False]
    weights = {text.get_fontweight() for text in figure.axes[1].texts}
    assert weights == {"normal"} != {text.get_fontweight() for text in figure.axes[0].texts}
    assert "Floor: all methods are at the floor" in " ".join(text.get_text() for text in figure.texts).replace(
        "\n", " "
    )


def test_where_some_method_scores_there_is_no_floor(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config, scores=lambda row: [float(row["method"] == "sft" and row["seed"] == 0), *[0.0] * 39])
    comparison = compare(config, "main")
    assert comparison.at_floor == ()
    assert [entry.method for entry in comparison.of("gsm8k") if entry.mark == "best"] == ["sft"]
    _, markdown, *_ = (path.read_text(encoding="utf-8") for path in tables_of(config)["table_1"](config))
    assert "loor" not in markdown


def test_the_papers_large_generator_is_not_shown_beside_another(tmp_path: Path) -> None:
    config = fake_config(
        tmp_path,
        models={"actor": {"path": "nano:actor"}, "generators": {"small": {"path": "nano:g"}}},
        experiments={"main": {"methods": ["sft"], "benchmarks": ["math"], "seeds": [0], "generator": "small"}},
    )
    fake_run(config)
    tables_of(config)["table_1"](config)
    assert read_table(config)["sft", "math"]["published"] == ""


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "Nano world: synthetic"),
        ({"nano": {"null": True}}, "zero-shot is at its ceiling"),
        ({"nano": {"trained": False}}, "the scores mean nothing"),
        (
            {"benchmarks": {name: {"source": "hub", "sizes": {}} for name in METRICS}},
            "near chance",
        ),
        (
            {"models": {"actor": {"path": "a/b"}, "generators": {"large": {"path": "c/d"}}}},
            "Actor a/b, generator c/d, on",
        ),
    ],
)
def test_the_table_says_which_world_it_measured(tmp_path: Path, keys: dict[str, object], expected: str) -> None:
    config = fake_config(tmp_path, **keys)
    fake_run(config, n=5)
    assert expected in describe_world(config, "main")
    assert describe_world(config, "main") in tables_of(config)["table_1"](config)[1].read_text(encoding="utf-8")
    assert {line["world"] for line in read_table(config).values()} == {name_world(config, "main")}


def test_worlds_have_short_names_that_tell_them_apart(tmp_path: Path) -> None:
    local = {name: {"source": "local", "path": "rows", "sizes": {}} for name in METRICS}
    models = {"actor": {"path": "a/b"}, "generators": {"large": {"path": "c/d"}}}
    found = [
        name_world(fake_config(tmp_path, **keys), "main")
        for keys in (
            {},
            {"nano": {"null": True}},
            {"nano": {"trained": False}},
            {"benchmarks": local},
            {"models": models, "benchmarks": local},
        )
    ]
    assert found == [
        "nano",
        "nano, null world",
        "nano, untrained models",
        "real rows, nano models",
        "a/b + c/d, rows from local files",
    ]


def test_differences_of_few_seeds_have_no_mark_as_table_and_figure_say(tmp_path: Path) -> None:
    from metatuner.analysis.figures.bars import draw_bars

    for seeds in (range(2), range(3)):
        config = fake_config(tmp_path / str(len(seeds)), methods=["sft", "opro"], seeds=seeds)  # type: ignore[arg-type]
        fake_run(config, n=60, chances={"sft": 0.1, "opro": 0.9})
        (note,) = (" ".join(text.get_text().split()) for text in draw_bars(compare(config, "main"), "").texts)
        _, markdown, latex, _ = (path.read_text(encoding="utf-8") for path in tables_of(config)["table_1"](config))
        few = len(seeds) == 2
        assert all(("fewer than 3 seeds are not tested" in text) == few for text in (note, markdown, latex))
        assert all(("†" in text) == (not few) for text in (note, markdown))  # in the legend alone
        assert ("for these seeds" in markdown) == few
        assert ("over seeds and queries" in markdown) == (not few)
        assert {line["mark"] for line in read_table(config).values()} == {"best", "untested" if few else ""}
        assert {line["p_holm"] == "" for line in read_table(config).values() if line["difference"]} == {few}


def test_scores_older_than_their_cells_are_refused(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft"], seeds=[0])
    cell = fake_run(config, n=4)[0]["cell"]
    shutil.rmtree(tmp_path / "cells" / cell)
    write_cell(tmp_path, cell, "math", [0.125] * 4)
    with pytest.raises(UserError, match=rf"cell {cell} has 12.5000 of 4; run `metatuner scores` again"):
        compare(config, "main")


def test_cells_tested_on_other_rows_are_refused(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft", "opro"], seeds=[0])
    cell = fake_run(config, n=4)[-1]["cell"]
    path = tmp_path / "cells" / cell / "predictions.jsonl"
    path.write_text(path.read_text().replace("cosmosqa-3", "cosmosqa-4"))
    with pytest.raises(UserError, match=r"cell \w{16} \(.* on cosmosqa, seed 0\) was tested on other rows"):
        compare(config, "main")


def test_an_experiment_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config, n=4)
    with pytest.raises(UserError, match="no 'mian'; did you mean main"):
        compare(config, "mian")


def test_the_figure_is_a_print_sized_png_and_a_pdf_without_a_date(with_holes: Config) -> None:
    import matplotlib.image

    png, pdf = figures_of(with_holes)["figure_main"](with_holes)
    height, width, _ = matplotlib.image.imread(png).shape
    assert width == pytest.approx(1520, abs=2)
    assert 600 < height < 1200
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in pdf.read_bytes()


def test_the_figure_draws_every_mean_labelled_with_units_and_no_published_number(with_holes: Config) -> None:
    from metatuner.analysis.figures.bars import draw_bars

    comparison = compare(with_holes, "main")
    figure = draw_bars(comparison, describe_world(with_holes, "main"))
    assert [panel.get_title("left") for panel in figure.axes][:2] == ["nano MATH", "nano GSM8K"]
    assert [panel.get_xlabel() for panel in figure.axes] == [
        "Accuracy (%)",
        "Accuracy (%)",
        "Exact match (%)",
        "Accuracy (%)",
    ]
    drawn = {text.get_text() for panel in figure.axes for text in panel.texts}
    for entry in comparison.entries.values():
        if entry.mean:
            number = f"{100 * entry.mean.estimate:.1f}"
            assert any(text.rstrip("†*") == number for text in drawn)
    widths = [round(bar.get_width(), 6) for panel in figure.axes for bar in panel.patches]
    means = [round(100 * entry.mean.estimate, 6) for entry in comparison.entries.values() if entry.mean]
    assert sorted(widths) == sorted(means)
    assert {
        "n = 40, 3 seeds",
        "skipped: needs rationales",
        "failed: ValueError: loss\nis 100% of_it & more | nan",
    } <= drawn
    assert not any(f"{paper.score:.2f}" in text for paper in read_published().values() for text in drawn)


PAPER = """
zero_shot        18.44  51.63  19.85  36.80
rlprompt         31.33  53.15  43.00  81.20
bpo              32.67  58.00  43.90  82.05
opro             22.00  75.06  25.55  69.10
sft              41.33  61.41  43.20  82.65
dpo              43.78  63.68  44.70  87.90
ppo              41.78  62.02  45.85  84.10
better_together  41.56  67.93  52.30  89.80
metatuner_i      48.22  78.54  55.75  92.15
metatuner_j      48.67  78.92  54.56  92.25
"""


def test_the_papers_table_is_transcribed_exactly() -> None:
    published = read_published()
    for line in PAPER.split("\n")[1:-1]:
        method, *scores = line.split()
        found = [published[method, "default", name].score for name in ("math", "gsm8k", "hotpotqa", "cosmosqa")]
        assert found == [float(score) for score in scores]
    assert len(published) == 52


def test_published_scores_have_wilsons_interval_at_the_papers_test_size(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config, n=5)
    tables_of(config)["table_1"](config)
    found = read_table(config)
    for method, benchmark, score, size in (("sft", "math", 41.33, 450), ("metatuner_j", "cosmosqa", 92.25, 2000)):
        z, p = stats.norm.ppf(0.975), score / 100
        centre = (p + z**2 / (2 * size)) / (1 + z**2 / size)
        half = z * np.sqrt(p * (1 - p) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
        line = found[method, benchmark]
        assert float(line["published"]) == score
        assert float(line["published_low"]) == pytest.approx(100 * (centre - half), abs=0.006)
        assert float(line["published_high"]) == pytest.approx(100 * (centre + half), abs=0.006)


def test_published_scores_lie_on_the_grid_of_their_test_size_but_the_one_that_is_noted() -> None:
    sizes = {"math": 450, "gsm8k": 1319, "hotpotqa": 2000, "cosmosqa": 2000}
    off = []
    for (method, _, benchmark), paper in read_published().items():
        nearest = 100 * round(paper.score / 100 * sizes[benchmark]) / sizes[benchmark]
        if abs(nearest - paper.score) > 0.00501:
            off.append((method, benchmark, "off the grid" in paper.note))
    assert off == [("metatuner_j", "hotpotqa", True)]


def test_an_unpublished_cell_stays_empty_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_sizes.csv").write_text((FOLDER / "test_sizes.csv").read_text())
    header = "method,variant,benchmark,score,standing,note\n"
    (tmp_path / "main_7b.csv").write_text(f"{header}sft,,math,,,not public\n")
    assert read_published(tmp_path) == {}
    (tmp_path / "main_7b.csv").write_text(f"{header}sft,,math,41,,\nsft,,gsm8k,x,,\n")
    with pytest.raises(UserError, match=r"main_7b.csv, line 3: score 'x'"):
        read_published(tmp_path)
