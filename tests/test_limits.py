"""A hung method is stopped, and says which key to raise."""

import signal
import threading
import time

import pytest

from metatuner.harness.limits import TimeLimitExceeded, time_limit


def test_what_runs_too_long_is_stopped_with_the_key_to_raise() -> None:
    def hang() -> None:
        with time_limit(0.2, "small"):
            while True:
                time.sleep(0.01)

    started = time.monotonic()
    with pytest.raises(TimeLimitExceeded, match=r"budget 'small': not done after 0.2 s; .* budgets.small.seconds"):
        hang()
    assert time.monotonic() - started < 5


def test_what_ends_in_time_is_left_alone_and_nothing_fires_later() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with time_limit(0.1, "small"):
        pass
    time.sleep(0.2)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_without_a_limit_or_outside_the_main_thread_nothing_is_limited() -> None:
    done = []

    def work() -> None:
        with time_limit(0.05, "small"):
            time.sleep(0.15)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with time_limit(None, "small"):
        time.sleep(0.1)
    assert done == [True]
