"""The budget check that a search over prompts makes before each step."""

from metatuner.harness.lab import Lab

AHEAD = 16
"""Rows in the first batch of a bootstrap. They are answered before it is known how many it needs."""


def affordable(lab: Lab, *, answers: int, proposals: int, proposal_tokens: int) -> bool:
    """Whether the budget covers these numbers of answers and proposals, each of maximum length."""
    longest = max(lab.benchmark(name).max_new_tokens for name in lab.trained_on)
    tokens = answers * longest + proposals * proposal_tokens
    return lab.budget.left("lm_calls") >= answers + proposals and lab.budget.left("generated_tokens") >= tokens
