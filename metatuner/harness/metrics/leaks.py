"""Whether a prompt that was written for a query gives the answer away: references in a prompt and in no given text."""

import re

from metatuner.harness.metrics.numeric import find_numbers, number_in_words, numbers, numbers_equal, plain_numbers

_MARK = re.compile(r"(?<!\S)\(?(\d{1,2})[.):](?=\s+[^\W\d])")
# Numbers that speak of the text to write: "step 2", "in 3 steps", "to 2 decimal places".
_FORM = re.compile(
    r"\b(?:step|part|example|option|line|rule)s? \d+"
    r"|\b\d+(?:st|nd|rd|th)?[ -]?(?:(?:more|short|clear|simple|or \d+) )?"
    r"(?:steps?|sentences?|words?|lines?|paragraphs?|decimals?|digits?|significant|bullet)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[,;:! ]|\$")


def holds_number(prompt: str, gold: str, given: str) -> bool:
    """Whether a prompt holds a number equal to a reference that the given text does not hold, in digits or in words.

    The prompt's numbers in words are not read. Neither are the marks of a list ("1. ... 2. ...") and numbers of steps,
    sentences, words or digits.
    """
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", given.lower())
    spoken = (number_in_words(word, whole=True) for word in words)
    known = [*numbers(given), *(number for number in spoken if number)]
    if any(numbers_equal(number, gold) for number in known):
        return False
    return any(numbers_equal(number, gold) for number in numbers(_FORM.sub(" ", _without_marks(prompt))))


def holds_expression(prompt: str, gold: str, given: str) -> bool:
    """Whether a prompt holds a LaTeX reference that the given text does not hold.

    A reference that is a number counts as in `holds_number`. Else it counts as it is written, without white space; one
    of fewer than three characters ("x") never does.
    """
    plain = plain_numbers(gold).strip()
    if (found := find_numbers(plain)) and (found[0].start, found[0].end) == (0, len(plain)):
        return holds_number(prompt, found[0].value, given)
    wanted = "".join(_unmarked(gold).split())
    spaced = r"\s*".join(map(re.escape, wanted))
    place = re.compile(rf"(?<![\w\\]){spaced}(?!\w)")
    return len(wanted) >= 3 and bool(place.search(_unmarked(prompt))) and not place.search(_unmarked(given))


def _unmarked(text: str) -> str:
    return _MARKUP.sub("", text).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")


def _without_marks(text: str) -> str:
    """The text without the marks of a list that begins with 1."""
    expected, spans = 1, []
    for match in _MARK.finditer(text):
        if int(match[1]) == expected:
            spans.append(match.span())
            expected += 1
    for start, end in reversed(spans):
        text = f"{text[:start]} {text[end:]}"
    return text
