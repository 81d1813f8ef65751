"""Lines about a long fit or evaluation: rare, with what is left, and without any effect on results."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from metatuner import progress
from metatuner.lm import generate
from tests.toys.baselines import sums, tiny_lm, toy_lab


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def passing(clock: Clock, count: int, seconds: float) -> Iterator[None]:
    """So many items, each of which takes so many seconds."""
    for _ in progress.each(range(count), "steps"):
        yield
        clock.now += seconds


def test_a_long_loop_says_how_far_it_is_and_what_is_left(clock: Clock, said: list[str]) -> None:
    with progress.at_work("sft on gsm8k, seed 0"):
        list(passing(clock, 5, 20.0))
    assert said == [
        "sft on gsm8k, seed 0: 2/5 steps, about 60 s left",
        "sft on gsm8k, seed 0: 4/5 steps, about 20 s left",
    ]


def test_long_times_are_in_minutes(clock: Clock, said: list[str]) -> None:
    with progress.at_work("sft"):
        next(passing(clock, 1, 1.0))
        for _ in zip(range(2), passing(clock, 100, 60.0), strict=False):
            pass
    assert said[0] == "sft: 1/100 steps, about 99 min left"


def test_what_takes_less_than_the_interval_says_nothing(clock: Clock, said: list[str]) -> None:
    for _ in range(3):
        with progress.at_work("sft"):
            list(passing(clock, 29, 1.0))
    assert said == []


def test_nothing_is_said_outside_of_a_fit_or_an_evaluation(clock: Clock, said: list[str]) -> None:
    list(passing(clock, 5, 100.0))
    with progress.at_work("sft"):
        pass
    list(passing(clock, 5, 100.0))
    assert said == []


def test_loops_in_loops_share_their_lines(clock: Clock, said: list[str]) -> None:
    with progress.at_work("grpo"):
        for _ in progress.each(range(3), "steps"):
            with progress.loop(40, "texts") as count:
                for _ in range(4):
                    clock.now += 10
                    count(10)
    assert said == [
        "grpo: 0/3 steps; 30/40 texts, about 10 s left",
        "grpo: 1/3 steps, about 60 s left; 20/40 texts, about 20 s left",
        "grpo: 2/3 steps, about 30 s left; 10/40 texts, about 30 s left",
        "grpo: 2/3 steps, about 0 s left",
    ]


def test_many_short_loops_say_what_was_done_so_far(clock: Clock, said: list[str]) -> None:
    with progress.at_work("copro"):
        for _ in range(4):
            with progress.loop(16, "texts") as count:
                clock.now += 20
                count(16)
    assert said == ["copro: 32 texts so far", "copro: 64 texts so far"]


def test_a_loop_that_an_error_ends_is_no_part_of_later_lines(clock: Clock, said: list[str]) -> None:
    with progress.at_work("cfpo"):
        with pytest.raises(ValueError, match="broken"), progress.loop(2, "rounds"):
            raise ValueError("broken")
        list(passing(clock, 2, 40.0))
    assert said == ["cfpo: 1/2 steps, about 40 s left", "cfpo: 2 steps so far"]


def test_generation_and_training_report_and_compute_the_same(
    tmp_path: Path, clock: Clock, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from baselines.sft import SFT, Settings

    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]

    def run(folder: Path) -> object:
        lm, lines = tiny_lm(), []
        lab = toy_lab(folder, sums(12), actor=lm)
        monkeypatch.setattr(type(lab), "log", lambda self, **event: lines.append(event))
        policy = SFT(Settings(epochs=2, batch_size=4, rank=2)).fit(lab)
        return lines, generate(policy.tuned_actor, prompts, max_new_tokens=4, batch_tokens=64, max_rows=1)

    silent = run(tmp_path / "silent")
    assert said == []
    ticking = iter(range(10**6))
    monkeypatch.setattr(clock, "monotonic", lambda: 20.0 * next(ticking))
    with progress.at_work("sft"):
        assert run(tmp_path / "loud") == silent
    assert any("/6 steps (adapter), about" in line for line in said)
    assert any("texts" in line for line in said)
