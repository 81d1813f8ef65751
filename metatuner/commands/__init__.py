"""The commands of `metatuner`, one file per group. Heavy imports happen only in the command that needs them."""

from metatuner.commands import extend, look, results, run, tools
from metatuner.commands.base import Command

__all__ = ["Command", "groups"]


def groups() -> dict[str, list[Command]]:
    """The commands of each group, in the order of declaration."""
    modules = {"run": run, "look": look, "results": results, "extend": extend, "tools": tools}
    return {
        name: [value for value in vars(module).values() if isinstance(value, Command)]
        for name, module in modules.items()
    }
