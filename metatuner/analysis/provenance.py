"""What a results folder was made from: config, code, packages, machine.

No times and no core counts: equal runs leave equal bytes.
"""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metatuner.files import write_json
from metatuner.harness.config import Config
from metatuner.hashing import ROOT, hash_value

PACKAGES = (
    "accelerate",
    "datasets",
    "dspy",
    "lm-eval",
    "math-verify",
    "matplotlib",
    "metatuner",
    "numpy",
    "optuna",
    "peft",
    "safetensors",
    "snakemake",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)

MACHINE_KEYS = {"threads", "results", "cache"}
"""Config keys that say where and how a run goes, not what it computes."""


def write_provenance(config: Config, dependencies: Mapping[str, Any], path: Path) -> Path:
    """Write provenance.json.

    Args:
        config: the resolved preset; hashed without the keys that only say where and how to run.
        dependencies: further hashes and notes from the plan (models, data, world), taken over as they are.
        path: where to write.
    """
    models = {"actor": config.models.actor, **config.models.generators}
    return write_json(
        path,
        {
            "preset": config.preset,
            "config": hash_value(config.model_dump(mode="json", exclude=MACHINE_KEYS)),
            "seeds": {name: experiment.seeds for name, experiment in config.experiments.items()},
            "devices": {role: model.device for role, model in models.items()},
            "dtypes": {role: model.dtype for role, model in models.items()},
            "dependencies": dict(dependencies),
            "code": git_state(ROOT),
            "packages": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "platform": {"system": platform.system(), "machine": platform.machine(), "cpu": cpu_model()},
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of the checkout whose top is `folder`, and whether files differ from it; None where there is none."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != folder.resolve():  # an installed copy below someone else's checkout
        return {"commit": None, "modified": None}
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name where the system tells it: rounding differs between processors."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
