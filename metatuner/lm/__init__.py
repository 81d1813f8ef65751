"""Language models: loading, rendering, batched generation, the loss on completions, per-query LoRA."""

from metatuner.lm.generation import Adapt, Adaptation, Completion, generate
from metatuner.lm.grouped_lora import grouped_adapter
from metatuner.lm.losses import completion_loss, logits_at
from metatuner.lm.model import LM, ModelSpec, Traffic, load_lm
from metatuner.lm.per_query_lora import PerQueryLoRA, Site
from metatuner.lm.rendering import Demo, Rendered, completion_ids, render, render_around, render_rewrite

__all__ = [
    "LM",
    "Adapt",
    "Adaptation",
    "Completion",
    "Demo",
    "ModelSpec",
    "PerQueryLoRA",
    "Rendered",
    "Site",
    "Traffic",
    "completion_ids",
    "completion_loss",
    "generate",
    "grouped_adapter",
    "load_lm",
    "logits_at",
    "render",
    "render_around",
    "render_rewrite",
]
