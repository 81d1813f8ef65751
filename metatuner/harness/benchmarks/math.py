r"""MATH: competition mathematics with a LaTeX expression for an answer (Hendrycks et al., arXiv 2103.03874)."""

import re
from collections.abc import Sequence
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark, HubSource, Scored, after_last, kind_of, text_field
from metatuner.harness.metrics.equivalence import equivalent, last_boxed
from metatuner.harness.rows import Row, normalise_text

_PHRASE = re.compile(r"answer is:?\s*", re.IGNORECASE)
# A sentence ends at a full stop that is not a decimal point.
_SENTENCE = re.compile(r"(.*?)(?:\.(?!\d)|\n|$)", re.DOTALL)


class MATH(Benchmark):
    r"""Raw rows: `problem`, `level`, `type`, `solution` (its last `\boxed{}` is the answer)."""

    id = "math"
    version = 1
    metrics = ("accuracy",)
    primary = "accuracy"
    hub = HubSource(
        "DigitalLearningGmbH/MATH-lighteval",
        "default",
        None,
        train="train",
        test="test",
        rows={"train": 7500, "test": 5000},
    )
    paper_test_size = 450
    initial_prompt = "find the result and give the answer"
    max_new_tokens = 1024

    def row(self, raw: dict[str, Any]) -> Row:
        r"""The query is the problem, the target the whole solution, and the gold what its last `\boxed{}` holds."""
        query, solution = text_field(raw, "problem"), text_field(raw, "solution")
        text_field(raw, "type")
        gold = last_boxed(solution)
        if gold is None:  # an empty box is allowed: two official solutions end in one
            raise UserError(r"field 'solution' states no answer; put it in \boxed{}")
        return Row(
            id=text_field(raw, "id"),
            benchmark=self.id,
            query=query,
            gold=(gold,),
            target=solution,
            kind=kind_of(raw, text_field(raw, "level")),
            group=normalise_text(query),
        )

    def extract(self, completion: str) -> str | None:
        r"""What the last balanced `\boxed{}` holds; without one, the sentence after the last "answer is"."""
        boxed = last_boxed(completion)
        if boxed is not None:
            return boxed
        rest = after_last(_PHRASE, completion)
        sentence = _SENTENCE.match(rest) if rest else None
        return sentence[1].strip(" $:*") or None if sentence else None

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the expressions are mathematically equivalent (math-verify)."""
        return self.score_all([extracted], [row])[0].metrics

    def score_all(self, extracted: Sequence[str | None], rows: Sequence[Row]) -> list[Scored]:
        """As `score`, for a batch. A worker process with limits compares expressions that differ as text."""
        answered = [(i, answer) for i, answer in enumerate(extracted) if answer is not None]
        verdicts = equivalent([(answer, rows[i].gold) for i, answer in answered])
        scores = [Scored({"accuracy": 0.0})] * len(rows)
        for (i, _), verdict in zip(answered, verdicts, strict=True):
            scores[i] = Scored({"accuracy": float(verdict.equal)}, verdict.stopped)
        return scores
