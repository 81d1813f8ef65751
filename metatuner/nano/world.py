"""Worlds: the raw rows of the four nano benchmarks, split by the hash of what they ask."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from metatuner.errors import UserError, suggest
from metatuner.files import write_lines
from metatuner.harness.rows import normalise_text
from metatuner.nano.problems import BENCHMARKS, KINDS, SHIFTED, UNSHIFTED, Problem, Style, problem

_PARTS = {
    "pretraining": range(8),
    "train": range(8, 12),
    "tune": range(12, 13),
    "test": range(13, 15),
    "audit": range(15, 16),
}
"""Split -> its own sixteenths of the space of queries, so that no two splits can share a query."""
SPLITS = tuple(part for part in _PARTS if part != "pretraining")
_PATIENCE = 400
"""Draws per wanted row before a split counts as exhausted."""


@dataclass(frozen=True)
class World:
    """One random draw of the language: of its rows, and of the pretraining of its models."""

    seed: int = 0
    null: bool = False
    """A world where prompts do not matter and nothing shifts, so that no method can be better than another."""

    @property
    def style(self) -> Style:
        """How downstream rows are written."""
        return UNSHIFTED if self.null else SHIFTED


def in_split(item: Problem, split: str) -> bool:
    """Whether a query falls into a split (or into "pretraining"), by the hash of its group."""
    digest = hashlib.sha256(normalise_text(item.group).encode()).digest()
    return digest[0] % 16 in _PARTS[split]


def problems(world: World, benchmark: str, split: str, count: int) -> list[Problem]:
    """`count` different downstream problems of a split; `UserError` for unknown names or if there are too few."""
    if benchmark not in BENCHMARKS:
        raise UserError(f"nano world: unknown benchmark {benchmark!r}; {suggest(benchmark, BENCHMARKS)}")
    if split not in SPLITS:
        raise UserError(f"nano world: unknown split {split!r}; {suggest(split, SPLITS)}")
    random = Random(f"{world.seed} {benchmark} {split}")
    found: dict[str, Problem] = {}
    for _ in range(_PATIENCE * count):
        if len(found) == count:
            break
        item = problem(random, benchmark, world.style)
        if in_split(item, split):
            found.setdefault(normalise_text(item.query), item)
    if len(found) < count:
        raise UserError(
            f"nano world: {benchmark} has about {len(found)} different {split} queries, {count} asked; ask for fewer"
        )
    return list(found.values())


def raw_rows(world: World, benchmark: str, split: str, count: int) -> list[dict[str, Any]]:
    """The first `count` raw rows of a split, in the benchmark's local schema plus `kind` and `glosses`.

    A larger `count` extends a smaller one.
    """
    return [
        {
            "id": f"{split}-{number:05d}",
            **item.raw,
            "kind": KINDS[benchmark][item.kind],
            "glosses": [list(pair) for pair in item.glosses],
        }
        for number, item in enumerate(problems(world, benchmark, split, count))
    ]


def write_rows(world: World, out_dir: Path, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Write `out_dir/<benchmark>/<split>.jsonl` for every entry of `sizes`: benchmark -> split -> rows."""
    for benchmark, counts in sizes.items():
        for split, count in counts.items():
            write_lines(out_dir / benchmark / f"{split}.jsonl", raw_rows(world, benchmark, split, count))
