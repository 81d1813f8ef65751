"""Checkpoints of a phase of training: safetensors and JSON, in a folder that exists only once it is complete."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from metatuner.errors import UserError
from metatuner.files import complete_folder, read_json, write_json
from metatuner.integrity import check_weights_file
from metatuner.method.tuned import save_tensors

TENSORS, STATE = "tensors.safetensors", "state.json"


class Checkpoints:
    """The last checkpoint of a phase, in `folder/step-00000040`.

    Args:
        key: hash of what the phase depends on; a checkpoint with another key is refused.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Any) -> None:
        """Write the state after `step` steps (tensors, and JSON values), then remove older checkpoints."""
        complete = self.folder / f"step-{step:08}"
        with complete_folder(complete) as temporary:
            save_tensors(dict(tensors), temporary / TENSORS)
            write_json(temporary / STATE, {"key": self.key, "step": step, "values": values})
            with open(temporary / TENSORS, "rb") as written:
                os.fsync(written.fileno())
        for other in (*self.folder.glob("step-*"), *self.folder.glob(".step-*")):  # also half-written ones
            if other != complete:
                shutil.rmtree(other)

    def load(self) -> tuple[int, dict[str, Tensor], Any] | None:
        """What the last `save` was given, None if there was none; `UserError` if its key is another."""
        folders = sorted(self.folder.glob("step-*"))
        if not folders:
            return None
        state = read_json(folders[-1] / STATE, "delete its folder to begin anew")
        if state["key"] != self.key:
            raise UserError(
                f"{self.folder}: a checkpoint of another configuration, data, seed or model; delete this folder to "
                "begin anew, or take what it was written with"
            )
        check_weights_file(folders[-1] / TENSORS, f"delete {self.folder} to begin anew")
        return state["step"], load_file(folders[-1] / TENSORS), state["values"]
