"""Commands for authors of methods."""

import argparse
from pathlib import Path

from metatuner.commands.base import command, option


@command(
    "write a commented file that is a working method from the start",
    option("name", help="lower-case letters, digits and underscores"),
    option(
        "--family",
        choices=("vanilla", "prompt", "parameter", "hybrid"),
        default="prompt",
        help="where tables list it; the file is the same for all, baselines/sft.py shows training",
    ),
    option("--dir", type=Path, default=Path(), dest="folder", help="where to write NAME.py; here, by default"),
    configured=False,
)
def new_method(arguments: argparse.Namespace) -> None:
    from metatuner.authoring import new_method as write

    path = write(arguments.name, arguments.family, arguments.folder)
    print(f"wrote {path}. It works as it is; next:")
    print(f"  metatuner check-method {path}")
    print(f"  snakemake --cores all --config extra_methods={path}")


@command(
    "check that a file's methods keep their contract, on untrained models and a few rows",
    option("file", type=Path),
    option("--method-config", help="the method's part of a config, e.g. '{settings: {epochs: 1}}'"),
    configured=False,
    description="Runs each method of the file several times on untrained models; takes a minute or two.",
)
def check_method(arguments: argparse.Namespace) -> int:
    import tempfile

    from metatuner.authoring.conformance import Finding, read_overrides
    from metatuner.authoring.conformance import check_method as check
    from metatuner.errors import UserError

    def say(finding: Finding) -> None:
        print(f"{finding.status:>11}  {finding.check}" + (f": {finding.detail}" if finding.detail else ""), flush=True)

    if not arguments.file.is_file():
        raise UserError(f"no file {arguments.file}; `metatuner new-method NAME` writes one")
    overrides = read_overrides(arguments.method_config)
    with tempfile.TemporaryDirectory() as home:
        found = check(arguments.file, Path(home), overrides, say)
    failed = sum(finding.status == "fails" for finding in found)
    print(f"{len(found)} checks, {failed} failed")
    return int(failed > 0)
