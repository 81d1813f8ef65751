"""Tiny random models and a word-level tokenizer, for tests of metatuner.lm."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from metatuner.lm import LM, ModelSpec, generation, reading

SPECIAL = ["<pad>", "<s>", "</s>", "<q>", "<a>"]
WORDS = [*SPECIAL, "<unk>", "\n", *(f"w{i}" for i in range(57))]
PAD, BEGIN, END = 0, 1, 2
ENDS = [END, *range(20, 25)]
CHAT = (
    "<s>{% for turn in messages %}{% if turn.role == 'system' %}{{ turn.content }}{% elif turn.role == 'user' %}"
    "<q>{{ turn.content }}{% else %}<a>{{ turn.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
SLIDING = 8
"""The attention window of the families that have one: shorter than most prompts of `random_prompts`."""
# With random weights, Gemma's tied and scaled embedding would make every model repeat the token it has just read.
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": SLIDING, "tie_word_embeddings": False}
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8, "attention_bias": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": SLIDING}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, GEMMA),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {**GEMMA, "sliding_window_pattern": 2}),
}
FAMILIES = sorted(ARCHITECTURES)


def tiny_model(architecture: str = "llama", *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Hidden size 32, 2 layers, 4 heads over 2 key-value heads; random weights far enough from zero to matter."""
    config, model, extra = ARCHITECTURES[architecture]
    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    torch.manual_seed(seed)
    built = model(config(**(sizes | extra | changes))).eval()
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):  # transformers starts them at zero
            nn.init.normal_(parameter, std=0.2)
    return built


def word_tokenizer(chat: str | None = CHAT, *, begins: bool = False) -> PreTrainedTokenizerFast:
    """One token per word or line end; words are joined by spaces. `begins`: <s> comes before a plain text."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    words.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if begins:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<q>", "<a>"],
    )
    tokenizer.chat_template = chat
    return tokenizer


def tiny_lm(
    architecture: str = "llama",
    *,
    chat: str | None = CHAT,
    begins: bool = False,
    spec: ModelSpec | None = None,
    **changes: object,
) -> LM:
    """An unsaved tiny model with the word tokenizer. A few words end a completion, so that some completions end."""
    model = tiny_model(architecture, **changes)
    model.generation_config.eos_token_id = ENDS
    window = model.config.max_position_embeddings
    tokenizer = word_tokenizer(chat, begins=begins)
    return LM(model, tokenizer, window, spec or ModelSpec("tiny"), plain_head=architecture != "gemma2")


class DoubleCasts(TorchFunctionMode):
    """Turns casts to float32 into casts to float64; transformers has some in norms, softmax and rotary angles."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        def changed(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(changed, args), **{name: changed(value) for name, value in (kwargs or {}).items()})


def double_lm(architecture: str = "llama") -> LM:
    """A tiny model in float64 throughout."""

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with DoubleCasts():
            return type(module).forward(module, *args, **kwargs)

    lm = tiny_lm(architecture)
    lm.model.double()
    # Parts of layers too, because activation checkpointing reruns them alone. Linear modules cast nothing.
    parts = [part for layer in lm.decoder.layers for part in layer.children()]
    for module in (lm.model, lm.decoder, *parts):
        module.forward = MethodType(forward, module)
    return lm


def save_tiny(folder: Path, architecture: str = "llama", **changes: object) -> Path:
    """Save a tiny model and its tokenizer in a folder."""
    tiny_model(architecture, **changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def random_prompts(count: int, *, shortest: int = 3, longest: int = 20, seed: int = 0) -> list[list[int]]:
    """Prompts as token ids of ordinary words."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(7, len(WORDS), (length,), generator=draw).tolist() for length in lengths]


@contextmanager
def watched_reads(seen: Callable[[Tensor, Tensor, Tensor], None]) -> Iterator[None]:
    """Within this context, `seen` gets the ids, the mask and the logits of each read of `generate`."""

    def watched(lm: LM) -> reading.Reader:
        way = reading.reader(lm)
        read = way.read

        def both(ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
            logits = read(ids, positions, mask)
            seen(ids, mask, logits.clone())
            return logits

        way.read = both  # type: ignore[method-assign]
        return way

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "reader", watched)
        yield
