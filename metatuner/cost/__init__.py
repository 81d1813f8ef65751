"""What a preset will cost: from a finished run's meter or, for other models, from counts of the methods' loops."""

from collections.abc import Mapping
from pathlib import Path

from metatuner.config import read_config
from metatuner.cost.against import against, describe_check, read_costs
from metatuner.cost.assumptions import Assumptions
from metatuner.cost.jobs import jobs_of
from metatuner.cost.metered import Work, forecast, read_metered
from metatuner.cost.metered import describe as describe_metered
from metatuner.cost.predicted import Line, Tokens
from metatuner.cost.predicted import predict as predict_lines
from metatuner.files import read_json
from metatuner.plan import Plan

__all__ = ["describe", "predict"]


def predict(plan: Plan, finished: Path, assume: Path) -> str:
    """A preset's predicted cost, as text.

    Args:
        plan: the preset's plan.
        finished: results folder of a finished run. If it has the same models, the prediction uses its meter; else the
            counts are compared with its meter.
        assume: file of assumptions about other models.
    """
    provenance = finished / "provenance.json"
    if not provenance.is_file():
        note = f"No finished run in {finished} (--from): the counts are not compared with one."
        return f"{_from_counts(plan, assume)}\n\n{note}"
    metered = read_metered(finished)
    shape = {"dependencies": {"models": {"actor": str}}}
    known = read_json(provenance, "let that run end, or name another (--from)", shape)
    if known["dependencies"]["models"]["actor"] != plan.keys.model_key("actor"):
        assumed = Assumptions.read(assume)
        jobs = jobs_of(Plan(read_config(finished / "config.json")), assumed)
        return f"{_from_counts(plan, assume)}\n\n{describe_check(against(jobs, read_costs(finished)), finished)}"
    fits, cells = plan.grid.fits.values(), plan.grid.cells.values()
    work = [Work("fit", fit.method, "+".join(fit.train), plan.packs.is_complete(fit)) for fit in fits]
    work += [Work("cell", cell.fit.method, cell.benchmark, plan.layout.cell(cell.key).is_dir()) for cell in cells]
    return describe_metered(forecast(work, metered), metered)


def _from_counts(plan: Plan, assume: Path) -> str:
    """The cost on models that no finished run used."""
    assumed, models = Assumptions.read(assume), plan.config.models
    jobs = jobs_of(plan, assumed)
    lines = predict_lines(
        jobs,
        actor=models.actor.hub,
        assumed=assumed,
        window=models.actor.window or float("inf"),
        batch_tokens=plan.config.batch_tokens,
        dtype_bytes={"float32": 4, "bfloat16": 2, "float16": 2}[models.actor.dtype],
    )
    paths = {models.actor.hub, *(job.generator for job in jobs if job.generator)}
    return describe(lines, assumed, sum(2 * assumed.shape(path).weights for path in paths) / 1e9)


def describe(lines: Mapping[str, Line], assumed: Assumptions, downloads_gb: float) -> str:
    """A text table with the most expensive method first, and what is assumed."""
    kinds = ("fit", "cell", "trial")
    columns = {"fits": 6, "cells": 7, "trials": 7, "M calls": 9, "M read": 9, "M written": 10, "M trained": 10}
    columns |= {"GPU-hours": 11, "GB": 8}
    table = [f"{'method':<20}" + "".join(f"{name:>{width}}" for name, width in columns.items())]

    def row(name: str, chosen: list[Line]) -> str:
        counts = [str(sum(line.jobs.get(kind, 0) for line in chosen)) for kind in kinds]
        use = sum((each for line in chosen for each in line.use.values()), Tokens())
        sums = [
            f"{use.calls / 1e6:.2f}",
            f"{use.read / 1e6:.0f}",
            f"{use.written / 1e6:.1f}",
            f"{use.trained / 1e6:.1f}",
        ]
        sums += [f"{sum(line.hours for line in chosen):.1f}", f"{sum(line.disk for line in chosen) / 1e9:.1f}"]
        cells = zip((*counts, *sums), columns.values(), strict=True)
        return f"{name:<20}" + "".join(f"{text:>{width}}" for text, width in cells)

    for method, line in sorted(lines.items(), key=lambda each: (-each[1].hours, each[0])):
        table.append(row(f"{method}{'' if line.counted else ' *'}{' !' if line.over else ''}", [line]))
    table.append(row("total", list(lines.values())))
    gpu, shares = assumed.gpu, assumed.shares
    hungry, line = max(lines.items(), key=lambda each: each[1].memory_gb)
    short = f", more than one {gpu.name} has" if line.memory_gb > gpu.memory_gb else ""
    table += [
        f"Assumed, not measured ({assumed.path}): lengths, weights, {gpu.name} at {gpu.flops / 1e12:.3g} TFLOP",
        f"per second. Reading reaches {gpu.reads:.0%} of that, writing {gpu.writes:.0%}, training {gpu.trains:.0%}. "
        f"{shares.right:.0%} of answers right, {shares.mixed:.0%} of rows with rollouts of different reward.",
        f"Memory: {line.memory_gb:.0f} GB for a fit of {hungry}, without activations{short}.",
        f"Disk: models {downloads_gb:.0f} GB; GB above are policies and predictions before `keep` removes weights.",
        "Trials are those of a search from nothing (`tune`), with what they build on; stored winners spare them.",
    ]
    uncounted = [method for method, line in sorted(lines.items()) if not line.counted]
    if uncounted:
        table.append(f"* not counted, as the method has no `loop`: the fits of {', '.join(uncounted)}.")
    for method, line in sorted(lines.items()):
        if line.over:
            limits = ", ".join(line.over)
            table.append(f"! {method} would pass its budget ({limits}): counted is what fits into it.")
    return "\n".join(table)
