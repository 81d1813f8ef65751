"""Cosmos QA: four-way commonsense reading comprehension (Huang et al., arXiv 1909.00277)."""

import re
from typing import Any

from metatuner.harness.benchmarks.base import Benchmark, HubSource, int_field, kind_of, text_field
from metatuner.harness.rows import Row, normalise_text

_LETTERS = "ABCD"
# The most reliable form comes first. The last match of a form counts.
_FORMS = (
    re.compile(r"\(\s*([A-Da-d])\s*\)"),
    # A lower-case letter counts only at the end: "the answer is a bed" names no option.
    re.compile(r"(?i:\banswer(?:\s+is)?)\s*:?\s*\**([A-D]\b|[a-d](?=\W*$))"),
    re.compile(r"^\W*([A-D])(?:[.):].*|\W*)$", re.DOTALL),
)


class CosmosQA(Benchmark):
    """Raw rows: `context`, `question`, `answer0` .. `answer3`, `label` (0..3)."""

    id = "cosmosqa"
    version = 1
    metrics = ("accuracy",)
    primary = "accuracy"
    # The labels of the official test split are not public.
    hub = HubSource(
        "allenai/cosmos_qa",
        None,
        "refs/convert/parquet",
        train="train",
        test="validation",
        rows={"train": 25262, "test": 2985},
    )
    paper_test_size = 2000
    initial_prompt = "choose the best option"
    max_new_tokens = 256

    def row(self, raw: dict[str, Any]) -> Row:
        """Context, question and lettered options; the target is the right option's text and letter."""
        context = text_field(raw, "context")
        texts = [text_field(raw, f"answer{i}") for i in range(4)]
        label = int_field(raw, "label", 0, 3)
        options = [f"{text} ({letter})" for text, letter in zip(texts, _LETTERS, strict=True)]
        return Row(
            id=text_field(raw, "id"),
            benchmark=self.id,
            query=f"{context}\nQuestion: {text_field(raw, 'question')}\nOptions: {' '.join(options)}",
            gold=(_LETTERS[label],),
            target=options[label],
            kind=kind_of(raw, "all"),
            group=normalise_text(context),
        )

    def extract(self, completion: str) -> str | None:
        """The last letter in parentheses; else the letter after "answer is"; else a letter alone or at the start."""
        for form in _FORMS:
            found = form.findall(completion)
            if found:
                return str(found[-1]).upper()
        return None

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the letter names the right option."""
        return {"accuracy": float(extracted in row.gold)}
