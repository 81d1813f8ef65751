"""Jobs: compute the fits or the cells of a pack one after the other, and list the outcome of each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from metatuner import progress
from metatuner.config import Layout
from metatuner.errors import UserError, suggest
from metatuner.files import read_json, write_json
from metatuner.plan import Cell, Fit, Pack, Plan
from metatuner.plan.attempts import write_attempts
from metatuner.run.fitting import Outcome
from metatuner.run.workshop import LEAST_PATIENCE, Workshop
from metatuner.supervision import Steps

Item = TypeVar("Item", Fit, Cell)
REMEDY = "remove it and run again"
"""What to do about a broken file of a pack."""


def fit_pack(shop: Workshop, name: str, attempt: int, steps: Steps) -> None:
    """Compute the fits of a pack. `attempt` is the number that the workflow gives to this run of the job."""
    packs, fits = shop.plan.packs, shop.plan.grid.fits
    chosen = [fits[key] for key in _pack(packs.fits, name).keys]
    shop.check_splits({benchmark for fit in chosen for benchmark in fit.train}, ["pool"])

    def work(fit: Fit, last: bool) -> Outcome:
        return watched(steps, fit.key, lambda: shop.fit(fit, share=last), shop.patience(fit)["seconds"])

    _write(shop.layout, packs.step(name), name, _each(chosen, packs.is_complete, work, "fits"), attempt)
    steps.finish()


def evaluate_pack(shop: Workshop, name: str, attempt: int, steps: Steps) -> None:
    """Evaluate the cells of a pack."""
    packs, layout = shop.plan.packs, shop.layout
    pack = _pack(packs.evaluations, name)
    fitted = read_outcomes(map(packs.fit_file, pack.needs))

    def work(cell: Cell, last: bool) -> Outcome:
        unknown = Outcome(
            cell.fit.key,
            "failed",
            f"no pack names its fit {cell.fit.key}; the code changed during the run, run it again",
        )
        found = fitted.get(cell.fit.key, unknown)
        if found.status != "ok":
            return Outcome(cell.key, found.status, found.reason)
        seconds = shop.patience(cell.fit, LEAST_PATIENCE)["seconds"]
        return watched(steps, cell.key, lambda: shop.evaluate(cell, share=last), seconds)

    cells = [shop.plan.grid.cells[key] for key in pack.keys]
    shop.check_splits({cell.benchmark for cell in cells}, ["test"])
    work_done = _each(cells, lambda cell: packs.has_cell(cell.key), work, "evaluations")
    _write(layout, "evaluate", name, work_done, attempt)
    steps.finish()


def watched(steps: Steps, key: str, work: Callable[[], Outcome], seconds: float | None) -> Outcome:
    """The outcome of a fit or cell; a failed one if an earlier process of this job died at it."""
    found = steps.run(key, lambda: asdict(work()), seconds)
    return Outcome(key, found["status"], found["reason"])


def outcomes(plan: Plan) -> dict[str, Outcome]:
    """The outcome of every cell: of its evaluation, or of the fit that prevented it."""
    return read_outcomes(plan.packs.files)


def read_outcomes(paths: Iterable[Path]) -> dict[str, Outcome]:
    """Outcomes by key, from the packs' files that exist."""
    shape = {"outcomes": [{"key": str, "status": str, "reason": str}]}
    records = [read_json(path, REMEDY, shape)["outcomes"] for path in paths if path.is_file()]
    return {record["key"]: Outcome(**record) for each in records for record in each}


def write_outcomes(path: Path, found: Iterable[Outcome]) -> None:
    """Write a pack's file."""
    write_json(path, {"outcomes": [asdict(outcome) for outcome in found]})


def _pack(packs: Mapping[str, Pack], name: str) -> Pack:
    if name not in packs:
        raise UserError(f"--pack {name!r}; {suggest(name, packs)}")
    return packs[name]


def _each(
    items: list[Item], done: Callable[[Item], bool], work: Callable[[Item, bool], Outcome], what: str
) -> list[Outcome]:
    """Process items one by one. `work` gets True for the last item to do: after it, models may be left changed."""
    todo = [item.key for item in items if not done(item)]
    countdown = progress.Countdown(len(todo), what)
    found = []
    for item in items:
        outcome = work(item, todo[-1:] == [item.key])
        found.append(outcome)
        if outcome.status != "ok":
            progress.say(f"{outcome.status}: {item.key}: {outcome.reason}")
        if item.key in todo:
            countdown.step()
    return found


def _write(layout: Layout, step: str, name: str, found: list[Outcome], attempt: int) -> None:
    """Write a pack's file, and the number of this attempt (see `Dag.retry`)."""
    failed = any(outcome.status == "failed" for outcome in found)
    write_attempts(layout.attempts(step, name), attempt, failed)
    write_outcomes(layout.pack(step, name), found)
