"""Keys: what runs counts, comments and docstrings do not."""

import hashlib
import shutil
import subprocess
import sys

import pytest

from metatuner import hashing

BASE = '''"""Doc."""
import json  # why


def f(x: int = 1) -> int:
    """Adds one."""
    return x + 1
'''


@pytest.fixture
def hash_of(tmp_path):
    """The hash of a text as a module; each lies in a folder of its own, as a file is read once a process."""
    folders = (tmp_path / str(number) for number in range(100))

    def hash_text(text, name="module.py"):
        path = next(folders) / name
        path.parent.mkdir()
        path.write_text(text)
        return hashing.hash_code(path)

    return hash_text


def test_comments_docstrings_and_layout_change_nothing(hash_of):
    changed = (
        BASE.replace('"""Doc."""', "").replace("  # why", "").replace("Adds one.", "Adds 1.").replace("\n\n\n", "\n")
    )
    assert hash_of(changed) == hash_of(BASE)
    assert hash_of(BASE, "other.py") != hash_of(BASE)  # a file's name is part of it


def test_texts_under_fields_and_constants_change_nothing_but_a_signatures_prompt_does(hash_of):
    code = 'LIMIT = 3\n"""Most."""\n\n\nclass A:\n    """Doc."""\n\n    x: int = 1\n    """A field."""\n'
    bare = "LIMIT = 3\n\n\nclass A:\n    x: int = 1\n"
    assert hash_of(code) == hash_of(bare) == hash_of(code.replace("A field", "The field").replace("Most", "At most"))
    assert hash_of(code.replace('    """A field."""', '    "A field.".strip()')) != hash_of(code)
    prompt = 'class Ask(dspy.Signature):\n    """Answer briefly."""\n\n    query: str\n    """Asked."""\n'
    assert hash_of(prompt) != hash_of(prompt.replace("briefly", "at length"))
    assert hash_of(prompt) == hash_of(prompt.replace("Asked", "The query"))


@pytest.mark.parametrize(
    "change",
    [
        ("x + 1", "x + 2"),
        ("x: int = 1", "x: int = 2"),
        ("import json", "import csv"),
        ("return x + 1", "return 1 + x"),
        ("+ 1", "+ 1.0"),
        ("+ 1", "+ True"),
        ("+ 1", "+ '1'"),
        ("def f", "async def f"),
        ('    """Adds one."""\n', '    x\n    """Adds one."""\n'),
        ("return x + 1\n", "return x + 1\n\n\ndef g(): ...\n"),
    ],
)
def test_what_runs_changes_the_hash(hash_of, change):
    assert hash_of(BASE.replace(*change)) != hash_of(BASE)


def test_the_closure_follows_first_party_imports_also_late_ones_and_packages():
    names = {path.name for path in hashing.import_closure(hashing.ROOT / "metatuner" / "harness" / "ground.py")}
    assert {"ground.py", "query.py", "rows.py", "generation.py", "per_query_lora.py"} <= names
    assert not {"cli.py", "policy.py"} & names


def test_files_that_code_reads_are_part_of_the_hash_by_their_bytes_and_names(tmp_path):
    code, data = tmp_path / "code.py", tmp_path / "words.txt"
    code.write_text(BASE)
    data.write_bytes(b"one two")
    alone, with_data = hashing.hash_code(code), hashing.hash_code(code, data=[data])
    assert alone != with_data == hashing.hash_code(code, data=iter([data]))
    data.write_bytes(b"one too")
    assert hashing.hash_code(code, data=[data]) not in (alone, with_data)
    data.write_bytes(b"one two")
    data.rename(tmp_path / "others.txt")
    assert hashing.hash_code(code, data=[tmp_path / "others.txt"]) not in (alone, with_data)


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    path = tmp_path / "weights"
    for content in (b"one", b"two", b"", b"three"):
        path.write_bytes(content)
        assert hashing.hash_file(path) == hashlib.sha256(content).hexdigest()


RELATIVE = """
from . import lab
from .metrics.text import exact_match
from .. import progress
def late():
    from ..files import write_text
"""
IN_A_COPY = """
from metatuner.hashing import ROOT, hash_code, import_closure
print(hash_code(ROOT / "metatuner/harness/rows.py"))
print(*(path.relative_to(ROOT) for path in import_closure(ROOT / "metatuner/harness/relative.py")))
"""


def test_where_a_checkout_lies_changes_no_hash_and_relative_imports_are_followed(tmp_path):
    shutil.copytree(hashing.ROOT / "metatuner", tmp_path / "metatuner", ignore=shutil.ignore_patterns("weights"))
    (tmp_path / "metatuner" / "harness" / "relative.py").write_text(RELATIVE)
    done = subprocess.run([sys.executable, "-c", IN_A_COPY], cwd=tmp_path, capture_output=True, text=True, check=True)
    there, closure = done.stdout.splitlines()
    assert there == hashing.hash_code(hashing.ROOT / "metatuner" / "harness" / "rows.py")
    named = {
        "metatuner/progress.py",
        *(f"metatuner/harness/{name}.py" for name in ("relative", "lab", "metrics/text")),
    }
    assert named | {"metatuner/files.py", "metatuner/harness/metrics/__init__.py"} <= set(closure.split())
    assert "metatuner/run/guard.py" not in closure


def test_equal_values_hash_alike_whatever_their_order():
    assert hashing.hash_value({"a": 1, "b": [2, 3]}) == hashing.hash_value({"b": [2, 3], "a": 1})
    others = [{"a": 1, "b": [3, 2]}, {"a": "1", "b": [2, 3]}, {"a": 1.5, "b": [2, 3]}, {"a": 1}, [["a", 1]]]
    assert len({hashing.hash_value(each) for each in others}) == len(others)
    assert hashing.hash_value("é") == hashlib.sha256('"é"'.encode()).hexdigest()[:16]
    with pytest.raises(ValueError, match="JSON"):
        hashing.hash_value(float("nan"))
