"""Counts of what a method's fit does, derived from its settings. `metatuner cost` predicts from these counts.

Each method counts its own loop (`Method.loop`), in sequences that the actor and the generator process.
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
        """Rows used to choose between candidates: dev rows, or train rows if there are no dev rows."""
        return self.dev or self.train


@dataclass(frozen=True)
class Shares:
    """Shares of the samples that give a training signal."""

    right: float
    """Share of answers that are right."""
    mixed: float
    """Share of train rows with rollouts of different reward."""


@dataclass(frozen=True)
class Counts:
    """Counts that can be added and scaled, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def times(self, factor: float) -> Self:
        """All counts, multiplied by a factor."""
        return type(self)(*(getattr(self, each.name) * factor for each in fields(self)))


@dataclass(frozen=True)
class Sequences(Counts):
    """How many sequences the models process in a fit or a cell."""

    answers: float = 0.0
    """Answers that the actor writes."""
    answers_read: float = 0.0
    """Answers that the actor scores: it reads prompt and answer."""
    actor_trained: float = 0.0
    """Sequences of prompt and target (or answer) that train the actor, forward and backward."""
    rewrites: float = 0.0
    """Prompts that the generator writes."""
    drafts: float = 0.0
    """Prompts of a few tokens that a policy on the generator writes from scratch."""
    draft_tokens: float = 0.0
    """Tokens of all drafts."""
    encoded: float = 0.0
    """Requests that the meta encoder reads, forward and backward; counted as if it had all layers of the generator."""
    generator_trained: float = 0.0
    """Sequences of request and rewrite that train the generator, forward and backward."""

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
        """Number of all weights."""
        return self.body + self.head + self.embedding

    def lora(self, rank: int) -> float:
        """Number of weights of a LoRA on every linear layer of the decoder."""
        return self.layers * rank * sum(sum(side) for side in self.linears.values())

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output widths of the linear layers in one decoder layer."""
        h, i, k = self.hidden, self.intermediate, self.keys
        attention = {"q_proj": (h, h), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (h, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


@dataclass(frozen=True)
class Loop:
    """What one fit does, without the fits that it builds on, and what its policy then does per query."""

    sequences: Sequences = Sequences()
    shots: float = 0.0
    """Demonstrations before each query, at most as many as fit into the window."""
    own_answers: bool = False
    """True: the actor is trained on its own answers. False: it is trained on targets."""
    writes_prompts: bool = False
    """Whether the policy writes a prompt per query."""
    actor_rank: int = 0
    """Rank of a LoRA on the actor; 0 for none."""
    generator: Literal["untrained", "lora", "full"] = "untrained"
    """Which part of the generator is trained."""
    generator_rank: int = 0
    """Rank of a LoRA on the generator."""
    more_weights: Callable[[Shape, Shape], float] | None = None
    """Number of weights trained in addition to LoRAs, from the shapes of actor and generator."""
    keeps_required: bool = False
    """Whether the policy keeps the weights that required fits trained. If this fit trains, it trains them further."""
    batch: float = 0.0
    """Sequences that pass a model at once with gradient: what a training step holds activations of."""
    merged_actor: bool = False
    """Whether the actor is held in memory twice, once with its LoRA merged."""
