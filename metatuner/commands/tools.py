"""Commands that use finished policies or the harness's scores elsewhere, and measurements of speed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.commands.base import command, option, workshop

if TYPE_CHECKING:
    from metatuner.config import Config

CELL = option("--cell", required=True, help="a cell's key in scores.csv")


@command(
    "write the LoRA that a finished MetaTuner cell makes for a query as a PEFT folder; print its prompt",
    CELL,
    option("--query", help="a query as the model reads it"),
    option("--id", help="in place of --query: the id of one of the cell's test rows"),
    option("--out", type=Path, required=True, help="a new folder"),
)
def export_adapter(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.run.export import export

    print(export(workshop(config, arguments), arguments.cell, arguments.query, arguments.id, arguments.out))


@command("score a finished MetaTuner cell under other queries' prompts and LoRAs, on tune rows", CELL)
def swaps(config: "Config", arguments: argparse.Namespace) -> None:
    from metatuner.run.swaps import scores_under_swaps

    for line in scores_under_swaps(workshop(config, arguments), arguments.cell):
        print(line)


@command(
    "score answers of any origin as the harness scores its own",
    option("file", type=Path, help='JSON Lines: {"benchmark": ID, "completion": TEXT, "row": RAW_ROW} per line'),
    option("--out", type=Path, help="write JSON Lines there; by default to standard output"),
    configured=False,
    description="Writes each line with what was extracted and each metric in place of `completion` and `row`. "
    "Other keys, such as an id, stay. docs/benchmarks.md states the rules.",
)
def score(arguments: argparse.Namespace) -> None:
    import json

    from metatuner.files import write_lines
    from metatuner.run.scoring import score_file

    scored = score_file(arguments.file)
    if arguments.out is not None:
        write_lines(arguments.out, scored)
        return
    for record in scored:
        print(json.dumps(record))


@command(
    "time per-query LoRA, the joint step and rollouts against other ways, at random weights",
    option("--device", default="auto", help="cpu, cuda or auto (cuda where there is one)"),
    option("--dtype", default="float32", help="float32, bfloat16 or float16"),
    option("--shape", help="nano, d512, 3b or 7b: make every measurement at this one"),
    *(
        option(f"--{size}", type=int, help="in place of the shape's own")
        for size in ("width", "layers", "batch", "rank")
    ),
    option("--repeats", type=int, default=9, help="rounds, at least 9"),
    option("--only", help="training, generation, joint or rollouts"),
    option("--json", type=Path, dest="json_file", metavar="FILE", help="write all times there too"),
    configured=False,
    description="Ratios of times measured interleaved in one process, at random weights. docs/performance.md says "
    "what is compared.",
)
def bench(arguments: argparse.Namespace) -> None:
    import warnings

    # transformers warns that PEFT uses names that it will drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from metatuner.bench import run

    names = ("device", "dtype", "shape", "width", "layers", "batch", "rank", "repeats", "only", "json_file")
    run(**{name: getattr(arguments, name) for name in names})


@command(
    "lm-eval's command line with our policies as a model",
    option("arguments", nargs=argparse.REMAINDER),
    configured=False,
)
def lm_eval(arguments: argparse.Namespace) -> None:
    from metatuner.run.lm_eval_model import lm_eval_command

    lm_eval_command(arguments.arguments)
