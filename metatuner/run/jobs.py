"""The jobs of a run on one machine are forks of one process: each starts in 0.1 s instead of 5 s."""

import atexit
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from metatuner import progress
from metatuner.errors import UserError
from metatuner.forkserver import ADDRESS, ForkServer

GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
"""There if the machine has a GPU of NVIDIA, AMD, or a virtual one of Windows. Drivers do not bear forks, so jobs are
then processes of their own."""


def start_server(*, local: bool, deployed: bool) -> None:
    """Start a fork server for the jobs of this process, and stop it with this process.

    Jobs find it through the environment. If it does not start, they do without it. Linux only.

    Args:
        local: whether jobs run on this machine.
        deployed: whether jobs run in environments of their own (conda, containers).
    """
    if not local or deployed or ADDRESS in os.environ or sys.platform != "linux" or any(gpu.exists() for gpu in GPUS):
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
