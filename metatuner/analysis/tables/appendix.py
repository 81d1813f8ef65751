"""Tables 6 to 11: data sets, settings, prompts, cases, deviations, searches. No statistics here."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metatuner.analysis.names import METRICS, Names, benchmark_rank, describe_world, title_in
from metatuner.analysis.results.published import read_test_sizes
from metatuner.analysis.results.scores import RERUN, main_scores, read_metrics, read_settings
from metatuner.analysis.results.stored import (
    read_answers,
    read_methods,
    read_searches,
    read_split_sizes,
    read_test_rows,
)
from metatuner.analysis.tables.table import Table, write_tables
from metatuner.config import DEFAULT_VARIANT, Config, Layout
from metatuner.errors import UserError
from metatuner.harness.benchmarks import Benchmark, get_benchmark
from metatuner.harness.benchmarks.lm_eval_task import LmEvalBenchmark, Task

SHOWN = "metatuner_j"
"""Table 9 shows prompts of this method."""
BESIDE = "zero_shot"
"""Table 9 compares `SHOWN` with this method."""
SOURCES = {"hub": "the Hub", "local": "local files", "nano": "the nano world", "lm_eval": "lm-eval's task"}
CASES = {"won": (True, False), "lost": (False, True), "both": (True, True), "neither": (False, False)}
"""Cases of Table 9: whether `SHOWN` and `BESIDE` solve the row."""
LEAKS = "states an answer"
"""Column of Table 9: whether the prompt leaks (`Benchmark.leaks`)."""


def table_6(config: Config) -> list[Path]:
    """Data sets as this preset uses them: `tables/table_6.{csv,md,tex,json}`."""
    paper = read_test_sizes()
    header = ["benchmark", "rows from", "train", "dev", "tune", "test", "contexts in test", "words per test query"]
    header += ["kinds of test queries", "metric", "test rows in the paper"]
    rows = []
    for name in _benchmarks(config):
        used, benchmark = config.benchmarks[name], _benchmark(config, name)
        test, splits = read_test_rows(Layout(config), name), read_split_sizes(Layout(config), name)
        if len(test) != splits["test"]:
            raise UserError(f"data/{name}/test.jsonl: {len(test)} rows, but {splits['test']} were drawn; {RERUN}")
        pool = splits["pool"]
        train = pool - used.sizes.dev if used.sizes.train is None else used.sizes.train
        kinds = Counter(row["kind"] for row in test)
        words = sum(len(row["query"].split()) for row in test) / len(test)
        rows.append(
            [
                title_in(config, name),
                SOURCES[used.source],
                str(train),
                str(used.sizes.dev),
                str(splits["tune"]),
                str(splits["test"]),
                str(len({row["group"] for row in test})),
                f"{words:.1f}",
                ", ".join(
                    f"{kind} {count}" for kind, count in sorted(kinds.items(), key=lambda each: (-each[1], each[0]))
                ),
                METRICS.get(benchmark.primary, benchmark.primary),
                f"{paper[name].size} ({paper[name].standing})" if name in paper else "",
            ]
        )
    notes = [
        "Train and dev rows are drawn anew for each seed from a pool of train rows; tune and test rows are the same "
        "for all. No two splits share a query (of CosmosQA: a context).",
        "The paper's sizes are inferred from its scores, and its data sets are not the nano world's.",
    ]
    return write_tables(config, "table_6", [Table("Table 6: data sets", _world(config), header, rows, notes)])


def table_7(config: Config) -> list[Path]:
    """Settings of the main experiment's methods, explained: `tables/table_7.{csv,md,tex,json}`."""
    described = {entry["name"]: entry for entry in read_methods(Layout(config))}
    names, rows = Names.of(config), []
    for method, by_benchmark in _main_settings(config).items():
        own = [one["name"] for one in described[method]["settings"]]
        meanings = {one["name"]: (one["meaning"], one["default"]) for one in described[method]["settings"]}
        for needed in described[method]["requires"]:  # settings of a required method stand under its name
            listed = described.get(needed, {"settings": []})["settings"]
            meanings |= {f"{needed}.{one['name']}": (one["meaning"], one["default"]) for one in listed}
            preset = config.methods[needed].settings if needed in config.methods else {}
            for benchmark, settings in by_benchmark.items():
                over = settings.get(needed, {})
                values = {one["name"]: one["default"] for one in listed} | preset | over
                by_benchmark[benchmark] = settings | {f"{needed}.{name}": value for name, value in values.items()}
            own += [f"{needed}.{one['name']}" for one in listed]
        for name in own:
            values = {benchmark: settings.get(name) for benchmark, settings in by_benchmark.items()}
            meaning, default = meanings[name]
            rows.append([names.title(method), name, _by_benchmark(config, values), _value(default), meaning])
    header = ["method", "setting", "used", "default", "meaning"]
    notes = ["Used: one value where all benchmarks have it. Where values come from is in Table 11."]
    table = Table("Table 7: settings", _world(config), header, rows, notes, widths=(0.12, 0.2, 0.18, 0.1, 0.34))
    return write_tables(config, "table_7", [table])


def table_8(config: Config) -> list[Path]:
    """Initial prompts and templates: `tables/table_8.{csv,md,tex,json}`."""
    rows = []
    for name in _benchmarks(config):
        used, benchmark = config.benchmarks[name], _benchmark(config, name)
        title = title_in(config, name)
        rows.append([title, "initial prompt p~", used.initial_prompt or benchmark.initial_prompt])
        rows.append([title, "most new tokens", str(used.max_new_tokens or benchmark.max_new_tokens)])
        stops = f"those of {used.task}" if used.task else ", ".join(map(repr, benchmark.stops)) or "none"
        rows.append([title, "texts that end a completion", stops])
        rows += [[title, f"key {key}", benchmark.chosen(key)] for key in benchmark.takes]
    for name, model in config.models.generators.items():
        rows.append([f"generator {name}", "system turn, when it writes a prompt", model.rewrite_system])
        rows.append([f"generator {name}", "user turn, when it writes a prompt", model.rewrite_user])
    notes = [
        "The actor reads a prompt, demonstrations if there are any, and the query: as system, user and assistant turns "
        "through its chat template, or as plain text where it has none; the same for every method.",
        "The paper's templates are not public; these are this harness's own.",
    ]
    table = Table(
        "Table 8: prompts and templates", _world(config), ["of", "what", "text"], rows, notes, widths=(0.15, 0.2, 0.6)
    )
    return write_tables(config, "table_8", [table])


def table_9(config: Config) -> list[Path]:
    """Generated prompts with their queries: `tables/table_9.{csv,md,tex,json}`.

    Shows four test rows per benchmark: the first that only the method solves, the first that only zero-shot solves, the
    first that both solve, and the first that neither solves. This rule alone chooses the rows, not how well they read.
    """
    seed = config.experiments[config.main].seeds[0]
    cells = {(score.method, score.benchmark): score for score in main_scores(config) if score.seed == seed}
    rows = []
    for name in _benchmarks(config):
        own, other = cells.get((SHOWN, name)), cells.get((BESIDE, name))
        if own is None or other is None:
            continue
        queries = {row["id"]: row["query"] for row in read_test_rows(Layout(config), name)}
        answers, others = (read_answers(Layout(config), score.cell) for score in (own, other))
        for case, solved in CASES.items():
            found = next((key for key in answers if (_solves(answers[key]), _solves(others[key])) == solved), None)
            if found is not None:
                record = answers[found]
                leaks = "yes" if record.get("leaks") is True else "no" if record.get("leaks") is False else ""
                texts = [queries[found], record["prompt"], leaks, record["completion"], " or ".join(record["gold"])]
                title = title_in(config, name)
                rows.append([title, case, found, *texts, f"{100 * record['score']:.0f}"])
    header = ["benchmark", "case", "id", "query", "generated prompt", LEAKS, "completion", "reference", "score"]
    names = Names.of(config)
    notes = [
        f"{names.title(SHOWN)}, first seed, against {names.title(BESIDE)}: won, it alone scores at least half; lost, "
        "the other alone does; both; neither. Always the first such test row.",
        *_leaks(config),
    ]
    widths = (0.08, 0.06, 0.07, 0.23, 0.2, 0.05, 0.13, 0.07, 0.05)
    table = Table("Table 9: generated prompts", _world(config), header, rows, notes, widths=widths)
    return write_tables(config, "table_9", [table])


def table_10(config: Config) -> list[Path]:
    """What methods are and where they differ from their sources: `tables/table_10.{csv,md,tex,json}`."""
    described = read_methods(Layout(config))
    names, rows = Names.of(config), []
    for entry in sorted(described, key=lambda each: names.rank(each["name"])):
        for deviation in entry["deviations"] or ["none stated"]:
            rows.append([names.title(entry["name"]), entry["reference"], deviation])
    header = ["method", "described in", "deviation here"]
    table = Table("Table 10: deviations", _world(config), header, rows, widths=(0.15, 0.3, 0.5))
    return write_tables(config, "table_10", [table])


def table_11(config: Config) -> list[Path]:
    """Searches and their winners: `tables/table_11.{csv,md,tex,json}`."""
    names, rows = Names.of(config), []
    for search in read_searches(Layout(config)):
        method, _, variant = search["subject"].partition(".")
        found = search["score"] is not None
        rows.append(
            [
                names.title(method, variant or DEFAULT_VARIANT),
                title_in(config, search["benchmark"]),
                search["status"],
                "; ".join(f"{name}: {_space(space)}" for name, space in search["search"].items()),
                _settings(search["settings"]) if found else "",
                f"{search['score']:.1f}" if found else "",
                f"{search['rival_score']:.1f}" if search["rival_score"] is not None else "",
                f"{search['trials']}, {search['failed']} failed" if found else "",
                ", ".join(search["at_edge"] or []),
                search.get("date") or "",
            ]
        )
    header = [
        "method",
        "benchmark",
        "winner",
        "searched",
        "settings",
        "score on tune",
        "runner-up",
        "trials",
        "at an edge",
        "stored on",
    ]
    notes = [
        "Random search; the first trial is the preset's own settings. Scores on tune rows are the best of all trials, "
        "so optimistic; no test row took part. current: in use; expired: what it holds for has changed, so the "
        "preset's own settings are in use; none: not searched.",
    ]
    widths = (0.11, 0.1, 0.06, 0.2, 0.19, 0.06, 0.06, 0.07, 0.07, 0.06)
    table = Table("Table 11: searched settings", _world(config), header, rows, notes, widths=widths)
    return write_tables(config, "table_11", [table])


APPENDIX: dict[str, Callable[[Config], list[Path]]] = {
    "table_6": table_6,
    "table_7": table_7,
    "table_8": table_8,
    "table_9": table_9,
    "table_10": table_10,
    "table_11": table_11,
}
"""The maker of each of these tables, by name; a config has them if it has the main experiment."""


# ---- what they read ------------------------------------------------------------------------------------------------


def _world(config: Config) -> str:
    return describe_world(config, config.main)


def _benchmark(config: Config, name: str) -> Benchmark:
    """A benchmark as it is asked and scored. An lm-eval task is not loaded: the config has its prompt and its limit."""
    used = config.benchmarks[name]
    if used.task is not None:
        return LmEvalBenchmark(name, Task(used.task, metric=used.metric))
    return get_benchmark(name, config.extra_benchmarks).with_overrides(choices=used.choices)


def _benchmarks(config: Config) -> list[str]:
    return sorted(config.experiments[config.main].benchmarks, key=benchmark_rank)


def _main_settings(config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Settings of the main experiment by method and benchmark, in the order of tables."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_settings(Layout(config).settings):
        if row["experiment"] == config.main and row["variant"] == DEFAULT_VARIANT:
            found.setdefault(row["method"], {}).setdefault(row["benchmark"], json.loads(row["settings"]))
    return {method: found[method] for method in sorted(found, key=Names.of(config).rank)}


def _leaks(config: Config) -> list[str]:
    """A note with the share of leaking prompts, by method and benchmark, over the seeds of the main experiment.

    Methods with one prompt for all queries are left out. There is no note if all methods are.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for score in main_scores(config):
        metrics = read_metrics(Layout(config).root, score.cell)
        if metrics.get("leaks") is not None:
            found = counts.setdefault(score.method, {}).setdefault(score.benchmark, [0, 0])
            found[0] += metrics["leaks"]
            found[1] += metrics["n"]
    names = Names.of(config)
    shares = [
        f"{names.title(method)}: "
        + ", ".join(
            f"{title_in(config, name)} {100 * leaks / n:.1f} %"
            for name, (leaks, n) in sorted(counts[method].items(), key=lambda each: benchmark_rank(each[0]))
        )
        for method in sorted(counts, key=names.rank)
    ]
    told = f"Test queries with a prompt that states an answer instead of how to find it: {'; '.join(shares)}."
    return [told] if shares else []


def _solves(record: Mapping[str, Any]) -> bool:
    return bool(record["score"] >= 0.5)


# ---- words ---------------------------------------------------------------------------------------------------------


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings(settings: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} = {_value(value)}" for name, value in settings.items()) or "the preset's own"


def _space(space: Mapping[str, Any]) -> str:
    if space.get("values") is not None:
        return ", ".join(map(_value, space["values"]))
    return f"{_value(space['low'])} to {_value(space['high'])}" + (" (log)" if space["log"] else "")


def _by_benchmark(config: Config, values: Mapping[str, Any]) -> str:
    """One value, or the value of each benchmark if they differ."""
    shown: Sequence[str] = [_value(value) for value in values.values()]
    if len(set(shown)) == 1:
        return shown[0]
    return "; ".join(f"{title_in(config, name)}: {value}" for name, value in zip(values, shown, strict=True))
