"""Whether Slurm takes the jobs of a run. Snakemake does not print why sbatch refuses a group, so this asks before."""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from metatuner import progress
from metatuner.errors import UserError

OPTIONS = {
    "slurm_partition": "--partition",
    "slurm_account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "gres": "--gres",
    "gpu": "--gpus",
    "mem_mb": "--mem",
    "runtime": "--time",
    "cores": "--cpus-per-task",
}
"""The option of sbatch for each resource of a profile."""
PATIENCE = 120.0
"""Seconds to wait for Slurm's controller."""
UNSURE = "not available"
"""Part of what sbatch says if no node could ever take the job, and also if all nodes that could are down now."""


def check_slurm(jobs: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Ask sbatch, without submitting anything, whether it takes jobs.

    Args:
        jobs: names of jobs, with their resources by the names in `OPTIONS`; others are ignored.

    Raises:
        UserError: there is no sbatch, or it refuses a job. If nodes may only be down, this is said, not raised.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch: not found; run this where Slurm's commands are on the path (a login node), or without the profile"
        )
    asked: dict[tuple[str, ...], str] = {}
    for name, resources in jobs:
        words = tuple(f"{option}={resources[key]}" for key, option in OPTIONS.items() if resources.get(key))
        asked.setdefault(words, name)
    for words, name in asked.items():
        reason = _refusal(words)
        if reason is None:
            continue
        remedy = "change these resources in the profile (default-resources, set-resources, cores)"
        if any(word.startswith("--gpus") for word in words):
            remedy += "; if the nodes have no GPU, use workflow/profiles/slurm-cpu"
        given = ", ".join(word.removeprefix("--").replace("=", " ") for word in words) or "no resources"
        if UNSURE in reason:
            progress.say(f"sbatch may refuse {name} ({given}): {reason}, or not now; {remedy}")
        else:
            raise UserError(f"sbatch refuses {name} ({given}): {reason}; {remedy}")


def cluster_jobs(dag: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names and resources of the jobs that Snakemake submits to a cluster; grouped steps are one job."""
    for step in dag.needrun_jobs():
        if not step.is_local:
            job = dag.get_job_group(step) or step
            resources = {name: job.resources.get(name) for name in (*OPTIONS, "_cores")}
            yield f"rule {step.rule.name}", {**resources, "cores": resources["_cores"]}


def _refusal(words: Iterable[str]) -> str | None:
    """Why sbatch would refuse a job with these options; None if it takes it."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only", "--ntasks=1", *words, "--wrap=true"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE:g} s"
    lines = [line.removeprefix("sbatch: error: ").strip() for line in done.stderr.splitlines() if line.strip()]
    said = "; ".join(lines) or f"exit status {done.returncode}"
    return said if done.returncode else None
