"""Snapshots: a finished run in a few files, to commit, browse, and draw again without its cells."""

import shutil
import tarfile
import tempfile
from lzma import LZMAError
from pathlib import Path

from metatuner.config import Config, Layout, dump_config
from metatuner.errors import UserError
from metatuner.files import complete_folder, read_json, write_text

ARCHIVE = "cells.tar.xz"
PARTS = ("cells", "fits", "data")
"""Folders of a results folder that the archive holds, without saved policies."""
FILES = (
    "scores.csv",
    "query_scores.json",
    "settings.csv",
    "methods.json",
    "searches.json",
    "digests.json",
    "provenance.json",
    "efficiency.csv",
    "verdict.json",
    "claims.csv",
    "claims.md",
    "claims_parts.csv",
    "world.json",
    "world.md",
    "report.html",
    "tables",
    "figures",
)
"""Files and folders that are copied unchanged, if the run has them."""


def write_snapshot(config: Config, out: Path) -> Path:
    """Write a snapshot of a finished run to `out`; an older snapshot there is replaced.

    Its `config.json` names `out` as the results folder, so commands work on it as on any other results folder.

    Raises:
        UserError: the run is not finished, or a cell of it failed.
    """
    layout = Layout(config)
    judged = "judge the run again with `metatuner verdict`"
    if not layout.verdict.is_file() or not read_json(layout.verdict, judged, {"ok": bool})["ok"]:
        raise UserError(f"{layout.root}: no finished run without failures; `make reproduce PRESET={config.preset}`")
    own = {layout.config.name, ARCHIVE, *FILES, *PARTS}
    is_other = out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= own)
    if is_other or out == layout.root or not out.name:
        raise UserError(f"--out {out}: not a snapshot's folder; choose a new one")
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a call that was stopped
    with complete_folder(new) as temporary:
        for name in FILES:
            source = layout.root / name
            if source.is_dir():
                shutil.copytree(source, temporary / name)
            elif source.is_file():
                shutil.copyfile(source, temporary / name)
        write_text(temporary / layout.config.name, dump_config(config.model_copy(update={"results": str(out)})))
        _pack(layout.root, temporary / ARCHIVE)
    shutil.rmtree(out, ignore_errors=True)
    return new.rename(out)


def _pack(root: Path, archive: Path) -> None:
    """Pack files into an archive; equal files give equal bytes: names are sorted, without times and owners."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with tarfile.open(archive, "w:xz") as tar:
        for part in PARTS:
            for path in sorted((root / part).rglob("*")):
                inner = path.relative_to(root)
                if path.is_file() and "policy" not in inner.parts and not any(p.startswith(".") for p in inner.parts):
                    tar.add(path, inner.as_posix(), filter=plain)


def unpack_snapshot(root: Path) -> bool:
    """Where a results folder is a snapshot, put the archive's files beside it; whether anything was to do."""
    archive = root / ARCHIVE
    if not archive.is_file() or (root / PARTS[0]).is_dir():
        return False
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacked") as folder:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, LZMAError) as error:
            raise UserError(
                f"{archive}: cut off or broken ({str(error).partition(chr(10))[0]}); restore it from the repository"
            ) from None
        for part in reversed(PARTS):  # `cells` comes last: if it is there, all is there
            try:
                (Path(folder) / part).rename(root / part)
            except OSError:  # another process has done it
                if not (root / part).is_dir():
                    raise
    return True
