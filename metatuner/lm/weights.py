"""Checks of a model's weights when they have been loaded."""

from typing import Any

import torch
from transformers import PreTrainedModel

from metatuner.errors import UserError
from metatuner.integrity import is_finite


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
