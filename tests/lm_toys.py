"""Tiny random models and a word-level tokenizer, for tests of metatuner.lm."""

from pathlib import Path
from types import MethodType

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from metatuner.lm import LM, ModelSpec

SPECIAL = ["<pad>", "<s>", "</s>", "<q>", "<a>"]
WORDS = [*SPECIAL, "<unk>", "\n", *(f"w{i}" for i in range(57))]
PAD, BEGIN, END = 0, 1, 2
ENDS = [END, *range(20, 25)]
CHAT = (
    "<s>{% for turn in messages %}{% if turn.role == 'system' %}{{ turn.content }}{% elif turn.role == 'user' %}"
    "<q>{{ turn.content }}{% else %}<a>{{ turn.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8, "attention_bias": True}),
}


def tiny_model(architecture: str = "llama", *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """Random weights, hidden 32, 2 layers, 4 heads over 2 key-value heads; far enough from zero to matter."""
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


def word_tokenizer(chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """One token a word or line end; words are joined by spaces."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    words.decoder = decoders.WordPiece(prefix="##", cleanup=False)
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
    architecture: str = "llama", *, chat: str | None = CHAT, spec: ModelSpec | None = None, **changes: object
) -> LM:
    """A tiny model with the word tokenizer, not saved anywhere. A few words end a completion, so that some do."""
    model = tiny_model(architecture, **changes)
    model.generation_config.eos_token_id = ENDS
    return LM(model, word_tokenizer(chat), model.config.max_position_embeddings, spec or ModelSpec("tiny"))


def double_lm(architecture: str = "llama") -> LM:
    """A tiny model in float64 throughout: transformers' RMSNorm would round to float32 inside."""

    def norm(module: nn.Module, x: Tensor) -> Tensor:
        return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)

    lm = tiny_lm(architecture)
    for module in lm.model.double().modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = MethodType(norm, module)
    return lm


def save_tiny(folder: Path, architecture: str = "llama", **changes: object) -> Path:
    """The same as a folder."""
    tiny_model(architecture, **changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def random_prompts(count: int, *, shortest: int = 3, longest: int = 20, seed: int = 0) -> list[list[int]]:
    """Ids of ordinary words."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(7, len(WORDS), (length,), generator=draw).tolist() for length in lengths]
