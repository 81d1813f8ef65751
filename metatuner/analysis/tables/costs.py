"""Table 5: what methods cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from metatuner.analysis.names import Names, describe_world, title_in
from metatuner.analysis.results.costs import fit_costs, read_timings
from metatuner.analysis.results.stored import read_searches
from metatuner.analysis.tables.table import Table, write_tables
from metatuner.config import BudgetConfig, Config, Layout


def table_5(config: Config) -> list[Path]:
    """Write the costs of fitting and of a query: `tables/table_5.{csv,md,tex,json}`; returns the paths written."""
    timings, names = read_timings(config), Names.of(config)
    rows = []
    for method, costs in fit_costs(config).items():
        own = [row for row in timings if row["method"] == method]

        def mean_of(name: str, own: Sequence[Mapping[str, str]] = own) -> str:
            return f"{mean(float(row[name]) for row in own):.2f}" if own else ""

        peak = max(cost["peak_gpu_memory_bytes"] or cost["peak_memory_bytes"] for cost in costs)
        rows.append(
            [
                names.title(method),
                f"{mean(cost['seconds'] for cost in costs):.1f}",
                f"{mean(cost['flops'] for cost in costs) / 1e12:.3g}",
                _budget_share(costs, config, method),
                f"{mean(cost['lm_calls'] for cost in costs):,.0f}",
                f"{mean(cost['trained_tokens'] for cost in costs):,.0f}",
                f"{peak / 1e6:,.0f}",
                mean_of("write_ms"),
                mean_of("answer_ms"),
                mean_of("write_share"),
                mean_of("overhead"),
                _megabytes(own),
            ]
        )
    header = [
        "method",
        "fit alone, s",
        "fit, TFLOP",
        "fit, % of budget",
        "fit, LM calls",
        "fit, tokens trained",
        "fit, largest memory, MB",
    ]
    header += ["writing, ms per query", "answering, ms per query", "writing / answering", "both / plain actor"]
    header.append("writing, largest memory, MB")
    devices = ", ".join(sorted({row["device"] for row in timings})) or "none"
    titles = [title_in(config, name) for name in config.experiments[config.main].benchmarks]
    queries = (
        f"{timings[0]['queries']} tune rows per benchmark, {timings[0]['repeats']} rounds" if timings else "not timed"
    )
    timed = [
        f"Queries: one seed, {queries}, on {devices}; writing is a query's prompt and parameters, the plain actor "
        "answers under p~. Ratios are means over benchmarks of medians over rounds, not ratios of these columns. Other "
        "work on the machine blurs times, less their ratios. Memory is what writing for these "
        "rows at once holds beyond the models."
    ]
    notes = [
        f"Fits: means over seeds and {', '.join(titles)}, with what a method builds on, but for seconds. FLOP are "
        "estimated from tokens and weights. The share of the budget is that of the limit that a method comes closest "
        "to.",
        *(timed if config.timed_rows else ["Queries: not measured, as the preset times no policies."]),
        *_unused(config, names, {row[0]: row[3] for row in rows}),
        *_shares(timings, config, names),
        "Paper (secondary sources): 0.03 to 0.53 s per query for prompt and parameters, on A100 GPUs with its 7B and "
        "3B models; not comparable with these.",
    ]
    table = Table("Table 5: efficiency", describe_world(config, config.main), header, rows, notes)
    return write_tables(config, "table_5", [table])


def _budget_share(costs: Sequence[Mapping[str, Any]], config: Config, method: str) -> str:
    """The mean share of the budget that fits used, of the limit that is closest; "" if nothing is limited."""
    budget = _budget(config, method)
    shares: dict[str, list[float]] = {}
    for cost in costs:
        for name, limit in budget.limits((cost["benchmark"],)).items():
            if limit:
                used = cost["flops"] / 1e12 if name == "tflop" else cost[name]
                shares.setdefault(name, []).append(used / limit)
    return f"{100 * max(map(mean, shares.values())):.0f}" if shares else ""


def _budget(config: Config, method: str) -> BudgetConfig:
    """The budget of a method in the main experiment."""
    named = config.experiments[config.main].budget
    return config.budgets[named or (config.methods[method].budget if method in config.methods else "default")]


def _unused(config: Config, names: Names, used: Mapping[str, str]) -> list[str]:
    """Methods that use less than half of the budget, with what their searches tried; nothing without searches."""
    layout = Layout(config)
    if not layout.searches.is_file():
        return []
    tried: dict[str, list[float]] = {}
    for search in read_searches(layout):
        method = search["subject"]
        limit = _budget(config, method).limits((search["benchmark"],)).get("tflop") if "." not in method else None
        if limit and search["status"] == "current" and search.get("dearest"):
            tried.setdefault(method, []).append(100 * search["dearest"] / limit)
    few = [
        f"{names.title(method)} {mean(shares):.0f}"
        for method, shares in tried.items()
        if float(used.get(names.title(method)) or 100) < 50
    ]
    if not few:
        return []
    return [
        "Methods that use less than half of the budget, with the dearest settings that their searches tried, in % of "
        f"it (means over benchmarks): {', '.join(few)}. Of settings that tie, a search takes the cheapest."
    ]


def _shares(timings: Sequence[Mapping[str, str]], config: Config, names: Names) -> list[str]:
    """MetaTuner-J's ratio of writing to answering time per benchmark, with quartiles over rounds (see claim 10)."""
    shares = [
        f"{title_in(config, row['benchmark'])} "
        f"{float(row['write_share']):.2f} [{float(row['write_share_low']):.2f}, {float(row['write_share_high']):.2f}]"
        for row in timings
        if row["method"] == "metatuner_j"
    ]
    name = names.title("metatuner_j")
    return [f"Writing / answering of {name}, with quartiles over rounds: {', '.join(shares)}."] if shares else []


def _megabytes(timings: Sequence[Mapping[str, str]]) -> str:
    """The largest memory of writing; "" if nothing was timed, or by a version that did not measure memory."""
    found = [float(row["write_bytes"]) for row in timings if row.get("write_bytes")]
    return f"{max(found) / 1e6:,.1f}" if found else ""
