"""Training: the two warm-ups, and the joint training of both branches. All random streams come from integer seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import islice
from typing import Any

from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.lm import LM, completion_loss
from metatuner.method import objectives
from metatuner.method.config import MetaTunerConfig, WarmUpConfig
from metatuner.method.data import Example, Rewrite, draw_seeds, shuffled_batches
from metatuner.method.optimising import Log, Phase, Term, log_of_first, optimise
from metatuner.method.rollouts import collect_rewrites as collect_rewrites
from metatuner.method.rollouts import sample_prompts
from metatuner.method.tuned import digest, to_train, trainable
from metatuner.method.tuner import MetaTuner


def warm_up_actor(
    actor: LM,
    generator: LM,
    examples: Sequence[Example],
    config: WarmUpConfig,
    *,
    seed: int,
    log: Log,
    **options: Any,
) -> LM:
    """The actor with a LoRA of its own (unmerged), trained on (p, x) -> y.

    p is p~, or the generator's rewrite, sampled anew for each pass (`config.actor_prompts`). `options` are those of
    `optimising.optimise`.
    """
    phase = _ActorWarmUp(actor, generator, examples, config, seed)
    optimise(phase, log_of_first(log, options.get("accelerator")), **options)
    return phase.trained


def warm_up_generator(
    generator: LM,
    rewrites: Sequence[Rewrite],
    config: WarmUpConfig,
    *,
    seed: int,
    log: Log,
    **options: Any,
) -> LM:
    """A private copy of the generator (or a LoRA on it), trained on D2: (p~, x) -> best prompt.

    `options` are those of `optimising.optimise`.
    """
    phase = _GeneratorWarmUp(generator, rewrites, config, seed)
    optimise(phase, log_of_first(log, options.get("accelerator")), **options)
    return phase.trained


def train_joint(
    tuner: MetaTuner,
    examples: Sequence[Example],
    rewrites: Sequence[Rewrite],
    *,
    seed: int,
    log: Log,
    evaluate: Callable[[], float] | None = None,
    refresh: Callable[[], list[Rewrite]] | None = None,
    **options: Any,
) -> None:
    """Train the tuner in place on the paper's loss, in the way that `tuner.config.objective` names.

    Args:
        examples: D1.
        rewrites: D2. If it is empty, only the task loss is minimised and phi_p does not change.
        evaluate: called after every `config.evaluate_epochs` passes over D1 (None: every pass) and at the end. Its
            result is logged as the dev reward.
        refresh: collects D2 anew, every `config.d2_refresh_epochs` passes. It must not count its earlier calls: the
            count would be lost when training is resumed.
        options: those of `optimising.optimise`. With an accelerator, every process writes all prompts, evaluates and
            refreshes.

    Raises `UserError` as `optimising.optimise` does, and for `d2_refresh_epochs` without `refresh`.
    """
    log = log_of_first(log, options.get("accelerator"))
    phase = _Joint(tuner, examples, rewrites, seed, log, evaluate, refresh)
    optimise(phase, log, **options)
    if evaluate is not None:
        log(event="dev", epoch=tuner.config.epochs, reward=evaluate())


class _ActorWarmUp(Phase):
    name = "actor_warm_up"
    config: WarmUpConfig

    def __init__(self, actor: LM, generator: LM, examples: Sequence[Example], config: WarmUpConfig, seed: int) -> None:
        order_seed, self.prompt_seed, init_seed = draw_seeds(seed, 3)
        self.generator, self.examples, self.config, self.seed = generator, examples, config, seed
        self.trained = to_train(actor, "lora", config.actor_rank, init_seed)
        self.per_epoch = math.ceil(len(examples) / config.batch_size)
        self.steps = config.actor_epochs * self.per_epoch
        self.groups = {"actor": (list(trainable(self.trained).values()), config.actor_learning_rate)}
        self.adapted = [self.trained.model]
        self.layers = _layers(self.trained.decoder)
        self.batches = _batches(len(examples), config.batch_size, order_seed, self.steps)
        self.prompts = [example.prompt for example in examples]
        self.tokens = _task_tokens(self.trained, examples)

    def terms(self, step: int) -> dict[str, Term[int]]:
        epoch, place = divmod(step, self.per_epoch)
        if self.config.actor_prompts == "rollouts" and place == 0:
            seed = draw_seeds(self.prompt_seed, epoch + 1)[-1]
            temperature = self.config.rollout_temperature
            self.prompts = sample_prompts(
                self.generator, self.examples, self.config, temperature=temperature, seed=seed
            )

        def loss(rows: Sequence[int]) -> Tensor:
            pairs = [objectives.task_pair(self.trained, self.prompts[row], self.examples[row]) for row in rows]
            return completion_loss(self.trained, pairs)

        return {"loss": Term(self.batches[step], loss, self.tokens)}

    def identity(self) -> Any:
        return [self.seed, _models(self.trained, self.generator), [asdict(example) for example in self.examples]]

    def state(self) -> tuple[dict[str, Tensor], Any]:
        return {}, self.prompts

    def restore(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        self.prompts = values


class _GeneratorWarmUp(Phase):
    name = "generator_warm_up"
    config: WarmUpConfig

    def __init__(self, generator: LM, rewrites: Sequence[Rewrite], config: WarmUpConfig, seed: int) -> None:
        order_seed, init_seed = draw_seeds(seed, 2)
        self.rewrites, self.config, self.seed = rewrites, config, seed
        self.trained = to_train(generator, config.trainable, config.generator_rank, init_seed)
        self.steps = config.generator_epochs * math.ceil(len(rewrites) / config.batch_size)
        self.groups = {"generator": (list(trainable(self.trained).values()), config.generator_learning_rate)}
        self.adapted = [self.trained.model]
        self.layers = _layers(self.trained.decoder)
        self.batches = _batches(len(rewrites), config.batch_size, order_seed, self.steps)
        self.tokens = _prompt_tokens(self.trained, config.max_prompt_tokens)

    def terms(self, step: int) -> dict[str, Term[Rewrite]]:
        def loss(rows: Sequence[Rewrite]) -> Tensor:
            return objectives.prompt_loss(self.trained, rows, self.config.max_prompt_tokens)

        return {"loss": Term([self.rewrites[row] for row in self.batches[step]], loss, self.tokens)}

    def identity(self) -> Any:
        return [self.seed, _models(self.trained), [asdict(row) for row in self.rewrites]]


class _Joint(Phase):
    """A turn is a batch of D1 with a batch of D2: `joint` makes one step of it, `alternating` makes two."""

    name = "joint"
    config: MetaTunerConfig

    def __init__(
        self,
        tuner: MetaTuner,
        examples: Sequence[Example],
        rewrites: Sequence[Rewrite],
        seed: int,
        log: Log,
        evaluate: Callable[[], float] | None,
        refresh: Callable[[], list[Rewrite]] | None,
    ) -> None:
        config = tuner.config
        if config.d2_refresh_epochs is not None and refresh is None:
            raise UserError("MetaTuner: d2_refresh_epochs is set, but `refresh` is not given; give it, or set null")
        self.config, self.tuner, self.examples, self.seed = config, tuner, examples, seed
        self.log, self.evaluate, self.refresh = log, evaluate, refresh

        gumbel = config.objective == "gumbel"
        self.has_task = gumbel or config.parameter_branch != "none" or config.actor == "lora"
        self.has_prompt = config.prompt_branch and not gumbel and config.alpha > 0
        self.writes = self.has_task and config.prompt_branch and not gumbel
        """Whether the task term reads prompts that phi_p' wrote."""

        self.per_epoch = math.ceil(len(examples) / config.batch_size)
        self.turns = config.epochs * self.per_epoch
        d1_seed, self.d2_seed, prompt_seed = draw_seeds(seed, 3)
        self.batches = _batches(len(examples), config.batch_size, d1_seed, self.turns)
        self.seeds = draw_seeds(prompt_seed, self.turns)
        self.first_rewrites = rewrites
        self._take(rewrites, turn=0)
        self.prompts = {} if config.prompt_branch else {row: each.prompt for row, each in enumerate(examples)}

        both = self.has_task and self.has_prompt and (rewrites or config.d2_refresh_epochs is not None)
        alternates = both and config.objective == "alternating"
        self.schedule = schedule(self.turns, config.alternation_steps if alternates else None)
        self.steps = len(self.schedule)

        # Layers private to F have the rate of shared layers, so that runs differ in the sharing alone.
        rates = dict.fromkeys(("phi_s", "phi_p", "private"), config.generator_learning_rate)
        rates |= {"phi_q": config.hyper_learning_rate or 0.0, "actor": config.actor_learning_rate}
        self.groups = {name: (group, rates[name]) for name, group in tuner.parameters.items()}
        if config.hyper_learning_rate is None and tuner.parameter_decoder is not None:
            self.groups |= tuner.parameter_decoder.rates(config.factor_learning_rate)
        tuner.fit_state_norm([each.prompt for each in examples], [each.query for each in examples])
        self.layers = _layers(tuner.generator.decoder, tuner.actor.decoder, tuner.meta_encoder)
        self.lora = tuner.lora
        encoder = tuner.meta_encoder
        self.adapted = [tuner.generator.model, *([] if encoder is None else [encoder])]
        self.task_tokens = _task_tokens(tuner.actor, examples)
        self.prompt_tokens = _prompt_tokens(tuner.generator, tuner.max_prompt_tokens)

    def terms(self, step: int) -> dict[str, Term[Any]]:
        turn, names = self.schedule[step]
        terms: dict[str, Term[Any]] = {}
        if "task" in names:
            epoch, place = divmod(turn, self.per_epoch)
            every = self.config.evaluate_epochs or 1
            if self.evaluate is not None and epoch and not place and epoch % every == 0:
                self.log(event="dev", epoch=epoch, reward=self.evaluate())
            terms["task"] = self._task(turn)
        if "prompt" in names:
            every = self._interval(self.config.d2_refresh_epochs)
            if every and self.refresh is not None and self.has_prompt and turn and turn % every == 0:
                self._take(self.refresh(), turn)
                self.log(event="d2", step=step, d2=len(self.rewrites))
            terms["prompt"] = self._prompt(turn)
        return terms

    def identity(self) -> Any:
        d1, d2 = [asdict(row) for row in self.examples], [asdict(row) for row in self.first_rewrites]
        return [self.seed, _models(self.tuner.generator, self.tuner.actor), self.tuner.max_prompt_tokens, d1, d2]

    def state(self) -> tuple[dict[str, Tensor], Any]:
        values = {
            "prompts": list(self.prompts.items()),
            "rewrites": [asdict(row) for row in self.rewrites],
            "rewrites_from": self.rewrites_from,
        }
        return self._frozen_prompt_decoder(), values

    def restore(self, tensors: Mapping[str, Tensor], values: Any) -> None:
        self.prompts = dict(values["prompts"])
        self._take([Rewrite(**row) for row in values["rewrites"]], values["rewrites_from"])
        for name, parameter in self._frozen_prompt_decoder().items():
            parameter.copy_(tensors[name])

    def _task(self, turn: int) -> Term[int]:
        tuner, config = self.tuner, self.config
        if self.writes:
            if turn % self._interval(config.sync_epochs) == 0:
                tuner.sync()
            if turn % self._interval(config.refresh_epochs) == 0:
                self._write_prompts(turn)

        def loss(rows: Sequence[int]) -> Tensor:
            examples = [self.examples[row] for row in rows]
            if config.objective == "gumbel":
                # Each part of a batch has its own noise.
                seed, temperature = self.seeds[turn] + rows[0], gumbel_temperature(turn, self.turns, config)
                return objectives.gumbel_loss(tuner, examples, temperature=temperature, seed=seed)
            return objectives.task_loss(tuner, examples, [self.prompts[row] for row in rows])

        return Term(self.batches[turn] if self.has_task else [], loss, self.task_tokens)

    def _prompt(self, turn: int) -> Term[Rewrite]:
        rows = self.rewrite_batches[turn - self.rewrites_from] if self.has_prompt and self.rewrites else []

        def loss(rows: Sequence[Rewrite]) -> Tensor:
            return objectives.prompt_loss(self.tuner.generator, rows, self.tuner.max_prompt_tokens)

        batch = [self.rewrites[row] for row in rows]
        return Term(batch, loss, self.prompt_tokens, self.config.alpha * self._share(batch))

    def _share(self, batch: Sequence[Rewrite]) -> float:
        """The weight of a batch of D2: a short last one counts by its tokens, as a share of those of a mean batch."""
        whole = min(self.config.batch_size, len(self.rewrites))
        if not batch or len(batch) == whole:
            return 1.0
        mean = sum(map(self.prompt_tokens, self.rewrites)) / len(self.rewrites)
        return sum(map(self.prompt_tokens, batch)) / (mean * whole)

    def _take(self, rewrites: Sequence[Rewrite], turn: int) -> None:
        """Use this D2 from this turn on."""
        self.rewrites, self.rewrites_from = list(rewrites), turn
        seed = draw_seeds(self.d2_seed, turn)[-1] if turn else self.d2_seed
        self.rewrite_batches = (
            _batches(len(rewrites), self.config.batch_size, seed, self.turns - turn) if rewrites else []
        )

    def _write_prompts(self, turn: int) -> None:
        """Write the prompts of all rows until the next refresh."""
        every = self._interval(self.config.refresh_epochs)
        rows = sorted({row for batch in self.batches[turn : turn + every] for row in batch})
        written = self.tuner.write_prompts(
            [self.examples[row].prompt for row in rows],
            [self.examples[row].query for row in rows],
            temperature=self.config.prompt_temperature,
            seed=self.seeds[turn // every],
            frozen=True,
        )
        self.prompts.update(zip(rows, written, strict=True))

    def _interval(self, epochs: float | None) -> int:
        """The turns in `epochs` passes over D1, at least 1; 0 for None (never)."""
        return 0 if epochs is None else max(1, round(epochs * self.per_epoch))

    def _frozen_prompt_decoder(self) -> dict[str, Tensor]:
        """phi_p', if prompts are written with it."""
        if not self.writes:
            return {}
        named = self.tuner.frozen_generator.model.named_parameters()
        return {name: parameter for name, parameter in named if name in self.tuner.upper}


def schedule(turns: int, alternation_steps: int | None) -> list[tuple[int, tuple[str, ...]]]:
    """The turn and the terms of each optimiser step: both terms, or blocks of one term and then of the other.

    >>> schedule(3, 2)
    [(0, ('task',)), (1, ('task',)), (0, ('prompt',)), (1, ('prompt',)), (2, ('task',)), (2, ('prompt',))]
    """
    if alternation_steps is None:
        return [(turn, ("task", "prompt")) for turn in range(turns)]
    blocks = [range(turns)[start : start + alternation_steps] for start in range(0, turns, alternation_steps)]
    return [(turn, (term,)) for block in blocks for term in ("task", "prompt") for turn in block]


def gumbel_temperature(turn: int, turns: int, config: MetaTunerConfig) -> float:
    """Falls geometrically from `gumbel_temperature` in the first turn to `gumbel_final_temperature` in the last."""
    passed = turn / max(1, turns - 1)
    return config.gumbel_temperature * (config.gumbel_final_temperature / config.gumbel_temperature) ** passed


def _batches(rows: int, size: int, seed: int, steps: int) -> list[list[int]]:
    """The batches of the first `steps` steps, as row indices."""
    return list(islice(shuffled_batches(range(rows), size, seed), steps))


def _layers(*decoders: nn.Module | None) -> list[nn.Module]:
    """The layers of all decoders that are not None, each layer once."""
    lists = [decoder.get_submodule("layers") for decoder in decoders if decoder is not None]
    return list(dict.fromkeys(layer for layers in lists for layer in layers.children()))


def _task_tokens(actor: LM, examples: Sequence[Example]) -> Callable[[int], int]:
    """Counts the completion tokens of a row of D1, once per row: they do not depend on the prompt."""
    return cache(lambda row: len(objectives.task_pair(actor, examples[row].prompt, examples[row])[1]))


def _prompt_tokens(generator: LM, max_prompt_tokens: int) -> Callable[[Rewrite], int]:
    return cache(lambda row: len(objectives.rewrite_pair(generator, row, max_prompt_tokens)[1]))


def _models(*lms: LM) -> list[list[str | None]]:
    """Name, revision and current weights (digest) of each model."""
    return [[lm.spec.path, lm.spec.revision, digest(lm.model.named_parameters())] for lm in lms]
