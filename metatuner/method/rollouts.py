"""D2 from rollouts: rewrites sampled for each query, scored by a task reward, the best kept."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from metatuner.method.data import Rewrite

Reward = Callable[[list[int], list[str]], list[float]]
"""Given query indices and a prompt for each: the task reward (0 to 1) of the actor's answers under these prompts."""


@dataclass(frozen=True)
class RolloutStatistics:
    """How much there was to choose from; all in 0..1."""

    mean: float
    """Mean reward of all rollouts."""
    best: float
    """Mean over queries of their best rollout's reward."""
    mixed: float
    """Share of queries whose rollouts were not all rewarded alike."""
    kept: float
    """Share of queries that entered D2."""


def select_best(
    prompts: Sequence[str],
    queries: Sequence[str],
    rollouts: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
    *,
    above: float,
    seed: int,
) -> tuple[list[Rewrite], RolloutStatistics]:
    """Best of n by reward.

    Args:
        prompts: p~ of each query.
        rollouts: [queries][n] rewrites.
        rewards: [queries][n], each 0 to 1.
        above: a query enters D2 if its best reward is above this.
        seed: draws among equally good rollouts; one sampled twice is twice as likely to be drawn.
    """
    draw = random.Random(seed)
    kept = []
    for prompt, query, candidates, scores in zip(prompts, queries, rollouts, rewards, strict=True):
        best = max(scores)
        # Drawn for every query, so that one query's rewards do not shift the draws of the next ones.
        place = draw.random()
        ties = [text for text, score in zip(candidates, scores, strict=True) if score == best]
        if best > above:
            kept.append(Rewrite(prompt, query, ties[int(place * len(ties))]))
    statistics = RolloutStatistics(
        mean=mean(score for scores in rewards for score in scores),
        best=mean(max(scores) for scores in rewards),
        mixed=mean(min(scores) < max(scores) for scores in rewards),
        kept=len(kept) / len(queries),
    )
    return kept, statistics


def score_rollouts(rollouts: Sequence[Sequence[str]], reward: Reward) -> list[list[float]]:
    """The reward of each rollout, [queries][n]; a rewrite that one query got twice is scored once."""
    pairs = list(dict.fromkeys((index, text) for index, texts in enumerate(rollouts) for text in texts))
    scores = reward([index for index, _ in pairs], [text for _, text in pairs])
    known = dict(zip(pairs, scores, strict=True))
    return [[known[index, text] for text in texts] for index, texts in enumerate(rollouts)]
