"""A hung method is stopped, and says which key to raise."""

import signal
import threading
import time

import pytest

from metatuner.run.limits import TimeLimitExceeded, time_limit


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
