"""Predicted cost: sums of metered means, worked out by hand."""

import json
from pathlib import Path

import pytest

from metatuner.cost.metered import Metered, Work, describe, forecast, read_metered
from metatuner.errors import UserError


def write(
    root: Path,
    kind: str,
    key: str,
    method: str,
    benchmarks: list[str],
    seconds: float,
    peak: int = 10**9,
    gpu: int = 0,
    size: int = 0,
) -> None:
    folder = root / f"{kind}s" / key
    folder.mkdir(parents=True)
    told = {"method": method} | ({"benchmark": benchmarks[0]} if kind == "cell" else {"trained_on": benchmarks})
    (folder / f"{kind}.json").write_text(json.dumps(told))
    cost = {"seconds": seconds, "peak_memory_bytes": peak, "peak_gpu_memory_bytes": gpu}
    (folder / "cost.json").write_text(json.dumps(cost))
    (folder / "weights").write_bytes(b"x" * size)


def test_what_is_left_costs_the_mean_of_its_benchmark_or_else_of_its_method(tmp_path: Path):
    write(tmp_path, "fit", "a", "sft", ["math"], 10.0)
    write(tmp_path, "fit", "b", "sft", ["math"], 20.0, peak=3 * 10**9)
    write(tmp_path, "fit", "c", "sft", ["gsm8k", "math"], 60.0)
    write(tmp_path, "cell", "d", "sft", ["math"], 2.0)
    metered = read_metered(tmp_path)
    assert [each.seconds for each in metered["fit", "sft", "math"]] == [10.0, 20.0]
    work = [
        Work("fit", "sft", "math", done=False),  # 15
        Work("fit", "sft", "math", done=True),
        Work("fit", "sft", "cosmosqa", done=False),  # 30, the method's mean
        Work("cell", "sft", "hotpotqa", done=False),  # 2
        Work("fit", "dpo", "math", done=False),
    ]
    lines = forecast(work, metered)
    assert lines["sft"].seconds == {"fit": 45.0, "cell": 2.0}
    assert lines["sft"].left == {"fit": 2, "cell": 1}
    assert lines["dpo"].unknown == {"fit": 1, "cell": 0}
    text = describe(lines, metered)
    assert " 3.00 GB" in text  # the largest process
    assert text.splitlines()[-1].endswith(": dpo.")  # not metered, so in no sum
    (total,) = [line.split() for line in text.splitlines() if line.startswith("total")]
    assert total[1:6] == ["3", "1", "22.5", "2.0", "0.01"]


def test_a_fit_on_several_benchmarks_costs_what_such_a_fit_did(tmp_path: Path):
    write(tmp_path, "fit", "a", "sft", ["gsm8k", "math"], 60.0)
    write(tmp_path, "fit", "b", "sft", ["gsm8k"], 10.0)
    lines = forecast([Work("fit", "sft", "gsm8k+math", done=False)], read_metered(tmp_path))
    assert lines["sft"].seconds == {"fit": 60.0, "cell": 0.0}


def test_the_costliest_method_comes_first_and_disk_is_the_mean_of_what_was_metered(tmp_path: Path):
    for key, method, seconds, size in (("a", "sft", 10.0, 10**7), ("b", "sft", 20.0, 3 * 10**7), ("c", "bpo", 9.0, 0)):
        write(tmp_path, "fit", key, method, ["math"], seconds, size=size)
    metered = read_metered(tmp_path)
    work = [Work("fit", name, "math", done=False) for name in ("bpo", "sft", "sft")]
    lines = forecast(work, metered)
    assert lines["sft"].size == pytest.approx(4 * 10**7, rel=0.001)  # two fits of 20 MB in the mean
    table = [line.split() for line in describe(lines, metered).splitlines()]
    assert [row[0] for row in table[1:4]] == ["sft", "bpo", "total"]
    assert [row[-1] for row in table[1:4]] == ["0.04", "0.00", "0.04"]


def test_memory_on_a_gpu_is_that_of_the_gpu(tmp_path: Path):
    write(tmp_path, "fit", "a", "sft", ["math"], 1.0, peak=10**9, gpu=5 * 10**9)
    write(tmp_path, "fit", "b", "sft", ["math"], 1.0, peak=3 * 10**9, gpu=2 * 10**9)
    found = read_metered(tmp_path)
    assert [each.peak_memory_bytes for each in found["fit", "sft", "math"]] == [5 * 10**9, 2 * 10**9]


def test_disk_is_what_folders_hold(tmp_path: Path):
    write(tmp_path, "cell", "a", "sft", ["math"], 1.0)
    (tmp_path / "cells" / "a" / "more").mkdir()
    (tmp_path / "cells" / "a" / "more" / "other").write_bytes(b"x" * 5000)
    (found,) = read_metered(tmp_path)["cell", "sft", "math"]
    own = sum((tmp_path / "cells" / "a" / name).stat().st_size for name in ("cell.json", "cost.json"))
    assert found == Metered(1.0, 10**9, 5000 + own)


def test_an_empty_folder_is_no_metered_run(tmp_path: Path):
    with pytest.raises(UserError, match="no metered fit or cell"):
        read_metered(tmp_path)
