"""What all tests share: no network, one thread a process, and where real benchmark rows are."""

import os
from pathlib import Path

import pytest

# Read by the libraries when they are imported, and inherited by the commands that tests start.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OMP_NUM_THREADS="1", MPLBACKEND="Agg")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real benchmark rows, `<benchmark>/{train,test}.jsonl`; the test is skipped where there is none."""
    folder = os.environ.get("METATUNER_DATA")
    if not folder:
        pytest.skip("needs real rows: set METATUNER_DATA to a folder with <benchmark>/train.jsonl and test.jsonl")
    path = Path(folder)
    assert path.is_dir(), f"METATUNER_DATA={folder}: no such folder"
    return path
