"""Units that answers name: two answers that each name exactly one, and not the same, differ."""

import re

_UNITS = tuple(
    (name, re.compile(form, re.IGNORECASE))
    for name, form in (
        ("dollars", r"\\\$|\bdollars?\b"),
        ("cents", r"\bcents?\b|\u00a2|\\cent"),
        ("percent", r"%|\bpercent\b"),
        ("degrees", r"\\circ|\bdegrees?\b|\u00b0"),
        ("seconds", r"\bseconds?\b"),
        ("minutes", r"\bminutes?\b"),
        ("hours", r"\bhours?\b"),
        ("days", r"\bdays?\b"),
        ("weeks", r"\bweeks?\b"),
        ("months", r"\bmonths?\b"),
        ("years", r"\byears?\b"),
        ("millimetres", r"\bmm\b|\bmillimet(?:er|re)s?\b"),
        ("centimetres", r"(?<![a-z])cm\b|\bcentimet(?:er|re)s?\b"),
        ("kilometres", r"(?<![a-z])km\b|\bkilomet(?:er|re)s?\b"),
        ("metres", r"\\(?:text|mathrm)\s*\{\s*~?\s*m\s*\}|\bmet(?:er|re)s?\b"),
        ("inches", r"\binch(?:es)?\b"),
        ("feet", r"\bfeet\b|\bfoot\b|(?<![a-z])ft\b"),
        ("yards", r"\byards?\b"),
        ("miles", r"\bmiles?\b"),
    )
)


def named_units(text: str) -> set[str]:
    """The units that an answer in LaTeX names."""
    return {name for name, form in _UNITS if form.search(text)}
