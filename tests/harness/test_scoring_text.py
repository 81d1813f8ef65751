"""Exact match and F1 of short answers, against HotpotQA's official evaluation written out here."""

import re
import string
from collections import Counter

import pytest

from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.metrics.text import exact_match, token_f1

HOTPOTQA, COSMOSQA = get_benchmark("hotpotqa"), get_benchmark("cosmosqa")


def official_normalize(s: str) -> str:
    """`normalize_answer` of the SQuAD 1.1 and HotpotQA evaluation scripts."""

    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return " ".join(remove_articles(remove_punc(s.lower())).split())


def official_f1(prediction: str, ground_truth: str) -> float:
    """`f1_score` of hotpot_evaluate_v1.py (its first value)."""
    normalized_prediction = official_normalize(prediction)
    normalized_ground_truth = official_normalize(ground_truth)
    for special in ("yes", "no", "noanswer"):
        present = special in (normalized_prediction, normalized_ground_truth)
        if present and normalized_prediction != normalized_ground_truth:
            return 0.0
    prediction_tokens = normalized_prediction.split()
    ground_truth_tokens = normalized_ground_truth.split()
    common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0.0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


GOLDS = [
    "yes",
    "no",
    "The Beatles",
    "an apple a day",
    "Charles L. Clifford",
    "from 1986 to 2013",
    "Château-d'Œx",
    "3,677 seated",
    'AC/DC\'s "T.N.T."',
    "no answer",
    "the",
    "YES!",
    "Saint-Étienne,  France",
    "New York, New York",
    "R&B",
]
PERTURBATIONS = [
    lambda gold: gold,
    str.upper,
    str.title,
    lambda gold: f"the {gold}",
    lambda gold: f"{gold}.",
    lambda gold: f"  {gold}\t",
    lambda gold: f"{gold} {gold}",
    lambda gold: gold.replace(" ", "-"),
    lambda gold: gold.replace(",", ""),
    lambda gold: " ".join(reversed(gold.split())),
    lambda gold: gold.split()[0],
    lambda gold: gold.split()[-1],
    lambda gold: f"yes, {gold}",
    lambda gold: f"no {gold}",
    lambda gold: f"I think it is {gold}, maybe",
    lambda gold: gold[:-1],
    lambda gold: gold[1:],
    lambda gold: "yes",
    lambda gold: "No.",
    lambda gold: "noanswer",
    lambda gold: "",
    lambda gold: "an",
    lambda gold: "something else entirely",
]


@pytest.mark.parametrize("gold", GOLDS)
def test_every_perturbed_answer_scores_as_in_the_official_evaluation(gold: str) -> None:
    # No disagreement is listed because there is none: 15 answers x 23 perturbations.
    for perturb in PERTURBATIONS:
        answer = perturb(gold)
        assert exact_match(answer, gold) == float(official_normalize(answer) == official_normalize(gold)), answer
        assert token_f1(answer, gold) == official_f1(answer, gold), answer


def test_known_values() -> None:
    assert token_f1("the quick brown fox", "a brown fox") == pytest.approx(0.8)
    assert token_f1("yes it is", "yes") == 0.0
    assert token_f1("no", "yes") == 0.0
    assert exact_match("The Beatles!", "beatles") == 1.0


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        ("Answer: doctor sam", "doctor sam"),
        ("It was sam.\nanswer : doctor sam\nmore", "doctor sam"),
        ("Answer: no. Final ANSWER: yes", "yes"),
        ("Answer:\n\n  Paris\n", "Paris"),
        ("Answer:", None),
        ("He was born in Paris.\nParis\n\n", "Paris"),
        ("Paris", "Paris"),
        (" \n ", None),
        ("", None),
    ],
)
def test_the_line_after_the_last_answer_mark_counts_else_the_last_line(completion: str, extracted: str | None) -> None:
    row = HOTPOTQA.row({"id": "a", "question": "?", "answer": "x", "type": "t", "context": [["a", ["b"]]]})
    assert HOTPOTQA.extract(completion, row) == extracted


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        ("go bed (A)", "A"),
        ("( c )", "C"),
        ("Not (A), because it rains: (D) is right", "D"),
        ("The answer is B", "B"),
        ("The answer is b.", "B"),
        ("answer: **C**", "C"),
        ("The answer is a bed", None),
        ("D", "D"),
        ("D. None of the above", "D"),
        ("B) she slept", "B"),
        ("A bed is needed", None),
        ("they slept", None),
        ("(E)", None),
        ("", None),
    ],
)
def test_an_option_letter_is_found_in_parentheses_then_after_answer_is_then_alone(
    completion: str, extracted: str | None
) -> None:
    options = {f"answer{i}": text for i, text in enumerate(["go bed", "she slept", "they ate", "none"])}
    row = COSMOSQA.row({"id": "a", "context": "c", "question": "?", "label": 0, **options})
    assert COSMOSQA.extract(completion, row) == extracted
