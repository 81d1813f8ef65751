"""Results that were edited, cut off or lost: a command that reads them says so in one line, or is not affected."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metatuner.cli import main
from metatuner.config import dump_config, read_config
from metatuner.harness.method import settings_dict
from metatuner.integrity import write_digests
from metatuner.plan import Plan
from metatuner.run.fitting import Outcome
from metatuner.run.packs import write_outcomes
from tests.toys.results import fake_config, fake_scores, few_draws, write_cell

N = 6
METHODS = ("zero_shot", "sft", "metatuner_j")
HEADER = (
    "method,benchmark,seed,queries,repeats,write_ms,answer_ms,plain_ms,write_share,write_share_low,write_share_high,"
    "overhead,write_bytes,peak_memory_bytes,device"
)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        few_draws(patch)
        yield


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder as a run of three methods on two benchmarks leaves it, with everything made from its cells."""
    root = tmp_path_factory.mktemp("run") / "results"
    benchmarks: Any = {name: {"source": "nano", "sizes": {"train": 8, "test": N}} for name in ("gsm8k", "math")}
    grid = {"methods": list(METHODS), "benchmarks": list(benchmarks), "seeds": [0], "generator": "large"}
    config = fake_config(
        root, methods=METHODS, benchmarks=benchmarks, experiments={"main": grid}, keep="all", claims="paper"
    )
    plan = Plan(config)
    layout = plan.layout
    write(layout.config, dump_config(config))
    used = {"lm_calls": 5, "prompt_tokens": 50, "generated_tokens": 20, "trained_tokens": 9}
    cost: Any = {**used, "seconds": 2.0, "flops": 2e12, "peak_memory_bytes": 10**8, "peak_gpu_memory_bytes": 0}
    cost["by_model"] = {"actor": used, "generator": used}
    for key, fit in plan.grid.fits.items():
        told = {"method": fit.method, "trained_on": list(fit.train), "settings": settings_dict(fit.settings)}
        write(layout.fit(key) / "fit.json", told)
        write(layout.fit(key) / "cost.json", cost)
        write(layout.fit(key) / "log.jsonl", "".join(f'{{"step": {i}, "event": "s", "loss": 1}}\n' for i in range(4)))
        (layout.fit(key) / "policy").mkdir()
    for key, cell in plan.grid.cells.items():
        method, name = cell.fit.method, cell.benchmark
        write_cell(root, key, name, fake_scores(method, name, 0, N, {"zero_shot": 0.4, "sft": 0.6}))
        path = layout.cell(key) / "predictions.jsonl"
        records = [json.loads(line) | {"gold": ["7"], "extracted": None} for line in path.read_text().splitlines()]
        write(path, "".join(json.dumps(record) + "\n" for record in records))
        write(layout.cell(key) / "cell.json", {"fit": cell.fit.key, "method": method, "benchmark": name})
        write(layout.cell(key) / "cost.json", cost)
        write_digests(layout.cell(key))
    for path in plan.packs.files:
        keys = [*plan.grid.cells, *plan.grid.fits]
        write_outcomes(path, [Outcome(key, "ok", "") for key in keys])
    for name in benchmarks:
        splits = {split: {"n": n} for split, n in (("pool", 50), ("tune", 7), ("test", N))}
        write(layout.data(name) / "splits.json", {"splits": splits})
        rows = [
            {"id": f"{name}-{i}", "query": f"q {i}", "kind": "even", "group": f"g{i}", "gold": ["7"]} for i in range(N)
        ]
        write(layout.data(name) / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"metatuner_j,{name},0,6,3,2.0,9.0,9.0,0.2,0.1,0.3,1.2,2000,1000,cpu" for name in benchmarks]
    write(layout.efficiency, "\n".join([HEADER, *lines]) + "\n")
    bar = {"benchmark": "gsm8k", "name": "a bar", "low": 1, "high": None, "measured": 2.0, "met": True}
    write(root / "world.json", {"bars": [bar], "trained": True})
    write(layout.usage / "fit-x.json", {"step": "fit", **dict.fromkeys(USAGE, 1.0)})
    for words in ("scores", "provenance", "claims", "table --name all", "figure --name all", "report", "verdict"):
        assert main([*words.split(), "--config", str(layout.config)]) == 0, words
    return root


USAGE = ("cpu_seconds", "startup_cpu_seconds", "wall_seconds", "peak_memory_bytes")
COMMANDS = {
    "scores": ["scores"],
    "table_1": ["table", "--name", "table_1"],
    "table_5": ["table", "--name", "table_5"],
    "table_6": ["table", "--name", "table_6"],
    "table_7": ["table", "--name", "table_7"],
    "table_9": ["table", "--name", "table_9"],
    "table_10": ["table", "--name", "table_10"],
    "table_11": ["table", "--name", "table_11"],
    "table_kinds": ["table", "--name", "table_kinds"],
    "figure_main": ["figure", "--name", "figure_main"],
    "figure_cost": ["figure", "--name", "figure_cost"],
    "claims": ["claims"],
    "report": ["report"],
    "verdict": ["verdict"],
    "usage": ["usage"],
    "provenance": ["provenance"],
    "snapshot": ["snapshot", "--out", "SNAPSHOT"],
    "diff": ["diff", "ORIGINAL", "RESULTS"],
    "cost": ["cost", "--from", "RESULTS"],
    "against": ["cost", "--from", "RESULTS", "preset=single_gpu"],
}
ANALYSIS = ["table_1", "table_kinds", "figure_main", "claims", "report", "diff"]
COSTS = ["table_5", "figure_cost", "report"]


def cut(text: bytes) -> bytes:
    return text[: len(text) * 2 // 3].rstrip()[:-2]  # not at the end of a line


def lose_key(*keys: str) -> Callable[[bytes], bytes]:
    """Without a key of the first line, or of the whole, of a JSON file."""

    def change(text: bytes) -> bytes:
        first, *others = text.decode().split("\n") if text.count(b"\n{") else [text.decode()]
        value = json.loads(first)
        here = value
        for key in keys[:-1]:
            here = here[int(key) if isinstance(here, list) else key]
        del here[keys[-1]]
        return "\n".join([json.dumps(value), *others]).encode()

    return change


def set_key(value: Any, *keys: str) -> Callable[[bytes], bytes]:
    """With another value of a key of the first line, or of the whole, of a JSON file."""

    def change(text: bytes) -> bytes:
        first, *others = text.decode().split("\n") if text.count(b"\n{") else [text.decode()]
        known = json.loads(first)
        here = known
        for key in keys[:-1]:
            here = here[int(key) if isinstance(here, list) else key]
        here[keys[-1]] = value
        return "\n".join([json.dumps(known), *others]).encode()

    return change


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        assert old.encode() in text
        return text.replace(old.encode(), new.encode(), 1)

    return change


def whole(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


GONE = None
GARBAGE = whole(b"\x00\xff\xfe garbage")
FIRST_CELL = "cells/*/"
EDITS: list[tuple[str, Callable[[bytes], bytes] | None, list[str]]] = [
    ("scores.csv", GONE, [*ANALYSIS, *COSTS, "table_9"]),
    ("scores.csv", GARBAGE, ANALYSIS),
    ("scores.csv", whole(b""), ANALYSIS),
    ("scores.csv", cut, ANALYSIS),
    ("scores.csv", lambda text: text[: text.index(b"\n") + 1], ANALYSIS),
    ("scores.csv", replaced(",status,", ",state,"), ANALYSIS),
    ("scores.csv", replaced(",ok,", ",,"), ANALYSIS),
    ("scores.csv", replaced("gsm8k,gsm8k", "gsm9k,gsm8k"), ["table_1", "report"]),
    ("scores.csv", whole(b"a" * 200_000), ANALYSIS),
    (FIRST_CELL + "predictions.jsonl", GONE, ["report"]),
    (FIRST_CELL + "predictions.jsonl", GARBAGE, [*ANALYSIS, "scores"]),
    (FIRST_CELL + "predictions.jsonl", cut, [*ANALYSIS, "scores"]),
    (FIRST_CELL + "predictions.jsonl", whole(b""), ["table_1", "report"]),
    (FIRST_CELL + "predictions.jsonl", set_key(None, "score"), [*ANALYSIS, "scores"]),
    (FIRST_CELL + "predictions.jsonl", set_key("1", "score"), ["table_1", "report", "scores"]),
    (FIRST_CELL + "predictions.jsonl", set_key(float("nan"), "score"), ["table_1", "report", "scores"]),
    (FIRST_CELL + "predictions.jsonl", set_key(3, "prompt"), ["report"]),
    (FIRST_CELL + "predictions.jsonl", lose_key("completion"), ["report"]),
    (FIRST_CELL + "predictions.jsonl", whole(b"[1]\n"), ["table_1", "report", "scores"]),
    (FIRST_CELL + "predictions.jsonl", whole(b"[" * 100_000), ["table_1", "scores"]),
    (FIRST_CELL + "metrics.json", GONE, ["scores"]),
    (FIRST_CELL + "metrics.json", whole(b"null"), ["scores"]),
    (FIRST_CELL + "metrics.json", whole(b"{}"), ["scores"]),
    (FIRST_CELL + "metrics.json", set_key(None, "metrics", "accuracy"), ["scores"]),
    (FIRST_CELL + "metrics.json", set_key("f1", "primary"), ["scores"]),
    (FIRST_CELL + "metrics.json", GARBAGE, ["scores"]),
    (FIRST_CELL + "cell.json", whole(b"{}"), [*COSTS, "cost"]),
    (FIRST_CELL + "cell.json", whole(b"[]"), [*COSTS, "cost"]),
    (FIRST_CELL + "cell.json", set_key(3, "fit"), COSTS),
    (FIRST_CELL + "cost.json", whole(b"{}"), ["report", "cost", "against"]),
    (FIRST_CELL + "cost.json", cut, ["report", "cost", "against"]),
    ("fits/*/cost.json", whole(b"{}"), [*COSTS, "cost", "against"]),
    ("fits/*/cost.json", set_key(None, "seconds"), [*COSTS, "cost", "against"]),
    ("fits/*/cost.json", set_key("2", "flops"), COSTS),
    ("fits/*/cost.json", set_key({"actor": None}, "by_model"), ["against"]),
    ("fits/*/cost.json", GARBAGE, [*COSTS, "cost", "against"]),
    ("fits/*/fit.json", whole(b"{}"), ["cost"]),
    ("fits/*/log.jsonl", cut, ["report"]),
    ("fits/*/log.jsonl", whole(b"[1]\n"), ["report"]),
    ("packs/*/*.json", whole(b"{}"), ["scores", "verdict"]),
    ("packs/*/*.json", whole(b'{"outcomes": [{}]}'), ["scores", "verdict"]),
    ("data/gsm8k/test.jsonl", GONE, ["table_6", "table_9", "report"]),
    ("data/gsm8k/test.jsonl", cut, ["table_6", "table_9", "report"]),
    ("data/gsm8k/test.jsonl", lose_key("gold"), ["table_6", "table_9", "report"]),
    ("data/gsm8k/test.jsonl", set_key(None, "query"), ["table_6", "table_9", "report"]),
    ("data/gsm8k/test.jsonl", whole(b""), ["report"]),
    ("data/gsm8k/splits.json", whole(b"{}"), ["table_6"]),
    ("data/gsm8k/splits.json", lose_key("splits", "tune"), ["table_6"]),
    ("efficiency.csv", cut, ["table_5"]),
    ("efficiency.csv", whole(b""), ["table_5"]),
    ("efficiency.csv", GARBAGE, ["table_5"]),
    ("efficiency.csv", replaced("0.2,0.1,0.3", "0.2,x,0.3"), ["table_5"]),
    ("efficiency.csv", replaced("9.0", "nan"), ["table_5"]),
    ("efficiency.csv", replaced(",device", ",machine"), ["table_5"]),
    ("efficiency.csv", replaced("metatuner_j,gsm8k", "metatuner_j,gsm9k"), ["table_5"]),
    ("claims.csv", cut, ["report", "diff"]),
    ("claims.csv", whole(b""), ["report", "diff"]),
    ("claims.csv", replaced("verdict", "ruling"), ["report", "diff"]),
    ("claims.csv", replaced("threshold", "limit"), ["report"]),
    ("claims_parts.csv", cut, ["report"]),
    ("claims_parts.csv", GARBAGE, ["report"]),
    ("tables/table_1.json", GONE, ["report"]),
    ("tables/table_1.json", whole(b""), ["report"]),
    ("tables/table_1.json", whole(b"[]"), ["report"]),
    ("tables/table_1.json", whole(b"[{}]"), ["report"]),
    ("tables/table_1.json", set_key(None, "0", "rows"), ["report"]),
    ("tables/table_1.json", set_key([[3]], "0", "rows"), ["report"]),
    ("tables/table_5.json", cut, ["report"]),
    ("figures/figure_main.png", GONE, ["report"]),
    ("methods.json", whole(b"{}"), ["table_1", "table_7", "table_10", "report"]),
    ("methods.json", whole(b"[{}]"), ["table_1", "table_7", "table_10", "report"]),
    ("methods.json", lose_key("0", "deviations"), ["table_10"]),
    ("methods.json", cut, ["table_1", "figure_main"]),
    ("searches.json", whole(b"[{}]"), ["table_11", "claims"]),
    ("searches.json", whole(b"{"), ["table_11", "claims", "report"]),
    ("searches.json", whole(b"null"), ["table_11", "claims", "report"]),
    ("settings.csv", cut, ["table_1", "table_7", "report"]),
    ("settings.csv", whole(b""), ["table_1", "table_7", "report"]),
    ("settings.csv", replaced("{", "["), ["table_7", "report"]),
    ("world.json", whole(b"{}"), ["report"]),
    ("world.json", set_key(None, "bars", "0", "measured"), ["report"]),
    ("provenance.json", GONE, ["report"]),
    ("provenance.json", cut, ["report", "diff", "cost"]),
    ("provenance.json", whole(b"{}"), ["cost"]),
    ("provenance.json", whole(b"null"), ["cost"]),
    ("verdict.json", whole(b"null"), ["snapshot"]),
    ("verdict.json", whole(b"{}"), ["snapshot"]),
    ("usage/fit-x.json", whole(b"[]"), ["usage"]),
    ("usage/fit-x.json", whole(b"{}"), ["usage"]),
    ("config.json", cut, ["scores", "table_1", "verdict"]),
    ("config.json", whole(b"null"), ["scores", "table_1", "verdict"]),
    ("config.json", GARBAGE, ["scores", "table_1", "verdict"]),
]


def run(command: str, root: Path, original: Path) -> int:
    names = {"RESULTS": str(root), "ORIGINAL": str(original), "SNAPSHOT": str(root.parent / "snapshot")}
    words = [names.get(word, word) for word in COMMANDS[command]]
    configured = command != "diff" and not any(word.startswith("preset=") for word in words)
    return main([*words, *(["--config", str(root / "config.json")] if configured else [])])


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the results that may be edited; its config names it."""
    root = tmp_path / "results"
    shutil.copytree(finished, root)
    text = (root / "config.json").read_text()
    (root / "config.json").write_text(text.replace(json.dumps(str(finished)), json.dumps(str(root))))
    assert read_config(root / "config.json").results == str(root)
    return root


@pytest.mark.parametrize(("pattern", "edit", "commands"), EDITS)
def test_each_command_names_the_file_and_the_remedy_in_one_line(
    pattern: str,
    edit: Callable[[bytes], bytes] | None,
    commands: list[str],
    copied: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = sorted(copied.glob(pattern))
    for path in paths:
        if edit is None:
            path.unlink()
        else:
            path.write_bytes(edit(path.read_bytes()))
    assert paths
    for command in commands:
        capsys.readouterr()
        assert run(command, copied, finished) == 2, (command, capsys.readouterr())
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, (command, said)
        remedies = (
            "run ",
            "restore",
            "remove",
            "make it again",
            "keep one",
            "the columns are",
            "metatuner config",
            "judge",
            "write it again",
        )
        assert any(remedy in said[0] for remedy in remedies), (command, said)
        names = [path.name for path in paths] + [path.parent.name for path in paths] + ["gsm9k", "columns"]
        assert any(name in said[0] for name in names), (command, said)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_works_on_results_as_they_were_written(command: str, copied: Path, finished: Path) -> None:
    assert run(command, copied, finished) == 0


def test_the_verdict_names_cells_that_are_gone(
    copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "cells")
    assert run("verdict", copied, finished) == 1
    said = capsys.readouterr().err
    assert said.count("no folder ") == 6
    assert "all 6 cells are there" not in said
    assert json.loads((copied / "verdict.json").read_text())["ok"] is False


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xfd7zXZ\x00cut"])
def test_a_broken_archive_of_a_snapshot_is_named(
    content: bytes, copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "cells")
    (copied / "cells.tar.xz").write_bytes(content)
    for command in ("table_1", "report", "claims"):
        assert run(command, copied, finished) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cells.tar.xz: cut off or broken" in line
        assert "restore it" in line
