"""Jobs that Slurm would refuse are named before a run, in one line with the profile's keys."""

from pathlib import Path

import pytest

from metatuner.errors import UserError
from metatuner.run import clusters

GPU_JOB = ("rule fit", {"slurm_partition": "batch", "gpu": 1, "mem_mb": 64000, "runtime": 720, "cores": 1})
CPU_JOB = ("rule data", {"slurm_partition": "batch", "gpu": 0, "mem_mb": 4000, "runtime": 15, "cores": 2})


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for sbatch that keeps its arguments and says what the file `says` holds."""
    program = tmp_path / "sbatch"
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$*" >> asked\n[ -f says ] || exit 0\n/bin/cat says >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_without_sbatch_the_remedy_is_a_login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"sbatch: not found.*login node"):
        clusters.check_slurm([])


def test_each_kind_of_job_is_asked_for_once_and_nothing_is_submitted(sbatch: Path) -> None:
    clusters.check_slurm([GPU_JOB, CPU_JOB, ("rule evaluate", GPU_JOB[1])])
    assert (sbatch / "asked").read_text().splitlines() == [
        "--test-only --ntasks=1 --partition=batch --gpus=1 --mem=64000 --time=720 --cpus-per-task=1 --wrap=true",
        "--test-only --ntasks=1 --partition=batch --mem=4000 --time=15 --cpus-per-task=2 --wrap=true",
    ]


def test_a_refusal_is_one_line_with_slurms_reason_and_the_resources(sbatch: Path) -> None:
    (sbatch / "says").write_text("sbatch: error: invalid partition specified: batch\nallocation failure: no such\n")
    with pytest.raises(UserError) as raised:
        clusters.check_slurm([CPU_JOB])
    assert str(raised.value) == (
        "sbatch refuses rule data (partition batch, mem 4000, time 15, cpus-per-task 2): invalid partition specified: "
        "batch; allocation failure: no such; change these resources in the profile (default-resources, set-resources, "
        "cores)"
    )


def test_a_refused_gpu_leads_to_the_profile_without_gpus(sbatch: Path) -> None:
    (sbatch / "says").write_text("sbatch: error: Invalid generic resource (gres) specification\n")
    with pytest.raises(UserError, match=r"gpus 1.*if the nodes have no GPU, use workflow/profiles/slurm-cpu"):
        clusters.check_slurm([GPU_JOB])


def test_nodes_that_may_only_be_down_are_a_warning(sbatch: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Slurm 22.05 says the same of a node that is drained and of a job that no node could take."""
    (sbatch / "says").write_text("allocation failure: Requested node configuration is not available\n")
    clusters.check_slurm([CPU_JOB, GPU_JOB])
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert "sbatch may refuse rule data (partition batch" in said[0]
    assert "use workflow/profiles/slurm-cpu" in said[1]
