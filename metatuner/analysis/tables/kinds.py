"""The main experiment by kind of query, as a table."""

from pathlib import Path

from metatuner.analysis.names import Names, describe_world, name_world, title_in
from metatuner.analysis.results.kinds import by_kind
from metatuner.analysis.statistics import Interval
from metatuner.analysis.tables.table import Table, write_tables
from metatuner.config import Config


def table_kinds(config: Config) -> list[Path]:
    """Write `tables/table_kinds.{csv,md,tex,json}`: a row per benchmark and kind, a column per method; a tidy CSV."""
    found, names = by_kind(config), Names.of(config)
    methods = sorted(dict.fromkeys(one.method for one in found), key=names.rank)
    titles = {name: title_in(config, name) for name in config.benchmarks}
    rows = []
    for benchmark, kind in dict.fromkeys((one.benchmark, one.kind) for one in found):
        own = {one.method: one for one in found if (one.benchmark, one.kind) == (benchmark, kind)}
        n = next(iter(own.values())).n
        cells = [_cell(own[method].mean) if method in own else "" for method in methods]
        rows.append([titles[benchmark], kind, str(n), *cells])
    notes = [
        "Mean over seeds and the test rows of a kind, in %, with its 95 % interval; not corrected for the "
        "number of kinds looked at, and no kind was chosen beforehand."
    ]
    header = ["benchmark", "kind", "n", *(names.title(method) for method in methods)]
    table = Table("Table by kind of query", describe_world(config, config.main), header, rows, notes)
    world = name_world(config, config.main)
    records = [["preset", "world", "benchmark", "kind", "method", "n", "seeds", "mean", "low", "high"]]
    for one in found:
        mean = [f"{100 * value:.2f}" for value in (one.mean.estimate, one.mean.low, one.mean.high)]
        records.append([config.preset, world, one.benchmark, one.kind, one.method, str(one.n), str(one.seeds), *mean])
    return write_tables(config, "table_kinds", [table], records)


def _cell(mean: Interval) -> str:
    return f"{100 * mean.estimate:.0f} [{100 * mean.low:.0f}, {100 * mean.high:.0f}]"
