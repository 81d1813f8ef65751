"""The prompt branch: the generator rewrites an initial prompt for a query, p_i = G_phi(p~, x_i)."""

from collections.abc import Sequence

from metatuner.lm import LM, generate, render_rewrite
from metatuner.method.data import draw_seeds


def read_rewrite(generator: LM, prompt: str, query: str, max_prompt_tokens: int) -> list[int]:
    """The ids that the generator reads to write the prompt; room is kept for `max_prompt_tokens` more."""
    return render_rewrite(generator, prompt, query, reserve=max_prompt_tokens).ids


def write_prompts(
    generator: LM,
    prompts: Sequence[str],
    queries: Sequence[str],
    *,
    max_prompt_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """A prompt for each query.

    Args:
        prompts: p~ of each query.
        temperature: 0 writes greedily; above 0, each query has its own random stream drawn from `seed`.
    """
    completions = generate(
        generator,
        [
            read_rewrite(generator, prompt, query, max_prompt_tokens)
            for prompt, query in zip(prompts, queries, strict=True)
        ],
        max_new_tokens=max_prompt_tokens,
        temperature=temperature,
        seeds=draw_seeds(seed, len(queries)),
    )
    return [completion.text for completion in completions]
