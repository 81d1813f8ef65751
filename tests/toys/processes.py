"""A script for `accelerate launch`: joint training on the toys, split among processes."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from metatuner.method import train_joint
from tests.toys.method import examples, rewrites, tuner

RUNS: dict[str, dict[str, Any]] = {
    "joint": {"batch_size": 5},
    "uneven": {"objective": "alternating", "accumulation": 2, "activation_checkpointing": True},
}


def train(name: str, accelerator: Accelerator | None) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train for two passes in float64; return the trained parameters and the log."""
    made = tuner(dtype=torch.float64, epochs=2, **RUNS[name])
    events: list[dict[str, Any]] = []
    train_joint(
        made, examples(7), rewrites(), seed=0, log=lambda **event: events.append(event), accelerator=accelerator
    )
    parameters = {f"{group}.{i}": p.detach() for group, part in made.parameters.items() for i, p in enumerate(part)}
    return parameters, events


if __name__ == "__main__":
    here, folder = Accelerator(cpu=True), Path(sys.argv[1])
    for name in RUNS:
        parameters, events = train(name, here)
        place = f"{name}-{here.process_index}-of-{here.num_processes}"
        save_file(parameters, folder / f"{place}.safetensors")
        (folder / f"{place}.json").write_text(json.dumps(events), encoding="utf-8")
