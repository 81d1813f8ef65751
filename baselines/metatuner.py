"""MetaTuner as methods of the shared harness: MetaTuner-J, MetaTuner-I, and the warm-up that both build on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from metatuner.errors import UserError
from metatuner.files import read_lines, write_lines
from metatuner.harness.ground import Ground
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shape, Shares
from metatuner.harness.method import Method, make_settings
from metatuner.harness.policy import Policy, load_policy, register_policy
from metatuner.harness.query import Prepared, Query, to_query
from metatuner.method.config import MetaTunerConfig, WarmUpConfig

if TYPE_CHECKING:
    from metatuner.lm import LM
    from metatuner.method.data import Example, Rewrite
    from metatuner.method.tuner import MetaTuner

REFERENCE = "Bo et al., Prompt and Parameter Co-Optimization for Large Language Models, arXiv 2509.24245"


class MetaTunerWarmUp(Method):
    """Supervised warm-ups of the actor and the generator; the rollouts between them make D2."""

    name = "metatuner_warmup"
    title = "MetaTuner's warm-up"
    family = "hybrid"
    reference = REFERENCE
    Settings: ClassVar[type[WarmUpConfig]] = WarmUpConfig
    uses_generator = True
    internal = True

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: WarmUpConfig = self.settings
        rollouts = s.rollouts * rows.train if s.d2 in ("best", "threshold") else 0.0
        written = {"expert": rows.train, "initial": 0.0}.get(s.d2, rollouts)
        rewarded = {"best": 1 - (1 - shares.right) ** s.rollouts, "threshold": shares.right * s.rollouts}
        d2 = rewarded.get(s.d2, 1.0) * rows.train
        met = s.actor_epochs * rows.train if s.actor_prompts == "rollouts" else 0.0
        counted = Sequences(
            answers=rollouts,
            rewrites=written + met,
            actor_trained=s.actor_epochs * rows.train,
            generator_trained=s.generator_epochs * d2,
        )
        return Loop(
            counted,
            writes_prompts=True,
            actor_rank=s.actor_rank,
            generator=s.trainable,
            generator_rank=s.generator_rank,
            batch=math.ceil(s.batch_size / s.accumulation),
            merged_actor=True,
        )

    def fit(self, lab: Lab) -> "WarmUpPolicy":
        from metatuner.lm.adapters import merged
        from metatuner.method.training import collect_rewrites, warm_up_actor, warm_up_generator

        config: WarmUpConfig = self.settings
        examples, generator = _examples(lab), lab.need_generator()
        covered = lab.budget.for_steps
        actor = warm_up_actor(
            lab.actor,
            generator,
            examples,
            config,
            seed=lab.stream("actor_warm_up"),
            log=lab.log,
            covered=covered(),
        )
        reward = _reward(lab, merged(actor))
        d2, _ = collect_rewrites(generator, examples, reward, config, seed=lab.stream("rollouts"), log=lab.log)
        generator = warm_up_generator(
            generator, d2, config, seed=lab.stream("generator_warm_up"), log=lab.log, covered=covered()
        )
        return WarmUpPolicy(lab, generator, actor, config, d2)


class MetaTunerJ(Method):
    """Trains both branches jointly on the sum of both loss terms, starting from the common warm-up."""

    name = "metatuner_j"
    title = "MetaTuner-J"
    family = "hybrid"
    reference = REFERENCE
    deviations: ClassVar[tuple[str, ...]] = (
        "h_i is standardised over the train rows and scaled to root mean square 1 before the parameter decoder.",
        "Prompts of the task loss are written once an interval for all its rows, not in each step.",
        "If no rollout was rewarded (D2 is empty), the task loss alone is minimised, and the log says so.",
    )
    Settings: ClassVar[type[MetaTunerConfig]] = MetaTunerConfig
    uses_generator = True
    requires = (MetaTunerWarmUp.name,)

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        """Count one fit. D2 that is collected again during training (`d2_refresh_epochs`) is not counted."""
        s: MetaTunerConfig = self.settings
        passes = s.epochs * rows.train
        task = s.parameter_branch != "none" or s.actor == "lora"
        measured = s.epochs // s.evaluate_epochs * rows.dev if s.evaluate_epochs else 0.0
        prompts = passes / max(1.0, s.refresh_epochs) if task and s.prompt_branch else 0.0
        counted = Sequences(
            answers=measured,
            rewrites=prompts + (measured if s.prompt_branch else 0.0),
            actor_trained=passes if task else 0.0,
            encoded=(passes + (rows.train if s.state_scaling == "standard" else 0.0))
            if s.parameter_branch == "query"
            else 0.0,
            generator_trained=passes if s.prompt_branch else 0.0,
        )
        return Loop(
            counted,
            writes_prompts=s.prompt_branch,
            more_weights=partial(parameter_weights, s),
            keeps_required=True,
            batch=math.ceil(s.batch_size / s.accumulation),
            merged_actor=True,
        )

    def fit(self, lab: Lab) -> "MetaTunerPolicy":
        from metatuner.method.rollouts import collect_rewrites
        from metatuner.method.training import train_joint
        from metatuner.method.tuner import MetaTuner

        config: MetaTunerConfig = self.settings
        if config.evaluate_epochs is not None and not lab.dev:
            raise UserError(f"{self.name}: evaluate_epochs needs dev rows; set sizes.dev above 0, or it to null")
        warm = load_policy(lab.required(MetaTunerWarmUp.name), lab)
        assert isinstance(warm, WarmUpPolicy)
        tuner = MetaTuner(
            warm.generator,
            warm.actor_with_lora,
            config,
            max_prompt_tokens=warm.config.max_prompt_tokens,
            seed=lab.stream("parameter_decoder"),
        )
        examples = _examples(lab)

        def refresh() -> "list[Rewrite]":
            seed, reward = lab.stream("rollouts anew"), _reward(lab, warm.actor)
            return collect_rewrites(tuner.generator, examples, reward, warm.config, seed=seed, log=lab.log)[0]

        policy = MetaTunerPolicy(lab, tuner, warm.actor_with_lora, warm.config)

        def evaluate() -> float:
            return mean(lab.reward(lab.dev, policy.respond([to_query(row) for row in lab.dev])))

        train_joint(
            tuner,
            examples,
            warm.d2,
            seed=lab.stream("joint"),
            log=lab.log,
            covered=lab.budget.for_steps(),
            evaluate=None if config.evaluate_epochs is None else evaluate,
            refresh=None if config.d2_refresh_epochs is None else refresh,
        )
        return policy


def parameter_weights(settings: MetaTunerConfig, actor: Shape, generator: Shape) -> float:
    """Number of weights of the parameter decoder: a down and an up projection for each site and factor.

    For a static LoRA it is the number of weights in its factors.
    """
    if settings.parameter_branch == "none":
        return 0.0
    sides, modules = actor.linears, settings.target_modules
    chosen = sides if modules == "all-linear" else {name: sides[name] for name in modules}
    if settings.parameter_branch == "static":
        return actor.layers * sum(settings.rank * sum(side) for side in chosen.values())
    down = 2 * generator.hidden * settings.bottleneck
    each = [down + settings.bottleneck * settings.rank * sum(side) for side in chosen.values()]
    return (1 if settings.decoder == "layer_shared" else actor.layers) * sum(each)


@dataclass(frozen=True)
class AlternatingConfig(MetaTunerConfig):
    """Settings of MetaTuner-I: the settings of MetaTuner-J with another default objective."""

    objective: Literal["joint", "alternating", "gumbel"] = "alternating"
    """See `MetaTunerConfig`."""


class MetaTunerI(MetaTunerJ):
    """Trains both branches by steps on one loss term, then on the other, starting from the common warm-up."""

    name = "metatuner_i"
    title = "MetaTuner-I"
    deviations = (*MetaTunerJ.deviations, "How often the terms alternate is not public; here it is a setting.")
    Settings = AlternatingConfig


@register_policy("metatuner_warmup")
class WarmUpPolicy(Policy):
    """The warmed actor answers under the warmed generator's prompts: MetaTuner without its parameter branch (w/o F)."""

    def __init__(
        self, ground: Ground, generator: "LM", actor: "LM", config: WarmUpConfig, d2: Sequence["Rewrite"]
    ) -> None:
        """`generator` and `actor` are private versions of the ground's models; the actor carries its LoRA unmerged."""
        self.ground, self.generator, self.config, self.d2 = ground, generator, config, list(d2)
        self.actor_with_lora = actor

    @cached_property
    def actor(self) -> "LM":
        """The warmed actor with its LoRA merged."""
        from metatuner.lm.adapters import merged

        return merged(self.actor_with_lora)

    def write_prompts(self, queries: Sequence[Query]) -> list[str]:
        """The warmed generator's prompt for each query."""
        from metatuner.method.prompt_decoder import write_prompts

        return write_prompts(
            self.generator,
            _initial_prompts(self.ground, queries),
            [query.text for query in queries],
            max_prompt_tokens=self.config.max_prompt_tokens,
        )

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        return Prepared(self.write_prompts(queries), actor=self.actor)

    def write(self, folder: Path) -> dict[str, Any]:
        from metatuner.method.tuned import save_tensors, trainable

        save_tensors(dict(trainable(self.generator)), folder / "generator.safetensors")
        save_tensors(dict(trainable(self.actor_with_lora)), folder / "actor.safetensors")
        write_lines(folder / "d2.jsonl", (asdict(row) for row in self.d2))
        return {"config": asdict(self.config)}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "WarmUpPolicy":
        from metatuner.method.data import Rewrite
        from metatuner.method.tuned import load_tensors, trainable

        config = make_settings(MetaTunerWarmUp, state["config"], str(folder))
        generator, actor = _private_models(ground, config, folder)
        load_tensors(dict(trainable(generator)), folder / "generator.safetensors")
        d2 = [Rewrite(**record) for record in read_lines(folder / "d2.jsonl", "fit it again")]
        return cls(ground, generator, actor, config, d2)


@register_policy("metatuner")
class MetaTunerPolicy(Policy):
    """Gives each query its own prompt and LoRA factors, if the configuration has these branches."""

    def __init__(self, ground: Ground, tuner: "MetaTuner", actor: "LM", warm_up: WarmUpConfig) -> None:
        """`actor` is the warmed actor with its LoRA unmerged; `tuner` runs it merged, or trains it further."""
        self.ground, self.tuner, self.actor_with_lora, self.warm_up = ground, tuner, actor, warm_up

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        initial, texts = _initial_prompts(self.ground, queries), [query.text for query in queries]
        written, adapt = self.tuner.prepare(initial, texts)
        return Prepared(written, adapt=adapt, actor=self.tuner.actor)

    def write(self, folder: Path) -> dict[str, Any]:
        from metatuner.method.tuned import save_tensors, trainable

        self.tuner.save(folder)
        save_tensors(dict(trainable(self.actor_with_lora)), folder / "actor.safetensors")
        return {"config": asdict(self.tuner.config), "warm_up": asdict(self.warm_up)}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "MetaTunerPolicy":
        from metatuner.method.tuner import MetaTuner

        config = make_settings(MetaTunerJ, state["config"], str(folder))
        warm_up = make_settings(MetaTunerWarmUp, state["warm_up"], str(folder))
        generator, actor = _private_models(ground, warm_up, folder)
        tuner = MetaTuner(generator, actor, config, max_prompt_tokens=warm_up.max_prompt_tokens)
        tuner.load(folder)
        return cls(ground, tuner, actor, warm_up)


def _examples(lab: Lab) -> list["Example"]:
    """The train rows as D1."""
    from metatuner.method.data import Example

    return [Example(lab.initial_prompt(row), row.query, row.target) for row in lab.train]


def _reward(lab: Lab, actor: "LM") -> Callable[[list[int], list[str]], list[float]]:
    """A function from indices of train rows and prompts to the rewards of the actor's answers."""

    def reward(indices: list[int], prompts: list[str]) -> list[float]:
        rows = [lab.train[index] for index in indices]
        return lab.reward(rows, lab.answer([to_query(row) for row in rows], prompts, actor=actor))

    return reward


def _initial_prompts(ground: Ground, queries: Sequence[Query]) -> list[str]:
    return [ground.benchmark(query.benchmark).initial_prompt for query in queries]


def _private_models(ground: Ground, config: WarmUpConfig, folder: Path) -> tuple["LM", "LM"]:
    """The generator, ready to load its saved weights, and the warmed actor with its LoRA."""
    from metatuner.method.tuned import load_tensors, to_train, trainable

    generator = to_train(ground.need_generator(), config.trainable, config.generator_rank, seed=0)
    actor = to_train(ground.actor, "lora", config.actor_rank, seed=0)
    load_tensors(dict(trainable(actor)), folder / "actor.safetensors")
    return generator, actor
