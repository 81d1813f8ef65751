"""`metatuner` commands in a fork of the test process, for tests in which a process of its own is not what is tested.

A fork has all that is imported already: a command costs what it does, and not the seconds in which torch is imported.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300.0
"""Seconds that a command may take, as `metatuner.authoring.conformance` has it."""


def metatuner(
    *words: str, cwd: Path, environment: Mapping[str, str] | None = None, watch: Path | None = None
) -> tuple[int, str]:
    """The status of a command and all that it wrote; `watch` names a file for what it opens."""
    import torch  # noqa: F401  # once, in the process that is forked
    import transformers.models.llama.modeling_llama  # noqa: F401

    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
        pid = os.fork()
        if pid == 0:
            _command(words, told.fileno(), cwd, environment or {}, watch)
        deadline = time.monotonic() + PATIENCE
        while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        told.seek(0)
        return os.waitstatus_to_exitcode(found[1]), told.read()


def _command(words: Sequence[str], told: int, cwd: Path, environment: Mapping[str, str], watch: Path | None) -> None:
    """Runs in the fork, which ends with it."""
    status = 1
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(told, stream)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        os.chdir(cwd)
        os.environ.update(environment)
        tempfile.tempdir = None
        if watch is None:
            from metatuner.cli import main

            status = main(list(words))
        else:
            from metatuner.authoring import watched

            sys.argv = ["watched", str(watch), *words]
            status = watched.main()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def quick_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check-method`'s commands are forks, but the one that it kills."""
    from metatuner.authoring.conformance import TinyWorld
    from metatuner.errors import UserError

    def run(self: Any, plan: Any, *words: str, check: bool = True, watch: Path | None = None) -> tuple[int, str]:
        told = [*words, "--config", str(plan.layout.config)]
        status, said = metatuner(*told, cwd=self.home, environment=self.environment(), watch=watch)
        if check and status:
            raise UserError(f"`metatuner {' '.join(words)}` failed: {said[-1000:]}")
        return status, said

    monkeypatch.setattr(TinyWorld, "run", run)
