"""How the decoding loop reads tokens: through transformers, or sooner through a lean pass for Llama and Qwen2 on a CPU.

transformers spends most of a small model's step on Python and on many small operations. The lean pass does the same
arithmetic with fewer, through the model's own linear modules, so that adapters and per-query LoRA act as usual.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from metatuner.lm.model import LM

ROOM = 32
"""Tokens by which the cache grows at a time. More means fewer copies, but gaps in memory that slow attention."""


SHARING = frozenset({"llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "olmo2"})
"""Architectures with rotary positions. Others may count distances by places in the cache (ALiBi, local layers)."""


class Reader(Protocol):
    """A model with the keys and values of what it has read."""

    shares: bool
    """Whether padding may stand between a shared prefix and the rest of a row: whether only positions count, not places
    in the cache."""

    def read(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Logits [rows, vocabulary] after the last of the new tokens.

        Args:
            ids: new tokens, [rows, n].
            positions: their positions, [rows, n].
            mask: 0 at padding, [rows, tokens read so far + n].
        """

    def select(self, rows: Tensor) -> None:
        """From now on, the batch holds these rows (indices into its current rows; an index may come several times)."""


def reader(lm: LM) -> Reader:
    """The fastest reader that a model allows."""
    return LeanReader(lm) if is_lean(lm) else TransformersReader(lm)


class TransformersReader:
    """The model's own forward pass and cache."""

    def __init__(self, lm: LM) -> None:
        self.model = lm.model
        self.cache = DynamicCache(config=lm.model.config)
        self.cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        kind = lm.model.config.get_text_config(decoder=True).model_type
        self.shares = kind in SHARING and all(type(layer) is _RoomyLayer for layer in self.cache.layers)

    def read(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return found

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)


class _RoomyLayer(DynamicLayer):
    """A cache layer that grows by `ROOM` tokens at a time; DynamicLayer copies the whole cache at each token."""

    length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.all_keys, self.all_values = key_states[:, :, :0], value_states[:, :, :0]
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.all_keys.shape[2]:
            more = key_states.shape[2] + ROOM
            self.all_keys, self.all_values = (_longer(kept[:, :, :start], more) for kept in self.pair)
        self.all_keys[:, :, start : self.length] = key_states
        self.all_values[:, :, start : self.length] = value_states
        return self._show()

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.all_keys, self.all_values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.all_keys, self.all_values = self.all_keys[indices], self.all_values[indices]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]
        self.keys, self.values = keys, values
        return keys, values


def _longer(kept: Tensor, more: int) -> Tensor:
    """The same [rows, heads, tokens, width] with room for `more` tokens."""
    return torch.cat([kept, kept.new_empty((*kept.shape[:2], more, kept.shape[3]))], 2)


def is_lean(lm: LM) -> bool:
    """Whether `LeanReader` computes what the model does, and on a CPU, where it is the faster one."""
    decoder, config = lm.decoder, lm.model.config
    return (
        type(decoder) in (LlamaModel, Qwen2Model)
        and lm.device.type == "cpu"
        and lm.plain_head
        and lm.model.dtype == torch.float32
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not getattr(lm.model, "active_peft_config", None).__class__.__name__.startswith("Prompt")
        and not _watched(decoder)
    )


def _watched(decoder: Any) -> bool:
    """Whether something hooks into the model, other than forward hooks of whole layers, which the lean pass calls."""
    layers = set(map(id, decoder.layers))
    inner = [module for module in decoder.modules() if module is not decoder]
    return any(module._forward_pre_hooks or (module._forward_hooks and id(module) not in layers) for module in inner)


class LeanReader:
    """The forward pass of Llama and Qwen2, with keys and values in one piece of memory per layer."""

    shares = True

    def __init__(self, lm: LM) -> None:
        self.decoder: Any = lm.decoder
        self.head = lm.head
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.length = 0

    def read(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        rows, new = ids.shape
        start, self.length = self.length, self.length + new
        states = self.decoder.embed_tokens(ids)
        cos, sin = (each[:, None] for each in self.decoder.rotary_emb(states, position_ids=positions))
        bias = _bias(mask, start, new, states.dtype)
        for index, layer in enumerate(self.decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            normed = _normed(layer.input_layernorm, states)
            queries, keys, values = (
                linear(normed).view(rows, new, -1, attention.head_dim).transpose(1, 2)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            keys, values = self._kept(index, start, _rotated(keys, cos, sin), values)
            read = F.scaled_dot_product_attention(
                _rotated(queries, cos, sin),
                keys,
                values,
                attn_mask=bias,
                is_causal=bias is None and new > 1,
                scale=attention.scaling,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
            states = states + attention.o_proj(read.transpose(1, 2).reshape(rows, new, -1))
            normed = _normed(layer.post_attention_layernorm, states)
            states = states + mlp.down_proj(F.silu(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed)))
            for hook in list(layer._forward_hooks.values()):
                changed = hook(layer, (), states)
                states = states if changed is None else changed
        found: Tensor = self.head(_normed(self.decoder.norm, states[:, -1]))
        return found

    def select(self, rows: Tensor) -> None:
        for kept in (self.keys, self.values):
            kept[:] = [_longer(each[rows, :, : self.length], ROOM) for each in kept]

    def _kept(self, index: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, with the new ones."""
        end = start + keys.shape[2]
        for kept, new in ((self.keys, keys), (self.values, values)):
            if index == len(kept):
                kept.append(_longer(new[:, :, :0], end + ROOM))
            if end > kept[index].shape[2]:
                kept[index] = _longer(kept[index][:, :, :start], keys.shape[2] + ROOM)
            kept[index][:, :, start:end] = new
        return self.keys[index][:, :, :end], self.values[index][:, :, :end]


def _normed(norm: Any, states: Tensor) -> Tensor:
    return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, with halves paired as transformers pairs them."""
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin


def _bias(mask: Tensor, start: int, new: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to attention scores, [rows, 1, new, read]: -inf at padding and later tokens; None if neither is."""
    if mask.all() and (new == 1 or start == 0):
        return None
    seen = mask.bool()[:, None, None]
    if new > 1:
        places = torch.arange(start + new, device=mask.device)
        own = places[start:, None]
        seen = (seen & (places <= own)) | (places == own)  # a padded place must see something: it sees itself
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill_(~seen, -torch.inf)
