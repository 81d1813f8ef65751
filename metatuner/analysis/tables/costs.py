"""Table 5: what methods cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from metatuner.analysis.names import Names, benchmark_title, describe_world, title_in
from metatuner.analysis.results.costs import fit_costs, read_timings
from metatuner.analysis.tables.table import Table, write_tables
from metatuner.config import Config


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
    header = ["method", "fit, s", "fit, TFLOP", "fit, LM calls", "fit, tokens trained", "fit, largest memory, MB"]
    header += ["writing, ms per query", "answering, ms per query", "writing / answering", "both / plain actor"]
    header.append("writing, largest memory, MB")
    devices = ", ".join(sorted({row["device"] for row in timings})) or "none"
    titles = [
        benchmark_title(name, config.benchmarks[name].source) for name in config.experiments[config.main].benchmarks
    ]
    queries = (
        f"{timings[0]['queries']} tune rows per benchmark, {timings[0]['repeats']} rounds" if timings else "not timed"
    )
    notes = [
        f"Fits: means over seeds and {', '.join(titles)}, with what a method builds on; seconds are those of `fit` "
        "itself. FLOP are estimated from tokens and weights.",
        f"Queries: one seed, {queries}, on {devices}; writing is a query's prompt and parameters, the plain actor "
        "answers under p~. Ratios are means over benchmarks of medians over rounds, not ratios of these columns. Other "
        "work on the machine blurs times, less their ratios. Memory is what writing for these "
        "rows at once holds beyond the models.",
        *_shares(timings, config, names),
        "Paper (secondary sources): 0.03 to 0.53 s per query for prompt and parameters, on A100 GPUs with its 7B and "
        "3B models; not comparable with these.",
    ]
    table = Table("Table 5: efficiency", describe_world(config, config.main), header, rows, notes)
    return write_tables(config, "table_5", [table])


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
