"""Queries, what a policy prepares per query, and responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metatuner.harness.rows import Row

if TYPE_CHECKING:
    from metatuner.lm import LM, Adapt

Demo = tuple[str, str]
"""A demonstration: a query and the answer to imitate."""


@dataclass(frozen=True)
class Query:
    """A question to a policy, without the gold answer."""

    id: str
    benchmark: str
    text: str


@dataclass(frozen=True)
class Prepared:
    """What a policy prepares for N queries before the actor answers them."""

    prompts: Sequence[str]
    """N prompts."""
    demos: Sequence[Sequence[Demo]] | None = None
    """N sequences of demonstrations, oldest first; None: no query has any."""
    adapt: "Adapt | None" = None
    """Adapts the actor per query: `adapt(indices)` is a context manager in which a batch of queries is answered."""
    actor: "LM | None" = None
    """The actor as tuned by the policy; None: the actor as it is."""


@dataclass(frozen=True)
class Response:
    """A policy's answer to one query, with the prompt that was used."""

    prompt: str
    completion: str
    prompt_tokens: int
    completion_tokens: int
    truncated: bool
    """The completion reached the benchmark's limit of new tokens."""
    cut_tokens: int = 0
    """Tokens dropped from the start of the query, because the input did not fit into the model's window."""
    cut_demos: int = 0
    """Demonstrations dropped before any query tokens, for the same reason."""


def to_query(row: Row) -> Query:
    """The row as a policy sees it: without its answer."""
    return Query(row.id, row.benchmark, row.query)
