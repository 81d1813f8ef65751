"""The settings of fits, from a preset, a variant or a search's winner; and what a winner is valid for.

A *subject* of searches is a method ("metatuner_j") or one of its own variants ("metatuner_j.without_p").
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from statistics import median_low
from typing import Any

from metatuner.config import BudgetConfig, Config, MethodConfig, ProposerConfig, SearchConfig, merge
from metatuner.errors import UserError, suggest
from metatuner.harness.method import make_settings, settings_dict
from metatuner.harness.registry import Registry
from metatuner.hashing import ROOT, hash_value
from metatuner.plan.keys import Keys
from metatuner.plan.types import Resolved
from metatuner.plan.winners import Winner, read_winners


class Settings:
    """Resolves settings, and knows which stored winners are current. Building it checks all settings of the preset."""

    def __init__(self, config: Config, registry: Registry, keys: Keys) -> None:
        self.config, self.registry, self.keys = config, registry, keys
        winners = config.tuning.winners
        self.winners: dict[tuple[str, str], Winner] = read_winners(ROOT / winners) if winners else {}
        self.expired: set[tuple[str, str]] = set()
        """Winners that were needed so far but are not current."""
        for name, method in config.methods.items():
            known = registry[name].cls  # an unknown name is an error here
            if known.internal and (method.search or method.variants):
                key = "search" if method.search else "variants"
                raise UserError(
                    f"methods.{name}.{key}: {name!r} only serves other methods and is not tuned; leave it out"
                )
            for subject in (name, *(f"{name}.{variant}" for variant in method.variants)):
                self._check(subject)

    # ---- subjects ----------------------------------------------------------------------------------------------

    @cache
    def subject(self, subject: str) -> MethodConfig:
        """A subject's config: the method's config, with what the variant sets."""
        name, _, variant = subject.partition(".")
        method = self.config.methods.get(name) or MethodConfig()  # type: ignore[call-arg]
        if not variant:
            return method
        if variant not in method.variants:
            raise UserError(f"methods.{name}.variants: no variant {variant!r}; {suggest(variant, method.variants)}")
        own = method.variants[variant]
        search = method.search if own.search is None else own.search
        return method.model_copy(update={"settings": merge(method.settings, own.settings), "search": search})

    def place(self, subject: str, key: str) -> str:
        """Where a subject's key stands in the config."""
        method, _, variant = subject.partition(".")
        return f"methods.{method}.variants.{variant}.{key}" if variant else f"methods.{method}.{key}"

    def _check(self, subject: str) -> None:
        config = self.subject(subject)
        for over in ({}, *({setting: _first(space)} for setting, space in config.search.items())):
            place = self.place(subject, "search" if over else "settings")
            self._checked(subject.partition(".")[0], {**config.settings, **over}, place)

    def _checked(self, method: str, values: Mapping[str, Any], where: str) -> Resolved:
        """Settings of a method and of the methods it requires, from config values; errors name the place `where`."""
        registered = self.registry[method]
        cls = registered.cls
        required = {name: values[name] for name in cls.requires if name in values}
        own = {} if registered.broken else {name: value for name, value in values.items() if name not in cls.requires}
        known = [field.name for field in fields(cls.Settings)] + list(cls.requires)
        for name in own:
            if name not in known:
                raise UserError(f"{where}: unknown setting {name!r} of method {method}; {suggest(name, known)}")
        for name, over in required.items():
            if not isinstance(over, dict):
                raise UserError(f"{where}.{name}: must be a mapping of {name}'s settings, got {over!r}")
            make_settings(self.registry[name].cls, over, f"{where}.{name}")
        return Resolved(make_settings(cls, own, where), required)

    def resolve(
        self,
        subject: str,
        train: tuple[str, ...],
        over: Mapping[str, Any] | None = None,
        *,
        winners: bool = True,
        generator: str | None = None,
        where: str = "",
    ) -> Resolved:
        """A fit's settings with a generator (None: the one of the searches).

        Later sources override earlier ones:

        1. the dataclass's defaults,
        2. the preset's `settings`,
        3. the settings of the method's variant, if the subject names one,
        4. the subject's stored winner of this benchmark, if it is current and was found with this generator,
        5. `over`, from an experiment's variant; `where` is its place in the config.

        If a fit trains on several benchmarks, each searched setting is the median of its values in their winners (the
        lower median of an even number). So no row of another benchmark influences the choice.
        """
        config, method = self.subject(subject), subject.partition(".")[0]
        values: dict[str, Any] = dict(config.settings)
        tuned = "none"
        elsewhere = generator not in (None, self.tuning_generator) and self.registry[method].cls.uses_generator
        if elsewhere and config.search:
            tuned = "untuned"
        elif winners and config.search and train:
            found, tuned = self._winners_of(subject, train)
            if found and len(train) == 1:
                values = merge(values, found[0].settings)
            elif found:
                own = self._checked(method, values, self.place(subject, "settings")).values
                for name, space in config.search.items():
                    chosen = [winner.settings.get(name, own[name]) for winner in found]
                    values[name] = median_low(chosen) if _ordered(chosen) else _middle(chosen, space)
        resolved = self._checked(method, merge(values, over or {}), where or self.place(subject, "settings"))
        return Resolved(resolved.own, resolved.required, tuned)

    def searched(self, subject: str, over: Mapping[str, Any]) -> dict[str, Any]:
        """All searched settings of a trial, including settings that it leaves as the preset has them."""
        values = self.resolve(subject, (), over, winners=False).values
        return {name: values[name] for name in self.subject(subject).search}

    # ---- winners -----------------------------------------------------------------------------------------------

    @property
    def tuning_generator(self) -> str:
        """The generator that searches use: the main experiment's first."""
        return self.config.experiments[self.config.main].generators[0]

    @cache
    def winner_key(self, subject: str, benchmark: str) -> str:
        """A hash of what a winner is valid for: subject, search space, fixed settings, budget, rows, models, trials.

        Code and package versions are left out, because only another search replaces a search.
        """
        config, method = self.subject(subject), subject.partition(".")[0]
        cls = self.registry[method].cls
        over = {name: config.settings.get(name) for name in cls.requires}
        own = self.resolve(subject, (), winners=False).own
        proposer = self.proposer(method, own)
        depends: dict[str, Any] = {
            "subject": subject,
            "benchmark": benchmark,
            "search": {name: space.model_dump(mode="json") for name, space in config.search.items()},
            "fixed": config.settings,
            "required": [self.resolve(name, (benchmark,), over[name]).values for name in cls.requires],
            "budget": self.budget(method).limits((benchmark,)),
            "data": self.keys.data_identity(benchmark),
            "actor": self.keys.model_identity("actor"),
            "generator": self.keys.model_identity(self.tuning_generator) if cls.uses_generator else None,
            "trials": self.config.tuning.trials,
            "seed": self.config.tuning.seed,
        }
        if proposer is not None:
            depends["proposer"] = proposer.identity
        if self.budget(method).tflop is not None:  # then predictions decide what is drawn
            depends["forecast"] = self.keys.forecast
        if self.config.tuning.finalists > 1:
            depends["finalists"] = [self.config.tuning.finalists, self.config.tuning.more_seeds]
        return hash_value(depends)

    def is_current(self, winner: Winner) -> bool:
        """Whether a stored winner is valid for this preset."""
        return winner.key == self.winner_key(winner.method, winner.benchmark)

    def _winners_of(self, subject: str, train: tuple[str, ...]) -> tuple[list[Winner], str]:
        """Current winners of all train benchmarks (none if one is missing or expired), and the word for `tuned`."""
        stored = {name: self.winners.get((subject, name)) for name in train}
        found = [one for one in stored.values() if one and self.is_current(one)]
        if len(found) == len(train):
            return found, "winner" if len(train) == 1 else "medians"
        self.expired |= {(subject, name) for name, one in stored.items() if one and one not in found}
        return [], "expired" if all(stored.values()) else "untuned"

    # ---- what goes with a method -------------------------------------------------------------------------------

    def budget(self, method: str) -> BudgetConfig:
        """The limits of a method's fits."""
        return self.config.budgets[self.budget_name(method)]

    def budget_name(self, method: str) -> str:
        """The name of a method's budget."""
        return self.subject(method).budget

    def proposer(self, method: str, settings: Any) -> ProposerConfig | None:
        """The server that proposes prompts to a method under these settings; None if it uses none."""
        server, cls = self.config.models.proposer, self.registry[method].cls
        return server if server and cls(settings).asks_proposer else None

    def framework(self) -> dict[str, Any] | None:
        """What the drawing of MetaTuner shows: settings, models, K. None if no experiment has it."""
        used = {method for experiment in self.config.experiments.values() for method in experiment.methods}
        if "metatuner_j" not in used:
            return None
        role = self.tuning_generator
        return {
            "settings": settings_dict(self.resolve("metatuner_j", (), winners=False).own),
            "generator": self.keys.model_config(role).hub.rsplit("/", 1)[-1],
            "actor": self.keys.model_config("actor").hub.rsplit("/", 1)[-1],
            "layers": self.keys.layers(role),
        }


def _ordered(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _middle(chosen: Sequence[Any], space: SearchConfig) -> Any:
    """The lower median by the order of the space's values; values that are not among them come last."""
    order = list(space.values or [])
    ranked = sorted(chosen, key=lambda value: order.index(value) if value in order else len(order))
    return ranked[(len(ranked) - 1) // 2]


def _first(space: SearchConfig) -> Any:
    return space.values[0] if space.values is not None else space.low
