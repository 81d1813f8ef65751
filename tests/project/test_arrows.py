"""Imports run one way: the arrows and the light modules that docs/architecture.md names are what the code does."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = " ".join((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split())
SOURCES = sorted([*ROOT.glob("metatuner/**/*.py"), *ROOT.glob("baselines/**/*.py")])


class Import(NamedTuple):
    """One imported dotted name, and where."""

    name: str
    line: int
    on_load: bool
    """Runs when the module is imported: not inside a function, not under TYPE_CHECKING."""


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import in a file."""
    return imports_in(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parent.parts)


def imports_in(code: str, package: tuple[str, ...]) -> tuple[Import, ...]:
    """Every import of a module, relative ones made absolute; `from a import b` gives `a.b` (b may be a module)."""
    found: list[Import] = []

    def visit(node: ast.AST, on_load: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, on_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            found.extend(Import(f"{prefix}.{alias.name}", node.lineno, on_load) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, on_load and not inside and not checking)

    visit(ast.parse(code), True)
    return tuple(found)


def files_of(name: str) -> Iterator[Path]:
    """The first-party files that importing a dotted name runs: the packages on the way, and the module."""
    here = ROOT
    for part in name.split("."):
        here = here / part
        yield from (file for file in (here / "__init__.py", here.with_suffix(".py")) if file.is_file())


def room_of(dotted: str) -> str | None:
    """The room that a first-party module belongs to ("harness" for metatuner.harness.rows); None for the package."""
    parts = dotted.split(".")
    if parts[0] == "baselines":
        return "baselines"
    return parts[1] if parts[0] == "metatuner" and parts[1:] not in ([], ["__init__"]) else None


def rooms() -> Iterator[tuple[Path, str]]:
    """Every source file with its room."""
    for path in SOURCES:
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if room is not None:
            yield path, room


def place(path: Path, line: int | None = None) -> str:
    return path.relative_to(ROOT).as_posix() + (f":{line}" if line else "")


def stated(pattern: str, what: str) -> tuple[str, ...]:
    """What the page says, by the form in which it says it."""
    found = re.search(pattern, ARCHITECTURE)
    assert found, f"docs/architecture.md must state {what}"
    return found.groups()


def leaves() -> set[str]:
    """Modules that anyone may import, and that import none but each other."""
    (names,) = stated(r"((?:\S+\.py,? )+)leaves that anyone may import", "`a.py, b.py   leaves that anyone may import`")
    return {Path(name.strip(",")).stem for name in names.split()}


def arrows() -> dict[str, set[str] | None]:
    """Room -> rooms or modules it may import (None: everything)."""
    (text,) = stated(r"Allowed imports: (.*?)\. ", "`Allowed imports: a -> {b, c}; ...`")
    table: dict[str, set[str] | None] = {bottom: set() for bottom in ("lm", *leaves())}
    for arrow in re.findall(r"`([^`]+->[^`]+)`", text):
        sources, targets = (re.findall(r"[\w.]+", side) for side in arrow.split("->"))
        for source in sources:
            table[source] = None if targets == ["everything"] else set(targets)
    return table


def light_modules() -> tuple[list[Path], set[str]]:
    """The files that the DAG and `metatuner --help` import, and the libraries these must not load."""
    modules, libraries = stated(
        r"Modules that [^(]*\(([^)]*)\) must not import ([\w, ]+) at module level",
        "`Modules that ... (a, b.*) must not import x, y or z at module level`",
    )
    names = [re.sub(r"'s |\s|`", lambda mark: "." if mark[0] == "'s " else "", name) for name in modules.split(",")]
    patterns = [name.replace(".", "/") + ".py" for name in names]
    files = [file for pattern in patterns for file in [*ROOT.glob(pattern), *ROOT.glob(f"metatuner/{pattern}")]]
    assert files, "none of the light modules that docs/architecture.md lists exists"
    return files, set(re.findall(r"\w+", libraries)) - {"or", "and"}


def allowed(room: str, target: str, table: dict[str, set[str] | None]) -> bool:
    """Whether a file of `room` may import the first-party module `target` ("metatuner.config.Config")."""
    known = table[room]
    other = room_of(target)
    if known is None or other is None or other == room or other in leaves():
        return True
    inner = target.removeprefix("metatuner.")
    return any(inner == name or inner.startswith(f"{name}.") for name in known)


def test_every_module_has_a_room_with_stated_arrows() -> None:
    table = arrows()
    homeless = [f"{place(path)} (room {room!r})" for path, room in rooms() if room not in table]
    assert not homeless, "docs/architecture.md states no arrows for: " + ", ".join(homeless)


def test_imports_follow_the_arrows() -> None:
    table = arrows()
    against = [
        f"{place(path, each.line)} imports {each.name}, but {room} may import {sorted(table[room] or ())}"
        for path, room in rooms()
        if room in table
        for each in imports_of(path)
        if each.name.split(".")[0] in ("metatuner", "baselines") and not allowed(room, each.name, table)
    ]
    assert not against, "\n".join(against)


def test_what_the_dag_imports_loads_no_heavy_library() -> None:
    roots, heavy = light_modules()
    found = []
    seen: set[Path] = set()
    todo = [(path, place(path)) for path in roots]
    while todo:
        path, way = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for each in imports_of(path):
            if not each.on_load:
                continue
            if each.name.split(".")[0] in heavy:
                found.append(f"{place(path, each.line)} imports {each.name} when loaded (by way of {way})")
            todo += [(file, f"{way} -> {place(file)}") for file in files_of(each.name)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "target", "expected"),
    [
        ("method", "metatuner.lm.generate", True),
        ("method", "metatuner.harness.ground", False),
        ("harness", "metatuner.method", False),
        ("lm", "metatuner.harness.rows", False),
        ("analysis", "metatuner.config.Config", True),
        ("analysis", "metatuner.harness.ground", False),
        ("lm", "metatuner.errors.UserError", True),
        ("run", "baselines.metatuner", True),
        ("harness", "baselines.sft", False),
    ],
)
def test_the_stated_arrows_mean_what_the_design_says(room: str, target: str, expected: bool) -> None:
    assert allowed(room, target, arrows()) is expected


def module(path: Path) -> str:
    """A file's dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_import_goes_in_a_circle() -> None:
    """A package's `__init__` that imports its own modules is no circle: they do not import names from it."""
    modules = {module(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for each in imports_of(path):
            target = each.name if each.name in modules else each.name.rpartition(".")[0]
            if target in modules and target != name:
                edges[name].add(target)
    circles = []
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            here = todo.pop()
            if here == start:
                circles.append(start)
                break
            if here not in seen:
                seen.add(here)
                todo += edges[here]
    assert circles == []


def test_no_file_and_no_class_is_too_long_to_read() -> None:
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > 400:
            long.append(f"{place(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > 250:
                    long.append(f"{place(path, node.lineno)}: class {node.name} of {length} lines")
    assert long == []


def test_imports_are_read_as_python_runs_them() -> None:
    code = """
import torch
from . import rows
from ..lm import generate
if TYPE_CHECKING:
    import transformers
try:
    import trl
except ImportError:
    pass
def late():
    from dspy import LM
class Early:
    import datasets
"""
    found = {each.name: each.on_load for each in imports_in(code, ("metatuner", "harness"))}
    assert found == {
        "torch": True,
        "metatuner.harness.rows": True,
        "metatuner.lm.generate": True,
        "transformers": False,
        "trl": True,
        "dspy.LM": False,
        "datasets": True,
    }
