"""The bars: judged as docs/nano.md says, on rows that choosing does not see, and reported as measured."""

import json

import pytest

from metatuner.nano import World, measure, pretrain, write_rows
from metatuner.nano.bars import STANDING, Bar, judge, report
from metatuner.nano.problems import BENCHMARKS

GOOD = {
    "zero_shot": 30.0,
    "best_prompt": 45.0,
    "best_prompt_per_kind": 52.0,
    "few_shot": 29.0,
    "sft": 60.0,
    "mixed_rollouts": 50.0,
}


def missed(**changes: float) -> set[str]:
    """Names of the bars that a world misses whose gsm8k has these values."""
    measured = {name: dict(GOOD) for name in BENCHMARKS}
    measured["gsm8k"].update(changes)
    return {bar.name for bar in judge(measured) if not bar.met}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"zero_shot": 14.9, "few_shot": 12.0}, {"zero-shot"}),
        ({"zero_shot": 15.0}, set()),
        ({"zero_shot": 50.1, "best_prompt": 61, "sft": 80, "few_shot": 50}, {"zero-shot"}),
        ({"best_prompt": 39.9}, {"best single prompt over zero-shot"}),
        ({"sft": 49.9}, {"SFT over zero-shot"}),
        ({"sft": 95.1}, {"SFT"}),
        ({"mixed_rollouts": 39.9}, {"queries with mixed rollouts"}),
        ({"few_shot": 27.0}, set()),
        ({"few_shot": 26.9}, {"few-shot over zero-shot"}),
        ({"best_prompt_per_kind": 45.0}, set()),
    ],
)
def test_a_bar_is_missed_where_its_value_is_out_of_range(changes, expected):
    assert missed(**changes) == expected


def test_hotpotqa_asks_less_of_sft():
    measured = {name: {**GOOD, "sft": 41.0} for name in BENCHMARKS}
    assert [bar.benchmark for bar in judge(measured) if not bar.met] == ["gsm8k", "math", "cosmosqa"]


def test_prompts_per_kind_must_win_on_two_benchmarks():
    measured = {name: {**GOOD, "best_prompt_per_kind": 49.0} for name in BENCHMARKS}
    measured["math"]["best_prompt_per_kind"] = 60.0
    assert [bar.name for bar in judge(measured) if not bar.met] == ["best prompt per kind over best single"]
    measured["gsm8k"]["best_prompt_per_kind"] = 50.0
    assert all(bar.met for bar in judge(measured))


def test_the_report_says_what_was_missed_and_what_the_world_is_no_evidence_of():
    bars = [Bar("gsm8k", "zero-shot", 12.3, 15, 50), Bar("math", "SFT", 80.0, None, 95)]
    page = report(World(7), bars, trained=True, counts={"gsm8k": 300, "math": 299})
    assert "| gsm8k | zero-shot | 15 to 50 | 12.3 | missed |" in page
    assert "| math | SFT | <= 95 | 80.0 | met |" in page
    assert "1 of 2 bars are missed" in page
    assert STANDING in page
    assert "gsm8k 300 rows, math 299 rows" in page
    assert "seed 7" in page
    assert "do not apply" in report(World(), bars, trained=False, counts={})


def test_untrained_models_are_measured_and_said_to_be_untrained(tmp_path):
    write_rows(World(), tmp_path / "rows", {name: {"train": 4, "audit": 2} for name in BENCHMARKS})
    for role in ("actor", "generator_small"):
        pretrain(role, World(), tmp_path / role, untrained=True)
    measure(
        World(),
        rows=tmp_path / "rows",
        actor=tmp_path / "actor",
        generator=tmp_path / "generator_small",
        out=tmp_path / "out",
        trained=False,
    )
    record = json.loads((tmp_path / "out" / "world.json").read_text())
    assert set(record["measured"]) == set(BENCHMARKS)
    assert all(value == 0 for value in record["measured"]["cosmosqa"].values())
    assert record["met"] is False
    assert "do not apply" in (tmp_path / "out" / "world.md").read_text()
