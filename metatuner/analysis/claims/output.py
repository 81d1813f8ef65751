"""claims.csv, claims_parts.csv and claims.md of a results folder."""

import csv
import io
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from metatuner.analysis.claims import published
from metatuner.analysis.claims.measured import CLAIMS
from metatuner.analysis.claims.ruling import Part, Ruling, needed_text
from metatuner.analysis.claims.runs import Runs
from metatuner.analysis.effects import Contrast
from metatuner.analysis.escaping import escape_markdown, inert
from metatuner.analysis.labels import describe_world, name_world
from metatuner.analysis.published import read_published, read_test_sizes
from metatuner.files import write_text
from metatuner.harness.config import Config
from metatuner.harness.layout import Layout

COLUMNS = (
    "claim,title,data,world,verdict,estimand,test,threshold,part,estimate,low,high,p,needed,conditional,parts,detail"
).split(",")
PART_COLUMNS = (
    "claim,data,world,part,group,estimate,low,high,margin,p,p_reverse,standard_error,queries,effect,"
    "probability_of_improvement,reason"
).split(",")
SMALLEST_P = 0.0001
"""Smaller p-values are not told apart: resampling does not go further."""
PUBLISHED_WORLD = "paper (7B + 3B), from secondary sources"


def claims(config: Config) -> list[Path]:
    """Judge every claim on the config's results and on published numbers; write the three files, and say where."""
    runs, layout = Runs(config), Layout(config)
    experiment = next(iter(config.experiments))
    measured = [claim.on(runs) for claim in CLAIMS]
    told = published.rulings(published.Paper(read_published(), read_test_sizes()))
    worlds = {"measured": name_world(config, experiment), "published": PUBLISHED_WORLD}
    both = [ruling for pair in zip(measured, told, strict=True) for ruling in pair]
    page = as_markdown(both, worlds, describe_world(config, experiment))
    return [
        write_text(layout.claims("csv"), _table(COLUMNS, [_line(ruling, worlds) for ruling in both])),
        write_text(layout.claims("parts.csv"), _table(PART_COLUMNS, _part_lines(both, worlds))),
        write_text(layout.claims("md"), page),
    ]


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[inert(value) for value in line] for line in lines])
    return text.getvalue()


def _p(value: float) -> str:
    """A p-value in words."""
    return f"p = {value:.2g}" if value >= SMALLEST_P else f"p < {SMALLEST_P:g}"


def _points(value: float) -> str:
    return f"{100 * value:.2f}"


def _line(ruling: Ruling, worlds: dict[str, str]) -> list[str]:
    part = ruling.decisive
    told = part.contrast if part else None
    return [
        str(ruling.claim),
        ruling.title,
        ruling.data,
        worlds[ruling.data],
        ruling.verdict,
        ruling.estimand,
        ruling.test,
        ruling.threshold,
        part.name if part else "",
        *([_points(told.estimate), _points(told.low), _points(told.high)] if told else ["", "", ""]),
        f"{part.p:.2g}" if part and told else "",
        needed_text(ruling.needed),
        "" if told is None else str(told.conditional).lower(),
        str(len(ruling.parts)),
        ruling.detail,
    ]


def _part_lines(rulings: Sequence[Ruling], worlds: dict[str, str]) -> list[list[str]]:
    lines = []
    for ruling in rulings:
        for part in ruling.parts:
            told = part.contrast
            numbers = _numbers(part, told) if told else [""] * 8
            more = ["" if value is None else f"{value:.3f}" for value in (part.effect, part.improvement)]
            names = [str(ruling.claim), ruling.data, worlds[ruling.data], part.name, part.group]
            lines.append([*names, *numbers, *more, part.reason])
    return lines


def _numbers(part: Part, told: Contrast) -> list[str]:
    return [
        *(_points(value) for value in (told.estimate, told.low, told.high, told.margin)),
        f"{part.p:.2g}",
        f"{part.p_reverse:.2g}",
        _points(told.standard_error),
        str(told.queries),
    ]


def as_markdown(rulings: Sequence[Ruling], worlds: dict[str, str], world: str) -> str:
    """A page: verdicts at a glance, then each claim."""
    lines = ["# Claims", "", f"**Measured: {escape_markdown(world)}**", ""]
    lines += [f"**Published: {PUBLISHED_WORLD}; single numbers, tested as if their test rows were independent.**", ""]
    lines += ["| claim | measured | published |", "| --- | --- | --- |"]
    for own, other in zip(rulings[::2], rulings[1::2], strict=True):
        lines.append(f"| {own.claim}. {escape_markdown(own.title)} | {own.verdict} | {other.verdict} |")
    lines += [
        "",
        "Supported: every test that the claim needs finds it. Contradicted: a test in the reverse direction, corrected "
        "by Holm, finds the opposite. Undecided: neither; beside it the number of test queries at which the "
        "difference, as it is estimated, would be told with probability 0.8. Not evaluable: not run, or not published.",
        "",
    ]
    for ruling in rulings:
        lines += [f"## {ruling.claim}, {ruling.data} ({worlds[ruling.data]}): {ruling.verdict}", ""]
        lines += [f"{escape_markdown(ruling.title)}.", ""]
        lines += [f"- Estimand: {escape_markdown(ruling.estimand)}"]
        lines += [f"- Test: {escape_markdown(ruling.test)}"] if ruling.test else []
        lines += [f"- Threshold: {escape_markdown(ruling.threshold)}"]
        if ruling.decisive and (told := ruling.decisive.contrast):
            interval = f"{100 * told.estimate:+.1f} [{100 * told.low:+.1f}, {100 * told.high:+.1f}]"
            limits = " (holds for these seeds)" if told.conditional and ruling.data == "measured" else ""
            name = escape_markdown(ruling.decisive.name)
            count = f"of {len(ruling.parts)} tests: " if len(ruling.parts) > 1 else ""
            lines.append(f"- Decides: {count}{name}: {interval} points, {_p(ruling.decisive.p)}{limits}")
        if ruling.needed is not None:
            queries = (
                f"{needed_text(ruling.needed)} test queries" if isfinite(ruling.needed) else "no number of queries"
            )
            lines.append(f"- Would be decided with: {queries}")
        lines += [f"- {escape_markdown(ruling.detail)}"] if ruling.detail else []
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
