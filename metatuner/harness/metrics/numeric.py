"""Numbers in text, and their equality (GSM8K)."""

import re
from decimal import Decimal

# A sign belongs to a number unless something stands right before it ("16-3" is a subtraction).
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-\u2212])?"
    r"(?:\\?[$€£]\s?(?P<inner>[-\u2212])?)?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)",
    re.ASCII,
)


def numbers(text: str) -> list[str]:
    """Every number in a text, in order, as plain decimals: no currency sign, thousands comma or unit.

    >>> numbers("It costs -$1,080.50, or 12% of 16-3.")
    ['-1080.50', '12', '16', '3']
    """
    return [
        ("-" if match["sign"] or match["inner"] else "") + match["digits"].replace(",", "")
        for match in _NUMBER.finditer(text)
    ]


def numbers_equal(left: str, right: str) -> bool:
    """Whether two plain decimals are exactly the same number: 18 = 18.00, 33.33 != 33.333."""
    return Decimal(left) == Decimal(right)
