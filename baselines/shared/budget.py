"""The budget checks that methods make before each step."""

from collections.abc import Sequence

from metatuner.harness.budget import MARGIN
from metatuner.harness.lab import Lab

AHEAD = 16
"""Rows in the first batch of a bootstrap. They are answered before it is known how many it needs."""


def affordable(lab: Lab, *, answers: int, proposals: int, proposal_tokens: int) -> bool:
    """Whether the budget covers these numbers of answers and proposals.

    Tokens: if each has its maximum length. Compute: if each costs `MARGIN` times what one of the dearest batch did.
    """
    longest = max(lab.benchmark(name).max_new_tokens for name in lab.trained_on)
    tokens = answers * longest + proposals * proposal_tokens
    tflop = answers * lab.budget.tflop_per_call("actor") + proposals * lab.budget.tflop_per_call("generator")
    needed = {"lm_calls": answers + proposals, "generated_tokens": tokens, "tflop": MARGIN * tflop}
    return all(lab.budget.left(what) >= count for what, count in needed.items())


def covers_step(
    lab: Lab, role: str, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, scored: int = 0, trained: int = 1
) -> bool:
    """Whether the budget covers passes of a model over pairs of token ids: read, and written.

    Args:
        scored: passes without a gradient.
        trained: passes with one.
    """
    tokens = sum(len(read) + len(written) for read, written in pairs)
    needed = {
        "lm_calls": scored * len(pairs),
        "trained_tokens": trained * tokens,
        "tflop": lab.budget.tflop(role, read=scored * tokens, trained=trained * tokens),
    }
    return all(lab.budget.left(what) >= count for what, count in needed.items())
