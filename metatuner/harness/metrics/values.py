"""Whether two SymPy expressions have the same value: exactly for rationals, else at fixed points with many digits."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy  # type: ignore[import-untyped]

DIGITS = 110
_CLOSE = sympy.Rational(1, 10**75)


def equal_values(left: Any, right: Any) -> bool:
    """Whether two SymPy expressions have one value, or one at every point where both are real."""
    if left == right:
        return True
    if isinstance(left, sympy.MatrixBase) or isinstance(right, sympy.MatrixBase):
        shaped = (
            isinstance(left, sympy.MatrixBase) and isinstance(right, sympy.MatrixBase) and left.shape == right.shape
        )
        return shaped and all(equal_values(a, b) for a, b in zip(left, right, strict=True))
    if left.is_infinite or right.is_infinite or left.has(sympy.nan, sympy.zoo) or right.has(sympy.nan, sympy.zoo):
        return False
    if left.is_Rational and right.is_Rational:
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if left.free_symbols != right.free_symbols and not (left - right).is_number:
        # A symbol may still cancel out.
        left, right = sympy.simplify(left), sympy.simplify(right)
        if left.free_symbols != right.free_symbols:
            return False
    for points in _points(symbols, left, right):
        verdicts = [verdict for point in points if (verdict := _agree(left, right, point)) is not None]
        if verdicts:
            return all(verdicts)
    return False


def _points(symbols: Sequence[Any], left: Any, right: Any) -> list[list[dict[Any, Any]]]:
    """Points to compare at: fixed fractions of both signs, then whole numbers if no fraction gives a value.

    Factorials need whole numbers, and floors need both.
    """
    if not symbols:
        return [[{}]]
    small, large = [2, 3, 1, 4, 2, 5], [7, 8, 6, 11, 9, 5]
    whole = [
        {symbol: sympy.Integer((large, small)[i % 2][n] + i // 2) for i, symbol in enumerate(symbols)} for n in range(6)
    ]
    count = len(_FRACTIONS)
    broken = [
        {symbol: sympy.Rational(_FRACTIONS[(n + 3 * i) % count] + Fraction(i, 37)) for i, symbol in enumerate(symbols)}
        for n in range(count)
    ]
    if left.has(*_STEPS) or right.has(*_STEPS):
        return [broken + whole]
    if left.has(*_WHOLE) or right.has(*_WHOLE):
        return [whole]
    return [broken, whole]


_STEPS, _WHOLE = (sympy.floor, sympy.ceiling, sympy.Mod), (sympy.factorial, sympy.binomial)
_FRACTIONS = [Fraction(*each) for each in ((7, 3), (-11, 7), (5, 13), (-3, 17), (19, 2), (-23, 5), (1, 29), (31, 11))]


def _agree(left: Any, right: Any, point: dict[Any, Any]) -> bool | None:
    """Whether both have one value at a point; None if one has no value there, or only one that is not real."""
    a, b = (side.subs(point).evalf(DIGITS) for side in (left, right))
    if not (a.is_number and b.is_number) or any(not part.is_finite for side in (a, b) for part in side.as_real_imag()):
        return None
    real = all(abs(side.as_real_imag()[1]) <= _CLOSE * (1 + abs(side)) for side in (a, b))
    if not real and point and not (left.has(sympy.I) or right.has(sympy.I)):
        return None
    size, gap = max(abs(a), abs(b)), abs(a - b)
    if point and a == b == 0:  # no evidence
        return None
    if gap <= _CLOSE * size:
        return True
    if size > _CLOSE:
        return False
    return bool(sympy.simplify(left - right) == 0)


def proportional(left: Any, right: Any, *, positive: bool) -> bool:
    """Whether two expressions differ by a constant factor other than 0 (positive for inequalities)."""
    symbols = left.free_symbols
    if symbols != right.free_symbols or not symbols:
        return False
    factors = []
    for point in _points(sorted(symbols, key=str), left, right)[0]:
        a, b = (side.subs(point).evalf(DIGITS) for side in (left, right))
        if a.is_number and b.is_number and a.is_finite and b.is_finite and abs(b) > _CLOSE:
            factors.append(a / b)
    first = factors[0] if factors else sympy.Integer(0)
    if len(factors) < 2 or abs(first) < _CLOSE or (positive and not sympy.re(first) > 0):
        return False
    return all(abs(factor - first) <= _CLOSE * abs(first) for factor in factors)
