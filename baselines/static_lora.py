"""MetaTuner's prompt decoder with one LoRA for all queries: MetaTuner without LoRA weights per query."""

from dataclasses import dataclass
from typing import Literal

from baselines.metatuner import MetaTunerJ
from metatuner.method.config import MetaTunerConfig


@dataclass(frozen=True)
class Settings(MetaTunerConfig):
    """Settings of MetaTuner-J with `parameter_branch` fixed."""

    parameter_branch: Literal["static"] = "static"
    """See `MetaTunerConfig`."""


class StaticLoRA(MetaTunerJ):
    """MetaTuner-J with one directly trained LoRA in place of the parameter decoder, which writes a LoRA per query. The
    linear layers, the warm-up and the loss are the same."""

    name = "static_lora"
    title = "Static LoRA + prompt decoder"
    deviations = (
        *MetaTunerJ.deviations,
        "Not in the paper: the arm that tells LoRA weights for each query from LoRA weights.",
    )
    Settings = Settings
