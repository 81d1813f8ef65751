"""Escape text of any origin (a model's, a method author's) for the format that it is written in."""

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet reads a field that begins with one of these as a formula."""

_MARKDOWN = {character: f"\\{character}" for character in "\\`*_<>|[]"} | {"\r": "", "\n": "<br>"}

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "−": "$-$",
    "…": r"\ldots{}",
    "\n": r" \newline{} ",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def inert(value: str) -> str:
    """A CSV field that no spreadsheet reads as a formula; numbers stay as they are.

    >>> inert("=1+1"), inert("-0.5"), inert("plain")
    ("'=1+1", '-0.5', 'plain')
    """
    if not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value


def from_csv(value: str) -> str:
    """A field as it was before `inert`.

    >>> from_csv("'=1+1"), from_csv("'tis")
    ('=1+1', "'tis")
    """
    return value[1:] if value.startswith("'") and value[1:].startswith(FORMULA) else value


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally, also in a table cell."""
    escaped = "".join(_MARKDOWN.get(character, character) for character in text)
    escaped = re.sub(r"&(?=#?\w+;)", r"\\&", escaped)  # an entity would be read as the character that it names
    return re.sub(r"\\\[([-−+\d., ]+)\\\](?![(:]|\\\[)", r"[\1]", escaped)  # an interval is not a link


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


def escape_latex(text: str) -> str:
    r"""Escape text so that LaTeX shows it literally, but for control characters, which it cannot read: they become "?".

    >>> escape_latex("my_method: 100 %")
    'my\\_method: 100 \\%'
    """
    text = _CONTROL.sub("?", text.replace("\r\n", "\n"))
    return "".join(_LATEX.get(character, character) for character in text)
