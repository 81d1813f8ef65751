"""What a plan needs of other people's methods."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.describe import describe_method
from metatuner.harness.importing import told
from metatuner.harness.method import Method, make_settings, settings_dict
from metatuner.hashing import canonical, hash_code

LONGEST_NAME = 100


def check_plannable(cls: type[Method], file: Path, beside: tuple[Path, ...]) -> None:
    """Raise UserError, naming the file, unless a plan can describe, hash and configure a method of other people's."""
    if len(cls.name) > LONGEST_NAME:
        raise UserError(f"{file}: a method's name has at most {LONGEST_NAME} letters; shorten it")
    if not isinstance(cls.requires, tuple) or not all(isinstance(name, str) for name in cls.requires):
        raise UserError(f"{file}: `requires` of {cls.name} must be a tuple of methods' names, got {cls.requires!r}")
    if cls.name in cls.requires:
        raise UserError(f"{file}: {cls.name} requires itself; leave it out")
    for setting in fields(cls.Settings):
        if setting.init and setting.default is MISSING and setting.default_factory is MISSING:
            raise UserError(f"{file}: setting {setting.name!r} of {cls.name} has no default; give it one")
    try:
        settings = cls.Settings()
        for name, value in settings_dict(settings).items():
            if not _is_json(value):
                raise UserError(f"{file}: default {value!r} of setting {name!r} of {cls.name} is no finite JSON value")
        make_settings(cls, {}, f"{file}: {cls.name}")
        if not _is_json(describe_method(cls)):
            raise UserError(f"{file}: a text of {cls.name} holds half a character (a lone surrogate); remove it")
        bool(cls(settings).asks_proposer)
        hash_code(file, data=beside)
    except UserError:
        raise
    except UnicodeEncodeError:
        raise UserError(f"{file}: a text holds half a character (a lone surrogate); write it as chr(...)") from None
    except RecursionError:
        raise UserError(f"{file}: an expression is nested too deeply to be hashed; split it") from None
    except Exception as error:  # code of other people
        raise UserError(f"{file}: {cls.name} cannot be planned: {told(error)}; mend it") from error


def _is_json(value: Any) -> bool:
    try:
        canonical(value).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True
