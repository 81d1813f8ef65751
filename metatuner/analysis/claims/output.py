"""claims.csv, claims_parts.csv and claims.md of a results folder."""

from collections.abc import Sequence
from pathlib import Path

from metatuner.analysis.claims import paper
from metatuner.analysis.claims.listed import CLAIMS
from metatuner.analysis.claims.ruling import Outcome, Part, Ruling, describe_needed
from metatuner.analysis.claims.runs import Runs
from metatuner.analysis.escaping import escape_markdown, inert
from metatuner.analysis.names import describe_world, name_world
from metatuner.analysis.results.published import read_published, read_test_sizes
from metatuner.analysis.statistics import MIN_SEEDS, Contrast
from metatuner.config import Config, Layout
from metatuner.files import write_csv, write_text

COLUMNS = (
    "claim,title,data,world,verdict,estimand,test,threshold,part,estimate,low,high,p_for,p_against,needed,needed_of,"
    "towards,conditional,seeds,tests,detail"
).split(",")
PART_COLUMNS = (
    "claim,data,world,part,group,estimate,low,high,margin,p,p_reverse,standard_error,queries,seeds,effect,"
    "probability_of_improvement,reason"
).split(",")
SMALLEST_P = 0.0001
"""Smaller p-values are only reported as smaller than this number."""
PUBLISHED_WORLD = "paper (7B + 3B), from secondary sources"


def claims(config: Config) -> list[Path]:
    """Judge every claim on the config's results and on published numbers; write the files and return their paths."""
    runs, layout = Runs(config), Layout(config)
    experiment = config.main
    measured = [claim.on(runs) for claim in CLAIMS]
    told = paper.rulings(paper.Paper(read_published(), read_test_sizes()))
    worlds = {"measured": name_world(config, experiment), "published": PUBLISHED_WORLD}
    both = [ruling for pair in zip(measured, told, strict=True) for ruling in pair]
    asked = config.claims == "paper"
    world = describe_world(config, experiment)
    page = as_markdown(both, worlds, world, searched=asked and bool(runs.searches), asked=asked)
    return [
        _write(layout.claims("csv"), COLUMNS, [_line(ruling, worlds) for ruling in both]),
        _write(layout.claims("parts.csv"), PART_COLUMNS, _part_lines(both, worlds)),
        write_text(layout.claims("md"), page),
    ]


def _write(path: Path, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Path:
    return write_csv(path, [columns, *([inert(value) for value in line] for line in lines)])


def _p(value: float) -> str:
    """A p-value in words."""
    return f"p = {value:.3g}" if value >= SMALLEST_P else f"p < {SMALLEST_P:g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _points(value: float) -> str:
    return f"{100 * value:.2f}"


def _line(ruling: Ruling, worlds: dict[str, str]) -> list[str]:
    outcome = ruling.outcome
    told = outcome.decisive.contrast if outcome.decisive else None
    return [
        str(ruling.claim),
        ruling.title,
        ruling.data,
        worlds[ruling.data],
        outcome.label,
        ruling.estimand,
        ruling.test,
        ruling.threshold,
        outcome.decisive.name if outcome.decisive else "",
        *([_points(told.estimate), _points(told.low), _points(told.high)] if told else ["", "", ""]),
        _number(outcome.p_for),
        _number(outcome.p_against),
        "" if outcome.needed is None else f"{outcome.needed:.0f}" if outcome.towards else "unknown",
        told.scope if told and outcome.towards else "",
        outcome.towards or "",
        "" if told is None else str(told.conditional).lower(),
        _seeds(told),
        str(outcome.tests),
        ruling.detail,
    ]


def _part_lines(rulings: Sequence[Ruling], worlds: dict[str, str]) -> list[list[str]]:
    lines = []
    for ruling in rulings:
        for part in ruling.parts:
            told = part.contrast
            numbers = _numbers(part, told) if told else [""] * 9
            more = ["" if value is None else f"{value:.3f}" for value in (part.effect, part.improvement)]
            names = [str(ruling.claim), ruling.data, worlds[ruling.data], part.name, part.group]
            lines.append([*names, *numbers, *more, part.reason])
    return lines


def _numbers(part: Part, told: Contrast) -> list[str]:
    return [
        *(_points(value) for value in (told.estimate, told.low, told.high, told.margin)),
        _number(part.p),
        _number(part.p_reverse),
        _points(told.standard_error),
        str(told.queries),
        _seeds(told),
    ]


def _seeds(told: Contrast | None) -> str:
    """The number of seeds; "" if there are no data, or if it is not public."""
    return str(told.seeds) if told and told.seeds else ""


def as_markdown(rulings: Sequence[Ruling], worlds: dict[str, str], world: str, *, searched: bool, asked: bool) -> str:
    """A page: verdicts at a glance, then each claim.

    Args:
        rulings: two per claim, first measured, then published.
        worlds: short names of what the rulings are about, by kind of data.
        world: what was measured, at length.
        searched: whether some settings are winners of a search.
        asked: whether the preset says that it reproduces the paper.
    """
    lines = ["# Claims", "", f"**Measured: {escape_markdown(world)}**", ""]
    lines += [f"**Published: {PUBLISHED_WORLD}; single numbers, tested as if their test rows were independent.**", ""]
    lines += [] if asked else [f"**{NOT_ASKED}**", ""]
    lines += ["| claim | measured | published |", "| --- | --- | --- |"]
    for own, other in zip(rulings[::2], rulings[1::2], strict=True):
        lines.append(f"| {own.claim}. {escape_markdown(own.title)} | {own.outcome.label} | {other.outcome.label} |")
    lines += ["", KEY, "", *([f"**{SEARCHED}**", ""] if searched else [])]
    for ruling in rulings:
        lines += [f"## {ruling.claim}, {ruling.data} ({worlds[ruling.data]}): {ruling.outcome.label}", ""]
        lines += [f"{escape_markdown(ruling.title)}. {_in_words(ruling)}", ""]
        lines += [f"- Estimand: {escape_markdown(ruling.estimand)}"]
        lines += [f"- Test: {escape_markdown(ruling.test)}"] if ruling.test else []
        lines += [f"- Threshold: {escape_markdown(ruling.threshold)}"]
        lines += _decision(ruling.outcome, measured=ruling.data == "measured")
        lines += [f"- {escape_markdown(ruling.detail)}"] if ruling.detail else []
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


KEY = (
    "Supported: every test that the claim needs is significant. Contradicted: the reverse of the claim is significant "
    "after correction. A claim about every comparison is contradicted by one of them, after Holm's correction; a claim "
    "about some comparison only by all of them. Undecided: neither. Then the number of test queries is given at which "
    "the deciding difference, as estimated, would be significant with probability 0.8, and for which side; only the "
    f"choice of queries varies there. Fewer than {MIN_SEEDS} seeds cannot show how much seeds vary: then a claim is "
    "undecided, whatever its p-values, which hold for these seeds only. Not evaluable: not run, only in part, or not "
    "published. Not judged: the preset does not reproduce the paper. p: of the whole claim and of its reverse, "
    "two-sided, corrected as the verdict needs. Intervals: 95 %, of the named part alone, uncorrected."
)
NOT_ASKED = (
    "The paper's claims are not judged on this run: its preset does not say that it reproduces the paper. To judge "
    "them, write `claims: paper` into the preset (docs/statistics.md, Claims)."
)
SEARCHED = (
    "Measured verdicts are conditional on the settings. Searched settings are the winners of one random search per "
    "benchmark. Another search may find others; no interval or p-value includes that (docs/statistics.md, Tuning)."
)


def _in_words(ruling: Ruling) -> str:
    """The verdict and the difference that decides it, as a sentence."""
    outcome = ruling.outcome
    verdict = f"{outcome.label[0].upper()}{outcome.label[1:]}"
    if outcome.decisive is None or (told := outcome.decisive.contrast) is None:
        return f"**{verdict}.**"
    low, high = (f"{100 * value:+.1f}" for value in (told.low, told.high))
    about = f"{escape_markdown(outcome.decisive.name)}, is {100 * told.estimate:+.1f} points"
    return f"**{verdict}.** The difference that decides, {about}, with an interval from {low} to {high}."


def _decision(outcome: Outcome, *, measured: bool) -> list[str]:
    """What decides the verdict, with p-values and, if it is undecided, how many queries would decide it."""
    lines = []
    if outcome.decisive and (told := outcome.decisive.contrast):
        interval = f"{100 * told.estimate:+.1f} [{100 * told.low:+.1f}, {100 * told.high:+.1f}]"
        limits = " (holds for these seeds)" if told.conditional and measured else ""
        name = escape_markdown(outcome.decisive.name)
        count = f"of {outcome.tests} tests: " if outcome.tests > 1 else ""
        lines.append(f"- Decides: {count}{name}: {interval} points{limits}")
    if outcome.p_for is not None and outcome.p_against is not None:
        lines.append(f"- The claim: {_p(outcome.p_for)}; its reverse: {_p(outcome.p_against)}")
    if needed := describe_needed(outcome):
        lines.append(f"- That difference would be significant with: {needed}")
    return lines
