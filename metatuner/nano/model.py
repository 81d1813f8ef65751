"""The nano models: plain Llama-style decoders with first two layers that can copy from the start."""

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from metatuner.nano.recipe import Recipe
from metatuner.nano.tokenizer import ANSWER, BEGIN, END, PAD, QUERY, REWRITE, alike, vocabulary

OFFSETS = (1, 2, 3)
"""How far back the heads of layer 0 look."""
SHARPNESS, CODE_GAIN, MATCH_GAIN, COPY_GAIN, DAMPING = 6.0, 0.1, 2.5, 0.5, 0.3


def build_model(recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """A fresh model: random weights drawn from `seed`, then `wire_heads`."""
    ids = vocabulary()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.window,
        attention_bias=True,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=ids[BEGIN],
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        for spaced, bare in alike(ids):
            embedding[bare] = embedding[spaced]
    wire_heads(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=ids[BEGIN],
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
        suppress_tokens=[ids[token] for token in (PAD, BEGIN, QUERY, ANSWER, REWRITE)],
    )
    return model


@torch.no_grad()
def wire_heads(model: LlamaForCausalLM, seed: int) -> None:
    """Start layers 0 and 1 as offset heads and induction heads, because training forms such heads only by luck.

    Heads of layer 0 look 1, 2 and 3 tokens back, through the QKV biases and the rotary embedding. Each head writes a
    code of the token that it sees into its own subspace. Head j of layer 1 matches the token j back from its query with
    the token j + 1 back from each key, and copies the content at the matching key.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    half, quarter = size // 2, size // 4
    generator = torch.Generator().manual_seed(seed)
    # Slowly rotating dimensions: a match there hardly depends on the distance.
    slow = [*range(quarter, half), *range(half + quarter, size)]
    # The space that codes are read from and the spaces that they are written to do not overlap.
    code, *spaces = _rotation(width, generator)[: (1 + len(OFFSETS)) * len(slow)].split(len(slow))
    speeds = model.model.rotary_emb.inv_freq.float()
    first, second = (model.model.layers[layer].self_attn for layer in (0, 1))
    # Everything else that layer 0 adds would be noise for the match.
    first.o_proj.weight *= DAMPING
    model.model.layers[0].mlp.down_proj.weight *= DAMPING
    written: list[Tensor] = []
    for head, offset in enumerate(OFFSETS):
        start = head * size
        rows = slice(start, start + size)
        first.k_proj.bias[start : start + half] = SHARPNESS
        first.k_proj.bias[start + half : start + size] = 0
        first.q_proj.bias[start : start + half] = SHARPNESS * torch.cos(offset * speeds)
        first.q_proj.bias[start + half : start + size] = -SHARPNESS * torch.sin(offset * speeds)
        first.q_proj.weight[rows] *= DAMPING
        first.k_proj.weight[rows] *= DAMPING
        coded = slice(start, start + len(slow))
        space = spaces[head].T
        first.v_proj.weight[coded] = code
        first.o_proj.weight[:, coded] = CODE_GAIN * space
        written.append(space)
        matched = [start + dimension for dimension in slow]
        second.k_proj.weight[matched] = MATCH_GAIN * space.T
        second.q_proj.weight[matched] = MATCH_GAIN * (code if head == 0 else written[head - 1].T)
        copied = _rotation(width, generator)[:size]
        second.v_proj.weight[rows] = copied
        second.o_proj.weight[:, rows] = COPY_GAIN * copied.T


def _rotation(width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
