"""The whole DAG, run once: what a finished run holds, and what is planned without running anything."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest

from metatuner.hashing import ROOT
from metatuner.plan.dag import Dag
from tests.toys.runs import Runs, contents, project

METHODS = ("zero_shot", "opro", "sft", "dpo", "metatuner_j")
CELLS = len(METHODS) * 2 * 2 + 7
"""Of `tiny`: the main experiment's on two benchmarks with two seeds, and seven that only other experiments have: two
variants of the ablation, one with the small generator, four trained on another benchmark."""
ROWS = 8
"""Test rows of each benchmark in `tiny`."""


def lines_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_complete(results: Path, *, cells: int, rows: int, tables: set[str], figures: set[str]) -> None:
    """A results folder has every file of a finished run, and every cell is evaluated on every row."""
    scores = lines_of(results / "scores.csv")
    assert list(scores[0]) == (
        "experiment method variant benchmark trained_on generator seed metric score n status reason cell".split()
    )
    assert {line["status"] for line in scores} == {"ok"}
    assert {path.name for path in (results / "tables").iterdir()} == {
        f"table_{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex", "json")
    }
    assert {path.name for path in (results / "figures").iterdir()} == {
        f"figure_{name}.{suffix}" for name in figures for suffix in ("png", "pdf")
    }
    for name in ("world.md", "claims.csv", "claims.md", "report.html", "provenance.json", "query_scores.json"):
        assert (results / name).stat().st_size > 0, name
    assert (results / "report.html").stat().st_size < 10**7
    folders = list((results / "cells").iterdir())
    assert {path.name for path in folders} == {line["cell"] for line in scores}
    assert len(folders) == cells
    for cell in folders:
        metrics = json.loads((cell / "metrics.json").read_text())
        assert len((cell / "predictions.jsonl").read_text().splitlines()) == metrics["n"] == rows


def test_a_run_makes_scores_tables_figures_claims_and_report(finished: Path) -> None:
    assert_complete(
        finished / "results" / "tiny",
        cells=CELLS,
        rows=ROWS,
        tables={*map(str, range(1, 12)), "kinds"},
        figures={"main", "kinds", "cost", "1", "2"},
    )


def test_policies_of_the_main_experiment_are_timed(finished: Path) -> None:
    rows = lines_of(finished / "results" / "tiny" / "efficiency.csv")
    assert sorted((row["method"], row["benchmark"]) for row in rows) == sorted(
        (method, benchmark) for method in METHODS for benchmark in ("gsm8k", "cosmosqa")
    )
    assert all(float(row["answer_ms"]) > 0 < float(row["plain_ms"]) for row in rows)
    share = {row["method"]: float(row["write_share"]) for row in rows if row["benchmark"] == "gsm8k"}
    assert share["zero_shot"] < share["metatuner_j"]  # one writes nothing, the other a prompt and a LoRA


def test_without_rows_to_time_policies_on_everything_else_is_made(finished: Path, tiny: Runs, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    results = folder / "results" / "tiny"
    (results / "efficiency.csv").unlink()
    done = tiny.snakemake(folder, config=("timed_rows=0",))
    assert "rule efficiency:" not in done.stdout + done.stderr
    assert not (results / "efficiency.csv").exists()
    for page in (results / "tables" / "table_5.md", results / "report.html"):
        assert "not measured" in page.read_text(), page


def test_every_log_begins_with_the_command_that_repeats_its_step(finished: Path, tiny: Runs, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    logs = folder / "results" / "tiny" / "logs"
    first = {log.relative_to(logs): log.read_text().splitlines()[0] for log in logs.rglob("*.log")}
    assert len(first) > 20
    assert [log for log, line in first.items() if not line.startswith("$ metatuner ")] == []
    for log in ("results/scores.log", "data/gsm8k.log"):
        tiny.metatuner(folder, *shlex.split(first[Path(log)])[2:])
    assert contents(folder) == contents(finished)


def test_a_second_run_does_nothing(finished: Path, tiny: Runs) -> None:
    before = contents(finished)
    done = tiny.snakemake(finished)
    assert "Nothing to be done" in done.stderr + done.stdout
    assert contents(finished) == before


def test_a_cells_adapter_is_exported_for_a_test_row(finished: Path, tiny: Runs, tmp_path: Path) -> None:
    results = finished / "results" / "tiny"
    line = next(row for row in lines_of(results / "scores.csv") if row["method"] == "metatuner_j")
    record = json.loads((results / "cells" / line["cell"] / "predictions.jsonl").read_text().splitlines()[0])
    export = ["export-adapter", "--config", "results/tiny/config.json", "--cell", line["cell"], "--out"]
    done = tiny.metatuner(finished, *export, str(tmp_path / "adapter"), "--id", record["id"])
    assert done.stdout.rstrip("\n") == record["prompt"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        each.name for each in (tmp_path / "adapter").iterdir()
    }
    again = tiny.metatuner(finished, *export, str(tmp_path / "adapter"), "--id", record["id"], check=False)
    assert (again.returncode, "holds files already" in again.stderr) == (2, True)
    unknown = tiny.metatuner(finished, *export, str(tmp_path / "other"), "--id", "nobody", check=False)
    assert (unknown.returncode, "test.jsonl" in unknown.stderr) == (2, True)


def test_a_snapshot_is_drawn_again_without_the_run(finished: Path, tiny: Runs, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    run, kept = folder / "results" / "tiny", folder / "results" / "snapshot" / "tiny"
    for _ in range(2):  # the second takes the place of the first, with the same bytes
        before = (kept / "cells.tar.xz").read_bytes() if kept.exists() else b""
        tiny.metatuner(folder, "snapshot", "--config", "results/tiny/config.json")
    assert (kept / "cells.tar.xz").read_bytes() == before
    for other in ("results/tiny", "results", "config", "."):  # no folder of other files is replaced
        words = ["snapshot", "--config", "results/tiny/config.json", "--out", other]
        done = tiny.metatuner(folder, *words, check=False)
        assert (done.returncode, "not a snapshot's folder" in done.stderr) == (2, True)
    assert not any(path.is_dir() for path in kept.iterdir() if path.name not in ("tables", "figures"))
    drawn = [*kept.glob("tables/*"), *kept.glob("figures/*"), *kept.glob("claims*"), kept / "report.html"]
    expected = {path.relative_to(kept): (run / path.relative_to(kept)).read_bytes() for path in drawn}
    assert len(expected) > 50
    shutil.rmtree(run)
    for path in drawn:
        path.unlink()
    for words in ("table --name all", "figure --name all", "claims", "report"):
        tiny.metatuner(folder, *words.split(), "--config", "results/snapshot/tiny/config.json")
    assert {path: (kept / path).read_bytes() for path in expected} == expected


def test_a_run_that_is_not_finished_or_failed_is_no_snapshot(finished: Path, tiny: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished / "config", folder / "config")
    results = folder / "results" / "tiny"
    results.mkdir(parents=True)
    shutil.copy(finished / "results" / "tiny" / "config.json", results)
    for verdict in (None, '{"ok": false}'):
        if verdict:
            (results / "verdict.json").write_text(verdict)
        done = tiny.metatuner(folder, "snapshot", "--config", "results/tiny/config.json", check=False)
        assert (done.returncode, "no finished run without failures" in done.stderr) == (2, True)
    assert not (folder / "results" / "snapshot").exists()


def test_snakemake_makes_its_report(finished: Path, tiny: Runs, tmp_path: Path) -> None:
    tiny.snakemake(finished, "--report", str(tmp_path / "report.html"))
    assert "table_1" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_presets_share_the_models_they_trained(finished: Path, tiny: Runs) -> None:
    done = tiny.snakemake(finished, "-n", config=("results=results/other",))
    assert "rule pretrain" not in done.stdout
    assert "rule warmup" in done.stdout


def test_a_dry_run_leaves_the_config_of_a_live_one_alone(finished: Path, tiny: Runs) -> None:
    config = finished / "results" / "tiny" / "config.json"
    before = config.read_bytes()
    tiny.snakemake(finished, "-n", config=("benchmarks={gsm8k: {sizes: {test: 5}}}",))
    assert config.read_bytes() == before


def test_a_results_folder_that_cannot_be_written_is_named_with_the_remedy(tiny: Runs, tmp_path: Path) -> None:
    folder = project(tmp_path / "blocked")
    (folder / "results").write_text("a file where the folder should be")
    done = tiny.snakemake(folder, "-n", check=False)
    assert done.returncode != 0
    assert "results" in done.stderr + done.stdout
    assert "--config results=" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("preset=smok", "did you mean smoke?"),
        ("methods={stf: {}}", "unknown method 'stf'; did you mean sft?"),
        ("tunning={trials: 2}", "unknown config key 'tunning'; did you mean tuning?"),
        ("results='results/a{b}'", "results/a{b}: braces are Snakemake's; choose another folder"),
    ],
)
def test_a_wrong_config_stops_before_anything_runs(tiny: Runs, tmp_path: Path, config: str, message: str) -> None:
    folder = project(tmp_path / "wrong")
    done = tiny.snakemake(folder, "-n", config=(config,), check=False)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert not (folder / "results").exists()


PRESETS = sorted(path.stem for path in (ROOT / "config" / "presets").glob("*.yaml"))


REAL_ROWS = ("real_rows", "smol")
"""The presets whose plans hash files of real rows."""


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_plan(request: pytest.FixtureRequest, preset: str) -> None:
    if preset in REAL_ROWS:
        request.getfixturevalue("data_root")
    dag = Dag.from_snakemake({"preset": preset})
    assert dag.plan.grid.cells
    fits = {key for pack in dag.plan.packs.fits.values() for key in pack.keys}
    assert fits == set(dag.plan.grid.fits)
    assert {key for pack in dag.plan.packs.evaluations.values() for key in pack.keys} == set(dag.plan.grid.cells)


@pytest.mark.parametrize(
    "preset", ["paper", *(pytest.param(name, marks=pytest.mark.slow) for name in PRESETS if name != "paper")]
)
def test_every_preset_is_planned_by_snakemake_without_a_network(
    request: pytest.FixtureRequest, tiny: Runs, tmp_path: Path, preset: str
) -> None:
    if preset in REAL_ROWS:
        request.getfixturevalue("data_root")
    folder = project(tmp_path / preset)
    done = tiny.snakemake(folder, "-n", "--quiet", "rules", config=(f"preset={preset}",))
    assert "evaluate" in done.stdout + done.stderr


def test_the_workflow_passes_snakemakes_linter(tiny: Runs, tmp_path: Path) -> None:
    done = tiny.snakemake(project(tmp_path / "lint"), "--lint", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
