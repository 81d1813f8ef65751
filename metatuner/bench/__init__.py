"""The costs of per-query LoRA, the joint step and rollouts, as ratios of times measured interleaved in one process.

Models have the Qwen2 architecture and random weights, and are made in memory. First, every arm of a comparison must
compute the same numbers as the per-query LoRA (losses and gradients, or logits and completions). Then all arms are
timed in turn, A B C A B C. A ratio is the median over rounds, with the quartiles.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch reads it at import; else its profiler reports to stderr

from metatuner.bench.report import run

__all__ = ["run"]
