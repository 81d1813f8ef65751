"""Errors a user can act on: one line saying what is wrong, where, and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A failure with a message for the user; the command line prints it on one line and exits with 2."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: a near miss if there is one, then what exists.

    >>> suggest("gsm8", ["gsm8k", "math"])
    'did you mean gsm8k? Known: gsm8k, math'
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return (f"did you mean {near[0]}? " if near else "") + f"Known: {', '.join(names) or 'none'}"
