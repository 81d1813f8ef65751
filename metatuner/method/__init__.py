"""MetaTuner (arXiv 2509.24245): a generator that writes, for each query, a prompt and a LoRA adapter for the actor.

This package knows language models (`metatuner.lm`), but no benchmarks: rewards come through a callback.
"""

from importlib import import_module
from typing import Any

from metatuner.method.config import MetaTunerConfig, WarmUpConfig

_FACES = {
    "Answer": "tuner",
    "Example": "data",
    "LayerSharedDecoder": "parameter_decoder",
    "MetaTuner": "tuner",
    "ParameterDecoder": "parameter_decoder",
    "Rewrite": "data",
    "collect_rewrites": "rollouts",
    "gumbel_loss": "objectives",
    "joint_loss": "objectives",
    "train_joint": "training",
    "warm_up_actor": "training",
    "warm_up_generator": "training",
}

__all__ = ["MetaTunerConfig", "WarmUpConfig", *sorted(_FACES)]


def __getattr__(name: str) -> Any:
    # Steps that must not wait for torch read the two configs; the rest is imported on first use.
    if name in _FACES:
        return getattr(import_module(f"metatuner.method.{_FACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
