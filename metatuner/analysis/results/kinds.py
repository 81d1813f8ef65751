"""The main experiment's scores by kind of query."""

from dataclasses import dataclass

import numpy as np

from metatuner.analysis.names import Names, benchmark_rank
from metatuner.analysis.results.scores import RERUN, QueryScore, main_scores, read_query_scores
from metatuner.analysis.statistics import Interval, derive_seed, mean_interval
from metatuner.config import Config, Layout
from metatuner.errors import UserError


@dataclass(frozen=True)
class ByKind:
    """A method's mean on the test rows of one kind."""

    benchmark: str
    kind: str
    method: str
    n: int
    """Test rows of the kind."""
    seeds: int
    mean: Interval


def by_kind(config: Config) -> list[ByKind]:
    """Means of the main experiment's methods by benchmark and kind; holes are left out."""
    layout = Layout(config)
    names = Names.of(config)
    cells: dict[tuple[str, str], list[dict[str, QueryScore]]] = {}
    for score in main_scores(config):
        answers = read_query_scores(layout.root, score.cell)
        if len(answers) != score.n:
            raise UserError(
                f"{layout.scores}: {score.method} on {score.benchmark}, seed {score.seed} has {score.n} rows, but cell "
                f"{score.cell} {len(answers)}; remove its folder and {RERUN}"
            )
        cells.setdefault((score.benchmark, score.method), []).append(answers)
    found = []
    ordered = sorted(cells, key=lambda each: (benchmark_rank(each[0]), names.rank(each[1])))
    for benchmark, method in ordered:
        runs = cells[benchmark, method]
        kinds: dict[str, list[str]] = {}
        for query, answer in sorted(runs[0].items()):
            kinds.setdefault(answer.kind, []).append(query)
        for kind, queries in sorted(kinds.items()):
            scores = np.array([[run[query].score for query in queries] for run in runs])
            groups = [runs[0][query].group for query in queries]
            seed = derive_seed("kind", benchmark, method, kind)
            mean = mean_interval(scores, groups, seed=seed)
            found.append(ByKind(benchmark, kind, method, len(queries), len(runs), mean))
    return found
