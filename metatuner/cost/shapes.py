"""The shape of a model in a local folder, from its config.json."""

from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.files import read_json
from metatuner.harness.loop import Shape


def shape_of(folder: Path) -> Shape:
    """Weights and widths of a model folder's decoder; gated MLPs, as in Llama, Qwen and Mistral.

    UserError names the file and the key if config.json does not say them.
    """
    path = folder / "config.json"
    remedy = "add the model's shape under `models` of the preset's `forecast`"
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a model folder, or {remedy}")
    values = read_json(path, remedy, dict)
    config = values.get("text_config", values)

    def number(name: str, default: Any = None) -> int:
        value = config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{path}: key {name!r} is {value!r}, no number of 1 or more; {remedy}")
        return value

    hidden, intermediate, layers = map(number, ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, vocabulary = number("num_attention_heads"), number("vocab_size")
    width = number("head_dim", hidden // heads)
    queries, keys = heads * width, number("num_key_value_heads", heads) * width
    biases = queries + 2 * keys if config.get("attention_bias", config.get("model_type") == "qwen2") else 0
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * intermediate + 2 * hidden + biases
    head = hidden * vocabulary
    tied = config.get("tie_word_embeddings", values.get("tie_word_embeddings", False))
    return Shape(
        body=layers * layer + hidden,
        head=head,
        embedding=0 if tied else head,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        keys=keys,
    )
