"""The commands of docs/adding_a_method.md run as they stand, in a project of one method and one benchmark."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_dag import project

from metatuner.hashing import ROOT

PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
SMALL = "preset=smoke run=main 'experiments={main: {methods: [zero_shot], benchmarks: [gsm8k], seeds: [0]}}'"


def run(folder: Path, line: str) -> str:
    """A command of the page; its output. `snakemake` gets the small project's config after its own."""
    line = line.split("#")[0].strip().replace("nano", "smoke")
    if line.startswith("snakemake"):
        line = f"{line} {SMALL}" if "--config" in line else f"{line} --config {SMALL}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A project after the page's commands, and what they said."""
    folder = project(tmp_path_factory.mktemp("tutorial"))
    run(folder, "snakemake --cores all")
    shutil.copytree(folder / "results" / "smoke", folder / "results" / "snapshot" / "smoke")
    (commands,) = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "new-method" in block]
    return folder, [run(folder, line) for line in commands.strip().splitlines()]


def methods(folder: Path) -> set[str]:
    with open(folder / "results" / "smoke" / "scores.csv", encoding="utf-8", newline="") as file:
        return {row["method"] for row in csv.DictReader(file) if row["status"] == "ok"}


def test_the_commands_bring_a_method_into_the_table_and_change_nothing_else(tutorial: tuple[Path, list[str]]) -> None:
    folder, (_, checked, ran, compared) = tutorial
    assert methods(folder) == {"zero_shot", "my_search"}
    assert "my_search" in (folder / "results" / "smoke" / "tables" / "table_1.csv").read_text()
    assert "fails" not in checked
    assert re.search(r"^fit +1$", ran, re.MULTILINE)  # of Snakemake's jobs: the one cell's, and no other's
    assert re.search(r"^evaluate +1$", ran, re.MULTILINE)
    assert "my_search" in compared
