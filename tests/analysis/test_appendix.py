"""Tables 6 to 11, from files alone; text of any origin stays text in each format."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metatuner.analysis.tables import tables_of
from metatuner.analysis.tables.appendix import APPENDIX
from metatuner.config import Config, MethodConfig
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from tests.toys.results import METRICS, fake_config, fake_run, plan_rows, write_settings

HOSTILE = '=HYPERLINK("x")|<script>alert(1)</script>\n\\input{x} `a` & $b_1$ %'
N = 6


def run(tmp_path: Path, keys: dict[str, Any] | None = None, **cells: list[float]) -> Config:
    """A run of zero-shot and MetaTuner-J; `keys` of its preset, `cells` gives scores by METHOD_BENCHMARK."""
    config = fake_config(tmp_path, **{"methods": ["zero_shot", "metatuner_j"], "seeds": [0], **(keys or {})})
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


def rewrite(path: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    """Change keys of each record of a JSON Lines file."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(each | change(index, each)) + "\n" for index, each in enumerate(records)))


def entry(name: str, deviations: list[str], requires: str | None, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "family": "other",
        "reference": f"paper of {name}",
        "deviations": deviations,
        "requires": [requires] if requires else [],
        "settings": [{"name": key, "default": value, "meaning": f"what {key} is"} for key, value in settings.items()],
    }


SHARE = {"low": 0, "high": 1, "log": False}


def search(status: str) -> dict[str, Any]:
    found = status != "none"
    return {
        "subject": "metatuner_j.without_f" if found else "sft",
        "benchmark": "math",
        "status": status,
        "search": {"rate": {"low": 0.001, "high": 0.1, "log": True}, "epochs": {"values": [1, 2]}, "share": SHARE},
        "settings": {"rate": 0.02} if found else None,
        "score": 61.5 if found else None,
        "trials": 8 if found else None,
        "failed": 1 if found else None,
        "at_edge": ["epochs"] if found else None,
        "rival_score": 60.0 if found else None,
    }


def made(config: Config, name: str) -> list[dict[str, str]]:
    paths = APPENDIX[name](config)
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex", ".json"]
    with open(paths[0], encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_presets_with_a_main_experiment_have_these_tables(tmp_path: Path) -> None:
    assert set(APPENDIX) <= set(tables_of(fake_config(tmp_path)))


def test_data_sets_are_counted_from_their_files(tmp_path: Path) -> None:
    rows = made(run(tmp_path), "table_6")
    assert [row["benchmark"] for row in rows] == ["nano MATH", "nano GSM8K", "nano HotpotQA", "nano CosmosQA"]
    assert (rows[0]["train"], rows[0]["tune"], rows[0]["test"]) == ("8", "7", "6")
    assert rows[0]["contexts in test"] == "3"
    assert rows[0]["words per test query"] == "4.0"
    assert rows[0]["kinds of test queries"] == "even 3, odd 3"
    assert rows[1]["test rows in the paper"] == "1319 (inferred)"


def test_of_all_rows_the_dev_rows_are_no_train_rows_and_the_most_frequent_kind_comes_first(tmp_path: Path) -> None:
    sizes = {"math": {"train": 8, "test": 6}, "gsm8k": {"train": None, "dev": 5, "test": 6}}
    keys = {
        "benchmarks": {name: {"source": "nano", "sizes": each} for name, each in sizes.items()},
        "experiments": {
            "main": {
                "methods": ["zero_shot", "metatuner_j"],
                "benchmarks": list(sizes),
                "seeds": [0],
                "generator": "large",
            }
        },
    }
    config = run(tmp_path, keys)
    kinds = ["b", "a", "c", "b", "b", "c"]
    rewrite(
        tmp_path / "data" / "gsm8k" / "test.jsonl", lambda index, _: {"kind": kinds[index], "group": f"g{index % 2}"}
    )
    math, gsm8k = made(config, "table_6")
    assert (math["train"], math["dev"]) == ("8", "64")
    assert (gsm8k["train"], gsm8k["dev"]) == ("45", "5")  # of a pool of 50
    assert (gsm8k["kinds of test queries"], gsm8k["contexts in test"]) == ("b 3, c 2, a 1", "2")


def test_settings_that_differ_between_benchmarks_are_told_for_each(tmp_path: Path) -> None:
    config = run(tmp_path)
    warmed = MethodConfig(settings={"rollouts": 16})
    config = config.model_copy(update={"methods": {**config.methods, "metatuner_warmup": warmed}})
    values = {"math": {"rank": 4, "epochs": 2}, "gsm8k": {"rank": 4, "epochs": 5, "metatuner_warmup": {"rollouts": 32}}}
    other = {"rank": 99, "epochs": 99}
    lines = ["experiment,method,variant,benchmark,generator,tuned,settings"]
    for experiment, variant in (("other", "default"), ("main", "without_f"), ("main", "default")):
        for name, own in values.items():
            told = json.dumps(own if (experiment, variant) == ("main", "default") else other).replace('"', '""')
            lines.append(f'{experiment},metatuner_j,{variant},{name},large,none,"{told}"')
    (tmp_path / "settings.csv").write_text("\n".join(lines) + "\n")
    used = {row["setting"]: row["used"] for row in made(config, "table_7")}
    assert used == {
        "rank": "4",
        "epochs": "nano MATH: 2; nano GSM8K: 5",
        "metatuner_warmup.rollouts": "nano MATH: 16; nano GSM8K: 32",
    }


def test_prompts_and_lengths_are_the_presets_where_it_has_its_own(tmp_path: Path) -> None:
    keys = {"benchmarks": {name: {"source": "nano", "sizes": {"test": 6}} for name in METRICS}}
    keys["benchmarks"]["math"] |= {"initial_prompt": "Mine.", "max_new_tokens": 7}
    rows = made(run(tmp_path, keys), "table_8")
    told = {(row["of"], row["what"]): row["text"] for row in rows}
    assert told["nano MATH", "initial prompt p~"] == "Mine."
    assert told["nano MATH", "most new tokens"] == "7"
    own = get_benchmark("gsm8k")
    assert told["nano GSM8K", "initial prompt p~"] == own.initial_prompt != "Mine."
    assert told["nano GSM8K", "most new tokens"] == str(own.max_new_tokens)


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


def test_cases_are_of_the_first_seed_and_the_first_generator_and_half_a_score_solves(tmp_path: Path) -> None:
    models = {
        "actor": {"path": "nano:a"},
        "generators": {name: {"path": f"nano:{name}"} for name in ("large", "small")},
    }
    grid = {
        "methods": ["zero_shot", "metatuner_j"],
        "benchmarks": ["gsm8k"],
        "seeds": [2, 0],
        "generator": ["large", "small"],
    }
    config = run(tmp_path, {"models": models, "experiments": {"main": grid}})
    scores = {
        ("metatuner_j", "large", 2): [0.0, 0.5, 0.0, 1.0, 1.0, 0.0],
        ("zero_shot", "", 2): [0.0, 0.0, 1.0, 0.5, 0.0, 0.0],
    }
    for row in plan_rows(config):
        own = scores.get((row["method"], row["generator"], row["seed"]), [1.0] * N)
        rewrite(
            tmp_path / "cells" / row["cell"] / "predictions.jsonl",
            lambda index, _, own=own, row=row: {
                "score": own[index],
                "gold": ["7", "8"],
                "prompt": f"of {row['generator']}, seed {row['seed']}",
            },
        )
    cases = {row["case"]: row for row in made(config, "table_9")}
    ids = {case: row["id"] for case, row in cases.items()}
    assert ids == {"won": "gsm8k-1", "lost": "gsm8k-2", "both": "gsm8k-3", "neither": "gsm8k-0"}
    assert {row["generated prompt"] for row in cases.values()} == {"of large, seed 2"}
    assert (cases["won"]["score"], cases["won"]["reference"]) == ("50", "7 or 8")


def test_prompts_that_state_an_answer_are_marked_and_their_share_is_told(tmp_path: Path) -> None:
    config = run(tmp_path, metatuner_j_gsm8k=[0.0, 1.0] * 3, zero_shot_gsm8k=[0.0] * N)
    counts = {"metatuner_j": {"gsm8k": 4, "math": 0}, "zero_shot": {"gsm8k": None}}
    for row in plan_rows(config):
        folder = tmp_path / "cells" / row["cell"]
        if row["method"] == "metatuner_j" and row["benchmark"] == "gsm8k":
            rewrite(folder / "predictions.jsonl", lambda index, _: {"leaks": index % 2 == 1})
        metrics = json.loads((folder / "metrics.json").read_text())
        known = counts[row["method"]]
        if row["benchmark"] in known:
            metrics |= {"leaks": known[row["benchmark"]], "n": N}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = made(config, "table_9")
    told = {row["id"]: row["states an answer"] for row in rows if row["benchmark"] == "nano GSM8K"}
    assert told == {"gsm8k-0": "no", "gsm8k-1": "yes"}
    assert {row["states an answer"] for row in rows if row["benchmark"] == "nano MATH"} == {""}  # an older cell
    note = (tmp_path / "tables" / "table_9.md").read_text().rstrip().split("\n")[-1]
    assert note.endswith("how to find it: MetaTuner-J: nano MATH 0.0 %, nano GSM8K 66.7 %.")


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
        ("MetaTuner's warm-up", "none stated"),
    ]


def test_searches_are_told_with_their_ranges_and_winners(tmp_path: Path) -> None:
    current, none = made(run(tmp_path), "table_11")
    assert (current["method"], none["method"], current["benchmark"]) == ("MetaTuner-J (w/o F)", "SFT", "nano MATH")
    assert current["searched"] == "rate: 0.001 to 0.1 (log); epochs: 1, 2; share: 0 to 1"
    assert (current["settings"], current["score on tune"], current["runner-up"]) == ("rate = 0.02", "61.5", "60.0")
    assert current["trials"] == "8, 1 failed"
    assert (none["winner"], none["settings"], none["trials"]) == ("none", "", "")


@pytest.mark.parametrize(("name", "file"), [("table_6", "splits.json"), ("table_10", "methods.json")])
def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path, name: str, file: str) -> None:
    config = run(tmp_path)
    for path in tmp_path.rglob(file):
        path.unlink()
    with pytest.raises(UserError, match=rf"{file}.*run `(snakemake|metatuner scores)"):
        APPENDIX[name](config)
