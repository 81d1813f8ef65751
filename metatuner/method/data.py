"""The two data sets of the paper's loss: D1 (task pairs) and D2 (queries with a prompt to learn)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A row of D1, with its initial prompt."""

    prompt: str
    """p~, which the generator rewrites."""
    query: str
    """x."""
    target: str
    """y, the completion to train on."""


@dataclass(frozen=True)
class Rewrite:
    """A row of D2."""

    prompt: str
    """p~."""
    query: str
    """x."""
    rewrite: str
    """p, the prompt to write for this query."""


def shuffled_batches(rows: Sequence[T], size: int, seed: int) -> Iterator[list[T]]:
    """Endless batches: each pass over the rows has a new order, and its last batch may be smaller."""
    order = random.Random(seed)
    while True:
        shuffled = order.sample(list(rows), len(rows))
        for start in range(0, len(shuffled), size):
            yield shuffled[start : start + size]


def draw_seeds(seed: int, count: int) -> list[int]:
    """`count` integer seeds derived from one; a longer list begins with the shorter one."""
    stream = random.Random(seed)
    return [stream.getrandbits(63) for _ in range(count)]
