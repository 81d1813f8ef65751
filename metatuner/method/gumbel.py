"""Straight-through Gumbel-Softmax over prompt tokens (Jang et al. 2017, arXiv 1611.01144).

The argmax of logits plus Gumbel noise is a sample of their softmax. Here the sample comes first, from ordinary batched
decoding, and the noise is drawn given the sample. The joint distribution is the same (Maddison et al. 2014, arXiv
1411.0030). Rounding differences between decoding and the later forward pass with gradient cannot then change the token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.lm import LM

LEAST_MATCH = 0.5
"""Least share of the generator's tokens that the actor must know under the same name."""


def gumbel_noise(logits: Tensor, chosen: Tensor, suppressed: Sequence[int] = (), *, seed: int) -> Tensor:
    """Gumbel noise given that logits + noise is largest at the chosen tokens.

    With normalised logits, the largest perturbed logit is a standard Gumbel variable, whichever token it belongs to.
    The others are Gumbel variables truncated at it.

    Args:
        logits: [places, vocabulary], without gradient.
        chosen: [places], sampled from their softmax.
        suppressed: tokens that cannot be sampled; their noise is -inf.
    """
    stream = torch.Generator(logits.device).manual_seed(seed)

    def gumbel(columns: int) -> Tensor:
        return (
            -torch.empty(len(logits), columns, dtype=logits.dtype, device=logits.device)
            .exponential_(generator=stream)
            .log()
        )

    columns = torch.tensor(list(suppressed), dtype=torch.long, device=logits.device)
    possible = logits.index_fill(-1, columns, -torch.inf)
    total = possible.logsumexp(-1, keepdim=True)
    largest = gumbel(1)
    perturbed = -torch.logaddexp(-largest, -(possible - total + gumbel(logits.shape[1])))
    return perturbed.scatter(-1, chosen[:, None], largest) - (logits - total)


def soft_embeddings(
    logits: Tensor, noise: Tensor, chosen: Tensor, table: Tensor, temperature: float, straight_through: bool = True
) -> Tensor:
    """What the actor reads for each prompt token, [places, width], differentiable in the logits.

    It is the mean of the table's rows under softmax((logits + noise) / temperature). With `straight_through` the values
    are exactly the chosen tokens' rows, with the gradient of that mean.

    Args:
        logits, noise: [places, vocabulary].
        chosen: [places].
        table: [vocabulary, width], an embedding of each token.
    """
    soft = torch.softmax((logits + noise) / temperature, -1).to(table.dtype) @ table
    return table[chosen] + (soft - soft.detach()) if straight_through else soft


@contextmanager
def embedded(lm: LM, rows: Sequence[int], columns: Sequence[int], values: Tensor) -> Iterator[None]:
    """Let the model read `values` [places, width] as its embeddings at these rows and columns of its input ids."""
    device = lm.device
    where = tuple(torch.tensor(index, dtype=torch.long, device=device) for index in (rows, columns))

    def put(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output.index_put(where, values.to(device, output.dtype))

    hook = lm.model.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def prompt_embedding(generator: LM, actor: LM) -> Tensor:
    """The actor's embedding of each token that the generator can write, [generator's logits, actor's width].

    A token in both vocabularies has the actor's own embedding. For any other token, the actor's tokenizer splits the
    token's text, and the mean embedding of the pieces is used. Tokens without text (special tokens, parts of a
    character) have zeros.

    Raises `UserError` if fewer than half of the generator's tokens are also the actor's.
    """
    embedding = actor.model.get_input_embeddings()
    ours, theirs = _vocabulary(generator), _vocabulary(actor)
    size = generator.head.weight.shape[0]
    # Called, not indexed: some embeddings scale their rows.
    table = torch.zeros(size, embedding(torch.zeros(1, dtype=torch.long, device=actor.device)).shape[-1])
    table = table.to(actor.device, actor.model.dtype)
    both = [(token, theirs[name]) for name, token in ours.items() if name in theirs and token < size]
    if len(both) < LEAST_MATCH * len(ours):
        raise UserError(
            f"MetaTuner: objective gumbel maps the generator's tokens to the actor's by name, but only {len(both)} of "
            f"{len(ours)} are in both ({generator.spec.path}, {actor.spec.path}); use models of one family, or "
            "another objective"
        )
    table[[token for token, _ in both]] = embedding(torch.tensor([other for _, other in both], device=actor.device))
    for token in sorted(set(range(min(size, len(generator.tokenizer)))) - {token for token, _ in both}):
        text = generator.decode([token])
        ids = [] if not text or "\ufffd" in text else actor.encode(text)
        if ids:
            table[token] = embedding(torch.tensor(ids, device=actor.device)).mean(0)
    return table


def _vocabulary(lm: LM) -> dict[str, int]:
    """Tokens by name; the two marks of a leading space (byte-level and SentencePiece tokenizers) become one."""
    return {name.replace("\u2581", "\u0120"): token for name, token in lm.tokenizer.get_vocab().items()}
