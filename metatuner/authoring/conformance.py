"""Checks that a method keeps its contract. Each check runs the real commands on untrained models and a few rows.

Python's audit events show what a file does. This is no sandbox: code that wants to hide can.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metatuner import progress
from metatuner.config import Config, dump_config, load_config, parse
from metatuner.errors import UserError
from metatuner.files import write_text
from metatuner.harness.method import make_settings, settings_dict
from metatuner.harness.registry import Registry
from metatuner.hashing import ROOT, canonical
from metatuner.plan import Fit, Plan
from metatuner.run.guard import CHECKING, below, is_a_librarys, open_places

BENCHMARKS = ("gsm8k", "math")
"""The method trains on the first."""
PATIENCE = 300
"""Seconds that one fit or evaluation may take here."""
HALF = 0.5
"""Share of a fit's time after which it is killed, and share of its calls that a budget allows."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    status: Literal["ok", "fails", "cannot tell"]
    detail: str = ""
    """What was seen, and the remedy if it fails."""


class TinyWorld:
    """A tiny world with one method in it, and copies of it with changes."""

    def __init__(self, file: Path, name: str, home: Path, overrides: dict[str, Any]) -> None:
        self.file, self.name, self.home = file.resolve(), name, home.resolve()
        self.home.mkdir(parents=True, exist_ok=True)  # its processes run here, because libraries leave files there
        settings = {"methods": {name: overrides}} if overrides else {}
        self.overrides: dict[str, Any] = {
            **settings,
            "extra_methods": [] if _is_ours(file) else [str(self.file)],
            "run": "main",
            "cache": str(self.home / "cache"),
            "experiments.main.methods": [name],
            "experiments.main.benchmarks": [BENCHMARKS[0]],
            "experiments.main.seeds": [0],
        }

    def config(self, run: str, **changes: Any) -> Config:
        """The config of one copy of the world."""
        return load_config("smoke", {**self.overrides, "results": str(self.home / run), **changes})

    def plan(self, config: Config) -> tuple[Plan, Fit]:
        """The plan of a config, and the method's fit."""
        plan = Plan(config)
        return plan, next(cell.fit for cell in plan.grid.cells.values())

    def prepare(self, run: str, **changes: Any) -> tuple[Config, Plan, Fit]:
        """A copy of the world, ready for a fit; made from the first one if there is one."""
        config = self.config(run, **changes)
        plan, fit = self.plan(config)
        write_text(plan.layout.config, dump_config(config))
        first = self.home / "first"
        if run != "first" and first.is_dir():
            for folder in ("data", "world"):
                shutil.copytree(first / folder, self.home / run / folder, dirs_exist_ok=True)
            for needed in fit.requires:
                shutil.copytree(first / "fits" / needed.key, self.home / run / "fits" / needed.key, dirs_exist_ok=True)
            return config, plan, fit
        for role in plan.keys.nano_roles:
            self.run(plan, "pretrain", "--role", role)
        self.run(plan, "world")
        for benchmark in BENCHMARKS:
            self.run(plan, "data", "--benchmark", benchmark)
        return config, plan, fit

    def run(self, plan: Plan, *words: str, check: bool = True, watch: Path | None = None) -> tuple[int, str]:
        """Run one `metatuner` command in its own process. Returns its status and output."""
        done = subprocess.run(
            self.command(plan, *words, watch=watch),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
            env=self.environment(),
            timeout=PATIENCE,
        )
        if check and done.returncode:
            raise UserError(f"`metatuner {' '.join(words)}` failed: {_last_line(done.stderr)}")
        return done.returncode, done.stdout + done.stderr

    def command(self, plan: Plan, *words: str, watch: Path | None = None) -> list[str]:
        """The command line for `run`; `watch` names a file that records what the process opens and writes."""
        start = ["metatuner.cli"] if watch is None else ["metatuner.authoring.watched", str(watch)]
        return [sys.executable, "-m", *start, *words, "--config", str(plan.layout.config)]

    def environment(self) -> dict[str, str]:
        """The environment of this process, with a fixed hash seed and this checkout first."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, CHECKING: "1"}

    def fit(self, plan: Plan, *, watch: Path | None = None) -> dict[str, Any]:
        """Run the fit (and what it requires). Returns its outcome."""
        for name in plan.packs.fits:
            self.run(plan, "fit", "--pack", name, watch=watch)
        name = f"{self.name}-00"
        (outcome,) = json.loads(plan.packs.fit_file(name).read_text(encoding="utf-8"))["outcomes"]
        return dict(outcome)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


def artifacts(folder: Path) -> dict[str, str]:
    """Digests of a fit's files that must be the same in every run: its policy and its log."""
    kept = [*sorted((folder / "policy").rglob("*")), folder / "log.jsonl"]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in kept
        if path.is_file()
    }


def differing(one: dict[str, str], other: dict[str, str]) -> str:
    """Names of files that differ."""
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


def check_method(file: Path, home: Path, overrides: dict[str, Any], say: Callable[[Finding], None]) -> list[Finding]:
    """Run every check in turn on the methods that a file defines, and report each finding at once.

    Args:
        file: a method's file, in baselines/ or elsewhere.
        home: an empty folder for the tiny worlds.
        overrides: the method's part of the config: settings, budget.
        say: receives each finding.

    Raises:
        UserError: the file does not import, or defines no method.
    """
    found: list[Finding] = []

    def tell(check: str, status: Literal["ok", "fails", "cannot tell"], detail: str = "") -> None:
        found.append(Finding(check, status, detail))
        say(found[-1])

    registry = Registry([] if _is_ours(file) else [file])
    names = [
        name for name in registry.names() if registry[name].file == file.resolve() and not registry[name].cls.internal
    ]
    for each in registry.extra:
        if registry[each].broken and each == file.stem:
            raise UserError(str(registry[each].cls.__doc__))
    if not names:
        raise UserError(f"{file}: no method here that an experiment could name")
    for name in names:
        tell(f"{name}: the file imports, and its class says what it must", "ok")
        _check(TinyWorld(file, name, home / name, overrides), registry, tell)
    return found


def _is_ours(file: Path) -> bool:
    return file.resolve().is_relative_to(ROOT / "baselines")


def _check(world: TinyWorld, registry: Registry, tell: Callable[..., None]) -> None:
    cls, check = registry[world.name].cls, "settings survive being written and read"
    try:
        values = settings_dict(cls.Settings())
        same = make_settings(cls, json.loads(canonical(values)), "settings") == cls.Settings()
        tell(check, "ok" if same else "fails", "" if same else "they come back changed")
    except (TypeError, UserError) as error:
        tell(check, "fails", f"{error}; use numbers, texts, and tuples of these")
        return
    progress.say("making a tiny world")
    _, plan, fit = world.prepare("first")
    folder, watched = plan.layout.fit(fit.key), world.home / "watched.jsonl"
    started = time.monotonic()
    try:
        outcome = world.fit(plan, watch=watched)
    except subprocess.TimeoutExpired:
        tell("it fits", "fails", f"not done after {PATIENCE} s on 16 rows; lower its default settings")
        return
    took = time.monotonic() - started
    if outcome["status"] != "ok":
        if outcome["status"] == "skipped":
            tell("it fits", "cannot tell", f"it skips here: {outcome['reason']}")
        else:
            trace = plan.layout.logs / "failed" / f"{fit.key}.txt"
            shown = trace.read_text(encoding="utf-8").strip() if trace.is_file() else ""
            tell("it fits", "fails", f"{outcome['reason']}\n{shown}")
        return
    tell("it fits", "ok", f"{took:.0f} s with its process")
    _check_places(world, plan, watched, tell)
    first, cost = artifacts(folder), json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    _check_again(world, first, tell)
    _check_killed(world, first, took, tell)
    _check_budget(world, cost, tell)
    _check_answers(world, plan, fit, tell)
    _check_skip(world, cls, tell)


def _check_again(world: TinyWorld, first: dict[str, str], tell: Callable[..., None]) -> None:
    check = "the same seed gives the same files, whatever tune and test rows say"
    _, plan, fit = world.prepare("poisoned")
    for split in ("tune", "test"):
        for path in (world.home / "poisoned" / "data").glob(f"*/{split}.jsonl"):
            path.write_text('{"not": "a row"}\n', encoding="utf-8")
    outcome = world.fit(plan)
    folder = plan.layout.fit(fit.key)
    if outcome["status"] != "ok":
        tell(
            check, "fails", f"with garbage in tune and test files it fails: {outcome['reason']}; fit must not read them"
        )
        return
    if not (changed := differing(first, artifacts(folder))):
        tell(check, "ok")
        return
    _, plan, fit = world.prepare("again")
    world.fit(plan)
    if differing(first, artifacts(plan.layout.fit(fit.key))):
        remedy = "draw all randomness from lab.random(name) and lab.stream(name), and iterate over no set"
        tell(check, "fails", f"two runs differ in {changed}; {remedy}")
    else:
        tell(check, "fails", f"tune or test rows change {changed}; fit on lab.train and lab.dev alone")


def _check_killed(world: TinyWorld, first: dict[str, str], took: float, tell: Callable[..., None]) -> None:
    check = "killed in the middle, it leaves nothing half done, and the next run makes the same files"
    _, plan, fit = world.prepare("killed")
    *before, name = plan.packs.fits
    for needed in before:
        world.run(plan, "fit", "--pack", needed)
    process = subprocess.Popen(
        world.command(plan, "fit", "--pack", name),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=world.home,
        env=world.environment(),
    )
    deadline = time.monotonic() + PATIENCE
    folder = plan.layout.fit(fit.key)
    while process.poll() is None and not list(folder.parent.glob(f".{fit.key}.*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(min(HALF * took / 10, 1.0))
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    whole = folder.is_dir()
    outcome = world.fit(plan)
    if outcome["status"] != "ok":
        tell(check, "fails", f"after the kill it fails: {outcome['reason']}; keep files in lab.workdir alone")
    elif changed := differing(first, artifacts(folder)):
        tell(check, "fails", f"after the kill {changed} differ; keep files in lab.workdir alone")
    else:
        tell(check, "ok", "it had ended before it could be killed" if whole else "")


def _check_budget(world: TinyWorld, cost: dict[str, Any], tell: Callable[..., None]) -> None:
    check = "it keeps to its budget"
    limits = {name: int(HALF * cost[name]) for name in ("lm_calls", "trained_tokens") if cost[name] > 1}
    if not limits:
        tell(check, "ok", "it calls and trains no model")
        return
    told = []
    for name, limit in limits.items():
        _, plan, fit = world.prepare(f"budget-{name}", **{"budgets.default": {name: limit}})
        outcome = world.fit(plan)
        if outcome["status"] == "ok":
            used = json.loads((plan.layout.fit(fit.key) / "cost.json").read_text(encoding="utf-8"))[name]
            if used > limit:
                tell(check, "fails", f"{name}: {used} used of {limit}, and the fit counts as done")
                return
            told.append(f"ends at {used} of {limit} {name}")
        elif "budget" in outcome["reason"]:
            told.append(f"fails cleanly at {limit} {name} (better: look at lab.budget.left and stop before)")
        else:
            tell(check, "fails", f"with {limit} {name} it fails otherwise: {outcome['reason']}")
            return
    tell(check, "ok", "; ".join(told))


def _check_answers(world: TinyWorld, plan: Plan, fit: Fit, tell: Callable[..., None]) -> None:
    check = "saved and loaded, its policy answers every query once, in order, and always alike"
    from metatuner.harness.query import to_query
    from metatuner.harness.rows import read_rows
    from metatuner.run.workshop import Workshop

    shop = Workshop(plan.config)
    rows = read_rows(plan.layout.data(BENCHMARKS[0]) / "test.jsonl")
    queries = [to_query(row) for row in rows]
    try:
        runs = [shop.open_policy(fit, share=False).respond(queries) for _ in range(2)]
    except Exception as error:  # a policy may raise anything; the error is this check's finding
        tell(check, "fails", f"{type(error).__name__}: {error}")
        return
    if any(len(run) != len(queries) for run in runs):
        tell(check, "fails", f"{len(queries)} queries, {len(runs[0])} responses; respond once to each, in order")
    elif runs[0] != runs[1]:
        tell(
            check, "fails", "loaded twice it answers differently; save all that answers depend on, and decode greedily"
        )
    else:
        backwards = shop.open_policy(fit, share=False).respond(queries[::-1])[::-1]
        wrong = sum(one.completion != other.completion for one, other in zip(runs[0], backwards, strict=True))
        detail = (
            f"{wrong} of {len(queries)} answers depend on the order of queries; make each depend on its query alone"
        )
        tell(check, "fails" if wrong else "ok", detail if wrong else "")


def _check_skip(world: TinyWorld, cls: Any, tell: Callable[..., None]) -> None:
    check = "without a generator it skips with a reason, or runs"
    from metatuner.harness.lab import Lab

    try:
        reason = cls(cls.Settings()).skip(Lab(actor=None, generator=None, benchmarks={}))  # type: ignore[arg-type]
    except Exception as error:  # as above
        tell(check, "fails", f"skip raises {type(error).__name__}: {error}; return a reason or None")
        return
    if reason is not None and (not isinstance(reason, str) or not reason.strip()):
        tell(check, "fails", f"skip returns {reason!r}; return a reason or None")
    elif cls.uses_generator and reason is None:
        tell(check, "cannot tell", "it uses the generator, but skip gives no reason where there is none")
    else:
        tell(check, "ok", reason or "")


def _check_places(world: TinyWorld, plan: Plan, watched: Path, tell: Callable[..., None]) -> None:
    """Check what the fit's processes wrote and read, as far as audit events show."""
    lines = [json.loads(line) for line in watched.read_text(encoding="utf-8").splitlines()] if watched.is_file() else []
    root = plan.layout.root.resolve()
    allowed = [world.home, root, Path(plan.config.cache).resolve(), *open_places()]
    home = Path.home().resolve()
    written = {each["path"] for each in lines if each["writes"]}
    outside = sorted(path for path in written if not below(path, allowed) and not is_a_librarys(path, home))
    if outside:
        tell("it writes nowhere but in its folder", "fails", f"it wrote {', '.join(outside[:5])}; use lab.workdir")
    else:
        tell("it writes nowhere but in its folder", "ok", "as far as Python's audit events tell; this is no sandbox")
    hidden = ("tune.jsonl", "test.jsonl")
    opened = sorted({each["path"] for each in lines if below(each["path"], [root / "data"])})
    opened = [path for path in opened if path.endswith(hidden)]
    told = f"it opened {', '.join(opened)}; fit on lab.train and lab.dev alone"
    tell("it opens no tune or test file", "fails" if opened else "ok", told if opened else "")


def read_overrides(text: str | None) -> dict[str, Any]:
    """The method's part of a config, given as YAML on the command line."""
    found = parse(text, "--method-config") if text else {}
    if not isinstance(found, dict):
        raise UserError(f"--method-config {text!r}: give a mapping, e.g. '{{settings: {{epochs: 1}}}}'")
    return found
