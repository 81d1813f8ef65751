"""Exact match and token F1 of short answers (SQuAD 1.1 evaluation, as changed for HotpotQA)."""

import re
import string
from collections import Counter

_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# HotpotQA's evaluation gives no partial credit if the answer or the reference is one of these.
_VERDICTS = frozenset({"yes", "no", "noanswer"})
# Words of ordinary prompts: one of them alone states nothing.
_TRUTHS = _VERDICTS | {"true", "false"}


def normalise_answer(text: str) -> str:
    """Lower case, ASCII punctuation and articles dropped, white space collapsed (SQuAD 1.1 `normalize_answer`)."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 if the normalised texts are equal, else 0.0."""
    return float(normalise_answer(answer) == normalise_answer(gold))


def token_f1(answer: str, gold: str) -> float:
    """F1 of the normalised texts' bags of words. A yes/no answer or reference gets full credit or none."""
    left, right = normalise_answer(answer), normalise_answer(gold)
    if left != right and (left in _VERDICTS or right in _VERDICTS):
        return 0.0
    answer_words, gold_words = left.split(), right.split()
    shared = sum((Counter(answer_words) & Counter(gold_words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(answer_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def holds_text(prompt: str, gold: str, given: str) -> bool:
    """Whether a prompt holds a reference as whole words that the given text does not hold.

    Case, punctuation and articles do not matter (`normalise_answer`). A reference "yes", "no", "true" or "false" never
    counts.
    """
    wanted = normalise_answer(gold)
    if not wanted or wanted in _TRUTHS:
        return False
    return _holds(normalise_answer(prompt), wanted) and not _holds(normalise_answer(given), wanted)


def _holds(text: str, wanted: str) -> bool:
    return f" {wanted} " in f" {text} "
