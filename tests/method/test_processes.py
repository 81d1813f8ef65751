"""Joint training on several processes is that of one: parameters, losses and gradient norms up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.toys import processes as joint_processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    made = tmp_path_factory.mktemp("processes")
    # Despite its name, this flag starts processes on CPUs too, if the script's Accelerator asks for them.
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = subprocess.run(
        [*launch, joint_processes.__file__, str(made)],
        # Torch leaves folders where temporary files go.
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path_factory.mktemp("torch"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", joint_processes.RUNS)
def test_two_processes_train_what_one_trains(folder: Path, name: str) -> None:
    expected, events = joint_processes.train(name, None)
    for rank in (0, 1):
        found = load_file(folder / f"{name}-{rank}-of-2.safetensors")
        assert found.keys() == expected.keys()
        for parameter in expected:
            torch.testing.assert_close(found[parameter], expected[parameter], rtol=0, atol=1e-8)
    logged = json.loads((folder / f"{name}-0-of-2.json").read_text(encoding="utf-8"))
    assert [event.keys() for event in logged] == [event.keys() for event in events]
    for one, other in zip(logged, events, strict=True):
        numbers = {key: value for key, value in other.items() if key != "event"}
        assert {key: one[key] for key in numbers} == pytest.approx(numbers, rel=1e-9)
    assert json.loads((folder / f"{name}-1-of-2.json").read_text(encoding="utf-8")) == []
