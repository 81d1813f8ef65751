"""Runs `metatuner` commands in this process, on a given config."""

import argparse
from typing import Any

from metatuner.commands import groups
from metatuner.config import Config
from metatuner.metering import Process
from metatuner.supervision import Steps


def step(command: str, config: Config, /, **words: Any) -> int:
    """Run a command on a config; return its exit status."""
    (found,) = [each for group in groups().values() for each in group if each.name == command]
    return found.action(config, argparse.Namespace(process=Process(), steps=Steps(), **{"attempt": "", **words})) or 0
