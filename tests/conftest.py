"""What all tests share: no network, one thread a process, the fork server, the finished run, where real rows are."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read by the libraries when they are imported, and inherited by the commands that tests start.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1", MPLBACKEND="Agg")

from tests.toys.runs import Runs, project

from metatuner.forkserver import ADDRESS, ForkServer

ROOT = Path(__file__).resolve().parent.parent
SHARED = {"finished": "finished", "finished_smoke": "finished smoke"}
"""Fixtures that take long to make, and the group of tests that share each: one process runs them all."""
FIRST = ("dag/test_smoke", "dag", "authoring", "nano/test_null_world", "harness/test_scoring_math")
"""Files or folders that take longest: they begin first, so that no process is idle at the end."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one process; so do those that share a fixture of SHARED."""
    for item in items:
        used = [group for name, group in SHARED.items() if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(used[0] if used else item.path.stem))
    places = [(str(ROOT / "tests" / name), at) for at, name in enumerate(FIRST)]
    items.sort(key=lambda item: next((at for start, at in places if str(item.path).startswith(start)), len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for temporary files, in which nothing may be left."""
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
    """The folder of real benchmark rows, `<benchmark>/{train,test}.jsonl`; the test is skipped where there is none."""
    folder = os.environ.get("METATUNER_DATA")
    if not folder:
        pytest.skip("needs real rows: set METATUNER_DATA to a folder with <benchmark>/train.jsonl and test.jsonl")
    path = Path(folder)
    assert path.is_dir(), f"METATUNER_DATA={folder}: no such folder"
    return path
