"""What a policy costs per query: time and memory to write prompts and parameters, and time to answer with them.

A policy prepares all queries first, then the ground answers. Entering a batch's adaptation makes LoRA factors, so it
counts as writing.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from metatuner import progress
from metatuner.errors import UserError
from metatuner.files import write_csv
from metatuner.harness.policy import Policy
from metatuner.harness.query import Query, to_query
from metatuner.harness.rows import read_rows
from metatuner.metering import measured, peak_allocated
from metatuner.plan import Cell
from metatuner.run import guard
from metatuner.run.fitting import Outcome, failure
from metatuner.run.workshop import Workshop
from metatuner.supervision import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metatuner.lm import Adapt

REPEATS = 3
"""Rounds; plain actor and policy take turns."""
COLUMNS = (
    "method,benchmark,seed,queries,repeats,write_ms,answer_ms,plain_ms,write_share,write_share_low,write_share_high,"
    "overhead,write_bytes,peak_memory_bytes,device"
).split(",")


def _finish_device_work() -> None:
    """Wait until the GPU has finished its work: the call that starts a kernel returns before the kernel is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _now() -> float:
    _finish_device_work()
    return time.perf_counter()


class Clock:
    """Measures the seconds spent on entering adaptations."""

    def __init__(self) -> None:
        self.entering = 0.0

    def timed(self, adapt: "Adapt") -> "Adapt":
        """The same adaptation, timed by this clock."""

        @contextmanager
        def around(context: AbstractContextManager[Any]) -> "Iterator[Any]":
            start = _now()
            with context as inside:
                self.entering += _now() - start
                yield inside

        return lambda batch: around(adapt(batch))


def _times(policy: Policy, queries: Sequence[Query]) -> tuple[float, float]:
    """Seconds of writing and of answering."""
    start = _now()
    prepared = policy.prepare(queries)
    prepared_at, clock = _now(), Clock()
    policy.ground.answer(
        queries,
        prepared.prompts,
        demos=prepared.demos,
        adapt=None if prepared.adapt is None else clock.timed(prepared.adapt),
        actor=prepared.actor,
    )
    return prepared_at - start + clock.entering, _now() - prepared_at - clock.entering


def measure(shop: Workshop, cells: Sequence[Cell], steps: Steps) -> list[dict[str, Any]]:
    """One line per cell: median times of its policy on the first tune rows of its benchmark, as a batch, in
    milliseconds per query. The preset's `timed_rows` says how many rows.

    - `write_share`: writing time over answering time, with its quartiles over rounds.
    - `overhead`: writing and answering time over the time of the plain actor's answers under p~.
    - `write_bytes`: the peak memory that writing for all queries allocates, in addition to the models.

    A policy that cannot be timed has no line, and the log says why. With a server as engine none can: its times depend
    on the network and on what else the server does.
    """
    lines = []
    countdown = progress.Countdown(len(cells), "policies timed")
    for cell in cells:
        if served := [role for role in ("actor", cell.fit.generator) if role in shop.models.engines]:
            key = f"{shop.plan.keys.model_place(served[0])}.engine"
            progress.say(f"{cell.fit.method} on {cell.benchmark} is not timed: {key} names a server")
            countdown.step()
            continue
        rows = read_rows(shop.layout.data(cell.benchmark) / "tune.jsonl")[: shop.config.timed_rows]
        if not rows:
            raise UserError(f"benchmarks.{cell.benchmark}.sizes.tune: no tune rows to time policies on; set it above 0")
        queries = [to_query(row) for row in rows]
        seconds = shop.patience(cell.fit)["seconds"]
        found = steps.run(cell.key, partial(_timed, shop, cell, queries), seconds)
        if "line" in found:
            lines.append(found["line"])
        else:
            progress.say(f"{cell.fit.method} on {cell.benchmark} is not timed: {found['reason']}")
        countdown.step()
    return lines


def _timed(shop: Workshop, cell: Cell, queries: Sequence[Query]) -> dict[str, Any]:
    """The line of a policy, or the reason why it has none."""
    found: dict[str, Any] = {}

    failures = shop.layout.logs.absolute() / "failed" / f"timing-{cell.key}.txt"

    def work() -> Outcome:
        try:
            found["line"] = _line(shop, cell, queries)
        except Exception as error:  # a method's policy may raise anything
            return failure(cell.key, error, failures)
        return Outcome(cell.key, "ok")

    outcome = guard.contained(work, key=cell.key, failures=failures, **shop.patience(cell.fit))
    return found if outcome.status == "ok" else {"reason": outcome.reason}


def _line(shop: Workshop, cell: Cell, queries: Sequence[Query]) -> dict[str, Any]:
    with measured() as meter:
        policy = shop.open_policy(cell.fit, share=False)
        plain_ground = shop.ground("", share=False)
        prompts = [shop.benchmarks[query.benchmark].initial_prompt for query in queries]
        plain, write, answer = [], [], []
        policy.respond(queries[:2])  # warm up: what is made only once is not a cost per query
        for _ in range(REPEATS):
            start = _now()
            plain_ground.answer(queries, prompts)
            plain.append(_now() - start)
            written, answered = _times(policy, queries)
            write.append(written)
            answer.append(answered)
    shares = [one / other for one, other in zip(write, answer, strict=True)]
    low, _, high = quantiles(shares, n=4, method="inclusive")
    overheads = [(one + two) / base for one, two, base in zip(write, answer, plain, strict=True)]
    each = 1000 / len(queries)

    def write_all() -> None:
        prepared = policy.prepare(queries)
        if prepared.adapt is not None:
            with prepared.adapt(list(range(len(queries)))):
                pass

    devices = {lm.device for lm in (policy.ground.actor, policy.ground.generator) if lm is not None}
    return {
        "method": cell.fit.method,
        "benchmark": cell.benchmark,
        "seed": cell.fit.seed,
        "queries": len(queries),
        "repeats": REPEATS,
        "write_ms": f"{each * median(write):.3f}",
        "answer_ms": f"{each * median(answer):.3f}",
        "plain_ms": f"{each * median(plain):.3f}",
        "write_share": f"{median(shares):.4f}",
        "write_share_low": f"{low:.4f}",
        "write_share_high": f"{high:.4f}",
        "overhead": f"{median(overheads):.3f}",
        "write_bytes": sum(peak_allocated(write_all, device) for device in devices),
        "peak_memory_bytes": meter.peak_gpu_memory_bytes or meter.peak_memory_bytes,
        "device": str(plain_ground.actor.device),
    }


def write(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Write efficiency.csv."""
    write_csv(path, [COLUMNS, *([line[name] for name in COLUMNS] for line in lines)])
