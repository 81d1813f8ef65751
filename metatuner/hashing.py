"""Hashes of what results depend on: values, files, and the code that made them."""

import ast
import hashlib
import json
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIRST_PARTY = ("metatuner", "baselines")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_value(value: Any, length: int = 16) -> str:
    """The first `length` hex digits of the SHA-256 of a JSON-able value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from names and numbers, the same on every machine."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@cache
def _hash_file_at(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    status = path.stat()
    return _hash_file_at(path, status.st_size, status.st_mtime_ns)


def _is_text(node: Any) -> bool:
    """Whether a statement is a bare string: a docstring of a module, class, function, field or constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _plain(node: Any) -> Any:
    """A syntax tree as JSON values, without docstrings and empty fields, so that Python versions agree on it."""
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_text(item)]
    if not isinstance(node, ast.AST):
        return node if isinstance(node, (str, int, bool)) else repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    if isinstance(node, ast.ClassDef) and any("Signature" in ast.dump(base) for base in node.bases):
        fields["prompt"] = ast.get_docstring(node, clean=False)  # DSPy shows it to the model
    return [type(node).__name__, {name: _plain(value) for name, value in fields.items()}]


@cache
def _parsed(path: Path) -> tuple[str, tuple[tuple[str, int, tuple[str, ...]], ...]]:
    """A module's hash (docstrings and comments left out) and its import statements (module, level, names)."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    imports: list[tuple[str, int, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, 0, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.module or "", node.level, tuple(alias.name for alias in node.names)))
    return hash_value(_plain(tree), 64), tuple(imports)


def _locate(module: str) -> list[Path]:
    """The files that run when a dotted first-party module is imported: its packages' __init__ and itself."""
    if module.split(".")[0] not in FIRST_PARTY:
        return []
    found, here = [], ROOT
    for part in module.split("."):
        here = here / part
        if (here / "__init__.py").is_file():
            found.append(here / "__init__.py")
        elif here.with_suffix(".py").is_file():
            found.append(here.with_suffix(".py"))
    return found


def _direct_imports(path: Path) -> set[Path]:
    files: set[Path] = set()
    inside = path.is_relative_to(ROOT)
    package = list(path.relative_to(ROOT).parent.parts) if inside else []
    for module, level, names in _parsed(path)[1]:
        if level:
            if not inside:
                continue
            base = package[: len(package) - level + 1]
            module = ".".join(base + ([module] if module else []))
        files.update(_locate(module))
        for name in names:
            files.update(_locate(f"{module}.{name}"))
    return files


def import_closure(*roots: Path) -> list[Path]:
    """Every first-party file that the given files import, directly or not, themselves included; sorted."""
    seen: set[Path] = set()
    todo = [root.resolve() for root in roots]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += _direct_imports(path)
    return sorted(seen)


def hash_code(*roots: Path, data: Iterable[Path] = ()) -> str:
    """A hash of the code that `roots` run: their first-party import closure without comments and docstrings.

    Files are named by their path below the project root (files elsewhere by their name), so that moving a checkout
    changes nothing. `data` adds the bytes of files that the code reads (word lists, task definitions).
    """

    def name(path: Path) -> str:
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name

    parts = [[name(path), _parsed(path)[0]] for path in import_closure(*roots)]
    parts += [[name(path.resolve()), hash_file(path)] for path in sorted(data)]
    return hash_value(parts)


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of the checkout with top `folder`, and whether files differ from it; None if there is no checkout."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != folder.resolve():  # an installed copy inside another checkout
        return {"commit": None, "modified": None}
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
