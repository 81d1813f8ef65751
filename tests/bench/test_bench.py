"""metatuner bench at tiny shapes: arms agree before they are timed, and the report says what was measured."""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from metatuner import bench, cli
from metatuner.bench import arms, measurements, report
from metatuner.bench.measure import Bench, Measurement, Rate, random_ids, within_memory
from metatuner.bench.measurements import MEASUREMENTS, deviation
from metatuner.bench.report import BARS, FLOOR, Bar
from metatuner.bench.shapes import SHAPES, Shape, decoding_bytes, training_flop
from metatuner.errors import UserError
from metatuner.lm import LM

TINY = Shape(32, 2, 4, 2, 48, 64, batch=3, prompt=8, completion=6, new=4, rank=2)
CPU = torch.device("cpu")
LORA_ARMS = {"base", "per_query", "shared", "adapter_names", "loop", "loop_peft", "materialised"}
ARMS = {
    "training": LORA_ARMS,
    "generation": LORA_ARMS,
    "joint": {"step", "meta_encoder", "prompt_branch", "parameter_decoder", "actor", "generator_update"},
    "rollouts": {"generate", "model.generate", "model.generate, as they come"},
}


def quick(dtype: str = "float32") -> Bench:
    return Bench(CPU, dtype, repeats=2, least_seconds=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(MEASUREMENTS))
def test_every_measurement_times_every_arm(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LM] = []

    def lm(self: Bench, *args: Any, original: Any = Bench.lm, **options: Any) -> LM:
        made.append(original(self, *args, **options))
        return made[-1]

    monkeypatch.setattr(Bench, "lm", lm)
    measured = MEASUREMENTS[name](quick(dtype), "tiny", TINY)
    assert (measured.name, measured.shape) == (name, "tiny")
    assert measured.seconds.keys() == ARMS[name]
    assert not measured.skipped
    assert all(len(times) == 2 and min(times) > 0 for times in measured.seconds.values())
    assert {*measured.against} <= measured.seconds.keys()
    assert {parameter.dtype for one in made for parameter in one.model.parameters()} == {getattr(torch, dtype)}
    if name in ("training", "joint"):
        assert measured.megabytes.keys() == ARMS[name]
    if name == "training":
        assert measured.megabytes["base"] < measured.megabytes["per_query"] < measured.megabytes["materialised"]
    if name == "joint":
        assert measured.megabytes["step"] >= max(measured.megabytes[part] for part in ("prompt_branch", "actor"))


def test_arms_run_in_the_models_precision() -> None:
    lm = quick("bfloat16").lm(TINY)
    prompts = random_ids(TINY, [TINY.prompt] * TINY.batch, 0)
    batch = list(zip(prompts, random_ids(TINY, [TINY.completion] * TINY.batch, 1), strict=True))
    found, skipped = arms.lora_arms(quick("bfloat16"), TINY, lm)[1:]
    assert found.keys() == LORA_ARMS
    assert not skipped
    for arm in found.values():
        assert {leaf.dtype for leaf in arm.leaves} <= {torch.bfloat16}
        arm.train(batch)
        if arm.gradient is not None:
            assert arm.gradient().dtype == torch.bfloat16
            assert bool(arm.gradient().isfinite().all())


def test_an_arm_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = arms.lora_arms

    def wrong(*args: object) -> object:
        lora, found, skipped = correct(*args)  # type: ignore[arg-type]
        found["materialised"] = replace(found["materialised"], values=found["materialised"].values * 1.5)
        return lora, found, skipped

    monkeypatch.setattr(measurements, "lora_arms", wrong)
    for name in ("training", "generation"):
        with pytest.raises(RuntimeError, match="materialised does not compute what per_query does"):
            MEASUREMENTS[name](quick(), "tiny", TINY)


def test_an_arm_beyond_memory_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "available_bytes", lambda self: 1000)
    measured = measurements.generation(quick(), "tiny", TINY)
    assert measured.seconds.keys() == LORA_ARMS - {"materialised"}
    assert "materialised  n/a: the linears once for each query are" in report.table(measured, TINY)


def allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["training", "generation"])
@pytest.mark.parametrize("when", ["as its tensors were made", "as it was checked"])
def test_an_arm_that_runs_out_of_memory_is_skipped_and_the_others_go_on(
    name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = arms._adapter_names

    def exhausting(*args: Any) -> arms.Arm:
        if when == "as its tensors were made":
            allocate_too_much()
        return replace(original(*args), applied=lambda rows: allocate_too_much())

    monkeypatch.setattr(arms, "_adapter_names", exhausting)
    measured = MEASUREMENTS[name](quick(), "tiny", TINY)
    assert measured.seconds.keys() == LORA_ARMS - {"adapter_names"}
    assert all(len(times) == 2 for times in measured.seconds.values())
    assert measured.skipped.keys() == {"adapter_names"}
    assert f"adapter_names  n/a: out of memory {when}: " in report.table(measured, TINY)


def test_weights_made_before_memory_ran_out_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = arms.lora_arms(quick(), TINY, quick().lm(TINY))[1]["materialised"]
    made: list[int] = []

    def baddbmm(*args: Any, original: Any = torch.baddbmm, **options: Any) -> torch.Tensor:
        made.append(1)
        return original(*args, **options) if len(made) < 5 else torch.empty(2**60)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    with pytest.raises(RuntimeError), arm.applied([0, 1]):
        pass
    assert len(made) == 5
    assert not [m for m in arm.lm.model.modules() if "forward" in m.__dict__]


def test_without_the_arm_that_others_are_compared_to_the_times_are_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "_base", lambda *args: allocate_too_much())
    measured = measurements.generation(quick(), "tiny", TINY)
    assert measured.seconds.keys() == LORA_ARMS - {"base"}
    head = report.table(measured, TINY).splitlines()[2]
    assert head.split() == ["arm", "ms", "x", "shared"]
    bar = Bar("generation", "tiny", "per_query", "base", 1.2)
    assert str(bar.verdict(measured, quick())).endswith("unmeasured (no time of base)")


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_memory_that_runs_out_late_takes_only_its_arm(fails_at: int) -> None:
    calls: list[str] = []

    def a() -> None:
        calls.append("a")
        if calls.count("a") == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    measured = Measurement("m", "s", "", ("b",))
    one = Bench(CPU, repeats=2, least_seconds=0)
    one.measure(measured, {"a": a, "b": lambda: calls.append("b")}, memory=True)
    assert {name: len(times) for name, times in measured.seconds.items()} == {"b": 2}
    assert measured.skipped == {"a": "out of memory in a run: CUDA out of memory. Tried to allocate 2 GiB."}
    assert measured.megabytes.keys() == {"b"}
    assert calls.count("a") == fails_at
    assert calls.count("b") == 2 + 1 + 2  # for memory, to warm up, two rounds


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), within_memory("a", "in a run", {}):
        raise RuntimeError("shapes differ")


def test_arms_run_in_turn_and_short_ones_often_enough() -> None:
    calls: list[str] = []
    one = Bench(CPU, repeats=3, least_seconds=0)
    times = one.time({name: lambda name=name: calls.append(name) for name in "ab"}, {})
    assert "".join(calls) == "abababab"  # the first round sets how often each is repeated
    assert {name: len(one) for name, one in times.items()} == {"a": 3, "b": 3}

    calls.clear()
    Bench(CPU, repeats=1, least_seconds=1e-3).time({"a": lambda: calls.append("a")}, {})
    assert len(calls) > 10  # an append takes far less than a millisecond


def test_ratios_are_taken_round_by_round() -> None:
    measured = Measurement("m", "s", "", ("a",), seconds={"a": [1.0, 2.0, 4.0, 10.0], "b": [2.0, 4.0, 8.0, 5.0]})
    assert measured.ratio("b", "a") == (1.625, 2.0, 2.0)
    assert measured.ratio("a", "a") == (1.0, 1.0, 1.0)
    assert median(measured.seconds["b"]) / median(measured.seconds["a"]) != 2.0


def test_bars_are_met_missed_or_unmeasured() -> None:
    measured = Measurement("m", "s", "", ("a",), seconds={"a": [1.0] * 3, "b": [1.1] * 3})
    cpu, cuda = quick(), Bench(torch.device("cuda"), "bfloat16")
    for bar, one, own, expected in (
        (Bar("m", "s", "b", "a", 1.15), cpu, True, "bar m at s, b / a <= 1.15x: 1.100x: met"),
        (Bar("m", "s", "b", "a", 1.05), cpu, True, "bar m at s, b / a <= 1.05x: 1.100x: missed"),
        (Bar("m", "s", "b", "a", 9.0, at_least=True), cpu, True, "bar m at s, b / a >= 9.00x: 1.100x: missed"),
        (Bar("m", "s", "b", "a", 1.15, device="cuda"), cuda, True, "bar m at s, b / a <= 1.15x: 1.100x: met"),
        (Bar("m", "s", "b", "a", 1.15), cpu, False, "<= 1.15x: unmeasured (not at the shape's own sizes)"),
        (Bar("m", "s", "b", "a", 1.15), quick("bfloat16"), True, "unmeasured (for float32 on cpu)"),
        (Bar("m", "s", "b", "a", 1.15), cuda, True, "unmeasured (for float32 on cpu)"),
        (Bar("m", "s", "b", "a", 1.15, device="cuda"), cpu, True, "unmeasured (for bfloat16 on cuda)"),
        (Bar("m", "s", "c", "a", 1.15), cpu, True, "unmeasured (no time of c)"),
    ):
        assert str(bar.verdict(measured, one, own)).endswith(expected)


def test_a_rate_is_held_to_its_floors() -> None:
    measured = Measurement("m", "s", "", ("a",), seconds={"a": [1.0] * 3})
    cuda = Bench(torch.device("cuda"), "bfloat16")
    bar = Bar("m", "s", "a", FLOOR, 0.4, at_least=True, device="cuda")
    # 421 TFLOP at 790 TFLOP/s are 533 ms.
    for seconds, expected in ((1.3, "0.410x: met"), (1.4, "0.381x: missed")):
        measured.rates["a"] = Rate("a joint step", seconds, 421, "TFLOP/s", 790.0)
        assert str(bar.verdict(measured, cuda)).endswith(expected)
        assert measured.rates["a"].share == pytest.approx(0.5329 / seconds, rel=1e-3)
    shown = str(measured.rates["a"])
    assert shown.startswith("1400 ms a joint step")
    assert re.findall(r"[\d.]+", shown) == ["1400", "301", "421", "532.9", "790", "38"]
    measured.rates["a"] = Rate("a joint step", 1.3, 421, "TFLOP/s", None)
    assert str(bar.verdict(measured, cuda)).endswith("unmeasured (no floor known for this device)")
    assert str(measured.rates["a"]).endswith("floor unmeasured (no peak TFLOP/s known)")


def test_floors_of_the_papers_pair_are_those_computed_by_hand() -> None:
    """Qwen2.5 7B under LoRA of rank 16, 3B with q and v of rank 8; 32 queries of 128 + 128 + 256 tokens: 421 TFLOP."""
    generator, actor = SHAPES["7b"], SHAPES["3b"]
    adapter = 16 * 28 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    q_and_v = 8 * 36 * (2048 + 2048 + 2048 + 256)
    assert q_and_v == pytest.approx(1.84e6, rel=1e-2)
    read = training_flop(generator, [256] * 32, 32 * 128, adapter)
    asked = training_flop(actor, [512] * 32, 32 * 256, q_and_v)
    assert (read + asked) / 1e12 == pytest.approx(421, rel=5e-3)
    # Decoding by 3B reads 6.17 GB a step; per-query factors make it 1.02 (q, v) and 1.16 times as much (all linears).
    everywhere = 8 * 36 * (2 * 4096 + 2 * 2304 + 3 * 13056)
    bare = decoding_bytes(actor, 2)
    assert bare / 1e9 == pytest.approx(6.17, abs=5e-3)
    assert decoding_bytes(actor, 2, factors=q_and_v) / bare == pytest.approx(1.02, abs=5e-3)
    assert decoding_bytes(actor, 2, factors=everywhere) / bare == pytest.approx(1.16, abs=5e-3)
    # Keys and values: 2 of 2 heads of 128 for each layer and token, 32 queries.
    assert decoding_bytes(actor, 2, cached=100) - bare == 2 * 32 * 36 * 100 * 2 * 2 * 128


def test_sizes_of_a_shape_are_those_of_its_model() -> None:
    model = quick().lm(TINY).model
    linears = [m.weight.numel() for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    assert (TINY.linears, TINY.head) == (sum(linears), model.get_output_embeddings().weight.numel())


def test_a_passes_products_are_those_that_torch_counts() -> None:
    """Without attention's, which torch counts in full and not where it is fused: the shape's last term taken off."""
    from torch.utils.flop_counter import FlopCounterMode

    arm = arms.lora_arms(quick(), TINY, quick().lm(TINY))[1]["base"]
    prompts = random_ids(TINY, [TINY.prompt] * TINY.batch, 0)
    batch = list(zip(prompts, random_ids(TINY, [TINY.completion] * TINY.batch, 1), strict=True))
    with FlopCounterMode(display=False) as counter:
        arm.train(batch)
    products = sum(
        n for name, n in counter.get_flop_counts()["Global"].items() if str(name).split(".")[1] in ("mm", "addmm")
    )
    length = TINY.prompt + TINY.completion - 1
    attention = 6 * TINY.layers * TINY.width * TINY.batch * length**2
    assert training_flop(TINY, [length] * TINY.batch, TINY.batch * TINY.completion) - attention == products


def test_peak_memory_is_the_most_held_at_a_time() -> None:
    def run() -> None:
        a = torch.zeros(250_000)  # 1 MB
        b = torch.cat([a, a])  # 3 MB held
        del a
        torch.cat([b, b])  # 2 + 4 MB held

    assert quick().peak_megabytes(run) == pytest.approx(6, rel=0.01)


def test_random_models_never_end_a_greedy_completion() -> None:
    lm = quick().lm(TINY)
    prompts = random_ids(TINY, [5, 9], 0)
    assert [len(ids) for ids in arms.stock_generate(lm, prompts, 12, do_sample=False)] == [12, 12]
    assert deviation(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == 0.75


def test_other_sizes_keep_a_heads_width() -> None:
    shape = TINY.with_sizes(width=64, layers=3, batch=None, rank=4)
    assert shape == replace(TINY, width=64, layers=3, heads=8, feed_forward=96, rank=4)


def test_other_sizes_are_the_actors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["7b"].with_sizes(width=256, layers=3, batch=2, rank=4)
    assert shape.actor is not None
    for one in (shape, shape.actor):
        assert (one.width, one.layers, one.batch, one.rank, one.width // one.heads) == (256, 3, 2, 4, 128)
    assert (shape.actor.vocabulary, shape.actor.feed_forward) == (151936, 256 * 11008 // 2048)

    made: list[Shape] = []

    def lm(self: Bench, shape: Shape, seed: int = 0, original: Any = Bench.lm) -> LM:
        made.append(shape)
        return original(self, shape, seed)

    monkeypatch.setattr(Bench, "lm", lm)
    pair = replace(TINY, actor=replace(TINY, layers=1, vocabulary=48)).with_sizes(
        width=16, layers=3, batch=2, rank=None
    )
    measured = measurements.joint(quick(), "pair", pair)
    assert [(one.width, one.layers, one.vocabulary) for one in made] == [(16, 3, 64), (16, 3, 48)]
    assert not measured.skipped


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny shapes, each timing one run."""
    monkeypatch.setitem(report.SHAPES, "nano", TINY)
    monkeypatch.setattr(report, "Bench", lambda *args: Bench(*args, least_seconds=0))


@pytest.fixture
def brief(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds in place of as many as a median needs."""
    monkeypatch.setattr(report, "Bench", lambda device, dtype, repeats: Bench(device, dtype, 2, least_seconds=0))


@pytest.mark.usefixtures("short")
def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "times.json"
    words = ["bench", "--device", "cpu", "--shape", "nano", "--only", "generation", "--json", str(file)]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("generation at nano (width 32, 2 layers, 3 queries, rank 2)") for line in lines)
    assert any(line.split()[0] == "per_query" for line in lines if line.strip())
    stored = json.loads(file.read_text(encoding="utf-8"))
    (measured,) = stored["measurements"]
    assert measured["sizes"]["batch"] == 3
    assert {len(times) for times in measured["seconds"].values()} == {9}
    assert {bar["result"] for bar in measured["bars"]} <= {"met", "missed"}
    # Every bar once, beside what was measured or as unmeasured.
    shown = [line.strip() for line in lines if line.startswith("  bar ")]
    assert len(shown) == len(BARS) == len(measured["bars"]) + len(stored["other_bars"])
    for bar in BARS:
        (line,) = [line for line in shown if line.startswith(f"bar {bar}:")]
        assert line.endswith((": met", ": missed") if bar.shape == "nano" else ": unmeasured (not asked for)")


@pytest.mark.usefixtures("brief")
def test_bars_are_for_a_shapes_own_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(device="cpu", shape="nano", only="generation", batch=2)
    assert "loop / per_query >= 10.00x: unmeasured (not at the shape's own sizes)" in capsys.readouterr().out


@pytest.mark.usefixtures("brief")
def test_a_run_that_is_cut_off_leaves_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: object) -> Measurement:
        raise KeyboardInterrupt

    monkeypatch.setitem(MEASUREMENTS, "generation", cut)
    file = tmp_path / "times.json"
    with pytest.raises(KeyboardInterrupt):
        bench.run(device="cpu", shape="nano", json_file=file)
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert [measured["name"] for measured in stored["measurements"]] == ["training"]
    assert [path.name for path in tmp_path.iterdir()] == ["times.json"]


@pytest.mark.usefixtures("brief")
def test_models_that_do_not_fit_leave_the_other_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MEASUREMENTS, "training", lambda *args: allocate_too_much())
    for name in ("generation", "joint"):
        monkeypatch.delitem(MEASUREMENTS, name)
    file = tmp_path / "times.json"
    bench.run(device="cpu", shape="nano", json_file=file)
    first, second = json.loads(file.read_text(encoding="utf-8"))["measurements"]
    assert (first["name"], first["seconds"], [*first["skipped"]]) == ("training", {}, ["all arms"])
    assert second["seconds"].keys() == ARMS["rollouts"]
    assert "all arms  n/a: out of memory before any was timed" in capsys.readouterr().out


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
        ({"json_file": Path("no/such/times.json")}, "--json no/such/times.json: not a file in a folder that exists"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.run(**({"shape": "nano", "device": "cpu"} | options))
