"""Commands that show a preset or a run, and change nothing."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.commands.base import command, option

if TYPE_CHECKING:
    from metatuner.config import Config


@command(
    "check a preset with its overrides, and print the resolved config (JSON)",
    option("--schema", action="store_true", help="print the config's JSON schema instead"),
)
def config(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.config import dump_config, json_schema
    from metatuner.plan import Plan

    if arguments.schema:
        print(json.dumps(json_schema(), indent=1))
        return
    Plan(config).check()
    print(dump_config(config), end="")


@command(
    "list the methods: name, family, settings, reference", option("--json", action="store_true", help="print JSON")
)
def methods(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.harness.describe import describe_method
    from metatuner.harness.registry import Registry

    registry = Registry(config.extra_methods)
    listed = [describe_method(registry[name].cls) for name in registry.names()]
    if arguments.json:
        print(json.dumps(listed, indent=1, ensure_ascii=False))
        return
    for entry in listed:
        serves = " (internal: other methods build on it)" if entry["internal"] else ""
        print(f"{entry['name']:16} {entry['family']:10} {entry['reference']}{serves}")
        for setting in entry["settings"]:
            print(f"    {setting['name']} = {setting['default']!r}")


@command("load each benchmark's rows from its source, verify them, print counts and hashes")
def check_data(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.plan import Plan
    from metatuner.run.data import check_sources

    for line in check_sources(Plan(config)):
        print(line)


@command("what of this machine a run would use, and whether a preset's models, rows and largest job are there and fit")
def doctor(config: "Config", arguments: argparse.Namespace) -> int:
    from metatuner.run.doctor import examine

    missing = 0
    for finding in examine(config):
        print(f"{finding.status:<8} {finding.text}", flush=True)
        missing += finding.status == "missing"
    if missing:
        print(f"{missing} missing: a run of preset {config.preset} cannot end here")
    return int(missing > 0)


@command(
    "predict what a preset will cost, from a finished run's meter or, on other models, from counts",
    option("--from", type=Path, default=Path("results/nano"), dest="metered", help="results folder of a finished run"),
    option(
        "--assume",
        type=Path,
        help="lengths, weights and speeds of other models; by default the preset's `forecast`",
    ),
)
def cost(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.cost import predict
    from metatuner.hashing import ROOT
    from metatuner.plan import Plan

    print(predict(Plan(config), arguments.metered, arguments.assume or ROOT / config.forecast))


@command("where the run's CPU time went, process start and imports apart")
def usage(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.analysis.results.usage import summarise
    from metatuner.config import Layout

    print(summarise(Layout(config).usage))


@command(
    "compare two results folders cell by cell, with paired tests",
    option("first", type=Path, help="a results folder, or a snapshot of one"),
    option("second", type=Path),
    option("--csv", type=Path, dest="csv_file", metavar="FILE", help="write every cell there"),
    option(
        "--fail-on-difference", action="store_true", help="exit 1 if anything is missing or differs by more than chance"
    ),
    configured=False,
    description="Differences are the second's scores less the first's, in points, query by query where both folders "
    "have their predictions. docs/statistics.md says how.",
)
def diff(arguments: argparse.Namespace) -> int:
    from metatuner.analysis.diff import diff as compare

    text, differs = compare(arguments.first, arguments.second, arguments.csv_file)
    print(text)
    return int(differs and arguments.fail_on_difference)
