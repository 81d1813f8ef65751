"""What `metatuner doctor` finds: the machine, and what a preset lacks on it, each with its remedy."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metatuner.config import Config, load_config
from metatuner.cost.declared import Memory
from metatuner.plan import Plan
from metatuner.run import doctor
from metatuner.run.doctor import Finding, examine
from tests.toys.commands import step
from tests.toys.lm import save_tiny


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def config(**keys: Any) -> Config:
    return load_config("tiny", {"run": "main", **{name.replace("__", "."): value for name, value in keys.items()}})


def missing(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.status == "missing"]


def test_a_preset_that_needs_nothing_from_outside_lacks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert step("doctor", config()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok ", "note ")) for line in lines)
    for what in (
        "cores: ",
        "memory: ",
        "torch: ",
        "GPU",
        "disk: ",
        "models.actor: nano:actor",
        "gsm8k: ",
        "batch_tokens",
    ):
        assert any(what in line for line in lines), what


def test_a_model_that_is_not_there_is_missing_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save_tiny(tmp_path / "whole")
    assert doctor._model("models.actor", config(models__actor__path=str(whole)).models.actor).status == "ok"
    for file in whole.glob("*.safetensors"):
        file.unlink()
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    for path, told in (
        (str(whole), "no weights in safetensors"),
        (str(tmp_path / "none"), "no config.json, no tokenizer"),
        ("$NO_SUCH_FOLDER/model", "environment variable $NO_SUCH_FOLDER is not set"),
        ("owner/name", "owner/name is not cached, and not reached on the Hub (HF_HUB_OFFLINE is set)"),
    ):
        found = doctor._model("models.actor", config(models__actor__path=path).models.actor)
        assert (found.status, told in found.text, "models.actor.path" in found.text) == ("missing", True, True), found


def test_rows_and_a_gpu_that_are_not_there_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacking = config(
        benchmarks__gsm8k__source="local", benchmarks__gsm8k__path=str(tmp_path), models__actor__device="cuda:7"
    )
    assert step("doctor", lacking) == 1
    out = capsys.readouterr().out
    assert f"missing  benchmarks.gsm8k.path: no file {tmp_path}/gsm8k/train.jsonl" in out
    assert "missing  models.actor.device: cuda:7, but torch sees no GPU; set auto or cpu" in out
    assert "missing: a run of preset tiny cannot end here" in out.splitlines()[-1]


def test_a_job_larger_than_the_memory_is_missing_with_the_batch_tokens_that_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = config(batch_tokens=2**20)
    room = 2_000_000_000
    monkeypatch.setattr(doctor, "memory_bytes", lambda: room)
    (told,) = missing(list(examine(made)))
    assert "the largest job, of " in told
    fitting = int(told.partition("set batch_tokens to ")[2].partition(" ")[0])
    plan = Plan(made)
    assert (
        max(Memory(plan, fitting).by_method.values()) <= room / 1e6 < max(Memory(plan, 2 * fitting).by_method.values())
    )
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 500_000_000)
    (told,) = missing(list(examine(made)))
    assert "lower its batch_size" in told
