"""Checks of a model's files before they are loaded, and of its weights afterwards."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from metatuner.errors import UserError
from metatuner.integrity import is_finite

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
"""Files of a model folder that hold one JSON object. transformers reads on without a broken generation config."""


def check_files(folder: Path) -> None:
    """`UserError` if a model folder lacks its config or tokenizer, or holds a broken JSON file."""
    if not (folder / "config.json").is_file():
        raise UserError(f"model {folder}: no config.json, so this is not a model folder; name the one that holds it")
    for path in filter(Path.is_file, (folder / name for name in JSON_FILES)):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: no JSON in UTF-8 ({error}); restore it, or save the model again") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: no JSON object but a {type(value).__name__}; restore it, or save the model again")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"model {folder}: no tokenizer ({TOKENIZER_FILES[0]} or alike); save the tokenizer there too")


def check_loaded(path: str, dtype: str, model: PreTrainedModel, loading: dict[str, Any]) -> None:
    """`UserError` if the weights are not those of the config, or hold NaN or infinite values."""
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise UserError(f"model {path}: its weights lack {len(missing)} tensors ({missing[0]}); save it again")
    # Old folders hold rotary frequencies, which are constants.
    extra = sorted(name for name in loading["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
    if extra:
        raise UserError(
            f"model {path}: its weights hold {len(extra)} tensors that its config.json has no place for "
            f"({extra[0]}); restore the config.json that belongs to them, or save the model again"
        )
    bad = next((name for name, parameter in model.named_parameters() if not is_finite(parameter)), None)
    if bad is not None:
        raise UserError(
            f"model {path}: {bad} holds NaN or infinite values as {dtype}; restore the weights, or use a wider dtype"
        )


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Tries a few tokens (the embedding of id 0 may be all zeros): no config key says it for all architectures."""
    ids = torch.arange(min(8, model.config.get_text_config(decoder=True).vocab_size), device=model.device)[None]
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    if not is_finite(logits.amax(-1)):
        raise ValueError("NaN or infinite logits")
    return torch.equal(logits, model.get_output_embeddings()(hidden))
