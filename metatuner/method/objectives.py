"""The paper's losses: the loss with "supervised regularisation", and the Gumbel-Softmax variant in its place.

The loss with supervised regularisation covers the task under both branches and the prompts that rollouts found.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metatuner.lm import LM, completion_ids, completion_loss, generate, logits_at, render, render_around
from metatuner.method.data import Example, Rewrite, draw_seeds
from metatuner.method.encoder import right_padded
from metatuner.method.gumbel import embedded, gumbel_noise, soft_embeddings
from metatuner.method.prompt_decoder import read_rewrite
from metatuner.method.tuner import MetaTuner


class JointLoss(NamedTuple):
    """Scalars, in nats per token."""

    total: Tensor
    task: Tensor
    prompt: Tensor


def task_target(actor: LM, example: Example) -> list[int]:
    """The target's ids, cut off at half of the window."""
    return completion_ids(actor, example.target)[: actor.window // 2]


def task_pair(actor: LM, prompt: str, example: Example) -> tuple[list[int], list[int]]:
    """What the actor reads under `prompt`, and the target's ids."""
    target = task_target(actor, example)
    return render(actor, prompt, example.query, reserve=len(target)).ids, target


def rewrite_pair(generator: LM, row: Rewrite, max_prompt_tokens: int) -> tuple[list[int], list[int]]:
    """What the generator reads, and the ids of the prompt to write: at most `max_prompt_tokens`."""
    target = completion_ids(generator, row.rewrite)[:max_prompt_tokens]
    return read_rewrite(generator, row.prompt, row.query, max_prompt_tokens), target


def task_loss(tuner: MetaTuner, examples: Sequence[Example], prompts: Sequence[str]) -> Tensor:
    """L(M_{F(p~, x)}(p, x), y) over D1, under `prompts` p that phi_p' wrote before.

    Prompts are text, so no gradient passes through them. Gradients reach phi_s and phi_q through the LoRA factors, and
    the actor's own LoRA if it is trained.
    """
    with tuner.adapted([example.prompt for example in examples], [example.query for example in examples]):
        return completion_loss(
            tuner.actor,
            [task_pair(tuner.actor, prompt, example) for prompt, example in zip(prompts, examples, strict=True)],
        )


def prompt_loss(generator: LM, rewrites: Sequence[Rewrite], max_prompt_tokens: int) -> Tensor:
    """CE(G(p~, x), p) over D2; gradients reach phi_s and phi_p."""
    return completion_loss(generator, [rewrite_pair(generator, row, max_prompt_tokens) for row in rewrites])


def joint_loss(
    tuner: MetaTuner, examples: Sequence[Example], prompts: Sequence[str], rewrites: Sequence[Rewrite]
) -> JointLoss:
    """MetaTuner-J: the task loss plus alpha times the prompt loss (0 without rewrites).

    Training adds the same terms in parts, to save memory: see `training`.
    """
    task = task_loss(tuner, examples, prompts)
    if not rewrites:
        return JointLoss(task, task, task.new_zeros(()))
    prompt = prompt_loss(tuner.generator, rewrites, tuner.max_prompt_tokens)
    return JointLoss(task + tuner.config.alpha * prompt, task, prompt)


def gumbel_loss(
    tuner: MetaTuner, examples: Sequence[Example], *, temperature: float, seed: int, straight_through: bool = True
) -> Tensor:
    """The task loss under prompts of the current phi, differentiable by straight-through Gumbel-Softmax.

    The generator samples a prompt for each example at temperature 1. One forward pass over these prompts gives the
    logits of each token. With the Gumbel noise that made each choice, softmax((logits + noise) / temperature) relaxes
    the choice (see `gumbel`).

    In the prompt's place, the actor reads the embeddings of the sampled tokens. Their gradient is the gradient of the
    relaxation's mean embedding. It reaches phi_s and phi_p. Through the factors, gradients reach phi_s and phi_q.

    Two things are not relaxed: the length of a prompt (its end is a choice without gradient), and that later tokens
    were read after earlier ones. Special tokens inside a prompt are left out, as in a prompt that is passed as text.
    The prompt keeps the generator's tokens; the actor would split a text into other tokens.

    Args:
        temperature: temperature of the relaxation, above 0. Samples always have temperature 1.
        seed: draws prompts and noise.
        straight_through: False lets the actor read the relaxed embeddings themselves.

    Raises `UserError` if the vocabularies have too little in common.
    """
    generator, actor = tuner.generator, tuner.actor
    sample_seed, noise_seed = draw_seeds(seed, 2)
    read = [read_rewrite(generator, row.prompt, row.query, tuner.max_prompt_tokens) for row in examples]
    seeds = draw_seeds(sample_seed, len(examples))
    written = [
        completion.ids[:-1] if completion.ids[-1] in generator.eos_ids else completion.ids
        for completion in generate(
            generator, read, max_new_tokens=tuner.max_prompt_tokens, temperature=1.0, seeds=seeds
        )
    ]
    special = set(generator.tokenizer.all_special_ids)
    inputs = right_padded(generator, [asked + ids for asked, ids in zip(read, written, strict=True)])
    tokens: list[int] = []
    places: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    pairs = []
    for row, (example, asked, ids) in enumerate(zip(examples, read, written, strict=True)):
        kept = [place for place, token in enumerate(ids) if token not in special]
        tokens += [ids[place] for place in kept]
        places += [row * inputs.shape[1] + len(asked) + place - 1 for place in kept]
        target = task_target(actor, example)
        before, after = prompt_place(actor, example.query, len(kept), len(target))
        rows += [row] * len(kept)
        columns += range(len(before), len(before) + len(kept))
        pairs.append(([*before, *[actor.filler] * len(kept), *after], target))

    device = generator.device
    logits = logits_at(generator, inputs, torch.tensor(places, dtype=torch.long, device=device))
    chosen = torch.tensor(tokens, dtype=torch.long, device=device)
    noise = gumbel_noise(logits.detach(), chosen, generator.suppressed_ids, seed=noise_seed)
    soft = soft_embeddings(logits, noise, chosen, tuner.prompt_embedding, temperature, straight_through)
    with (
        tuner.adapted([row.prompt for row in examples], [row.query for row in examples]),
        embedded(actor, rows, columns, soft),
    ):
        return completion_loss(actor, pairs)


def prompt_place(actor: LM, query: str, prompt_tokens: int, reserve: int) -> tuple[list[int], list[int]]:
    """The ids before and after a prompt of `prompt_tokens` tokens; `reserve` tokens are kept for the answer."""
    if prompt_tokens == 0:  # some templates render an empty prompt in another way
        return [], render(actor, "", query, reserve=reserve).ids
    return render_around(actor, query, reserve=reserve + prompt_tokens)
