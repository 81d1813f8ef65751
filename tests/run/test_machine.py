"""The memory that a process may use: the machine's, or the limit of a control group around it."""

import os
from pathlib import Path

import pytest

from metatuner.run.machine import cores, memory_bytes

WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
LIMIT = 10**8


def group(root: Path, line: str, files: dict[str, str]) -> Path:
    """A root folder with a process's control groups."""
    for name, text in {"proc/self/cgroup": line, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/user/job", {"sys/fs/cgroup/user/job/memory.max": str(LIMIT)}),
        ("0::/user/job", {"sys/fs/cgroup/user/job/memory.max": "max", "sys/fs/cgroup/user/memory.max": str(LIMIT)}),
        ("0::/not/mounted/here", {"sys/fs/cgroup/memory.max": str(LIMIT)}),
        ("9:cpu:/a\n8:memory:/a", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(LIMIT)}),
    ],
    ids=["own", "around", "container", "version 1"],
)
def test_the_limit_of_a_control_group_counts(line: str, files: dict[str, str], tmp_path: Path) -> None:
    assert memory_bytes(group(tmp_path, line, files)) == LIMIT


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_without_a_limit_it_is_the_machines(limit: str, tmp_path: Path) -> None:
    assert memory_bytes(group(tmp_path, "0::/", {"sys/fs/cgroup/memory.max": limit})) == WHOLE
    assert memory_bytes(tmp_path / "none") == WHOLE


def test_there_is_a_core() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
