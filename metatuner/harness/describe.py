"""What a method states about itself, as JSON, for `metatuner methods` and for tables that are made from files alone."""

import ast
import inspect
import textwrap
from dataclasses import fields
from typing import Any

from metatuner.harness.method import Method, settings_dict


def describe_method(cls: type[Method]) -> dict[str, Any]:
    """Name, family, reference, deviations and settings (each with its default and meaning) of a method."""
    defaults, meanings = settings_dict(cls.Settings()), field_meanings(cls.Settings)
    return {
        "name": cls.name,
        "title": cls.title,
        "summary": inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        "family": cls.family,
        "internal": cls.internal,
        "requires": list(cls.requires),
        "uses_generator": cls.uses_generator,
        "settings": [
            {"name": name, "default": default, "meaning": meanings.get(name, "")} for name, default in defaults.items()
        ],
        "reference": cls.reference,
        "deviations": list(cls.deviations),
    }


def field_meanings(settings: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass and of its bases, read from the source.

    If a subclass declares a field again with the docstring "See `Base`.", the field keeps the meaning from its base.
    """
    found: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        own = vars(cls).get("__annotations__")
        if not own:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError):  # the class has no source file
            continue
        (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                text = after.value.value if isinstance(after.value, ast.Constant) else None
                if isinstance(text, str) and not (text.startswith("See `") and node.target.id in found):
                    found[node.target.id] = " ".join(text.split())
    return {field.name: found[field.name] for field in fields(settings) if field.name in found}
