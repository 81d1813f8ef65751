"""A hung method is stopped, and says which key to raise."""

import signal
import threading
import time

import pytest

from metatuner.run.limits import Overdue, TimeLimitExceeded, limit, time_limit


def test_what_runs_too_long_is_stopped_with_the_key_to_raise() -> None:
    def hang() -> None:
        start = time.monotonic()
        with time_limit(0.2, "small"):
            while time.monotonic() - start < 120:
                time.sleep(0.01)

    with pytest.raises(TimeLimitExceeded, match=r"'small'.* 0.2 s.*budgets.small.seconds"):
        hang()


def test_what_ends_in_time_or_with_an_error_is_left_alone_and_nothing_is_left_to_fire_later() -> None:
    threads, handler = threading.enumerate(), signal.getsignal(signal.SIGUSR1)
    with time_limit(600, "small"):
        assert len(threading.enumerate()) == len(threads) + 1
    with pytest.raises(KeyError), time_limit(600, "small"):
        raise KeyError
    assert threading.enumerate() == threads
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_without_a_limit_or_outside_the_main_thread_nothing_is_limited() -> None:
    threads, handler = threading.active_count(), signal.getsignal(signal.SIGUSR1)
    with time_limit(None, "small"):
        assert threading.active_count() == threads
        assert signal.getsignal(signal.SIGUSR1) is handler
    done = []

    def work() -> None:
        with time_limit(0.01, "small"):
            time.sleep(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_library_that_uses_the_processs_alarm_does_not_end_a_limit() -> None:
    def hang() -> None:
        start = time.monotonic()
        with time_limit(0.2, "small"):
            signal.alarm(60)
            signal.alarm(0)
            while time.monotonic() - start < 120:
                time.sleep(0.01)

    with pytest.raises(TimeLimitExceeded):
        hang()


def test_a_schedulers_signal_is_passed_on_and_ends_nothing() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with limit(60, Overdue), time_limit(50, "small"):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1] * 2


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


def test_code_that_goes_on_after_that_is_stopped_again() -> None:
    stopped: list[BaseException] = []

    def twice() -> None:
        try:
            stubborn([])
        except BaseException as error:  # the worst that a method may do
            stopped.append(error)
            stubborn([])

    with pytest.raises(Overdue), limit(0.1, Overdue, again=0.1):
        twice()
    assert [type(error) for error in stopped] == [Overdue]


def test_the_outer_of_two_limits_holds_inside_a_longer_one() -> None:
    caught: list[Exception] = []
    start = time.monotonic()
    with pytest.raises(Overdue), limit(0.2, Overdue), time_limit(100, "small"):
        stubborn(caught)
    assert caught == []
    assert time.monotonic() - start < 50
