"""The preset `smoke`: every method, variant and experiment, to the last file."""

import shutil
from pathlib import Path

import pytest

from metatuner.forkserver import ForkServer
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
        cells=METHODS * 4 * 2 + 26,
        rows=12,
        tables={*map(str, range(1, 12)), "d2", "kinds", "regularisation", "rollouts", "sft_prompts", "sharing"},
        figures={"main", "kinds", "cost", *map(str, range(1, 7))},
    )


def test_no_fitted_file_of_any_method_depends_on_tune_or_test_rows(
    finished_smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished_smoke, tmp_path / "poisoned")
    assert len(assert_fits_ignore_tune_and_test_rows(folder, "smoke", monkeypatch)) == METHODS
