"""What an author writes: a method is one file with a name, settings, and `fit(lab) -> Policy`."""

import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from metatuner.errors import UserError, suggest
from metatuner.harness.loop import Loop, Rows, Shares
from metatuner.hashing import canonical

if TYPE_CHECKING:
    from metatuner.harness.lab import Lab
    from metatuner.harness.policy import Policy

Family = Literal["vanilla", "prompt", "parameter", "hybrid"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""Types for fields of Settings. A value out of range is an error before anything runs; the error names the key."""

NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class NoSettings:
    """For a method without settings."""


class Method(ABC):
    """A way of fitting the actor (or its prompts) to a benchmark's train rows.

    The harness handles timing, tokens, seeds, splits, saving and failures. The method defines `fit`.
    """

    name: ClassVar[str]
    """Lower-case letters, digits and underscores; the name in the config and in scores.csv."""
    title: ClassVar[str]
    """The name in tables and figures."""
    family: ClassVar[Family]
    reference: ClassVar[str]
    """Where the method is described (paper or repository)."""
    deviations: ClassVar[tuple[str, ...]] = ()
    """Differences from the reference, one sentence each."""
    Settings: ClassVar[type[Any]] = NoSettings
    """A frozen dataclass. Its defaults apply unless a preset overrides them."""
    uses_generator: ClassVar[bool] = False
    """False: a cell of this method does not depend on the generator, and is computed once."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Methods that must be fitted first, on the same rows and seed. `lab.required(name)` is the saved policy."""
    internal: ClassVar[bool] = False
    """True for a method that only other methods use (a warm-up). It never appears in a table."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    @property
    def asks_proposer(self) -> bool:
        """Whether `models.proposer` proposes prompts under these settings, if the config names it.

        Only then a lab has a `proposer`, and a fit depends on it.
        """
        return False

    def skip(self, lab: "Lab") -> str | None:
        """A reason why this method cannot run here (no generator, no rationales), or None."""
        return None

    def loop(self, rows: Rows, shares: Shares) -> Loop | None:
        """Counts of what one `fit` on these rows does. None: `metatuner cost` lists the method as not counted."""
        return None

    @abstractmethod
    def fit(self, lab: "Lab") -> "Policy":
        """Fit on `lab.train` (with `lab.dev` for choices within the fit); return the policy to evaluate."""


def check_method(cls: type[Method], where: str) -> None:
    """Raise UserError, with an instruction to the author, if a method's class attributes are invalid."""
    for attribute in ("name", "title", "family", "reference"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise UserError(f"{where}: class {cls.__name__} needs `{attribute}` (a string)")
    if not NAME.fullmatch(cls.name):
        raise UserError(f"{where}: method name {cls.name!r} must match [a-z][a-z0-9_]*; rename it")
    if cls.family not in get_args(Family):
        raise UserError(f"{where}: family {cls.family!r}; {suggest(cls.family, get_args(Family))}")
    if not (is_dataclass(cls.Settings) and isinstance(cls.Settings, type)):
        raise UserError(f"{where}: `Settings` of {cls.name} must be a dataclass type")


def make_settings(cls: type[Method], values: dict[str, Any], where: str) -> Any:
    """The method's settings dataclass from config values, with types checked; errors name the place `where`."""
    known = [field.name for field in fields(cls.Settings)]
    for name in values:
        if name not in known:
            raise UserError(f"{where}: unknown setting {name!r} of method {cls.name}; {suggest(name, known)}")
    try:
        # Read as JSON: strict about types, but a list is accepted as a tuple and 1 as a float.
        read = _reader(cls.Settings)  # type: ignore[arg-type]  # a class is hashable
        return read.validate_json(canonical(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}.{key}: {first['msg']}, got {first['input']!r}") from None


@cache
def _reader(settings: Any) -> TypeAdapter[Any]:
    return TypeAdapter(settings)


def settings_dict(settings: Any) -> dict[str, Any]:
    """Settings as JSON values: a tuple is a list."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
