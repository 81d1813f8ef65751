"""Training: the two warm-ups, rollouts, and the joint training of MetaTuner-J. All streams come from integer seeds."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from metatuner.errors import UserError
from metatuner.lm import LM, completion_loss
from metatuner.method.config import MetaTunerConfig, WarmUpConfig
from metatuner.method.data import Example, Rewrite, draw_seeds, shuffled_batches
from metatuner.method.model import MetaTuner
from metatuner.method.objectives import joint_loss, prompt_loss, task_pair
from metatuner.method.prompt_decoder import write_prompts
from metatuner.method.rollouts import Reward, RolloutStatistics, score_rollouts, select_best
from metatuner.method.tuned import to_train, trainable

Log = Callable[..., None]
"""Receives one event of the training log as keywords (JSON values)."""


def warm_up_actor(
    actor: LM, generator: LM, examples: Sequence[Example], config: WarmUpConfig, *, seed: int, log: Log
) -> LM:
    """The actor with a LoRA of its own (unmerged), trained on (p, x) -> y.

    p is p~, or a rewrite by the generator sampled anew for each pass (`config.actor_prompts`).
    """
    order_seed, prompt_seed, init_seed = draw_seeds(seed, 3)
    trained = to_train(actor, "lora", config.actor_rank, init_seed)
    per_epoch = math.ceil(len(examples) / config.batch_size)
    batches = shuffled_batches(range(len(examples)), config.batch_size, order_seed)
    prompts = [example.prompt for example in examples]

    def losses(step: int) -> dict[str, Tensor]:
        nonlocal prompts
        if config.actor_prompts == "rollouts" and step % per_epoch == 0:
            prompts = _sample_prompts(generator, examples, config, draw_seeds(prompt_seed, step // per_epoch + 1)[-1])
        rows = next(batches)
        return {"loss": completion_loss(trained, [task_pair(trained, prompts[row], examples[row]) for row in rows])}

    groups = {"actor": (list(trainable(trained).values()), config.actor_learning_rate)}
    optimise(groups, config.actor_epochs * per_epoch, losses, config, "actor_warm_up", log)
    return trained


def warm_up_generator(generator: LM, rewrites: Sequence[Rewrite], config: WarmUpConfig, *, seed: int, log: Log) -> LM:
    """A private copy of the generator (or a LoRA on it), trained on D2: (p~, x) -> best prompt."""
    order_seed, init_seed = draw_seeds(seed, 2)
    trained = to_train(generator, config.trainable, config.generator_rank, init_seed)
    batches = shuffled_batches(rewrites, config.batch_size, order_seed)
    steps = config.generator_epochs * math.ceil(len(rewrites) / config.batch_size)

    def losses(step: int) -> dict[str, Tensor]:
        return {"loss": prompt_loss(trained, next(batches), config.max_prompt_tokens)}

    groups = {"generator": (list(trainable(trained).values()), config.generator_learning_rate)}
    optimise(groups, steps, losses, config, "generator_warm_up", log)
    return trained


def collect_rewrites(
    generator: LM, examples: Sequence[Example], reward: Reward, config: WarmUpConfig, *, seed: int, log: Log
) -> tuple[list[Rewrite], RolloutStatistics]:
    """D2 from `config.rollouts` rewrites a query, scored by `reward(indices into examples, prompts)`.

    The first m of n rollouts are the same whatever n is.
    """
    draw_seed, *sample_seeds = draw_seeds(seed, 1 + config.rollouts)
    samples = [_sample_prompts(generator, examples, config, sample_seed) for sample_seed in sample_seeds]
    rollouts = list(zip(*samples, strict=True))
    rewrites, statistics = select_best(
        [example.prompt for example in examples],
        [example.query for example in examples],
        rollouts,
        score_rollouts(rollouts, reward),
        above=config.reward_above,
        seed=draw_seed,
    )
    log(event="rollouts", queries=len(examples), d2=len(rewrites), **vars(statistics))
    return rewrites, statistics


def train_joint(
    tuner: MetaTuner,
    examples: Sequence[Example],
    rewrites: Sequence[Rewrite],
    *,
    seed: int,
    log: Log,
    evaluate: Callable[[], float] | None = None,
) -> None:
    """MetaTuner-J: minimise the sum of both loss terms, in place.

    Args:
        examples: D1.
        rewrites: D2; where it is empty, the task loss alone is minimised and phi_p stays as it is.
        evaluate: called after each epoch; what it returns is logged as the dev reward.
    """
    config = tuner.config
    d1_seed, d2_seed, prompt_seed = draw_seeds(seed, 3)
    per_epoch = math.ceil(len(examples) / config.batch_size)
    steps = config.epochs * per_epoch
    batches = shuffled_batches(range(len(examples)), config.batch_size, d1_seed)
    plan = [next(batches) for _ in range(steps)]
    d2 = shuffled_batches(rewrites, config.batch_size, d2_seed)
    sync_every = max(1, round(config.sync_epochs * per_epoch))
    refresh_every = max(1, round(config.refresh_epochs * per_epoch))
    prompts: dict[int, str] = {}

    def losses(step: int) -> dict[str, Tensor]:
        if evaluate is not None and step > 0 and step % per_epoch == 0:
            log(event="dev", epoch=step // per_epoch, reward=evaluate())
        if step % sync_every == 0:
            tuner.sync()
        if step % refresh_every == 0:
            rows = sorted({row for batch in plan[step : step + refresh_every] for row in batch})
            written = tuner.write_prompts(
                [examples[row].prompt for row in rows],
                [examples[row].query for row in rows],
                temperature=config.prompt_temperature,
                seed=draw_seeds(prompt_seed, step // refresh_every + 1)[-1],
                frozen=True,
            )
            prompts.update(zip(rows, written, strict=True))
        rows = plan[step]
        loss = joint_loss(
            tuner,
            [examples[row] for row in rows],
            [prompts[row] for row in rows],
            next(d2) if rewrites else [],
        )
        return {"loss": loss.total, "task": loss.task, "prompt": loss.prompt}

    rates = {"phi_s": config.generator_learning_rate, "phi_p": config.generator_learning_rate}
    rates["phi_q"] = config.hyper_learning_rate
    groups = {name: (parameters, rates[name]) for name, parameters in tuner.parameters.items()}
    optimise(groups, steps, losses, config, "joint", log)
    if evaluate is not None:
        log(event="dev", epoch=config.epochs, reward=evaluate())


def optimise(
    groups: Mapping[str, tuple[list[nn.Parameter], float]],
    steps: int,
    losses: Callable[[int], dict[str, Tensor]],
    config: WarmUpConfig | MetaTunerConfig,
    phase: str,
    log: Log,
) -> None:
    """AdamW with a linear warm-up and a cosine to 0, gradients clipped by their common norm; each step is logged.

    Args:
        groups: name -> (parameters, peak learning rate).
        losses: given the step, the loss terms; "loss" is the one that is minimised.

    Raises `UserError` if loss or gradients are not finite.
    """
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in groups.values()], weight_decay=0.0
    )
    everything = [parameter for parameters, _ in groups.values() for parameter in parameters]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * cosine_with_warm_up(step, steps, config.warm_up_share)
        terms = losses(step)
        terms["loss"].backward()
        norms = {
            name: get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            for name, (parameters, _) in groups.items()
        }
        norm = torch.stack(list(norms.values())).square().sum().sqrt()
        values = {name: value.item() for name, value in terms.items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(norm.item()):
            raise UserError(
                f"MetaTuner, {phase}: loss {values['loss']} and gradient norm {norm.item()} at step {step} of "
                f"{steps}; lower the learning rates"
            )
        clip_grads_with_norm_(everything, config.gradient_clip, norm)
        optimizer.step()
        optimizer.zero_grad()
        log(event=phase, step=step, **values, **{f"norm_{name}": value.item() for name, value in norms.items()})


def cosine_with_warm_up(step: int, steps: int, warm_up_share: float) -> float:
    """The share of the peak learning rate at a step, above 0 from the first one on."""
    rising = math.ceil(warm_up_share * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def _sample_prompts(generator: LM, examples: Sequence[Example], config: WarmUpConfig, seed: int) -> list[str]:
    return write_prompts(
        generator,
        [example.prompt for example in examples],
        [example.query for example in examples],
        max_prompt_tokens=config.max_prompt_tokens,
        temperature=config.rollout_temperature,
        seed=seed,
    )
