"""The jobs of a preset, each with the loop that its method counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from metatuner.cost.assumptions import Assumptions
from metatuner.harness.loop import Loop, Rows
from metatuner.plan import Fit, Plan


@dataclass(frozen=True)
class Job:
    """A fit, a cell, or a trial of a search (a fit and its answers to the tune rows)."""

    kind: str
    """fit, cell or trial."""
    method: str
    settings: Any
    """The method's typed settings."""
    loop: Loop | None
    """The loop of the fit, on the rows of all its benchmarks together; None: the method does not count it."""
    benchmarks: tuple[str, ...]
    """The benchmarks that a fit trains on, or the benchmark that a cell answers."""
    generator: str
    """Path of the generator's model; "" for a method that uses none."""
    train: float
    """Train rows per benchmark."""
    asked: float = 0.0
    """Number of test or tune rows to answer."""
    key: str = ""
    requires: tuple["Job", ...] = ()
    """Fits that this job builds on; they are jobs of their own."""
    limits: Mapping[str, float | None] = field(default_factory=dict)
    """The limits of its budget; None, or missing: unlimited."""

    @property
    def parts(self) -> list[Loop]:
        """The loops that trained weights of its policy: its own loop, and the loops of required fits that it keeps."""
        own = self.loop or Loop()
        return [own, *(part for needed in self.requires * own.keeps_required for part in needed.parts)]

    @property
    def full(self) -> bool:
        """Whether all weights of the generator are trained."""
        return any(part.generator == "full" for part in self.parts)

    @property
    def recomputed(self) -> bool:
        """Whether activations are computed again in backward passes."""
        names = ("gradient_checkpointing", "activation_checkpointing")
        return any(getattr(each.settings, name, False) for each in (self, *self.requires) for name in names)


def job_of(plan: Plan, assumed: Assumptions, fit: Fit) -> Job:
    """A fit as a job, with the fits that it builds on."""
    sizes = [plan.grid.fit_sizes(name, fit.rows) for name in fit.train]
    train = sum(
        assumed.split(name).train if rows is None else rows for name, (rows, _) in zip(fit.train, sizes, strict=True)
    )
    method = plan.registry[fit.method].cls(fit.settings)
    rows = Rows(train, sum(dev for _, dev in sizes))
    return Job(
        "fit",
        fit.method,
        fit.settings,
        method.loop(rows, assumed.shares),
        fit.train,
        plan.config.models.generators[fit.generator].hub if fit.generator else "",
        train / len(sizes),
        key=fit.key,
        requires=tuple(job_of(plan, assumed, needed) for needed in fit.requires),
        limits=plan.config.budgets[fit.budget].limits(fit.train),
    )


def jobs_of(plan: Plan, assumed: Assumptions) -> list[Job]:
    """Every fit and cell of a preset, every trial of its searches, and the fits that these build on."""
    config = plan.config

    job = partial(job_of, plan, assumed)
    found = {key: job(fit) for key, fit in plan.grid.fits.items()}
    cells = []
    for cell in plan.grid.cells.values():
        test = config.benchmarks[cell.benchmark].sizes.test
        asked = assumed.split(cell.benchmark).test if test is None else test
        cells.append(replace(found[cell.fit.key], kind="cell", benchmarks=(cell.benchmark,), asked=asked, key=cell.key))
    trials = []
    for subject, benchmark in plan.searches.all:
        drawn = plan.searches.trials(subject, benchmark)
        tuning = config.tuning
        again = min(tuning.finalists, len(drawn)) * len(tuning.more_seeds) if tuning.finalists > 1 else 0
        for over in [*drawn, *[drawn[0]] * again]:  # finalists are not known before; they cost what the preset's do
            tried = job(plan.searches.fit(subject, benchmark, over))
            trials.append(replace(tried, kind="trial", asked=config.benchmarks[benchmark].sizes.tune, key=""))
    built_on = {fit.key: fit for benchmark in config.benchmarks for fit in plan.searches.needs(benchmark)}
    trials += [replace(job(fit), kind="trial", key="") for fit in built_on.values()]
    return [*found.values(), *cells, *trials]
