"""GSM8K: grade-school word problems with a number for an answer (Cobbe et al., arXiv 2110.14168)."""

import re
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark, HubSource, after_last, kind_of, text_field
from metatuner.harness.metrics import statements
from metatuner.harness.metrics.numeric import (
    find_numbers,
    number_in_words,
    numbers,
    numbers_equal,
    plain_numbers,
    stated_number,
)
from metatuner.harness.rows import Row, normalise_text

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_MARKER = re.compile(r"(?<!#)####(?!#)")
# "#### 3. Total number of eggs" and "#### Step 2" are headings. They state no answer.
_HEADING = re.compile(
    r"\s?(?:\d{1,2}[.)] [A-Za-z]|(?:step|part|question|problem|case|section|day|method)\b)", re.IGNORECASE
)
_ANSWER_HEADING = re.compile(
    r"[^\w\n]*(?:the )?(?:final |correct )?(?:answer|result|total)?[^\w\n]*(?:\n|$)", re.IGNORECASE
)
_BOLD = re.compile(r"\*\*([^*\n]{1,60})\*\*")
# What may follow the answer in a sentence: "on day 7", "in 3 boxes", "rounded to 2 places", "of which 3 are red".
_ADJUNCT = re.compile(
    r"\s?(?:,? (?:(?:on|in|after|over|during|within|per|with|across|among) "
    r"|for (?!MONEY|(?:\w+ )?NUMBER (?:dollars?|cents?|euros?|pounds?)\b)|rounded to |to the nearest |of which )"
    r"(?:(?:the|a|an|each|every|these|those|her|his|their|its|next|first|last|about|exactly|only|day|week|month|year"
    r"|hour|minute|step|part|chapter|room|row|level|round|grade|question) ){0,3}"
    r"(?:NUMBER|MONEY)(?: [a-z]+){0,4}|\([^()]*\))\s?[.!]?$"
)
_SLOT = re.compile("NUMBER|MONEY")
_SENTENCES = re.compile(r"(?<=[.!?]) (?=[A-Z])")


class GSM8K(Benchmark):
    """Raw rows: `question`, `answer` (a rationale; its last line is `#### <number>`)."""

    id = "gsm8k"
    version = 2
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

    def extract(self, completion: str, row: Row) -> str | None:
        """The number that the completion states as its answer, else the number of its conclusion.

        The most explicit form counts: after the last `####`, in the last box, after "the answer is" or "Answer:", bold
        in the last line, else the last number that is no part of an adjunct ("on day 7").
        """
        text = statements.tidy(statements.after_thought(completion))
        return statements.first_of(statements.segments(text), _stated, _concluded) or None

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the numbers are equal, however they are written."""
        right = extracted is not None and any(numbers_equal(extracted, gold) for gold in row.gold)
        return {"accuracy": float(right)}


def _stated(text: str) -> str | None:
    """The number of the last mark, box or statement; "" if the text ends in a mark without a number."""
    marks = [match.end() for match in _MARKER.finditer(text)]
    for end in reversed(marks):
        rest = text[end : end + 1000].strip(" ")
        if _ANSWER_HEADING.match(rest):
            rest = rest.partition("\n")[2]
        line = statements.first_line(rest)
        found = stated_number(statements.without_emphasis(line), marked=True)
        if found and not (rest.strip() != line and _HEADING.match(line)):
            return found
        if not found and end == marks[-1] and not rest.strip().partition("\n")[2]:
            return ""
    boxes = statements.boxes(text) or statements.boxes(text, r"\fbox")
    stated = [content for _, _, content in reversed(boxes)]
    stated += [statements.sentence(one.text) for one in statements.statements(statements.without_emphasis(text))]
    return next((found for one in stated if (found := stated_number(one))), None)


def _concluded(text: str) -> str | None:
    """The last number of the last sentence with a number, without what is said beside it."""
    lines = [line for line in text.split("\n") if any(map(str.isnumeric, line))]
    if not lines:
        return number_in_words(text)
    for bold in reversed(_BOLD.findall(lines[-1])):
        if len(bold.split()) <= 3 and not bold.endswith(":") and len(found := numbers(bold)) == 1:
            return found[0]
    line = plain_numbers(statements.without_emphasis(lines[-1]))
    last = next(part for part in reversed(_SENTENCES.split(line)) if any(map(str.isdecimal, part)))
    if len(last) > 2000:
        last = last[-2000:].partition(" ")[2]
    values = find_numbers(last)
    shape, at = "", 0
    for number in values:
        money = "$" in last[number.start : number.end]
        shape, at = f"{shape}{last[at : number.start]}{'MONEY' if money else 'NUMBER'}", number.end
    shape += last[at:]
    while (adjunct := _ADJUNCT.search(shape)) and _SLOT.search(shape[: adjunct.start()]):
        shape = shape[: adjunct.start()]
    return values[len(_SLOT.findall(shape)) - 1].value if values else None
