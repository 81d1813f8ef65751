"""The committed snapshot can be drawn again from its own files."""

import shutil
from pathlib import Path

import pytest

from metatuner.config import read_config
from metatuner.hashing import ROOT
from tests.toys.commands import step

FOLDER = Path("results") / "snapshot" / "nano"


def test_the_committed_snapshot_is_drawn_again_without_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ROOT / FOLDER
    monkeypatch.chdir(tmp_path)
    named = shutil.ignore_patterns("cells", "fits", "data")  # what was unpacked beside the archive
    shutil.copytree(kept, FOLDER, ignore=named)
    config = read_config(FOLDER / "config.json")
    assert Path(config.results) == FOLDER
    table, page = FOLDER / "tables" / "table_1.csv", FOLDER / "report.html"
    table.unlink()
    page.unlink()
    assert step("table", config, name="table_1") == 0
    assert table.read_bytes() == (kept / "tables" / "table_1.csv").read_bytes()
    assert step("report", config) == 0
    assert page.stat().st_size > 10**6
    # It was unpacked once, whole.
    scored = {line.rsplit(",", 1)[1] for line in (kept / "scores.csv").read_text().splitlines()[1:]}
    assert {path.name for path in (FOLDER / "cells").iterdir()} == scored
    assert not any(path.name.startswith(".") for path in FOLDER.iterdir())
