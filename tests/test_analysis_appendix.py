"""Tables 6 to 11, from files alone; text of any origin stays text in each format."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fake_results import fake_config, fake_run, plan_rows, write_settings

from metatuner.analysis.appendix import APPENDIX
from metatuner.analysis.tables import tables_of
from metatuner.errors import UserError
from metatuner.harness.config import Config

HOSTILE = '=HYPERLINK("x")|<script>alert(1)</script>\n\\input{x} `a` & $b_1$ %'
N = 6


def run(tmp_path: Path, **cells: list[float]) -> Config:
    """A run of zero-shot and MetaTuner-J on two benchmarks; `cells` gives scores by METHOD_BENCHMARK."""
    config = fake_config(tmp_path, methods=["zero_shot", "metatuner_j"], seeds=[0])
    fake_run(config, n=N)
    write_settings(config, {})
    for name in config.benchmarks:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        splits = {split: {"n": n} for split, n in (("pool", 50), ("tune", 7), ("test", N))}
        (folder / "splits.json").write_text(json.dumps({"splits": splits}))
        rows = [
            {
                "id": f"{name}-{i}",
                "query": f"q {i} of {name}",
                "kind": "odd" if i % 2 else "even",
                "group": str(i // 2),
                "gold": ["7"],
            }
            for i in range(N)
        ]
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in plan_rows(config):
        scores = cells.get(f"{row['method']}_{row['benchmark']}")
        path = tmp_path / "cells" / row["cell"] / "predictions.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for i, record in enumerate(records):
            record |= {"gold": ["7"], "prompt": f"prompt {i}", "completion": HOSTILE if i == 0 else f"answer {i}"}
            if scores:
                record["score"] = scores[i]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    described = [
        entry("metatuner_j", ["one thing", "another, with a | in it"], "metatuner_warmup", rank=4, epochs=3),
        entry("metatuner_warmup", [], None, rollouts=8),
        entry("zero_shot", [], None),
    ]
    (tmp_path / "methods.json").write_text(json.dumps(described))
    (tmp_path / "searches.json").write_text(json.dumps([search("current"), search("none")]))
    return config


def entry(name: str, deviations: list[str], requires: str | None, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "reference": f"paper of {name}",
        "deviations": deviations,
        "requires": [requires] if requires else [],
        "settings": [{"name": key, "default": value, "meaning": f"what {key} is"} for key, value in settings.items()],
    }


def search(status: str) -> dict[str, Any]:
    found = status != "none"
    return {
        "subject": "metatuner_j.without_f" if found else "sft",
        "benchmark": "math",
        "status": status,
        "search": {"rate": {"low": 0.001, "high": 0.1, "log": True}, "epochs": {"values": [1, 2]}},
        "settings": {"rate": 0.02} if found else None,
        "score": 61.5 if found else None,
        "trials": 8 if found else None,
        "failed": 1 if found else None,
        "at_edge": ["epochs"] if found else None,
        "rival": {} if found else None,
        "rival_score": 60.0 if found else None,
    }


def made(config: Config, name: str) -> list[dict[str, str]]:
    paths = APPENDIX[name](config)
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex"]
    with open(paths[0], encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_presets_with_a_main_experiment_have_these_tables(tmp_path: Path) -> None:
    assert set(APPENDIX) <= set(tables_of(fake_config(tmp_path)))


def test_data_sets_are_counted_from_their_files(tmp_path: Path) -> None:
    rows = made(run(tmp_path), "table_6")
    assert [row["benchmark"] for row in rows] == ["nano MATH", "nano GSM8K", "nano HotpotQA", "nano CosmosQA"]
    assert (rows[0]["train"], rows[0]["tune"], rows[0]["test"]) == ("8", "7", "6")
    assert rows[0]["contexts in test"] == "3"
    assert rows[0]["words a test query"] == "4.0"
    assert rows[0]["kinds of test queries"] == "even 3, odd 3"
    assert rows[1]["test rows in the paper"] == "1319 (inferred)"


def test_settings_are_those_used_with_their_meaning_and_default(tmp_path: Path) -> None:
    rows = {row["setting"]: row for row in made(run(tmp_path), "table_7")}
    assert rows["epochs"] == {
        "method": "MetaTuner-J",
        "setting": "epochs",
        "used": "2",
        "default": "3",
        "meaning": "what epochs is",
        "world": "nano",
    }
    assert rows["metatuner_warmup.rollouts"]["used"] == "8"


def test_cases_are_the_first_of_their_kind(tmp_path: Path) -> None:
    own, other = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    config = run(tmp_path, metatuner_j_gsm8k=own, zero_shot_gsm8k=other)
    cases = {row["case"]: row for row in made(config, "table_9") if row["benchmark"] == "nano GSM8K"}
    assert {case: row["id"] for case, row in cases.items()} == {
        "won": "gsm8k-1",
        "lost": "gsm8k-2",
        "both": "gsm8k-3",
        "neither": "gsm8k-0",
    }
    assert cases["won"]["generated prompt"] == "prompt 1"
    assert cases["won"]["query"] == "q 1 of gsm8k"


def test_a_models_text_is_inert_in_every_format(tmp_path: Path) -> None:
    config = run(tmp_path, metatuner_j_gsm8k=[0.0] * N, zero_shot_gsm8k=[0.0] * N)
    rows = made(config, "table_9")
    (row,) = [row for row in rows if row["benchmark"] == "nano GSM8K"]
    assert row["completion"] == "'" + HOSTILE
    folder = tmp_path / "tables"
    (line,) = [line for line in (folder / "table_9.md").read_text().splitlines() if "gsm8k-0" in line]
    assert "<script>" not in line
    assert line.replace("\\|", "").count("|") == len(row)  # of the CSV's columns all but its world
    latex = (folder / "table_9.tex").read_text()
    assert r"\input{x}" not in latex
    assert r"\textbackslash{}input\{x\}" in latex


def test_deviations_are_listed_one_a_line_and_their_absence_is_said(tmp_path: Path) -> None:
    rows = made(run(tmp_path), "table_10")
    assert [(row["method"], row["deviation here"]) for row in rows] == [
        ("Zero-shot", "none stated"),
        ("MetaTuner-J", "one thing"),
        ("MetaTuner-J", "another, with a | in it"),
        ("metatuner_warmup", "none stated"),
    ]


def test_searches_are_told_with_their_ranges_and_winners(tmp_path: Path) -> None:
    current, none = made(run(tmp_path), "table_11")
    assert current["searched"] == "rate: 0.001 to 0.1 (log); epochs: 1, 2"
    assert (current["settings"], current["score on tune"], current["runner-up"]) == ("rate = 0.02", "61.5", "60.0")
    assert current["trials"] == "8, 1 failed"
    assert (none["winner"], none["settings"], none["trials"]) == ("none", "", "")


@pytest.mark.parametrize(("name", "file"), [("table_6", "splits.json"), ("table_10", "methods.json")])
def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path, name: str, file: str) -> None:
    config = run(tmp_path)
    for path in tmp_path.rglob(file):
        path.unlink()
    with pytest.raises(UserError, match=rf"{file}.*run `snakemake"):
        APPENDIX[name](config)
