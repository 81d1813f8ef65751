"""A Slurm cluster of one node: Debian's programs, started by hand in a folder, without systemd and without a database.

It needs no root: the daemons and all jobs belong to whoever runs the tests. Its node has no GPU.
"""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from tests.toys.runs import wait_until, with_path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
PLACES = f"{os.environ['PATH']}:/usr/sbin:/sbin"
"""Where the programs are looked for: the daemons are not on everyone's path."""

CONFIG = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=200000
PartitionName=toy Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""The node claims more memory than this machine may have: what jobs of the profile reserve is far above their use."""


def missing() -> list[str]:
    """The programs of Slurm that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]


def _free_ports(count: int) -> list[int]:
    with_socket = [socket.socket() for _ in range(count)]
    for each in with_socket:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in with_socket]
    for each in with_socket:
        each.close()
    return ports


class Cluster:
    """Starts the daemons; `stop` ends them and all that they have started.

    Args:
        folder: an empty folder for configuration, state and logs. Its path must be short, for a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        folder.chmod(0o711)  # munged wants its socket within everyone's reach
        controller, daemon = _free_ports(2)
        host, user = socket.gethostname().partition(".")[0], psutil.Process().username()
        self.config.write_text(CONFIG.format(folder=folder, host=host, user=user, controller=controller, daemon=daemon))
        # The executor takes SLURM_CONF, as all of Slurm's variables, from the environment of `srun`.
        srun = folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.config} exec {shutil.which("srun", path=PLACES)} "$@"\n')
        srun.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """An environment in which Slurm's commands speak to this cluster."""
        inherited = {name: value for name, value in with_path().items() if not name.startswith("SLURM_")}
        path = f"{self.folder / 'bin'}:{inherited['PATH']}:/usr/sbin:/sbin"
        return {**inherited, "PATH": path, "SLURM_CONF": str(self.config)}

    def start(self) -> None:
        """Start all daemons and wait until the node is idle."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        words = [f"--key-file={key}"]
        for option in ("socket", "pid-file", "log-file", "seed-file"):
            words.append(f"--{option}={self.folder / 'munge'}.{option.removesuffix('-file')}")
        self._start("munged", "--foreground", "--force", *words)
        wait_until((self.folder / "munge.socket").exists, "munged")
        self._start("slurmctld", "-D")
        self.start_node()

    def start_node(self) -> None:
        """Start slurmd and wait until jobs can run."""
        self._start("slurmd", "-D")
        wait_until(lambda: self.ask("sinfo", "-h", "-o", "%T") in ("idle", "mixed", "allocated"), "a node that is up")

    def kill_node(self) -> None:
        """kill -9 slurmd. The jobs that it has started go on."""
        daemon = self.daemons.pop("slurmd")
        daemon.kill()
        daemon.wait()

    def ask(self, *words: str) -> str:
        """The output of one of Slurm's commands; empty if it fails."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def stop(self) -> None:
        """End the daemons, and kill what is left of their jobs."""
        self.ask("scancel", "--state=PENDING")
        for name in ("slurmd", "slurmctld", "munged"):
            if daemon := self.daemons.pop(name, None):
                daemon.terminate()
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(10)
                daemon.kill()
                daemon.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # a job's processes are children of init, and know their cluster
                if process.environ().get("SLURM_CONF") == str(self.config) and process.pid != os.getpid():
                    process.send_signal(signal.SIGKILL)

    def _start(self, name: str, *words: str) -> None:
        program = shutil.which(name, path=PLACES)
        assert program is not None
        with (self.folder / f"{name}.out").open("wb") as out:
            self.daemons[name] = subprocess.Popen(
                [program, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment,
                cwd=self.folder,
            )
