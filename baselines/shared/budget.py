"""What a search over prompts asks before each step."""

from metatuner.harness.lab import Lab

AHEAD = 16
"""Rows of a bootstrap that are answered before it is known how many it will ask for: one batch."""


def affordable(lab: Lab, *, answers: int, proposals: int, proposal_tokens: int) -> bool:
    """Whether the budget covers so many answers and proposals, each as long as it may get."""
    longest = max(lab.benchmark(name).max_new_tokens for name in lab.trained_on)
    tokens = answers * longest + proposals * proposal_tokens
    return lab.budget.left("lm_calls") >= answers + proposals and lab.budget.left("generated_tokens") >= tokens
