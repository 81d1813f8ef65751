"""A method's file that is wrong in any way is one hole of its own, with one line that names it; the plan goes on."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metatuner.config import load_config
from metatuner.errors import UserError
from metatuner.harness import importing
from metatuner.hashing import canonical
from metatuner.plan import Plan

MINE = """
from dataclasses import dataclass
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy
{top}

@dataclass(frozen=True)
class Settings:
    {settings}


class Mine(Method):
    {text}
    name = "mine"
    title = {title}
    family = "prompt"
    reference = "none"
    requires = {requires}
    Settings = Settings

    def __init__(self, settings=None):
        super().__init__(settings)
        {init}

    def fit(self, lab):
        return StaticPolicy(lab, {{}})
{below}
"""
FINE = {"top": "", "settings": "pass", "text": "", "title": '"mine"', "requires": "()", "init": "pass", "below": ""}
OTHER = MINE.replace('"mine"', '"other"').replace("Mine", "Other")


def code(**parts: str) -> bytes:
    return MINE.format(**{**FINE, **parts}).encode()


BROKEN = {
    "byte order mark": (b"\xef\xbb\xbf" + code(), "begins with a byte order mark; save it as UTF-8 without one"),
    "latin-1": (b"# -*- coding: latin-1 -*-\n# \xe9\n" + code(), "not UTF-8 text; save it as UTF-8"),
    "UTF-16": (code().decode().encode("utf-16"), "not UTF-8 text"),
    "NUL": (code() + b"\0", "does not import: SyntaxError: "),
    "lone surrogate in the code": (code(top='X = "\\ud800"'), "half a character (a lone surrogate); write it as chr("),
    "lone surrogate in the title": (code(title='"\\ud800"'), "a text of mine holds half a character"),
    "huge literal": (code(top=f"X = {'9' * 5000}"), "does not import: SyntaxError: Exceeds the limit"),
    "huge hexadecimal literal": (code(top=f"X = 0x{'f' * 5000}"), "mine cannot be planned: ValueError: Exceeds"),
    "deep expression": (code(top=f"X = {'-' * 900}1"), "mine"),
    "NaN default": (code(settings='x: float = float("nan")'), "default nan of setting 'x' of mine is no finite JSON"),
    "infinite default": (code(settings='x: float = float("inf")'), "default inf of setting 'x' of mine"),
    "default that is no JSON": (code(settings="x: object = object"), "of setting 'x' of mine is no finite JSON value"),
    "setting without a default": (code(settings="x: int"), "setting 'x' of mine has no default; give it one"),
    "setting of no known type": (code(settings='x: "Nothing" = 1'), "mine cannot be planned: "),
    "requires itself": (code(requires='("mine",)'), "mine requires itself; leave it out"),
    "requires the unknown": (
        code(requires='("zero_shoot",)'),
        "requires the unknown method 'zero_shoot'; did you",
    ),
    "requires a text": (code(requires='"sft"'), "`requires` of mine must be a tuple of methods' names, got 'sft'"),
    "requires in a circle": (
        code(requires='("other",)') + OTHER.format(**{**FINE, "requires": '("mine",)'}).encode(),
        "requires itself by way of",
    ),
    "init raises": (code(init='raise KeyError("no")'), "mine cannot be planned: KeyError: 'no'"),
    "os._exit": (code(top="import os; os._exit(0)"), "does not import: SystemExit: it ends the process"),
    "sys.exit": (code(top="import sys; sys.exit(0)"), "does not import: SystemExit: it ends the process"),
    "endless loop": (
        code(top="while True: pass"),
        "does not import: not done after 0.2 s; move its work into a function",
    ),
    "endless sleep": (code(top="import time; time.sleep(10**6)"), "does not import: not done after 0.2 s"),
    "endless loop that catches errors": (
        code(top="while True:\n    try:\n        pass\n    except Exception:\n        pass"),
        "does not import: not done after 0.2 s",
    ),
    "raises what has no text": (
        code(top="class E(Exception):\n    def __str__(self): raise ValueError\nraise E()"),
        "does not import",
    ),
    "long name": (code(below=f'Mine.name = "{"a" * 300}"'), "a method's name has at most 100 letters; shorten it"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_it_is_a_hole_with_one_line_and_other_cells_stay(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = BROKEN[kind]
    file = tmp_path / "mine.py"
    file.write_bytes(content)
    if "endless" in kind:
        monkeypatch.setattr(importing, "IMPORT_SECONDS", 0.2)
    small = {"run": "main", "experiments.main.methods": ["zero_shot"], "experiments.main.benchmarks": ["gsm8k"]}
    alone = Plan(load_config("smoke", small)).check()
    made = Plan(load_config("smoke", {**small, "extra_methods": [str(file)]})).check()
    assert alone.grid.cells.keys() < made.grid.cells.keys()
    assert {row.method for row in made.grid.rows} <= {"zero_shot", "mine", "other"}
    json.loads(canonical(made.descriptions).encode())
    with pytest.raises(UserError) as error:
        made.registry["mine"].cls().fit(None)  # type: ignore[arg-type]
    assert says in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_sound_file_is_no_hole(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_bytes(code(settings="x: tuple[int, ...] = (1, 2)", text='"""Mine."""'))
    made = Plan(load_config("smoke", {"run": "main", "extra_methods": [str(tmp_path / "mine.py")]})).check()
    assert not made.registry["mine"].broken
    assert any(row.method == "mine" for row in made.grid.rows)


def test_an_import_that_cannot_be_stopped_ends_the_command_with_a_line_and_a_status(tmp_path: Path) -> None:
    # Python drops what is raised in `__del__`, also if the alarm comes just outside of the `try`.
    top = (
        "class Endless:\n    def __del__(self):\n        while True:\n"
        "            try:\n                while True: len(str(1))\n            except BaseException: pass\n"
        + 6
        * "Endless()\n"
    )
    (tmp_path / "mine.py").write_bytes(code(top=top))
    words = (
        "import sys; from metatuner.harness import importing; importing.IMPORT_SECONDS = 0.1; "
        "from metatuner.harness.registry import Registry; Registry([sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", words, str(tmp_path / "mine.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert f"{tmp_path / 'mine.py'} does not import: it cannot be stopped" in line
