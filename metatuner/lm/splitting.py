"""Whether a loaded tokenizer splits texts as its tokenizer.json says.

Some tokenizer classes of transformers build a pre-tokenizer of their own in its place. Then texts become other tokens
than the model was trained on, and nothing fails.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from metatuner import progress

FILE = "tokenizer.json"
NO_MATTER = {"trim_offsets"}
"""What a pre-tokenizer says about places in a text and not about tokens."""


def tokenizer_file(source: str, revision: str | None) -> Path | None:
    """The tokenizer.json of a folder, or of a Hub id that was downloaded; None if there is none."""
    if Path(source).is_dir():
        path = Path(source) / FILE
        return path if path.is_file() else None
    found = try_to_load_from_cache(source, FILE, revision=revision)
    return Path(found) if isinstance(found, str) else None


def warn_if_replaced(tokenizer: PreTrainedTokenizerBase, file: Path | None, name: str) -> None:
    """Say in one line that a tokenizer's pre-tokenizer is not the file's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if file is None or backend is None:
        return
    saved, used = saved_splitting(file), _state(backend)
    if saved != used:
        progress.say(
            f"model {name}: {type(tokenizer).__name__} splits texts by {_named(used)}, not by {_named(saved)} as its "
            f"{FILE} says, so the model may read other tokens than it was trained on; write "
            '"tokenizer_class": "PreTrainedTokenizerFast" into a copy of its tokenizer_config.json'
        )


def saved_splitting(file: Path) -> Any:
    """The pre-tokenizer of a tokenizer.json, with the library's defaults filled in."""
    saved = json.loads(file.read_text(encoding="utf-8")).get("pre_tokenizer")
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return _state(Tokenizer.from_str(json.dumps({"pre_tokenizer": saved, "added_tokens": [], "model": empty})))


def _state(tokenizer: Tokenizer) -> Any:
    splitting = tokenizer.pre_tokenizer
    return None if splitting is None else _plain(json.loads(splitting.__getstate__()))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in NO_MATTER}
    return value


def _named(splitting: Any) -> str:
    """The kinds of steps of a pre-tokenizer."""
    if splitting is None:
        return "nothing"
    return " and ".join(each["type"] for each in splitting.get("pretokenizers", [splitting]))
