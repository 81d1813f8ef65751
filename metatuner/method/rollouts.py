"""D2: prompts to learn from. The paper's way samples rewrites, scores them by a task reward and keeps the best."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from metatuner import progress
from metatuner.lm import LM
from metatuner.method.config import WarmUpConfig
from metatuner.method.data import Example, Rewrite, draw_seeds
from metatuner.method.prompt_decoder import write_prompts

Reward = Callable[[list[int], list[str]], list[float]]
"""Given query indices and a prompt for each: the task reward (0 to 1) of the actor's answers under these prompts."""


@dataclass(frozen=True)
class RolloutStatistics:
    """How much choice the rollouts gave; all values are in 0..1."""

    mean: float
    """Mean reward of all rollouts."""
    best: float
    """Mean over queries of their best rollout's reward."""
    mixed: float
    """Share of queries with rollouts of different rewards."""
    kept: float
    """Share of queries that entered D2."""


def collect_rewrites(
    generator: LM,
    examples: Sequence[Example],
    reward: Reward,
    config: WarmUpConfig,
    *,
    seed: int,
    log: Callable[..., None],
) -> tuple[list[Rewrite], RolloutStatistics | None]:
    """D2, made in the way that `config.d2` names, and statistics if there were rollouts.

    `reward(indices into examples, prompts)` scores the rollouts; `expert` and `initial` never call it. The first m of n
    rollouts are the same for every n. D2 may be empty; the log's event counts its rows.
    """
    prompts, queries = [example.prompt for example in examples], [example.query for example in examples]
    if config.d2 in ("expert", "initial"):
        written = prompts if config.d2 == "initial" else sample_prompts(generator, examples, config, temperature=0.0)
        rewrites = [Rewrite(*row) for row in zip(prompts, queries, written, strict=True)]
        log(event="rollouts", queries=len(examples), d2=len(rewrites), way=config.d2)
        return rewrites, None
    draw_seed, *sample_seeds = draw_seeds(seed, 1 + config.rollouts)
    samples = [
        sample_prompts(generator, examples, config, temperature=config.rollout_temperature, seed=sample_seed)
        for sample_seed in progress.each(sample_seeds, "rollouts of each query")
    ]
    rollouts = list(zip(*samples, strict=True))
    rewards = score_rollouts(rollouts, reward)
    if config.d2 == "best":
        rewrites, statistics = select_best(
            prompts, queries, rollouts, rewards, above=config.reward_above, seed=draw_seed
        )
    else:
        rewrites, statistics = select_above(prompts, queries, rollouts, rewards, above=config.reward_above)
    log(event="rollouts", queries=len(examples), d2=len(rewrites), way=config.d2, **vars(statistics))
    return rewrites, statistics


def sample_prompts(
    generator: LM, examples: Sequence[Example], config: WarmUpConfig, *, temperature: float, seed: int = 0
) -> list[str]:
    """A rewrite for each example, of at most `config.max_prompt_tokens`; greedy at temperature 0."""
    return write_prompts(
        generator,
        [example.prompt for example in examples],
        [example.query for example in examples],
        max_prompt_tokens=config.max_prompt_tokens,
        temperature=temperature,
        seed=seed,
    )


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
        seed: draws among equally good rollouts; a rewrite sampled twice is twice as likely to be drawn.
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
    return kept, _statistics(rewards, above)


def select_above(
    prompts: Sequence[str],
    queries: Sequence[str],
    rollouts: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
    *,
    above: float,
) -> tuple[list[Rewrite], RolloutStatistics]:
    """Every distinct rollout with a reward above a threshold, per query and in the order of sampling."""
    kept = [
        Rewrite(prompt, query, text)
        for prompt, query, candidates, scores in zip(prompts, queries, rollouts, rewards, strict=True)
        for text in dict.fromkeys(text for text, score in zip(candidates, scores, strict=True) if score > above)
    ]
    return kept, _statistics(rewards, above)


def score_rollouts(rollouts: Sequence[Sequence[str]], reward: Reward) -> list[list[float]]:
    """The reward of each rollout, [queries][n]; a rewrite that one query got twice is scored once."""
    pairs = list(dict.fromkeys((index, text) for index, texts in enumerate(rollouts) for text in texts))
    scores = reward([index for index, _ in pairs], [text for _, text in pairs])
    known = dict(zip(pairs, scores, strict=True))
    return [[known[index, text] for text in texts] for index, texts in enumerate(rollouts)]


def _statistics(rewards: Sequence[Sequence[float]], above: float) -> RolloutStatistics:
    return RolloutStatistics(
        mean=mean(score for scores in rewards for score in scores),
        best=mean(max(scores) for scores in rewards),
        mixed=mean(min(scores) < max(scores) for scores in rewards),
        kept=sum(max(scores) > above for scores in rewards) / len(rewards),
    )
