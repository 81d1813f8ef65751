"""Limits on a method's code in a run: code that hangs, leaves, overspends or writes elsewhere is found out."""

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metatuner.harness.budget import Budget, BudgetExceeded
from metatuner.run import guard
from metatuner.run.fitting import Outcome
from metatuner.run.guard import contained, deadline, overspent, writes_outside
from metatuner.run.limits import Overdue, TimeLimitExceeded, time_limit


def stubborn(caught: list[Exception]) -> None:
    """Goes on for a minute, whatever is raised that is an `Exception`."""
    start = time.monotonic()
    while time.monotonic() - start < 60:
        try:
            time.sleep(0.01)
        except Exception as error:  # as methods do
            caught.append(error)


def test_code_that_catches_every_exception_is_stopped_all_the_same() -> None:
    caught: list[Exception] = []
    with pytest.raises(Overdue), deadline(0.2):
        stubborn(caught)
    assert caught == []


def test_it_is_stopped_within_a_limit_of_its_own_too() -> None:
    caught: list[Exception] = []
    for seconds in (0.5, 4.0, 20.0):  # a machine that stood still so long has raised the later one first
        with pytest.raises(Overdue), deadline(seconds), time_limit(0.1, "small"):
            stubborn(caught)
        if caught:
            break
    assert [type(error) for error in caught] == [TimeLimitExceeded]  # the limit of `fit` itself


def test_code_that_goes_on_after_that_is_stopped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "AGAIN", 0.1)
    stopped: list[BaseException] = []

    def twice() -> None:
        try:
            stubborn([])
        except BaseException as error:  # the worst that a method may do
            stopped.append(error)
            stubborn([])

    with pytest.raises(Overdue), deadline(0.1):
        twice()
    assert [type(error) for error in stopped] == [Overdue]


def test_what_ends_in_time_is_left_alone_and_nothing_is_left_to_fire_later() -> None:
    threads, handler = threading.enumerate(), signal.getsignal(signal.SIGUSR1)
    with deadline(600):
        assert len(threading.enumerate()) == len(threads) + 1
    assert threading.enumerate() == threads
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_without_a_limit_or_outside_the_main_thread_nothing_is_limited() -> None:
    threads, handler = threading.active_count(), signal.getsignal(signal.SIGUSR1)
    with deadline(None):
        assert threading.active_count() == threads
        assert signal.getsignal(signal.SIGUSR1) is handler
    ended = []

    def elsewhere() -> None:
        with deadline(0.01):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert ended == [True]


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


def test_a_schedulers_signal_is_handed_on_and_ends_nothing() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with deadline(60):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1] * 2


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
