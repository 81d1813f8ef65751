"""Commands that make scores, tables, figures, claims and the report from the files of a results folder.

All except `scores` work on a snapshot as well as on a finished run.
"""

import argparse
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner import progress
from metatuner.commands.base import ATTEMPT, command, option, store_attempt

if TYPE_CHECKING:
    from metatuner.config import Config


@command("collect scores.csv from the cells at hand", ATTEMPT)
def scores(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.results.divergence import with_diverged
    from metatuner.analysis.results.scores import write_query_scores, write_scores, write_settings
    from metatuner.files import write_json
    from metatuner.integrity import check_folder, write_digests
    from metatuner.plan import Plan
    from metatuner.run.packs import outcomes

    plan = Plan(config)
    rows = [row.as_dict() for row in plan.grid.rows]
    done = {key: (outcome.status, outcome.reason) for key, outcome in outcomes(plan).items()}
    for folder in filter(Path.is_dir, map(plan.layout.cell, plan.grid.cells)):
        check_folder(folder, f"remove {folder} and run again")
    found = with_diverged(rows, done, plan.layout)
    write_scores(rows, found, plan.layout.root)
    write_query_scores((row["cell"] for row in rows), plan.layout.root)
    write_settings(rows, plan.layout.settings)
    write_json(plan.layout.methods, plan.descriptions)
    write_json(plan.layout.searches, plan.searches.describe())
    collected = ("scores", "query_scores", "settings", "methods", "searches")
    write_digests(plan.layout.root, [getattr(plan.layout, name).name for name in collected])
    store_attempt(config, arguments, "results", "scores")
    if plan.settings.expired:
        named = ", ".join(f"{subject} on {benchmark}" for subject, benchmark in sorted(plan.settings.expired))
        progress.say(
            f"stored winners have expired (what they hold for changed): {named}; the preset's settings were used"
        )


@command(
    "make a table from scores at hand",
    option("--name", required=True, help="table_1, table_3, table_EXPERIMENT, or all"),
)
def table(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.tables import tables_of

    _check(config)
    _draw(config, arguments.name, tables_of(config))


@command(
    "make a figure from scores at hand",
    option("--name", required=True, help="figure_main, figure_2 to figure_6, figure_EXPERIMENT, all, or figure_budget"),
)
def figure(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.figures import figures_of
    from metatuner.analysis.figures.budget import figure_budget
    from metatuner.analysis.figures.framework import Design, figure_2
    from metatuner.errors import UserError
    from metatuner.plan import Plan

    if arguments.name == "figure_budget":  # drawn from searches, without scores
        return _draw(config, arguments.name, {arguments.name: figure_budget})
    _check(config)
    makers = figures_of(config)
    design = Plan(config).settings.framework()
    if arguments.name == "figure_2" and design is None:
        raise UserError("--name figure_2: it draws MetaTuner-J, which no experiment here has; add metatuner_j to one")
    if design is not None:
        makers["figure_2"] = lambda config: figure_2(config, Design(**design))
    _draw(config, arguments.name, makers)


def _draw(config: "Config", name: str, makers: "Mapping[str, Callable[[Config], Iterable[Path]]]") -> None:
    from metatuner.errors import UserError, suggest

    if name != "all" and name not in makers:
        raise UserError(f"--name {name!r}: nothing in this preset; {suggest(name, [*makers, 'all'])}")
    for each in makers if name == "all" else [name]:
        for path in makers[each](config):
            progress.say(f"wrote {path}")


@command("judge the paper's claims on scores at hand and on its published numbers")
def claims(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.claims import claims as judge

    _check(config)
    for path in judge(config):
        progress.say(f"wrote {path}")


@command("write report.html from the files of the results folder")
def report(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.report import report as write

    _check(config)
    progress.say(f"wrote {write(config)}")


def _check(config: "Config") -> None:
    """Unpack a snapshot. UserError if the collected scores or the cells that they name were altered since."""
    from metatuner.analysis.results.scores import read_scores
    from metatuner.config import Layout
    from metatuner.integrity import DIGESTS, check_folder

    _unpack(config)
    layout = Layout(config)
    if not layout.digests.is_file():  # of an earlier version, or written by hand
        return
    remedy = "run `snakemake --cores all` again with this run's preset, or `metatuner scores --config"
    check_folder(layout.root, f"{remedy} {layout.config}`", strangers=False)
    for key in dict.fromkeys(score.cell for score in read_scores(layout.scores)):
        folder = layout.cell(key)
        if (folder / DIGESTS).is_file():
            check_folder(folder, f"remove {folder} and run again")


def _unpack(config: "Config") -> None:
    from metatuner.analysis.results.snapshot import ARCHIVE, unpack_snapshot

    if unpack_snapshot(Path(config.results)):
        progress.say(f"unpacked {Path(config.results) / ARCHIVE}")


@command(
    "keep a finished run in few files, to be committed and drawn again",
    option("--out", type=Path, help="by default results/snapshot/PRESET"),
)
def snapshot(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.results.snapshot import write_snapshot

    out = arguments.out or Path("results/snapshot") / config.preset
    progress.say(f"wrote {write_snapshot(config, out)}")


@command("compare every stored file with its digest: fits, cells, splits, models, scores")
def verify(config: "Config", arguments: argparse.Namespace) -> int:
    """Name every file that differs, with the remedy; exit status 1 if any does."""
    from metatuner.run.verification import verify as compare

    _unpack(config)
    found = compare(config)
    for line in found.differing:
        print(line)
    print(found.summary)
    return 1 if found.differing else 0


@command("write what the results depend on")
def provenance(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.results.provenance import write_provenance
    from metatuner.harness.proposer import NOTE
    from metatuner.plan import Plan
    from metatuner.server import ENGINE_NOTE

    plan, proposer = Plan(config), config.models.proposer
    roles = ("actor", *config.models.generators)
    engines = {role: engine for role in roles if (engine := plan.keys.model_config(role).engine)}
    used = {
        word: sorted({f"{row.method} on {row.benchmark}" for row in plan.grid.rows if row.tuned == word})
        for word in ("winner", "expired")
    }
    dependencies = {
        "models": {role: plan.keys.model_key(role) for role in roles},
        **plan.keys.fetched_weights(),
        "data": {name: plan.keys.data_key(name) for name in config.benchmarks},
        "world": plan.keys.world_key,
        **({"proposer": {**proposer.identity, "note": NOTE}} if proposer else {}),
        **(
            {"engines": {role: {**each.identity, "note": ENGINE_NOTE} for role, each in engines.items()}}
            if engines
            else {}
        ),
        "winners_used": used["winner"],
        "winners_expired": used["expired"],
    }
    write_provenance(config, dependencies, plan.layout.provenance)


@command("fail if any cell failed, naming each with its reason")
def verdict(config: "Config", arguments: argparse.Namespace) -> int:
    """Fail if any cell failed; else remove the policies that the preset does not keep."""
    from metatuner.analysis.results.divergence import with_diverged
    from metatuner.analysis.results.verdict import write_verdict
    from metatuner.plan import Plan
    from metatuner.run.packs import outcomes

    plan = Plan(config)
    rows = [row.as_dict() for row in plan.grid.rows]
    done = {key: (outcome.status, outcome.reason) for key, outcome in outcomes(plan).items()}
    for key, (status, _) in done.items():
        if status == "ok" and key in plan.grid.cells and not plan.layout.cell(key).is_dir():
            done[key] = ("failed", f"no folder {plan.layout.cell(key)}; run again")
    found = with_diverged(rows, done, plan.layout)
    failed = write_verdict(rows, found, plan.layout.verdict)
    if diverged := sum(status == "diverged" for status, _ in found.values()):
        progress.say(f"{diverged} cells have no score, as their fits diverged; {plan.layout.verdict} names them")
    for line in failed:
        progress.say(line)
    if failed:
        progress.say(
            f"{len(failed)} cells failed; tracebacks are in {plan.layout.logs / 'failed'}; run again to retry them "
            f"(where .snakemake/ was removed: remove {plan.layout.root / 'packs'} first, what is there is kept)"
        )
        return 1
    for policy in plan.packs.spare_policies:
        shutil.rmtree(policy, ignore_errors=True)
    progress.say(f"all {len(plan.grid.cells)} cells are there; see {plan.layout.report}")
    return 0
