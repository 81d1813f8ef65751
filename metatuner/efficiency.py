"""What a policy's prompts and parameters cost a query: time and memory for writing them, time for answering with them.

Harness policies write for all queries first and then ask the actor through the ground, once. So what passes before and
around that call is writing; entering a batch's adaptation (which makes LoRA factors) is writing too.
"""

import csv
import io
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from metatuner import progress
from metatuner.errors import UserError
from metatuner.files import write_text
from metatuner.guard import Overdue, deadline
from metatuner.harness.fitting import measured
from metatuner.harness.ground import Ground, to_query
from metatuner.harness.policy import Query, Response, load_policy
from metatuner.harness.rows import read_rows
from metatuner.plan import Cell
from metatuner.usage import peak_allocated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from metatuner.lm import Adapt
    from metatuner.steps import Workshop

QUERIES = 32
"""Tune rows a policy is timed on: the first ones, a batch."""
REPEATS = 3
"""Rounds; plain actor and policy take turns."""
COLUMNS = (
    "method,benchmark,seed,queries,repeats,write_ms,answer_ms,plain_ms,write_share,write_share_low,write_share_high,"
    "overhead,write_bytes,peak_memory_bytes,device"
).split(",")


def _finish_device_work() -> None:
    """Wait for what a GPU was given to do: the call that starts a kernel returns before it is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Unasked(UserError):
    """A policy that answers without the ground's actor, so that writing and answering cannot be told apart."""


class Written(BaseException):
    """Ends a policy's `respond` where it asks the actor."""


class TimedGround(Ground):
    """Counts the seconds in which the actor answers; where told so, `respond` ends as it would begin to."""

    answering: float = 0.0
    writing_only: bool = False
    """Raise `Written` in place of an answer, the first batch's adaptation entered."""

    def answer(
        self, queries: Sequence[Query], prompts: str | Sequence[str], *, adapt: "Adapt | None" = None, **options: Any
    ) -> list[Response]:
        if self.writing_only:
            with nullcontext() if adapt is None else adapt(list(range(len(queries)))):
                raise Written
        entering = 0.0

        def timed(batch: list[int]) -> AbstractContextManager[Any]:
            assert adapt is not None
            return around(adapt(batch))

        @contextmanager
        def around(context: AbstractContextManager[Any]) -> "Iterator[Any]":
            nonlocal entering
            _finish_device_work()
            start = time.perf_counter()
            with context as inside:
                _finish_device_work()
                entering += time.perf_counter() - start
                yield inside

        _finish_device_work()
        start = time.perf_counter()
        found = super().answer(queries, prompts, adapt=None if adapt is None else timed, **options)
        self.answering += time.perf_counter() - start - entering
        return found


def measure(shop: "Workshop", cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One line a cell: median times of its policy on tune rows of its benchmark, in milliseconds a query.

    `write_share` is writing over answering, with its quartiles over rounds; `overhead` writing and answering over the
    plain actor's answering under p~; `write_bytes` the most that writing for all the queries allocates at a time beyond
    the models. A policy that cannot be timed has no line, and the log says why.
    """
    lines = []
    countdown = progress.Countdown(len(cells), "policies timed")
    for cell in cells:
        rows = read_rows(shop.layout.data(cell.benchmark) / "tune.jsonl")[:QUERIES]
        if not rows:
            raise UserError(f"benchmarks.{cell.benchmark}.sizes.tune: no tune rows to time policies on; set it above 0")
        try:
            with deadline(shop.patience(cell.fit.method)["seconds"]):
                lines.append(_line(shop, cell, [to_query(row) for row in rows]))
        except (Exception, Overdue, SystemExit) as error:  # a method's policy may raise anything
            told = " ".join(str(error).split()) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            progress.say(f"{cell.fit.method} on {cell.benchmark} is not timed: {told}")
        countdown.step()
    return lines


def _line(shop: "Workshop", cell: Cell, queries: Sequence[Query]) -> dict[str, Any]:
    with measured() as meter:
        ground = shop.ground(cell.fit.generator, share=False, ground_type=TimedGround)
        policy = load_policy(shop.layout.fit(cell.fit.key) / "policy", ground)
        plain_ground = shop.ground("", share=False)
        prompts = [shop.benchmarks[query.benchmark].initial_prompt for query in queries]
        plain, write, answer = [], [], []
        policy.respond(queries[:2])  # what is made once is no cost of a query
        for _ in range(REPEATS):
            start = time.perf_counter()
            plain_ground.answer(queries, prompts)
            plain.append(time.perf_counter() - start)
            ground.answering = 0.0
            start = time.perf_counter()
            policy.respond(queries)
            total = time.perf_counter() - start
            answer.append(ground.answering)
            write.append(total - ground.answering)
    if not min(answer):
        raise Unasked("it answers without `ground.answer`; ask the actor through the ground")
    shares = [one / other for one, other in zip(write, answer, strict=True)]
    low, _, high = quantiles(shares, n=4, method="inclusive")
    overheads = [(one + two) / base for one, two, base in zip(write, answer, plain, strict=True)]
    each = 1000 / len(queries)
    ground.writing_only = True

    def write_all() -> None:
        with suppress(Written):
            policy.respond(queries)

    devices = {lm.device for lm in (ground.actor, ground.generator) if lm is not None}
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


def write(lines: Sequence[dict[str, Any]], path: "Path") -> None:
    """Write efficiency.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())
