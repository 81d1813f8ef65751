"""The command line: finds the command, reads its config, and turns the user's errors into one line."""

import argparse
import errno
import os
import select
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import NoReturn

from metatuner import progress, supervision
from metatuner.commands import Command, groups
from metatuner.commands.base import clean_up, label
from metatuner.errors import UserError, suggest
from metatuner.integrity import FULL, NO_PLACE_REMEDY

NO_PLACE = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
"""Errors of the place where files are written, not of the program."""
BROKEN_WEIGHTS_REMEDY = "a file of weights is cut off or broken: restore it, or remove its folder and run again"
NO_MEMORY_REMEDY = "run with fewer --cores, or allow the process more memory: finished work is kept"
ABOUT = "Reproducibility benchmark harness for MetaTuner. `snakemake --cores all` runs the steps."


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the words of a command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands and their options."""
    top = _Parser(
        prog="metatuner",
        description=ABOUT,
        usage="metatuner COMMAND ...",
        epilog=_listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"metatuner {version('metatuner')}")
    commands = top.add_subparsers(
        dest="command", prog="metatuner", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for each in _commands().values():
        text = each.description or each.help[0].upper() + each.help[1:] + "."
        each.add_options(commands.add_parser(each.name, description=text, add_help=each.name != "lm-eval"))
    return top


def _commands() -> dict[str, Command]:
    return {each.name: each for group in groups().values() for each in group}


def _listing() -> str:
    lines = []
    for name, commands in groups().items():
        lines += [f"{name}:", *(f"  {each.name:<15} {each.help}" for each in commands), ""]
    return "\n".join([*lines, "`metatuner COMMAND --help` shows a command's words."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a `UserError` becomes one line on stderr and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        parser().print_help(sys.stderr)
        return 2
    try:
        if argv is None and os.environ.get("METATUNER_FORK_SERVER"):
            from metatuner import forkserver  # needs psutil

            try:
                return forkserver.become(["metatuner", *words])
            except forkserver.NoServer as error:
                print(f"metatuner: {error}; going on without it", file=sys.stderr)
                del os.environ["METATUNER_FORK_SERVER"]  # for the processes that this one starts or becomes
        commands = _commands()
        if words and not words[0].startswith("-") and words[0] not in commands:
            raise UserError(f"unknown command {words[0]!r}; {suggest(words[0], commands)}")
    except UserError as error:
        print(f"metatuner: {error}", file=sys.stderr)
        return 2
    if words[:1] == ["lm-eval"]:  # its own options follow, --help included
        arguments = argparse.Namespace(command="lm-eval", arguments=words[1:])
    else:
        arguments = _parse(words)
    if argv is None and "PYTHONHASHSEED" not in os.environ:
        # Libraries write sets to files, and the order of sets differs between processes unless this is set.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": "0"})
    try:
        status = _guarded(commands[arguments.command], arguments, words)
    except BaseException:
        if supervision.is_child():
            traceback.print_exc()
            supervision.leave(1)
        raise
    if supervision.is_child():
        supervision.leave(status)
    return status


def _parse(words: Sequence[str]) -> argparse.Namespace:
    made = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell wants completions
        import argcomplete

        argcomplete.autocomplete(made)
    return made.parse_args(words)


def _run(command: Command, arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command on its config."""
    from metatuner.metering import Process

    arguments.process = Process()
    if not command.configured:
        return command.action(arguments) or 0
    from metatuner.config import Layout, load_config, parse_overrides, read_config

    names = label(arguments)
    if arguments.log is not None:
        progress.to_log(arguments.log, " ".join([command.name, *names]), shlex.join(["metatuner", *words]))
    overrides = parse_overrides(arguments.overrides)
    if arguments.config is not None and overrides:
        raise UserError("give either --config or key=value overrides, not both")
    preset = str(overrides.pop("preset", "nano"))
    config = read_config(arguments.config) if arguments.config else load_config(preset, overrides)
    arguments.process.started()
    if command.supervised:
        used = time.process_time()
        try:
            arguments.steps = supervision.supervised(partial(clean_up, Layout(config)))
        except supervision.Ended as ended:
            return ended.status
        arguments.process.earlier = used if supervision.is_child() else 0.0
    status = command.action(config, arguments) or 0
    if arguments.log is not None:
        arguments.process.write(Layout(config).usage, command.name, "-".join(names) or "all")
    return status


def _has_no_reader(output: int) -> bool:
    """Whether the reader of a pipe has closed it, as `head` does."""
    poll = select.poll()
    poll.register(output, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _guarded(command: Command, arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command; errors that a user can fix become one line."""
    from safetensors import SafetensorError

    try:
        status = _run(command, arguments, words)
        sys.stdout.flush()
        return status
    except UserError as error:
        message = str(error)
    except SafetensorError as error:  # its writer wraps errors of the system
        full = any(f"os error {number}" in str(error) for number in NO_PLACE)
        message = f"{error}; {NO_PLACE_REMEDY if full else BROKEN_WEIGHTS_REMEDY}"
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout.fileno()):
            raise  # of another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror}; {NO_PLACE_REMEDY}"
    except MemoryError:
        message = f"no memory is left; {NO_MEMORY_REMEDY}"
    except Exception as error:
        if getattr(arguments, "log", None) is not None:  # the traceback goes there
            progress.say(f"metatuner {command.name}: {type(error).__name__}; its traceback is in {arguments.log}")
        raise
    progress.say(f"metatuner {command.name}: {message}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
