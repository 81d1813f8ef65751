"""The jobs of a run on one machine are forks of one process: each starts in 0.1 s instead of 5 s."""

import atexit
import os
import sys
from collections.abc import Callable, Sequence

from metatuner import progress
from metatuner.cost.declared import Memory
from metatuner.errors import UserError
from metatuner.forkserver import ADDRESS, ForkServer
from metatuner.plan.dag import Dag
from metatuner.run.machine import has_gpu


def start_server(*, local: bool, deployed: bool) -> None:
    """Start a fork server for the jobs of this process, and stop it with this process.

    Jobs find it through the environment. If it does not start, they do without it. Linux only.

    Args:
        local: whether jobs run on this machine.
        deployed: whether jobs run in environments of their own (conda, containers).
    """
    # Drivers of GPUs do not bear forks, so jobs are then processes of their own.
    if not local or deployed or ADDRESS in os.environ or sys.platform != "linux" or has_gpu():
        return
    try:
        server = ForkServer()
    except (UserError, OSError) as error:
        progress.say(f"{error}; each job imports everything itself")
        return
    atexit.register(server.stop)
    os.environ[ADDRESS] = str(server.address)


def runs_group(words: Sequence[str]) -> bool:
    """Whether a Snakemake with these arguments runs the steps of a group, inside a cluster's job.

    The Snakemake that only passes the group on (to Slurm's `srun`) names an executor.
    """
    return "--local-groupid" in words and "--executor" not in words


def memory_of(dag: Dag, *, local: bool) -> dict[str, dict[str, Callable[..., int]]]:
    """The predicted memory of each rule's jobs, as Snakemake's resource `mem_mb`.

    Nothing is declared where jobs run elsewhere (profiles say what they get) or on a GPU.
    """
    rules = ("fit", "evaluate", "efficiency", "tune_warmup", "tune_one")
    models = dag.plan.config.models
    devices = {model.device for model in (models.actor, *models.generators.values())}
    if not local or devices - {"auto", "cpu"} or ("auto" in devices and has_gpu()):
        return {rule: {} for rule in rules}
    memory = Memory(dag.plan)
    found: list[Callable[..., int]] = [
        lambda wildcards: memory.of_fits(wildcards.pack),
        lambda wildcards: memory.of_evaluations(wildcards.pack),
        lambda wildcards: memory.of_timings,
        lambda wildcards: memory.of_warm_ups(wildcards.benchmark),
        lambda wildcards: memory.of_search(wildcards.method, wildcards.benchmark),
    ]
    return {rule: {"mem_mb": each} for rule, each in zip(rules, found, strict=True)}
