r"""Right answers in other forms, and wrong ones, made from a row's gold answer.

A form gives None where it does not apply. The rules look at the gold text only, not at what the harness makes of it.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

Form = Callable[[str], str | None]

GSM8K = [
    "{}",
    "#### {}",
    "We add.\n#### **{}**",
    "so $\\boxed{{{}}}$.",
    "We add 3 and 4. The answer is {}.",
    "**Answer:** {}",
    "The answer is ${}.",
    "#### ${}",
    "#### {} eggs",
    "Final Answer: The final answer is ${}$. I hope it is correct.",
    "So she has {} eggs on day 7.",
    "#### {}\n\nQuestion: Tom has 3 pens. How many?\nAnswer: #### 3",
    "#### x = {}",
    "#### 1. First step\nHe adds 3.\n#### {}",
    "### Step 2\nIt is {}.",
    "<think>#### 3</think>#### {}",
    "#### - {}",
]
HOTPOTQA = [
    "{}",
    "Answer: {}",
    "**Answer:** {}",
    "**Answer**: {}",
    "Answer: **{}**",
    "The answer is {}.",
    "answer: {}",
    "Based on the text, the correct answer is {}",
    "Answer: \\boxed{{{}}}",
    "\\boxed{{\\text{{{}}}}}",
    'Answer: "{}"',
    "Answer: \u201c{}\u201d",
    "### Answer\n{}",
    "Answer: {}\nExplanation: see paragraph 3.",
    "Answer: {}.",
    "Answer: {}\n\nQuestion: Who?\nAnswer: Bob",
    "First this.\nThen that.\n{}",
    "Final Answer: {}",
    "*Answer:* *{}*",
    "Answer: {}. It is stated in the first paragraph.",
    "The answer is {} because the first paragraph says so.",
]
COSMOSQA = [
    "{L}",
    "({L})",
    "{l}",
    "({l})",
    "{L}. {t}",
    "({L}) {t}",
    "Answer: {L}",
    "**Answer:** {L}",
    "**Answer: {L}. {t}**",
    "The answer is {L}.",
    "The best option is {L}.",
    "The best option is ({L}) {t}",
    "Option {L} is correct.",
    "\\boxed{{{L}}}",
    "$\\boxed{{\\text{{{L}}}}}$",
    "The passage says it.\n\n{L}. {t}",
    "It says so.\n\n**{L}**",
    "So.\n{l}",
    "The answer is {L} because options ({o}) and others are not mentioned.",
    "The answer is ({L}), not ({o}).",
    "{t}",
    "Answer: {t}",
    '"{t}"',
    'Answer: "{L}"',
    "I would choose {L}.",
    "{t} ({L})",
    "The answer is: {t}",
    "The answer is ({L}) {t}\n\nQuestion: what next?\nOptions: x (A) y (B) z (C) w (D)",
]
MATH = [
    "so we get $\\boxed{{{}}}$.",
    "The answer is ${}$.",
    "**Answer:** ${}$",
    "The answer is\n\n$$\\boxed{{{}}}$$\n\nDone.",
]


def wrong_numbers(gold: str) -> list[str]:
    """Other numbers than a decimal: one more, negated, ten times, a tenth, a half more, a digit more."""
    value = Decimal(gold)
    others = [value + 1, -value, value * 10, value / 10, value + Decimal("0.5")]
    return [f"{other:f}" for other in others if other != value] + [f"{gold}1"]


def cosmosqa(form: str, raw: dict[str, Any], option: int) -> str:
    """A form filled in with an option of a raw row; `o` is the letter of another."""
    letter, other = "ABCD"[option], "ABCD"[(option + 1) % 4]
    return form.format(L=letter, l=letter.lower(), t=raw[f"answer{option}"], o=other)


def _if(pattern: str, form: Form, *, but: str | None = None) -> Form:
    """The form, for gold answers that match a pattern (and contain no match of `but`)."""
    return lambda gold: form(gold) if re.search(pattern, gold) and not (but and re.search(but, gold)) else None


def _replaced(pattern: str, new: str) -> Form:
    return _if(pattern, lambda gold: re.sub(pattern, new, gold))


def _decimal(gold: str) -> str | None:
    match = re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", gold)
    if not match:
        return None
    value = Fraction(int(match[2]), int(match[3]))
    finite = 10**6 % value.denominator == 0
    return f"{match[1]}{float(value)}" if finite else None


_NUMBER, _INTEGER, _LONG = r"^-?\d+(\.\d+)?$", r"^-?\d+$", r"^\d{4,}$"
_LIST = r"^-?[\w\\ ]+(,-?[\w\\ ]+)+$"
_THOUSANDS = r"^\d{1,3}(,\d{3})+$"
_NO_VALUE = r"text|[=<>,%_]|\\le|\\ge|infty|\\cup|matrix|circ"

SAME: dict[str, Form] = {
    "as it is": lambda gold: gold,
    "dfrac": _replaced(r"\\frac", r"\\dfrac"),
    "full stop": lambda gold: f"{gold}.",
    "named": _if("", lambda gold: f"x={gold}", but=r"[=<>x]|\\le|\\ge|\\text|\\in\b|,"),
    "text": _if(_NUMBER, lambda gold: rf"\text{{{gold}}}"),
    "units": _if(_NUMBER, lambda gold: rf"{gold}\text{{ units}}"),
    "cm": _if(_NUMBER, lambda gold: f"{gold} cm"),
    "slash": _if(
        r"^-?\\d?frac\{?\d+\}?\{?\d+\}?$", lambda gold: re.sub(r"\\d?frac\{?(\d+?)\}?\{?(\d+)\}?$", r"\1/\2", gold)
    ),
    "decimal": _decimal,
    "comma": _if(_LONG, lambda gold: f"{int(gold):,}"),
    "{,}": _if(_LONG, lambda gold: f"{int(gold):,}".replace(",", "{,}")),
    "thin space": _if(_LONG, lambda gold: f"{int(gold):,}".replace(",", r"\,")),
    ".0": _if(_INTEGER, lambda gold: f"{gold}.0"),
    "bare sqrt": _replaced(r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
    "sqrt sign": _replaced(r"\\sqrt\{(\d+)\}", "\u221a\\1"),
    "sqrt()": _replaced(r"\\sqrt\{([^{}]+)\}", r"sqrt(\1)"),
    "pi": _replaced(r"\\pi", "\u03c0"),
    "minus sign": _if("-", lambda gold: gold.replace("-", "\u2212"), but="text"),
    "bold": _if(_NUMBER, lambda gold: rf"\mathbf{{{gold}}}"),
    "quotes": _if(r"\\text", lambda gold: f'"{gold}"'),
    "reversed list": _if(_LIST, lambda gold: ", ".join(reversed(gold.split(","))), but=_THOUSANDS),
    "and": _if(r"^-?\d+(, ?-?\d+)+$", lambda gold: " and ".join(gold.split(",")), but=_THOUSANDS),
    "bmatrix": _if("pmatrix", lambda gold: gold.replace("pmatrix", "bmatrix")),
    "infinity sign": _replaced(r"\\infty", "\u221e"),
    "times 1": _if(_NUMBER, lambda gold: rf"{gold}\cdot 1"),
}
OTHER: dict[str, Form] = {
    "plus 1": _if("", lambda gold: f"{gold}+1", but=_NO_VALUE),
    "negated": _if("", lambda gold: f"-({gold})", but=rf"{_NO_VALUE}|^0$|\||\\pm|[a-z]-[a-z]"),
    "first digit": _if(r"\d", lambda gold: re.sub(r"\d", _next_digit, gold, count=1)),
    "last digit": _if(r"\d", lambda gold: re.sub(r"\d(?!.*\d)", _next_digit, gold)),
    "twice": _if("", lambda gold: rf"2\cdot({gold})", but=rf"{_NO_VALUE}|^0$"),
    "shorter list": _if(_LIST, lambda gold: ",".join(gold.split(",")[:-1]), but=_THOUSANDS),
    "repeated": _if(_LIST, lambda gold: f"{gold},{gold.split(',')[-1]}", but=_THOUSANDS),
    "swapped": _if(
        r"^\(\s*([^,()]+?)\s*,(?!\s*\1\s*\))[^,()]+\)$", lambda gold: "({1},{0})".format(*gold[1:-1].split(","))
    ),
    "other brackets": _if(r"^[\[(][^,]+,[^,]+[\])]$", lambda gold: gold.translate(str.maketrans("[]()", "()[]"))),
    "no base": _if(r"^\d+_\{?\d+\}?$", lambda gold: gold.split("_")[0]),
    "minus for plus": _if(r"\+", lambda gold: gold.replace("+", "-", 1), but=r"\\pm"),
}


def _next_digit(match: re.Match[str]) -> str:
    return str((int(match[0]) + 1) % 10)


def math_pairs(golds: Sequence[str], forms: dict[str, Form]) -> list[tuple[str, str, str]]:
    """(name of the form, answer, gold) for each form and gold answer to which it applies."""
    made = [(name, form(gold), gold) for name, form in forms.items() for gold in golds if gold]
    return [
        (name, answer, gold) for name, answer, gold in made if answer is not None and (forms is SAME or answer != gold)
    ]
