"""The whole DAG on the smoke preset: every rule runs, a killed run is taken up, nothing is computed twice."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from metatuner.hashing import ROOT

METHODS = 19
CELLS = METHODS * 4 * 2 + 26
"""Of the smoke preset: the main experiment's, and those that only the others have."""

TIMED = {"cost.json", "timing.json", "usage", "logs", "efficiency.csv", "report.html"}
TIMED |= {f"table_5.{suffix}" for suffix in ("csv", "md", "tex")}
"""Names of files and folders that hold timings."""


def project(folder: Path) -> Path:
    """A folder with the workflow and nothing computed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "workflow", "config", "envs"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def command(*words: str) -> list[str]:
    # One line a preset; `--config` takes all that follows it, so it goes last.
    return [sys.executable, "-m", "snakemake", "--cores", "2", *words, "--config", "preset=smoke"]


def snakemake(
    folder: Path, *words: str, config: tuple[str, ...] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*command(*words), *config], cwd=folder, capture_output=True, text=True, check=False)
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done


def metatuner(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "metatuner.cli", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file without timings below results/, by its path."""
    found = {}
    for path in sorted((folder / "results").rglob("*")):
        relative = path.relative_to(folder / "results")
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not TIMED & set(relative.parts) and not hidden:
            found[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which the smoke preset ran to its end."""
    folder = project(tmp_path_factory.mktemp("finished"))
    snakemake(folder)
    return folder


def test_a_run_makes_scores_table_figure_and_verdict(finished):
    results = finished / "results" / "smoke"
    lines = (results / "scores.csv").read_text().splitlines()
    assert lines[0] == (
        "experiment,method,variant,benchmark,trained_on,generator,seed,metric,score,n,status,reason,cell"
    )
    statuses = [line.split(",")[10] for line in lines[1:]]
    assert statuses
    assert set(statuses) == {"ok"}
    tables = [
        f"tables/table_{name}.{suffix}" for name in (*range(1, 12), "d2", "kinds") for suffix in ("csv", "md", "tex")
    ]
    drawn = ("main", "kinds", "cost", *range(1, 7))
    figures = [f"figures/figure_{name}.{suffix}" for name in drawn for suffix in ("png", "pdf")]
    for name in (*tables, *figures, "world.md", "claims.csv", "claims.md", "report.html"):
        assert (results / name).stat().st_size > 0
    assert (results / "report.html").stat().st_size < 10**7
    cells = list((results / "cells").iterdir())
    assert len(cells) == CELLS
    for cell in cells:
        metrics = json.loads((cell / "metrics.json").read_text())
        assert len((cell / "predictions.jsonl").read_text().splitlines()) == metrics["n"] == 12


def test_policies_of_the_main_experiment_are_timed(finished):
    with open(finished / "results" / "smoke" / "efficiency.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == METHODS * 4
    for row in rows:
        assert float(row["answer_ms"]) > 0
        assert float(row["plain_ms"]) > 0
    share = {row["method"]: float(row["write_share"]) for row in rows if row["benchmark"] == "math"}
    assert share["zero_shot"] < 0.05 < share["metatuner_j"]


def test_every_log_begins_with_the_command_that_repeats_its_step(finished):
    logs = list((finished / "results" / "smoke" / "logs").rglob("*.log"))
    assert len(logs) > 20
    for log in logs:
        first = log.read_text().splitlines()[0]
        assert first.startswith("$ metatuner "), log
    again = first.removeprefix("$ ").split()
    subprocess.run([sys.executable, "-m", "metatuner.cli", *again[1:]], cwd=finished, check=True, capture_output=True)


def test_a_second_run_does_nothing(finished):
    before = contents(finished)
    started = time.perf_counter()
    done = snakemake(finished)
    assert "Nothing to be done" in done.stderr + done.stdout
    assert time.perf_counter() - started < 60
    assert contents(finished) == before


def test_a_new_seed_computes_only_its_own_cells(finished, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(finished, folder)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "results" / "smoke" / "cells").iterdir()}
    methods = ["zero_shot", "sft", "dpo", "metatuner_j"]  # one builds on another's fit
    snakemake(folder, config=(f"experiments={{main: {{seeds: [0, 1, 2], methods: {methods}}}}}",))
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "results" / "smoke" / "cells").iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == CELLS + len(methods) * 4


def test_tables_and_figures_are_redrawn_from_files_alone(finished, tmp_path, monkeypatch):
    folder = tmp_path / "redraw"
    shutil.copytree(finished, folder)
    drawn = [folder / "results" / "smoke" / name for name in ("tables/table_1.csv", "figures/figure_main.png")]
    wanted = [path.read_bytes() for path in drawn]
    for path in drawn:
        path.unlink()
    # No model is loaded: whatever would import these fails.
    for name in ("torch", "transformers", "peft", "dspy", "lm_eval"):
        (tmp_path / "without" / name).with_suffix(".py").parent.mkdir(exist_ok=True)
        (tmp_path / "without" / f"{name}.py").write_text("raise ImportError('from files alone')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "without"), str(ROOT)]))
    shutil.rmtree(folder / "results" / "cache")
    for policy in (folder / "results" / "smoke" / "fits").glob("*/policy"):
        shutil.rmtree(policy)
    snakemake(folder, "tables", "figures")
    assert [path.read_bytes() for path in drawn] == wanted
    assert not (folder / "results" / "cache").exists()


def kill_run(process: subprocess.Popen) -> None:
    """kill -9 a run and all its children, as a crash of the machine would."""
    root = psutil.Process(process.pid)
    for member in [*root.children(recursive=True), root]:
        with_pid = member.pid
        try:
            os.kill(with_pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def test_a_run_killed_again_and_again_and_ended_on_one_core_has_the_same_bytes(finished, tmp_path):
    folder = project(tmp_path / "killed")
    # While splits are drawn, inside a fit (a temporary folder is there), inside the next, inside an evaluation.
    for mark in ("data/gsm8k/test.jsonl", "fits/.*.tmp", "fits/.*.tmp", "cells/.*.tmp"):
        process = subprocess.Popen(
            command("--rerun-incomplete", "--nolock"), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list((folder / "results" / "smoke").glob(mark)):
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before it could be killed at {mark}"
        kill_run(process)
        if mark.startswith("fits"):  # so that the next one is killed in a fit of its own
            for left in (folder / "results" / "smoke").glob(mark):
                shutil.rmtree(left)
    done = subprocess.run(
        [sys.executable, "-m", "metatuner.cli", "resume", "--cores", "1", "preset=smoke"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert contents(folder) == contents(finished)
    left = list((folder / "results").rglob(".*.tmp"))
    assert left == []


def test_lost_files_are_made_again_though_what_was_made_from_them_is_there(finished, tmp_path):
    folder = tmp_path / "lost"
    shutil.copytree(finished, folder)
    results = folder / "results" / "smoke"
    before = contents(folder)
    (results / "query_scores.json").unlink()
    (results / "packs" / "evaluate" / "sft-00.json").unlink()
    planned = snakemake(folder, "-n").stdout
    assert {"rule scores:", "rule evaluate:"} <= {line.strip() for line in planned.splitlines()}
    snakemake(folder)
    assert contents(folder) == before
    assert "Nothing to be done" in snakemake(folder).stderr


def test_a_resumed_run_that_is_interrupted_ends_in_order_and_is_taken_up_again(finished, tmp_path):
    folder = tmp_path / "interrupted"
    shutil.copytree(finished, folder)
    results, before = folder / "results" / "smoke", contents(folder)
    pack = json.loads((results / "packs" / "evaluate" / "sft-00.json").read_text())
    for outcome in pack["outcomes"]:
        shutil.rmtree(results / "cells" / outcome["key"])
    resume = [sys.executable, "-m", "metatuner.cli", "resume", "--cores", "1", "preset=smoke"]
    process = subprocess.Popen(resume, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and (results / "packs" / "evaluate" / "sft-00.json").exists():
        time.sleep(0.02)  # Snakemake removes it when the evaluation starts
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "resume.py" not in told  # no traceback of its own; a job that is still importing may leave one
    locks = folder / ".snakemake" / "locks"
    assert not locks.is_dir() or not list(locks.iterdir())
    done = subprocess.run(resume, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert contents(folder) == before


def test_resume_refuses_while_the_old_run_lives(tmp_path):
    folder = project(tmp_path / "alive")
    process = subprocess.Popen(command(), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        done = subprocess.run(
            [sys.executable, "-m", "metatuner.cli", "resume", "preset=smoke"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        kill_run(process)
    assert done.returncode == 2
    assert "the old run is still alive" in done.stderr
    assert str(process.pid) in done.stderr


METHOD = """
from metatuner.harness.method import Method
from metatuner.harness.policies import FixedPrompt


class Mine(Method):
    name = "mine"
    family = "prompt"
    reference = "none"

    def fit(self, lab):
        if lab.seed == 1 and {broken}:
            raise RuntimeError("the author's mistake")
        return FixedPrompt(lab, {{name: "think" for name in lab.benchmarks}})
"""


def test_a_failing_method_leaves_a_hole_with_its_reason_and_is_tried_again(finished, tmp_path):
    folder = tmp_path / "failing"
    shutil.copytree(finished, folder)
    file = folder / "mine.py"
    config = (f"extra_methods={file}", "experiments={main: {methods: [zero_shot, mine]}}")
    file.write_text(METHOD.format(broken=True))
    done = snakemake(folder, config=config, check=False)
    assert done.returncode != 0
    assert "mine on gsm8k, seed 1: RuntimeError: the author's mistake" in done.stderr
    results = folder / "results" / "smoke"
    with open(results / "scores.csv", newline="") as lines:
        scores = [row for row in csv.DictReader(lines) if row["method"] == "mine"]
    assert {(row["seed"], row["status"], row["score"] == "") for row in scores} == {
        ("0", "ok", False),
        ("1", "failed", True),
    }
    assert "the author's mistake" in (results / "tables" / "table_1.csv").read_text()
    assert len(list((results / "logs" / "failed").iterdir())) == 4
    cells = {path.name for path in (results / "cells").iterdir()}
    # The same code runs again: what failed is tried again, and fails again; what is there stays.
    assert snakemake(folder, config=config, check=False).returncode != 0
    assert {path.name for path in (results / "cells").iterdir()} == cells
    # A repaired failure (here: a fit that is there after all) is evaluated once, and then there is nothing to do.
    file.write_text(METHOD.format(broken=False))
    snakemake(folder, config=config)
    with open(results / "scores.csv", newline="") as lines:
        assert {row["status"] for row in csv.DictReader(lines)} == {"ok"}
    assert "Nothing to be done" in snakemake(folder, config=config).stderr


def requires(fit):
    """Keys of the fits that a fit's folder names as those it builds on."""
    return set(json.loads((fit / "fit.json").read_text())["requires"].values())


def test_policies_beyond_the_first_experiment_go_and_come_back_when_they_are_needed(finished, tmp_path):
    folder = tmp_path / "removed"
    shutil.copytree(finished, folder)
    before = contents(folder)
    results = folder / "results" / "smoke"
    with open(results / "scores.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
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
    snakemake(folder)
    assert contents(folder) == before
    assert "Nothing to be done" in snakemake(folder).stderr


def test_a_cells_adapter_is_exported_for_a_test_row(finished, tmp_path):
    with open(finished / "results" / "smoke" / "scores.csv", encoding="utf-8", newline="") as file:
        (line, *_) = [row for row in csv.DictReader(file) if row["method"] == "metatuner_j"]
    records = (finished / "results" / "smoke" / "cells" / line["cell"] / "predictions.jsonl").read_text().splitlines()
    record = json.loads(records[0])
    export = ["export-adapter", "--config", "results/smoke/config.json", "--cell", line["cell"], "--out"]
    done = metatuner(finished, *export, str(tmp_path / "adapter"), "--id", record["id"])
    assert done.stdout.rstrip("\n") == record["prompt"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        each.name for each in (tmp_path / "adapter").iterdir()
    }
    again = metatuner(finished, *export, str(tmp_path / "adapter"), "--id", record["id"], check=False)
    assert again.returncode == 2
    assert "holds files already" in again.stderr
    unknown = metatuner(finished, *export, str(tmp_path / "other"), "--id", "nobody", check=False)
    assert unknown.returncode == 2
    assert "test.jsonl" in unknown.stderr


def test_presets_share_the_models_they_trained(finished):
    done = snakemake(finished, "-n", config=("results=results/other",))
    assert "rule pretrain" not in done.stdout
    assert "rule warmup" in done.stdout


def test_a_dry_run_leaves_the_config_of_a_live_one_alone(finished):
    config = finished / "results" / "smoke" / "config.json"
    before = config.read_bytes()
    snakemake(finished, "-n", config=("benchmarks={gsm8k: {sizes: {test: 5}}}",))
    assert config.read_bytes() == before


def test_splits_of_another_config_are_refused(finished, tmp_path):
    folder = tmp_path / "splits"
    shutil.copytree(finished, folder)
    evaluate = ["evaluate", "--config", "results/smoke/config.json", "--pack", "sft-00"]
    data = folder / "results" / "smoke" / "data" / "gsm8k"
    (data / "test.jsonl").rename(data / "elsewhere.jsonl")
    lost = metatuner(folder, *evaluate, check=False)
    (data / "elsewhere.jsonl").rename(data / "test.jsonl")
    metatuner(folder, "data", "preset=smoke", "benchmarks.gsm8k.sizes.test=5", "--benchmark", "gsm8k")
    other = metatuner(folder, *evaluate, check=False)
    for done in (lost, other):
        assert done.returncode == 2
        assert "no splits of this config; draw them with `metatuner data" in done.stderr


def test_no_fitted_file_depends_on_tune_or_test_rows(finished, tmp_path, monkeypatch):
    folder = tmp_path / "poisoned"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "results" / "smoke" / "fits")
    for split in ("tune", "test"):
        for path in (folder / "results" / "smoke" / "data").glob(f"*/{split}.jsonl"):
            path.write_text('{"not": "a row"}\n')
    monkeypatch.chdir(folder)
    from metatuner.harness.config import read_config
    from metatuner.steps import Workshop

    shop = Workshop(read_config(Path("results/smoke/config.json")))
    # Every method and variant on one benchmark and one seed.
    fits = {cell.fit.key: cell.fit for cell in shop.plan.cells.values() if "gsm8k" in cell.fit.train}
    fits = {key: fit for key, fit in fits.items() if fit.seed == 0 and fit.generator != "small"}
    assert {fit.method for fit in fits.values()} >= {cell.fit.method for cell in shop.plan.timed_cells}
    for fit in fits.values():
        for needed in (*fit.requires, fit):
            assert shop.fit(needed, share=False).status == "ok", needed.method
        here, there = (root / "results" / "smoke" / "fits" / fit.key for root in (folder, finished))
        files = [path for path in there.glob("policy/**/*") if path.is_file()] + [there / "log.jsonl"]
        assert len(files) > 1 or fit.key not in {cell.fit.key for cell in shop.plan.timed_cells}
        for path in files:
            assert told(here / path.relative_to(there)) == told(path), path


def told(path: Path) -> object:
    """A file's bytes; of PEFT's config its values, as it writes a set in the order of this process's hashes."""
    if path.name != "adapter_config.json":
        return path.read_bytes()
    values = json.loads(path.read_text())
    return {**values, "target_modules": sorted(values["target_modules"])}


def test_real_rows_run_to_their_table_and_cut_inputs_are_counted(data_root, tmp_path):
    folder = project(tmp_path / "real")
    small = "{settings: {steps: 1, samples: 2, scored_rows: 4, proposal_tokens: 8}}"
    config = (
        "preset=real_rows",
        "nano={trained: false}",
        "pack=100",
        f"methods={{opro: {small}}}",
        "experiments={main: {methods: [zero_shot, few_shot, opro]}}",
    )
    snakemake(folder, config=config)
    results = folder / "results" / "real_rows"
    with open(results / "scores.csv", newline="") as lines:
        scores = list(csv.DictReader(lines))
    assert {(row["benchmark"], row["status"], row["n"]) for row in scores} == {
        (name, "ok", "36") for name in ("math", "gsm8k", "hotpotqa", "cosmosqa")
    }
    cut = {
        row["benchmark"]: json.loads((results / "cells" / row["cell"] / "metrics.json").read_text())["cut"]
        for row in scores
        if row["method"] == "zero_shot"
    }
    assert cut["hotpotqa"] > 30  # ten paragraphs hardly ever fit a window of 1,024 tokens
    assert cut["gsm8k"] == 0
    assert "Untrained nano models" in (results / "tables" / "table_1.md").read_text()


def test_snakemake_makes_its_report(finished):
    snakemake(finished, "--report", "report.html")
    assert "table_1" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_results_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    folder = project(tmp_path / "blocked")
    (folder / "results").write_text("a file where the folder should be")
    done = snakemake(folder, "-n", check=False)
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
def test_a_wrong_config_stops_before_anything_runs(tmp_path, config, message):
    folder = project(tmp_path / "wrong")
    done = snakemake(folder, "-n", config=(config,), check=False)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


@pytest.mark.parametrize("preset", ["nano", "nano_full", "single_gpu", "paper", "paper_3b"])
def test_every_preset_plans_without_a_network(tmp_path, preset):
    folder = project(tmp_path / preset)
    done = snakemake(folder, "-n", "--quiet", "rules", config=(f"preset={preset}",))
    assert "evaluate" in done.stdout + done.stderr


def test_the_workflow_passes_snakemakes_linter(tmp_path):
    folder = project(tmp_path / "lint")
    done = snakemake(folder, "--lint", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
