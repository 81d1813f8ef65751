"""Bytes of memory that a fit or an evaluation holds, from the shapes of its models and the rows of its batches."""

from collections.abc import Iterable, Mapping

from metatuner.cost.assumptions import Lengths
from metatuner.cost.jobs import Job
from metatuner.harness.loop import Loop, Shape

ADAPTER_BYTES, TRAINED_BYTES = 4, 16
"""Bytes per trained weight: on disk, and in training with gradient and AdamW's moments."""
LONGEST = 2.5
"""The longest row of a batch over the mean row. Assumed."""
KEPT_HIDDEN, KEPT_INTERMEDIATE = 9, 4
"""Values that a backward pass keeps per token and decoder layer, in multiples of the layer's two widths."""
VALUE_BYTES = 4
"""Bytes of such a value; in bfloat16 many are kept in float32 too."""
LOGIT_BYTES = 16
"""Per trained token and word of the vocabulary: logits, their softmax, and gradients."""
SPARE = 1.6
"""What the allocator holds in a training step, over what must be kept at once."""
READ_HIDDEN, READ_INTERMEDIATE = 6, 3
"""Values that reading without gradient holds per token, in multiples of a layer's two widths."""


def model_bytes(job: Job, shapes: Mapping[str, Shape], dtype_bytes: int) -> float:
    """Bytes of a fit's models, their copies, and trained weights with gradients and AdamW's moments.

    `shapes` are those of `actor` and, if the fit has one, of `generator`.
    """
    actor, generator, trained = shapes["actor"], shapes.get("generator"), 0.0
    for part in job.parts if (job.loop or Loop()).sequences.train else ():
        trained += TRAINED_BYTES * actor.lora(part.actor_rank)
        if generator is not None:
            # If the generator is trained in full, the original generator is held too.
            full = part.generator == "full"
            trained += (
                4 * dtype_bytes * generator.weights if full else TRAINED_BYTES * generator.lora(part.generator_rank)
            )
            trained += TRAINED_BYTES * part.more_weights(actor, generator) if part.more_weights else 0.0
    return held_bytes(job, shapes, dtype_bytes) + trained


def held_bytes(job: Job, shapes: Mapping[str, Shape], dtype_bytes: int) -> float:
    """Bytes of the models of a fit or an evaluation, before anything is trained."""
    merged = shapes["actor"].body * (job.loop or Loop()).merged_actor
    return dtype_bytes * (sum(shape.weights for shape in shapes.values()) + merged)


def policy_bytes(job: Job, shapes: Mapping[str, Shape], dtype_bytes: int) -> float:
    """Bytes of a fit's policy: its own trained weights, and trained weights that it keeps from other fits."""
    actor, generator, total = shapes["actor"], shapes.get("generator"), 0.0
    for part in job.parts:
        total += ADAPTER_BYTES * actor.lora(part.actor_rank)
        if generator is not None:
            full = part.generator == "full"
            total += dtype_bytes * generator.weights * full + ADAPTER_BYTES * generator.lora(
                0 if full else part.generator_rank
            )
            total += ADAPTER_BYTES * part.more_weights(actor, generator) if part.more_weights else 0.0
    return total


def cache_bytes(shapes: Iterable[Shape], batch_tokens: int, dtype_bytes: int) -> float:
    """Bytes of keys and values of the largest generation batch."""
    return max(2 * shape.layers * shape.keys for shape in shapes) * batch_tokens * dtype_bytes


def reading_bytes(shapes: Iterable[Shape], batch_tokens: int, longest: float) -> float:
    """Bytes that reading a generation batch holds beside the cache: one layer's values, and the attention's mask."""
    widest = max(READ_HIDDEN * shape.hidden + READ_INTERMEDIATE * shape.intermediate for shape in shapes)
    return VALUE_BYTES * batch_tokens * (widest + longest)


def kept_bytes(shape: Shape, tokens: float, *, recomputed: bool = False) -> float:
    """Bytes that a backward pass through a decoder needs of its forward pass, without logits.

    `recomputed`: the inputs of all layers are kept, and the values of one layer at a time.
    """
    layer = VALUE_BYTES * (KEPT_HIDDEN * shape.hidden + KEPT_INTERMEDIATE * shape.intermediate)
    kept = layer + shape.layers * VALUE_BYTES * shape.hidden if recomputed else shape.layers * layer
    return tokens * kept


def training_bytes(
    job: Job, shapes: Mapping[str, Shape], at: Lengths, *, limit: float, window: float = float("inf")
) -> float:
    """Bytes that the largest training batch of a fit needs beside models and optimiser.

    Args:
        job: the fit; `loop.batch` says how many sequences pass a model at once.
        shapes: of `actor` and, if the fit has one, of `generator`.
        at: mean lengths on its benchmark.
        limit: tokens of the longest answer.
        window: the actor's window.
    """
    loop, found = job.loop or Loop(), 0.0
    if loop.sequences.actor_trained:
        taught = limit if loop.own_answers else LONGEST * at.target
        tokens = min(window, LONGEST * at.asked + loop.shots * at.demo + taught)
        found += _batch_bytes(shapes["actor"], loop.batch, tokens, taught, job.recomputed)
    if "generator" in shapes:
        for trains, written in ((loop.sequences.generator_trained, at.rewrite), (loop.sequences.encoded, 0.0)):
            if trains:
                tokens, taught = LONGEST * (at.request + written), LONGEST * written
                found += _batch_bytes(shapes["generator"], loop.batch, tokens, taught, job.recomputed)
    return SPARE * found


def _batch_bytes(shape: Shape, rows: float, tokens: float, taught: float, recomputed: bool) -> float:
    vocabulary = shape.head / shape.hidden
    return kept_bytes(shape, rows * tokens, recomputed=recomputed) + LOGIT_BYTES * rows * taught * vocabulary
