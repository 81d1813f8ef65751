"""How a command is declared: its arguments, its help and its action, in one place."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metatuner.config import Config, Layout
    from metatuner.run.workshop import Workshop


@dataclass(frozen=True)
class Option:
    """An argument of a command, as argparse's `add_argument` takes it."""

    names: tuple[str, ...]
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Command:
    """One command of `metatuner`."""

    name: str
    help: str
    """One line, in lower case."""
    action: Callable[..., int | None]
    """Gets the config (if the command is `configured`) and the parsed arguments; returns the exit status (None: 0)."""
    options: tuple[Option, ...] = ()
    configured: bool = True
    """Whether the command works on a preset. It then takes --config, or preset=NAME and config keys, and --log."""
    supervised: bool = False
    """Whether its work is a list of steps, `arguments.steps`, that may end the process (see `supervision`)."""
    description: str = ""
    """Shown by `metatuner COMMAND --help`; by default `help`."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add this command's arguments to a parser."""
        from pathlib import Path

        if self.configured:
            parser.add_argument("--config", type=Path, help="a resolved config, as results/<preset>/config.json")
            parser.add_argument("--log", type=Path, help="write all output there; the terminal sees progress only")
        for option in self.options:
            parser.add_argument(*option.names, **option.keywords)
        if self.configured:
            parser.add_argument(
                "overrides", nargs="*", metavar="key=value", help="without --config: preset=NAME and config keys"
            )


def option(*names: str, **keywords: Any) -> Option:
    """An argument of a command."""
    return Option(names, keywords)


def command(help: str, *options: Option, **fields: Any) -> Callable[[Callable[..., int | None]], Command]:
    """Make a command from a function; its name is the function's name with hyphens."""

    def declare(action: Callable[..., int | None]) -> Command:
        return Command(action.__name__.strip("_").replace("_", "-"), help, action, options, **fields)

    return declare


ATTEMPT = option("--attempt", default="", help="number of this attempt, which the workflow counts")


def store_attempt(config: "Config", arguments: argparse.Namespace, step: str, name: str) -> None:
    """Store the number of this attempt, so that the workflow sees that it was made (see `Dag.retry`)."""
    from metatuner.config import Layout
    from metatuner.plan.attempts import write_attempts

    write_attempts(Layout(config).attempts(step, name), int(arguments.attempt or 0))


def clean_up(layout: "Layout", key: str, reason: str) -> None:
    """After the process died in a fit or an evaluation: keep the reason, if any, and remove what is half done."""
    import shutil
    from contextlib import suppress

    for folder in (layout.fit(key), layout.cell(key)):
        for left in folder.parent.glob(f".{key}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
    if not reason:
        return
    with suppress(OSError):  # a full disk must not hide the reason
        layout.failure(key).parent.mkdir(parents=True, exist_ok=True)
        layout.failure(key).write_text(f"{reason}; the log of its job may have more\n", encoding="utf-8")


def label(arguments: argparse.Namespace) -> Sequence[str]:
    """The values that distinguish one job of a command from another."""
    values = [getattr(arguments, name, None) for name in ("pack", "role", "method", "benchmark", "name")]
    return [value for value in values if value]


def workshop(config: "Config", arguments: argparse.Namespace) -> "Workshop":
    """The preset's models and benchmarks. CPU time up to here counts as the start of the process."""
    from metatuner.run.workshop import Workshop

    shop = Workshop(config)
    arguments.process.started()
    return shop
