"""What each command does. Steps join the plan, the harness, the nano world and the analysis; they hold no method."""

import argparse
import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from math import log
from pathlib import Path
from typing import Any

from metatuner import guard, progress, usage
from metatuner.errors import UserError, suggest
from metatuner.files import write_text
from metatuner.harness.config import (
    BudgetConfig,
    Config,
    SearchConfig,
    dump_config,
    json_schema,
    load_config,
    read_config,
)
from metatuner.harness.layout import Layout
from metatuner.harness.rows import Row
from metatuner.hashing import ROOT
from metatuner.plan import Cell, Fit, Plan


def run(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Run the command that the arguments name; returns the exit status."""
    step = STEPS[arguments.command]
    if arguments.command in WITHOUT_CONFIG:
        return step(arguments) or 0
    if arguments.config is not None and overrides:
        raise UserError("give either --config or key=value overrides, not both")
    preset = str(overrides.pop("preset", "nano"))
    config = read_config(arguments.config) if arguments.config else load_config(preset, overrides)
    status = step(config, arguments) or 0
    if arguments.log is not None:
        names = [getattr(arguments, name, None) for name in ("pack", "role", "method", "benchmark", "name")]
        usage.write(Path(config.results) / "usage", arguments.command, "-".join(filter(None, names)) or "all")
    return status


def _use_threads(config: Config) -> None:
    import torch

    torch.set_num_threads(config.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# ---- looking ---------------------------------------------------------------------------------------------------


def show_config(config: Config, arguments: argparse.Namespace) -> None:
    """Print the resolved config or the schema."""
    print(json.dumps(json_schema(), indent=1) if arguments.schema else dump_config(config), end="\n" * arguments.schema)


def methods(config: Config, arguments: argparse.Namespace) -> None:
    """List the methods."""
    from metatuner.harness.describe import describe_method
    from metatuner.harness.registry import Registry

    registry = Registry(config.extra_methods)
    listed = [describe_method(registry[name].cls) for name in registry.names()]
    if arguments.json:
        print(json.dumps(listed, indent=1, ensure_ascii=False))
        return
    for entry in listed:
        serves = " (internal: other methods build on it)" if entry["internal"] else ""
        print(f"{entry['name']:16} {entry['family']:10} {entry['reference']}{serves}")
        for setting in entry["settings"]:
            print(f"    {setting['name']} = {setting['default']!r}")


def check_data(config: Config, arguments: argparse.Namespace) -> None:
    """Verify each benchmark's source."""
    from metatuner.harness.splits import check_data as check

    plan = Plan(config)
    for name, benchmark in config.benchmarks.items():
        files = plan.source_files(name)
        if benchmark.source == "nano" and not all(file.is_file() for file in files):
            print(
                f"{name}: nano rows, not written yet; the run makes them, or `metatuner world preset={config.preset}`"
            )
            continue
        # Nano files are train, tune, test, audit; the check is on the two that stand for the official splits.
        for line in check(_benchmark(config, name), (files[0], files[2]) if benchmark.source == "nano" else files):
            print(line)


def show_usage(config: Config, arguments: argparse.Namespace) -> None:
    """Print where CPU time went."""
    from metatuner.analysis.usage import summarise

    print(summarise(Path(config.results) / "usage"))


def cost(config: Config, arguments: argparse.Namespace) -> None:
    """Print a preset's predicted cost: from what a finished run of the same models was metered at, else from counts."""
    from metatuner.analysis.cost import Work, describe, forecast, read_metered
    from metatuner.files import read_json

    plan, root = Plan(config), arguments.metered
    provenance = root / "provenance.json"
    if not provenance.is_file() and not config.models.actor.path.startswith("nano:"):
        print(
            f"{_predicted(plan, arguments.assume)}\n\nNo finished run in {root}: the counts are not compared with one."
        )
        return
    metered = read_metered(root)
    told = read_json(provenance, "let that run end, or name another (--from)")
    if told["dependencies"]["models"]["actor"] != plan.model_key("actor"):
        print(f"{_predicted(plan, arguments.assume)}\n\n{_checked(root, arguments.assume)}")
        return
    work = [Work("fit", fit.method, "+".join(fit.train), plan.is_complete(fit)) for fit in plan.fits.values()]
    work += [
        Work("cell", cell.fit.method, cell.benchmark, plan.layout.cell(cell.key).is_dir())
        for cell in plan.cells.values()
    ]
    print(describe(forecast(work, metered), metered))


def _predicted(plan: Plan, assume: Path) -> str:
    """The cost on models that no finished run had."""
    from metatuner.analysis import forecast
    from metatuner.jobs import jobs

    assumed, models = forecast.Assumptions.read(assume), plan.config.models
    work = jobs(plan, assumed.split)
    size = {"float32": 4, "bfloat16": 2, "float16": 2}[models.actor.dtype]
    lines = forecast.predict(
        work,
        actor=models.actor.path,
        assumed=assumed,
        window=models.actor.window or float("inf"),
        batch_tokens=plan.config.batch_tokens,
        dtype_bytes=size,
    )
    paths = {models.actor.path, *(job.generator for job in work if job.generator)}
    return forecast.describe(lines, assumed, sum(2 * assumed.shape(path).weights for path in paths) / 1e9)


def _checked(root: Path, assume: Path) -> str:
    """How the counts compare with a finished run."""
    from metatuner.analysis import forecast
    from metatuner.harness.config import read_config
    from metatuner.jobs import jobs

    assumed = forecast.Assumptions.read(assume)
    finished = jobs(Plan(read_config(root / "config.json")), assumed.split)
    return forecast.describe_check(forecast.against(finished, forecast.read_costs(root), assumed.shares), root)


# ---- the ground ------------------------------------------------------------------------------------------------


def world(config: Config, arguments: argparse.Namespace) -> None:
    """Write raw nano rows."""
    from metatuner import nano

    plan = Plan(config)
    nano.write_rows(plan.world, plan.layout.world, plan.world_sizes())
    progress.say(f"raw rows of {len(plan.world_sizes())} nano benchmarks in {plan.layout.world}")


def pretrain(config: Config, arguments: argparse.Namespace) -> None:
    """Train one nano model, or copy the one that comes with the package."""
    from metatuner import nano
    from metatuner.nano.given import copy_given, given

    plan = Plan(config)
    if arguments.role not in nano.RECIPES:
        raise UserError(f"--role {arguments.role!r} is no nano model; {suggest(arguments.role, nano.RECIPES)}")
    _use_threads(config)
    out = plan.layout.model(arguments.role, plan.nano_key(arguments.role))
    source = given(arguments.role, plan.world) if config.nano.given and config.nano.trained else None
    if (out / "pretraining.json").is_file():
        if (
            source is not None
            and (out / "model.safetensors").read_bytes() != (source / "model.safetensors").read_bytes()
        ):
            raise UserError(
                f"{out}: another model of this recipe, from before one came with the package; remove that folder and "
                f"{plan.layout.root}, or set nano.given to false"
            )
        progress.say(f"{arguments.role}: already there, {out}")
        return
    if source is not None:
        copy_given(source, out)
        progress.say(f"{arguments.role}: as it comes with the package (nano.given), {out}")
        return
    nano.pretrain(arguments.role, plan.world, out, untrained=not config.nano.trained, progress=progress.say)


def world_report(config: Config, arguments: argparse.Namespace) -> None:
    """Measure the nano world's bars."""
    from metatuner import nano

    plan = Plan(config)
    _use_threads(config)
    nano.measure(
        plan.world,
        rows=plan.layout.world,
        actor=plan.model_path("actor"),
        generator=plan.model_path(plan.tuning_generator),
        out=plan.layout.root,
        trained=config.nano.trained,
        progress=progress.say,
    )


def data(config: Config, arguments: argparse.Namespace) -> None:
    """Draw the splits of a benchmark."""
    from metatuner.harness.benchmarks import load_hub, load_rows
    from metatuner.harness.splits import draw_splits

    plan = Plan(config)
    name = arguments.benchmark
    if name not in config.benchmarks:
        raise UserError(f"--benchmark {name!r}: {suggest(name, config.benchmarks)}")
    benchmark, source = _benchmark(config, name), config.benchmarks[name]
    files = dict(zip(("train", "tune", "test", "audit"), plan.source_files(name), strict=False))
    if source.source == "local":
        files = dict(zip(("train", "test"), plan.source_files(name), strict=True))
    loaded = {split: load_rows(benchmark, file) for split, file in files.items() if split != "audit"}
    if source.source == "hub":
        loaded = {split: load_hub(benchmark, split) for split in ("train", "test")}
    sizes = source.sizes
    splits = draw_splits(
        name,
        loaded["train"],
        loaded["test"],
        tune_rows=loaded.get("tune"),
        tune=sizes.tune,
        test=sizes.test,
        seed=source.split_seed,
    )
    splits.need(train=sizes.train, dev=sizes.dev)
    folder = plan.layout.data(name)
    (folder / "key.txt").unlink(missing_ok=True)
    splits.write(folder)
    write_text(folder / "key.txt", plan.data_key(name) + "\n")  # last: it vouches for the others
    progress.say(f"{name}: {splits.summary()}")


def _benchmark(config: Config, name: str) -> Any:
    from metatuner.harness.benchmarks import get_benchmark

    wanted = config.benchmarks[name]
    return get_benchmark(name).with_overrides(
        initial_prompt=wanted.initial_prompt, max_new_tokens=wanted.max_new_tokens
    )


# ---- cells -----------------------------------------------------------------------------------------------------


LEAST_PATIENCE = 3600.0
"""Seconds that an evaluation may take at least, where `fit` has a limit."""


class Workshop:
    """A job's plan, models and benchmarks: makes fits and cells."""

    def __init__(self, config: Config) -> None:
        from metatuner.harness.models import ModelPool
        from metatuner.lm import ModelSpec

        _use_threads(config)
        self.plan = Plan(config)
        self.layout = self.plan.layout
        self.config = config
        self.benchmarks = {name: _benchmark(config, name) for name in config.benchmarks}
        specs = {}
        for role in ("actor", *config.models.generators):
            model = self.plan.model_config(role)
            local = model.path.startswith("nano:") or self.plan.is_local(model)
            path = str(self.plan.model_path(role)) if local else model.path
            specs[role] = ModelSpec(**{**model.model_dump(), "path": path})
        self.models = ModelPool(specs)

    def check_splits(self, names: Iterable[str]) -> None:
        """UserError if split files on disk are those of another config, so that no cell is computed from them."""
        for name in sorted(names):
            path = self.layout.data(name) / "key.txt"
            lost = [split for split in ("pool", "tune", "test") if not path.with_name(f"{split}.jsonl").is_file()]
            if lost or not path.is_file() or path.read_text(encoding="utf-8").strip() != self.plan.data_key(name):
                command = f"metatuner data --config {self.layout.config} --benchmark {name}"
                raise UserError(f"{path.parent}: no splits of this config; draw them with `{command}`")

    def fit(self, fit: Fit, *, share: bool) -> Any:
        """Compute a fit unless it is complete; its outcome."""
        from metatuner.harness.budget import Budget
        from metatuner.harness.fitting import FitTask, Outcome, failure, run_fit
        from metatuner.harness.method import make_settings
        from metatuner.harness.proposer import ProposerServer

        folder = self.layout.fit(fit.key)
        if self.plan.is_complete(fit):
            return Outcome(fit.key, "ok")
        shutil.rmtree(folder, ignore_errors=True)  # its policy was removed, and is needed again
        missing = [needed for needed in fit.requires if not self.plan.is_complete(needed)]
        if missing:
            return Outcome(
                fit.key, "failed", f"it builds on {missing[0].method}, which has no result (fit {missing[0].key})"
            )
        cls = self.plan.registry[fit.method].cls
        budget_name, limits = self._limits(fit.method)
        identity = {
            "key": fit.key,
            "method": fit.method,
            "settings": json.loads(fit.settings),
            "trained_on": list(fit.train),
            "generator": fit.generator,
            "seed": fit.seed,
            "requires": {needed.method: needed.key for needed in fit.requires},
            **({} if fit.rows is None else {"rows": fit.rows}),
        }
        proposer = self.plan.proposer(fit.method, fit.settings)
        if proposer is not None:
            identity["proposer"] = proposer.identity
        failures = self.layout.logs / "failed" / f"{fit.key}.txt"
        try:
            method = cls(make_settings(cls, json.loads(fit.settings), fit.method))
        except Exception as error:  # a method's author may have written an `__init__` that raises
            return failure(fit.key, error, failures)
        task = FitTask(
            key=fit.key,
            method=method,
            benchmarks={name: self.benchmarks[name] for name in (*fit.train, *fit.told)},
            pools={name: self.layout.data(name) / "pool.jsonl" for name in fit.train},
            sizes={name: self.plan.fit_sizes(name, fit.rows) for name in fit.train},
            generator=fit.generator,
            seed=fit.seed,
            budget=Budget(limits.counts, budget_name),
            seconds=limits.seconds,
            proposer=ProposerServer(**proposer.model_dump()) if proposer else None,
            prerequisites={needed.method: self.layout.fit(needed.key) for needed in fit.requires},
            batch_tokens=self.config.batch_tokens,
            identity=identity,
        )
        places = [folder.parent, failures.parent, Path(self.config.cache)]
        checking = guard.CHECKING in os.environ
        own = fit.method in self.plan.registry.extra and not checking
        watched: AbstractContextManager[set[str]] = guard.writes_outside(places) if own else nullcontext(set())
        with watched as outside:
            outcome = guard.contained(
                lambda: run_fit(task, self.models, folder, failures, share=share),
                key=fit.key,
                failures=failures,
                **self.patience(fit.method),
            )
        reason = None if checking else guard.overspent(task.budget)
        if reason is None and outside:
            reason = f"it wrote outside its folder: {', '.join(sorted(outside)[:3])}; use lab.workdir"
        if outcome.status != "ok" or reason is None:
            return outcome
        shutil.rmtree(folder, ignore_errors=True)
        return failure(fit.key, UserError(reason), failures)

    def _limits(self, method: str) -> tuple[str, BudgetConfig]:
        """The name and the limits of a method's budget."""
        named = self.config.methods.get(method)
        name = named.budget if named else "default"
        return name, self.config.budgets[name]

    def patience(self, method: str, least: float = 0.0) -> dict[str, Any]:
        """How long a fit with loading and saving, or an evaluation, may take: twice as long as `fit`, and some."""
        name, limits = self._limits(method)
        return {"seconds": limits.seconds and max(least, 2 * limits.seconds + guard.GRACE), "budget": name}

    def ground(self, generator: str, *, share: bool, ground_type: Any = None) -> Any:
        """Fresh models with the benchmarks' rules; `generator` "" for none."""
        from metatuner.harness.ground import Ground

        return (ground_type or Ground)(
            actor=self.models.get("actor", share=share),
            generator=self.models.get(generator, share=share) if generator else None,
            benchmarks=self.benchmarks,
            batch_tokens=self.config.batch_tokens,
        )

    def open_policy(self, fit: Fit, *, share: bool, budget: Any = None, ground_type: Any = None) -> Any:
        """The saved policy of a fit, on fresh models, which `budget` meters if there is one."""
        from metatuner.harness.policy import load_policy

        ground = self.ground(fit.generator, share=share, ground_type=ground_type)
        for role, lm in (("actor", ground.actor), ("generator", ground.generator)):
            if budget is not None and lm is not None:
                budget.attach(lm, role)
        return load_policy(self.layout.fit(fit.key) / "policy", ground)

    def trial(self, fit: Fit, rows: Sequence[Row]) -> dict[str, Any]:
        """Fit, score on rows of one benchmark (0 to 100), and remove the policy, which serves nothing else."""
        from metatuner.harness.fitting import failure
        from metatuner.harness.ground import to_query

        for needed in fit.requires:
            self.fit(needed, share=False)
        outcome, score = self.fit(fit, share=False), None
        failures = self.layout.logs / "failed" / f"{fit.key}.txt"

        def scored() -> Any:
            nonlocal score
            try:
                score = self.score(self.open_policy(fit, share=False).respond([to_query(row) for row in rows]), rows)
            except Exception as error:  # a method's policy may raise anything; it is this trial's outcome
                return failure(fit.key, error, failures)
            return outcome

        if outcome.status == "ok":
            outcome = guard.contained(scored, key=fit.key, failures=failures, **self.patience(fit.method))
            shutil.rmtree(self.layout.fit(fit.key), ignore_errors=True)
        return {"score": score, "status": outcome.status, "reason": outcome.reason}

    def score(self, responses: Sequence[Any], rows: Sequence[Row]) -> float:
        """The primary metric of responses to rows of one benchmark, 0 to 100."""
        benchmark = self.benchmarks[rows[0].benchmark]
        extracted = [benchmark.extract(response.completion) for response in responses]
        scored = benchmark.score_all(extracted, rows)
        return round(100 * sum(one.metrics[benchmark.primary] for one in scored) / len(rows), 4)

    def evaluate(self, cell: Cell, *, share: bool) -> Any:
        """Compute a cell unless it is complete; its outcome."""
        failures = self.layout.logs / "failed" / f"{cell.key}.txt"
        patience = self.patience(cell.fit.method, LEAST_PATIENCE)
        return guard.contained(
            lambda: self._evaluate(cell, failures, share=share), key=cell.key, failures=failures, **patience
        )

    def _evaluate(self, cell: Cell, failures: Path, *, share: bool) -> Any:
        from metatuner.harness.budget import Budget
        from metatuner.harness.evaluation import evaluate_policy
        from metatuner.harness.fitting import Outcome, complete_folder, failure, measured

        folder = self.layout.cell(cell.key)
        if folder.is_dir():
            return Outcome(cell.key, "ok")
        try:
            with complete_folder(folder) as temporary:
                budget = Budget()
                with measured() as meter:
                    policy = self.open_policy(cell.fit, share=share, budget=budget)
                    test = self.layout.data(cell.benchmark) / "test.jsonl"
                    evaluate_policy(policy, self.benchmarks[cell.benchmark], test, temporary)
                cost = {**budget.cost(), **asdict(meter)}
                identity = {
                    "key": cell.key,
                    "fit": cell.fit.key,
                    "method": cell.fit.method,
                    "trained_on": list(cell.fit.train),
                    "benchmark": cell.benchmark,
                    "generator": cell.fit.generator,
                    "seed": cell.fit.seed,
                }
                write_text(temporary / "cell.json", json.dumps(identity, indent=1, sort_keys=True) + "\n")
                write_text(temporary / "cost.json", json.dumps(cost, indent=1, sort_keys=True) + "\n")
        except Exception as error:  # a method's policy may raise anything; it is this cell's outcome, never a score
            return failure(cell.key, error, failures)
        failures.unlink(missing_ok=True)
        return Outcome(cell.key, "ok")


def _run_pack(
    layout: Layout,
    step: str,
    name: str,
    items: Iterable[Any],
    done: Callable[[Any], bool],
    work: Callable[[Any, bool], Any],
    attempt: str,
) -> None:
    """Work through a pack's items; write their outcomes, and which attempt this was (see `Dag.retry`)."""
    from metatuner.harness.fitting import pack_outcomes

    items = list(items)
    todo = [item for item in items if not done(item)]
    countdown = progress.Countdown(len(todo), "evaluations" if step == "evaluate" else "fits")
    outcomes = []
    for item in items:
        outcome = work(item, bool(todo) and item is todo[-1])
        outcomes.append(outcome)
        if outcome.status != "ok":
            progress.say(f"{outcome.status}: {item.key}: {outcome.reason}")
        if item in todo:
            countdown.step()
    attempts = layout.attempts(step, name)
    before = int(attempts.read_text(encoding="utf-8")) if attempts.is_file() else 0
    count = max(before, int(attempt or 0)) + any(outcome.status == "failed" for outcome in outcomes)
    if count != before:
        write_text(attempts, str(count))
    record = {"outcomes": pack_outcomes(outcomes)}
    write_text(layout.pack(step, name), json.dumps(record, indent=1, sort_keys=True) + "\n")


def fit(config: Config, arguments: argparse.Namespace) -> None:
    """Fit a pack."""
    shop = Workshop(config)
    plan, layout = shop.plan, shop.layout
    if arguments.pack not in plan.fit_packs:
        raise UserError(f"--pack {arguments.pack!r}; {suggest(arguments.pack, plan.fit_packs)}")
    fits = [plan.fits[key] for key in plan.fit_packs[arguments.pack].keys]
    shop.check_splits({name for each in fits for name in each.train})
    _run_pack(
        layout,
        plan.fit_step(arguments.pack),
        arguments.pack,
        fits,
        plan.is_complete,
        lambda item, last: shop.fit(item, share=last),
        arguments.attempt,
    )


def evaluate(config: Config, arguments: argparse.Namespace) -> None:
    """Evaluate a pack."""
    from metatuner.harness.fitting import Outcome

    shop = Workshop(config)
    plan, layout = shop.plan, shop.layout
    if arguments.pack not in plan.evaluate_packs:
        raise UserError(f"--pack {arguments.pack!r}; {suggest(arguments.pack, plan.evaluate_packs)}")
    pack = plan.evaluate_packs[arguments.pack]
    fitted = read_outcomes(plan, [layout.pack(plan.fit_step(name), name) for name in pack.needs])

    def work(cell: Cell, last: bool) -> Any:
        unknown = ("failed", f"no pack names its fit {cell.fit.key}; the code changed during the run, run it again")
        status, reason = fitted.get(cell.fit.key, unknown)
        return shop.evaluate(cell, share=last) if status == "ok" else Outcome(cell.key, status, reason)  # type: ignore[arg-type]

    cells = [plan.cells[key] for key in pack.keys]
    shop.check_splits({cell.benchmark for cell in cells})
    done = {cell.key for cell in cells if layout.cell(cell.key).is_dir()}
    _run_pack(layout, "evaluate", arguments.pack, cells, lambda item: item.key in done, work, arguments.attempt)


def read_outcomes(plan: Plan, paths: Iterable[Path]) -> dict[str, tuple[str, str]]:
    """Status and reason by key, from packs' files."""
    found = {}
    for path in paths:
        if path.is_file():
            for outcome in json.loads(path.read_text(encoding="utf-8"))["outcomes"]:
                found[outcome["key"]] = (outcome["status"], outcome["reason"])
    return found


# ---- tuning ----------------------------------------------------------------------------------------------------


def tune(config: Config, arguments: argparse.Namespace) -> None:
    """Random search for one subject (a method, or METHOD.VARIANT) on one benchmark."""
    from metatuner.harness.rows import read_rows

    shop = Workshop(config)
    plan, layout = shop.plan, shop.layout
    method, benchmark = arguments.method, arguments.benchmark
    if (method, benchmark) not in plan.tunable:
        known = [f"{name} on {where}" for name, where in plan.tunable]
        raise UserError(f"nothing to tune for {method} on {benchmark}; {suggest(f'{method} on {benchmark}', known)}")
    shop.check_splits([benchmark])
    rows = read_rows(layout.data(benchmark) / "tune.jsonl")
    trials = plan.trials(method, benchmark)
    countdown = progress.Countdown(len(trials), f"trials of {method} on {benchmark}")
    results = []
    for over in trials:
        result = _try(shop, method, benchmark, over, rows)
        results.append({"settings": over, **result})
        progress.say(f"{method} on {benchmark}: {over or 'the preset itself'} -> {result['reason'] or result['score']}")
        countdown.step()
    record = {"method": method, "benchmark": benchmark, "key": plan.tuning_key(method, benchmark), "trials": results}
    write_text(layout.tune(method, benchmark), json.dumps(record, indent=1, sort_keys=True) + "\n")


def tune_warmup(config: Config, arguments: argparse.Namespace) -> None:
    """Fit what the searches on one benchmark build on, so that searches that run side by side need not each.

    Where one fails, the trials of what builds on it will say so; the others' go on.
    """
    shop = Workshop(config)
    shop.check_splits([arguments.benchmark])
    fits = shop.plan.tuning_needs(arguments.benchmark)
    outcomes = [shop.fit(fit, share=False) for fit in fits]
    for outcome in outcomes:
        if outcome.status != "ok":
            progress.say(f"{outcome.status}: {outcome.key}: {outcome.reason}")
    write_text(
        shop.layout.pack("tune", arguments.benchmark),
        json.dumps({"outcomes": [asdict(outcome) for outcome in outcomes]}, indent=1, sort_keys=True) + "\n",
    )


def _try(shop: "Workshop", subject: str, benchmark: str, over: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """One trial, computed unless its score is at hand."""
    plan = shop.plan
    settings, _ = plan.settings(subject, (benchmark,), over, winners=False)
    fit = plan.fit(subject.partition(".")[0], settings, (benchmark,), plan.tuning_generator, shop.config.tuning.seed)
    scored = plan.layout.trial(fit.key)
    if scored.is_file():
        return dict(json.loads(scored.read_text(encoding="utf-8")))
    result = shop.trial(fit, rows)
    if result["status"] == "ok":
        write_text(scored, json.dumps(result, sort_keys=True) + "\n")
    return result


def confirm(config: Config, arguments: argparse.Namespace) -> int:
    """Run the winning trial of each expired winner and the best other one again; store it with its present key if it
    scores as before and still wins. Current winners of older files get their base.

    For changes of code that were not meant to change results. A winner that anything else has expired, whose settings
    are no longer among the trials, that scores otherwise or loses, or whose stored rival scores otherwise, stays
    expired: search again. The exit status is 1 if there is one.
    """
    from metatuner.harness.rows import read_rows
    from metatuner.harness.tuning import write_winners

    shop = Workshop(config)
    plan = shop.plan
    if config.tuning.winners is None:
        raise UserError("config key 'tuning.winners' is null; there are no winners to confirm")
    stored = dict(plan.winners)
    expired = [one for one in plan.tunable if one in stored and stored[one].key != plan.tuning_key(*one)]
    for one in plan.tunable:
        if one in stored and one not in expired and not stored[one].base:  # its key is current, so its base is known
            stored[one] = replace(stored[one], base=plan.tuning_base(*one))
    write_winners(ROOT / config.tuning.winners, stored.values())
    countdown = progress.Countdown(len(expired), "winners")
    lost = 0
    for method, benchmark in expired:
        winner, trials = stored[method, benchmark], plan.trials(method, benchmark)
        base = plan.tuning_base(method, benchmark)
        shop.check_splits([benchmark])
        if winner.base and winner.base != base:
            said = "depends on other data, models, settings or trials than when it was stored"
        elif winner.settings not in trials or winner.trials != len(trials):
            said = "is not among the present trials"
        else:
            rows = read_rows(plan.layout.data(benchmark) / "tune.jsonl")
            others = [each for each in trials if each != winner.settings]
            rival = winner.rival if winner.rival in others else next(iter(others), None)
            score = _try(shop, method, benchmark, winner.settings, rows)["score"]
            best = None if rival is None else _try(shop, method, benchmark, rival, rows)["score"]
            if score != winner.score:
                said = f"now scores {score}, {winner.score} when stored"
            elif rival == winner.rival and winner.rival_score not in (None, best):
                said = f"scores {score} as before, but {rival} now scores {best}, {winner.rival_score} when stored"
            elif best is not None and best > score:
                said = f"scores {score} as before, but {rival} now scores {best}"
            else:
                said = ""
        if said:
            lost += 1
            said += "; search again with the `tune` target"
        else:
            key = plan.tuning_key(method, benchmark)
            stored[method, benchmark] = replace(winner, key=key, base=base)
            write_winners(ROOT / config.tuning.winners, stored.values())
        progress.say(f"{method} on {benchmark}: the winner {said or 'is confirmed'}")
        countdown.step()
    return int(lost > 0)


def winners(config: Config, arguments: argparse.Namespace) -> int:
    """Store the winners of all searches; fails, when all others are stored, if every trial of one failed.

    A search that builds on another method's winner expires when that one changes: the log names those to search again.
    """
    from metatuner.harness.tuning import Winner, write_winners

    plan = Plan(config)
    if config.tuning.winners is None:
        raise UserError("config key 'tuning.winners' is null; name the file that winners go to")
    stored, lost = dict(plan.winners), 0
    for method, benchmark in plan.tunable:
        path = plan.layout.tune(method, benchmark)
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        done = [trial for trial in record["trials"] if trial["score"] is not None]
        if not done:
            progress.say(f"{path}: every trial failed; see {plan.layout.logs}/tune/{method}-{benchmark}.log")
            path.unlink()  # so that the next `tune` tries again
            lost += 1
            continue
        best, *others = sorted(done, key=lambda trial: -trial["score"])  # the first of equals
        current = record["key"] == plan.tuning_key(method, benchmark)
        stored[method, benchmark] = Winner(
            method=method,
            benchmark=benchmark,
            settings=best["settings"],
            score=best["score"],
            trials=len(record["trials"]),
            failed=len(record["trials"]) - len(done),
            at_edge=_at_edge(_full(plan, method, best["settings"]), plan.subject(method).search),
            key=record["key"],
            base=plan.tuning_base(method, benchmark) if current else "",
            rival=others[0]["settings"] if others else None,
            rival_score=others[0]["score"] if others else None,
        )
        edge = stored[method, benchmark].at_edge
        widen = f"; at the edge of its range, widen it: {', '.join(edge)}" if edge else ""
        progress.say(f"{method} on {benchmark}: {best['settings'] or 'the preset itself'}, {best['score']:.1f}{widen}")
    write_winners(ROOT / config.tuning.winners, stored.values())
    plan = Plan(config)
    for method, benchmark in plan.tunable:
        winner = plan.winners.get((method, benchmark))
        if winner is not None and winner.key != plan.tuning_key(method, benchmark):
            progress.say(f"{method} on {benchmark}: expired; run `tune` again")
    return 1 if lost else 0


def _full(plan: Plan, subject: str, over: Mapping[str, Any]) -> dict[str, Any]:
    """All searched settings of a trial, those it leaves as the preset has them included."""
    own = json.loads(plan.settings(subject, (), over, winners=False)[0])
    return {name: own[name] for name in plan.subject(subject).search}


def _at_edge(best: dict[str, Any], search: Mapping[str, SearchConfig]) -> tuple[str, ...]:
    """Settings whose winning value lies in the outer tenth of its range, or is the first or last of ordered values."""

    def edge(name: str, value: Any) -> bool:
        space = search[name]
        if space.low is None or space.high is None:
            values = space.values or []
            ordered = all(isinstance(each, int | float) for each in values)
            return ordered and len(values) > 1 and value in (min(values), max(values))
        place = log(value / space.low) / log(space.high / space.low) if space.log else None
        share = (value - space.low) / (space.high - space.low) if place is None else place
        return not 0.1 <= share <= 0.9

    return tuple(sorted(name for name, value in best.items() if edge(name, value)))


# ---- results ---------------------------------------------------------------------------------------------------


def _outcomes(plan: Plan) -> dict[str, tuple[str, str]]:
    """Status and reason of every cell: of its evaluation, or of the fit that kept it from being evaluated."""
    packs = [plan.layout.pack(plan.fit_step(name), name) for name in plan.fit_packs]
    packs += [plan.layout.pack("evaluate", name) for name in plan.evaluate_packs]
    return read_outcomes(plan, packs)


def scores(config: Config, arguments: argparse.Namespace) -> None:
    """Collect scores.csv."""
    from metatuner.analysis.scores import write_query_scores, write_scores

    plan = Plan(config)
    write_scores(plan.row_dicts(), _outcomes(plan), plan.layout.root)
    write_query_scores((row["cell"] for row in plan.row_dicts()), plan.layout.root)
    write_text(plan.layout.settings, _settings_csv(plan.row_dicts()))
    for path, told in ((plan.layout.methods, plan.descriptions), (plan.layout.searches, plan.searches)):
        write_text(path, json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    if plan.expired:
        named = ", ".join(f"{method} on {benchmark}" for method, benchmark in sorted(plan.expired))
        progress.say(
            f"stored winners have expired (what they depend on changed): {named}; the preset's settings were used"
        )


def _settings_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The settings of each method, variant and benchmark, and where they come from."""
    columns = ("experiment", "method", "variant", "benchmark", "generator", "tuned", "settings")
    lines = dict.fromkeys(tuple(row[column] for column in columns) for row in rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue()


def table(config: Config, arguments: argparse.Namespace) -> None:
    """Make tables from scores at hand."""
    from metatuner.analysis.tables import tables_of

    _draw(config, arguments.name, tables_of(config))


def figure(config: Config, arguments: argparse.Namespace) -> None:
    """Make figures from scores at hand; the framework's from the config alone."""
    from metatuner.analysis.figures import figures_of
    from metatuner.analysis.framework import Design, figure_2

    makers = figures_of(config)
    design = Plan(config).framework
    if design is not None:
        makers["figure_2"] = lambda config: figure_2(config, Design(**design))
    _draw(config, arguments.name, makers)


def claims(config: Config, arguments: argparse.Namespace) -> None:
    """Judge the paper's claims."""
    from metatuner.analysis.claims import claims as judge

    _learn_families(config)
    for path in judge(config):
        progress.say(f"wrote {path}")


def report(config: Config, arguments: argparse.Namespace) -> None:
    """Write the report."""
    from metatuner.analysis.report import report as write

    _learn_families(config)
    progress.say(f"wrote {write(config)}")


def _learn_families(config: Config) -> None:
    """What methods.json tells of methods that are not the project's own."""
    from metatuner.analysis.labels import learn_families
    from metatuner.files import read_json

    path = Layout(config).methods
    if path.is_file():
        learn_families(read_json(path, "run `metatuner scores` again"))


def _draw(config: Config, name: str, makers: Mapping[str, Callable[[Config], Iterable[Path]]]) -> None:
    if name != "all" and name not in makers:
        raise UserError(f"--name {name!r}: nothing in this preset; {suggest(name, [*makers, 'all'])}")
    _learn_families(config)
    for each in makers if name == "all" else [name]:
        for path in makers[each](config):
            progress.say(f"wrote {path}")


def _open_metatuner(shop: Workshop, key: str) -> tuple[Cell, Any]:
    """A finished MetaTuner cell and its saved policy."""
    from metatuner.contender import MetaTunerPolicy

    cell = shop.plan.cells.get(key)
    if cell is None or not (shop.layout.fit(cell.fit.key) / "policy").is_dir():
        raise UserError(f"--cell {key}: no cell of this preset with its policy on disk; see `cell` in scores.csv")
    policy = shop.open_policy(cell.fit, share=False)
    if not isinstance(policy, MetaTunerPolicy):
        raise UserError(
            f"--cell {key} is of {cell.fit.method}; only MetaTuner's has a prompt and a LoRA for each query"
        )
    return cell, policy


def export_adapter(config: Config, arguments: argparse.Namespace) -> None:
    """Write the LoRA that a finished MetaTuner cell's policy makes for one query as a PEFT folder; print its prompt."""
    from metatuner.harness.rows import read_rows

    shop = Workshop(config)
    cell, policy = _open_metatuner(shop, arguments.cell)
    query = arguments.query
    if arguments.id is not None:
        shop.check_splits([cell.benchmark])
        file = shop.layout.data(cell.benchmark) / "test.jsonl"
        query = next((row.query for row in read_rows(file) if row.id == arguments.id), None)
        if query is None:
            raise UserError(f"--id {arguments.id!r}: no such row in {file}")
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise UserError(f"--out {arguments.out}: this folder holds files already; name a new one")
    initial = shop.benchmarks[cell.benchmark].initial_prompt
    prompt = policy.tuner.export_adapter(query, arguments.out, prompt=initial)
    progress.say(f"wrote {arguments.out}; load it with PeftModel.from_pretrained on {policy.tuner.actor.spec.path}")
    print(prompt)


def swaps(config: Config, arguments: argparse.Namespace) -> None:
    """Print the scores of a finished cell's policy under swapped prompts and LoRAs, on its benchmark's tune rows."""
    from metatuner.harness.ground import to_query
    from metatuner.harness.rows import read_rows
    from metatuner.swaps import answers_under_swaps

    shop = Workshop(config)
    cell, policy = _open_metatuner(shop, arguments.cell)
    shop.check_splits([cell.benchmark])
    rows = read_rows(shop.layout.data(cell.benchmark) / "tune.jsonl")
    print(f"{cell.fit.method}, {cell.benchmark}, seed {cell.fit.seed}, {len(rows)} tune rows")
    print(f"{'prompt':<18}{'LoRA':<18}score")
    for (prompt, lora), responses in answers_under_swaps(policy, [to_query(row) for row in rows]).items():
        print(f"{prompt:<18}{lora:<18}{shop.score(responses, rows):.1f}")


def efficiency(config: Config, arguments: argparse.Namespace) -> None:
    """Time the first experiment's policies, one seed, on tune rows."""
    from metatuner.efficiency import measure, write

    shop = Workshop(config)
    there = [cell for cell in shop.plan.timed_cells if shop.layout.cell(cell.key).is_dir()]
    cells = [cell for cell in there if (shop.layout.fit(cell.fit.key) / "policy").is_dir()]
    shop.check_splits({cell.benchmark for cell in cells})
    write(measure(shop, cells), shop.layout.efficiency)


def provenance(config: Config, arguments: argparse.Namespace) -> None:
    """Write what the results depend on."""
    from metatuner.analysis.provenance import write_provenance
    from metatuner.harness.proposer import NOTE

    plan, proposer = Plan(config), config.models.proposer
    dependencies = {
        "models": {role: plan.model_key(role) for role in ("actor", *config.models.generators)},
        "data": {name: plan.data_key(name) for name in config.benchmarks},
        "world": plan.world_key,
        **({"proposer": {**proposer.identity, "note": NOTE}} if proposer else {}),
        "winners_used": sorted({f"{row.method} on {row.benchmark}" for row in plan.rows if row.tuned == "winner"}),
        "winners_expired": sorted({f"{row.method} on {row.benchmark}" for row in plan.rows if row.tuned == "expired"}),
    }
    write_provenance(config, dependencies, plan.layout.provenance)


def verdict(config: Config, arguments: argparse.Namespace) -> int:
    """Fail if any cell failed; else remove the policies that the preset does not keep."""
    from metatuner.analysis.verdict import write_verdict

    plan = Plan(config)
    failed = write_verdict(plan.row_dicts(), _outcomes(plan), plan.layout.verdict)
    for line in failed:
        progress.say(line)
    if failed:
        progress.say(
            f"{len(failed)} cells failed; tracebacks are in {plan.layout.logs / 'failed'}; run again to retry them "
            f"(where .snakemake/ was removed: remove {plan.layout.root / 'packs'} first, what is there is kept)"
        )
        return 1
    for policy in plan.spare_policies:
        shutil.rmtree(policy, ignore_errors=True)
    progress.say(f"all {len(plan.cells)} cells are there; see {plan.layout.root / 'tables' / 'table_1.md'}")
    return 0


# ---- the rest --------------------------------------------------------------------------------------------------


def resume(config: Config, arguments: argparse.Namespace) -> int:
    """Take up an interrupted run."""
    from metatuner.resume import resume_run

    return resume_run(arguments.overrides, arguments.cores)


def lm_eval(arguments: argparse.Namespace) -> int:
    """lm-eval's own command line, with ours as a model."""
    from metatuner.harness.evaluation import lm_eval_command

    lm_eval_command(arguments.arguments, open_policy)
    return 0


def open_policy(*, config: str, cell: str) -> Any:
    """The policy of a finished cell: `--model_args config=results/<preset>/config.json,cell=<key of scores.csv>`."""
    shop = Workshop(read_config(Path(config)))
    if cell not in shop.plan.cells:
        raise UserError(f"cell {cell!r} is not in the plan of {config}; take a key from scores.csv of the same preset")
    return shop.open_policy(shop.plan.cells[cell].fit, share=True)


def diff(arguments: argparse.Namespace) -> int:
    """Compare two results folders."""
    from metatuner.analysis.diff import diff as compare

    text, differs = compare(arguments.first, arguments.second, arguments.csv_file)
    print(text)
    return int(differs and arguments.fail_on_difference)


def new_method(arguments: argparse.Namespace) -> None:
    """Write a method's file to start from."""
    from metatuner.authoring import new_method as write

    path = write(arguments.name, arguments.family, arguments.folder)
    print(f"wrote {path}. It works as it is; next:")
    print(f"  metatuner check-method {path}")
    print(f"  snakemake --cores all --config extra_methods={path}")


def check_method(arguments: argparse.Namespace) -> int:
    """Check a method's file against the contract."""
    import tempfile

    from metatuner.authoring.conformance import Finding, read_overrides
    from metatuner.authoring.conformance import check_method as check

    def say(finding: Finding) -> None:
        print(f"{finding.status:>11}  {finding.check}" + (f": {finding.detail}" if finding.detail else ""), flush=True)

    overrides = read_overrides(arguments.method_config)
    with tempfile.TemporaryDirectory() as home:
        found = check(arguments.file, Path(home), overrides, say)
    failed = sum(finding.status == "fails" for finding in found)
    print(f"{len(found)} checks, {failed} failed")
    return int(failed > 0)


WITHOUT_CONFIG = frozenset({"lm-eval", "bench", "diff", "new-method", "check-method"})
"""Commands that need no config."""


def bench(arguments: argparse.Namespace) -> None:
    """Measure speed and memory at random weights."""
    import warnings

    # transformers warns that PEFT uses names that it will drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from metatuner.bench import run as run_bench

    run_bench(**{name: value for name, value in vars(arguments).items() if name != "command"})


STEPS: dict[str, Callable[..., int | None]] = {
    "config": show_config,
    "methods": methods,
    "check-data": check_data,
    "world": world,
    "pretrain": pretrain,
    "world-report": world_report,
    "data": data,
    "fit": fit,
    "evaluate": evaluate,
    "tune-warmup": tune_warmup,
    "tune": tune,
    "winners": winners,
    "confirm": confirm,
    "scores": scores,
    "table": table,
    "figure": figure,
    "claims": claims,
    "report": report,
    "swaps": swaps,
    "export-adapter": export_adapter,
    "efficiency": efficiency,
    "provenance": provenance,
    "verdict": verdict,
    "cost": cost,
    "usage": show_usage,
    "resume": resume,
    "bench": bench,
    "diff": diff,
    "new-method": new_method,
    "check-method": check_method,
    "lm-eval": lm_eval,
}
