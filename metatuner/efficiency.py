"""What a policy's prompts and parameters cost a query: time for writing them, and for answering with them.

Harness policies write for all queries first and then ask the actor through the ground, once. So what passes before and
around that call is writing; entering a batch's adaptation (which makes LoRA factors) is writing too.
"""

import csv
import io
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from metatuner import progress
from metatuner.errors import UserError
from metatuner.files import write_text
from metatuner.harness.fitting import measured
from metatuner.harness.ground import Ground, to_query
from metatuner.harness.policy import Query, Response
from metatuner.harness.rows import read_rows
from metatuner.plan import Cell

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
    "overhead,peak_memory_bytes,device"
).split(",")


class TimedGround(Ground):
    """Counts the seconds in which the actor answers."""

    answering: float = 0.0

    def answer(
        self, queries: Sequence[Query], prompts: str | Sequence[str], *, adapt: "Adapt | None" = None, **options: Any
    ) -> list[Response]:
        entering = 0.0

        def timed(batch: list[int]) -> AbstractContextManager[Any]:
            assert adapt is not None
            return around(adapt(batch))

        @contextmanager
        def around(context: AbstractContextManager[Any]) -> "Iterator[Any]":
            nonlocal entering
            start = time.perf_counter()
            with context as inside:
                entering += time.perf_counter() - start
                yield inside

        start = time.perf_counter()
        found = super().answer(queries, prompts, adapt=None if adapt is None else timed, **options)
        self.answering += time.perf_counter() - start - entering
        return found


def measure(shop: "Workshop", cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One line a cell: median times of its policy on tune rows of its benchmark, in milliseconds a query.

    `write_share` is writing over answering, with its quartiles over rounds; `overhead` writing and answering over the
    plain actor's answering under p~.
    """
    lines = []
    countdown = progress.Countdown(len(cells), "policies timed")
    for cell in cells:
        rows = read_rows(shop.layout.data(cell.benchmark) / "tune.jsonl")[:QUERIES]
        if not rows:
            raise UserError(f"benchmarks.{cell.benchmark}.sizes.tune: no tune rows to time policies on; set it above 0")
        queries = [to_query(row) for row in rows]
        with measured() as meter:
            policy = shop.open_policy(cell.fit, share=False, ground_type=TimedGround)
            plain_ground = shop.ground("", share=False)
            prompts = [shop.benchmarks[query.benchmark].initial_prompt for query in queries]
            plain, write, answer = [], [], []
            policy.respond(queries[:2])  # what is made once is no cost of a query
            for _ in range(REPEATS):
                start = time.perf_counter()
                plain_ground.answer(queries, prompts)
                plain.append(time.perf_counter() - start)
                policy.ground.answering = 0.0
                start = time.perf_counter()
                policy.respond(queries)
                total = time.perf_counter() - start
                answer.append(policy.ground.answering)
                write.append(total - policy.ground.answering)
        shares = [one / other for one, other in zip(write, answer, strict=True)]
        low, _, high = quantiles(shares, n=4, method="inclusive")
        overheads = [(one + two) / base for one, two, base in zip(write, answer, plain, strict=True)]
        each = 1000 / len(queries)
        lines.append(
            {
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
                "peak_memory_bytes": meter.peak_gpu_memory_bytes or meter.peak_memory_bytes,
                "device": str(plain_ground.actor.device),
            }
        )
        countdown.step()
    return lines


def write(lines: Sequence[dict[str, Any]], path: "Path") -> None:
    """Write efficiency.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())
