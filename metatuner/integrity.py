"""Digests of stored files: `digests.json` in a folder has the size and the SHA-256 of every file that belongs there.

It is written when a folder is complete, and compared when the folder is used. So a file that was cut off, changed,
removed or added later is noticed before anything is computed from it.
"""

import errno
import json
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.files import write_json
from metatuner.hashing import hash_file

DIGESTS = "digests.json"
LARGE = 64 * 2**20
"""Files of at least this many bytes are compared by size alone, unless the comparison is `thorough`."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a full disk."""
NO_PLACE_REMEDY = "free space or make the place writable, then run again: finished work is kept"


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; the writer of safetensors has its own class of error for that."""
    number = getattr(error, "errno", None)
    return number in FULL or (
        type(error).__name__ == "SafetensorError" and any(f"os error {each}" in str(error) for each in FULL)
    )


def write_digests(folder: Path, names: Iterable[str] | None = None) -> Path:
    """Write `digests.json` for the files of a folder, or for those of `names` that are there."""
    chosen = _files(folder) if names is None else [name for name in names if (folder / name).is_file()]
    found = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in sorted(chosen)
    }
    return write_json(folder / DIGESTS, found)


def altered(
    folder: Path,
    *,
    thorough: bool = False,
    only: Collection[str] | None = None,
    removable: str = "",
    strangers: bool = True,
) -> str | None:
    """What differs between a folder and its digests: one clause that names the file; None if nothing does.

    Args:
        folder: a folder with `digests.json`.
        thorough: compare large files by content too, which takes about a second per gigabyte.
        only: names of the files to compare; None: all.
        removable: a folder below it that may be missing as a whole.
        strangers: whether a file without a digest is a difference. Hidden files never are.
    """
    path = folder / DIGESTS
    try:
        status = path.stat()
        known = _read(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{DIGESTS} is broken"
    gone = f"{removable}/" if removable and not (folder / removable).is_dir() else None
    for name, (size, digest) in known.items():
        if (only is not None and name not in only) or (gone is not None and name.startswith(gone)):
            continue
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if (thorough or size < LARGE) and hash_file(file) != digest:
            return f"{name} differs from its digest"
    if only is not None:
        unknown = next((name for name in only if name not in known), None)
        return None if unknown is None else f"{unknown} has no digest"
    stranger = next((name for name in _files(folder) if name not in known), None) if strangers else None
    return None if stranger is None else f"{stranger} does not belong there"


def check_folder(folder: Path, remedy: str, **how: Any) -> None:
    """Raise `UserError` with the differing file and the remedy if a folder is not as its digests say; see `altered`."""
    why = altered(folder, **how)
    if why is not None:
        raise UserError(f"{folder}: {why}; {remedy}")


@lru_cache(maxsize=4096)
def _read(path: Path, size: int, changed: int) -> dict[str, tuple[int, str]]:
    """The digests of a file with this size and time of change."""
    found = json.loads(path.read_bytes())
    return {str(name): (int(each["bytes"]), str(each["sha256"])) for name, each in found.items()}


def _files(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, without hidden ones and the digests themselves."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and name.as_posix() != DIGESTS:
            yield name.as_posix()


# ---- weights -------------------------------------------------------------------------------------------------------


def check_weights(folder: Path, remedy: str) -> None:
    """`check_weights_file` for every safetensors file below a folder."""
    for path in sorted(folder.rglob("*.safetensors")):
        check_weights_file(path, remedy)


def check_weights_file(path: Path, remedy: str) -> None:
    """Raise `UserError` if a safetensors file cannot be read, or holds NaN or infinite values."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as tensors:
            bad = next((name for name in tensors.keys() if not is_finite(tensors.get_tensor(name))), None)  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: no whole safetensors file ({error}); {remedy}") from None
    if bad is not None:
        raise UserError(f"{path}: {bad} holds NaN or infinite values; {remedy}")


def is_finite(tensor: Any) -> bool:
    """Whether a torch tensor holds neither NaN nor infinite values."""
    import torch

    if not tensor.is_floating_point():
        return True
    values = tensor if tensor.element_size() > 1 else tensor.float()  # 8-bit types lack isfinite
    return bool(torch.isfinite(values).all())
