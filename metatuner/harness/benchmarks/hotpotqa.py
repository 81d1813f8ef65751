"""HotpotQA, distractor setting: two-hop questions over ten paragraphs (Yang et al., arXiv 1809.09600)."""

import re
from typing import Any, ClassVar

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark, Choice, HubSource, kind_of, text_field
from metatuner.harness.metrics import statements
from metatuner.harness.metrics.text import exact_match, token_f1
from metatuner.harness.rows import Row, normalise_text

# Lines after an unmarked answer that explain it.
_REMARK = re.compile(
    r"\(?(?:note|assuming|references?|confidence|explanation|explained|source|reason|reasoning|rationale|justification|evidence|reference|support"
    r"|supporting facts?|i hope)\b",
    re.IGNORECASE,
)
_REASON = re.compile(
    r",? (?:because|since|as (?:both|it|he|she|they|we|stated|mentioned)|as mentioned|according to|based on)\b.*",
    re.IGNORECASE,
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|emph)\s?\{([^{}]*)\}|\\[()\[\]]|(?<!\\)\$|\\(?=[$%&#_ ])"
)
_NO_ANSWER = re.compile(
    r"(?:based|found|given|stated|supported|derived) (?:on|in|by|from|as)\b|(?:correct|as follows)\b"
)
_RULE = re.compile(r"^\s*[-=_]{3,}\s*\n")
_LISTED = re.compile(r"\d{1,2}\. (?!It |This )")
_BULLET = re.compile(r"^(?:[-+\u2022>] |#+ )")


class HotpotQA(Benchmark):
    """Raw rows: `question`, `answer`, `type`, `context` [[title, [sentence, ...]], ...].

    With `contexts: gold`, also `supporting_facts` [[title, index of a sentence], ...].
    """

    id = "hotpotqa"
    version = 2
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
    initial_prompt = "Answer the question from the paragraphs. Reply with a few words only, in the form 'Answer: ...'"
    max_new_tokens = 256
    takes: ClassVar = {
        "contexts": Choice(
            {"all": "", "gold": "gold paragraphs"},
            "the paragraphs of a query. all: the ten of the distractor setting; gold: only those that hold the "
            "supporting facts, which is an easier task, so titles say it. The paper does not say; all, as the "
            "distractor setting is defined",
        )
    }

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
        shown = _paragraphs(raw)
        if self.chosen("contexts") == "gold":
            titles = _supporting(raw, {title for title, _ in shown})
            shown = [(title, text) for title, text in shown if title in titles]
        paragraphs = "".join(f"{title}: {text}\n" for title, text in shown)
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

    def extract(self, completion: str, row: Row) -> str | None:
        """The text after the last "Answer:" (also a box, a heading, "the answer is"); without one, the last line.

        Of a longer statement only the first sentence counts. Remarks after an unmarked answer are left out.
        """
        text = statements.tidy(statements.after_thought(completion))
        return statements.first_of(statements.segments(text), _stated, _unmarked)

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Exact match and token F1, each against the best reference."""
        if extracted is None:
            return {"em": 0.0, "f1": 0.0}
        return {
            "em": max(exact_match(extracted, gold) for gold in row.gold),
            "f1": max(token_f1(extracted, gold) for gold in row.gold),
        }

    def leaks(self, prompt: str, row: Row) -> bool:
        """Whether the prompt states a reference as the answer ("Answer: ..."), or is one, or holds one as by default.

        The paragraphs of the query hold most references, so a prompt that only names one is no leak.
        """
        stated = (prompt, statements.first_of(statements.segments(statements.tidy(prompt)), _stated))
        answers = any(exact_match(text, gold) for text in stated if text for gold in row.gold)
        return answers or super().leaks(prompt, row)


def _stated(text: str) -> str | None:
    plain = statements.without_emphasis(text)
    spoken = None
    for statement in statements.statements(plain):
        if _NO_ANSWER.match(statement.text):
            continue
        if answer := _answer(statement.text, spoken=not statement.colon):
            if statement.colon:
                return answer
            spoken = spoken or answer
    boxes = statements.boxes(text)
    return _answer(boxes[-1][2]) if boxes else spoken


def _unmarked(text: str) -> str | None:
    lines = [line for line in statements.without_emphasis(text).split("\n") if line.strip(" -*_=#")]
    lines = [line for line in lines if not statements.is_mark(line)]
    kept = [line for line in lines if not _REMARK.match(line)] or lines
    if not kept:
        return None
    # A short first line followed by a sentence: the answer, then its explanation.
    first, last = kept[0].split(), kept[-1].split()
    answer_first = len(kept) > 1 and len(first) <= 6 and kept[0][-1] not in ":?.," and len(last) >= 8
    return _answer(kept[0] if answer_first else kept[-1])


def _answer(text: str, *, spoken: bool = False) -> str | None:
    boxes = statements.boxes(statements.first_line(text))
    line = boxes[0][2].replace("~", " ") if boxes else statements.first_line(_RULE.sub("", text))
    line = _WRAPPER.sub(r"\1", _BULLET.sub("", line, count=1))
    if not _LISTED.match(line):
        line = statements.sentence(line)
    line = line.rstrip("\u3002\uff0c\uff0e")
    return statements.unquoted(_REASON.sub("", line, count=1) if spoken else line) or None


def _supporting(raw: dict[str, Any], titles: set[str]) -> set[str]:
    """The titles of the paragraphs that hold the supporting facts."""
    place = f"field 'supporting_facts' of row {raw.get('id')!r}"
    remedy = "add [[title, index of a sentence], ...], or set contexts: all"
    if "supporting_facts" not in raw:
        raise UserError(f"{place} is missing; {remedy}")
    facts, found = raw["supporting_facts"], set()
    for fact in facts if isinstance(facts, list) else [None]:
        match fact:
            case [str(title), int()]:
                found.add(title)
            case _:
                raise UserError(f"{place} is of another form; {remedy}")
    if not found:
        raise UserError(f"{place} is empty; {remedy}")
    if wrong := sorted(found - titles):
        raise UserError(f"{place}: {wrong[0]!r} is no title of 'context'; correct the row, or set contexts: all")
    return found


def _paragraphs(raw: dict[str, Any]) -> list[tuple[str, str]]:
    """(Title, text) of each paragraph."""
    if "context" not in raw:
        raise UserError(f"field 'context' is missing; the row has {', '.join(raw)}")
    context = raw["context"]
    if not isinstance(context, list) or not context:
        raise UserError("field 'context' must be a list of [title, [sentence, ...]]; correct the row")
    lines = []
    for number, paragraph in enumerate(context, start=1):
        match paragraph:
            case [str(title), [*sentences]] if all(isinstance(sentence, str) for sentence in sentences):
                lines.append((title, " ".join(sentence.strip() for sentence in sentences)))
            case _:
                raise UserError(f"field 'context', paragraph {number}: must be [title, [sentence, ...]]; correct it")
    return lines
