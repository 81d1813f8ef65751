"""What a results folder was made from: config, code, packages, machine.

It has no times and no core counts, so that equal runs leave equal bytes.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metatuner.config import Config
from metatuner.files import write_json
from metatuner.hashing import ROOT, git_state, hash_value

PACKAGES = (
    *("accelerate datasets dspy gepa latex2sympy2-extended lm-eval math-verify matplotlib numpy optuna peft").split(),
    *("safetensors snakemake sympy tokenizers torch transformers trl").split(),
)

MACHINE_KEYS = {"threads", "results", "cache"}
"""Config keys that say where and how to run, not what to compute."""


def write_provenance(config: Config, dependencies: Mapping[str, Any], path: Path) -> Path:
    """Write provenance.json.

    Args:
        config: the resolved preset; hashed without the keys that only say where and how to run.
        dependencies: further hashes and notes from the plan (models, data, world), copied unchanged.
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
            "packages": {name: _version(name) for name in ("metatuner", *PACKAGES)},
            "python": platform.python_version(),
            "platform": {"system": platform.system(), "machine": platform.machine(), "cpu": cpu_model()},
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system reports it: rounding differs between processors."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
