"""HotpotQA, distractor setting: two-hop questions over ten paragraphs (Yang et al., arXiv 1809.09600)."""

import re
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark, HubSource, after_last, first_line, kind_of, text_field
from metatuner.harness.metrics.text import exact_match, token_f1
from metatuner.harness.rows import Row, normalise_text

_MARKER = re.compile(r"\banswer\s*:", re.IGNORECASE)


class HotpotQA(Benchmark):
    """Raw rows: `question`, `answer`, `type`, `context` [[title, [sentence, ...]], ...]."""

    id = "hotpotqa"
    version = 1
    metrics = ("em", "f1")
    primary = "em"
    hub = HubSource(
        "hotpotqa/hotpot_qa",
        "distractor",
        "refs/convert/parquet",
        train="train",
        test="validation",
        rows={"train": 90447, "test": 7405},
    )
    paper_test_size = 2000
    initial_prompt = "answer the question from the facts"
    max_new_tokens = 256

    def raw_from_hub(self, record: dict[str, Any], place: str) -> dict[str, Any]:
        """The Hub stores paragraphs and supporting facts as columns; raw rows hold them as pairs."""
        context, facts = record["context"], record["supporting_facts"]
        return {
            **record,
            "context": [list(pair) for pair in zip(context["title"], context["sentences"], strict=True)],
            "supporting_facts": [list(pair) for pair in zip(facts["title"], facts["sent_id"], strict=True)],
        }

    def row(self, raw: dict[str, Any]) -> Row:
        """One line per paragraph, `title: sentences`, then `Question: ...`."""
        paragraphs = "".join(f"{paragraph}\n" for paragraph in _paragraphs(raw))
        query = f"{paragraphs}Question: {text_field(raw, 'question')}"
        answer = text_field(raw, "answer")
        return Row(
            id=text_field(raw, "id"),
            benchmark=self.id,
            query=query,
            gold=(answer,),
            target=f"Answer: {answer}",
            kind=kind_of(raw, text_field(raw, "type")),
            group=normalise_text(query),
        )

    def extract(self, completion: str) -> str | None:
        """The line after the last "Answer:"; without one, the last non-empty line."""
        marked = after_last(_MARKER, completion)
        if marked is not None:
            return first_line(marked)
        return first_line("\n".join(reversed(completion.splitlines())))

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Exact match and token F1, each against the best reference."""
        if extracted is None:
            return {"em": 0.0, "f1": 0.0}
        return {
            "em": max(exact_match(extracted, gold) for gold in row.gold),
            "f1": max(token_f1(extracted, gold) for gold in row.gold),
        }


def _paragraphs(raw: dict[str, Any]) -> list[str]:
    if "context" not in raw:
        raise UserError(f"field 'context' is missing; the row has {', '.join(raw)}")
    context = raw["context"]
    if not isinstance(context, list) or not context:
        raise UserError("field 'context' must be a list of [title, [sentence, ...]]; correct the row")
    lines = []
    for number, paragraph in enumerate(context, start=1):
        match paragraph:
            case [str(title), [*sentences]] if all(isinstance(sentence, str) for sentence in sentences):
                lines.append(f"{title}: {' '.join(sentence.strip() for sentence in sentences)}")
            case _:
                raise UserError(f"field 'context', paragraph {number}: must be [title, [sentence, ...]]; correct it")
    return lines
