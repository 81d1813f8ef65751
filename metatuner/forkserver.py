"""A process that has everything imported and forks for each command: a command starts in 0.1 s instead of 5 s.

    with ForkServer() as server:
        done = server.run(["metatuner", "fit", "--config", ...], cwd=folder)

A `metatuner` command that finds the server's address in METATUNER_FORK_SERVER asks that server for a fork instead of
importing anything itself. So all jobs of a Snakemake run under `server.environment` use one server.

A fork keeps the server's code, and what libraries read from the environment at import (such as HF_HUB_OFFLINE). All
else comes from the caller, and a command ends with its caller. POSIX only.
"""

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from metatuner.errors import UserError
from metatuner.supervision import end_with_parent, forget_exit_functions

ADDRESS = "METATUNER_FORK_SERVER"
"""The environment variable with the path of a server's socket."""
PROGRAMS = {"metatuner": "metatuner.cli", "snakemake": "snakemake.cli"}
"""Commands that a server runs, and the modules of their `main(words)`."""
PRELOADED = tuple(
    """
    metatuner.plan.dag metatuner.run.packs metatuner.run.tuning metatuner.run.efficiency metatuner.run.evaluation
    metatuner.run.swaps metatuner.nano.bars
    metatuner.method.training metatuner.analysis.claims metatuner.analysis.report metatuner.analysis.diff
    metatuner.authoring.conformance snakemake.cli snakemake.executors.local snakemake.report.html_reporter
    peft peft.tuners.lora.layer dspy.teleprompt optuna matplotlib.pyplot
    matplotlib.backends.backend_pdf transformers.models.llama.modeling_llama transformers.generation.utils
    """.split()
)
"""What the server imports; each command imports what is missing here."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 10.0
"""Seconds within which a caller must send its request: meanwhile, no other caller is served."""
_LOST = 70  # EX_SOFTWARE: the server ended before the command


class NoServer(UserError):
    """No server answers at the address that the environment names."""


# ---- for callers -----------------------------------------------------------------------------------------------


class ForkServer:
    """Starts a server and stops it again.

    Args:
        owner: the process with which the server ends if nobody stops it earlier; None: this process.

    Raises:
        UserError: the server does not start; its last line of output is in the message.
    """

    def __init__(self, owner: int | None = None) -> None:
        # A socket's path may have at most 103 characters, so it is not below TMPDIR.
        short = Path("/tmp")
        self._home = tempfile.TemporaryDirectory(prefix="mt-", dir=short if short.is_dir() else None)
        self.address = Path(self._home.name) / "s"
        log = self.address.with_name("log")
        words = [sys.executable, "-m", "metatuner.forkserver", str(self.address), str(owner or os.getpid())]
        # The server writes one word to the pipe once it listens. If it dies first, the pipe closes without the word.
        with open(log, "wb") as out:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=out,
                env=_server_environment(),
                start_new_session=True,  # Ctrl-C is for the commands
                cwd="/",  # so that it is not taken for a process of the run
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.read()
        self._process.stdout.close()
        if ready != b"ready":
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
            self.stop()
            raise UserError(f"the fork server does not start: {lines[-1]}")

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the server's address: `metatuner` commands in it become forks."""
        return {**os.environ, ADDRESS: str(self.address)}

    def run(
        self, words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a fork; returns its output as text.

        Args:
            words: the command's name (`metatuner` or `snakemake`) and its arguments.
            cwd: its folder; None: this process's folder.
            env: its environment; None: `environment`.
        """
        return run(self.address, words, cwd, self.environment if env is None else env)

    def stop(self) -> None:
        """End the server and its commands that are still running."""
        self._process.terminate()
        self._process.wait()
        self._home.cleanup()

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()


def run(
    address: Path, words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a fork of the server at an address; returns its output as text. See `ForkServer.run`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as none:
        streams = (none.fileno(), out.fileno(), err.fileno())
        with _ask(address, words, cwd or Path.cwd(), os.environ if env is None else env, streams) as connection:
            status = _wait(connection)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return subprocess.CompletedProcess(list(words), status, *texts)


def become(words: Sequence[str]) -> int:
    """Run a command in a fork of the server that the environment names; returns its exit status.

    The fork acts as this process: it has the same standard streams, and stop signals are passed on to it. The command
    line calls this before it imports anything heavy.

    Raises:
        NoServer: no server answers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # until there is a fork to pass them on to
    try:
        connection = _ask(Path(os.environ[ADDRESS]), words, Path.cwd(), os.environ, (0, 1, 2))
    except NoServer:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise

    def pass_on(number: int, frame: object) -> None:
        with suppress(OSError):  # the command has just ended
            connection.sendall(bytes([number]))

    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    if (status := _wait(connection)) == _LOST:  # the connection closes with this process
        print("metatuner: the fork server ended, or had no memory for this command; run it again", file=sys.stderr)
    return status


def _ask(
    address: Path, words: Sequence[str], cwd: Path, env: Mapping[str, str], streams: Sequence[int]
) -> socket.socket:
    request = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)}).encode()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
        socket.send_fds(connection, [struct.pack("!I", len(request))], list(streams))
        connection.sendall(request)
    except OSError as error:
        connection.close()
        raise NoServer(f"{ADDRESS}={address}: no fork server answers there ({error.strerror}); unset it") from None
    return connection


def _receive(connection: socket.socket, count: int) -> bytes:
    """`count` bytes; fewer if the other side is gone."""
    found = b""
    while len(found) < count:
        with suppress(ConnectionError, TimeoutError):
            part = connection.recv(count - len(found))
            if part:
                found += part
                continue
        break
    return found


def _wait(connection: socket.socket) -> int:
    answer = _receive(connection, 4)
    return int(struct.unpack("!i", answer)[0]) if len(answer) == 4 else _LOST


# ---- the server ------------------------------------------------------------------------------------------------


def _server_environment() -> dict[str, str]:
    # The server must not ask another server. PYTHONHASHSEED fixes the order of sets.
    return {**{name: value for name, value in os.environ.items() if name != ADDRESS}, "PYTHONHASHSEED": "0"}


def _preload() -> None:
    """Import what commands need; `UserError` if this starts threads: a fork copies their locks, but not the threads."""
    for name in PRELOADED:
        importlib.import_module(name)
    from metatuner.config import load_config
    from metatuner.plan import Plan

    plan = Plan(load_config("nano"))
    assert plan.grid.cells  # reads and hashes the code of all methods once
    gc.collect()
    gc.freeze()  # collections in a fork then leave memory that it shares with the server alone
    # A library's own threads are not seen (OMP_NUM_THREADS=1 keeps BLAS from starting some).
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threads:
        raise UserError(f"imports have started threads, which a fork would lose: {', '.join(threads)}")


class _Server:
    """The server's loop: takes requests, forks for them, passes signals on, reports exit statuses."""

    def __init__(self, address: Path, owner: int) -> None:
        self.owner, self.pid = owner, os.getpid()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(address))
        self.listener.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.ended, wakeup = socket.socketpair()
        self.wakeup = wakeup
        for end in (self.ended, wakeup):
            end.setblocking(False)
        self.selector.register(self.ended, selectors.EVENT_READ)
        self.running: dict[int, socket.socket] = {}
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only so that it writes to `wakeup`
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)

    def serve(self) -> Sequence[str] | None:
        """Serve until the owner is gone, then return None; in a fork, return the words of the command to run."""
        try:
            while psutil.pid_exists(self.owner):
                for key, _ in self.selector.select(timeout=1.0):
                    if key.fileobj is self.listener:
                        words = self._take(self.listener.accept()[0])
                        if words is not None:
                            return words
                    elif key.fileobj is self.ended:
                        self._reap()
                    else:
                        self._pass_on(key.fileobj)  # type: ignore[arg-type]
            return None
        finally:
            for pid in self.running:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)

    def _take(self, connection: socket.socket) -> Sequence[str] | None:
        """Fork for a request; returns None in the server, and the words in the fork."""
        streams: list[int] = []
        try:
            connection.settimeout(_PATIENCE)
            head, streams, _, _ = socket.recv_fds(connection, 4, 3)
            body = _receive(connection, struct.unpack("!I", head)[0]) if len(head) == 4 else b""
            connection.settimeout(None)
            request = json.loads(body)
            pid = os.fork()
        except (ValueError, OSError):  # the caller died during its request, or no process can be added
            connection.close()
            for stream in streams:
                os.close(stream)
            return None
        if pid:
            with suppress(OSError):  # called here and in the fork: either may be first
                os.setpgid(pid, pid)
            for stream in streams:
                os.close(stream)
            self.running[pid] = connection
            self.selector.register(connection, selectors.EVENT_READ, pid)
            return None
        self._let_go(connection)
        os.setpgid(0, 0)
        end_with_parent(self.pid, _LOST)
        os.environ.clear()
        os.environ.update(request["env"])
        tempfile.tempdir = None  # TMPDIR is the caller's
        forget_exit_functions()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
        os.chdir(request["cwd"])
        return list(request["words"])

    def _let_go(self, connection: socket.socket) -> None:
        """In a fork: stop being a server."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.selector.close()
        for held in (self.listener, self.ended, self.wakeup, connection, *self.running.values()):
            held.close()
        self.running = {}

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self.ended.recv(4096)
        for pid in list(self.running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                connection = self.running.pop(pid)
                if connection in self.selector.get_map():
                    self.selector.unregister(connection)
                code = os.waitstatus_to_exitcode(status)
                with suppress(OSError):
                    connection.sendall(struct.pack("!i", code if code >= 0 else 128 - code))  # as in a shell
                connection.close()

    def _pass_on(self, connection: socket.socket) -> None:
        """Pass a caller's signals on to its command; kill the command if the caller is gone."""
        if connection not in self.running.values():  # its command has just ended
            return
        pid = next(pid for pid, held in self.running.items() if held is connection)
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self.selector.unregister(connection)
        with suppress(ProcessLookupError, PermissionError):
            for number in numbers or [signal.SIGKILL]:
                os.killpg(pid, number)


def main(address: str, owner: str) -> int:
    """Run the server; in each of its forks, run the command and return its exit status."""
    ready = os.dup(1)
    os.dup2(2, 1)  # output of imports
    _preload()
    server = _Server(Path(address), int(owner))
    os.write(ready, b"ready")
    os.close(ready)
    words = server.serve()
    if words is None:
        for left in (Path(address), Path(address).with_name("log")):  # left by a killed owner
            left.unlink(missing_ok=True)
        with suppress(OSError):
            Path(address).parent.rmdir()
        return 0
    status = 1
    try:
        status = _command(words)
    finally:
        # This skips the interpreter's own shutdown, which would tear down (and so copy) all imported modules.
        try:
            threading._shutdown()  # type: ignore[attr-defined]  # ends executors' threads, waits for the others
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _command(words: Sequence[str]) -> int:
    """Run a command as its console script would; returns its exit status."""
    sys.argv = list(words)
    if words[0] not in PROGRAMS:
        print(f"{words[0]}: the fork server runs {' and '.join(PROGRAMS)} alone", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(PROGRAMS[words[0]]).main(words[1:]) or 0)
    except SystemExit as leaving:
        if not isinstance(leaving.code, str):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:  # as the interpreter does
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
