"""The command line. Every rule of the DAG is one of these commands; heavy imports wait for the step that needs them."""

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metatuner import forkserver, usage
from metatuner.errors import UserError

NO_PLACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
"""Errors of the place that files go to, not of the program."""
BROKEN_WEIGHTS_REMEDY = "a file of weights is cut off or broken: restore it, or remove its folder and run again"
NO_PLACE_REMEDY = "free space or make the place writable, then run again: finished work is kept"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metatuner",
        description="Reproducibility benchmark harness for MetaTuner. `snakemake --cores all` runs the steps.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, *, pack: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--config", type=Path, help="a resolved config, as results/<preset>/config.json")
        command.add_argument("--log", type=Path, help="write all output there; the terminal sees progress only")
        if pack:
            command.add_argument("--pack", required=True, help="name of the pack, e.g. sft-00")
            command.add_argument("--attempt", default="", help="number of this attempt, which the workflow counts")
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="without --config: preset=NAME and config keys"
        )
        return command

    add("config", "print the resolved config (JSON)").add_argument(
        "--schema", action="store_true", help="its JSON schema"
    )
    methods = add("methods", "list the methods at hand: name, family, settings, reference")
    methods.add_argument("--json", action="store_true", help="as JSON")
    add("check-data", "load each benchmark's rows from its source, verify them, print counts and hashes")
    add("world", "write the raw rows of the nano world")
    add("pretrain", "train a nano model from scratch").add_argument(
        "--role", required=True, help="actor, generator, ..."
    )
    add("world-report", "measure the nano world's bars on its audit draw")
    add("data", "draw the splits of a benchmark").add_argument("--benchmark", required=True)
    add("fit", "fit the policies of a pack", pack=True)
    add("evaluate", "evaluate the cells of a pack on test rows", pack=True)
    warm_up = add("tune-warmup", "fit what the searches on a benchmark build on")
    warm_up.add_argument("--benchmark", required=True)
    tune = add("tune", "random search for one method and benchmark, on the tune split")
    tune.add_argument("--method", required=True, help="a method, or METHOD.VARIANT")
    tune.add_argument("--benchmark", required=True)
    add("winners", "store the winners of all finished searches in the preset's file")
    add("confirm", "run the winning trials of expired winners again and keep those that score as before")
    add("scores", "collect scores.csv from the cells at hand")
    add("table", "make a table from scores at hand").add_argument(
        "--name", required=True, help="table_1, table_3, table_EXPERIMENT, or all"
    )
    add("figure", "make a figure from scores at hand").add_argument(
        "--name", required=True, help="figure_main, figure_2 to figure_6, figure_EXPERIMENT, or all"
    )
    add("claims", "judge the paper's claims on scores at hand and on its published numbers")
    add("report", "write report.html from the files of the results folder")
    add("swaps", "score a finished MetaTuner cell under other queries' prompts and LoRAs, on tune rows").add_argument(
        "--cell", required=True, help="its key in scores.csv"
    )
    export = add("export-adapter", "write the LoRA that a finished MetaTuner cell makes for a query as a PEFT folder")
    export.add_argument("--cell", required=True, help="its key in scores.csv")
    asked = export.add_mutually_exclusive_group(required=True)
    asked.add_argument("--query", help="a query as the model reads it")
    asked.add_argument("--id", help="the id of one of the cell's test rows")
    export.add_argument("--out", type=Path, required=True, help="a new folder")
    add("efficiency", "time what the main experiment's policies cost a query")
    add("provenance", "write what the results depend on")
    add("verdict", "fail if any cell failed, naming each with its reason")
    cost = add("cost", "predict what a preset will cost, from a finished run's meter or, on other models, from counts")
    cost.add_argument(
        "--from", type=Path, default=Path("results/nano"), dest="metered", help="results folder of that run"
    )
    cost.add_argument(
        "--assume", type=Path, default=Path("config/forecast.yaml"), help="lengths, weights and speeds of other models"
    )
    add("usage", "where the run's CPU time went, process start and imports apart")
    resume = add("resume", "take up an interrupted run, once the old one and its children are gone")
    resume.add_argument("--cores", default="all")
    bench = commands.add_parser(
        "bench",
        help="time per-query LoRA, the joint step and rollouts against other ways, at random weights",
        description="Ratios of times measured interleaved in one process, at random weights. docs/performance.md says "
        "what is compared.",
    )
    bench.add_argument("--device", default="auto", help="cpu, cuda or auto (cuda where there is one)")
    bench.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    bench.add_argument("--shape", help="nano, d512, 3b or 7b: make every measurement at this one")
    for option in ("width", "layers", "batch", "rank"):
        bench.add_argument(f"--{option}", type=int, help="in place of the shape's own")
    bench.add_argument("--repeats", type=int, default=9, help="rounds, at least 9")
    bench.add_argument("--only", help="training, generation, joint or rollouts")
    bench.add_argument("--json", type=Path, dest="json_file", metavar="FILE", help="write all times there too")
    diff = commands.add_parser(
        "diff",
        help="compare two results folders cell by cell, with paired tests",
        description="Differences are the second's scores less the first's, in points, query by query where both "
        "folders have their predictions. docs/statistics.md says how.",
    )
    diff.add_argument("first", type=Path, help="a results folder, or a snapshot of one")
    diff.add_argument("second", type=Path)
    diff.add_argument("--csv", type=Path, dest="csv_file", metavar="FILE", help="write every cell there")
    diff.add_argument(
        "--fail-on-difference", action="store_true", help="exit 1 if anything is missing or differs by more than chance"
    )
    new = commands.add_parser("new-method", help="write a commented file that is a working method from the start")
    new.add_argument("name", help="lower-case letters, digits and underscores")
    new.add_argument("--family", choices=("vanilla", "prompt", "parameter", "hybrid"), default="prompt")
    new.add_argument("--dir", type=Path, default=Path(), dest="folder", help="where to write NAME.py; here, by default")
    check = commands.add_parser(
        "check-method",
        help="check that a file's methods keep their contract, on untrained models and a few rows",
        description="Runs each method of the file several times on untrained models; takes a minute or two.",
    )
    check.add_argument("file", type=Path)
    check.add_argument("--method-config", help="the method's part of a config, e.g. '{settings: {epochs: 1}}'")
    lm_eval = commands.add_parser("lm-eval", help="lm-eval's command line with our policies as a model", add_help=False)
    lm_eval.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words, the values read as YAML; the key may be dotted."""
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is no key=value; e.g. preset=smoke or tuning.trials=2")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{key}: not a YAML value: {text!r} ({getattr(error, 'problem', error)})") from None
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a UserError is one line on stderr and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and os.environ.get(forkserver.ADDRESS):
        try:
            return forkserver.become(["metatuner", *words])
        except UserError as error:
            print(f"metatuner: {error}", file=sys.stderr)
            return 2
    if words[:1] == ["lm-eval"]:  # its own options follow, --help included
        arguments = argparse.Namespace(command="lm-eval", arguments=words[1:])
    else:
        arguments = _parser().parse_args(words)
    if argv is None and "PYTHONHASHSEED" not in os.environ:
        # Libraries write sets to files in their order, which differs from process to process unless this is set.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": "0"})
    usage.start()
    from safetensors import SafetensorError

    from metatuner import progress

    try:
        from metatuner import steps

        if getattr(arguments, "log", None):
            label = " ".join([arguments.command, *(str(value) for value in _what(arguments))])
            progress.to_log(arguments.log, label, shlex.join(["metatuner", *words]))
        return steps.run(arguments, parse_overrides(getattr(arguments, "overrides", [])))
    except UserError as error:
        progress.say(f"metatuner {arguments.command}: {error}")
        return 2
    except SafetensorError as error:  # its writer wraps the system's errors in one of its own
        if not any(f"os error {number}" in str(error) for number in NO_PLACE):
            progress.say(f"metatuner {arguments.command}: {error}; {BROKEN_WEIGHTS_REMEDY}")
            return 2
        progress.say(f"metatuner {arguments.command}: {error}; {NO_PLACE_REMEDY}")
        return 2
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        place = f"{error.filename}: " if error.filename else ""
        progress.say(f"metatuner {arguments.command}: {place}{error.strerror}; {NO_PLACE_REMEDY}")
        return 2


def _what(arguments: argparse.Namespace) -> list[str]:
    names = ("pack", "role", "method", "benchmark", "name")
    return [getattr(arguments, name) for name in names if getattr(arguments, name, None)]


if __name__ == "__main__":
    sys.exit(main())
