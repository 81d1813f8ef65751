"""Costs of the main experiment's methods: metered costs of their fits, and timings of their policies."""

from typing import Any

from metatuner.analysis.names import Names
from metatuner.analysis.results.scores import main_scores
from metatuner.analysis.results.stored import fit_folder, read_fit_cost
from metatuner.config import Config, Layout
from metatuner.errors import UserError
from metatuner.files import read_csv

TIMES = ("write_ms", "answer_ms", "write_share", "write_share_low", "write_share_high", "overhead")
TIME_AGAIN = "run `snakemake --cores all efficiency` with this run's preset"


def fit_costs(config: Config) -> dict[str, list[dict[str, Any]]]:
    """cost.json of the main experiment's fits, by method, each with its `benchmark` and what it builds on."""
    layout = Layout(config)
    costs: dict[str, list[dict[str, Any]]] = {}
    for score in main_scores(config):
        cost = read_fit_cost(fit_folder(layout, score.cell))
        costs.setdefault(score.method, []).append({**cost, "benchmark": score.benchmark})
    return {method: costs[method] for method in sorted(costs, key=Names.of(config).rank)}


def read_timings(config: Config) -> list[dict[str, str]]:
    """The rows of efficiency.csv, one per timed policy; none if the preset times no policies (`timed_rows`)."""
    if not config.timed_rows:
        return []
    path = Layout(config).efficiency
    if not path.is_file():
        raise UserError(f"no file {path}; {TIME_AGAIN}")
    return read_csv(path, ("method", "benchmark", "queries", "repeats", "device"), TIME_AGAIN, TIMES)
