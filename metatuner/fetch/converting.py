"""A GGUF file of a Llama model as a folder in the Hugging Face layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.errors import UserError
from metatuner.fetch.reading import Gguf
from metatuner.files import write_text

if TYPE_CHECKING:
    import numpy as np
    from tokenizers.pre_tokenizers import PreTokenizer

OTHER = "name a file of another model"
NORMAL, CONTROL = 1, 3
"""Types of tokens in a GGUF file."""
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's tensors in a GGUF file and in the Hugging Face layout."""


def convert(gguf: Gguf, folder: Path) -> None:
    """Write `config.json`, `generation_config.json`, `model.safetensors` (bfloat16) and the tokenizer's two files.

    Raises:
        UserError: the file is no Llama model, its tensors do not fit its sizes, or its tokenizer is of another kind.
    """
    architecture = gguf.field("general.architecture")
    if architecture != "llama":
        raise UserError(f"{gguf.path}: architecture {architecture!r}; only llama can be converted; {OTHER}")
    if "llama.rope.scaling.type" in gguf.fields:
        raise UserError(f"{gguf.path}: scaled rotary positions, which the conversion does not know; {OTHER}")
    config = _config(gguf)
    _write_tokenizer(gguf, folder)
    _write_weights(gguf, config, folder / "model.safetensors")
    _write_json(folder / "config.json", config)
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(folder / "generation_config.json", {name: config[name] for name in tokens})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _config(gguf: Gguf) -> dict[str, Any]:
    heads = gguf.field("llama.attention.head_count")
    width = gguf.field("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(gguf.field("tokenizer.ggml.tokens")),
        "hidden_size": width,
        "intermediate_size": gguf.field("llama.feed_forward_length"),
        "num_hidden_layers": gguf.field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.fields.get("llama.attention.head_count_kv", heads),
        "head_dim": gguf.fields.get("llama.rope.dimension_count", width // heads),
        "hidden_act": "silu",
        "max_position_embeddings": gguf.field("llama.context_length"),
        "rms_norm_eps": _short(gguf.field("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": gguf.fields.get("llama.rope.freq_base", 10000.0),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": gguf.field("tokenizer.ggml.padding_token_id"),
        "use_cache": True,
        "dtype": "bfloat16",
    }


def _short(value: float) -> float:
    """The shortest decimal number that is this float32."""
    import numpy as np

    return float(str(np.float32(value)))


# ---- weights ---------------------------------------------------------------------------------------------------------


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model, by its name in a GGUF file."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config["head_dim"] * config[f"num_{each}_heads"] for each in ("attention", "key_value"))
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,),
        "ffn_norm": (width,),
        "attn_q": (queries, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, queries),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (config["vocab_size"], width), "output_norm": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["output"] = (config["vocab_size"], width)
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{number}.{part}": shape for part, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _write_weights(gguf: Gguf, config: dict[str, Any], file: Path) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    shapes = _shapes(config)
    missing, strange = shapes.keys() - gguf.tensors.keys(), gguf.tensors.keys() - shapes.keys()
    if missing or strange:
        what = f"no tensor {min(missing)}" if missing else f"tensor {min(strange)}, which a plain Llama has not"
        raise UserError(f"{gguf.path}: {what}; {OTHER}")
    state = {}
    for name, shape in shapes.items():
        if gguf.shape(name) != shape:
            raise UserError(f"{gguf.path}: tensor {name} has shape {gguf.shape(name)}, not {shape}; {OTHER}")
        values = gguf.values(name)
        if name.endswith("attn_q.weight"):
            values = _in_halves(values, config["num_attention_heads"])
        elif name.endswith("attn_k.weight"):
            values = _in_halves(values, config["num_key_value_heads"])
        state[_hugging_face(name)] = torch.from_numpy(np.require(values, requirements=["C", "W"])).to(torch.bfloat16)
    save_file(state, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _hugging_face(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.weight"


def _in_halves(weight: "np.ndarray", heads: int) -> "np.ndarray":
    """Rows of q or k [heads x head width, width] with the two halves of each head one after the other.

    A GGUF file interleaves them, as its rotary positions turn neighbours; transformers turns halves.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


# ---- tokenizer -------------------------------------------------------------------------------------------------------


def _digits_then_bytes() -> "PreTokenizer":
    """Each digit alone, then GPT-2's split into words of byte-level letters."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], "PreTokenizer"]] = {"smollm": _digits_then_bytes}
"""How a text is split before merges apply, by the name that a GGUF file gives."""


def _write_tokenizer(gguf: Gguf, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind = f"{gguf.field('tokenizer.ggml.model')}/{gguf.field('tokenizer.ggml.pre')}"
    split = PRE_TOKENIZERS.get(kind.removeprefix("gpt2/"))
    if not kind.startswith("gpt2/") or split is None:
        known = ", ".join(f"gpt2/{name}" for name in PRE_TOKENIZERS)
        raise UserError(f"{gguf.path}: tokenizer {kind}; known: {known}; {OTHER}")
    tokens, types = gguf.field("tokenizer.ggml.tokens"), gguf.field("tokenizer.ggml.token_type")
    strange = next((place for place, each in enumerate(types) if each not in (NORMAL, CONTROL)), None)
    if strange is not None or len(types) != len(tokens):
        what = f"{len(types)} types" if strange is None else f"token {strange} of type {types[strange]}"
        raise UserError(f"{gguf.path}: {what} among {len(tokens)} tokens, which the conversion does not know; {OTHER}")
    merges = [tuple(merge.split(" ", 1)) for merge in gguf.field("tokenizer.ggml.merges")]
    try:
        model = models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges)
    except Exception as error:  # a merge of tokens that are not there
        raise UserError(f"{gguf.path}: its merges do not fit its tokens ({error}); {OTHER}") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split()
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, each in zip(tokens, types, strict=True) if each == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))

    def named(field: str) -> str:
        place = gguf.field(f"tokenizer.ggml.{field}_token_id")
        if not 0 <= place < len(tokens):
            raise UserError(f"{gguf.path}: {field} token {place} is none of its {len(tokens)} tokens; {OTHER}")
        return str(tokens[place])

    _write_json(
        folder / "tokenizer_config.json",
        {
            # transformers replaces tokenizer.json's pre-tokenizer if this names a class for one family of models.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": named("bos"),
            "eos_token": named("eos"),
            "pad_token": named("padding"),
            "unk_token": named("unknown"),
            "model_max_length": gguf.field("llama.context_length"),
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": gguf.field("tokenizer.chat_template"),
        },
    )
