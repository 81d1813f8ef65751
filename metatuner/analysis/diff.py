"""Compare two results folders cell by cell: missing cells, equal cells, and differences that are more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metatuner.analysis.escaping import inert
from metatuner.analysis.names import Names
from metatuner.analysis.results.scores import Score, cell_folder, has_query_scores, read_query_scores, read_scores
from metatuner.analysis.statistics import (
    LEVEL,
    Contrast,
    Gaps,
    contrast,
    derive_seed,
    holm,
    smallest_detectable_effect,
    unpaired_difference,
)
from metatuner.errors import UserError
from metatuner.files import csv_text, read_csv, read_json, write_text

Kind = Literal["only in the first", "only in the second", "identical", "equal scores", "differs", "no result"]
SCORED: tuple[Kind, ...] = ("identical", "equal scores", "differs")
FEW = 5
"""Up to so many cells of a method without a counterpart are named; more are only counted. `--csv FILE` lists all."""
Name = tuple[str, str, str, str, str, int, str]
"""Method, variant, benchmark, trained on, generator, seed, metric."""


@dataclass(frozen=True)
class Compared:
    """One cell in both folders."""

    name: Name
    kind: Kind
    told: Contrast | None = None
    """The second score minus the first, for scores in 0..1; None if there is nothing to compare."""
    paired: bool = False
    """True: compared query by query. False: only means and test sizes were available."""
    p_holm: float = 1.0
    detail: str = ""

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance, corrected for all cells that differ."""
        return self.kind == "differs" and self.p_holm <= 1 - LEVEL


def compare_runs(first: Path, second: Path) -> list[Compared]:
    """Compare every cell of either folder, in the order of the first scores.csv, then of the second.

    If both folders have a cell's predictions or query_scores.json, the cell is compared query by query. Otherwise its
    means are compared, as if the test rows were drawn independently. Holm's correction covers all cells that differ.
    """
    one, two = _by_name(first), _by_name(second)
    found: list[Compared] = []
    for name in dict.fromkeys([*one, *two]):
        # If no cell of a benchmark has a result, its holes name no metric: such a hole matches any metric.
        own, other = (scores.get(name) or scores.get((*name[:-1], "")) for scores in (one, two))
        if not name[-1] and any(each[:-1] == name[:-1] and each[-1] for each in (*one, *two)):
            continue
        if other is None:
            found.append(Compared(name, "only in the first"))
        elif own is None:
            found.append(Compared(name, "only in the second"))
        else:
            found.append(_compared(name, (first, own), (second, other)))
    differing = [index for index, each in enumerate(found) if each.kind == "differs" and each.told]
    adjusted = holm([each.told.p if (each := found[index]).told else 1.0 for index in differing])
    for index, p in zip(differing, adjusted, strict=True):
        each = found[index]
        found[index] = Compared(each.name, each.kind, each.told, each.paired, p, each.detail)
    return found


def _by_name(root: Path) -> dict[Name, Score]:
    found: dict[Name, Score] = {}
    for score in read_scores(root / "scores.csv"):
        name = (
            score.method,
            score.variant,
            score.benchmark,
            score.trained_on,
            score.generator,
            score.seed,
            score.metric,
        )
        found.setdefault(name, score)
    return found


def _compared(name: Name, first: tuple[Path, Score], second: tuple[Path, Score]) -> Compared:
    scores = [score for _, score in (first, second)]
    if any(score.score is None for score in scores):
        reasons = [
            f"{place}: {score.status}: {score.reason}"
            for place, score in zip(("first", "second"), scores, strict=True)
            if score.score is None
        ]
        same = [score.status for score in scores]
        return Compared(name, "no result", detail="; ".join(reasons) if len(set(same)) > 1 else f"both {same[0]}")
    files = [cell_folder(root, score.cell) / "predictions.jsonl" for root, score in (first, second)]
    texts = all(file.is_file() for file in files)
    if texts and files[0].read_bytes() == files[1].read_bytes():
        return Compared(name, "identical", paired=True)
    if all(has_query_scores(root, score.cell) for root, score in (first, second)):
        paired = _paired(name, first, second, "completions or prompts differ" if texts else "on every query")
        if paired is not None:
            return paired
    values = [((score.score or 0.0) / 100, score.n) for score in scores]
    if values[0] == values[1]:
        return Compared(name, "equal scores", detail="predictions differ" if texts else "")
    return Compared(name, "differs", unpaired_difference([values[1]], [values[0]]), detail="means alone")


def _paired(name: Name, first: tuple[Path, Score], second: tuple[Path, Score], alike: str) -> Compared | None:
    """Compare two cells query by query; `alike` is the detail for cells with equal scores.

    Returns None if the metric is not the primary one (predictions have no other), or if other rows were tested.
    """
    answers = [read_query_scores(root, score.cell) for root, score in (first, second)]
    if answers[0].keys() != answers[1].keys():
        return None
    named = [(own.group, answers[1][query].group, query) for query, own in answers[0].items()]
    if any(one != other and query not in (one, other) for one, other, query in named):
        return None  # different rows with the same names
    queries = sorted(answers[0])
    arrays = [np.array([[each[query].score for query in queries]]) for each in answers]
    for array, (_, score) in zip(arrays, (first, second), strict=True):
        if abs(100 * array.mean() - (score.score or 0.0)) > 0.001:
            return None
    gaps = arrays[1] - arrays[0]
    if not gaps.any():
        return Compared(name, "equal scores", paired=True, detail=alike)
    groups = [answers[0][query].group for query in queries]
    binary = all(np.isin(array, (0.0, 1.0)).all() for array in arrays)
    told = contrast([Gaps(gaps, groups, binary)], seed=derive_seed("diff", *name))
    return Compared(name, "differs", told, paired=True)


def provenance_differences(first: Path, second: Path) -> list[str]:
    """Differences between the two provenance.json files, one line each; empty if either folder has none."""
    paths = [root / "provenance.json" for root in (first, second)]
    if not all(path.is_file() for path in paths):
        return []
    one, two = (_flat(read_json(path, "run `metatuner provenance` to write it again")) for path in paths)
    return [
        f"{key}: {_change(one.get(key, '(none)'), two.get(key, '(none)'))}"
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]


def _change(one: Any, two: Any) -> str:
    """The change in words; for lists, how many entries only one of them has."""
    if isinstance(one, list) and isinstance(two, list):
        gone, new = ([each for each in own if each not in other] for own, other in ((one, two), (two, one)))
        return f"{len(gone)} of {len(one)} only in the first, {len(new)} of {len(two)} only in the second"
    return f"{one} -> {two}"


def claim_differences(first: Path, second: Path) -> list[str]:
    """Claims with a different verdict in the second claims.csv, one line each; empty if either folder has none."""
    paths = [root / "claims.csv" for root in (first, second)]
    if not all(path.is_file() for path in paths):
        return []
    one, two = (_verdicts(path) for path in paths)
    return [
        f"claim {claim} ({data}): {one.get((claim, data), '(none)')} -> {two.get((claim, data), '(none)')}"
        for claim, data in dict.fromkeys([*one, *two])
        if one.get((claim, data)) != two.get((claim, data))
    ]


def _verdicts(path: Path) -> dict[tuple[str, str], str]:
    rows = read_csv(path, ("claim", "data", "verdict"), "run `metatuner claims` again")
    return {(row["claim"], row["data"]): row["verdict"] for row in rows}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, each in value.items():
            found |= _flat(each, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: value}


COLUMNS = (
    "method,variant,benchmark,trained_on,generator,seed,metric,kind,paired,difference,low,high,p,p_holm,detail"
).split(",")


def as_csv(found: Sequence[Compared]) -> str:
    """One line per cell and metric; differences are in points, the second minus the first."""
    rows: list[list[object]] = [list(COLUMNS)]
    for each in found:
        told = each.told
        numbers = [f"{100 * value:.2f}" for value in (told.estimate, told.low, told.high)] if told else [""] * 3
        tests = [f"{told.p:.2g}", f"{each.p_holm:.2g}"] if told else ["", ""]
        words = [*map(str, each.name), each.kind, str(each.paired).lower(), *numbers, *tests, each.detail]
        rows.append([inert(word) for word in words])
    return csv_text(rows)


def describe(found: Sequence[Compared], provenance: Sequence[str], claims: Sequence[str] = ()) -> str:
    """The text to print: a summary, cells that differ or are missing, changed claims, and changed provenance."""
    counts: dict[str, int] = {}
    for each in found:
        counts[each.kind] = counts.get(each.kind, 0) + 1
    lines = [f"{len(found)} cells and metrics: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())]
    significant = sum(each.significant for each in found)
    if counts.get("differs"):
        lines.append(f"{significant} of the differences are more than chance (Holm over all that differ, p <= 0.05)")
    lines += _sensitivity(found)
    lines += _differences(found) + _absent(found)
    if claims:
        lines += ["claims that come out otherwise:", *(f"  {line}" for line in claims)]
    if provenance:
        lines += ["made from:", *(f"  {line}" for line in provenance)]
    return "\n".join(lines)


def _differences(found: Sequence[Compared]) -> list[str]:
    """One line per difference; differences beyond chance come first."""
    lines = []
    for each in sorted(found, key=lambda each: each.p_holm):
        if (told := each.told) is None:
            continue
        interval = f"{100 * told.estimate:+.1f} [{100 * told.low:+.1f}, {100 * told.high:+.1f}]"
        way = "" if each.paired else ", means alone"
        mark = " *" if each.significant else ""
        lines.append(f"  {_title(each.name)}: {interval} points, p = {each.p_holm:.2g} after correction{way}{mark}")
    return lines


def _absent(found: Sequence[Compared]) -> list[str]:
    """Cells without a result in either folder or both: one line per cell, or one per method if there are many."""
    lines = []
    by_method: dict[tuple[str, Kind], list[Compared]] = {}
    for each in found:
        if each.kind not in SCORED:
            by_method.setdefault((Names().title(each.name[0], each.name[1]), each.kind), []).append(each)
    for (title, kind), absent in by_method.items():
        if len(absent) > FEW:
            lines.append(f"  {title}: {len(absent)} cells and metrics {kind}")
        else:
            details = (f" ({each.detail})" if each.detail else "" for each in absent)
            lines += [
                f"  {_title(each.name)}: {each.kind}{detail}" for each, detail in zip(absent, details, strict=True)
            ]
    return lines


def _title(name: Name) -> str:
    method, variant, benchmark, trained, generator, seed, metric = name
    where = benchmark if trained == benchmark else f"{benchmark} (trained on {trained})"
    title = f"{Names().title(method, variant)} on {where}, {metric}, seed {seed}"
    return title + (f", {generator}" if generator else "")


def _sensitivity(found: Sequence[Compared]) -> list[str]:
    """How far all cells moved together, and how far one cell must move to be detected: what "no difference" means."""
    moved = [each.told.estimate if each.told else 0.0 for each in found if each.kind in SCORED]
    told = [(each.told, each.paired) for each in found if each.told]
    if not told:
        return []
    mean, root = 100 * sum(moved) / len(moved), 100 * float(np.sqrt(np.mean(np.square(moved))))
    lines = [f"all {len(moved)} with a score in both: mean shift {mean:+.2f} points, root mean square {root:.2f}"]
    for paired, how in ((True, "compared query by query"), (False, "compared by means alone")):
        least = [_least_move(each, paired, len(told)) for each, kind in told if kind == paired]
        if least:
            lines.append(
                f"one cell {how} must move by about {100 * float(np.median(least)):.1f} points to be detected with "
                f"80 % probability ({len(told)} cells differ; at the strictest step of Holm's correction)"
            )
    return lines


def _least_move(told: Contrast, paired: bool, tests: int) -> float:
    """The smallest difference that is detected with 80 % probability.

    For a paired comparison, a difference of d adds at least d n queries that differ.
    """
    level = 1 - (1 - LEVEL) / tests
    alone = smallest_detectable_effect(told.standard_error, level=level)
    if not paired:
        return alone
    more = smallest_detectable_effect(1.0, level=level) ** 2 / told.queries
    return (more + sqrt(more**2 + 4 * alone**2)) / 2  # d with d^2 = z^2 (error^2 + d / n)


def diff(first: Path, second: Path, out: Path | None = None) -> tuple[str, bool]:
    """Compare two results folders.

    A changed verdict is reported but decides nothing: near a threshold, chance can change it.

    Returns:
        The text to print, and whether a cell is missing or differs by more than chance.

    Raises:
        UserError: a folder has no scores.csv, or a file is malformed.
    """
    for root in (first, second):
        if not root.is_dir():
            raise UserError(f"no folder {root}; name two results folders, such as results/snapshot/nano results/nano")
    found = compare_runs(first, second)
    if out is not None:
        write_text(out, as_csv(found))
    missing = any(
        each.kind.startswith("only in") or (each.kind == "no result" and "both" not in each.detail) for each in found
    )
    text = describe(found, provenance_differences(first, second), claim_differences(first, second))
    return text, missing or any(each.significant for each in found)
