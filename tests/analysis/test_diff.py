"""Two results folders: what is missing, the same, or different by more than chance."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from metatuner.analysis.diff import compare_runs, diff
from metatuner.analysis.results.scores import write_query_scores, write_scores
from metatuner.cli import main
from metatuner.errors import UserError
from tests.toys.results import fake_config, fake_run, few_draws, plan_rows, write_cells

N = 80

quick = pytest.fixture(autouse=True)(few_draws)


def make(root: Path, **config: object) -> Path:
    fake_run(fake_config(root, methods=["zero_shot", "sft"], seeds=[0], **config), n=N)  # type: ignore[arg-type]
    return root


def change(root: Path, method: str, benchmark: str, flips: int, *, up: bool) -> int:
    """Make so many wrong answers right (or right ones wrong); how many were changed."""
    config = fake_config(root, methods=["zero_shot", "sft"], seeds=[0])
    rows = plan_rows(config)
    (cell,) = [row["cell"] for row in rows if (row["method"], row["benchmark"]) == (method, benchmark)]
    path = root / "cells" / cell / "predictions.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [record for record in records if record["score"] == (0.0 if up else 1.0)][:flips]
    for record in changed:
        record["score"] = 1.0 if up else 0.0
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    metrics = json.loads((root / "cells" / cell / "metrics.json").read_text())
    metrics["metrics"][metrics["primary"]] = sum(record["score"] for record in records) / N
    (root / "cells" / cell / "metrics.json").write_text(json.dumps(metrics))
    write_scores(rows, {}, root)
    return len(changed)


def test_equal_folders_have_no_difference(tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    assert {each.kind for each in compare_runs(first, tmp_path / "b")} == {"identical"}
    text, differs = diff(first, tmp_path / "b")
    assert not differs
    assert re.findall(r"\d+ \w+", text) == ["10 cells", "10 identical"]


def test_a_difference_is_tested_query_by_query_and_corrected(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    up, down = change(second, "sft", "math", 12, up=True), change(second, "zero_shot", "gsm8k", 2, up=False)
    found = {each.name[:3]: each for each in compare_runs(first, second) if each.kind == "differs"}
    assert set(found) == {("sft", "default", "math"), ("zero_shot", "default", "gsm8k")}
    large, small = found["sft", "default", "math"], found["zero_shot", "default", "gsm8k"]
    assert large.told is not None
    assert small.told is not None
    assert large.paired
    assert large.told.estimate == pytest.approx(up / N)
    assert large.told.p == pytest.approx(stats.binomtest(up, up).pvalue)  # McNemar: all flips one way
    assert large.p_holm == pytest.approx(min(1.0, 2 * large.told.p))
    assert large.significant
    assert small.told.estimate == pytest.approx(-down / N)
    assert not small.significant
    text, differs = diff(first, second, tmp_path / "out.csv")
    assert differs
    (line,) = [line for line in text.splitlines() if "more than chance" in line]
    assert line.startswith("1 of ")
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        rows = {(row["method"], row["benchmark"]): row for row in csv.DictReader(file)}
    assert float(rows["sft", "math"]["difference"]) == pytest.approx(100 * up / N, abs=0.01)


def test_without_predictions_means_are_compared_as_if_unpaired(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    up = change(second, "sft", "math", 6, up=True)
    shutil.rmtree(first / "cells")  # a committed snapshot has scores.csv alone
    (each,) = [each for each in compare_runs(first, second) if each.kind == "differs"]
    assert not each.paired
    assert each.told is not None
    assert each.told.estimate == pytest.approx(up / N, abs=1e-6)  # the second's less the first's
    assert not each.significant  # six of eighty, unpaired, are within chance


def test_scores_by_query_without_cells_are_compared_in_pairs_all_the_same(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    up = change(second, "sft", "math", 12, up=True)
    (kept,) = [each for each in compare_runs(first, second) if each.kind == "differs"]
    cells = [row["cell"] for row in plan_rows(fake_config(first, methods=["zero_shot", "sft"], seeds=[0]))]
    write_query_scores(cells, first)
    shutil.rmtree(first / "cells")
    (packed,) = [each for each in compare_runs(first, second) if each.kind == "differs"]
    assert packed.paired
    assert packed.told == kept.told
    assert packed.told.p == pytest.approx(stats.binomtest(up, up).pvalue)


def test_how_far_cells_moved_together_and_how_far_one_would_have_to_is_said(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    up = change(second, "sft", "math", 12, up=True)
    lines = diff(first, second)[0].splitlines()
    mean, root = 100 * up / N / 10, 100 * up / N / 10**0.5
    (line,) = [line for line in lines if "mean shift" in line]
    assert re.findall(r"[+-]?\d+\.?\d*", line) == ["10", f"{mean:+.2f}", f"{root:.2f}"]
    (line,) = [line for line in lines if "must move by about" in line]
    least = float(re.findall(r"(\d+\.\d) points", line)[0])
    # By McNemar's exact test: so many more right ones, beside as many flips as there are now, half of them each way.
    rng = np.random.default_rng(0)
    wins = rng.binomial(N, up / 2 / N + least / 100, size=600)
    losses = rng.binomial(N, up / 2 / N, size=600)
    power = np.mean([stats.binomtest(w, w + x).pvalue <= 0.05 for w, x in zip(wins, losses, strict=True)])
    assert 0.6 < power < 0.95


def test_cells_of_other_rows_with_the_same_names_are_no_pairs(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    change(second, "sft", "math", 12, up=True)
    (cell,) = [each.name for each in compare_runs(first, second) if each.kind == "differs"]
    for root, world in ((first, 0), (second, 1)):
        for path in root.glob("cells/*/predictions.jsonl"):
            records = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(r | {"group": f"{world} {r['id']}"}) + "\n" for r in records))
    found = [each for each in compare_runs(first, second) if each.name == cell]
    assert [each.paired for each in found] == [False]


def test_what_only_one_has_and_holes_are_named(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), tmp_path / "b"
    config = fake_config(second, methods=["zero_shot"], seeds=[0])
    rows = plan_rows(config)
    lost = rows[0]["cell"]
    outcomes = {lost: ("failed", "RuntimeError: it broke")}
    write_cells(config, n=N, outcomes=outcomes)
    write_scores(rows, outcomes, second)
    text, differs = diff(first, second)
    assert differs
    assert "SFT on math, accuracy, seed 0: only in the first" in text
    assert "RuntimeError: it broke" in text


def two_runs(
    tmp_path: Path, first: dict[str, Sequence[float]], second: dict[str, Sequence[float]], rows_a_group: int = 1
) -> tuple[Path, Path]:
    """Folders with these scores by method on MATH alone."""
    roots = (tmp_path / "one", tmp_path / "two")
    for root, scores in zip(roots, (first, second), strict=True):
        grid = {"methods": list(scores), "benchmarks": ["math"], "seeds": [3], "generator": "large"}
        config = fake_config(root, experiments={"main": grid})
        fake_run(config, scores=lambda row, scores=scores: scores[row["method"]], rows_a_group={"math": rows_a_group})
    return roots


def test_graded_scores_and_rows_that_share_a_context_are_tested_by_flips_of_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    binary = rng.choice([0.0, 1.0], (2, 11))
    graded = rng.choice([0.1, 0.4, 0.9], (2, 11), p=[0.2, 0.3, 0.5])
    signs = 1 - 2 * (np.arange(2**11)[:, None] >> np.arange(11) & 1)
    (graded_cell,) = compare_runs(*two_runs(tmp_path / "graded", {"sft": graded[0]}, {"sft": graded[1]}))
    gaps = graded[1] - graded[0]
    exact = (np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9).mean()
    assert graded_cell.told.p == pytest.approx(exact, abs=0.03)
    repeated = [np.repeat(each, 4) for each in binary]
    (grouped,) = compare_runs(*two_runs(tmp_path / "b", {"sft": repeated[0]}, {"sft": repeated[1]}, rows_a_group=4))
    wins, losses = int((binary[1] > binary[0]).sum()), int((binary[1] < binary[0]).sum())
    assert grouped.told.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=0.03)


def test_cells_that_differ_alike_are_drawn_each_on_its_own(tmp_path: Path) -> None:
    one, two = np.random.default_rng(1).random((2, 30))
    found = compare_runs(*two_runs(tmp_path, dict.fromkeys(("sft", "bpo"), one), dict.fromkeys(("sft", "bpo"), two)))
    assert found[0].told.estimate == found[1].told.estimate
    assert found[0].told.low != found[1].told.low


def test_only_what_is_beyond_chance_after_correction_is_a_difference(tmp_path: Path) -> None:
    right, more = [0.0] * 8 + [1.0] * 40, [1.0] * 6 + [0.0] * 2 + [1.0] * 40  # p = 0.031 alone
    methods = ("sft", "bpo", "dpo")
    roots = two_runs(tmp_path / "three", dict.fromkeys(methods, right), dict.fromkeys(methods, more))
    assert not any(each.significant for each in compare_runs(*roots))
    assert not diff(*roots)[1]
    roots = two_runs(tmp_path / "one", {"sft": right}, {"sft": more})
    assert diff(*roots)[1]


def test_what_only_one_has_is_a_difference_and_what_failed_in_both_is_none(tmp_path: Path) -> None:
    scores = {"sft": [0.0, 1.0, 1.0], "bpo": [0.0, 1.0, 1.0]}
    for name, first, second in (
        ("first", scores, {"sft": [0.0, 1.0, 1.0]}),
        ("second", {"sft": [0.0, 1.0, 1.0]}, scores),
    ):
        roots = two_runs(tmp_path / name, first, second)
        text, differs = diff(*roots)
        assert differs
        assert f"only in the {name}" in text
    roots = two_runs(tmp_path / "both", scores, scores)
    for root in roots:
        rows = plan_rows(
            fake_config(
                root,
                experiments={
                    "main": {"methods": list(scores), "benchmarks": ["math"], "seeds": [3], "generator": "large"}
                },
            )
        )
        lost = rows[0]["cell"]
        shutil.rmtree(root / "cells" / lost)
        write_scores(rows, {lost: ("failed", "out of memory")}, root)
    assert "both failed" in diff(*roots)[0]
    assert not diff(*roots)[1]


def test_a_cell_trained_on_other_benchmarks_is_another_cell(tmp_path: Path) -> None:
    grid = {"methods": ["sft"], "benchmarks": ["math", "gsm8k"], "seeds": [0], "generator": "large"}
    for name in ("one", "two"):
        config = fake_config(tmp_path / name, experiments={"main": grid, "others": {**grid, "train": "others"}})
        fake_run(config, n=9)
    found = compare_runs(tmp_path / "one", tmp_path / "two")
    assert sorted(each.name[2:4] for each in found) == [
        ("gsm8k", "gsm8k"),
        ("gsm8k", "math"),
        ("math", "gsm8k"),
        ("math", "math"),
    ]


def test_equal_scores_of_other_answers_are_told_from_the_same_answers(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    path = next((second / "cells").glob("*/predictions.jsonl"))
    path.write_text(path.read_text().replace('"completion": "c"', '"completion": "d"'))
    found = compare_runs(first, second)
    assert [each.kind for each in found].count("equal scores") in (1, 2)  # a benchmark may have two metrics
    assert {each.kind for each in found} == {"equal scores", "identical"}
    assert not diff(first, second)[1]


def test_a_metric_beside_the_primary_one_is_compared_by_its_means(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    up = change(second, "sft", "hotpotqa", 9, up=True)
    (cell,) = [each for each in compare_runs(first, second) if each.kind == "differs"]
    assert (cell.name[-1], cell.paired) == ("em", True)
    assert cell.told.estimate == pytest.approx(up / N)
    path = second / "scores.csv"
    lines = path.read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if ",sft," in line and ",f1," in line)
    fields = lines[place].split(",")
    fields[8] = f"{float(fields[8]) + 5:.4f}"
    path.write_text("\n".join([*lines[:place], ",".join(fields), *lines[place + 1 :]]) + "\n")
    found = {each.name[-1]: each for each in compare_runs(first, second) if each.kind == "differs"}
    assert (found["em"].paired, found["f1"].paired) == (True, False)
    assert found["f1"].told.estimate == pytest.approx(0.05, abs=1e-6)


def test_cells_of_more_rows_in_one_folder_are_compared_by_their_means(tmp_path: Path) -> None:
    few, many = [1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    for name, first, second in (("fewer", few, many), ("more", many, few)):
        (found,) = compare_runs(*two_runs(tmp_path / name, {"sft": first}, {"sft": second}))
        assert (found.kind, found.paired) == ("differs", False)
        assert found.told.estimate == pytest.approx(np.mean(second) - np.mean(first), abs=1e-6)


def test_a_hole_without_a_metric_stands_beside_the_cell_that_has_one(tmp_path: Path) -> None:
    roots = two_runs(tmp_path, {"sft": [0.0, 1.0]}, {"sft": [0.0, 1.0]})
    grid = {"methods": ["sft"], "benchmarks": ["math"], "seeds": [3], "generator": "large"}
    (row,) = plan_rows(fake_config(roots[1], experiments={"main": grid}))
    shutil.rmtree(roots[1] / "cells")
    write_scores([row], {row["cell"]: ("failed", "out of memory")}, roots[1])
    for first, second in (roots, roots[::-1]):
        (found,) = compare_runs(first, second)
        assert (found.kind, found.name[-1]) == ("no result", "accuracy")
        assert diff(first, second)[1]


def test_provenance_that_differs_is_listed(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    for root, version in ((first, "2.13.0"), (second, "2.14.0")):
        (root / "provenance.json").write_text(json.dumps({"packages": {"torch": version}, "preset": "nano"}))
    assert "  packages.torch: 2.13.0 -> 2.14.0" in diff(first, second)[0].splitlines()


def test_claims_that_come_out_otherwise_are_told(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    head = "claim,data,verdict,detail\n1,measured,supported,\n1,published,undecided,\n2,measured,"
    (one / "claims.csv").write_text(f"{head}undecided,\n")
    assert "claim" not in diff(one, two)[0]
    (two / "claims.csv").write_text(f"{head}contradicted,\n3,measured,supported,\n")
    text, differs = diff(one, two)
    told = text.split("claims that come out otherwise:\n")[1].splitlines()
    assert told == ["  claim 2 (measured): undecided -> contradicted", "  claim 3 (measured): (none) -> supported"]
    assert not differs
    (two / "claims.csv").write_text("number,verdict\n")
    with pytest.raises(UserError, match=r"claims.csv: no column"):
        diff(one, two)


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--fail-on-difference"], 1)])
def test_only_on_demand_does_the_command_fail_on_a_difference(tmp_path: Path, words: list[str], status: int) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    assert main(["diff", str(one), str(two), *words]) == 0
    change(two, "sft", "math", 30, up=True)
    assert main(["diff", str(one), str(two), *words]) == status


def test_a_folder_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere; name two results folders"):
        diff(make(tmp_path / "a"), tmp_path / "nowhere")


def test_many_cells_without_a_counterpart_are_counted_and_what_is_beyond_chance_comes_first(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), tmp_path / "b"
    fake_run(fake_config(second, methods=["zero_shot", "sft", "opro"], seeds=[0, 1]), n=N)
    config = fake_config(second, methods=["zero_shot", "sft", "opro"], seeds=[0, 1])
    (cell,) = [
        row["cell"]
        for row in plan_rows(config)
        if (row["method"], row["benchmark"], row["seed"]) == ("sft", "gsm8k", 0)
    ]
    path = second / "cells" / cell
    records = [json.loads(line) | {"score": 0.0} for line in (path / "predictions.jsonl").read_text().splitlines()]
    (path / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "metrics.json").write_text(json.dumps({"metrics": {"accuracy": 0.0}, "primary": "accuracy", "n": N}))
    write_scores(plan_rows(config), {}, second)
    lines = diff(first, second)[0].splitlines()
    assert "  OPRO: 10 cells and metrics only in the second" in lines
    differences = [line for line in lines if "after correction" in line]
    assert differences[0].endswith("*")
    assert [line.endswith("*") for line in differences] == sorted(line.endswith("*") for line in differences)[::-1]


def test_lists_in_provenance_are_told_by_what_only_one_has(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    for root, winners in ((first, ["a", "b", "c"]), (second, ["b", "c", "d", "e"])):
        (root / "provenance.json").write_text(json.dumps({"winners": winners}))
    assert "  winners: 1 of 3 only in the first, 2 of 4 only in the second" in diff(first, second)[0].splitlines()
