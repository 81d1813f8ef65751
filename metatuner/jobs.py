"""A plan's fits, cells and searches as the jobs that a forecast counts."""

import json
from dataclasses import replace

from metatuner.analysis.forecast import Job
from metatuner.analysis.loops import Rows
from metatuner.plan import Fit, Plan


def jobs(plan: Plan) -> list[Job]:
    """Every fit and cell of a preset, and every trial of its searches."""
    config = plan.config

    def job(fit: Fit) -> Job:
        sizes = [plan.fit_sizes(name, fit.rows) for name in fit.train]
        return Job(
            "fit",
            fit.method,
            json.loads(fit.settings),
            fit.train,
            config.models.generators[fit.generator].path if fit.generator else "",
            Rows(sum(train or 0 for train, _ in sizes) / len(sizes), sum(dev for _, dev in sizes) / len(sizes)),
            key=fit.key,
            requires=tuple(job(needed) for needed in fit.requires),
        )

    found = {key: job(fit) for key, fit in plan.fits.items()}
    cells = [
        replace(
            found[cell.fit.key],
            kind="cell",
            benchmarks=(cell.benchmark,),
            asked=config.benchmarks[cell.benchmark].sizes.test or 0,
            key=cell.key,
        )
        for cell in plan.cells.values()
    ]
    trials = []
    for subject, benchmark in plan.tunable:
        for over in plan.trials(subject, benchmark):
            settings, _ = plan.settings(subject, (benchmark,), over, winners=False)
            method = subject.partition(".")[0]
            fit = plan.fit(method, settings, (benchmark,), plan.tuning_generator, config.tuning.seed)
            trials.append(replace(job(fit), kind="trial", asked=config.benchmarks[benchmark].sizes.tune, key=""))
    return [*found.values(), *cells, *trials]
