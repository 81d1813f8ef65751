"""Limits on a method's code in a run: code that hangs, leaves, overspends or writes elsewhere is found out."""

import contextlib
import os
import shutil
import signal
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


def raising(error: BaseException) -> Callable[[], Outcome]:
    def work() -> Outcome:
        raise error

    return work


def test_what_is_no_exception_fails_and_a_ctrl_c_ends_the_process(tmp_path: Path) -> None:
    def told(work: Callable[[], Outcome]) -> Outcome:
        return contained(work, key="k", failures=tmp_path / "k.txt", seconds=None, budget="small")

    for error in (KeyboardInterrupt(), GeneratorExit()):
        failed = told(raising(error))
        assert failed.status == "failed"
        assert f"it raised {type(error).__name__}, which is no Exception" in failed.reason
    before = signal.getsignal(signal.SIGINT)

    def interrupted() -> Outcome:
        with contextlib.suppress(KeyboardInterrupt):  # the method catches it and goes on
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return Outcome("k", "ok")

    with pytest.raises(KeyboardInterrupt):
        told(interrupted)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_process_is_in_its_folder_again_whatever_the_block_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()

    def wanders() -> Outcome:
        os.chdir("other")
        raise ValueError("in another folder")

    with pytest.raises(ValueError, match="in another folder"):
        contained(wanders, key="k", failures=tmp_path / "k.txt", seconds=None, budget="small")
    assert Path.cwd() == tmp_path


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


def test_what_is_taken_linked_or_opened_to_others_elsewhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    fits = tmp_path / "fits"
    for name in (".mine.x.tmp", "others", ".theirs.y.tmp"):
        (fits / name).mkdir(parents=True)
        (fits / name / "log").write_text("x")
    mine, others = fits / ".mine.x.tmp", fits / "others"
    changes: dict[str, Callable[[], Any]] = {
        "log": lambda: (others / "log").rename(mine / "taken"),
        "link": lambda: (others / "link").symlink_to(mine),
        "back": lambda: (mine / "taken").rename(others / "back"),
        "": lambda: others.chmod(0o777),
        "hard": lambda: os.link(mine / "log", others / "hard"),
        "time": lambda: os.utime(others / "back"),
        "../made": lambda: (fits / "made").mkdir(),
        "../.theirs.y.tmp/log": lambda: (fits / ".theirs.y.tmp" / "log").write_text("y"),
    }
    places = {"": others, "time": others / "back"}
    for name, change in changes.items():
        with writes_outside([], fits / "mine") as found:
            (mine / "log").chmod(0o600)
            (mine / "own").symlink_to(mine)
            (mine / "own").unlink()
            assert found == set()
            change()
        assert found == {os.path.normpath(places.get(name, others / name))}, name
