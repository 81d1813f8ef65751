"""What of this machine a process may use. torch is not needed to ask."""

import os
from pathlib import Path

GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
"""There if the machine has a GPU of NVIDIA, AMD, or a virtual one of Windows."""


def has_gpu() -> bool:
    """Whether the machine has a GPU that torch may use."""
    return any(gpu.exists() for gpu in GPUS)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or what the process's control groups leave of it.

    Args:
        root: where /proc and /sys are.
    """
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_limits(root)])


def _limits(root: Path) -> list[int]:
    """The memory limits of this process's control groups and of all groups around them (Linux; versions 1 and 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        inner = base / group.lstrip("/")
        for folder in (inner, *inner.parents):  # in a container, the group's own path may not exist
            if folder.is_relative_to(base):
                found.append(_number(folder / name))
    return [limit for limit in found if limit is not None]


def _number(path: Path) -> int | None:
    """The number in a file; None if there is none, as for "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
