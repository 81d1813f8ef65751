"""scores.csv says what the cells say, shows holes as holes, and refuses lines that are not what they claim."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from metatuner.analysis.results.scores import (
    COLUMNS,
    QueryScore,
    read_query_scores,
    read_scores,
    read_tuned,
    write_query_scores,
    write_scores,
)
from metatuner.errors import UserError
from tests.toys.results import METRICS, fake_config, fake_run, plan_rows, write_cells, write_settings


def test_the_columns_are_the_contract(tmp_path: Path) -> None:
    fake_run(fake_config(tmp_path), n=5)
    header = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert header == ("experiment,method,variant,benchmark,trained_on,generator,seed,metric,score,n,status,reason,cell")


def test_one_line_a_cell_and_metric_with_the_mean_of_its_predictions(tmp_path: Path) -> None:
    config = fake_config(tmp_path, seeds=[0, 1])
    rows = fake_run(config, n=30)
    frame = pd.read_csv(tmp_path / "scores.csv")
    assert len(frame) == sum(len(METRICS[row["benchmark"]]) for row in rows)
    for row in rows:
        primary = METRICS[row["benchmark"]][0]
        line = frame[(frame.cell == row["cell"]) & (frame.metric == primary)].squeeze()
        lines = (tmp_path / "cells" / row["cell"] / "predictions.jsonl").read_text().splitlines()
        predictions = [json.loads(text) for text in lines]
        assert line.score == pytest.approx(100 * sum(each["score"] for each in predictions) / 30, abs=5e-5)
        assert (line.n, line.status) == (30, "ok")


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = fake_run(fake_config(tmp_path), n=5)
    before = (tmp_path / "scores.csv").read_bytes()
    write_scores(rows, {row["cell"]: ("ok", "") for row in rows}, tmp_path)
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_a_hole_has_its_reason_and_no_score(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    rows = plan_rows(config)
    skipped, failed = rows[0]["cell"], next(row["cell"] for row in rows if row["benchmark"] == "hotpotqa")
    outcomes = {skipped: ("skipped", "needs rationales"), failed: ("failed", "RuntimeError:\n two, lines")}
    fake_run(config, n=5, outcomes=outcomes)
    lines = [score for score in read_scores(tmp_path / "scores.csv") if score.cell in outcomes]
    assert [(line.cell, line.metric, line.score, line.n, line.status, line.reason) for line in lines] == [
        (skipped, "accuracy", None, 0, "skipped", "needs rationales"),
        (failed, "em", None, 0, "failed", "RuntimeError: two, lines"),
        (failed, "f1", None, 0, "failed", "RuntimeError: two, lines"),
    ]
    assert ",0.0000,0,failed" not in (tmp_path / "scores.csv").read_text()


def test_a_reason_is_no_formula_to_a_spreadsheet_and_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    rows = write_cells(config)
    lost, reason = rows[0]["cell"], "=HYPERLINK('x') | 'tis"
    shutil.rmtree(tmp_path / "cells" / lost)
    path = write_scores(rows, {lost: ("failed", reason)}, tmp_path)
    (line,) = [row for row in csv.DictReader(io.StringIO(path.read_text())) if row["cell"] == lost]
    assert line["reason"] == f"'{reason}"
    (score,) = [score for score in read_scores(path) if score.cell == lost]
    assert score.reason == reason


def test_where_no_method_has_a_result_the_metric_is_not_guessed(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft"], seeds=[0])
    fake_run(config, outcomes={row["cell"]: ("failed", "out of memory") for row in plan_rows(config)})
    assert {(line.metric, line.score) for line in read_scores(tmp_path / "scores.csv")} == {("", None)}


def test_a_cell_of_an_earlier_run_counts_although_its_last_try_failed(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft"], seeds=[0])
    rows = write_cells(config, n=5)
    write_scores(rows, {rows[0]["cell"]: ("failed", "killed")}, tmp_path)
    assert {line.status for line in read_scores(tmp_path / "scores.csv")} == {"ok"}


def test_a_cell_with_neither_result_nor_reason_is_an_error(tmp_path: Path) -> None:
    rows = plan_rows(fake_config(tmp_path))
    with pytest.raises(UserError, match=rf"cell {rows[0]['cell']} has no result .*snakemake"):
        write_scores(rows, {}, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0].replace(",n,", ",rows,"), *lines[1:]], "line 1: no column n"),
        (lambda lines: [f"{lines[0]},cost", *(f"{line},1" for line in lines[1:])], "line 1: foreign column cost"),
        (lambda lines: [*lines[:2], lines[2].replace(",ok,", ",fine,"), *lines[3:]], "line 3: status 'fine'"),
        (lambda lines: [*lines, lines[1]], r"repeats line 2"),
        (lambda lines: [*lines[:3], f"{lines[3]},more"], "line 4: 14 fields, the header has 13"),
        (lambda lines: [*lines[:3], lines[3].replace("main,", ",", 1)], "line 4: experiment is empty"),
        (lambda lines: lines[:1], "no line below the header"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    fake_run(fake_config(tmp_path), n=5)
    path = tmp_path / "scores.csv"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(UserError, match=f"scores.csv.*{message}"):
        read_scores(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": "nan"}, "score nan is not in 0 to 100"),
        ({"score": ""}, "score '' is not a number"),
        ({"score": "100.5"}, "not in 0 to 100"),
        ({"score": "-1"}, "not in 0 to 100"),
        ({"seed": "1.5"}, "seed '1.5'"),
        ({"n": "0"}, "n of at least 1"),
        ({"metric": ""}, "needs a metric"),
        ({"status": "failed"}, "failed with a score"),
        ({"status": "skipped", "score": "", "reason": ""}, "without a reason"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(tmp_path: Path, values: dict[str, str], message: str) -> None:
    good = dict(
        zip(
            COLUMNS,
            ["main", "sft", "default", "math", "math", "", "0", "em", "5", "9", "ok", "", 16 * "a"],
            strict=True,
        )
    )
    path = tmp_path / "scores.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{','.join({**good, **values}.values())}\n")
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        read_scores(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "math-0", "score": 1}', "line 4: duplicate id 'math-0'"),
        ('{"id": "x", "score": 1.5}', "line 4: score 1.5"),
        ('{"id": "x", "score": -0.5}', "line 4: score -0.5"),
        ('{"id": "x", "score": NaN}', "line 4, key 'score': a finite number is needed"),
        ('{"id": "x"}', "line 4: key 'score' is missing"),
        ('{"id": "x", "sc', "line 4: not valid JSON"),
    ],
)
def test_broken_predictions_are_refused_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    config = fake_config(tmp_path, methods=["sft"], seeds=[0])
    cell = write_cells(config, n=3)[0]["cell"]
    with open(tmp_path / "cells" / cell / "predictions.jsonl", "a") as file:
        print(line, file=file)
    with pytest.raises(UserError, match=message):
        read_query_scores(tmp_path, cell)


def test_missing_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*scores.csv; run `snakemake"):
        read_scores(tmp_path / "scores.csv")
    with pytest.raises(UserError, match=r"no file .*predictions.jsonl; run the evaluation again"):
        read_query_scores(tmp_path, "0" * 16)


def test_rows_of_a_group_are_known_and_without_one_each_is_its_own(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft"], seeds=[0])
    cell = write_cells(config, n=3, rows_a_group={"math": 2})[0]["cell"]
    assert [each.group for each in read_query_scores(tmp_path, cell).values()] == ["g0", "g0", "g1"]
    (tmp_path / "cells" / cell / "predictions.jsonl").write_text('{"id": "a", "score": 1}\n{"id": "b", "score": 0}\n')
    assert read_query_scores(tmp_path, cell) == {"a": QueryScore(1.0, "a"), "b": QueryScore(0.0, "b")}


def test_where_settings_come_from_is_read_for_the_experiment_asked(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["zero_shot", "sft"])
    assert read_tuned(tmp_path / "settings.csv", "main") == {}
    write_settings(config, {("sft", "math"): "winner", ("sft", "gsm8k"): "untuned"})
    found = read_tuned(tmp_path / "settings.csv", "main")
    assert len(found) == 8
    assert found["sft", "default", "math"] == "winner"
    assert found["sft", "default", "gsm8k"] == "untuned"
    assert found["zero_shot", "default", "math"] == "none"
    assert read_tuned(tmp_path / "settings.csv", "other") == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tuned,settings", "settings", "settings.csv: no column 'tuned'"),
        ("math,,none", "math,,lucky", "line 2: tuned is 'lucky', no known word"),
        ("gsm8k,,none", "math,,winner", "line 3: sft default math is 'winner' here, 'none' above"),
    ],
)
def test_a_wrong_file_of_settings_is_refused_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_settings(fake_config(tmp_path, methods=["sft"]), {})
    path = tmp_path / "settings.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_tuned(path, "main")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[:-8], r"line \d+: cell '[0-9a-f]{9}' is no key .* cut off"),
        (lambda text: text[:-9] + "\0" + text[-8:], r"line \d+: cell"),
        (lambda text: "", "the file is empty; run `snakemake --cores all` again, with this run's preset"),
    ],
)
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, damage: Callable[[str], str], told: str) -> None:
    fake_run(fake_config(tmp_path, methods=["sft"], seeds=[0]), n=5)
    path = tmp_path / "scores.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=told):
        read_scores(path)


def test_scores_by_query_come_back_from_one_file_as_from_the_cells(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft"], seeds=[0, 1])
    rows = fake_run(config, n=30)
    graded = next(row["cell"] for row in rows if row["benchmark"] == "hotpotqa")
    path = tmp_path / "cells" / graded / "predictions.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    answers[0] |= {"score": 0.1 + 0.2, "group": "two share it", "kind": "bridge"}
    answers[1] |= {"group": "two share it"}
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    cells = [row["cell"] for row in rows]
    expected = {cell: read_query_scores(tmp_path, cell) for cell in cells}
    write_query_scores([*cells, "not there"], tmp_path)
    shutil.rmtree(tmp_path / "cells")
    assert {cell: read_query_scores(tmp_path, cell) for cell in cells} == expected
    with pytest.raises(UserError, match=r"no file .*predictions.jsonl"):
        read_query_scores(tmp_path, "not there")


@pytest.mark.parametrize(
    "own",
    [
        '{"rows": "r", "scores": "0120"}',
        '{"rows": "r", "scores": [0, 1, -0.5, 0]}',
        '{"rows": "r", "scores": [0, 1, NaN, 0]}',
        '{"rows": "r", "scores": "01"}',
        '{"rows": "r", "scores": "01010"}',
        '{"rows": "q", "scores": "0"}',
        "[]",
    ],
)
def test_a_broken_file_of_scores_by_query_is_named_with_its_cell(tmp_path: Path, own: str) -> None:
    columns = '{"ids": ["a", "b", "c", "d"], "groups": ["a", "b", "c", "d"], "kinds": ["", "", "", ""]}'
    (tmp_path / "query_scores.json").write_text(f'{{"rows": {{"r": {columns}}}, "cells": {{"x": {own}}}}}')
    with pytest.raises(UserError, match=r"query_scores.json, cell x: no score of each row .* run `metatuner scores`"):
        read_query_scores(tmp_path, "x")
