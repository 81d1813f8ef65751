"""A plan's fits, cells and searches as the jobs that a forecast counts."""

import json
from collections.abc import Callable
from dataclasses import replace

from metatuner.analysis.forecast import Job, Split
from metatuner.analysis.loops import Rows
from metatuner.plan import Fit, Plan


def jobs(plan: Plan, split: Callable[[str], Split]) -> list[Job]:
    """Every fit and cell of a preset, every trial of its searches, and what these build on.

    `split` says how many rows a benchmark has, for presets that take all of them.
    """
    config = plan.config

    def job(fit: Fit) -> Job:
        sizes = [plan.fit_sizes(name, fit.rows) for name in fit.train]
        train = [split(name).train if rows is None else rows for name, (rows, _) in zip(fit.train, sizes, strict=True)]
        method = config.methods.get(fit.method)
        return Job(
            "fit",
            fit.method,
            json.loads(fit.settings),
            fit.train,
            config.models.generators[fit.generator].path if fit.generator else "",
            Rows(sum(train) / len(sizes), sum(dev for _, dev in sizes) / len(sizes)),
            key=fit.key,
            requires=tuple(job(needed) for needed in fit.requires),
            limits=config.budgets[method.budget if method else "default"].counts,
        )

    found = {key: job(fit) for key, fit in plan.fits.items()}
    cells = []
    for cell in plan.cells.values():
        test = config.benchmarks[cell.benchmark].sizes.test
        asked = split(cell.benchmark).test if test is None else test
        cells.append(replace(found[cell.fit.key], kind="cell", benchmarks=(cell.benchmark,), asked=asked, key=cell.key))
    trials = []
    for subject, benchmark in plan.tunable:
        for over in plan.trials(subject, benchmark):
            settings, _ = plan.settings(subject, (benchmark,), over, winners=False)
            method = subject.partition(".")[0]
            fit = plan.fit(method, settings, (benchmark,), plan.tuning_generator, config.tuning.seed)
            trials.append(replace(job(fit), kind="trial", asked=config.benchmarks[benchmark].sizes.tune, key=""))
    built_on = {fit.key: fit for benchmark in config.benchmarks for fit in plan.tuning_needs(benchmark)}
    trials += [replace(job(fit), kind="trial", key="") for fit in built_on.values()]
    return [*found.values(), *cells, *trials]
