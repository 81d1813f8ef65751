"""Text of any origin stays text: what Markdown, LaTeX and a spreadsheet read is what was written."""

import csv
import io
import re
import string
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from metatuner.analysis.claims import claims
from metatuner.analysis.diff import diff
from metatuner.analysis.escaping import escape_latex, escape_markdown, from_csv, inert
from metatuner.analysis.tables import tables_of
from metatuner.config import Config
from tests.toys.results import CHANCES, fake_config, fake_run, few_draws, judge_parts, plan_rows

quick = pytest.fixture(autouse=True)(few_draws)
small = pytest.fixture(autouse=True)(judge_parts)

TEXTS = [
    "a *b* _c_ **d** __e__ ~f~",
    "<b>bold</b> <script>alert(1)</script> <!-- no -->",
    "[a link](https://example.org) ![an image](x.png) [a]: b",
    "`code` ``more``",
    "a | b || c",
    r"back\slash \* \\ \| \[",
    "x < y > z & <https://example.org> [x] {y}",
    "50% of $x_1$ #1 ^2 ~3",
    "1.0 [0.5, −2.0]; [1](x) [2][3] [4]: y",
    "&lt;b&gt; &amp;&#42;x&#x2a; & &; AT&T;",
    string.punctuation,
    *(f"a{character}b{character}c" for character in string.punctuation),
]


def text_of(token: Token) -> str:
    """What a reader sees of an inline token."""
    parts = []
    for child in token.children or []:
        assert child.type in ("text", "text_special", "softbreak", "html_inline"), child
        assert child.type != "html_inline" or child.content == "<br>", child
        parts.append("\n" if child.type == "html_inline" else child.content)
    return "".join(parts)


@pytest.mark.parametrize("text", TEXTS)
def test_markdown_shows_a_text_as_it_is_in_a_line_and_in_a_table(text: str) -> None:
    reader = MarkdownIt("commonmark").enable("table")
    cells = [escape_markdown(each) for each in (f"the {text}", f"{text} end", f"two\nlines {text}")]
    line, *_ = [token for token in reader.parse(f"- {cells[0]}\n") if token.type == "inline"]
    assert text_of(line) == f"the {text}"
    table = f"| a | b | c |\n| --- | --- | --- |\n| {' | '.join(cells)} |\n"
    shown = [text_of(token) for token in reader.parse(table) if token.type == "inline"]
    assert shown == ["a", "b", "c", f"the {text}", f"{text} end", f"two\nlines {text}"]


COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\ldots{}": "…",
    r"$\pm$": "±",
    r"$\leq$": "≤",
    "$-$": "−",
    " \\newline{} ": "\n",
    **{f"\\{character}": character for character in "&%$#_{}"},
}
"""What LaTeX prints for them."""


def printed(text: str) -> str:
    """What LaTeX prints; fails on a character that it would not print as it is."""
    found = ""
    while text:
        command = next((each for each in COMMANDS if text.startswith(each)), "")
        assert command or text[0] not in "\\&%$#_{}~^<>|", text
        found += COMMANDS[command] if command else text[0]
        text = text[len(command) or 1 :]
    return found


@pytest.mark.parametrize("text", [*TEXTS, "±1 ≤ 2 − 3 …", "two\nlines", r"50% of $x_1$ & {a}#~^\ "])
def test_latex_prints_a_text_as_it_is(text: str) -> None:
    assert printed(escape_latex(text)) == text


CONTROLS = [*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029", "\ufeff"]


@pytest.mark.parametrize("character", [each for each in CONTROLS if each not in "\n\t"])
def test_control_characters_do_not_reach_latex(character: str) -> None:
    assert escape_latex(f"a{character}b") == "a?b"


def test_line_ends_and_tabs_are_kept_in_latex() -> None:
    assert printed(escape_latex("a\r\nb\tc")) == "a\nb\tc"


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", "--1", "=", "+", "-"])
def test_what_a_spreadsheet_takes_for_a_formula_is_made_text_and_read_back(text: str) -> None:
    assert inert(text) == f"'{text}"
    assert from_csv(inert(text)) == text


@pytest.mark.parametrize("text", ["-0.5", "+1", "1e-3", "-1e-05", "", "a=1", "'tis", "'quoted'", "x-1"])
def test_numbers_and_plain_text_stay_as_they_are(text: str) -> None:
    assert inert(text) == text == from_csv(text)


@pytest.fixture
def hostile(tmp_path: Path) -> Config:
    """A run whose names are formulas to a spreadsheet, and commands to LaTeX and Markdown, wherever they may be."""
    models = {"actor": {"path": "=cmd_1*x*"}, "generators": {"large": {"path": "nano:generator"}}}
    config = fake_config(tmp_path, preset="+SUM(1)", methods=[*CHANCES, "my_own_x", "metatuner_i"], models=models)
    outcomes = {row["cell"]: ("failed", "=1+1 | <b> [x](y)") for row in plan_rows(config)[:1]}
    fake_run(config, n=6, outcomes=outcomes)
    return config


def test_no_field_of_any_csv_file_is_a_formula(hostile: Config) -> None:
    files = [path for name in ("table_1", "table_kinds") for path in tables_of(hostile)[name](hostile)] + claims(
        hostile
    )
    files += tables_of(hostile)["table_8"](hostile)
    scores = Path(hostile.results) / "scores.csv"
    other = Path(hostile.results) / "other"
    other.mkdir()
    (other / "scores.csv").write_text(scores.read_text().replace(",my_own_x,", ",=cmd|,"))
    diff(Path(hostile.results), other, other / "diff.csv")
    files.append(other / "diff.csv")
    worlds = 0
    for path in [each for each in files if each.suffix == ".csv"]:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        assert rows
        for number, row in enumerate(rows):
            for name, field in zip(header, row, strict=True):
                assert not re.match(r"[=+@\t\r]|-(?![\d.])", field), (path.name, number, name)
        worlds += sum(from_csv(field).startswith("=cmd_1*x* + ") for row in rows for field in row)
    assert worlds > 100  # so formulas there were


def test_names_and_reasons_are_text_in_a_table_of_either_format(hostile: Config) -> None:
    _, markdown, latex, _ = (path.read_text(encoding="utf-8") for path in tables_of(hostile)["table_1"](hostile))
    assert "| my\\_own\\_x |" in markdown
    assert "=1+1 \\| \\<b\\> \\[x\\](y)" in markdown
    (row,) = [line for line in latex.splitlines() if line.startswith(r"my\_own\_x & ")]
    assert row.endswith(r"\\")
    assert r"\textless{}b\textgreater{}" in latex
    assert r"=cmd\_1*x*" in latex
    # Beside its own commands, and escapes, no line has an underscore or a hash.
    assert not re.search(r"(?<!\\)[_#]", latex)
