"""A headless Chromium that runs expressions in a page, controlled through pipes (Chrome DevTools Protocol)."""

import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60.0
"""Seconds that a page may take to be ready."""


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the temporary files that the browser leaves when it is killed.

    Its path is short whatever TMPDIR is, because Chromium aborts if a socket in it has a path of more than 107
    characters.
    """
    return tempfile.TemporaryDirectory(prefix="page-", dir="/tmp", ignore_cleanup_errors=True)


class Browser:
    """One page; a context manager."""

    def __init__(self) -> None:
        self._scratch = scratch()
        profile = Path(self._scratch.name)
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        words = [str(PROGRAM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        # Chromium reads commands from descriptor 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, *words, f"--user-data-dir={profile}"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(profile)},
        )
        os.close(read)
        os.close(write)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._scratch.cleanup()

    def open(self, address: str, ready: str) -> None:
        """Load a page and wait until an expression is true in it."""
        target = self._call("Target.createTarget", url=address)["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.wait(ready)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until the expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._in], [], [], PATIENCE)
                got = os.read(self._in, 2**16) if ready else b""
                assert got, "the browser has ended, or hangs"
                self._rest += got
            one, _, self._rest = self._rest.partition(b"\0")
            told = json.loads(one)
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]
