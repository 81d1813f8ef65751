"""Campaigns against a small run: killed at random moments, and with each kind of file damaged in each way.

Either the run, taken up again, has the bytes of an undisturbed one, or one line names the file and what to do.
"""

import contextlib
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metatuner.config import read_config
from metatuner.forkserver import ForkServer
from metatuner.run.verification import verify
from tests.dag.test_interrupted import forks_in
from tests.toys.runs import PATIENCE, Runs, contents, kill_tree, project, start, wait_until

SEED = 20
KILLS = 10
TOGETHER = 3
"""Files that are damaged at the same time."""
SMALL = ("run=main", "experiments={main: {methods: [zero_shot, sft], benchmarks: [gsm8k], seeds: [0]}}")
"""Of `tiny`: one method that is not trained and one that is, on one benchmark with one seed."""
COLLECTED = ("scores.csv", "query_scores.json", "settings.csv", "methods.json", "searches.json", "digests.json")
RESUMED = ("run=main", "experiments.main={methods: [zero_shot, sft], benchmarks: [gsm8k], seeds: [0]}")
TARGETS = tuple(f"results/tiny/{name}" for name in (*COLLECTED, "tables/table_1.csv"))


@pytest.fixture(scope="module")
def small(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the small run has ended undisturbed."""
    folder = project(tmp_path_factory.mktemp("small"))
    run(Runs(server, "tiny"), folder)
    return folder


def run(runs: Runs, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run what is missing."""
    return runs.snakemake(folder, "--rerun-incomplete", *TARGETS, config=SMALL, check=check)


# ---- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_at_random_moments_has_the_same_bytes(small: Path, tiny: Runs, tmp_path: Path) -> None:
    wanted, draw = contents(small), random.Random(SEED)
    words = ("snakemake", "--cores", "2", "--rerun-incomplete", "--nolock", *TARGETS, "--config", "preset=tiny", *SMALL)
    began = time.monotonic()
    run(tiny, project(tmp_path / "undisturbed"))
    whole = time.monotonic() - began
    kills = number = 0
    while kills < KILLS:
        folder = project(tmp_path / f"killed-{number}")
        number += 1
        for _ in range(3):  # then to its end
            process = start(folder, *words, env=tiny.environment)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, whole))
            if process.poll() is None:
                kill_tree(process)
                kills += 1
            wait_until(lambda: not forks_in(folder), "the forks of the killed run to end")  # noqa: B023
        done = start(folder, "metatuner.cli", "resume", "preset=tiny", *RESUMED, env=tiny.environment, stderr=-1)
        _, errors = done.communicate(timeout=PATIENCE)
        assert done.returncode == 0, errors[-4000:]
        found = contents(folder)
        assert {name: found[name] for name in wanted} == wanted
        assert list((folder / "results").rglob(".*.tmp")) == []


# ---- damaged ---------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size * 2 // 3)])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00garbage")


def no_numbers(path: Path) -> None:
    tensors = load_file(path)
    next(iter(tensors.values())).flatten()[0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


DAMAGES: tuple[Callable[[Path], None], ...] = (cut, flipped, garbage, Path.unlink)
KINDS = (
    "tiny/data/gsm8k/*",
    "tiny/world/gsm8k/t*.jsonl",
    "tiny/world/digests.json",
    "cache/models/actor-*/*",
    "tiny/fits/*/*.json*",
    "tiny/fits/*/policy/**/*",
    "tiny/cells/*/*",
    "tiny/packs/*/*",
    "tiny/config.json",
    *(f"tiny/{name}" for name in COLLECTED),
)
"""Every kind of file that a run reads again, below results/."""
UNVERIFIED = ("packs", "timing.json")
"""What has no digest: a broken pack is as good as none."""


def kinds(folder: Path) -> list[str]:
    """One file of each kind, by its path below results/."""
    results, found = folder / "results", {}
    for pattern in KINDS:
        for path in sorted(results.glob(pattern)):
            if path.is_file() and path.stat().st_size:
                name = path.relative_to(results).as_posix()
                found.setdefault((pattern, path.name if "packs" not in pattern else path.parent.name), name)
    return sorted(set(found.values()))


def test_every_damaged_file_is_named_by_verify(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(small, tmp_path / "copy")
    monkeypatch.chdir(folder)
    config = read_config(Path("results/tiny/config.json"))
    assert verify(config).differing == []
    names = [name for name in kinds(folder) if not any(each in name for each in UNVERIFIED)]
    assert len(names) > 25
    draw = random.Random(SEED)
    for name in names:
        path = folder / "results" / name
        before = path.read_bytes()
        damage = no_numbers if path.suffix == ".safetensors" else draw.choice(DAMAGES)
        damage(path)
        found = verify(config)
        path.write_bytes(before)
        if "models" in name and path.name == "digests.json" and damage is Path.unlink:
            assert found.without == 1
            continue
        (line,) = found.differing
        place, _, rest = line.partition(": ")
        assert name.startswith(Path(place).relative_to("results").as_posix()), line
        assert Path(name).name in line, line
        assert "; " in rest, line
    assert verify(config).differing == []


def damaged(small: Path, folder: Path, damages: dict[str, Callable[[Path], None]]) -> Path:
    """A copy of the small run with files damaged, by their paths below results/."""
    copy: Path = shutil.copytree(small, folder)
    for name, damage in damages.items():
        damage(copy / "results" / name)
    return copy


def test_what_is_damaged_is_made_again_from_what_is_not(small: Path, tiny: Runs, tmp_path: Path) -> None:
    names = kinds(small)

    def one(*parts: str) -> str:
        return next(name for name in names if all(part in name for part in parts))

    damages = {
        one("data", "test.jsonl"): Path.unlink,
        one("actor", "model.safetensors"): cut,
        one("fits", "manifest.json"): garbage,
        one("cells", "predictions.jsonl"): cut,
        one("packs/evaluate"): cut,
        "tiny/config.json": garbage,
        "tiny/scores.csv": cut,
        "tiny/query_scores.json": cut,
    }
    folder = damaged(small, tmp_path / "copy", damages)
    attempts = folder / "results" / "tiny" / "packs" / "fit" / ".sft-00.attempts"
    attempts.write_bytes(b"\xffmany")
    done = run(tiny, folder)
    assert "again" in done.stderr
    assert contents(folder) == contents(small)
    assert (folder / "results/tiny/config.json").read_bytes() == (small / "results/tiny/config.json").read_bytes()
    assert "Nothing to be done" in run(tiny, folder).stderr


@pytest.mark.slow
def test_any_damage_ends_in_the_same_bytes_or_in_a_line_with_a_remedy_that_works(
    small: Path, tiny: Runs, tmp_path: Path
) -> None:
    wanted, draw = contents(small), random.Random(SEED)
    names = kinds(small)
    cases = [(name, draw.choice(DAMAGES)) for name in names]
    cases += [(name, no_numbers) for name in names if name.endswith(".safetensors")]
    draw.shuffle(cases)
    groups = [dict(cases[start : start + TOGETHER]) for start in range(0, len(cases), TOGETHER)]
    remedies = 0
    for number, group in enumerate(groups):
        told = {name: damage.__name__ for name, damage in group.items()}
        folder = damaged(small, tmp_path / str(number), group)
        # Other fits' and cells' results are wanted again, so that what is damaged is read.
        for pack in (folder / "results/tiny/packs/evaluate").glob("*.json"):
            pack.unlink()
        for cell in (folder / "results/tiny/cells").iterdir():
            if not any(cell.name in name for name in group):
                shutil.rmtree(cell)
        done = run(tiny, folder, check=False)
        said = done.stdout + done.stderr
        assert "Traceback" not in said, told
        outcomes = [path.read_text() for path in (folder / "results/tiny/packs").glob("*/*.json")]
        if done.returncode or any('"failed"' in each for each in outcomes):
            remedies += 1
            places = re.findall(r"; remove (\S+?)(?: and|,)", said)
            assert places, f"{told}: no remedy in {said[-2000:]}"
            for place in places:
                shutil.rmtree(folder / place, ignore_errors=True)
            run(tiny, folder)
        assert contents(folder) == wanted, told
        shutil.rmtree(folder)
    assert remedies < len(groups) / 4, "most is made again without help"
