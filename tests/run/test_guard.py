"""Limits on a method's code in a run: code that hangs, leaves, overspends or writes elsewhere is found out."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metatuner.harness.budget import Budget, BudgetExceeded
from metatuner.run.fitting import Outcome
from metatuner.run.guard import contained, overspent, writes_outside


def test_an_outcome_passes_and_what_leaves_or_hangs_fails_with_the_remedy(tmp_path: Path) -> None:
    def told(work: Callable[[], Any], seconds: float | None = None) -> Outcome:
        return contained(work, key="k", failures=tmp_path / "k.txt", seconds=seconds, budget="small")

    assert told(lambda: Outcome("k", "ok")) == Outcome("k", "ok")
    left = told(lambda: sys.exit(3))
    assert left.status == "failed"
    assert "sys.exit(3)" in left.reason
    assert "sys.exit(3)" in (tmp_path / "k.txt").read_text()
    hung = told(lambda: time.sleep(120), seconds=0.1)
    assert hung.status == "failed"
    assert "budget 'small': not done after 0.1 s in all" in hung.reason
    assert "budgets.small.seconds" in hung.reason
    assert "test_guard.py" in (tmp_path / "k.txt").read_text()  # where it hung


def test_a_budget_that_was_overspent_in_silence_is_named() -> None:
    budget = Budget({"lm_calls": 5, "trained_tokens": 10}, "small")
    budget.add(lm_calls=5)
    assert overspent(budget) is None
    with pytest.raises(BudgetExceeded):
        budget.add(lm_calls=2)
    told = overspent(budget)
    assert told is not None
    assert "budget 'small': 7 lm_calls used of 5" in told


def test_folders_that_are_removed_or_open_to_all_are_no_writes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, home = tmp_path / "own", tmp_path / "home"
    (own / "scratch" / "deep").mkdir(parents=True)
    (own / "scratch" / "deep" / "file.bin").write_text("x")
    home.mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.chdir(tmp_path)
    with writes_outside([own]) as found:
        shutil.rmtree(own / "scratch")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "file").write_text("x")
        (home / ".cache").mkdir()
        (home / ".cache" / "model").write_text("x")
        assert found == set()
        (home / "notes").write_text("x")
    assert found == {str(home / "notes")}


def test_writes_elsewhere_are_found_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "read").write_text("x")
    with writes_outside([own]) as found:
        (own / "mine").write_text("x")
        (own / "folder").mkdir()
        (other / "read").read_text()
        (other / "__pycache__").mkdir()
        assert found == set()
        (other / "new").write_text("x")
        (own / "mine").rename(other / "moved")
        (own / "link").symlink_to(other / "read")
        (own / "link").write_text("y")
        (other / "new").unlink()
    assert found == {str(other / name) for name in ("new", "moved", "read")}
    (other / "later").write_text("x")
    assert len(found) == 3
