"""Memory that a preset's jobs declare, so that a run starts no more jobs side by side than the machine has place for.

docs/running.md says how far the predictions can be trusted.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from metatuner.cost.assumptions import Assumptions
from metatuner.cost.jobs import job_of
from metatuner.cost.memory import (
    LONGEST,
    cache_bytes,
    held_bytes,
    model_bytes,
    policy_bytes,
    reading_bytes,
    training_bytes,
)
from metatuner.errors import UserError
from metatuner.hashing import ROOT
from metatuner.plan import Cell, Fit, Plan

PROCESS_BYTES = 0.65e9
"""A job's process with its libraries, before it loads a model."""


class Memory:
    """Predicted memory of a plan's jobs, in MB (10^6 bytes); 0 for a job whose memory cannot be predicted.

    `batch_tokens` takes the place of the preset's.
    """

    def __init__(self, plan: Plan, batch_tokens: int | None = None) -> None:
        self.plan = plan
        self.batch_tokens = batch_tokens or plan.config.batch_tokens
        self._known: dict[tuple[str, bool], int] = {}

    # ---- jobs --------------------------------------------------------------------------------------------------

    def of_fits(self, pack: str) -> int:
        """A pack of fits."""
        return self._largest(self.plan.grid.fits[key] for key in self.plan.packs.fits[pack].keys)

    def of_evaluations(self, pack: str) -> int:
        """A pack of evaluations."""
        return self._largest(self.plan.grid.cells[key] for key in self.plan.packs.evaluations[pack].keys)

    @property
    def of_timings(self) -> int:
        """The job that times policies."""
        return self._largest(self.plan.grid.timed_cells)

    def of_search(self, subject: str, benchmark: str) -> int:
        """The trials of one search."""
        return self._largest(self._trials(subject, benchmark))

    def of_warm_ups(self, benchmark: str) -> int:
        """The fits that the searches on a benchmark build on."""
        return self._largest(self.plan.searches.needs(benchmark))

    @cached_property
    def by_method(self) -> dict[str, int]:
        """The largest job of each method; methods without a prediction have 0."""
        grid, packs = self.plan.grid, self.plan.packs
        found: dict[str, list[int]] = {}
        for name, pack in packs.fits.items():
            found.setdefault(grid.fits[pack.keys[0]].method, []).append(self.of_fits(name))
        for name, pack in packs.evaluations.items():
            found.setdefault(grid.cells[pack.keys[0]].fit.method, []).append(self.of_evaluations(name))
        return {method: max(sizes) if all(sizes) else 0 for method, sizes in found.items()}

    # ---- one fit or cell ---------------------------------------------------------------------------------------

    def _trials(self, subject: str, benchmark: str) -> list[Fit]:
        tried: list[dict[str, Any]] = self.plan.searches.trials(subject, benchmark)
        return [self.plan.searches.fit(subject, benchmark, over) for over in tried]

    def _largest(self, work: Iterable[Fit | Cell]) -> int:
        items = list(work)
        found = [self._of(item, several=len(items) > 1) for item in items]
        return max(found, default=0) if all(found) else 0

    def _of(self, item: Fit | Cell, *, several: bool) -> int:
        known = (item.key, several)
        if known not in self._known:
            try:
                self._known[known] = round(self._bytes(item, several=several) / 1e6)
            except Exception:  # a method's `loop` may raise anything, and shapes may be unknown: nothing is declared
                self._known[known] = 0
        return self._known[known]

    @cached_property
    def _assumed(self) -> Assumptions:
        return Assumptions.read(ROOT / self.plan.config.forecast)

    @cached_property
    def _dtype_bytes(self) -> int:
        models = self.plan.config.models
        return max(4 if model.dtype == "float32" else 2 for model in (models.actor, *models.generators.values()))

    def _bytes(self, item: Fit | Cell, *, several: bool) -> float:
        """Bytes of one fit or cell; `several`: its job does others too, so it keeps the models as they were loaded."""
        config, assumed = self.plan.config, self._assumed
        fit = item.fit if isinstance(item, Cell) else item
        job = job_of(self.plan, assumed, fit)
        if job.loop is None:
            raise UserError(f"method {fit.method} does not count its loop")
        shapes = {"actor": assumed.shape(config.models.actor.hub)}
        if job.generator:
            shapes["generator"] = assumed.shape(job.generator)
        window = config.models.actor.window or float("inf")
        training = longest = 0.0
        for benchmark in dict.fromkeys([*fit.train, *([item.benchmark] if isinstance(item, Cell) else [])]):
            at = assumed.lengths(benchmark)
            limit = config.benchmarks[benchmark].max_new_tokens or LONGEST * at.answer
            longest = max(longest, min(window, LONGEST * at.asked + job.loop.shots * at.demo + limit))
            training = max(training, training_bytes(job, shapes, at, limit=limit, window=window))
        if isinstance(item, Fit):
            models = model_bytes(job, shapes, self._dtype_bytes)
        else:
            training = 0.0
            models = held_bytes(job, shapes, self._dtype_bytes) + policy_bytes(job, shapes, self._dtype_bytes)
        if several:
            models += self._dtype_bytes * sum(shape.weights for shape in shapes.values())
        answering = cache_bytes(shapes.values(), self.batch_tokens, self._dtype_bytes)
        answering += reading_bytes(shapes.values(), self.batch_tokens, longest)
        return PROCESS_BYTES + models + max(training, answering)
