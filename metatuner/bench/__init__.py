"""What per-query LoRA, the joint step and rollouts cost, as ratios of times measured interleaved in one process.

Models are of the Qwen2 architecture with random weights, made in memory. Every arm of a comparison is first checked to
compute the same numbers as the per-query LoRA (losses and gradients, or logits and completions), then all are timed in
turn, A B C A B C; a ratio is the median over rounds, with the quartiles.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported; its profiler reports to stderr otherwise

from metatuner.bench.report import run

__all__ = ["run"]
