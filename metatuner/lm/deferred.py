"""Weights that are loaded when something here needs them; until then a server answers with its own copy of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

from metatuner.server import Reply

Class = TypeVar("Class", bound=type)


class Answers(Protocol):
    """A server that completes prompts."""

    @property
    def described(self) -> dict[str, str]:
        """What a fit's log says about it."""

    def answers(
        self,
        lm: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stops: Sequence[str],
        temperature: float,
        top_p: float,
        seeds: Sequence[int] | None,
    ) -> Iterator[Reply]:
        """A reply to each prompt, in order; the arguments are those of `metatuner.lm.generate`."""


@dataclass
class Deferred:
    """Stands in an `LM` for a model that is not loaded yet."""

    load: Callable[[], Any]
    """Makes the local `LM`."""
    engine: Answers
    outline: Any
    """The model without weights, on torch's meta device: its config, and the shapes of its tensors."""
    waiting: list[Callable[[], Any]] = field(default_factory=list)
    """Called once the model is loaded."""

    @cached_property
    def lm(self) -> Any:
        """The local `LM`."""
        return self.load()

    def loaded(self) -> Any:
        """The local `LM`; the first call loads it."""
        lm = self.lm
        while self.waiting:
            self.waiting.pop(0)()
        return lm

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are here."""
        return "lm" in vars(self)


def deferrable(*names: str) -> Callable[[Class], Class]:
    """Class decorator for a dataclass: these fields may hold a `Deferred`, and reading one loads what it stands for."""

    def decorate(cls: Class) -> Class:
        for name in names:
            setattr(cls, name, _Field(name))
        return cls

    return decorate


class _Field:
    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        value = vars(instance)[self.name]
        return getattr(value.loaded(), self.name) if isinstance(value, Deferred) else value

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value
