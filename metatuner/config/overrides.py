"""Keys and values that replace a preset's: as words `key=value`, and as Snakemake's `--config` reads them.

A value that the config takes as text stays as it is, whatever it looks like (`yes`, `5`, `*think* step`).
"""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from metatuner.config.reading import DEPTH, VALUES, parse, scalar
from metatuner.config.types import Config
from metatuner.errors import UserError

NULLS = ("null", "Null", "NULL", "~")


def type_at(location: Sequence[str | int]) -> Any:
    """The type of a config's value at a location; Any if the types leave it open, None if there is no such key."""
    here: Any = Config
    for part in location:
        inner = None
        for arm in arms(here):
            if arm is Any:
                return Any
            if get_origin(arm) in (dict, list):
                inner = get_args(arm)[-1]
            elif isinstance(arm, type) and issubclass(arm, BaseModel) and part in arm.model_fields:
                inner = arm.model_fields[str(part)].annotation
        here = inner
    return here


def arms(annotation: Any) -> list[Any]:
    """The types that a value may have: those of a union, else the one; without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [arm for each in get_args(annotation) for arm in arms(each)]
    return [annotation]


def takes_text(location: Sequence[str]) -> bool:
    """Whether the config's value at a location is a text (or null), whatever it looks like."""
    types = arms(type_at(location))
    return str in types and set(types) <= {str, NoneType}


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` words: the value is YAML, and the key may be dotted."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is no key=value; e.g. preset=smoke or tuning.trials=2")
        if key in found:
            raise UserError(f"{key}: given twice; keep one")
        found[key] = _read(key, text)
    return found


def _read(key: str, text: str) -> Any:
    quoted = text.lstrip().startswith(("'", '"'))
    if takes_text(key.split(".")) and not quoted:
        return None if text in NULLS else text
    try:
        return parse(text, key)
    except UserError:
        if not quoted and not text.lstrip().startswith(("{", "[")):
            return text
        raise


def from_snakemake(config: Mapping[str, Any]) -> dict[str, Any]:
    """Typed values from Snakemake's `--config`, which leaves everything inside mappings and lists as text.

    UserError if Snakemake took a mapping or list for a text because it is not valid YAML.
    """
    for key, value in config.items():
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")) and not takes_text([key]):
            parse(value, f"--config {key}")
    count = 0

    def typed(value: Any, location: tuple[str, ...]) -> Any:
        nonlocal count
        count += 1
        if count > VALUES or len(location) > DEPTH:
            raise UserError(
                f"--config {location[0]}: nested deeper than {DEPTH} levels, or too large; write it flatter"
            )
        if isinstance(value, Mapping):
            return {key: typed(item, (*location, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [typed(item, (*location, str(place))) for place, item in enumerate(value)]
        if not isinstance(value, str) or not value.strip():
            return value
        if takes_text(location):
            return None if value in NULLS else value
        return scalar(value)

    return {key: typed(value, (key,)) for key, value in config.items()}
