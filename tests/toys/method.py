"""A tiny generator and actor, and rows of words they know, for tests of metatuner.method and baselines.metatuner."""

import random
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from metatuner.lm import LM
from metatuner.method.config import MetaTunerConfig
from metatuner.method.data import Example, Rewrite
from metatuner.method.tuned import to_train, trainable
from metatuner.method.tuner import MetaTuner
from tests.toys.lm import tiny_lm

INITIAL = "w1 w2"
PROMPT_TOKENS = 6


class ExactNorm(LlamaRMSNorm):
    """transformers' norm rounds to float32 inside; this one keeps the precision of its input."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


def in_precision(lm: LM, dtype: torch.dtype) -> LM:
    lm.model.to(dtype)
    for module in lm.model.modules():
        if isinstance(module, LlamaRMSNorm) and dtype == torch.float64:
            module.__class__ = ExactNorm
    return lm


def generator(dtype: torch.dtype = torch.float32, **changes: Any) -> LM:
    """Four layers, so that k can lie inside (0, K)."""
    return in_precision(tiny_lm(seed=1, num_hidden_layers=4, **changes), dtype)


def actor(dtype: torch.dtype = torch.float32, **changes: Any) -> LM:
    """Two layers, with another width than the generator."""
    return in_precision(tiny_lm(seed=2, hidden_size=48, head_dim=12, **changes), dtype)


def with_lora(lm: LM) -> LM:
    """The same model with a LoRA far from zero, as after a warm-up."""
    trained = to_train(lm, "lora", rank=2, seed=6)
    with torch.no_grad():
        for parameter in trainable(trained).values():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(7))
    return trained


def words(draw: random.Random, low: int, high: int) -> str:
    return " ".join(f"w{draw.randrange(57)}" for _ in range(draw.randint(low, high)))


def examples(count: int = 6, seed: int = 0) -> list[Example]:
    """Rows of D1 of unequal lengths."""
    draw = random.Random(seed)
    return [Example(INITIAL, words(draw, 3, 12), words(draw, 2, 6)) for _ in range(count)]


def rewrites(count: int = 5, seed: int = 1) -> list[Rewrite]:
    """Rows of D2."""
    draw = random.Random(seed)
    return [Rewrite(INITIAL, words(draw, 3, 12), words(draw, 1, 4)) for _ in range(count)]


def tuner(
    *,
    shaken: bool = True,
    what: str = "full",
    dtype: torch.dtype = torch.float32,
    warmed: bool = False,
    **settings: Any,
) -> MetaTuner:
    """A MetaTuner on the toys.

    `shaken`: its B factors (and the generator's LoRA, if any) are far from zero; `warmed`: its actor carries a LoRA.
    """
    trained = to_train(generator(dtype), what, rank=2, seed=3)  # type: ignore[arg-type]
    config = MetaTunerConfig(**({"rank": 3, "bottleneck": 8, "batch_size": 3} | settings))
    answers = with_lora(actor(dtype)) if warmed else actor(dtype)
    made = MetaTuner(trained, answers, config, max_prompt_tokens=PROMPT_TOKENS, seed=4, initial_prompt=INITIAL)
    if shaken:
        shake(made)
    return made


@torch.no_grad()
def shake(made: MetaTuner) -> None:
    """Give random values to all parameters that start at zero."""
    stream = torch.Generator().manual_seed(5)
    for parameters in made.parameters.values():
        for parameter in parameters:
            zero = parameter == 0
            parameter += zero * 0.2 * torch.randn(parameter.shape, generator=stream).to(parameter.dtype)
    made.sync()
