"""Shared by all tests: no network, one thread per process, the fork server, the finished run, the real rows."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read by the libraries when they are imported, and inherited by the commands that tests start.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1", MPLBACKEND="Agg")

from metatuner.forkserver import ADDRESS, ForkServer
from tests.toys.runs import Runs, project

# A shell's background job ignores SIGINT, and the commands that tests interrupt would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("dag/test_smoke", "dag", "authoring", "nano/test_null_world", "harness/test_scoring_math")
"""The slowest files or folders. They start first, so that no process is idle at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that FIRST names first."""
    places = [(str(ROOT / "tests" / name), at) for at, name in enumerate(FIRST)]
    items.sort(key=lambda item: next((at for start, at in places if str(item.path).startswith(start)), len(FIRST)))


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run tests of a file in one process, because they share fixtures; so do tests of the DAG, which read one run."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/dag" if file.startswith("tests/dag/") and not file.endswith("test_smoke.py") else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for temporary files. Tests must leave nothing in it."""
    folder = tmp_path_factory.mktemp("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("torch")))
        patch.setattr(tempfile, "tempdir", None)
        yield folder
        left = sorted(path.name for path in folder.iterdir())
    assert left == [], "tests have left files in the temporary folder"


@pytest.fixture(scope="session")
def server(temporary_folder: Path) -> Iterator[ForkServer]:
    """Runs `metatuner` and `snakemake` commands in forks of one process that has everything imported."""
    os.environ.pop(ADDRESS, None)
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="session")
def finished(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the preset `tiny` ran to its end. Tests read it, or change a copy of it."""
    folder = project(tmp_path_factory.mktemp("finished"))
    Runs(server, "tiny").snakemake(folder)
    return folder


@pytest.fixture
def tiny(server: ForkServer) -> Runs:
    """Runs commands on the preset `tiny`."""
    return Runs(server, "tiny")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real benchmark rows, `<benchmark>/{train,test}.jsonl`; the test is skipped if there is none."""
    folder = os.environ.get("METATUNER_DATA")
    if not folder:
        pytest.skip("needs real rows: set METATUNER_DATA to a folder with <benchmark>/train.jsonl and test.jsonl")
    path = Path(folder)
    assert path.is_dir(), f"METATUNER_DATA={folder}: no such folder"
    return path
