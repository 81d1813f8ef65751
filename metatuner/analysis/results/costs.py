"""Costs of the main experiment's methods: metered costs of their fits, and timings of their policies."""

from typing import Any

from metatuner.analysis.names import Names
from metatuner.analysis.results.scores import RERUN, read_scores
from metatuner.config import DEFAULT_VARIANT, Config, Layout
from metatuner.errors import UserError
from metatuner.files import read_csv, read_json

TIME_AGAIN = "run `snakemake --cores all efficiency` with this run's preset"


def fit_costs(config: Config) -> dict[str, list[dict[str, Any]]]:
    """cost.json of the main experiment's fits, by method; the cost includes what a fit builds on."""
    layout, found = Layout(config), {}
    generator = config.experiments[config.main].generators[0]
    for score in read_scores(layout.scores):
        wanted = (score.experiment, score.variant, score.status) == (config.main, DEFAULT_VARIANT, "ok")
        if wanted and score.generator in ("", generator):
            found[score.cell] = score.method
    costs: dict[str, list[dict[str, Any]]] = {}
    for cell, method in found.items():
        fit = read_json(layout.cell(cell) / "cell.json", RERUN)["fit"]
        costs.setdefault(method, []).append(read_json(layout.fit(fit) / "cost.json", RERUN))
    return {method: costs[method] for method in sorted(costs, key=Names.of(config).rank)}


def read_timings(config: Config) -> list[dict[str, str]]:
    """The rows of efficiency.csv, one per timed policy."""
    path = Layout(config).efficiency
    if not path.is_file():
        raise UserError(f"no file {path}; {TIME_AGAIN}")
    return read_csv(path, ("method", "benchmark", "write_share"), TIME_AGAIN)
