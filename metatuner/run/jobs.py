"""The jobs of a run on one machine are forks of one process: each starts in 0.1 s instead of 5 s."""

import atexit
import os
from pathlib import Path

from metatuner import progress
from metatuner.errors import UserError
from metatuner.forkserver import ADDRESS, ForkServer

GPU = Path("/dev/nvidiactl")
"""There if the machine has an NVIDIA GPU. Its driver does not bear forks, so jobs are then processes of their own."""


def start_server(*, local: bool, deployed: bool) -> None:
    """Start a fork server for the jobs of this process, and stop it with this process.

    Jobs find it through the environment. If it does not start, they do without it.

    Args:
        local: whether jobs run on this machine.
        deployed: whether jobs run in environments of their own (conda, containers).
    """
    if not local or deployed or GPU.exists() or ADDRESS in os.environ or not hasattr(os, "fork"):
        return
    try:
        server = ForkServer()
    except UserError as error:
        progress.say(f"{error}; each job imports everything itself")
        return
    atexit.register(server.stop)
    os.environ[ADDRESS] = str(server.address)
