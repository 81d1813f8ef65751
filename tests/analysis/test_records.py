"""Provenance, usage and verdict: what a run leaves about itself."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from metatuner.analysis.results.provenance import cpu_model, write_provenance
from metatuner.analysis.results.usage import read_usage, summarise
from metatuner.analysis.results.verdict import write_verdict
from metatuner.errors import UserError
from metatuner.hashing import git_state
from tests.toys.results import fake_config, plan_rows


def write_usage(folder: Path, step: str, pack: str, cpu: float, startup: float, memory: int = 2**30) -> None:
    folder.mkdir(exist_ok=True)
    record = {
        "step": step,
        "pack": pack,
        "cpu_seconds": cpu,
        "startup_cpu_seconds": startup,
        "wall_seconds": 2 * cpu,
        "peak_memory_bytes": memory,
    }
    (folder / f"{step}-{pack}.json").write_text(json.dumps(record))


def test_usage_adds_up_by_step_and_tells_the_share_of_start_up(tmp_path: Path) -> None:
    write_usage(tmp_path, "fit", "sft-00", 60, 6)
    write_usage(tmp_path, "fit", "sft-01", 30, 6, memory=3 * 2**30)
    write_usage(tmp_path, "scores", "all", 10, 1)
    steps = read_usage(tmp_path)
    assert (steps["fit"].jobs, steps["fit"].cpu_seconds, steps["fit"].peak_memory_bytes) == (2, 90, 3 * 2**30)
    lines = summarise(tmp_path).splitlines()
    assert lines[1].split() == ["fit", "2", "90.0", "12.0", "13.3", "%", "180.0", "3072"]
    assert [line.split()[0] for line in lines[1:4]] == ["fit", "scores", "total"]
    assert lines[4].startswith("13.0 % ")


def test_the_costliest_step_comes_first(tmp_path: Path) -> None:
    for step, cpu in (("adapt", 5), ("fit", 60), ("evaluate", 60), ("zip", 90)):
        write_usage(tmp_path, step, "all", cpu, 1)
    assert [line.split()[0] for line in summarise(tmp_path).splitlines()[1:6]] == [
        "zip",
        "evaluate",
        "fit",
        "adapt",
        "total",
    ]


def test_usage_without_files_or_with_a_broken_one_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usage in .*; run"):
        summarise(tmp_path)
    (tmp_path / "fit-x.json").write_text('{"step": "fit"}')
    with pytest.raises(UserError, match=r"fit-x.json: not a job's usage .*cpu_seconds.*; remove it"):
        summarise(tmp_path)
    (tmp_path / "fit-x.json").write_text('{"step": \n')
    with pytest.raises(UserError, match=r"fit-x.json, line 2: not valid JSON"):
        summarise(tmp_path)


def test_the_verdict_names_each_failed_cell_once_with_its_reason(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft", "opro"], seeds=[0])
    rows = plan_rows(config)
    outcomes = {row["cell"]: ("ok", "") for row in rows}
    outcomes[rows[0]["cell"]] = ("failed", "ValueError: no\nloss")
    outcomes[rows[5]["cell"]] = ("skipped", "no generator")
    outcomes[rows[1]["cell"]] = ("diverged", "the loss rose")
    failed = write_verdict([*rows, {**rows[0], "experiment": "again"}], outcomes, tmp_path / "verdict.json")
    assert failed == ["sft on math, seed 0: ValueError: no loss"]
    record = json.loads((tmp_path / "verdict.json").read_text())
    skipped, diverged = ["opro on gsm8k, seed 0: no generator"], ["sft on gsm8k, seed 0: the loss rose"]
    assert record == {"ok": False, "cells": 8, "failed": failed, "skipped": skipped, "diverged": diverged}
    write_verdict(rows, {**outcomes, rows[0]["cell"]: ("ok", "")}, tmp_path / "verdict.json")
    assert json.loads((tmp_path / "verdict.json").read_text())["ok"]  # a fit that diverged is no failure of the run


def test_cells_keep_the_order_of_the_plan_and_are_named_with_their_variant(tmp_path: Path) -> None:
    grid = {"methods": ["sft"], "benchmarks": ["math", "gsm8k"], "seeds": [0, 1], "generator": "large"}
    config = fake_config(tmp_path, experiments={"main": {**grid, "variants": {"sft": {"default": {}, "short": {}}}}})
    rows = plan_rows(config)
    names = [
        f"sft{'' if row['variant'] == 'default' else ' (short)'} on {row['benchmark']}, seed {row['seed']}: x"
        for row in rows
    ]
    for status in ("failed", "skipped"):
        failed = write_verdict(rows, {row["cell"]: (status, "x") for row in rows}, tmp_path / "verdict.json")
        assert json.loads((tmp_path / "verdict.json").read_text())[status] == names
        assert failed == (names if status == "failed" else [])


def test_skipped_is_not_failed_but_no_word_is(tmp_path: Path) -> None:
    rows = plan_rows(fake_config(tmp_path, methods=["sft"], seeds=[0]))
    skipped = {row["cell"]: ("skipped", "no generator") for row in rows}
    assert write_verdict(rows, skipped, tmp_path / "verdict.json") == []
    assert json.loads((tmp_path / "verdict.json").read_text())["ok"]
    assert len(write_verdict(rows, {}, tmp_path / "verdict.json")) == 4


def test_provenance_does_not_depend_on_cores_or_place_but_on_what_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    first = write_provenance(fake_config(tmp_path), {"world": "ab"}, path).read_bytes()
    for elsewhere in ({"threads": 8}, {"cache": str(tmp_path / "cache")}):
        moved = fake_config(tmp_path / "elsewhere", **elsewhere)
        assert write_provenance(moved, {"world": "ab"}, path).read_bytes() == first, elsewhere
    for other in ({"seeds": [7]}, {"batch_tokens": 64}, {"keep": "first"}, {"budgets": {"default": {"lm_calls": 9}}}):
        told = write_provenance(fake_config(tmp_path, **other), {"world": "ab"}, path).read_bytes()
        assert json.loads(told)["config"] != json.loads(first)["config"], other
    record = json.loads(first)
    assert record["dependencies"] == {"world": "ab"}
    assert record["seeds"] == {"main": [0, 1, 2]}
    assert record["packages"]["numpy"] == __import__("numpy").__version__


def test_provenance_has_the_device_and_type_of_each_model(tmp_path: Path) -> None:
    models = {
        "actor": {"path": "a/b", "device": "cpu"},
        "generators": {"large": {"path": "c/d", "dtype": "bfloat16"}, "small": {"path": "e/f"}},
    }
    path = write_provenance(fake_config(tmp_path, models=models), {}, tmp_path / "provenance.json")
    record = json.loads(path.read_text())
    assert record["devices"] == {"actor": "cpu", "large": "auto", "small": "auto"}
    assert record["dtypes"] == {"actor": "float32", "large": "bfloat16", "small": "float32"}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git: install it to run this test")
def test_git_state_tells_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", *name, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("a")
    git("add", ".")
    git("commit", "-m", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (tmp_path / "inner" / "file").write_text("b")
    assert git_state(tmp_path)["modified"]
    assert git_state(tmp_path / "inner") == {"commit": None, "modified": None}


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"commit": None, "modified": None}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == {"commit": None, "modified": None}


def test_the_processor_is_named_where_the_system_tells(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: x\n")
    assert cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert cpu_model(tmp_path / "none")
