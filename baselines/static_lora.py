"""MetaTuner's prompt decoder beside one LoRA for all queries: what is left without LoRA weights of the query's own."""

from dataclasses import dataclass
from typing import Literal

from baselines.metatuner import MetaTunerJ
from metatuner.method.config import MetaTunerConfig


@dataclass(frozen=True)
class Settings(MetaTunerConfig):
    """MetaTuner-J's settings, one of them fixed."""

    parameter_branch: Literal["static"] = "static"
    """See `MetaTunerConfig`."""


class StaticLoRA(MetaTunerJ):
    """MetaTuner-J with a LoRA that is trained itself, on the same linears, where the parameter decoder writes one a
    query; from the same warm-up, on the same loss."""

    name = "static_lora"
    title = "Static LoRA + prompt decoder"
    deviations = (
        *MetaTunerJ.deviations,
        "Not in the paper: the arm that tells LoRA weights for each query from LoRA weights.",
    )
    Settings = Settings
