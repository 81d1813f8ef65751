"""A hung method is stopped, and says which key to raise."""

import signal
import threading
import time

import pytest

from metatuner.run import limits
from metatuner.run.limits import Overdue, TimeLimitExceeded, limit, time_limit


def test_what_runs_too_long_is_stopped_with_the_key_to_raise() -> None:
    def hang() -> None:
        start = time.monotonic()
        with time_limit(0.2, "small"):
            while time.monotonic() - start < 120:
                time.sleep(0.01)

    with pytest.raises(TimeLimitExceeded, match=r"'small'.* 0.2 s.*budgets.small.seconds"):
        hang()


def test_what_ends_in_time_is_left_alone_and_nothing_is_left_to_fire_later() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with time_limit(600, "small"):
        assert 500 < signal.getitimer(signal.ITIMER_REAL)[0] <= 600
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_after_an_error_nothing_is_left_to_fire_later_either() -> None:
    def fail() -> None:
        with time_limit(600, "small"):
            raise KeyError

    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyError):
        fail()
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_without_a_limit_or_outside_the_main_thread_nothing_is_limited() -> None:
    done = []

    def work() -> None:
        with time_limit(0.01, "small"):
            time.sleep(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with time_limit(None, "small"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert done == [True]


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
    with pytest.raises(Overdue), limit(0.2, Overdue):
        stubborn(caught)
    assert caught == []


def test_it_is_stopped_within_a_limit_of_its_own_too() -> None:
    caught: list[Exception] = []
    for seconds in (0.5, 4.0, 20.0):  # a machine that stood still so long has raised the later one first
        with pytest.raises(Overdue), limit(seconds, Overdue), time_limit(0.1, "small"):
            stubborn(caught)
        if caught:
            break
    assert [type(error) for error in caught] == [TimeLimitExceeded]  # the limit of `fit` itself


def test_code_that_goes_on_after_that_is_stopped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGAIN", 0.1)
    stopped: list[BaseException] = []

    def twice() -> None:
        try:
            stubborn([])
        except BaseException as error:  # the worst that a method may do
            stopped.append(error)
            stubborn([])

    with pytest.raises(Overdue), limit(0.1, Overdue):
        twice()
    assert [type(error) for error in stopped] == [Overdue]


def test_an_inner_limit_leaves_the_time_of_the_outer_one_as_it_is() -> None:
    with time_limit(500, "large"):
        with time_limit(100, "small"):
            assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        with time_limit(900, "larger"):
            assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
