"""The commands of docs/adding_a_method.md: what they name is there; and (slow) they run in a small project."""

import csv
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from metatuner.cli import main
from metatuner.config import load_config, parse_overrides
from metatuner.hashing import ROOT
from metatuner.plan import Plan
from tests.toys.runs import Runs, project

PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
SMALL = "preset=smoke run=main 'experiments={main: {methods: [zero_shot], benchmarks: [gsm8k], seeds: [0]}}'"


def commands() -> list[str]:
    """The page's way from nothing to a row in the table."""
    (block,) = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "new-method" in block]
    return [line.split("#")[0].strip() for line in block.strip().splitlines()]


def test_the_commands_parse_and_name_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    new, check, trial, run = (shlex.split(line) for line in commands())
    # The first command is run; what it writes is what the others name.
    assert main(new[1:]) == 0
    (file,) = tmp_path.iterdir()
    assert check == ["metatuner", "check-method", file.name]
    with pytest.raises(SystemExit) as leaving:
        main([*check[1:], "--help"])
    assert leaving.value.code == 0
    told = capsys.readouterr().out
    assert re.search(r"usage: .*check-method .*FILE", told.replace("\n", " "), re.IGNORECASE)
    # The others make a plan in which the new method stands beside the others, whose cells are what they were.
    for words, preset in ((trial, "smoke"), (run, "nano")):
        assert words[:4] == ["snakemake", "--cores", "all", "--config"]
        overrides = parse_overrides(words[4:])
        assert overrides.pop("preset", "nano") == preset
        before, after = Plan(load_config(preset)), Plan(load_config(preset, overrides))
        assert set(before.grid.cells) < set(after.grid.cells)
        added = {after.grid.cells[key].fit.method for key in set(after.grid.cells) - set(before.grid.cells)}
        assert added == {"my_search"}


def test_the_preset_of_the_page_tunes_the_new_method_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(commands()[0])[1:]) == 0
    (block,) = [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    plan = Plan(load_config(block.pop("extends"), block))
    assert {benchmark for subject, benchmark in plan.searches.all if subject == "my_search"} == set(
        plan.config.benchmarks
    )
    assert len(plan.searches.trials("my_search", "gsm8k")) == 5


def run(folder: Path, line: str, environment: dict[str, str]) -> str:
    """A command of the page; its output. `snakemake` gets the small project's config after its own."""
    line = line.replace("nano", "smoke").replace(" preset=smoke", "")
    if line.startswith("snakemake"):
        line = f"{line} {SMALL}" if "--config" in line else f"{line} --config {SMALL}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def methods(folder: Path) -> set[str]:
    with open(folder / "results" / "smoke" / "scores.csv", encoding="utf-8", newline="") as file:
        return {row["method"] for row in csv.DictReader(file) if row["status"] == "ok"}


@pytest.mark.slow
def test_the_commands_bring_a_method_into_the_table_and_change_nothing_else(tmp_path: Path, tiny: Runs) -> None:
    folder = project(tmp_path / "tutorial")
    run(folder, "snakemake --cores all", tiny.environment)
    _, checked, ran, _ = [run(folder, line, tiny.environment) for line in commands()]
    assert methods(folder) == {"zero_shot", "my_search"}
    assert "my_search" in (folder / "results" / "smoke" / "tables" / "table_1.csv").read_text()
    assert "fails" not in checked
    assert re.search(r"^fit +1$", ran, re.MULTILINE)  # of Snakemake's jobs: the one cell's, and no other's
    assert re.search(r"^evaluate +1$", ran, re.MULTILINE)
