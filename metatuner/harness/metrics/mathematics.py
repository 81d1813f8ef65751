"""Whether two answers mean the same: structures part by part, values exactly.

No comparison uses floating-point numbers of fixed precision: decimals are fractions, and irrational values are compared
with 60 significant digits, relative to their size. Runs in the worker process of `equivalence`, which limits it.
"""

import re
from functools import lru_cache
from itertools import product
from typing import Any

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import NormalizationConfig, latex2sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import ConversionConfig  # type: ignore[import-untyped]

from metatuner.harness.metrics.latex import canonical, exact_decimals, words
from metatuner.harness.metrics.structure import Node, expanded, readings
from metatuner.harness.metrics.units import named_units
from metatuner.harness.metrics.values import DIGITS, equal_values, proportional

SIGNIFICANT = 10
"""A decimal with at least as many significant digits may be a rounded irrational or repeating value."""
_DECIMAL = re.compile(r"^-?(\d*)\.(\d+)$")
_INEQUALITIES = {"<": ("<", False), r"\le": ("<", True), ">": (">", False), r"\ge": (">", True)}
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\})\u00b0")
# The grammar would drop a numeral's base, dots, primes, a transpose or a geometric sign, and multiply "3 4".
_DROPPED = re.compile(
    r"\d\s*\}?\s*\)?\s*_|\\ldots|'|\\prime|\^\s*\{?\s*(?:T(?![a-z])|\\top)"
    r"|\\(?:angle|triangle|overline|overrightarrow|vec|hat|odot|parallel|perp|square|circ)(?![a-zA-Z])|(?<![_\d])\d+\s+\d"
)
_CIS = re.compile(
    r"(?:\\text\{cis\}|\\?cis)\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+\u00b0|\\frac\{[^{}]*\}\{[^{}]*\}|[\w\\]+))"
)
_NORMALISE = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")


def equal_answers(answer: str, gold: str) -> bool:
    """Whether two LaTeX answers mean the same, in one of their readings each."""
    units = [named_units(each) for each in (answer, gold)]
    if len(units[0]) == len(units[1]) == 1 and units[0] != units[1]:
        return False
    left, right = canonical(answer), canonical(gold)
    if left == right and left:
        return True
    return any(_decided(expanded(a), expanded(g)) for a, g in product(readings(left), readings(right)))


def _decided(answer: Node, gold: Node) -> bool:
    """As `same`. What SymPy or its grammar cannot read or decide counts as different."""
    try:
        return same(answer, gold)
    except MemoryError:
        raise
    except Exception:  # the grammar raises Exception itself
        return False


def same(answer: Node, gold: Node) -> bool:
    """Whether an answer's structure means what the gold one does."""
    if not all(_close(_unnamed(answer), each) for each in answer.about):
        return False
    if answer == gold:
        return True
    if answer.kind == "words" and answer.parts and gold.kind != "words":  # an option with its value
        return same(answer.parts[0], gold) or words(gold.text) == answer.text
    if (
        answer.kind == "relation"
        and set(answer.marks) <= {"=", r"\approx", r"\in", r"\equiv"}
        and gold.kind != "relation"
    ):
        return same(expanded(answer.parts[-1]), gold)
    if gold.kind == "relation" and answer.kind != "relation" and _names(gold):
        return same(answer, expanded(gold.parts[-1]))
    compare = _COMPARISONS.get((answer.kind, gold.kind))
    if compare is not None:
        return compare(answer, gold)
    if gold.kind in ("tuple", "union", "set") and answer.kind in ("relation", "list"):
        return (as_set := _solutions(answer)) is not None and same(as_set, gold)
    if answer.kind in ("tuple", "union", "set") and gold.kind == "relation":
        return (as_set := _solutions(gold)) is not None and same(answer, as_set)
    # A list with one element is that element.
    if answer.kind in ("list", "set") and len(answer.parts) == 1:
        return same(answer.parts[0], gold)
    if gold.kind in ("list", "set") and len(gold.parts) == 1:
        return same(answer, gold.parts[0])
    return False


def _close(exact: Node, about: Node) -> bool:
    """Whether an approximation is right to its last digit, or one of the two is no real number."""
    try:
        value, number = _expression(exact), _expression(about)
    except MemoryError:
        raise
    except Exception:  # the grammar raises Exception itself
        return True
    if not (value.is_number and number.is_number and value.is_real and number.is_real):
        return True
    written = re.fullmatch(r"-?\d*?(0*)(?:\.(\d+))?", about.text)
    power = (-len(written[2]) if written[2] else len(written[1])) if written else None
    last = abs(number.evalf(DIGITS)) / 20 if power is None else sympy.Integer(10) ** power
    return bool(abs((value - number).evalf(DIGITS)) <= last)


def _names(relation: Node) -> bool:
    """Whether a gold relation only names its value: `x = 5`, `f(x) = x + 3`, `(x,y) = (3,4)`, `x \\in [0,1]`."""
    return set(relation.marks) <= {"=", r"\in"} and _name(relation.parts[0])


def _name(node: Node) -> bool:
    if node.kind == "tuple":
        return all(map(_name, node.parts))
    return bool(
        re.fullmatch(r"(?:\\?[a-zA-Z]+|[a-zA-Z](?:_\{?\w+\}?)?)'?(?:\([\w, ]+\))?", node.text)
    ) and node.kind in ("value", "words")


def _ordered(answer: Node, gold: Node) -> bool:
    return len(answer.parts) == len(gold.parts) and all(
        map(same, map(_unnamed, answer.parts), map(_unnamed, gold.parts))
    )


def _unnamed(node: Node) -> Node:
    return node.parts[-1] if node.kind == "relation" and set(node.marks) == {"="} else node


def _unordered(answer: Node, gold: Node) -> bool:
    """Whether each part of one has its own equal part in the other: repeated elements count."""
    if len(answer.parts) != len(gold.parts):
        return False
    left = list(gold.parts)
    for part in answer.parts:
        match = next((other for other in left if same(part, other) or _same_unnamed(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_unnamed(one: Node, other: Node) -> bool:
    """As `same`, for `x = 3` and 3; two names must be the same name."""
    if one.kind == other.kind == "relation":
        return False
    return same(_unnamed(one), _unnamed(other))


def _brackets(answer: Node, gold: Node) -> bool:
    """Pairs and intervals: the same brackets (they matter for two elements) and equal elements in order."""
    if len(gold.parts) == 2 and answer.text != gold.text:
        return False
    return _ordered(answer, gold)


def _wrapped_list(answer: Node, gold: Node) -> bool:
    """A list in brackets against a plain list."""
    if any(part.kind == "relation" for part in gold.parts):  # (2, 1) for x = 2, y = 1
        return answer.text == "()" and _ordered(answer, gold)
    return answer.text in ("()", "[]", "") and _unordered(answer, gold)


def _unwrapped_list(answer: Node, gold: Node) -> bool:
    """A plain list against a pair: in order, as in `p = 7` and `q = 2` against `(7, 2)`."""
    if (solutions := _solutions(answer)) is not None and solutions.kind != "list":
        return same(solutions, gold)
    return gold.text == "()" and _ordered(answer, gold)


def _list_and_union(answer: Node, gold: Node) -> bool:
    return (solutions := _solutions(answer)) is not None and same(solutions, gold)


def _matrices(answer: Node, gold: Node) -> bool:
    return answer.columns == gold.columns and _ordered(answer, gold)


def _vector(answer: Node, gold: Node) -> bool:
    """A column or a row against a pair in round or angle brackets."""
    matrix, pair = (answer, gold) if answer.kind == "matrix" else (gold, answer)
    return pair.text == "()" and matrix.columns in (1, len(matrix.parts)) and _ordered(answer, gold)


def _ratios(answer: Node, gold: Node) -> bool:
    if len(answer.parts) != len(gold.parts) or r"\ldots" in answer.text + gold.text:
        return False
    left, right = [list(map(_expression, node.parts)) for node in (answer, gold)]
    if any(each.is_zero for each in (*left, *right)):
        return all(map(equal_values, left, right))
    return all(equal_values(a * right[0], g * left[0]) for a, g in zip(left[1:], right[1:], strict=True))


def _quotient(answer: Node, gold: Node) -> bool:
    ratio, value = (answer, gold) if answer.kind in ("ratio", "time") else (gold, answer)
    if len(ratio.parts) != 2:
        return False
    above, below = map(_expression, ratio.parts)
    return equal_values(above, _expression(value) * below)


def _text_and_value(answer: Node, gold: Node) -> bool:
    """Words against a value: letters as they stand ("C", "c"), or an option with its value ("C) 7")."""
    left, right = words(answer.text), words(gold.text)
    return left == right and left != ""


def _texts(answer: Node, gold: Node) -> bool:
    if answer.text == gold.text:
        return True
    option = re.fullmatch(r"[a-z]", gold.text)
    first, _, rest = answer.text.partition(" ")
    more = re.search(r"\b[a-h]\b|\bor\b|\band\b", rest)
    return option is not None and first == gold.text and len(rest) < 40 and not more


def _relations(answer: Node, gold: Node) -> bool:
    if answer.marks == gold.marks and len(answer.parts) == len(gold.parts) and all(map(same, answer.parts, gold.parts)):
        return True
    if max(len(answer.parts), len(gold.parts)) > 2 and set(answer.marks) | set(gold.marks) == {"="}:
        return _chains(answer, gold)
    left, right = _solutions(answer), _solutions(gold)
    if left is not None and right is not None:
        names = [_of_set(node) or _variables(node) for node in (answer, gold)]
        return names[0] == names[1] and same(left, right)
    if set(answer.marks) == set(gold.marks) == {"="}:
        name = answer.parts[0].text
        if _name(answer.parts[0]) and name == gold.parts[0].text and same(answer.parts[-1], gold.parts[-1]):
            return True
        return proportional(_gap(answer), _gap(gold), positive=False)
    if len(answer.marks) == len(gold.marks) == 1 and {*answer.marks, *gold.marks} <= set(_INEQUALITIES):
        (one, closed), (other, also) = (_INEQUALITIES[node.marks[0]] for node in (answer, gold))
        sign = 1 if one == other else -1
        return closed == also and proportional(sign * _gap(answer), _gap(gold), positive=True)
    return False


def _chains(answer: Node, gold: Node) -> bool:
    """Chains of equations: the same parts, or a name with the same number at the end."""
    if len(answer.parts) == len(gold.parts) and all(any(same(part, g) for g in gold.parts) for part in answer.parts):
        return True
    ends = [_expression(node.parts[-1]) for node in (answer, gold)]
    named = _name(answer.parts[0]) and answer.parts[0].text == gold.parts[0].text
    return named and not any(end.free_symbols for end in ends) and equal_values(*ends)


def _gap(relation: Node) -> Any:
    return _expression(relation.parts[0]) - _expression(relation.parts[-1])


def _of_set(relation: Node) -> set[str]:
    return {relation.parts[0].text} if relation.marks == (r"\in",) else set()


def _variables(relation: Node) -> set[str]:
    return {str(symbol) for part in relation.parts for symbol in _expression(part).free_symbols}


def _solutions(node: Node) -> Node | None:
    r"""The solutions of inequalities in one variable that stands alone, as intervals: `x < 4`, `0 < x \le 7`."""
    if node.kind == "list":
        each = [_solutions(part) if part.kind == "relation" else None for part in node.parts]
        found = [part for part in each if part is not None]
        if node.marks == ("and",):
            return _between(found) if len(found) == len(each) == 2 else None
        return Node("union", parts=tuple(found)) if found and len(found) == len(each) else None
    if node.kind != "relation":
        return None
    if node.marks == (r"\in",):
        return node.parts[1]
    parts, marks = node.parts, node.marks
    if not set(marks) <= set(_INEQUALITIES) or len({_INEQUALITIES[mark][0] for mark in marks}) != 1:
        return None
    if _INEQUALITIES[marks[0]][0] == ">":
        parts, marks = parts[::-1], marks[::-1]
    closed = [_INEQUALITIES[mark][1] for mark in marks]
    least, greatest = Node("value", r"-\infty"), Node("value", r"\infty")
    if len(parts) == 3 and _name(parts[1]):
        return Node("tuple", "([)]"[closed[0]] + ")]"[closed[1]], (parts[0], parts[2]))
    if len(parts) == 2 and _name(parts[0]):
        return Node("tuple", "(" + ")]"[closed[0]], (least, parts[1]))
    if len(parts) == 2 and _name(parts[1]):
        return Node("tuple", "(["[closed[0]] + ")", (parts[0], greatest))
    return None


def _between(intervals: list[Node]) -> Node | None:
    """What `x > a and x < b` leaves: the interval from a to b."""
    low = [each for each in intervals if each.kind == "tuple" and each.parts[1].text == r"\infty"]
    high = [each for each in intervals if each.kind == "tuple" and each.parts[0].text == r"-\infty"]
    if len(low) != 1 or len(high) != 1:
        return None
    return Node("tuple", low[0].text[0] + high[0].text[1], (low[0].parts[0], high[0].parts[1]))


# ---- values ----------------------------------------------------------------------------------------------------


def _values(answer: Node, gold: Node) -> bool:
    if answer.unit_power and gold.unit_power and answer.unit_power != gold.unit_power:
        return False
    if answer.text == gold.text and answer.percent == gold.percent:
        return True
    left, right = _expression(answer), _expression(gold)
    if equal_values(left, right) or _rounded(answer.text, right) or _rounded(gold.text, left):
        return True
    if answer.percent != gold.percent:
        hundredth = sympy.Rational(1, 100)
        left, right = (left * hundredth, right) if answer.percent else (left, right * hundredth)
        return equal_values(left, right)
    return False


def _rounded(text: str, value: Any) -> bool:
    """Whether a long decimal is a value, rounded or cut off at its last digit."""
    match = _DECIMAL.match(text)
    if match is None or len((match[1] + match[2]).lstrip("0")) < SIGNIFICANT or _DECIMAL.match(str(value)):
        return False
    number = value.evalf(DIGITS) if value.is_number and value.is_real else None
    exact = value.is_Rational and set(sympy.factorint(value.q)) <= {2, 5}
    if number is None or (not number.is_Float and not number.is_Integer) or exact:
        return False
    return bool(abs(number - sympy.Rational(text)) <= sympy.Rational(10) ** -len(match[2]))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    if _DROPPED.search(text):
        raise ValueError("an expression with a part that the grammar drops or reads otherwise")
    text = _CIS.sub(lambda found: _cis(found[1] or found[2] or found[3]), text)
    text = _DEGREES.sub(r"(\\frac{\1 \\pi}{180})", exact_decimals(text)).replace("\u00b0", "")
    parsed = latex2sympy(
        text,
        is_real=True,
        normalization_config=_NORMALISE,
        conversion_config=ConversionConfig(
            interpret_as_mixed_fractions=False, lowercase_symbols=len(set(text)) == len(set(text.lower()))
        ),
    )
    if not isinstance(parsed, sympy.Basic | sympy.MatrixBase):
        return parsed
    return parsed.subs(sympy.Symbol("i", real=True), sympy.I).doit()


def _cis(angle: str) -> str:
    return rf"(\cos({angle})+i\sin({angle}))"


def _expression(node: Node) -> Any:
    """The SymPy expression of a value; `ValueError` for anything else."""
    if node.kind in ("words", "value"):
        found = _parsed(node.text)
        if isinstance(found, sympy.Expr | sympy.MatrixBase):
            return found
    raise ValueError(f"no expression: {node.kind}")


_COMPARISONS = {
    ("list", "list"): _unordered,
    ("set", "set"): _unordered,
    ("list", "set"): _unordered,
    ("set", "list"): _unordered,
    ("tuple", "list"): _wrapped_list,
    ("list", "tuple"): _unwrapped_list,
    ("list", "union"): _list_and_union,
    ("union", "list"): lambda answer, gold: _list_and_union(gold, answer),
    ("union", "union"): _unordered,
    ("tuple", "tuple"): _brackets,
    ("matrix", "matrix"): _matrices,
    ("matrix", "tuple"): _vector,
    ("tuple", "matrix"): _vector,
    ("ratio", "ratio"): _ratios,
    ("ratio", "value"): _quotient,
    ("value", "ratio"): _quotient,
    ("time", "ratio"): _ratios,
    ("ratio", "time"): _ratios,
    ("time", "value"): _quotient,
    ("value", "time"): _quotient,
    ("time", "time"): _texts,
    ("relation", "relation"): _relations,
    ("words", "words"): _texts,
    ("words", "value"): _text_and_value,
    ("value", "words"): _text_and_value,
    ("value", "value"): _values,
}
