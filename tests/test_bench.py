"""metatuner bench at tiny shapes: arms agree before they are timed, and the report says what was measured."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from metatuner import bench, cli
from metatuner.bench import Bar, Bench, Measurement, Shape, deviation
from metatuner.errors import UserError

TINY = Shape(32, 2, 4, 2, 48, 64, batch=3, prompt=8, completion=6, new=4, rank=2)
CPU = torch.device("cpu")
ARMS = {"base", "per_query", "shared", "adapter_names", "loop", "loop_peft", "materialised"}


def quick(dtype: str = "float32") -> Bench:
    return Bench(CPU, dtype, repeats=2, least_seconds=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(bench.MEASUREMENTS))
def test_every_measurement_times_every_arm(name: str, dtype: str) -> None:
    measured = bench.MEASUREMENTS[name](quick(dtype), "tiny", TINY)
    assert (measured.name, measured.shape) == (name, "tiny")
    assert all(len(times) == 2 and min(times) > 0 for times in measured.seconds.values())
    assert {*measured.against} <= measured.seconds.keys()
    if name in ("training", "generation"):
        assert measured.seconds.keys() == ARMS
    if name == "training":
        assert measured.megabytes.keys() == ARMS
        assert measured.megabytes["base"] < measured.megabytes["per_query"] < measured.megabytes["materialised"]


def test_an_arm_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = bench.lora_arms

    def wrong(*args: object) -> object:
        lora, arms, skipped = correct(*args)  # type: ignore[arg-type]
        arms["materialised"] = replace(arms["materialised"], values=arms["materialised"].values * 1.5)
        return lora, arms, skipped

    monkeypatch.setattr(bench, "lora_arms", wrong)
    for name in ("training", "generation"):
        with pytest.raises(RuntimeError, match="materialised does not compute what per_query does"):
            bench.MEASUREMENTS[name](quick(), "tiny", TINY)


def test_an_arm_beyond_memory_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "available_bytes", lambda self: 1000)
    measured = bench.generation(quick(), "tiny", TINY)
    assert measured.seconds.keys() == ARMS - {"materialised"}
    assert "materialised  n/a: the linears once for each query are" in bench.table(measured, TINY)


def test_arms_run_in_turn_and_short_ones_often_enough() -> None:
    calls: list[str] = []
    times = Bench(CPU, repeats=3, least_seconds=0).time({name: lambda name=name: calls.append(name) for name in "ab"})
    assert "".join(calls) == "abababab"  # the first round sets how often each is repeated
    assert {name: len(one) for name, one in times.items()} == {"a": 3, "b": 3}

    calls.clear()
    Bench(CPU, repeats=1, least_seconds=1e-3).time({"a": lambda: calls.append("a")})
    assert len(calls) > 10  # an append takes far less than a millisecond


def test_ratios_are_taken_round_by_round() -> None:
    measured = Measurement("m", "s", "", ("a",), seconds={"a": [1.0, 2.0, 4.0, 10.0], "b": [2.0, 4.0, 8.0, 5.0]})
    assert measured.ratio("b", "a") == (1.625, 2.0, 2.0)
    assert measured.ratio("a", "a") == (1.0, 1.0, 1.0)
    assert median(measured.seconds["b"]) / median(measured.seconds["a"]) != 2.0


def test_bars_are_met_or_missed_on_their_own_measurement_only() -> None:
    measured = Measurement("m", "s", "", ("a",), seconds={"a": [1.0] * 3, "b": [1.1] * 3})
    assert Bar("m", "s", "b", "a", 1.15).verdict(measured) == "b / a: 1.10, bar <= 1.15: met"
    assert Bar("m", "s", "b", "a", 1.05).verdict(measured) == "b / a: 1.10, bar <= 1.05: MISSED"
    assert Bar("m", "s", "b", "a", 10.0, at_least=True).verdict(measured) == "b / a: 1.10, bar >= 10.00: MISSED"
    assert Bar("m", "other", "b", "a", 1.15).verdict(measured) is None
    assert Bar("m", "s", "c", "a", 1.15).verdict(measured) is None


def test_peak_memory_is_the_most_held_at_a_time() -> None:
    def run() -> None:
        a = torch.zeros(250_000)  # 1 MB
        b = torch.cat([a, a])  # 3 MB held
        del a
        torch.cat([b, b])  # 2 + 4 MB held

    assert quick().peak_megabytes(run) == pytest.approx(6, rel=0.01)


def test_random_models_never_end_a_greedy_completion() -> None:
    lm = quick().lm(TINY)
    prompts = bench.random_ids(TINY, [5, 9], 0)
    assert [len(ids) for ids in bench.stock_generate(lm, prompts, 12, do_sample=False)] == [12, 12]
    assert deviation(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == 0.75


def test_other_sizes_keep_a_heads_width() -> None:
    shape = TINY.with_sizes(width=64, layers=3, batch=None, rank=4)
    assert shape == replace(TINY, width=64, layers=3, heads=8, feed_forward=96, rank=4)


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.SHAPES, "nano", TINY)
    monkeypatch.setattr(bench, "Bench", lambda *args: Bench(*args, least_seconds=0))
    file = tmp_path / "times.json"
    words = ["bench", "--device", "cpu", "--shape", "nano", "--only", "generation", "--batch", "2", "--json", str(file)]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("generation at nano (width 32, 2 layers, 2 queries, rank 2)") for line in lines)
    assert any(line.split()[0] == "per_query" for line in lines if line.strip())
    stored = json.loads(file.read_text(encoding="utf-8"))
    (measured,) = stored["measurements"]
    assert measured["sizes"]["batch"] == 2
    assert {len(times) for times in measured["seconds"].values()} == {9}
    assert not measured["bars"]  # bars are for a shape's own sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "8b"}, "unknown shape '8b'; did you mean 7b"),
        ({"only": "train"}, "unknown measurement 'train'; did you mean training"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; Known: bfloat16"),
        ({"device": "tpu"}, "unknown device 'tpu'; use auto, cpu or cuda"),
        ({"repeats": 3}, "--repeats 3: a median of fewer than 9"),
        ({"batch": 0}, "--batch must be at least 1, got 0"),
        ({"width": 100}, "--width 100 is no multiple of 32, the width of a head"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.run(**({"shape": "nano", "device": "cpu"} | options))
