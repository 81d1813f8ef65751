"""What a method's fit does, counted from its settings: what `metatuner cost` predicts from.

Each method counts its own loop (`Method.loop`), in sequences that pass the actor and the generator.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, Self


@dataclass(frozen=True)
class Rows:
    """Rows that a fit sees."""

    train: float
    dev: float

    @property
    def judging(self) -> float:
        """Rows that choose between candidates: dev rows, or train rows where there are none."""
        return self.dev or self.train


@dataclass(frozen=True)
class Shares:
    """How much of what is sampled teaches."""

    right: float
    """Of answers: those that are right."""
    mixed: float
    """Of train rows: those with rollouts of different reward."""


@dataclass(frozen=True)
class Counts:
    """Counts that add up and multiply, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def times(self, factor: float) -> Self:
        """All counts times a factor."""
        return type(self)(*(getattr(self, each.name) * factor for each in fields(self)))


@dataclass(frozen=True)
class Sequences(Counts):
    """How many sequences pass the models in a fit or a cell."""

    answers: float = 0.0
    """Written by the actor."""
    answers_read: float = 0.0
    """Answers that the actor scores: prompt and answer read."""
    actor_trained: float = 0.0
    """Prompt and target, or answer, forward and backward."""
    rewrites: float = 0.0
    """Prompts written by the generator."""
    drafts: float = 0.0
    """Prompts of a few tokens that a policy on the generator writes from nothing."""
    draft_tokens: float = 0.0
    """Tokens of all drafts."""
    encoded: float = 0.0
    """Requests that the meta encoder reads, forward and backward; counted as if it had all layers of the generator."""
    generator_trained: float = 0.0
    """Request and rewrite, forward and backward."""

    @property
    def train(self) -> bool:
        """Whether any weights are trained."""
        return bool(self.actor_trained or self.generator_trained or self.encoded)


@dataclass(frozen=True)
class Shape:
    """Weights and widths of a language model."""

    body: float
    head: float
    embedding: float
    layers: int
    hidden: int
    intermediate: int
    keys: int

    @property
    def weights(self) -> float:
        """All of them."""
        return self.body + self.head + self.embedding

    def lora(self, rank: int) -> float:
        """Weights of a LoRA on every linear of the decoder."""
        return self.layers * rank * sum(sum(side) for side in self.linears.values())

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Widths of a layer's linears."""
        h, i, k = self.hidden, self.intermediate, self.keys
        attention = {"q_proj": (h, h), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (h, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


@dataclass(frozen=True)
class Loop:
    """One fit, without the fits that it builds on, and what its policy then does for each query."""

    sequences: Sequences = Sequences()
    shots: float = 0.0
    """Demonstrations shown before each query, as many as the window takes."""
    own_answers: bool = False
    """The actor is trained on its own answers; else on targets."""
    writes_prompts: bool = False
    """The policy writes a prompt per query."""
    actor_rank: int = 0
    """Rank of a LoRA that is put on the actor; 0 for none."""
    generator: Literal["untrained", "lora", "full"] = "untrained"
    """What of the generator is trained."""
    generator_rank: int = 0
    """Rank of a LoRA on the generator."""
    more_weights: Callable[[Shape, Shape], float] | None = None
    """Weights that are trained beside LoRAs, from the shapes of actor and generator."""
    keeps_required: bool = False
    """What the required fits have trained is part of the policy, and is trained on where this fit trains."""
    merged_actor: bool = False
    """The actor is held twice: with its LoRA merged, too."""
