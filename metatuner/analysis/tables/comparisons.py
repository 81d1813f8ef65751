"""Tables of scores: an experiment's methods by benchmark, measured and published numbers side by side."""

from collections.abc import Iterator
from itertools import groupby
from math import comb
from pathlib import Path
from statistics import median

from metatuner.analysis.names import BENCHMARKS, FAMILIES, METRICS, describe_world, name_world
from metatuner.analysis.results.comparison import Comparison, Entry, MethodId, compare, unequal_tuning
from metatuner.analysis.results.published import PaperTable, published_beside
from metatuner.analysis.statistics import LEVEL, MIN_SEEDS, Difference, newcombe_interval, smallest_detectable_effect
from metatuner.analysis.tables.table import Span, Table, Text, write_tables
from metatuner.config import DEFAULT_VARIANT, Config

ROUGH = 5
"""With fewer seeds, their standard deviation is a rough number."""
REASON_LENGTH = 70
"""Maximum characters of a hole's reason in a table cell; the CSV has the whole reason."""

CSV_COLUMNS = (
    "preset,world,family,method,variant,generator,tuned,benchmark,metric,mean,low,high,n,groups,seeds,seed_sd,mark,"
    "difference,difference_low,difference_high,p_holm,hole,beside,"
    "published,published_low,published_high,published_difference,published_note"
).split(",")


def write_comparison(
    config: Config, name: str, experiment: str, title: str, reference: MethodId | None = None
) -> list[Path]:
    """Write an experiment's tables, one below the other per generator, to `tables/<name>.{csv,md,tex,json}`.

    Args:
        config: config of the results folder.
        name: name of the files.
        experiment: the experiment to show.
        title: title above the table.
        reference: the method that all others are compared with; None means the best of each benchmark.
    """
    records, tables = [CSV_COLUMNS], []
    generators = config.experiments[experiment].generators
    for generator in generators:
        comparison = compare(config, experiment, generator=generator, reference=reference)
        paper = published_beside(config, experiment, generator)
        which = f", generator {generator}" if len(generators) > 1 else ""
        label = f"tab:{name.removeprefix('table_').replace('_', '-')}" + (f"-{generator}" if which else "")
        records += csv_rows(comparison, paper, config.preset, name_world(config, experiment, generator))
        world = describe_world(config, experiment, generator)
        tables.append(comparison_table(comparison, paper, title + which, world, label))
    return write_tables(config, name, tables, records)


# ---- rows ----------------------------------------------------------------------------------------------------------


def csv_rows(comparison: Comparison, paper: PaperTable, preset: str, world: str) -> list[list[str]]:
    """One row per method and benchmark; scores and differences are in points (0 to 100).

    `seeds` are the seeds with a result. `difference` is from the comparison's reference, or else from the best.
    """
    rows = []
    for method, variant in comparison.methods:
        for benchmark in comparison.benchmarks:
            entry = comparison.entries.get(((method, variant), benchmark))
            if entry is None:
                continue
            mean, behind = entry.mean, entry.behind
            published = paper.of(method, variant, benchmark)
            sampling = published.sampling if published else None
            fallen = _published_difference(paper, comparison, method, variant, benchmark)
            rows.append(
                [
                    preset,
                    world,
                    comparison.names.family(method),
                    method,
                    variant,
                    comparison.generator,
                    entry.tuned,
                    benchmark,
                    entry.metric,
                    *(_points(mean.estimate, mean.low, mean.high) if mean else ["", "", ""]),
                    str(entry.n),
                    str(entry.groups),
                    " ".join(map(str, entry.seeds)),
                    "" if entry.seed_sd is None else f"{100 * entry.seed_sd:.2f}",
                    entry.mark,
                    *(_points(behind.estimate, behind.low, behind.high) if behind else ["", "", ""]),
                    "" if entry.p_holm is None else f"{entry.p_holm:.2g}",
                    entry.hole,
                    " ".join(f"{name} {100 * value:.2f}" for name, value in entry.beside.items()),
                    f"{published.score:.2f}" if published else "",
                    *([f"{sampling.low:.2f}", f"{sampling.high:.2f}"] if sampling else ["", ""]),
                    "" if fallen is None else f"{fallen:.2f}",
                    published.note if published else "",
                ]
            )
    return rows


def comparison_table(comparison: Comparison, paper: PaperTable, title: str, world: str, label: str = "") -> Table:
    """Two columns per benchmark, measured and published; the best in bold, ties with a dagger."""
    header, groups = ["Method"], [("", 1)]
    for benchmark in comparison.benchmarks:
        header += ["measured", paper.heading]
        groups.append((_heading(comparison, benchmark), 2))
    rows: list[list[Text]] = []
    sections: dict[int, str] = {}
    for family, methods in _by_family(comparison):
        if family:
            sections[len(rows)] = FAMILIES[family]
        for method, variant in methods:
            row: list[Text] = [comparison.names.title(method, variant)]
            for benchmark in comparison.benchmarks:
                entry = comparison.entries.get(((method, variant), benchmark))
                row.append(_cell(entry, comparison) if entry else "")
                row.append(_published_cell(paper, comparison, method, variant, benchmark))
            rows.append(row)
    notes = list(_legend(comparison, paper))
    return Table(title, world, header, rows, notes, groups, sections, label=label)


# ---- cells ---------------------------------------------------------------------------------------------------------


def _points(*values: float) -> list[str]:
    return [f"{100 * value:.2f}" for value in values]


def _by_family(comparison: Comparison) -> Iterator[tuple[str, list[MethodId]]]:
    """Families with their methods; one family without a name if all methods are compared with a reference."""
    if comparison.reference:
        yield "", list(comparison.methods)
        return
    for family, methods in groupby(comparison.methods, key=lambda each: comparison.names.family(each[0])):
        yield family, list(methods)


def _usual(comparison: Comparison, benchmark: str) -> tuple[int, int]:
    """Numbers of test rows and seeds for the column's heading: the largest of any method."""
    entries = comparison.of(benchmark)
    return max((entry.n for entry in entries), default=0), max((len(entry.seeds) for entry in entries), default=0)


def _metric(comparison: Comparison, benchmark: str) -> str:
    name = next((entry.metric for entry in comparison.of(benchmark) if entry.metric), "score")
    return METRICS.get(name, name).lower()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _heading(comparison: Comparison, benchmark: str) -> str:
    n, seeds = _usual(comparison, benchmark)
    size = f" (n = {n}, {_count(seeds, 'seed')})" if n else ""
    floor = ": floor" if benchmark in comparison.at_floor else ""
    return f"{comparison.titles[benchmark]}, {_metric(comparison, benchmark)} in %{size}{floor}"


def _hole(entry: Entry) -> str:
    """The hole's reason, cut to fit a table."""
    return entry.hole if len(entry.hole) <= REASON_LENGTH else entry.hole[: REASON_LENGTH - 1].rstrip() + "…"


def _remark(entry: Entry, comparison: Comparison) -> str:
    """Remark on a mean of fewer seeds than the column's heading says."""
    seeds = len(entry.seeds)
    return (
        f"{_count(seeds, 'seed')}; {_hole(entry)}"
        if seeds < _usual(comparison, entry.benchmark)[1] or entry.hole
        else ""
    )


def _cell(entry: Entry, comparison: Comparison) -> Text:
    if entry.mean is None:
        return (Span(_hole(entry), "italic"),)
    mean = f"{100 * entry.mean.estimate:.1f}"
    spans = [Span(mean, "bold" if entry.mark == "best" else "plain")]
    if entry.mark == "tied":
        spans.append(Span("†", "mark"))
    spans.append(Span(f" [{100 * entry.mean.low:.1f}, {100 * entry.mean.high:.1f}]", "small"))
    for metric, value in entry.beside.items():
        spans.append(Span(f", {METRICS.get(metric, metric)} {100 * value:.1f}", "small"))
    if comparison.reference and entry.behind:
        spans.append(Span(f"; {_signed(entry.behind)}", "small"))
        if entry.mark == "differs":
            spans.append(Span("*", "mark"))
    if remark := _remark(entry, comparison):
        spans.append(Span(f" ({remark})", "small"))
    return tuple(spans)


def _signed(difference: Difference) -> str:
    """A difference with its interval, in points; a zero has no sign."""
    values = (round(100 * value, 1) + 0.0 for value in (difference.estimate, difference.low, difference.high))
    estimate, low, high = (f"{value:+.1f}".replace("-", "−") if value else "0.0" for value in values)
    return f"{estimate} [{low}, {high}]"


def _published_cell(paper: PaperTable, comparison: Comparison, method: str, variant: str, benchmark: str) -> str:
    published = paper.of(method, variant, benchmark)
    fallen = _published_difference(paper, comparison, method, variant, benchmark)
    behind = "" if fallen is None else f" ({fallen:+.2f})".replace("-", "−")
    return (f"{published.score:.2f}" if published else "") + behind


def _published_difference(
    paper: PaperTable, comparison: Comparison, method: str, variant: str, benchmark: str
) -> float | None:
    """A published score minus the reference's published score, in points; None without both."""
    if not comparison.reference or (method, variant) == comparison.reference:
        return None
    own, other = paper.of(method, variant, benchmark), paper.of(*comparison.reference, benchmark)
    return own.score - other.score if own and other else None


# ---- legend --------------------------------------------------------------------------------------------------------


def _legend(comparison: Comparison, paper: PaperTable) -> Iterator[Text]:
    """What the numbers are, what the marks mean, and which differences the tests could detect."""
    entries = list(comparison.entries.values())
    if warning := unequal_tuning(comparison):
        yield warning
    if means := [entry.mean for entry in entries if entry.mean]:
        about = "over seeds and queries, both as drawn at random"
        if any(mean.conditional for mean in means):
            few = f"over queries alone, for these seeds: fewer than {MIN_SEEDS} cannot show how much seeds vary"
            about = few if all(mean.conditional for mean in means) else f"{about}; of fewer seeds: {few}"
        yield f"Measured: mean over seeds and test queries with its {100 * LEVEL:.0f} % interval ({about})."
        yield _marks(comparison)
    if others := {METRICS.get(metric, metric) for entry in entries for metric in entry.beside}:
        names = ", ".join(sorted(others))
        yield f"{names}: mean over the same rows; intervals, marks and tests are the first metric's."
    if comparison.at_floor:
        where = " and ".join(comparison.titles[name] for name in comparison.at_floor)
        yield f"Floor: all methods are at the floor on {where} (0 on every row), so no method is best there."
    if grouped := [text for benchmark in comparison.benchmarks if (text := _grouped(comparison, benchmark))]:
        yield f"Rows that share a context are drawn together: {', '.join(grouped)}."
    if detectable := [text for benchmark in comparison.benchmarks if (text := _detectable(comparison, benchmark))]:
        other = comparison.names.title(*comparison.reference) if comparison.reference else "the best"
        yield (
            f"Smallest difference from {other} "
            "that a paired test finds with 80 % probability, in points: as a single test, and in brackets under the "
            "strictest correction of the column (median over methods; only the choice of queries varies): "
            f"{', '.join(detectable)}."
        )
    if spread := _spread(comparison):
        yield spread
    if any(entry.tuned for entry in entries):
        yield f"Settings: {'; '.join(_settings(comparison))}."
    if any(entry.tuned.startswith(("winner", "inherited", "medians")) for entry in entries):
        yield (
            "Searched settings are the winners of one search. Another search may find others; no interval here "
            "includes that."
        )
    shown = [paper.of(*method, benchmark) for method in comparison.methods for benchmark in comparison.benchmarks]
    if any(shown):
        yield (
            "Paper: single published numbers of the paper's models and data, from secondary sources, without "
            "intervals; empty: not published. Half-width of the interval that sampling its test rows alone gives, in "
            f"points (their number is inferred from its scores): {', '.join(_open(paper))}."
        )
    if differences := _published_differences(comparison, paper):
        yield differences
    if any(entry.hole for entry in entries):
        yield (
            "Failed, skipped and diverged cells have no score; they do not count as 0. The CSV file has the full "
            "reasons."
        )


def _marks(comparison: Comparison) -> Text:
    """What the marks mean, and which differences have none because they were not tested."""
    entries = comparison.entries.values()
    few = f"differences of fewer than {MIN_SEEDS} seeds are not tested"
    tested = any(entry.p_holm is not None for entry in entries)
    untested = any(entry.mark == "untested" for entry in entries)
    p = f"p {'≤' if comparison.reference else '>'} {1 - LEVEL:.2f} after Holm's correction"
    if comparison.reference:
        other = comparison.names.title(*comparison.reference)
        opening = f"After the semicolon: the paired difference from {other} in points, with its uncorrected interval"
        if not tested:
            return f"{opening}; {few}." if untested else f"{opening}."
        rest = f": it differs from 0 (paired test, {p} within the column)"
        return (Span(f"{opening}; "), Span("*", "mark"), Span(rest + (f"; {few}." if untested else ".")))
    best = (Span("bold", "bold"), Span(": highest mean of a column"))
    if not tested:
        return (*best, Span(f"; {few}." if untested else "."))
    rest = f": not significantly below it, so as good or too uncertain to tell (paired test, {p} for all pairs in the "
    rest += "column); no mark: significantly below"
    return (*best, Span("; "), Span("†", "mark"), Span(rest + (f", or untested: {few}." if untested else ".")))


def _grouped(comparison: Comparison, benchmark: str) -> str:
    entry = next((entry for entry in comparison.of(benchmark) if entry.groups < entry.n), None)
    return f"{comparison.titles[benchmark]} has {entry.n} in {entry.groups} groups" if entry else ""


def _detectable(comparison: Comparison, benchmark: str) -> str:
    errors = [entry.behind.standard_error for entry in comparison.of(benchmark) if entry.behind]
    single = [smallest_detectable_effect(error) for error in errors if error]  # 0: queries show no spread
    means = sum(entry.mean is not None for entry in comparison.of(benchmark))
    tests = len(errors) if comparison.reference else comb(means, 2)
    strict = [smallest_detectable_effect(error, level=1 - (1 - LEVEL) / max(tests, 1)) for error in errors if error]
    effect = f"{100 * median(single):.1f} ({100 * median(strict):.1f})" if single else "unknown"
    return f"{comparison.titles[benchmark]} {effect}" if errors else ""


def _spread(comparison: Comparison) -> str:
    """The spread of a method's seeds, which intervals over queries do not show."""
    spreads = [(entry.seed_sd, entry) for entry in comparison.entries.values() if entry.seed_sd is not None]
    if not spreads:
        return ""
    largest, entry = max(spreads, key=lambda each: each[0])
    few = "a rough number with so few; " if max(len(entry.seeds) for _, entry in spreads) < ROUGH else ""
    return (
        f"Standard deviation of the means of a method's seeds, in points ({few}all in the CSV file, "
        f"seed_sd): median {100 * median(sd for sd, _ in spreads):.1f}, largest {100 * largest:.1f} "
        f"({comparison.names.title(entry.method, entry.variant)} on {comparison.titles[entry.benchmark]})."
    )


def _published_differences(comparison: Comparison, paper: PaperTable) -> str:
    """What the paper's differences in brackets are, and how many sampling alone could cause; "" without any."""
    if not comparison.reference:
        return ""
    intervals, ablated = [], False
    for method, variant in comparison.methods:
        for benchmark in comparison.benchmarks:
            own, other = paper.of(method, variant, benchmark), paper.of(*comparison.reference, benchmark)
            if (method, variant) != comparison.reference and own and other and own.sampling and other.sampling:
                intervals.append(newcombe_interval(own.sampling, other.sampling))
                ablated = ablated or variant != DEFAULT_VARIANT
    if not intervals:
        return ""
    within = sum(each.low <= 0 <= each.high for each in intervals)
    title = comparison.names.title(*comparison.reference)
    unknown = " (whether -I or -J was ablated is not public)" if ablated else ""
    return (
        f"Paper, in brackets: the published score minus that of {title}, subtracted here{unknown}; {within} of "
        f"{len(intervals)} such differences could come from sampling alone (unpaired, {100 * LEVEL:.0f} %)."
    )


def _settings(comparison: Comparison) -> Iterator[str]:
    """Which methods were tuned and which were not; benchmarks are named if a method's tuning differs between them."""
    found: dict[str, dict[str, list[str]]] = {}
    for method in comparison.methods:
        words = {
            benchmark: entry.tuned
            for benchmark in comparison.benchmarks
            if (entry := comparison.entries.get((method, benchmark))) and entry.tuned
        }
        for benchmark, word in words.items():
            named = found.setdefault(word, {}).setdefault(comparison.names.title(*method), [])
            if len(set(words.values())) > 1:
                named.append(comparison.titles[benchmark])
    whole = "tuned for the full method, or for the methods that it builds on"
    medians = "medians of the winners of the train benchmarks"
    headings = {
        "winner": "tuned by random search on the tune split",
        "inherited": whole,
        "medians": medians,
        "untuned": "the preset's own, as nothing was searched for them with this generator",
        "expired": "the preset's own, as the stored winners have expired",
        "none": "nothing to tune",
    }
    for word, heading in headings.items():
        if word in found:
            methods = (f"{name} ({', '.join(on)})" if on else name for name, on in found[word].items())
            yield f"{heading}: {', '.join(methods)}"


def _open(paper: PaperTable) -> Iterator[str]:
    """The widest half-interval of each benchmark's published numbers."""
    widths: dict[str, float] = {}
    for (_, _, benchmark), published in paper.scores.items():
        if published.sampling:
            half = (published.sampling.high - published.sampling.low) / 2
            widths[benchmark] = max(widths.get(benchmark, 0.0), half)
    for benchmark, half in widths.items():
        yield f"{BENCHMARKS.get(benchmark, benchmark)} up to ±{half:.1f}"
