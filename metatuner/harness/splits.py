"""Splits of a benchmark: `test` and `tune` are fixed; each seed redraws `train` and `dev` from the rest.

Rows that could leak are left out: no group is in two splits. A group is the normalised query (in Cosmos QA, the
context).
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metatuner.errors import UserError
from metatuner.files import write_json, write_text
from metatuner.harness.benchmarks import Benchmark, load_hub, load_rows
from metatuner.harness.rows import Row, read_rows, rows_to_text


@dataclass(frozen=True)
class Splits:
    """A benchmark's fixed splits, and the pool that train and dev rows are drawn from."""

    benchmark: str
    seed: int
    pool: tuple[Row, ...]
    tune: tuple[Row, ...]
    test: tuple[Row, ...]
    dropped: dict[str, int]
    """Train rows left out of the pool because they share a group with `test` or `tune`."""

    def need(self, *, train: int | None, dev: int) -> None:
        """`UserError` if the pool has fewer rows than requested (`train` None needs at least one)."""
        _have(self.benchmark, "train and dev", (train or 1) + dev, len(self.pool))

    def summary(self) -> str:
        """One line of counts."""
        left_out = ", ".join(f"{count} like {split}" for split, count in self.dropped.items() if count)
        counts = f"{len(self.test)} test rows, {len(self.tune)} tune rows, {len(self.pool)} to draw train and dev from"
        return counts + (f" (left out: {left_out})" if left_out else "")

    def write(self, folder: Path) -> None:
        """Write pool.jsonl, tune.jsonl, test.jsonl and, last, splits.json with ids, their hash and what is left out."""
        splits = {"pool": self.pool, "tune": self.tune, "test": self.test}
        for name, rows in splits.items():
            write_text(folder / f"{name}.jsonl", rows_to_text(rows))
        listing = {
            "benchmark": self.benchmark,
            "seed": self.seed,
            "dropped": self.dropped,
            "splits": {
                name: {"n": len(rows), "sha256": hash_ids(rows), "ids": [row.id for row in rows]}
                for name, rows in splits.items()
            },
        }
        write_json(folder / "splits.json", listing)


def draw_splits(
    benchmark: str,
    train_rows: Sequence[Row],
    test_rows: Sequence[Row],
    *,
    tune_rows: Sequence[Row] | None = None,
    tune: int,
    test: int | None,
    seed: int,
) -> Splits:
    """Draw the fixed splits; the same seed and rows give the same splits.

    Args:
        benchmark: the benchmark's id, for messages.
        train_rows: rows of the official train split; the pool is what remains of them.
        test_rows: rows that `test` is drawn from.
        tune_rows: rows that `tune` is drawn from; None: the train rows.
        tune: number of rows in the tune split.
        test: number of rows in the test split; None takes all.
        seed: seed of the draw.

    Raises:
        UserError: there are fewer rows than requested.
    """
    rng = random.Random(f"{benchmark} {seed}")
    wanted = len(test_rows) if test is None else test
    _have(benchmark, "test", max(wanted, 1), len(test_rows))
    drawn_test = _sample(test_rows, wanted, rng)
    test_groups = {row.group for row in drawn_test}
    candidates = [row for row in (train_rows if tune_rows is None else tune_rows) if row.group not in test_groups]
    _have(benchmark, "tune", tune, len(candidates))
    drawn_tune = _sample(candidates, tune, rng)
    tune_ids, tune_groups = {row.id for row in drawn_tune}, {row.group for row in drawn_tune}
    pool, dropped = [], {"test": 0, "tune": 0}
    for row in train_rows:
        if row.group in test_groups:
            dropped["test"] += 1
        elif row.group not in tune_groups:
            pool.append(row)
        elif tune_rows is not None or row.id not in tune_ids:
            dropped["tune"] += 1
    return Splits(benchmark, seed, tuple(pool), tuple(drawn_tune), tuple(drawn_test), dropped)


def draw_train_dev(
    pool: Path, train: int | None, dev: int, *, seed: int, benchmark: str
) -> tuple[list[Row], list[Row]]:
    """Draw train and dev rows from a pool that `Splits.write` wrote, in random order and with no group in both.

    Args:
        pool: the pool's file.
        train: number of train rows; None takes all that remain.
        dev: number of dev rows. They are drawn first, so that they do not depend on `train`.
        seed: seed of the draw.
        benchmark: the benchmark's id, for messages.

    Raises:
        UserError: the pool has fewer rows than requested.
    """
    rows = read_rows(pool)
    random.Random(seed).shuffle(rows)
    _have(benchmark, "dev", dev, len(rows))
    drawn_dev = rows[:dev]
    dev_groups = {row.group for row in drawn_dev}
    left = [row for row in rows[dev:] if row.group not in dev_groups]
    _have(benchmark, "train", train or 1, len(left))
    return left[:train], drawn_dev


def check_data(benchmark: Benchmark, files: Sequence[Path]) -> Iterator[str]:
    """Load a benchmark's train and test rows, verify every field, and describe them: counts, kinds, hashes.

    Args:
        benchmark: the benchmark to check.
        files: the local train and test files; empty: the Hugging Face Hub.

    Raises:
        UserError: says what is wrong with the first invalid row, or why the rows cannot be loaded.
    """
    loaded: dict[str, list[Row]] = {}
    for index, split in enumerate(("train", "test")):
        rows = load_rows(benchmark, files[index]) if files else load_hub(benchmark, split)
        loaded[split] = rows
        place = str(files[index]) if files else _hub_place(benchmark, split)
        yield f"{benchmark.id} {split}: {len(rows)} rows from {place}"
        if not files and benchmark.hub is not None:
            published = benchmark.hub.rows[split]
            verdict = "as published" if len(rows) == published else f"NOT the {published} published"
            yield f"{benchmark.id} {split}: {len(rows)} rows are {verdict}"
        kinds = Counter(row.kind for row in rows)
        yield f"{benchmark.id} {split}: kinds {', '.join(f'{kind}: {count}' for kind, count in sorted(kinds.items()))}"
        content = hashlib.sha256(rows_to_text(rows).encode()).hexdigest()
        yield f"{benchmark.id} {split}: sha256 of ids {hash_ids(rows)}, of rows {content}"
    test_groups = {row.group for row in loaded["test"]}
    shared = sum(row.group in test_groups for row in loaded["train"])
    yield f"{benchmark.id}: {shared} train rows share a query or context with test rows and will be left out"


def hash_ids(rows: Iterable[Row]) -> str:
    """SHA-256 of the rows' ids, one per line, in order."""
    return hashlib.sha256("".join(f"{row.id}\n" for row in rows).encode()).hexdigest()


def _hub_place(benchmark: Benchmark, split: str) -> str:
    hub = benchmark.hub
    return (
        "its lm-eval task"
        if hub is None
        else f"the Hub ({hub.path}, {hub.train if split == 'train' else hub.test} split)"
    )


def _sample(rows: Sequence[Row], count: int, rng: random.Random) -> list[Row]:
    """A random sample, in the order of `rows`."""
    return [rows[index] for index in sorted(rng.sample(range(len(rows)), count))]


def _have(benchmark: str, split: str, asked: int, there: int) -> None:
    if asked > there:
        raise UserError(
            f"{benchmark}: {split} asks for {asked} rows, {there} are there; lower benchmarks.{benchmark}.sizes "
            "in the config or give more rows"
        )
