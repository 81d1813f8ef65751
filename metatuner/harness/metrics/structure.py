r"""What an answer is: a list, a pair, a set, an interval, a relation, a numeral with a base, a ratio, words, a value.

`read` divides the text of `latex.canonical`; the leaves stay LaTeX. No SymPy here: `mathematics` compares.
"""

import re
from dataclasses import dataclass, field, replace

from metatuner.harness.metrics.latex import words
from metatuner.harness.metrics.numeric import number_in_words

_OPEN, _CLOSE = "([{", ")]}"
_RELATION = re.compile(r"\\(?:le|ge|ne|approx|in|equiv|cong|sim|to)(?![a-zA-Z])|[=<>]")
_SEPARATOR = re.compile(
    r"\s*(?:[,;]\s*(?:(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})?|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|\\text\{\s*,?\s*(?:and|or)\s*\}|\\(?:land|lor|wedge|vee)(?![a-zA-Z]))\s*"
)
_MORE_OPTIONS = re.compile(r"\b[A-H]\s*\)")
_OPTION = re.compile(r"^(?:\\text\{\s*\(?([A-Ha-h])\s*[).:]|\(?([A-H])\)?[).:])\s*\}?\s*(?=[^\s}])")
_LETTERS = re.compile(r"^\\text\{\s*([A-Z](?: ?(?:,? and |,? or |, ?)[A-Z])+)\s*\}$")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_PAIR = re.compile(r"^(?:[(\[]|\\\{)\s*\d{1,3},\d{3}\s*\u00b0?\s*(?:[)\]]|\\\})$")
_LIST_OF_THREE = re.compile(r"^[1-9]\d{2}(?:,[1-9]\d{2})+$")
_UNION = re.compile(r"\s*\\cup(?![a-zA-Z])\s*")
_MATRIX = re.compile(r"^\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}$", re.DOTALL)
_BASE = re.compile(
    r"^\(?\s*(?:\\text\{\s*)?(-?[\dA-Fa-f]+(?:\.[\dA-Fa-f]+)?)\s*\}?\s*\)?\s*_\s*\{?\s*(?:\\text\{\s*)?(?:base\s*)?\}?\s*\(?\s*(\w+)\s*\)?\s*\}*$"
)
_IN_BASE = re.compile(r"^(-?[\dA-Fa-f]+)\s*(?:\\text\{\s*)?\(?(?:in )?base[- ]?(?:\})?\s*(\w+)\)?\s*\}?$")
_BASES = {
    name: str(value)
    for value, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)
}
_BASES |= {"sixteen": "16", "binary": "2", "octal": "8", "hexadecimal": "16", "hex": "16"}
_TIME = re.compile(r"^(\d{1,2}):([0-5]\d)\s*(?:\\text\{)?\s*([ap])?\.?\s*(?:m\.?)?\s*\}?$", re.IGNORECASE)
_RATIO = re.compile(r"^[^:]+(?::[^:]+)+$|^(\d+)\s*\\text\{\s*to\s*\}\s*(\d+)$")
_FUNCTIONS = (
    "sin cos tan cot sec csc cis log ln exp sqrt pi arcsin arccos arctan sinh cosh tanh max min gcd lcm lim mod det"
)
_UNITS = "cm mm km ft in kg mg lb lbs oz ml hr hrs sq mi yd pm am mph kmh cc rs min sec m g"
_TEXT = r"\\text\{[^{}]*\}"
_BARE_UNIT = (
    r"(?:\s+(?!(?:and|or)\b)(?:[a-zA-Z]{4,}|day|men|man|boy|way|box|cup|dog|cat|pen|egg|car|bag|row|pts|mpg|per)\.?|(?<=[\d}\s)])(?:"
    + "|".join(sorted((unit for unit in _UNITS.split() if len(unit) > 1), key=len, reverse=True))
    + r")(?![a-zA-Z]))"
)
_TRAILING_UNITS = re.compile(
    rf"(?:\s*(?:{_TEXT}|{_BARE_UNIT})(?:\s*\^\s*\{{?\s*[23]\s*\}}?)?(?:\s*/\s*[a-zA-Z]+)?)+\.?$"
)
_POWER = re.compile(r"\^\s*\{?\s*([23])")
_LEAD = (
    r"(?:(?:about|approximately|roughly|exactly|around|only|the|answer|area|volume|perimeter|length|width|height|total|sum|value"
    r"|number|probability|distance|cost|price|maximum|minimum|result|is|are|of|so|there|usd|rs\.?)\b[ :=]+)+"
)
_LEADING_TEXT = re.compile(
    rf"^(?:\\text\{{\s*{_LEAD}\}}|{_LEAD}(?=-?[\d\\(])|\\approx(?![a-zA-Z]))\s*(?=\S)", re.IGNORECASE
)
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])(?!(?:pi|e|i)\b)[a-zA-Z](?![a-zA-Z])")
_LONG_WORD = re.compile(r"\s[a-zA-Z]{4,}")
_CHANGES = re.compile(
    r"(?<!\\)\b(?:thousandths?|hundredths?|tenths?|halves|half|thirds?|quarters?|squared|cubed|factorial|twice|double|triple|times|root"
    r"|less|more|least|most|over|under|than|between|not|except|plus|minus|divided|multiplied|power)\b",
    re.IGNORECASE,
)
_ONLY_WORDS = re.compile(r"^[^\d^_=<>+*/|]*$")
_COMMANDS = re.compile(r"\\(?!text\b)[a-zA-Z]+")
_NOTHING = frozenset(
    (
        "empty set",
        "no solution",
        "no solutions",
        "no real solution",
        "no real solutions",
        "none",
        "no such numbers exist",
        "null set",
    )
)


@dataclass(frozen=True)
class Node:
    """One part of an answer."""

    kind: str
    """list, tuple, set, union, relation, base, time, ratio, matrix, words or value."""
    text: str = ""
    """The LaTeX of a value, the plain text of words, the digits of a numeral, the brackets of a tuple ("[)")."""
    parts: tuple["Node", ...] = field(default=())
    marks: tuple[str, ...] = field(default=())
    """The signs of a relation ("=", "<", `\\in`, ...), or a numeral's base."""
    percent: bool = False
    """Whether a value was followed by a per-cent sign."""
    unit_power: str = ""
    """2 or 3 for square or cubic units."""
    columns: int = 0
    """Of a matrix; its parts stand row by row."""
    about: tuple["Node", ...] = field(default=(), compare=False)
    """The approximations that follow the exact answer: 0.67 in `2/3 \\approx 0.67`."""


def readings(text: str) -> list[Node]:
    """What a canonical answer can mean, likeliest first: `1,234` is a number, or two."""
    fused = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    if fused == text or _PAIR.match(text):
        return [read(text)]
    # Only numbers of three digits each may also be a list.
    return [read(fused), read(text)] if _LIST_OF_THREE.match(text) else [read(fused)]


def read(text: str) -> Node:
    """The structure of a canonical answer."""
    text = _bare(text)
    if (plain := words(text)) in _NOTHING or text == r"\emptyset":
        return Node("set")
    if found := _BASE.match(text) or _IN_BASE.match(text):
        base = _BASES.get(found[2].casefold(), found[2])
        if base.isdecimal() and (any(map(str.isdecimal, found[1])) or found[1].isupper() or len(found[1]) > 1):
            return Node("base", found[1].upper(), marks=(base,))
    if (text.startswith("]") and text.endswith(("[", "]"))) or (text.startswith(("[", "(")) and text.endswith("[")):
        # The French way to write that an end is left out.
        text = (
            "(" * (text[0] == "]")
            + text[0] * (text[0] != "]")
            + text[1:-1]
            + ")" * (text[-1] == "[")
            + "]" * (text[-1] == "]")
        )
    units = _TRAILING_UNITS.search(text)
    if (
        units
        and text.startswith(("(", "[", r"\{", r"\begin"))
        and text[: units.start()].rstrip().endswith((")", "]", "}"))
    ):
        text = text[: units.start()].rstrip()
    if (found := _OPTION.match(text)) and not _MORE_OPTIONS.search(text, found.end()):
        return Node("words", (found[1] or found[2]).casefold(), (read(text[found.end() :].rstrip("}")),))
    if found := _LETTERS.match(text):
        text = found[1]
    if (found := _MATRIX.match(text)) and found[2].count(r"\begin") == 0:
        rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2]) if row.strip()]
        if rows and len({len(row) for row in rows}) == 1:
            return Node("matrix", parts=tuple(read(cell) for row in rows for cell in row), columns=len(rows[0]))
    if len(parts := _divided(text, _UNION)[0]) > 1:
        return Node("union", parts=tuple(map(read, parts)))
    parts, separators = _divided(text, _SEPARATOR)
    if len(parts) > 1 and not _prose(text):
        every = ("and",) if any("and" in each for each in separators) else ()
        return Node("list", parts=tuple(node for part in parts if part for node in _expanded(read(part))), marks=every)
    parts, marks = _divided(text, _RELATION)
    if r"\approx" in [mark.strip() for mark in marks] and parts[0]:
        exact, *about = re.split(r"\\approx(?![a-zA-Z])", text)
        return replace(read(exact), about=tuple(read(part) for part in about if part.strip()))
    if len(parts) > 1 and all(parts):
        return Node("relation", text, tuple(map(read, parts)), tuple(mark.strip() for mark in marks))
    if found := _TIME.match(text):
        sides = (Node("value", found[1]), Node("value", found[2]))
        return Node("time", f"{int(found[1])}:{found[2]}{(found[3] or '').lower()}", sides)
    if (bracketed := _bracketed(text)) is not None:
        return bracketed
    if _RATIO.match(text) and not _prose(text):
        return Node("ratio", text, tuple(map(read, re.split(r":|\\text\{\s*to\s*\}", text))))
    if (number := number_in_words(plain, whole=True)) is not None:
        return Node("value", number)
    if _prose(text):
        return Node("words", plain)
    return _value(text)


def _expanded(node: Node) -> list[Node]:
    r"""A value with `\pm` as its two values; `\mp` takes the other sign."""
    if node.kind == "relation" and set(node.marks) == {"="} and r"\pm" in node.parts[-1].text:
        return [Node("relation", "", (*node.parts[:-1], one), node.marks) for one in _expanded(node.parts[-1])]
    if node.kind != "value" or r"\pm" not in node.text:
        return [node]
    return [
        Node(
            "value",
            re.sub(r"^\s*\+\s*", "", node.text.replace(r"\pm", upper).replace(r"\mp", lower)),
            percent=node.percent,
        )
        for upper, lower in (("+", "-"), ("-", "+"))
    ]


def expanded(node: Node) -> Node:
    r"""The node, as a list of its two values if it has a `\pm`."""
    both = _expanded(node)
    return Node("list", parts=tuple(both)) if len(both) > 1 else node


def _bare(text: str) -> str:
    """The text without blanks and braces around it."""
    text = text.strip().rstrip(".,;").strip()
    while text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _divided(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts between the separators that stand outside of all brackets, and the separators."""
    parts, marks, depth, start, at = [], [], 0, 0, 0
    while at < len(text):
        match = separator.match(text, at) if not depth else None
        if match and match.end() > at:
            parts.append(text[start:at].strip())
            marks.append(match[0])
            start = at = match.end()
            continue
        if text.startswith((r"\begin", r"\{", r"\langle"), at):
            depth += 1
        elif text.startswith((r"\end", r"\}", r"\rangle"), at):
            depth = max(0, depth - 1)
        elif text[at] != "\\":
            depth = max(0, depth + (text[at] in _OPEN) - (text[at] in _CLOSE))
        at += 2 if text[at] == "\\" and text[at + 1 : at + 2] in ("{", "}", "\\") else 1
    return [*parts, text[start:].strip()], marks


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        if at and text[at - 1] == "\\":
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        if not depth:
            return at
    return -1


_BRACKETS = ((r"\{", r"\}"), (r"\langle", r"\rangle"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"))


def _bracketed(text: str) -> Node | None:
    """A set, a pair or an interval: brackets around the whole text, with a comma in it."""
    for left, right in _BRACKETS:
        if text.startswith(left) and text.endswith(right) and len(text) > len(left):
            inside = text[len(left) : -len(right)]
            parts, _ = _divided(inside, _SEPARATOR)
            if left == r"\{":
                if not inside.strip():
                    return Node("set")
                return Node("set", parts=tuple(node for part in parts if part for node in _expanded(read(part))))
            balanced = _balanced(inside)
            if len(parts) > 1 and all(parts) and balanced:
                kind = "()" if left == r"\langle" else left + right
                return Node("tuple", kind, tuple(map(read, parts)))
            if len(parts) == 1 and balanced and left + right in ("()", "[]"):
                return read(inside)
    return None


def _balanced(text: str) -> bool:
    """Whether no bracket closes before it opens; `]0,1[` inside brackets is not balanced."""
    depth = 0
    for at, character in enumerate(text):
        if at and text[at - 1] == "\\":
            continue
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _prose(text: str) -> bool:
    r"""Whether a text is words, not mathematics: `\text{Tuesday}`, `Nora`, `\text{(C)}`, `neither`."""
    if not _ONLY_WORDS.match(text) or _COMMANDS.search(text):
        return False
    plain = re.sub(r"\\text\s*\{|[{}]", " ", text)
    letters = [word for word in re.findall(r"[^\W\d_]+", plain) if word not in ("and", "or")]
    if not letters:
        return False
    if r"\text" in text:
        return True
    # Bare letters: "xy" and "AB" are products; "Nora", "neither", "ABC" are words.
    return not any(letter in _FUNCTIONS.split() for letter in letters) and any(
        len(word) > 3 or (len(word) > 2 and (word[0].isupper() or set(word.lower()) & set("aeiou"))) for word in letters
    )


def _value(text: str) -> Node:
    percent, power = False, ""
    before = None
    while before != text:
        before = text
        units = _TRAILING_UNITS.search(text)
        stripped = text[: units.start()].strip() if units else ""
        if units and (
            _CHANGES.search(units[0])
            or ("text" not in units[0] and not _LONG_WORD.search(units[0]) and _VARIABLE.search(stripped))
        ):
            stripped = ""
        if stripped and re.search(r"[\d}a-zA-Z)|]", stripped):
            if powers := _POWER.findall(text[len(stripped) :]):
                power = powers[-1]
            text = stripped
        text = _LEADING_TEXT.sub("", text).strip()
        if text.endswith("%"):
            text, percent = text[:-1].strip(), True
        if text.endswith("\u00b0") and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)|cis", text):
            text = text[:-1].strip()
        if found := re.match(r"^\\text\{\s*([-+]?\d[^{}]*)\}$", text):
            return read(found[1])
    if text.startswith(r"\text") or re.match(r"[a-zA-Z]{4,} ", text) or _CHANGES.search(text):
        return Node("words", words(text))
    return Node("value", text, percent=percent, unit_power=power)
