"""What a preset will cost, predicted from the metered fits and cells of a finished run."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from metatuner.errors import UserError
from metatuner.files import NUMBER, read_json

KINDS = ("fit", "cell")
AGAIN = "remove its folder and run again"
_COST = dict.fromkeys(("seconds", "peak_memory_bytes", "peak_gpu_memory_bytes"), NUMBER)


@dataclass(frozen=True)
class Work:
    """A fit or a cell that a preset needs."""

    kind: str
    """fit or cell."""
    method: str
    benchmark: str
    """The benchmark's name; for a fit on several benchmarks, their names joined by +."""
    done: bool
    """Whether it is already complete, so that it costs nothing."""


@dataclass(frozen=True)
class Metered:
    """One fit or cell of a finished run."""

    seconds: float
    peak_memory_bytes: int
    """Peak memory of the process; on a GPU, of the GPU."""
    size: int
    """Bytes on disk, including weights if they were kept."""


@dataclass
class Forecast:
    """A method's line: what is left to do, and its predicted cost."""

    left: dict[str, int]
    """Fits and cells to compute."""
    unknown: dict[str, int]
    """How many of these are of a method that the metered run does not have; they are not in the sums."""
    seconds: dict[str, float]
    size: float = 0.0

    @classmethod
    def empty(cls) -> "Forecast":
        """Nothing to do."""
        return cls(dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0))


def read_metered(root: Path) -> dict[tuple[str, str, str], list[Metered]]:
    """What was metered in a results folder, by (kind, method, benchmark); UserError if nothing was."""
    found: defaultdict[tuple[str, str, str], list[Metered]] = defaultdict(list)
    for kind, name in (("fit", "fits"), ("cell", "cells")):
        for path in sorted((root / name).glob("*/cost.json")):
            cost = read_json(path, AGAIN, _COST)
            named = {"benchmark": str} if kind == "cell" else {"trained_on": [str]}
            told = read_json(path.with_name(f"{kind}.json"), AGAIN, {"method": str, **named})
            benchmark = told["benchmark"] if kind == "cell" else "+".join(told["trained_on"])
            size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
            peak = cost["peak_gpu_memory_bytes"] or cost["peak_memory_bytes"]
            found[kind, told["method"], benchmark].append(Metered(cost["seconds"], peak, size))
    if not found:
        raise UserError(f"{root}: no metered fit or cell; name the results folder of a finished run (--from)")
    return dict(found)


def forecast(work: Iterable[Work], metered: Mapping[tuple[str, str, str], list[Metered]]) -> dict[str, Forecast]:
    """Predicted cost per method: the mean cost of its metered fits and cells, if possible on the same benchmark."""
    by_method: defaultdict[tuple[str, str], list[Metered]] = defaultdict(list)
    for (kind, method, _), each in metered.items():
        by_method[kind, method] += each
    lines: defaultdict[str, Forecast] = defaultdict(Forecast.empty)
    for item in work:
        line = lines[item.method]
        if item.done:
            continue
        line.left[item.kind] += 1
        known = metered.get((item.kind, item.method, item.benchmark)) or by_method.get((item.kind, item.method))
        if known:
            line.seconds[item.kind] += mean(each.seconds for each in known)
            line.size += mean(each.size for each in known)
        else:
            line.unknown[item.kind] += 1
    return dict(lines)


def describe(lines: Mapping[str, Forecast], metered: Mapping[tuple[str, str, str], list[Metered]]) -> str:
    """A text table with the most expensive method first, and what is assumed."""
    head = f"{'method':<22}{'fits':>7}{'cells':>7}{'s per fit':>10}{'s per cell':>11}{'hours':>9}{'GB':>8}"
    table = [head]

    def row(name: str, lines: list[Forecast]) -> str:
        count = {kind: sum(line.left[kind] for line in lines) for kind in KINDS}
        known = {kind: count[kind] - sum(line.unknown[kind] for line in lines) for kind in KINDS}
        spent = {kind: sum(line.seconds[kind] for line in lines) for kind in KINDS}
        each = [f"{spent[kind] / known[kind]:.1f}" if known[kind] else "-" for kind in KINDS]
        hours, size = sum(spent.values()) / 3600, sum(line.size for line in lines) / 1e9
        return f"{name:<22}{count['fit']:>7}{count['cell']:>7}{each[0]:>10}{each[1]:>11}{hours:>9.2f}{size:>8.2f}"

    for method, line in sorted(lines.items(), key=lambda each: (-sum(each[1].seconds.values()), each[0])):
        table.append(row(method, [line]))
    table.append(row("total", list(lines.values())))
    peak = max(each.peak_memory_bytes for found in metered.values() for each in found)
    table += [
        f"Largest process metered: {peak / 1e9:.2f} GB.",
        "Hours are of one process; divide by how many run side by side. Process starts, pretraining, tables and "
        "figures are not in them.",
        "Assumed: the same machine, models and sizes of data as in the metered run, and each method's mean settings.",
        "GB are before `keep` removes weights.",
    ]
    missing = [name for name, line in sorted(lines.items()) if any(line.unknown.values())]
    if missing:
        table.append(f"Not metered there, and not in the sums: {', '.join(missing)}.")
    return "\n".join(table)
