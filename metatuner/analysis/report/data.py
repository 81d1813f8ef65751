"""Data for the report's browser, as compressed JSON: each text once, each benchmark on its own."""

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from metatuner.analysis.names import Names, benchmark_rank, title_in
from metatuner.analysis.results.scores import RERUN, Score, main_scores, read_scores, read_settings
from metatuner.analysis.results.stored import (
    fit_folder,
    read_answers,
    read_cell_cost,
    read_fit_cost,
    read_test_rows,
)
from metatuner.config import Config, Layout
from metatuner.errors import UserError
from metatuner.files import read_lines

POINTS = 200
"""Maximum points of a training curve; longer curves are thinned."""


def packed(value: Any) -> str:
    """Encode a value as deflated JSON in base64: equal values give equal bytes, and nothing can be read as markup.

    Numbers that no browser reads (such as a diverged loss) become "NaN", "Infinity" or "-Infinity". A lone surrogate
    becomes its escape.
    """
    text = json.dumps(readable(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return base64.b64encode(zlib.compress(text.encode(errors="backslashreplace"), 9)).decode()


def readable(value: Any) -> Any:
    """The value, with strings in place of numbers that JSON lacks (RFC 8259, section 6)."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {name: readable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [readable(each) for each in value]
    return value


def browser(config: Config) -> dict[str, dict[str, Any]]:
    """The main experiment's predictions by benchmark.

    Each benchmark has:

    - `title`.
    - `ids`, `kinds`, `queries` and `golds`: by row.
    - `texts`: every distinct prompt, completion and extracted answer.
    - `cells`: each with `method`, `seed`, `key` and, by row, `prompt`, `completion`, `extracted` (indices into `texts`;
      -1 for none) and `score`.
    - `holes`: cells without a result, with `method`, `seed`, `status` and `reason`.
    - `methods`: in the order of tables.
    """
    layout, names = Layout(config), Names.of(config)
    by_benchmark: dict[str, list[Score]] = {}
    holes: dict[str, list[Score]] = {}
    for score in main_scores(config, complete=False) if "main" in config.experiments else ():
        (by_benchmark if score.status == "ok" else holes).setdefault(score.benchmark, []).append(score)
    found = {}
    for benchmark in sorted({*by_benchmark, *holes}, key=benchmark_rank):
        complete = by_benchmark.get(benchmark, [])
        missing = sorted(holes.get(benchmark, []), key=lambda each: (names.rank(each.method), each.seed))
        methods = {each.method for each in (*complete, *missing)}
        rows = read_test_rows(layout, benchmark)
        place = {row["id"]: index for index, row in enumerate(rows)}
        texts: dict[str, int] = {}
        cells = []
        for score in sorted(complete, key=lambda each: (names.rank(each.method), each.seed)):
            records = read_answers(layout, score.cell).values()
            ordered = sorted(records, key=lambda record: place.get(record["id"], len(rows)))
            if [record["id"] for record in ordered] != [row["id"] for row in rows]:
                raise UserError(f"cell {score.cell} was tested on other rows than data/{benchmark}/test.jsonl; {RERUN}")
            cell: dict[str, Any] = {"method": names.title(score.method), "seed": score.seed, "key": score.cell}
            for name in ("prompt", "completion", "extracted"):
                cell[name] = [
                    -1 if record.get(name) is None else texts.setdefault(record[name], len(texts)) for record in ordered
                ]
            cell["score"] = [round(record["score"], 4) for record in ordered]
            cells.append(cell)
        found[benchmark] = {
            "title": title_in(config, benchmark),
            "ids": [row["id"] for row in rows],
            "kinds": [row["kind"] for row in rows],
            "queries": [row["query"] for row in rows],
            "golds": [" or ".join(row["gold"]) for row in rows],
            "texts": list(texts),
            "cells": cells,
            "methods": [names.title(name) for name in sorted(methods, key=names.rank)],
            "holes": [
                {"method": names.title(one.method), "seed": one.seed, "status": one.status, "reason": one.reason}
                for one in missing
            ],
        }
    return found


def cells(config: Config) -> list[dict[str, Any]]:
    """Every cell of every experiment: its identity, its score or why it has none, its settings, cost and curves."""
    layout, names = Layout(config), Names.of(config)
    settings = {
        (row["experiment"], row["method"], row["variant"], row["benchmark"]): (row["tuned"], row["settings"])
        for row in read_settings(layout.settings)
    }
    found: dict[str, dict[str, Any]] = {}
    for score in read_scores(layout.scores):
        if score.cell in found:
            if score.experiment not in found[score.cell]["experiments"]:
                found[score.cell]["experiments"].append(score.experiment)
            continue
        tuned, own = settings.get((score.experiment, score.method, score.variant, score.benchmark), ("", "{}"))
        entry: dict[str, Any] = {
            "key": score.cell,
            "experiments": [score.experiment],
            "method": names.title(score.method, score.variant),
            "benchmark": title_in(config, score.benchmark),
            "trained_on": score.trained_on,
            "generator": score.generator,
            "seed": score.seed,
            "metric": score.metric,
            "score": score.score,
            "status": score.status,
            "reason": score.reason,
            "tuned": tuned,
            "settings": json.loads(own),
        }
        if score.status == "ok":
            entry |= _made(layout, score.cell)
        found[score.cell] = entry
    return list(found.values())


def _made(layout: Layout, cell: str) -> dict[str, Any]:
    """Costs and curves of a complete cell, as far as its files exist."""
    folder = layout.cell(cell)
    told: dict[str, Any] = {}
    if (folder / "cost.json").is_file():
        told["evaluation_cost"] = read_cell_cost(layout, cell)
    if (folder / "cell.json").is_file():
        fit = fit_folder(layout, cell)
        if (fit / "cost.json").is_file():
            told["fit_cost"] = read_fit_cost(fit)
        if (fit / "log.jsonl").is_file():
            told |= _curves(read_lines(fit / "log.jsonl", RERUN))
    return told


def _curves(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of repeated events as series, by event and name; other events unchanged."""
    series: dict[str, list[float]] = {}
    others: list[Mapping[str, Any]] = []
    counts: dict[str, int] = {}
    events = list(events)
    for event in events:
        counts[str(event.get("event"))] = counts.get(str(event.get("event")), 0) + 1
    for event in events:
        name = str(event.get("event"))
        if counts[name] < 3:
            others.append(event)
            continue
        for key, value in event.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "epoch"):
                series.setdefault(f"{name}: {key}", []).append(float(value))
    return {"curves": {name: thinned(values) for name, values in sorted(series.items())}, "events": others[:20]}


def thinned(values: list[float]) -> list[float]:
    """At most `POINTS` values, evenly spaced, including the last."""
    if len(values) <= POINTS:
        return values
    return [values[round(index * (len(values) - 1) / (POINTS - 1))] for index in range(POINTS)]


def costs(config: Config) -> list[list[str]]:
    """Per method: the number of fits, costs per fit including what a fit builds on, and time per test query."""
    layout, names = Layout(config), Names.of(config)
    fits: dict[str, list[dict[str, Any]]] = {}
    queries: dict[str, list[float]] = {}
    for score in main_scores(config) if "main" in config.experiments else ():
        if not (layout.cell(score.cell) / "cell.json").is_file():
            continue
        fit = fit_folder(layout, score.cell)
        if (fit / "cost.json").is_file():
            fits.setdefault(score.method, []).append(read_fit_cost(fit))
        if (layout.cell(score.cell) / "cost.json").is_file():
            spent = read_cell_cost(layout, score.cell)["seconds"]
            queries.setdefault(score.method, []).append(spent / score.n)
    rows = []
    for method in sorted(fits, key=names.rank):
        own = fits[method]

        def mean(name: str, own: list[dict[str, Any]] = own) -> float:
            return sum(each.get(name, 0) for each in own) / len(own)

        rows.append(
            [
                names.title(method),
                str(len(own)),
                *(f"{mean(name):,.0f}" for name in ("lm_calls", "prompt_tokens", "generated_tokens", "trained_tokens")),
                f"{mean('flops') / 1e12:.3g}",
                f"{mean('seconds'):.1f}",
                f"{max(each['peak_gpu_memory_bytes'] or each['peak_memory_bytes'] for each in own) / 1e6:,.0f}",
                f"{1000 * sum(queries.get(method, [0])) / max(len(queries.get(method, [])), 1):.1f}",
            ]
        )
    return rows
