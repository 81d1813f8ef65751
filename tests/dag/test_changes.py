"""What is computed again, and what is not, when a finished run's config, files or methods change."""

import csv
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from metatuner.config import read_config
from metatuner.hashing import ROOT
from metatuner.run.workshop import Workshop
from tests.toys.runs import PATIENCE, Runs, contents, project, start, with_path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


def cell_times(results: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (results / "cells").iterdir()}


def scores_of(results: Path) -> list[dict[str, str]]:
    with open(results / "scores.csv", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_new_seed_computes_only_its_own_cells(copy: Path, tiny: Runs) -> None:
    results = copy / "results" / "tiny"
    before = cell_times(results)
    methods = ["zero_shot", "dpo"]  # one builds on another's fit
    changed = f"experiments={{main: {{seeds: [0, 1, 2], methods: {methods}}}}}"
    tiny.snakemake(copy, "results/tiny/scores.csv", config=(changed,))
    after = cell_times(results)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + len(methods) * 2


def test_tables_and_figures_are_redrawn_from_files_alone(copy: Path, tmp_path: Path) -> None:
    drawn = [copy / "results" / "tiny" / name for name in ("tables/table_1.csv", "figures/figure_main.png")]
    wanted = [path.read_bytes() for path in drawn]
    for path in drawn:
        path.unlink()
    # No model is loaded: whatever would import these fails.
    without = tmp_path / "without"
    without.mkdir()
    for name in ("torch", "transformers", "peft", "dspy", "lm_eval"):
        (without / f"{name}.py").write_text("raise ImportError('from files alone')")
    shutil.rmtree(copy / "results" / "cache")
    for policy in (copy / "results" / "tiny" / "fits").glob("*/policy"):
        shutil.rmtree(policy)
    # In processes of their own: those of the server have torch.
    words = ["snakemake", "--cores", "2", "tables", "figures", "--config", "preset=tiny"]
    env = {**with_path(), "PYTHONPATH": os.pathsep.join([str(without), str(ROOT)])}
    process = start(copy, *words, env=env, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-4000:]
    assert [path.read_bytes() for path in drawn] == wanted
    assert not (copy / "results" / "cache").exists()


METHOD = """
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy


class Mine(Method):
    name = "mine"
    title = "mine"
    family = "prompt"
    reference = "none"

    def fit(self, lab):
        if lab.seed == 1 and {broken}:
            raise RuntimeError("the author's mistake")
        return StaticPolicy(lab, {{name: "think" for name in lab.benchmarks}})
"""


def test_a_failing_method_leaves_a_hole_with_its_reason_and_is_tried_again(copy: Path, tiny: Runs) -> None:
    file = copy / "mine.py"
    collected = ("results/tiny/scores.csv", "results/tiny/tables/table_1.csv")
    config = (f"extra_methods={file}", "experiments={main: {methods: [zero_shot, mine]}}", "run=main")
    file.write_text(METHOD.format(broken=True))
    done = tiny.snakemake(copy, config=config, check=False)
    assert done.returncode != 0
    assert "mine on gsm8k, seed 1: RuntimeError: the author's mistake" in done.stderr
    results = copy / "results" / "tiny"
    assert {
        (row["seed"], row["status"], row["score"] == "") for row in scores_of(results) if row["method"] == "mine"
    } == {("0", "ok", False), ("1", "failed", True)}
    assert "the author's mistake" in (results / "tables" / "table_1.csv").read_text()
    assert len(list((results / "logs" / "failed").iterdir())) == 2  # one a benchmark
    cells = set(cell_times(results))
    # The same code runs again: what failed is tried again, and fails again; what is there stays.
    tiny.snakemake(copy, *collected, config=config)
    assert set(cell_times(results)) == cells
    assert "the author's mistake" in (results / "tables" / "table_1.csv").read_text()
    # A repaired failure is evaluated once, and then there is nothing to do.
    file.write_text(METHOD.format(broken=False))
    tiny.snakemake(copy, *collected, config=config)
    assert {row["status"] for row in scores_of(results)} == {"ok"}
    assert "Nothing to be done" in tiny.snakemake(copy, *collected, config=config).stderr


def requires(fit: Path) -> set[str]:
    """Keys of the fits that a fit's folder names as those it builds on."""
    return set(json.loads((fit / "fit.json").read_text())["requires"].values())


def test_what_is_lost_is_made_again_with_the_policies_it_needs(copy: Path, tiny: Runs) -> None:
    before = contents(copy)
    results = copy / "results" / "tiny"
    rows = scores_of(results)
    first = {row["cell"] for row in rows if row["experiment"] == "main"}
    fit_of = {
        row["cell"]: json.loads((results / "cells" / row["cell"] / "cell.json").read_text())["fit"] for row in rows
    }
    kept = {path.parent.name for path in (results / "fits").glob("*/policy")}
    needed = {key for cell in first for key in requires(results / "fits" / fit_of[cell])}
    assert kept == {fit_of[cell] for cell in first} | needed
    # A cell of the first experiment, and one whose policy, and the warm-up it builds on, are not there any more.
    later = next(cell for cell, fit in fit_of.items() if requires(results / "fits" / fit) - kept)
    for cell in (next(iter(first)), later):
        shutil.rmtree(results / "cells" / cell)
    # A step's outcome, and a collected file, from which others that are still there were made.
    (results / "packs" / "evaluate" / "sft-00.json").unlink()
    (results / "query_scores.json").unlink()
    planned = tiny.snakemake(copy, "-n").stdout
    assert {"rule scores:", "rule evaluate:"} <= {line.strip() for line in planned.splitlines()}
    tiny.snakemake(copy)
    assert contents(copy) == before
    assert "Nothing to be done" in tiny.snakemake(copy).stderr


def test_splits_of_another_config_are_refused(copy: Path, tiny: Runs) -> None:
    evaluate = ["evaluate", "--config", "results/tiny/config.json", "--pack", "sft-00"]
    data = copy / "results" / "tiny" / "data" / "gsm8k"
    test = data / "test.jsonl"
    whole = test.read_bytes()
    for rows in (b"", whole[: whole.rfind(b"\n", 0, -1) + 1], None):  # the last row is gone, or the file
        test.unlink() if rows is None else test.write_bytes(rows)
        done = tiny.metatuner(copy, *evaluate, check=False)
        assert done.returncode == 2
        assert f"no whole splits (test.jsonl {'is missing' if rows is None else 'has'}" in done.stderr
    remedy = shlex.split(done.stderr.split("`")[1])
    assert remedy[:2] == ["metatuner", "data"]
    tiny.metatuner(copy, *remedy[1:])
    assert test.read_bytes() == whole
    tiny.metatuner(copy, *evaluate)
    tiny.metatuner(copy, "data", "preset=tiny", "benchmarks.gsm8k.sizes.test=5", "--benchmark", "gsm8k")
    other = tiny.metatuner(copy, *evaluate, check=False)
    assert other.returncode == 2
    assert "no splits of this config; draw them with `metatuner data" in other.stderr


def assert_fits_ignore_tune_and_test_rows(folder: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Fits of one seed on GSM8K, made again beside poisoned tune and test rows, have the files they had.

    Returns the methods that were fitted.
    """
    results = folder / "results" / preset
    (results / "fits").rename(results / "fits_before")
    for split in ("tune", "test"):
        for path in (results / "data").glob(f"*/{split}.jsonl"):
            path.write_text('{"not": "a row"}\n')
    monkeypatch.chdir(folder)
    shop = Workshop(read_config(results / "config.json"))
    # Every method and variant on one benchmark and one seed.
    fits = {cell.fit.key: cell.fit for cell in shop.plan.grid.cells.values() if "gsm8k" in cell.fit.train}
    fits = {key: fit for key, fit in fits.items() if fit.seed == 0 and fit.generator != "small"}
    with_policy = {path.parent.name for path in (results / "fits_before").glob("*/policy")}
    for fit in fits.values():
        for needed in (*fit.requires, fit):
            assert shop.fit(needed, share=False).status == "ok", needed.method
        here, there = (results / name / fit.key for name in ("fits", "fits_before"))
        files = [path for path in there.glob("policy/**/*") if path.is_file()] + [there / "log.jsonl"]
        assert len(files) > 1 or fit.key not in with_policy
        for path in files:
            assert values_of(here / path.relative_to(there)) == values_of(path), path
    return {fit.method for fit in fits.values()}


def values_of(path: Path) -> object:
    """A file's bytes; of PEFT's config its values, as it writes a set in the order of this process's hashes."""
    if path.name != "adapter_config.json":
        return path.read_bytes()
    values = json.loads(path.read_text())
    return {**values, "target_modules": sorted(values["target_modules"])}


def test_no_fitted_file_depends_on_tune_or_test_rows(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = assert_fits_ignore_tune_and_test_rows(copy, "tiny", monkeypatch)
    assert methods >= {"opro", "sft", "dpo", "metatuner_j"}


def test_real_rows_run_to_their_table_and_cut_inputs_are_counted(data_root: Path, tiny: Runs, tmp_path: Path) -> None:
    folder = project(tmp_path / "real")
    small = "{max_new_tokens: 8, sizes: {train: 8, dev: 4, tune: 2, test: 12}}"
    names = ("math", "gsm8k", "hotpotqa", "cosmosqa")
    config = (
        "preset=real_rows",
        "nano={trained: false}",
        "pack=100",
        f"benchmarks={{{', '.join(f'{name}: {small}' for name in names)}}}",
        "methods={few_shot: {settings: {shots: 2}}}",
        "experiments={main: {methods: [zero_shot, few_shot]}}",
    )
    results = folder / "results" / "real_rows"
    tiny.snakemake(folder, "results/real_rows/tables/table_1.md", config=config)
    scores = scores_of(results)
    assert {(row["benchmark"], row["status"], row["n"]) for row in scores} == {(name, "ok", "12") for name in names}
    cut = {
        row["benchmark"]: json.loads((results / "cells" / row["cell"] / "metrics.json").read_text())["cut"]
        for row in scores
        if row["method"] == "zero_shot"
    }
    assert cut["hotpotqa"] > 9  # ten paragraphs hardly ever fit a window of 1,024 tokens
    assert cut["gsm8k"] == 0
    assert "Untrained nano models" in (results / "tables" / "table_1.md").read_text()
