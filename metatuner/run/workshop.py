"""A job's plan, models and benchmarks: makes fits and cells, opens policies, scores answers."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metatuner import progress
from metatuner.config import Config
from metatuner.errors import UserError
from metatuner.files import complete_folder, read_json, write_json
from metatuner.harness.benchmarks import Benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.ground import Ground
from metatuner.harness.method import make_settings, settings_dict
from metatuner.harness.policy import Policy, load_policy
from metatuner.harness.proposer import ProposerServer
from metatuner.harness.query import Response, to_query
from metatuner.harness.rows import Row
from metatuner.integrity import DIGESTS, altered, check_folder, check_weights, write_digests
from metatuner.lm import ModelSpec
from metatuner.lm.engine import Engine
from metatuner.metering import measured
from metatuner.plan import Cell, Fit, Plan
from metatuner.plan.keys import Keys, is_local
from metatuner.run import guard
from metatuner.run.data import SPLITS, check_splits, configured
from metatuner.run.fitting import FitTask, Outcome, failure, run_fit
from metatuner.run.models import ModelPool

LEAST_PATIENCE = 3600.0
"""Seconds that an evaluation may take at least, if `fit` has a limit."""


def use_threads(config: Config) -> None:
    """Set the number of torch's threads, and turn off the tokenizers' own threads."""
    torch.set_num_threads(config.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _written(outside: set[str]) -> str:
    return f"it wrote outside its folder: {', '.join(sorted(outside)[:3])}"


class Workshop:
    """Makes fits and cells of one preset, on models that are loaded once."""

    def __init__(self, config: Config) -> None:
        use_threads(config)
        self.plan = Plan(config)
        self.layout = self.plan.layout
        self.config = config
        self.benchmarks = {name: configured(config, name) for name in config.benchmarks}
        roles = ("actor", *config.models.generators)
        instead = {role: how for role in roles if (how := self.plan.keys.how_to_fetch(role)) is not None}
        specs = {role: _spec(self.plan.keys, role) for role in roles}
        self.models = ModelPool(specs, _engines(self.plan.keys, roles), instead)

    def check_splits(self, names: Iterable[str], splits: Sequence[str] = SPLITS) -> None:
        """UserError unless these split files are those drawn for this config."""
        check_splits(self.plan, names, splits)

    def failures(self, key: str) -> Path:
        """The file for a failed fit's or cell's traceback; absolute, because a method may change the folder."""
        return self.layout.failure(key).absolute()

    def check_models(self, *roles: str) -> None:
        """UserError if a file of these nano or local models differs from its digest."""
        keys = self.plan.keys
        for role in filter(None, roles):
            nano = keys.is_nano(role)
            if nano or is_local(keys.model_config(role)):
                folder, how = keys.model_path(role), keys.how_to_fetch(role)
                if (folder / DIGESTS).is_file():
                    remedy = f"remove {folder} and {how or 'run again'}" if nano or how else "restore the folder"
                    check_folder(folder, remedy, thorough=True)

    # ---- fits --------------------------------------------------------------------------------------------------

    def fit(self, fit: Fit, *, share: bool) -> Outcome:
        """Compute a fit unless it is complete. `share`: no later fit of this job needs unchanged models."""
        folder, failures = self.layout.fit(fit.key).absolute(), self.failures(fit.key)
        if self.plan.packs.is_complete(fit):
            return Outcome(fit.key, "ok")
        if folder.is_dir() and (damage := self.plan.packs.damage(fit)) is not None:
            progress.say(f"{self.layout.fit(fit.key)}: {damage}; fitted again")
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or its policy was removed and is needed again
        missing = [needed for needed in fit.requires if not self.plan.packs.is_complete(needed)]
        if missing:
            reason = f"it builds on {missing[0].method}, which has no result (fit {missing[0].key})"
            return Outcome(fit.key, "failed", reason)
        try:
            self.check_models("actor", fit.generator)
            for needed in fit.requires:
                self._check_fit(needed)
            task = self._task(fit)
        except Exception as error:  # a method's `__init__` may raise anything
            return failure(fit.key, error, failures)
        checking = guard.CHECKING in os.environ
        with self._watched(fit, folder) as outside:
            outcome = guard.contained(
                lambda: run_fit(task, self.models, folder, failures, share=share),
                key=fit.key,
                failures=failures,
                **self.patience(fit),
            )
        wrong = None if checking else guard.overspent(task.budget)
        if wrong is None and outside:
            wrong = f"{_written(outside)}; use lab.workdir"
        if outcome.status != "ok" or wrong is None:
            return outcome
        shutil.rmtree(folder, ignore_errors=True)
        return failure(fit.key, UserError(wrong), failures)

    def _watched(self, fit: Fit, folder: Path) -> AbstractContextManager[set[str]]:
        """Collects what a method of the user's own changes outside of the folder that is being made."""
        if fit.method not in self.plan.registry.extra or guard.CHECKING in os.environ:
            return nullcontext(set())
        return guard.writes_outside([self.failures(fit.key).parent], folder)

    def _check_fit(self, fit: Fit) -> None:
        """UserError if a file of a fit differs from its digest."""
        damage = self.plan.packs.damage(fit, thorough=True)
        if damage is not None:
            folder = self.layout.fit(fit.key)
            raise UserError(f"{folder}: {damage}; remove {folder} and run again")

    def _task(self, fit: Fit) -> FitTask:
        """All inputs of a fit."""
        settings, cls = self.plan.settings, self.plan.registry[fit.method].cls
        limits, proposer = self.config.budgets[fit.budget], settings.proposer(fit.method, fit.settings)
        benchmarks = {name: self.benchmarks[name] for name in (*fit.train, *fit.transfer)}
        roles = {"actor": "actor", **({"generator": fit.generator} if fit.generator else {})}
        identity: dict[str, Any] = {
            "key": fit.key,
            "method": fit.method,
            "settings": settings_dict(fit.settings),
            "trained_on": list(fit.train),
            "generator": fit.generator,
            "seed": fit.seed,
            "requires": {needed.method: needed.key for needed in fit.requires},
            # With these a saved policy is used without its config.
            "models": {role: _without_device(_spec(self.plan.keys, name)) for role, name in roles.items()},
            "benchmarks": {name: asked(each) for name, each in benchmarks.items()},
            **_served(self.plan.keys, roles),
        }
        if fit.rows is not None:
            identity["rows"] = fit.rows
        if proposer is not None:
            identity["proposer"] = proposer.identity
        # A method gets its own copy of the settings, so that its changes do not reach the plan.
        method = cls(make_settings(cls, settings_dict(fit.settings), fit.method))
        return FitTask(
            key=fit.key,
            method=method,
            benchmarks=benchmarks,
            pools={name: self.layout.data(name).absolute() / "pool.jsonl" for name in fit.train},
            sizes={name: self.plan.grid.fit_sizes(name, fit.rows) for name in fit.train},
            generator=fit.generator,
            seed=fit.seed,
            budget=Budget(limits.limits(fit.train), fit.budget),
            seconds=limits.seconds,
            proposer=ProposerServer(**proposer.model_dump()) if proposer else None,
            prerequisites={needed.method: self.layout.fit(needed.key).absolute() for needed in fit.requires},
            batch_tokens=self.config.batch_tokens,
            identity=identity,
        )

    def patience(self, fit: Fit, least: float = 0.0) -> dict[str, Any]:
        """Time for an evaluation, or for a fit with loading and saving: twice the limit of `fit` plus `guard.GRACE`."""
        seconds = self.config.budgets[fit.budget].seconds
        return {
            "seconds": seconds and max(least, 2 * seconds + guard.GRACE),
            "budget": fit.budget,
        }

    # ---- policies ----------------------------------------------------------------------------------------------

    def ground(self, generator: str, *, share: bool) -> Ground:
        """Fresh models with the benchmarks' rules; `generator` "" for none."""
        return Ground(
            actor=self.models.get("actor", share=share),
            generator=self.models.get(generator, share=share) if generator else None,
            benchmarks=self.benchmarks,
            batch_tokens=self.config.batch_tokens,
        )

    def open_policy(self, fit: Fit, *, share: bool, budget: Budget | None = None) -> Policy:
        """The saved policy of a fit, on fresh models. If there is a `budget`, it meters them."""
        self._check_fit(fit)
        self.check_models("actor", fit.generator)
        ground = self.ground(fit.generator, share=share)
        for role, lm in (("actor", ground.actor), ("generator", ground.generator)):
            if budget is not None and lm is not None:
                budget.attach(lm, role)
        folder = self.layout.fit(fit.key).absolute() / "policy"
        check_weights(folder, f"remove {self.layout.fit(fit.key)} and run again")
        return load_policy(folder, ground)

    def finished_cell(self, key: str) -> Cell:
        """A cell of this preset with its policy on disk; UserError for any other key."""
        cell = self.plan.grid.cells.get(key)
        if cell is None or not (self.layout.fit(cell.fit.key) / "policy").is_dir():
            raise UserError(f"--cell {key}: no cell of this preset with its policy on disk; see `cell` in scores.csv")
        return cell

    # ---- scores ------------------------------------------------------------------------------------------------

    def trial(self, fit: Fit, rows: Sequence[Row]) -> dict[str, Any]:
        """Fit, score on rows of one benchmark (0 to 100), and remove the policy, because nothing else uses it.

        `tflop` is what the fit cost, with what it builds on; None if it failed.
        """
        known = self.plan.packs.is_complete(fit)  # a fit that the grid needs too
        for needed in fit.requires:
            self.fit(needed, share=False)
        outcome, score, tflop = self.fit(fit, share=False), None, None
        failures = self.failures(fit.key)

        def scored() -> Outcome:
            nonlocal score
            try:
                with progress.at_work(_named(fit, rows[0].benchmark)):
                    policy = self.open_policy(fit, share=False)
                    score = self.score(policy.respond([to_query(row) for row in rows]), rows)
            except Exception as error:  # a method's policy may raise anything; the error is this trial's outcome
                return failure(fit.key, error, failures)
            return outcome

        if outcome.status == "ok":
            tflop = round(read_json(self.layout.fit(fit.key) / "cost.json", "fit it again")["flops"] / 1e12, 4)
            outcome = guard.contained(scored, key=fit.key, failures=failures, **self.patience(fit))
            if not known:
                shutil.rmtree(self.layout.fit(fit.key), ignore_errors=True)
        return {"score": score, "tflop": tflop, "status": outcome.status, "reason": outcome.reason}

    def score(self, responses: Sequence[Response], rows: Sequence[Row]) -> float:
        """The primary metric of responses to rows of one benchmark, 0 to 100."""
        benchmark = self.benchmarks[rows[0].benchmark]
        extracted = [benchmark.extract(one.completion, row) for one, row in zip(responses, rows, strict=True)]
        scored = benchmark.score_all(extracted, rows)
        return round(100 * sum(one.metrics[benchmark.primary] for one in scored) / len(rows), 4)

    def evaluate(self, cell: Cell, *, share: bool) -> Outcome:
        """Compute a cell unless it is complete."""
        folder, failures = self.layout.cell(cell.key).absolute(), self.failures(cell.key)
        damage = altered(folder)
        if damage is None:
            return Outcome(cell.key, "ok")
        if folder.is_dir():
            progress.say(f"{self.layout.cell(cell.key)}: {damage}; evaluated again")
            shutil.rmtree(folder)
        with self._watched(cell.fit, folder) as outside:
            outcome = guard.contained(
                lambda: self._evaluate(cell, folder, share=share),
                key=cell.key,
                failures=failures,
                **self.patience(cell.fit, LEAST_PATIENCE),
            )
        if outcome.status != "ok" or not outside:
            return outcome
        shutil.rmtree(folder, ignore_errors=True)
        wrong = f"{_written(outside)}; a policy answers from what `fit` saved, and writes nothing"
        return failure(cell.key, UserError(wrong), failures)

    def _evaluate(self, cell: Cell, folder: Path, *, share: bool) -> Outcome:
        from metatuner.run.evaluation import evaluate_policy  # lm-eval is slow to import

        try:
            with complete_folder(folder) as temporary:
                budget = Budget()
                with progress.at_work(_named(cell.fit, cell.benchmark)), measured() as meter:
                    test = self.layout.data(cell.benchmark).absolute() / "test.jsonl"
                    policy = self.open_policy(cell.fit, share=share, budget=budget)
                    evaluate_policy(policy, self.benchmarks[cell.benchmark], test, temporary)
                identity = {
                    "key": cell.key,
                    "fit": cell.fit.key,
                    "method": cell.fit.method,
                    "trained_on": list(cell.fit.train),
                    "benchmark": cell.benchmark,
                    "generator": cell.fit.generator,
                    "seed": cell.fit.seed,
                }
                write_json(temporary / "cell.json", identity)
                write_json(temporary / "cost.json", {**budget.cost(), **asdict(meter)})
                write_digests(temporary)
        except Exception as error:  # a policy may raise anything; the error is this cell's outcome, never a score
            return failure(cell.key, error, self.failures(cell.key))
        self.failures(cell.key).unlink(missing_ok=True)
        return Outcome(cell.key, "ok")


def _spec(keys: Keys, role: str) -> ModelSpec:
    model = keys.model_config(role)
    local = model.path.startswith("nano:") or is_local(model)
    path = str(keys.model_path(role)) if local else model.path
    return ModelSpec(**{**model.model_dump(exclude={"engine", "fetched"}), "path": path})


def _engines(keys: Keys, roles: Iterable[str]) -> dict[str, Engine]:
    """The servers that answer for models, by role."""
    configured = {role: keys.model_config(role).engine for role in roles}
    return {
        role: Engine(**engine.model_dump(), place=f"{keys.model_place(role)}.engine")
        for role, engine in configured.items()
        if engine is not None
    }


def _served(keys: Keys, roles: Mapping[str, str]) -> dict[str, Any]:
    """What fit.json says about engines, if there are any."""
    engines = {role: engine.identity for role, name in roles.items() if (engine := keys.model_config(name).engine)}
    return {"engines": engines} if engines else {}


def _named(fit: Fit, benchmark: str) -> str:
    """An evaluation's name in lines about its progress."""
    return f"answers of {fit.method} to {benchmark}, seed {fit.seed}"


def _without_device(spec: ModelSpec) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items() if name != "device"}


def asked(benchmark: Benchmark) -> dict[str, Any]:
    """How queries of a benchmark are asked."""
    return {
        "initial_prompt": benchmark.initial_prompt,
        "max_new_tokens": benchmark.max_new_tokens,
        "stops": list(benchmark.stops),
    }
