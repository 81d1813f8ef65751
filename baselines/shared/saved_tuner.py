"""A MetaTuner that the library saved, as a policy of the harness."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from baselines.metatuner import MetaTunerPolicy
from metatuner.errors import UserError
from metatuner.files import read_json
from metatuner.harness.benchmarks import Benchmark
from metatuner.harness.ground import Ground
from metatuner.lm import LM
from metatuner.method.config import WarmUpConfig
from metatuner.method.saving import FILE
from metatuner.method.tuner import MetaTuner

__all__ = ["FILE", "open_tuner", "tuner_prompt"]


def _described(folder: Path) -> dict[str, Any]:
    described = read_json(folder / FILE, "name a folder that MetaTuner.save_pretrained wrote")
    if not isinstance(described, dict) or "models" not in described:
        raise UserError(f"{folder / FILE}: of an exported adapter, not of a saved MetaTuner; load it with peft")
    return described


def tuner_prompt(folder: Path) -> str | None:
    """p~ of the saved tuner, if it was saved with one."""
    prompt: str | None = _described(folder).get("initial_prompt")
    return prompt


def open_tuner(
    folder: Path,
    load: Callable[[str, dict[str, Any]], LM],
    benchmarks: Mapping[str, Benchmark],
) -> MetaTunerPolicy:
    """The saved tuner as a policy.

    Args:
        folder: what `MetaTuner.save_pretrained` wrote.
        load: loads a base model, from its role and the saved fields of its `ModelSpec`.
        benchmarks: the initial prompts, stops and length limits.

    Raises:
        UserError: the folder is no saved tuner, or a base model is not the one that it was trained on.
    """
    models = {}
    for role, saved in _described(folder)["models"].items():
        spec = saved["spec"]
        if saved["included"]:
            spec = spec | {"path": str(folder / role), "revision": None}
        models[role] = load(role, spec)
    tuner = MetaTuner.from_pretrained(folder, generator=models["generator"], actor=models["actor"])
    ground = Ground(models["actor"], models["generator"], benchmarks, models["actor"].batch_tokens)
    return MetaTunerPolicy(ground, tuner, tuner.actor_with_lora, WarmUpConfig())
