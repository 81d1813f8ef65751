"""Numbers in text, and their equality (GSM8K)."""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

_SUPERSCRIPTS = {
    ord(raised): str(digit)
    for digit, raised in enumerate("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
}
_RAISED = re.compile("(?<=[a-zA-Z)])[\u00b2\u00b3]|(?<=[a-zA-Z)}])\\s?\\^\\s?\\{?[23]\\}?(?![\\d^])")
_POWER = re.compile("(?<=\\d)([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)")
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d"), "-")
_THIN_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2008\u2009\u202f\u2060"), "\u2009")
_LATEX = (
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"(?<=\d)(?:\\[,;: !]|~|')\s?(?=\d{3}(?!\d))"), "\u2009"),
    (re.compile(r"\\[dtc]?frac\s?\{([^{}]{1,40})\}\s?\{([^{}]{1,40})\}"), r" \1/\2"),
    (re.compile(r"\\[dtc]?frac\s?(\d)\s?(\d)"), r" \1/\2"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])|\u00d7"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|\u00f7"), "/"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed|fbox|mbox)\s?(?=\{)|\\[$%#!,;: ]?(?![a-zA-Z])"), ""),
    (re.compile(r"[{}]"), ""),
)
_DIGITS = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:\u2009\d{3})+(?!\d)|\d+)(?:\.\d+)?"
    r"|(?<![\w.])\.\d+|(?<=[-$\u20ac\u00a3])\.\d+"
)
_FORM = (
    # A sign belongs to a number unless a number or a bracket stands before it ("16-3", "16 - 3" are subtractions).
    r"(?P<sign>(?<![\w)\]%])(?:(?<![\w)\]%] )|(?<=[a-zA-Z:] )(?!- ))(?:-\s?|\b(?:negative|minus)\s))?"
    r"(?:(?:[$\u20ac\u00a3\u00a5\u20b9]|\b(?:USD|EUR|GBP|Rs\.?)\s?)\s?(?P<inner>-)?\s?)?"
    rf"(?P<whole>{_DIGITS})"
    r"(?:(?P<mixed> \d+|-\d+)?\s?/\s?(?P<below>\d+(?:\.\d+)?)(?![\d/]))?"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w)|\s?[xX*]\s?10\s?(?:\^|\*\*)\s?\(?(?P<power>-?\d{1,3})\)?)?"
    r"(?:\s(?P<scale>(?i:hundred|thousand|million|billion|trillion))s?\b|(?P<suffix>\s?[kK]|M)\b)?"
)
_NUMBER = re.compile(_FORM, re.ASCII)
_SCALES = {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "m": 6, "billion": 9, "trillion": 12}

_EQUALS = re.compile(r"(?<=\d) ?(?:\bis\b|\bequals\b|->|=>|\u2192|\u21d2)(?= ?[$]?\d)")
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_UNITS += "seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {
    **{word: value for value, word in enumerate(_UNITS)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
}
_WORD = "|".join(sorted([*_WORDS, "hundred", "thousand", "million"], key=len, reverse=True))
_IN_WORDS = re.compile(
    rf"\b(?:(?P<minus>minus|negative) )?(?P<words>(?:{_WORD})(?:(?:[- ]|,? and )(?:{_WORD}))*)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Number:
    """A number in a text."""

    value: str
    """A plain decimal ("-1080.50") or a fraction of integers ("7/2")."""
    start: int
    end: int
    """Its place in `plain_numbers(text)`."""


def plain_numbers(text: str) -> str:
    """The text with its dashes, digits, fractions and LaTeX in the forms that `find_numbers` reads."""
    text = _RAISED.sub("", text)
    text = _POWER.sub(lambda raised: f"^{raised[1].translate(_SUPERSCRIPTS)}", text)
    text = text.translate(_DASHES).translate(_THIN_SPACES).replace("\u2044", "/").replace("\uff0c", ",")
    if not text.isascii():
        text = "".join(map(_plain_character, text))
    for form, plain in _LATEX:
        text = form.sub(plain, text)
    return text


def _plain_character(character: str) -> str:
    if character.isascii() or unicodedata.category(character) not in ("Nd", "No"):
        return character
    plain = unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return f" {plain}" if "/" in plain else plain


def find_numbers(text: str, *, blanks: bool = False) -> list[Number]:
    """Every number of a text from `plain_numbers`, in order: no currency sign, thousands mark, scale or unit.

    Args:
        text: the text.
        blanks: whether a blank may mark thousands ("1 234").
    """
    if blanks:
        text = re.sub(r"(?<!\d)(\d{1,3})((?: \d{3})+)(?![\d/.,])", lambda found: found[0].replace(" ", "\u2009"), text)
    return [Number(_value(match), match.start(), match.end()) for match in _NUMBER.finditer(text)]


def numbers(text: str) -> list[str]:
    """The values of all numbers of a text, in order.

    >>> numbers("It costs -$1,080.50, or 12% of 16-3.")
    ['-1080.50', '12', '16', '3']
    """
    return [number.value for number in find_numbers(plain_numbers(text))]


def _value(match: re.Match[str]) -> str:
    sign = "-" if match["sign"] or match["inner"] else ""
    whole = match["whole"].replace(",", "").replace("\u2009", "")
    shift = int(match["exponent"] or match["power"] or 0) + _SCALES.get(
        (match["scale"] or match["suffix"] or "").strip().lower(), 0
    )
    if match["below"] is None:
        return sign + (_shifted(whole, shift) if shift else whole)
    if len(match[0]) > 100 or not Fraction(match["below"]):
        return sign + whole
    value = Fraction(whole) / Fraction(match["below"])
    if match["mixed"]:
        value = Fraction(whole) + Fraction(match["mixed"].strip(" -")) / Fraction(match["below"])
    return f"{sign}{value * Fraction(10) ** shift}"


def _shifted(digits: str, shift: int) -> str:
    with localcontext() as context:
        context.prec = len(digits) + 1
        return f"{Decimal(digits).scaleb(shift):f}"


def number_in_words(text: str, *, whole: bool = False) -> str | None:
    """The last number that is written in words ("forty-two"), as digits; None if there is none.

    Args:
        text: the text.
        whole: only if the whole text is the number.
    """
    matches = list(_IN_WORDS.finditer(text))
    if len(text.split()) > 2:  # "no one", "this one" are no numbers
        matches = [match for match in matches if match["words"].lower() != "one"]
    if not matches or (whole and matches[-1].span() != (0, len(text))):
        return None
    named = re.findall(r"[a-z]+", matches[-1]["words"].lower())
    if len(named) > 20:  # no number, but a list of numbers
        return None
    total, part = 0, 0
    for word in named:
        if word in _WORDS:
            part += _WORDS[word]
        elif word == "hundred":
            part = 100 * (part or 1)
        elif word in _SCALES:
            total, part = total + 10 ** _SCALES[word] * (part or 1), 0
    return f"{'-' if matches[-1]['minus'] else ''}{total + part}"


def stated_number(text: str, *, marked: bool = False) -> str | None:
    """The number that a statement such as "6 * 7 = 42 eggs" or "42 (3 boxes)" gives; None if it gives none.

    After the last "=" if a number stands alone there, else before the first; without "=", the first number.

    Args:
        text: the statement.
        marked: whether it follows a mark that only an answer follows. Without one, of numbers with only a blank between
            them ("3 5") the last counts.
    """
    text = plain_numbers(text)
    if marked:
        text = _EQUALS.sub("=", text)
    if "=" in text:
        parts = text.split("=")
        for part in (parts[-1], parts[0]):
            found = find_numbers(part, blanks=True)
            if len(found) == 1:
                return found[0].value
    found = find_numbers(text.rsplit("=", 1)[-1], blanks=True) or find_numbers(text, blanks=True)
    if not found:
        return number_in_words(text)
    run = 0
    while not marked and run + 1 < len(found) and found[run + 1].start - found[run].end == 1:
        run += 1
    return found[run].value


def numbers_equal(left: str, right: str) -> bool:
    """Whether two numbers are exactly equal: 18 = 18.00, 7/2 = 3.5, 33.33 != 33.333."""
    if "/" in left or "/" in right:
        return max(len(left), len(right)) < 4000 and Fraction(left) == Fraction(right)
    return Decimal(left) == Decimal(right)
