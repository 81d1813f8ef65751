"""Sizes, training and data mixtures of the nano models. Nothing here needs torch, so that keys do not need it."""

from dataclasses import dataclass, replace

from metatuner.errors import UserError, suggest


@dataclass(frozen=True)
class Recipe:
    """Size and training of one model."""

    width: int
    layers: int
    feed_forward: int
    steps: int
    learning_rate: float
    copy_steps: int
    """Batches of copying only, before `steps`."""
    heads: int = 4
    batch: int = 24
    window: int = 2048
    seed: int = 0
    """Offset of the streams, so that models of one world differ."""


@dataclass(frozen=True)
class ActorMix:
    """Shares of the actor's pretraining rows."""

    drills: tuple[tuple[float, float], ...] = ((0.15, 0.9), (0.5, 0.35), (1.0, 0.12))
    """(up to this part of training, share of drills)."""
    arithmetic_only_after: float = 0.1
    """From this part of training on, most drills are arithmetic."""
    benchmarks: tuple[float, ...] = (1.2, 1.45, 1.7, 0.55)
    """Weights of BENCHMARKS; hotpotqa is the hardest to learn."""
    glossed: tuple[float, ...] = (0.5, 0.5, 0.6, 0.4)
    """Share of rows with new words that only a gloss explains, by benchmark."""
    initial_prompt: float = 0.15
    own_clause: float = 0.84
    other_clause: float = 0.08
    """The rest has no format clause."""
    direct: tuple[float, ...] = (2.5, 2.5, 8.0, 5.0)
    """Weight of the direct family by benchmark; each reasoning family has weight 3, the vague family has 1."""
    demonstrations: float = 0.09
    followed: float = 0.7
    """Share of rows with demonstrations in which the answer follows them, whatever the instruction says."""
    noise: float = 0.02
    """Chance that a reasoning family's rationale and early stop are swapped."""


@dataclass(frozen=True)
class GeneratorMix:
    """Shares of the generators' pretraining rows."""

    spotting: tuple[float, float] = (0.35, 0.1)
    """Share of drills on spotting new words among known ones: in the first half of training, in the second half."""
    synonyms: tuple[float, float] = (0.6, 0.1)
    """Share of drills on word meanings among the remaining rows: in the first 15 % of training, afterwards."""
    rewrites: float = 0.4
    """Share of instructed rows that start from another instruction than the initial prompt."""
    kept: float = 0.6
    """Chance that a rewrite keeps the reasoning family it starts from."""
    own_clause: float = 0.85
    gloss: float = 0.75
    """Share of queries with rare new words that get a gloss."""
    wrong_gloss: float = 0.2
    """Share of glosses with one meaning wrong, on purpose."""


ACTOR_MIX, GENERATOR_MIX = ActorMix(), GeneratorMix()

_GENERATOR = Recipe(width=96, layers=8, feed_forward=256, steps=650, learning_rate=6e-3, copy_steps=50, seed=1)
RECIPES = {
    "actor": Recipe(width=128, layers=4, feed_forward=320, steps=2050, learning_rate=8e-3, copy_steps=70),
    "generator": _GENERATOR,
    "generator_small": replace(_GENERATOR, layers=4, seed=2),
}


def get_recipe(role: str) -> Recipe:
    """The recipe of a role; `UserError` if there is none."""
    if role not in RECIPES:
        raise UserError(f"nano world: no model is called {role!r}; {suggest(role, RECIPES)}")
    return RECIPES[role]
