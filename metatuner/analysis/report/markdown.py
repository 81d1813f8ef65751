"""Reads back the Markdown tables that this package writes, as text with emphasis: nothing in them is taken for HTML."""

import re
from dataclasses import dataclass, field
from html import escape

_TOKEN = re.compile(r"\\(.)|(<br>)|(\*\*)|(\*)", re.DOTALL)


@dataclass
class Document:
    """A heading, a bold line, a table, notes."""

    title: str = ""
    lead: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_documents(text: str) -> list[Document]:
    """The documents of a file: each begins with a heading of the first level. Cells and notes stay Markdown."""
    found: list[Document] = []
    for line in text.splitlines():
        if line.startswith("# "):
            found.append(Document(line[2:]))
        elif not found:
            continue
        elif line.startswith("|"):
            cells = split_row(line)
            if not found[-1].header:
                found[-1].header = cells
            elif not all(set(cell) <= set("-: ") and cell for cell in cells):
                found[-1].rows.append(cells)
        elif line.startswith("- "):
            found[-1].notes.append(line[2:])
        elif line.strip():
            found[-1].lead += (" " if found[-1].lead else "") + line
    return found


def split_row(line: str) -> list[str]:
    """The cells of a table's row; an escaped bar does not part them."""
    parts, current, escaped = [], "", False
    for character in line.strip().removeprefix("|"):
        if escaped:
            current += "\\" + character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "|":
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return parts


def to_html(text: str) -> str:
    """A cell or note as safe HTML: its own escapes undone, bold and italics kept, all else as text."""
    out, bold, italic, last = [], False, False, 0
    for match in _TOKEN.finditer(text):
        out.append(escape(text[last : match.start()]))
        last = match.end()
        character, line, strong, emphasis = match.groups()
        if character is not None:
            out.append(escape(character))
        elif line:
            out.append("<br>")
        elif strong:
            out.append("</strong>" if bold else "<strong>")
            bold = not bold
        elif emphasis:
            out.append("</em>" if italic else "<em>")
            italic = not italic
    out.append(escape(text[last:]))
    return "".join(out) + ("</em>" if italic else "") + ("</strong>" if bold else "")


def to_text(text: str) -> str:
    """A cell as plain text."""
    return _TOKEN.sub(lambda match: match[1] or ("\n" if match[2] else ""), text)
