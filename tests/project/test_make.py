"""make hands what a user gives to programs word for word; nothing of it reaches a shell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metatuner.hashing import ROOT

SAYS = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
"""A program that says with which words it was started."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile, and an environment whose programs only say how they were started."""
    for name in ("Makefile", "workflow/words.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints").mkdir()
    (tmp_path / "constraints" / "cpu.txt").touch()
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("snakemake", "metatuner"):
        (programs / name).write_text(SAYS)
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / ".installed-cpu").touch()
    return tmp_path


def make(project: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    mine = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | environment
    return subprocess.run(["make", *words], cwd=project, capture_output=True, text=True, check=False, env=mine)


def started(project: Path, *words: str, **environment: str) -> list[str]:
    """The words with which make started its program."""
    done = make(project, *words, **environment)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


HOSTILE = [
    *(
        "; touch harm",
        "`touch harm`",
        "$(touch harm)",
        "$$(touch harm)",
        "$(shell touch harm)",
        "$${IFS}",
        "| touch harm",
    ),
    *("&& touch harm #", "' ; touch harm ; '", '" ; touch harm ; "', "a\ntouch harm", "a\n\ttouch harm", "> harm", "*"),
    *("{KEYS}", "~", "\\", "a'b", "%s", "-x", "é"),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_is_a_command_or_changes(project: Path, text: str) -> None:
    before = {path for path in project.rglob("*") if "__pycache__" not in path.parts}
    assert started(project, "reproduce", f"PRESET={text}") == ["--cores", "all", "--config", f"preset={text}"]
    assert started(project, "resume", CORES=text, PRESET=text) == ["resume", "--cores", text, f"preset={text}"]
    assert started(project, "report", f"RESULTS={text}") == ["report", "--config", f"{text}/config.json"]
    assert started(project, "verify", f"RESULTS={text}") == ["verify", "--config", f"{text}/config.json"]
    assert started(project, "snapshot", f"PRESET={text}")[-1] == f"results/{text}/config.json"
    assert started(project, "compare", f"PRESET={text}")[1:3] == [f"results/snapshot/{text}", f"results/{text}"]
    key = f"benchmarks={{gsm8k: {{initial_prompt: {json.dumps(text)}}}}}"
    assert started(project, "reproduce", f"KEYS={key}")[-1] == key
    make(project, "reproduce", f"KEYS={text}")
    make(project, "reproduce", f"ARGS={text}")
    make(project, "-n", "reproduce", f"ARGS={text}", f"KEYS={text}", f"PRESET={text}")
    assert {path for path in project.rglob("*") if "__pycache__" not in path.parts} == before


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("run=main pack=3", ["run=main", "pack=3"]),
        ("run=[main, ablation]", ["run=[main, ablation]"]),
        ("run='[main, ablation]' pack=3", ["run=[main, ablation]", "pack=3"]),
        ('results="my results"  pack=3', ["results=my results", "pack=3"]),
        ("tuning={trials: 2, seed: 5}\tpack=3", ["tuning={trials: 2, seed: 5}", "pack=3"]),
        ('a={b: {c: "x } y=z [ w"}} d=1', ['a={b: {c: "x } y=z [ w"}}', "d=1"]),
        ("a={b: it's so, c: 'x  y'} d=1", ["a={b: it's so, c: 'x  y'}", "d=1"]),
        (r'a={b: "say \"} x\""} d=1', [r'a={b: "say \"} x\""}', "d=1"]),
        ("a=it's d=1", ["a=it's", "d=1"]),
        ("", []),
    ],
)
def test_keys_are_split_outside_of_quotes_and_brackets(project: Path, keys: str, words: list[str]) -> None:
    assert started(project, "reproduce", f"KEYS={keys}")[3:] == ["preset=nano", *words]
    assert started(project, "resume", f"KEYS={keys}")[3:] == ["preset=nano", *words]


def test_arguments_are_the_words_that_a_shell_would_find(project: Path) -> None:
    given = "ARGS=-n -p 'a b' table_1"
    assert started(project, "reproduce", given)[2:6] == ["-n", "-p", "a b", "table_1"]
    assert started(project, "reproduce", "PRESET=smoke", "CORES=2", "KEYS=run=main") == [
        *("--cores", "2", "--config", "preset=smoke", "run=main")
    ]


@pytest.mark.parametrize(
    "args", ["--config pack=3", "--config=pack=3", "-C pack=3", "-Cpack=3", "-n -C pack=3", "-nC a=1"]
)
def test_a_second_config_is_refused_with_the_remedy(project: Path, args: str) -> None:
    refused = make(project, "reproduce", f"ARGS={args}")
    assert refused.returncode != 0
    assert "{" not in refused.stdout
    assert 'write its keys as KEYS="..."' in refused.stderr


@pytest.mark.parametrize("words", ["ARGS=-p 'open", "KEYS=a={b: 'open}"])
def test_a_quote_that_is_not_closed_is_named(project: Path, words: str) -> None:
    refused = make(project, "reproduce", words)
    assert refused.returncode != 0
    assert "open" in refused.stderr
    assert "close it" in refused.stderr


def test_a_configfile_and_a_capital_in_a_name_are_no_second_config(project: Path) -> None:
    given = "ARGS=--configfile mine.yaml --snakefile C.smk -n"
    assert started(project, "reproduce", given)[2:7] == ["--configfile", "mine.yaml", "--snakefile", "C.smk", "-n"]


def test_tables_figures_and_claims_are_drawn_from_a_snapshot(project: Path) -> None:
    place = ["--config", "results/snapshot/nano/config.json"]
    given = "RESULTS=results/snapshot/nano"
    assert started(project, "tables", given) == ["table", "--name", "all", *place]
    assert started(project, "figures", given) == ["figure", "--name", "all", *place]
    assert started(project, "claims", given) == ["claims", *place]
    assert started(project, "report") == ["report", "--config", "results/nano/config.json"]
