"""Compare an experiment's methods, for tables and figures: means with intervals, and paired differences to the best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from metatuner.analysis import statistics
from metatuner.analysis.names import Names, benchmark_rank, title_in
from metatuner.analysis.results.scores import (
    RERUN,
    QueryScore,
    Score,
    read_metrics,
    read_query_scores,
    read_scores,
    read_tuned,
)
from metatuner.analysis.statistics import Array, Difference, Interval
from metatuner.config import Config, Layout
from metatuner.errors import UserError, suggest

Mark = Literal["best", "tied", "differs", "untested", "floor", ""]
MethodId = tuple[str, str]
"""Method and variant."""

ROUNDING = 0.00011
"""Points by which a score in scores.csv may differ from the mean of its cell's predictions: both have four decimals."""


@dataclass(frozen=True)
class Entry:
    """The result of one method, in one variant, on one benchmark. Scores are in 0..1."""

    method: str
    variant: str
    benchmark: str
    metric: str
    """The benchmark's primary metric; "" if no method has a result."""
    seeds: tuple[int, ...]
    """Seeds with a result."""
    n: int
    """Test rows per seed."""
    groups: int
    """Number of groups of test rows: one per row if all are independent, fewer if some rows share a context."""
    mean: Interval | None
    """None: no seed has a result."""
    seed_sd: float | None
    """Standard deviation of the seeds' means; None with fewer than two."""
    hole: str
    """Why seeds have no result: "failed: ...", "skipped on seed 1: ..."; "" if all have one."""
    tuned: str = ""
    """Where the settings come from, in the words of `read_tuned`; "" if that is not known."""
    behind: Difference | None = None
    """Paired difference to the comparison's reference, over the seeds that both have. Without a reference, to the
    benchmark's best (the first, if several are best). None for the reference or the best itself, and for holes."""
    p_holm: float | None = None
    """p-value of `behind`, corrected for all differences to the reference on this benchmark. Without a reference,
    corrected for all pairs of methods. None also for an untested difference."""
    mark: Mark = ""
    """best: the highest mean, or equal to it. tied: not significantly below the highest mean. differs: significantly
    different from the reference, if there is one. untested: fewer than `MIN_SEEDS` seeds in common, which cannot show
    how much seeds vary. floor: all methods score 0 on every row of the benchmark, so nothing ranks them."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Means over the same seeds of the benchmark's other metrics, by name (HotpotQA: f1)."""


@dataclass(frozen=True)
class Comparison:
    """An experiment's entries, by (method id, benchmark)."""

    methods: tuple[MethodId, ...]
    """In the order of tables."""
    benchmarks: tuple[str, ...]
    titles: Mapping[str, str]
    """The benchmarks' names in print."""
    entries: Mapping[tuple[MethodId, str], Entry]
    names: Names = field(compare=False)
    """Names of the methods in print."""
    generator: str = ""
    """The generator's name in the config."""
    reference: MethodId | None = None
    """The method that all others are compared with; None means the best."""

    def of(self, benchmark: str) -> list[Entry]:
        """The benchmark's entries, in the order of `methods`."""
        return [self.entries[method, benchmark] for method in self.methods if (method, benchmark) in self.entries]

    @property
    def at_floor(self) -> tuple[str, ...]:
        """The benchmarks on which all methods are at the floor."""
        return tuple(name for name in self.benchmarks if any(entry.mark == "floor" for entry in self.of(name)))


def compare(
    config: Config, experiment: str, *, generator: str | None = None, reference: MethodId | None = None
) -> Comparison:
    """Read an experiment's scores.csv lines and the per-query scores of their cells, and compare the methods.

    Args:
        config: names the results folder.
        experiment: its name in the config and in scores.csv.
        generator: name of one of the experiment's generators; None means the first. Methods that use no generator are
            in each comparison.
        reference: compare with this method, and keep the config's order. None: compare with the best, in the order of
            tables.

    Raises:
        UserError: no such experiment, a file is missing or wrong, scores.csv is older than its cells, or cells of one
            benchmark were tested on different rows.
    """
    if experiment not in config.experiments:
        raise UserError(f"config key 'experiments': no {experiment!r}; {suggest(experiment, config.experiments)}")
    layout, generator = Layout(config), generator or config.experiments[experiment].generators[0]
    root, scores = layout.root, read_scores(layout.scores)
    tuned = read_tuned(layout.settings, experiment, ("", generator))
    known = dict.fromkeys(score.experiment for score in scores)
    if experiment not in known:
        raise UserError(f"{layout.scores}: no experiment {experiment!r}; {suggest(experiment, known)}")
    lines = [score for score in scores if score.experiment == experiment and score.generator in ("", generator)]
    methods = list(dict.fromkeys((line.method, line.variant) for line in lines))
    names = Names.of(config)
    if reference is None:
        methods.sort(key=lambda each: names.rank(each[0]))
    benchmarks = sorted(dict.fromkeys(line.benchmark for line in lines), key=benchmark_rank)
    entries = {}
    for benchmark in benchmarks:
        own = [line for line in lines if line.benchmark == benchmark]
        for entry in _compare_on([*own, *_absent(config, own, benchmark, methods)], methods, root, reference):
            origin = tuned.get((entry.method, entry.variant, benchmark), "")
            entries[(entry.method, entry.variant), benchmark] = replace(entry, tuned=origin)
    titles = {benchmark: title_in(config, benchmark) for benchmark in benchmarks}
    return Comparison(tuple(methods), tuple(benchmarks), titles, entries, names, generator, reference)


def _absent(config: Config, lines: Sequence[Score], benchmark: str, methods: Sequence[MethodId]) -> list[Score]:
    """Holes for the config's seeds without a line, for each method; none if the benchmark has no line at all."""
    if not lines:
        return []
    design, first = config.experiments[lines[0].experiment], lines[0]
    if benchmark not in design.benchmarks:
        return []
    there = {(line.method, line.variant, line.seed) for line in lines}
    reason = "no line in scores.csv; run `metatuner scores` again"
    return [
        replace(
            first,
            method=method,
            variant=variant,
            seed=seed,
            metric="",
            score=None,
            n=0,
            status="missing",
            reason=reason,
        )
        for method, variant in methods
        for seed in design.seeds
        if (method, variant, seed) not in there
    ]


def unequal_tuning(comparison: Comparison) -> str:
    """A warning if, on one benchmark, some methods with a search space are tuned and others are not; else ""."""
    unequal: dict[str, list[str]] = {}
    for benchmark in comparison.benchmarks:
        searched = [entry for entry in comparison.of(benchmark) if entry.mean and entry.tuned not in ("", "none")]
        tuned = [entry for entry in searched if entry.tuned.startswith(("winner", "inherited", "medians"))]
        if tuned and len(tuned) < len(searched):
            names = ", ".join(comparison.names.title(entry.method, entry.variant) for entry in tuned)
            others = ", ".join(
                comparison.names.title(each.method, each.variant) for each in searched if each not in tuned
            )
            unequal.setdefault(f"{names} tuned, {others} not", []).append(comparison.titles[benchmark])
    cases = [f"on {', '.join(benchmarks)}: {who}" for who, benchmarks in unequal.items()]
    return f"Unequal tuning: {'; '.join(cases)}." if cases else ""


def _compare_on(
    lines: Sequence[Score], methods: Iterable[MethodId], root: Path, reference: MethodId | None
) -> list[Entry]:
    """One benchmark's entries, in the order of `methods`."""
    primary = next((str(read_metrics(root, line.cell)["primary"]) for line in lines if line.status == "ok"), "")
    entries, arrays = [], {}
    groups: dict[str, str] = {}
    for method, variant in methods:
        own = [line for line in lines if (line.method, line.variant) == (method, variant)]
        if not own:
            continue
        by_seed: dict[int, Score] = {}
        for line in own:
            if line.metric in (primary, ""):
                if line.seed in by_seed:
                    raise UserError(
                        f"{root / 'scores.csv'}: {line.experiment} has {method} on {line.benchmark} twice with seed "
                        f"{line.seed} (trained on or generator differ); give each its own experiment"
                    )
                by_seed[line.seed] = line
        found: dict[int, Array] = {}
        for seed, line in sorted(by_seed.items()):
            if line.status == "ok":
                answers = read_query_scores(root, line.cell)
                groups = groups or {query: answers[query].group for query in sorted(answers)}
                found[seed] = aligned(answers, groups, line, root)
        entry = _measure(own[0], primary, found, list(groups.values()), _holes(by_seed.values()))
        entries.append(replace(entry, beside=_beside(own, primary)))
        arrays[method, variant] = found
    return _mark(entries, arrays, list(groups.values()), reference)


def aligned(answers: Mapping[str, QueryScore], queries: Mapping[str, str], line: Score, root: Path) -> Array:
    """A cell's scores in the order of `queries`, checked against its line of scores.csv."""
    if answers.keys() != queries.keys():
        raise UserError(
            f"cell {line.cell} ({line.method} on {line.benchmark}, seed {line.seed}) was tested on other rows than the "
            f"benchmark's other cells; remove its folder and {RERUN}"
        )
    array = np.array([answers[query].score for query in queries])
    if line.score is None or abs(100 * array.mean() - line.score) > ROUNDING or len(array) != line.n:
        raise UserError(
            f"{root / 'scores.csv'}: {line.method} on {line.benchmark}, seed {line.seed} is {line.score} of {line.n} "
            f"rows, but cell {line.cell} has {100 * array.mean():.4f} of {len(array)}; run `metatuner scores` again"
        )
    return array


def _holes(lines: Iterable[Score]) -> str:
    """Each reason for a missing result, once; with its seeds, if other seeds have a result or another reason."""
    lines = list(lines)
    reasons: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        if line.status != "ok":
            reasons.setdefault((line.status, line.reason), []).append(line.seed)
    partial = any(line.status == "ok" for line in lines) or len(reasons) > 1
    named = []
    for (status, reason), seeds in reasons.items():
        where = f" on seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if partial else ""
        named.append(f"{status}{where}: {reason}")
    return "; ".join(named)


def _beside(lines: Iterable[Score], primary: str) -> dict[str, float]:
    """Means over seeds of the metrics other than the primary one, each in 0..1."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line.status == "ok" and line.score is not None and line.metric != primary:
            found.setdefault(line.metric, []).append(line.score / 100)
    return {metric: fmean(scores) for metric, scores in found.items()}


def _measure(line: Score, metric: str, found: Mapping[int, Array], groups: Sequence[str], hole: str) -> Entry:
    entry = Entry(line.method, line.variant, line.benchmark, metric, tuple(found), 0, 0, None, None, hole)
    if not found:
        return entry
    array = np.stack(list(found.values()))
    seed = statistics.derive_seed("mean", line.experiment, line.benchmark, line.method, line.variant)
    return replace(
        entry,
        n=array.shape[1],
        groups=len(set(groups)),
        mean=statistics.mean_interval(array, groups, seed=seed),
        seed_sd=float(array.mean(axis=1).std(ddof=1)) if len(array) > 1 else None,
    )


def _mark(
    entries: Sequence[Entry],
    arrays: Mapping[MethodId, Mapping[int, Array]],
    groups: Sequence[str],
    reference: MethodId | None,
) -> list[Entry]:
    """Mark the entries, each tested against the reference (or else the best) on the seeds that both have."""
    means = {(entry.method, entry.variant): entry.mean.estimate for entry in entries if entry.mean}
    if means and max(means.values()) <= statistics.TOLERANCE:
        return [replace(entry, mark="floor") if entry.mean else entry for entry in entries]
    if len(means) < 2 or (reference and reference not in means):
        return list(entries)
    best = max(means, key=lambda key: means[key])
    other = reference or best
    tested: dict[MethodId, Difference] = {}
    for key in means:
        own, top = arrays[key], arrays[other]
        shared = [seed for seed in own if seed in top]
        if key != other and shared:
            seed = statistics.derive_seed("difference", entries[0].benchmark, *key, *other)
            tested[key] = statistics.paired_difference(
                np.stack([own[each] for each in shared]), np.stack([top[each] for each in shared]), groups, seed=seed
            )
    # The best is chosen by looking at the data, so chance decides which pairs are tested: correct for all pairs.
    shown = {key: each.p for key, each in tested.items() if not each.conditional}
    tests = len(shown) if reference else comb(len(means), 2)
    p_holm = dict(zip(shown, statistics.holm(list(shown.values()), tests=tests), strict=True))
    marked = []
    for entry in entries:
        key = (entry.method, entry.variant)
        if key in tested:
            entry = replace(
                entry, behind=tested[key], p_holm=p_holm.get(key), mark=_mark_of(p_holm.get(key), reference)
            )
        if not reference and key in means and means[best] - means[key] <= statistics.TOLERANCE:
            entry = replace(entry, mark="best")
        marked.append(entry)
    return marked


def _mark_of(p: float | None, reference: MethodId | None) -> Mark:
    """The mark of a difference by its corrected p-value; None: it was not tested."""
    if p is None:
        return "untested"
    alike = p > 1 - statistics.LEVEL
    if reference:
        return "" if alike else "differs"
    return "tied" if alike else ""
