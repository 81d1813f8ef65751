"""GSM8K: grade-school word problems with a number for an answer (Cobbe et al., arXiv 2110.14168)."""

import re
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark, HubSource, after_last, kind_of, text_field
from metatuner.harness.metrics.numeric import numbers, numbers_equal
from metatuner.harness.rows import Row, normalise_text

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_MARKER = re.compile(r"####")


class GSM8K(Benchmark):
    """Raw rows: `question`, `answer` (a rationale; its last line is `#### <number>`)."""

    id = "gsm8k"
    version = 1
    metrics = ("accuracy",)
    primary = "accuracy"
    hub = HubSource(
        "openai/gsm8k",
        "main",
        None,
        train="train",
        test="test",
        rows={"train": 7473, "test": 1319},
    )
    paper_test_size = 1319
    initial_prompt = "solve the problem and give the answer"
    max_new_tokens = 512

    def row(self, raw: dict[str, Any]) -> Row:
        """The query is the question; the target is the rationale without its calculator annotations `<<...>>`."""
        query, answer = text_field(raw, "question"), text_field(raw, "answer")
        stated = numbers(after_last(_MARKER, answer) or "")
        if len(stated) != 1:
            raise UserError("field 'answer' must end in '#### ' and one number; correct the row")
        return Row(
            id=text_field(raw, "id"),
            benchmark=self.id,
            query=query,
            gold=(stated[0],),
            target=_ANNOTATION.sub("", answer).strip(),
            kind=kind_of(raw, "all"),
            group=normalise_text(query),
        )

    def extract(self, completion: str) -> str | None:
        """The first number after the last `####`; without `####`, the last number of the completion."""
        marked = after_last(_MARKER, completion)
        found = numbers(completion if marked is None else marked)
        if not found:
            return None
        return found[-1] if marked is None else found[0]

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the numbers are equal, however they are written."""
        right = extracted is not None and any(numbers_equal(extracted, gold) for gold in row.gold)
        return {"accuracy": float(right)}
