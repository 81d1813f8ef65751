"""Methods by name: every file of baselines/, entry points of other packages, and files that a user names."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from metatuner.errors import UserError, suggest
from metatuner.harness.importing import BrokenFile, import_file, siblings, told
from metatuner.harness.method import NAME, Method, check_method
from metatuner.harness.plannable import check_plannable
from metatuner.harness.policy import Policy
from metatuner.hashing import ROOT

ENTRY_POINT_GROUP = "metatuner.methods"


@dataclass(frozen=True)
class Registered:
    """A method's class and its file. The hash of its code starts from this file."""

    cls: type[Method]
    file: Path
    beside: tuple[Path, ...] = ()
    """For a method from elsewhere: files of its package or folder that it may import, hashed with its code."""
    broken: bool = False
    """A placeholder for a file that does not import. It takes any settings, and its fits fail with the reason."""


class Registry:
    """All available methods, by name.

    A user's file that does not import, or that has no valid method, is still registered, under the file's name. A
    broken entry point is registered under the entry point's name. Such a method fails with the author's error: its
    cells fail, and all other cells continue.
    """

    def __init__(self, extra_files: Sequence[str | Path] = ()) -> None:
        self._found: dict[str, Registered] = {}
        self.extra: list[str] = []
        """Names of the methods in other packages and in the user's own files."""
        for file in sorted((ROOT / "baselines").glob("[!_]*.py")):
            self._add_module(importlib.import_module(f"baselines.{file.stem}"), file)
        own = set(self._found)
        for point in sorted(set(entry_points(group=ENTRY_POINT_GROUP)), key=lambda point: point.name):
            self._add_point(point)
        for name in extra_files:
            self._add_file(Path(name).resolve())
        self.extra += [found for found in self._found if found not in own]
        for found in self.extra:
            if wrong := self._wrong_needs(found):
                file = self._found.pop(found).file
                self._add_broken(found, BrokenFile(f"{file}: {found} {wrong}"))

    def _add_file(self, file: Path) -> None:
        """Add the methods of a user's file; if any is broken, a placeholder for them all."""
        if not file.is_file():
            raise UserError(f"extra_methods: no file {file}; `metatuner new-method NAME` writes one")
        try:
            self._add_module(import_file(file, "extra_methods"), file, siblings(file), foreign=True)
        except BrokenFile as error:
            self._add_broken(file.stem, error)
        except Exception as error:  # a class of the author's may raise anything
            self._found = {name: each for name, each in self._found.items() if each.file != file}
            reason = str(error) if isinstance(error, UserError) else f"{file}: {told(error)}; mend it"
            self._add_broken(file.stem, BrokenFile(reason))

    def _wrong_needs(self, name: str, chain: tuple[str, ...] = ()) -> str:
        """What is wrong with the methods that a method requires, directly or not; "" if nothing is."""
        if name in chain:
            return f"requires itself by way of {chain[-1]}; break the circle"
        for needed in self._found[name].cls.requires:
            if needed not in self._found:
                return f"requires the unknown method {needed!r}; {suggest(needed, self._found)}"
            if wrong := self._wrong_needs(needed, (*chain, name)):
                return wrong
        return ""

    def _add_point(self, point: EntryPoint) -> None:
        """Add a method of another package (`module:Class`), or all methods of one of its modules."""
        try:
            found = point.load()
            classes = _methods_of(found, point.module.split(".")[0]) if isinstance(found, ModuleType) else [found]
            for cls in classes:
                if not (isinstance(cls, type) and issubclass(cls, Method)):
                    raise TypeError(f"{cls!r} is no subclass of metatuner.harness.method.Method")
                if cls.name not in self._found or self._found[cls.name].cls is not cls:
                    file = Path(str(sys.modules[cls.__module__].__file__))
                    top = Path(str(sys.modules[cls.__module__.split(".")[0]].__file__))
                    beside = sorted(top.parent.rglob("*.py")) if top.name == "__init__.py" else [top]
                    self._add(cls, file, tuple(beside), foreign=True)
            if not classes:
                raise TypeError("it has no subclass of metatuner.harness.method.Method with `fit`")
        except (Exception, SystemExit) as error:  # another package may raise anything
            reason = f"entry point {point.name!r} ({point.value}) does not import: {told(error)}"
            broken = BrokenFile(f"{reason}; mend or remove its package")
            broken.__cause__ = error
            self._add_broken(point.name, broken)

    def _add_module(self, module: ModuleType, file: Path, beside: tuple[Path, ...] = (), foreign: bool = False) -> None:
        classes = _methods_of(module, module.__name__)
        if not classes:
            raise UserError(f"{file}: no method here; define a subclass of metatuner.harness.method.Method with `fit`")
        for cls in classes:
            self._add(cls, file, beside, foreign)

    def _add(self, cls: type[Method], file: Path, beside: tuple[Path, ...], foreign: bool) -> None:
        check_method(cls, str(file))
        if foreign:
            check_plannable(cls, file, beside)
        if cls.name in self._found:
            raise UserError(f"method {cls.name!r} is defined in {self._found[cls.name].file} and in {file}; rename one")
        self._found[cls.name] = Registered(cls, file.resolve(), beside)

    def _add_broken(self, name: str, error: "BrokenFile") -> None:
        """Add a placeholder for the methods of a file that does not import."""
        if not NAME.fullmatch(name) or name in self._found:
            raise error  # no valid and free name to register it under

        def fit(self: Method, lab: object) -> Policy:
            raise error

        body = {"name": name, "title": name, "family": "vanilla", "reference": name, "fit": fit, "__doc__": str(error)}
        # Hash this module instead of the file, which may not even parse. Once repaired, the method has its own key.
        self._found[name] = Registered(type("Broken", (Method,), body), Path(__file__).resolve(), broken=True)

    def names(self) -> list[str]:
        """Names of all methods, sorted."""
        return sorted(self._found)

    def __getitem__(self, name: str) -> Registered:
        if name not in self._found:
            raise UserError(f"unknown method {name!r}; {suggest(name, self._found)}")
        return self._found[name]


def _methods_of(module: ModuleType, package: str) -> list[type[Method]]:
    """The methods in a module that its own package defines; methods imported from elsewhere are left out."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and (value.__module__ == package or value.__module__.startswith(f"{package}."))
        and not getattr(value, "__abstractmethods__", None)
    ]
