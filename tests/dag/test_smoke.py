"""The preset `smoke`: every method, variant and experiment, to the last file."""

import shutil
from pathlib import Path

import pytest

from metatuner.config import read_config
from metatuner.cost.against import against, read_costs
from metatuner.cost.assumptions import ASSUMED, Assumptions
from metatuner.cost.jobs import jobs_of
from metatuner.forkserver import ForkServer
from metatuner.hashing import ROOT
from metatuner.plan import Plan
from tests.dag.test_changes import assert_fits_ignore_tune_and_test_rows
from tests.dag.test_dag import assert_complete
from tests.toys.runs import Runs, project

pytestmark = pytest.mark.slow
METHODS = 19


@pytest.fixture(scope="module")
def finished_smoke(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the preset `smoke` ran to its end."""
    folder = project(tmp_path_factory.mktemp("smoke"))
    Runs(server, "smoke").snakemake(folder)
    return folder


def test_every_method_and_experiment_runs_to_its_tables_and_figures(finished_smoke: Path) -> None:
    assert_complete(
        finished_smoke / "results" / "smoke",
        cells=METHODS * 4 * 2 + 25,
        rows=12,
        tables={*map(str, range(1, 12)), "d2", "kinds", "regularisation", "rollouts", "sft_prompts", "sharing"},
        figures={"main", "kinds", "cost", *map(str, range(1, 7))},
    )


def test_what_each_method_counts_of_its_loop_is_near_the_meter(finished_smoke: Path) -> None:
    root = finished_smoke / "results" / "smoke"
    jobs = jobs_of(Plan(read_config(root / "config.json")), Assumptions.read(ROOT / ASSUMED))
    ratios = against(jobs, read_costs(root))
    written = {method: ratio["written"] for method, ratio in ratios.items() if ratio["written"] is not None}
    # Untrained models never answer right, so BootstrapFewShot goes on to ask all rows.
    assert written.pop("bootstrap_few_shot") < 1
    assert len(written) == 15  # all that ask a model; SFT does not, Rewriter + SFT has no loop of its own
    assert {method: ratio for method, ratio in written.items() if not 0.8 < ratio < 1.35} == {}
    # Untrained models have no rollouts that differ, so methods that train on those alone are not compared.
    trained = {method: ratios[method]["trained"] for method in ("sft", "ppo", "metatuner_j", "metatuner_warmup")}
    assert {method: ratio for method, ratio in trained.items() if not 0.9 < ratio < 1.5} == {}


def test_no_fitted_file_of_any_method_depends_on_tune_or_test_rows(
    finished_smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished_smoke, tmp_path / "poisoned")
    assert len(assert_fits_ignore_tune_and_test_rows(folder, "smoke", monkeypatch)) == METHODS
