"""Results folders as after a run, with scores drawn from known probabilities."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from metatuner.config import Config, resolve
from metatuner.hashing import hash_value

METRICS = {"math": ("accuracy",), "gsm8k": ("accuracy",), "hotpotqa": ("em", "f1"), "cosmosqa": ("accuracy",)}
CHANCES = {"zero_shot": 0.3, "few_shot": 0.4, "opro": 0.5, "sft": 0.62, "metatuner_j": 0.7}
"""Probability of a right answer, before the benchmark's and the query's own difficulty."""
GENERATING = ("opro", "metatuner_i", "metatuner_j")
"""Methods that use a generator."""


def fake_config(
    results: Path, *, methods: Sequence[str] = tuple(CHANCES), seeds: Sequence[int] = (0, 1, 2), **keys: Any
) -> Config:
    """A resolved nano-like preset with its results in `results`; `keys` replace top-level keys."""
    values: dict[str, Any] = {
        "preset": "nano",
        "claims": "paper",
        "results": str(results),
        "models": {"actor": {"path": "nano:actor"}, "generators": {"large": {"path": "nano:generator"}}},
        "benchmarks": {name: {"source": "nano", "sizes": {"train": 8, "test": 40}} for name in METRICS},
        "budgets": {"default": {}, "wide": {}},
        "methods": {name: {} for name in methods},
        "experiments": {
            "main": {"methods": list(methods), "benchmarks": list(METRICS), "seeds": list(seeds), "generator": "large"}
        },
    }
    return resolve({**values, **keys})


def plan_rows(config: Config) -> list[dict[str, Any]]:
    """The plan's rows for a fake config."""
    rows = []
    for name, experiment in config.experiments.items():
        for method in experiment.methods:
            for variant in experiment.variants.get(method) or ["default"]:
                for generator in experiment.generators if method in GENERATING else [""]:
                    for benchmark in experiment.benchmarks:
                        for seed in experiment.seeds:
                            # The first generator's default has the same key in every experiment.
                            other = [variant] * (variant != "default") + [generator] * (generator == "small")
                            trained_on = "+".join(experiment.trained_on(benchmark))
                            other += [trained_on] * (trained_on != benchmark)
                            fit = hash_value([method, *other, benchmark, seed])
                            rows.append(
                                {
                                    "experiment": name,
                                    "method": method,
                                    "variant": variant,
                                    "benchmark": benchmark,
                                    "trained_on": trained_on,
                                    "generator": generator,
                                    "seed": seed,
                                    "cell": hash_value([fit, "cell"]),
                                    "fit": fit,
                                    "tuned": "none",
                                }
                            )
    return rows


def fake_scores(method: str, benchmark: str, seed: int, n: int, chances: Mapping[str, float]) -> list[float]:
    """Binary scores; a query is about equally hard for all methods."""
    hardness = random.Random(f"{benchmark} queries")
    luck = random.Random(f"{method} {benchmark} {seed}")
    shift = 0.08 * list(METRICS).index(benchmark) - 0.1
    means = [chances.get(method, 0.5) + shift + hardness.uniform(-0.25, 0.25) for _ in range(n)]
    return [float(luck.random() < mean) for mean in means]


def write_cell(root: Path, cell: str, benchmark: str, scores: Sequence[float], rows_a_group: int = 1) -> None:
    """Write a cell's files; `rows_a_group` successive rows share a group."""
    folder = root / "cells" / cell
    folder.mkdir(parents=True)
    metrics = METRICS[benchmark]
    with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
        for index, score in enumerate(scores):
            values = {metric: min(1.0, score + 0.25 * (metric == "f1")) for metric in metrics}
            row = {"id": f"{benchmark}-{index}", "group": f"g{index // rows_a_group}", "score": score}
            print(json.dumps({**row, "prompt": "p", "completion": "c", "metrics": values}), file=file)
    means = {
        metric: sum(min(1.0, score + 0.25 * (metric == "f1")) for score in scores) / len(scores) for metric in metrics
    }
    record = {"metrics": means, "primary": metrics[0], "n": len(scores)}
    (folder / "metrics.json").write_text(json.dumps(record), encoding="utf-8")


def fake_name(row: Mapping[str, Any]) -> str:
    """The key of a row in `chances`: METHOD or METHOD.VARIANT, followed by " small" or " others" if they apply."""
    name = row["method"] if row["variant"] == "default" else f"{row['method']}.{row['variant']}"
    return name + " small" * (row["generator"] == "small") + " others" * (row["trained_on"] != row["benchmark"])


def write_cells(
    config: Config,
    *,
    n: int = 40,
    outcomes: Mapping[str, tuple[str, str]] | None = None,
    chances: Mapping[str, float] = CHANCES,
    rows_a_group: Mapping[str, int] | None = None,
    scores: Callable[[Mapping[str, Any]], Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """Write every cell, except those with another status in `outcomes`; return the plan's rows.

    `rows_a_group` is per benchmark. `scores` gives the scores of a row of the plan; without it they are drawn by
    `chances`.
    """
    rows = plan_rows(config)
    for row in rows:
        if (outcomes or {}).get(row["cell"], ("ok", ""))[0] == "ok":
            if (Path(config.results) / "cells" / row["cell"]).exists():  # shared with another experiment
                continue
            drawn = fake_scores(fake_name(row), row["benchmark"], row["seed"], n, chances)
            write_cell(
                Path(config.results),
                row["cell"],
                row["benchmark"],
                drawn if scores is None else scores(row),
                (rows_a_group or {}).get(row["benchmark"], 1),
            )
    return rows


def write_settings(config: Config, tuned: Mapping[tuple[str, str], str]) -> None:
    """Write settings.csv. `tuned`: where settings come from, by (method, benchmark); others have nothing to tune."""
    lines = ["experiment,method,variant,benchmark,generator,tuned,settings"]
    keys = ("experiment", "method", "variant", "benchmark", "generator")
    for names in dict.fromkeys(tuple(row[key] for key in keys) for row in plan_rows(config)):
        word = tuned.get((names[1], names[3]), "none")
        lines.append(",".join([*names, word, '"{""rank"": 4, ""epochs"": 2}"']))
    (Path(config.results) / "settings.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def fake_run(config: Config, *, n: int = 40, **cells: Any) -> list[dict[str, Any]]:
    """Write cells and scores.csv of a run in which everything worked; return the plan's rows."""
    from metatuner.analysis.results.scores import write_scores

    rows = write_cells(config, n=n, **cells)
    write_scores(rows, cells.get("outcomes") or {}, Path(config.results))
    return rows


def judge_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge claims on small runs too. What a claim needs of a run is tested in test_claims_needs.py."""
    monkeypatch.setattr("metatuner.analysis.claims.listed.lacking", lambda runs, claim: "")


def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use fewer resamples, for tests that do not look at small p-values. A test module makes it an autouse fixture."""
    for module in ("intervals", "contrasts"):
        monkeypatch.setattr(f"metatuner.analysis.statistics.{module}.TEST_RESAMPLES", 4000)
        monkeypatch.setattr(f"metatuner.analysis.statistics.{module}.RESAMPLES", 2000)
