"""The paper's loss ("supervised regularisation"): the task under both branches, and the prompts that rollouts found."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from metatuner.lm import LM, completion_ids, completion_loss, render
from metatuner.method.data import Example, Rewrite
from metatuner.method.model import MetaTuner
from metatuner.method.prompt_decoder import read_rewrite


class JointLoss(NamedTuple):
    """Scalars, in nats a token."""

    total: Tensor
    task: Tensor
    prompt: Tensor


def task_pair(actor: LM, prompt: str, example: Example) -> tuple[list[int], list[int]]:
    """What the actor reads under `prompt`, and the target's ids: at most half of the window, the rest is cut off."""
    target = completion_ids(actor, example.target)[: actor.window // 2]
    return render(actor, prompt, example.query, reserve=len(target)).ids, target


def rewrite_pair(generator: LM, row: Rewrite, max_prompt_tokens: int) -> tuple[list[int], list[int]]:
    """What the generator reads, and the ids of the prompt to write: at most `max_prompt_tokens`."""
    target = completion_ids(generator, row.rewrite)[:max_prompt_tokens]
    return read_rewrite(generator, row.prompt, row.query, max_prompt_tokens), target


def task_loss(tuner: MetaTuner, examples: Sequence[Example], prompts: Sequence[str]) -> Tensor:
    """L(M_{F(p~, x)}(p, x), y) over D1, under `prompts` p that phi_p' wrote before.

    Prompts are text, so no gradient passes through them. Gradient reaches phi_s and phi_q through the LoRA factors.
    """
    factors = tuner.factors([example.prompt for example in examples], [example.query for example in examples])
    with tuner.lora.applied(factors):
        return completion_loss(
            tuner.actor,
            [task_pair(tuner.actor, prompt, example) for prompt, example in zip(prompts, examples, strict=True)],
        )


def prompt_loss(generator: LM, rewrites: Sequence[Rewrite], max_prompt_tokens: int) -> Tensor:
    """CE(G(p~, x), p) over D2; gradient reaches phi_s and phi_p."""
    return completion_loss(generator, [rewrite_pair(generator, row, max_prompt_tokens) for row in rewrites])


def joint_loss(
    tuner: MetaTuner, examples: Sequence[Example], prompts: Sequence[str], rewrites: Sequence[Rewrite]
) -> JointLoss:
    """MetaTuner-J: the task loss plus alpha times the prompt loss (0 where there are no rewrites)."""
    task = task_loss(tuner, examples, prompts)
    if not rewrites:
        return JointLoss(task, task, task.new_zeros(()))
    prompt = prompt_loss(tuner.generator, rewrites, tuner.max_prompt_tokens)
    return JointLoss(task + tuner.config.alpha * prompt, task, prompt)
