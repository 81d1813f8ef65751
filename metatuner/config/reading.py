"""YAML as people write it, in presets and after `key=`: one reader for both, and what it refuses.

Scalars are read as in YAML 1.2: `yes` and `no` are text, 1e-4 is a number, and no text becomes a date.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metatuner.errors import UserError

DEPTH = 50
"""The deepest nesting of a config; a preset has about six levels."""
VALUES = 100_000
"""The most values of a YAML text, with every alias written out; a preset has a few hundred."""
QUOTE = "put a text with special characters in quotes"
_DIGITS = 18
"""The longest whole number, so that it fits in 64 bits."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, recursive aliases, and texts that grow without bound."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # none of YAML 1.1

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEPTH:  # else the time to find out grows with the square of the depth
            raise _Refused(problem=f"nested deeper than {DEPTH} levels; write it flatter", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _measure(node, {})
        return node


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is no sound config."""


def _refused(node: Any, what: str) -> _Refused:
    return _Refused(problem=what, problem_mark=node.start_mark)


def _measure(node: Any, sizes: dict[int, int | None], depth: int = 0) -> int:
    """The number of values below a node, each alias counted again; raises if the text is not a sound tree."""
    if depth > DEPTH:
        raise _refused(node, f"nested deeper than {DEPTH} levels; write it flatter")
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise _refused(node, "an alias stands inside what it names; write the value out")
        return known
    sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a key must be a word; put it in quotes")
            if (key.tag, key.value) in seen:
                raise _refused(key, f"key {key.value!r} stands twice; keep one")
            seen.add((key.tag, key.value))
            size += 1 + _measure(value, sizes, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_measure(each, sizes, depth + 1) for each in node.value)
    if size > VALUES:
        raise _refused(node, f"more than {VALUES:,} values, with aliases written out; write fewer")
    sizes[id(node)] = size
    return size


_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_SCALARS = {
    _NULL: re.compile(r"~|null|Null|NULL|"),
    _BOOL: re.compile(r"true|True|TRUE|false|False|FALSE"),
    _INT: re.compile(rf"[-+]?[0-9]{{1,{_DIGITS}}}"),
    _FLOAT: re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    "tag:yaml.org,2002:merge": re.compile("<<"),
}
for _tag, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), None)
_Loader.add_constructor(_INT, lambda loader, node: int(loader.construct_scalar(node)))


def parse(text: str, place: str) -> Any:
    """The value of a YAML text. UserError names the place, the line and the remedy."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        character = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        raise UserError(f"{place}, line {number}: YAML allows no character {character}; remove it") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        remedy = "indent with blanks, not with tabs" if r"'\t'" in said else QUOTE
        told = said if isinstance(error, _Refused) else f"not valid YAML ({said}); {remedy}"
        raise UserError(f"{place}{line}: {told}") from None
    except RecursionError:
        raise UserError(f"{place}: nested deeper than {DEPTH} levels; write it flatter") from None
    except ValueError as error:  # an explicit tag (!!int) before what is none
        raise UserError(f"{place}: not valid YAML ({' '.join(str(error).split())[:200]}); {QUOTE}") from None


def read_yaml(path: Path, place: str, remedy: str = "name a file that can be read") -> Any:
    """The value of a YAML file in UTF-8; `remedy` is for a file that cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8"), place)
    except UnicodeDecodeError:
        raise UserError(f"{place}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}; {remedy}") from None


def scalar(text: str) -> Any:
    """What an unquoted word of a YAML text means: a number, a truth value, null or itself."""
    if _SCALARS[_NULL].fullmatch(text):
        return None
    if _SCALARS[_BOOL].fullmatch(text):
        return text.lower() == "true"
    if _SCALARS[_INT].fullmatch(text):
        return int(text)
    return (
        float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if _SCALARS[_FLOAT].fullmatch(text) else text
    )


def check_values(value: Any, key: str = "", depth: int = 0) -> None:
    """UserError unless a config's value is finite JSON that files, paths and hashes can hold."""
    where = f"config key {key!r}" if key else "config"
    if depth > DEPTH:
        raise UserError(f"{where}: nested deeper than {DEPTH} levels; write it flatter")
    if isinstance(value, Mapping):
        for name, each in value.items():
            if not isinstance(name, str):
                raise UserError(f"{where}: {name!r} is no name of a key; put it in quotes, if it is one")
            check_values(name, f"{key}.{name}" if key else name, depth + 1)
            check_values(each, f"{key}.{name}" if key else name, depth + 1)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            check_values(each, f"{key}.{number}", depth + 1)
    elif isinstance(value, str):
        odd = next((each for each in value if each == "\0" or 0xD800 <= ord(each) <= 0xDFFF), None)
        if odd is not None:
            raise UserError(f"{where}: holds U+{ord(odd):04X}, which no file can; remove it")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}: {value} is no finite number; leave it out, or use null if the key allows it")
    elif isinstance(value, int):
        if not -(10**_DIGITS) < value < 10**_DIGITS:
            raise UserError(f"{where}: a whole number has at most {_DIGITS} digits")
    elif value is not None:
        raise UserError(f"{where}: {type(value).__name__} is no value of a config; put it in quotes, if it is a text")
