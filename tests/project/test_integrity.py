"""Digests: whatever happens to a file of a folder is noticed, and named."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from metatuner import integrity
from metatuner.errors import UserError
from metatuner.integrity import DIGESTS, altered, check_folder, check_weights, is_full, write_digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "fit"
    (made / "policy" / "deep").mkdir(parents=True)
    for name in ("fit.json", "policy/manifest.json", "policy/deep/w.safetensors"):
        (made / name).write_text(f"content of {name}")
    (made / ".hidden").write_text("no part of it")
    write_digests(made)
    return made


def test_digests_are_the_sha_256_of_every_file(folder: Path) -> None:
    found = json.loads((folder / DIGESTS).read_text())
    assert sorted(found) == ["fit.json", "policy/deep/w.safetensors", "policy/manifest.json"]
    for name, each in found.items():
        content = (folder / name).read_bytes()
        assert each == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert altered(folder) is None


def test_each_kind_of_change_is_named_with_its_file(folder: Path, tmp_path: Path) -> None:
    def after(change: str, name: str = "policy/manifest.json") -> str | None:
        copy = shutil.copytree(folder, tmp_path / change)
        file = copy / name
        content = file.read_bytes() if file.is_file() else b""
        if change in ("removed", "lost"):
            file.unlink()
        elif change == "cut":
            file.write_bytes(content[:-1])
        elif change == "flipped":
            before = file.stat()
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            file.write_bytes(b"[1]" if change == "broken" else b"\xff" if change == "garbage" else b"new")
        return altered(copy)

    assert after("removed") == "policy/manifest.json is missing"
    assert str(after("cut")).startswith("policy/manifest.json has ")
    assert after("flipped") == "policy/manifest.json differs from its digest"
    assert after("added", "policy/more.json") == "policy/more.json does not belong there"
    assert after("lost", DIGESTS) == f"{DIGESTS} is missing"
    assert after("broken", DIGESTS) == after("garbage", DIGESTS) == f"{DIGESTS} is broken"
    assert altered(tmp_path / "nowhere") == f"{DIGESTS} is missing"


def test_a_part_may_be_removed_as_a_whole_but_not_in_part(folder: Path) -> None:
    (folder / "policy" / "manifest.json").unlink()
    assert altered(folder, removable="policy") == "policy/manifest.json is missing"
    shutil.rmtree(folder / "policy")
    assert altered(folder, removable="policy") is None
    assert altered(folder) is not None


def test_only_what_is_asked_for_is_compared(folder: Path) -> None:
    (folder / "fit.json").write_text("other")
    assert altered(folder, only=["policy/manifest.json"]) is None
    assert altered(folder, only=["fit.json"]) is not None
    assert altered(folder, only=["unknown"]) == "unknown has no digest"
    write_digests(folder, ["fit.json", "absent"])
    assert altered(folder, strangers=False) is None
    assert altered(folder) == "policy/deep/w.safetensors does not belong there"


def test_large_files_are_compared_by_content_only_where_they_are_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "LARGE", 10)
    file = folder / "policy" / "manifest.json"
    file.write_bytes(b"x" * file.stat().st_size)
    assert altered(folder) is None
    assert altered(folder, thorough=True) == "policy/manifest.json differs from its digest"
    with pytest.raises(UserError, match=r"fit: policy/manifest\.json differs from its digest; fit again"):
        check_folder(folder, "fit again", thorough=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_weights_that_are_no_numbers_are_refused_with_their_name(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    tensors = {"fine": torch.ones(3, dtype=dtype), "count": torch.tensor([2**40])}
    save_file(tensors, tmp_path / "one.safetensors")
    check_weights(tmp_path, "fit again")
    save_file({**tensors, "bad": torch.tensor([1.0, value]).to(dtype)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"two\.safetensors: bad holds NaN or infinite values; fit again"):
        check_weights(tmp_path, "fit again")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_broken_file_of_weights_is_one_line_with_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(UserError, match=r"w\.safetensors: no whole safetensors file \(.*\); fit again") as caught:
        check_weights(tmp_path, "fit again")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_from_other_errors() -> None:
    assert is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full(SafetensorError("Error while deserializing header: invalid header"))
    assert not is_full(PermissionError(errno.EACCES, "Permission denied"))
    assert not is_full(ValueError("os error 28"))
