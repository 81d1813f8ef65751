"""Keys: what runs counts, comments and docstrings do not."""

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
    def hash_text(text, name="module.py"):
        path = tmp_path / name
        path.write_text(text)
        hashing._parsed.cache_clear()
        return hashing.hash_code(path)

    return hash_text


def test_comments_docstrings_and_layout_change_nothing(hash_of):
    changed = (
        BASE.replace('"""Doc."""', "").replace("  # why", "").replace("Adds one.", "Adds 1.").replace("\n\n\n", "\n")
    )
    assert hash_of(changed) == hash_of(BASE)


@pytest.mark.parametrize("change", [("x + 1", "x + 2"), ("x: int = 1", "x: int = 2"), ("import json", "import csv")])
def test_what_runs_changes_the_hash(hash_of, change):
    assert hash_of(BASE.replace(*change)) != hash_of(BASE)


def test_the_closure_follows_first_party_imports_also_late_ones_and_packages():
    names = {path.name for path in hashing.import_closure(hashing.ROOT / "metatuner" / "harness" / "ground.py")}
    assert {"ground.py", "policy.py", "rows.py", "generation.py", "budget.py"} <= names
    assert "cli.py" not in names


def test_a_change_in_an_imported_module_changes_the_hash_and_one_elsewhere_does_not(tmp_path):
    # A copy of the package, so that the change is real and the original stays untouched.
    shutil.copytree(hashing.ROOT / "metatuner", tmp_path / "metatuner", ignore=shutil.ignore_patterns("__pycache__"))

    def hashes():
        code = (
            "from metatuner.hashing import ROOT, hash_code;"
            "print(hash_code(ROOT / 'metatuner/harness/policies.py'), ROOT)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        value, root = done.stdout.split()
        assert root == str(tmp_path)
        return value

    before = hashes()
    with open(tmp_path / "metatuner" / "progress.py", "a") as file:
        file.write("\nELSEWHERE = 1\n")
    assert hashes() == before
    with open(tmp_path / "metatuner" / "harness" / "policy.py", "a") as file:
        file.write("\n# a comment\n")
    assert hashes() == before
    with open(tmp_path / "metatuner" / "harness" / "policy.py", "a") as file:
        file.write("\nIMPORTED = 1\n")
    assert hashes() != before


def test_equal_values_hash_alike_whatever_their_order():
    assert hashing.hash_value({"a": 1, "b": [2]}) == hashing.hash_value({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        hashing.hash_value(float("nan"))
