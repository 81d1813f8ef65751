"""One fit: build the lab, run the method's `fit`, save its policy. A fit's folder on disk is always complete."""

import contextlib
import json
import random
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from metatuner import progress
from metatuner.errors import UserError
from metatuner.files import complete_folder, write_json
from metatuner.harness.benchmarks import Benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.method import Method
from metatuner.harness.policy import Policy
from metatuner.harness.proposer import NOTE, ProposerServer
from metatuner.harness.splits import draw_train_dev
from metatuner.hashing import derive_seed
from metatuner.integrity import NO_PLACE_REMEDY, check_weights, is_full, write_digests
from metatuner.metering import measured
from metatuner.run.limits import time_limit
from metatuner.run.models import ModelPool

Status = Literal["ok", "skipped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fit or a cell."""

    key: str
    status: Status
    reason: str = ""
    """Why it was skipped or failed; the traceback is in the logs."""


@dataclass(frozen=True)
class FitTask:
    """All inputs of a fit."""

    key: str
    method: Method
    benchmarks: Mapping[str, Benchmark]
    pools: Mapping[str, Path]
    """The file with the pool of train rows, per train benchmark."""
    sizes: Mapping[str, tuple[int | None, int]]
    """Numbers of train and dev rows, per train benchmark."""
    generator: str
    """The generator's role in the model pool; "" for none."""
    seed: int
    budget: Budget
    prerequisites: Mapping[str, Path]
    """Folders of the fits that the method requires, by method name."""
    batch_tokens: int
    identity: Mapping[str, Any]
    """The content of fit.json."""
    seconds: float | None = None
    """How long `fit` may take."""
    proposer: ProposerServer | None = None
    """Proposes prompts instead of the generator; None if the method uses no proposer."""


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, for libraries that use them."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_lab(task: FitTask, models: ModelPool, *, share: bool, workdir: Path, log_line: Any) -> Lab:
    """The lab of a fit, with fresh models, its draw of train and dev rows, and its meter attached."""
    train, dev = [], []
    for name, pool in task.pools.items():
        drawn = draw_train_dev(pool, *task.sizes[name], seed=derive_seed("rows", name, task.seed), benchmark=name)
        train += drawn[0]
        dev += drawn[1]
    if len(task.pools) > 1:  # mix the rows, instead of one benchmark after the other
        random.Random(derive_seed("mix", *task.pools, task.seed)).shuffle(train)
    actor = models.get("actor", share=share)
    generator = models.get(task.generator, share=share) if task.generator else None
    for role, lm in (("actor", actor), ("generator", generator)):
        if lm is not None:
            task.budget.attach(lm, role)
    lab = Lab(
        actor=actor,
        generator=generator,
        benchmarks=task.benchmarks,
        batch_tokens=task.batch_tokens,
        train=train,
        dev=dev,
        trained_on=tuple(task.pools),
        generator_name=task.generator,
        seed=task.seed,
        budget=task.budget,
        workdir=workdir,
        prerequisites={name: folder / "policy" for name, folder in task.prerequisites.items()},
        log_line=log_line,
        proposer=task.proposer,
    )
    for role, lm in (("actor", actor), ("generator", generator)):
        if lm is not None and lm.engine is not None:
            lab.log(event="engine", role=role, **lm.engine.described)
    if lab.proposer is not None:
        lab.log(event="proposer", model=lab.proposer.model, server=lab.proposer.base_url, note=NOTE)
    return lab


class _Skipped(Exception):
    """Leaves `complete_folder` without a folder; its text is the method's reason to skip."""


def run_fit(task: FitTask, models: ModelPool, folder: Path, failures: Path, *, share: bool) -> Outcome:
    """Fit and save to `folder`. The outcome says whether this worked, and why not.

    Any error that the method raises becomes the outcome, with the traceback in `failures`. A failed fit leaves no
    folder.
    """
    failures.unlink(missing_ok=True)
    try:
        with complete_folder(folder) as temporary:
            scratch = temporary / "scratch"
            scratch.mkdir()
            with open(temporary / "log.jsonl", "w", encoding="utf-8", newline="\n") as log:
                lab = build_lab(
                    task, models, share=share, workdir=scratch, log_line=lambda line: print(line, file=log, flush=True)
                )
                try:
                    reason = task.method.skip(lab)
                    if reason is not None:
                        raise _Skipped(reason)
                    for needed in task.prerequisites.values():
                        lab.budget.add_cost(json.loads((needed / "cost.json").read_text(encoding="utf-8")))
                    seed_everything(lab.stream("global"))
                    named = f"{task.method.name} on {'+'.join(task.pools)}, seed {task.seed}"
                    with progress.at_work(named), measured() as meter, time_limit(task.seconds, task.budget.name):
                        policy = task.method.fit(lab)
                    if not isinstance(policy, Policy):
                        raise UserError(
                            f"method {task.method.name}: fit returned {type(policy).__name__}, not a Policy"
                        )
                finally:
                    lab.budget.detach()
            policy.save(temporary / "policy")
            check_weights(temporary / "policy", f"training diverged: lower the settings of {task.method.name}")
            shutil.rmtree(scratch, ignore_errors=True)
            write_json(temporary / "cost.json", {**lab.budget.cost(), **asdict(meter)})
            write_json(temporary / "fit.json", dict(task.identity))
            write_digests(temporary)
    except _Skipped as skipped:
        return Outcome(task.key, "skipped", str(skipped))
    except Exception as error:  # a method may raise anything; the error is this fit's outcome, never a score
        return failure(task.key, error, failures)
    return Outcome(task.key, "ok")


def failure(key: str, error: BaseException, failures: Path) -> Outcome:
    """The outcome of a raised error: one line for the tables, the traceback in `failures`."""
    text = _writable("".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        failures.parent.mkdir(parents=True, exist_ok=True)
        failures.write_text(text, encoding="utf-8")
    print(text, file=sys.stderr, flush=True)
    try:
        message = _writable(" ".join(str(error).split()))
    except BaseException:  # a method's own exception class may be broken
        message = "its __str__ fails"
    if is_full(error):
        message += f"; {NO_PLACE_REMEDY}"
    reason = message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"
    return Outcome(key, "failed", reason[:500])


def _writable(text: str) -> str:
    """A text that UTF-8 can hold: half characters are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
