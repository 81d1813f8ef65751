"""The measured models, and the least that one pass of a model must compute or read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Union

from metatuner.errors import UserError


@dataclass(frozen=True)
class Shape:
    """A model and what it reads; lengths in tokens."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int
    batch: int
    """Queries, each with its own factors."""
    prompt: int
    completion: int
    """Tokens that are trained on."""
    new: int
    """Tokens that are written in generation."""
    rank: int = 8
    actor: Union["Shape", None] = None
    """The actor of a joint step, if its shape differs from the generator's shape."""

    def with_sizes(self, width: int | None, layers: int | None, batch: int | None, rank: int | None) -> "Shape":
        """The shape and its actor with other sizes; a new width keeps head width and feed-forward proportion."""
        actor = self.actor and self.actor.with_sizes(width, layers, batch, rank)
        shape = replace(
            self, layers=layers or self.layers, batch=batch or self.batch, rank=rank or self.rank, actor=actor
        )
        if width is None:
            return shape
        head = self.width // self.heads
        if width % head:
            raise UserError(f"--width {width} is no multiple of {head}, the width of a head; choose another")
        heads = width // head
        groups = self.key_value_heads if heads % self.key_value_heads == 0 else heads
        feed_forward = self.feed_forward * width // self.width
        return replace(shape, width=width, heads=heads, key_value_heads=groups, feed_forward=feed_forward)

    @property
    def key_value_width(self) -> int:
        """Width of the keys, and of the values, of one token in one layer."""
        return self.width // self.heads * self.key_value_heads

    @property
    def linears(self) -> int:
        """Weights of the linears of all layers: q and o, k and v, and the three of the feed-forward layer."""
        return self.layers * self.width * (2 * self.width + 2 * self.key_value_width + 3 * self.feed_forward)

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.width * self.vocabulary


QWEN_3B = Shape(2048, 36, 16, 2, 11008, 151936, batch=32, prompt=256, completion=256, new=64)
SHAPES = {
    "nano": Shape(128, 4, 4, 4, 320, 686, batch=32, prompt=48, completion=16, new=48),
    "d512": Shape(512, 2, 8, 8, 1408, 2048, batch=8, prompt=96, completion=32, new=32),
    "3b": QWEN_3B,
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, batch=32, prompt=256, completion=256, new=64, actor=QWEN_3B),
}
"""nano: the nano world's actor; d512: the bars' least width; 3b, 7b: Qwen2.5's sizes, 7b with the paper's actor."""


def training_flop(shape: Shape, lengths: Sequence[int], predicted: int, factors: int = 0) -> float:
    """The least FLOP of a forward and backward pass of a frozen model, or of one trained through a LoRA.

    With N weights in the linears, H in the LM head, F factors, L layers of width d, and T = sum of n tokens read:

        4 (T N + predicted H)  +  6 T F  +  6 L d sum n^2

    A product of [a, b] and [b, c] is 2 a b c. Frozen weights are in two products: forward, and backward through the
    activations. Factors are also in a third product, for their gradient. Causal attention is two products of half
    n x n x d forward and four backward. Padding is not counted.

    Args:
        lengths: n, the tokens read of each row.
        predicted: positions at which the LM head runs.
        factors: F, how many numbers of LoRA factors a token meets.
    """
    tokens = sum(lengths)
    attention = 6 * shape.layers * shape.width * sum(length**2 for length in lengths)
    return 4 * (tokens * shape.linears + predicted * shape.head) + 6 * tokens * factors + attention


def decoding_bytes(shape: Shape, number_size: int, cached: int = 0, factors: int = 0) -> float:
    """The least bytes that a decoding step reads for the batch: N + H + batch (F + 2 L cached d_kv) numbers.

    These are the weights of linears and LM head, each row's factors, and the keys and values of its cached tokens.

    Args:
        number_size: bytes of a number.
        cached: mean tokens per row.
        factors: F, how many numbers the LoRA factors of a row have.
    """
    cache = 2 * shape.layers * cached * shape.key_value_width
    return number_size * (shape.linears + shape.head + shape.batch * (factors + cache))
