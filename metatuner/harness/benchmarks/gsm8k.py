"""GSM8K: grade-school word problems with a number for an answer (Cobbe et al., arXiv 2110.14168)."""

import re
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark, HubSource, after_last, kind_of, text_field
from metatuner.harness.metrics import statements
from metatuner.harness.metrics.leaks import holds_number
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
    r"\s?(?:,? (?:(?:on|in|after|over|during|within|per|with|across|among|from|out of|of the|more than"
    r"|less than|than) (?!MONEY|all (?:NUMBER|MONEY))"
    r"|for (?!MONEY|(?:\w+ )?NUMBER (?:dollars?|cents?|euros?|pounds?)\b)|rounded to |to the nearest |of which "
    r"|(?:by|after|from) [a-z]+ing |to (?!get|make|give|obtain|reach|find|have|yield|total)[a-z]+ |at"
    r" (?=MONEY (?:each|per|a|an)\b))"
    r"(?:(?:the|a|an|each|every|these|those|her|his|their|its|next|first|last|about|exactly|only|day|week|month|year|all"
    r"|of|hour|minute|step|part|chapter|room|row|level|round|grade|question) ){0,4}"
    r"(?:NUMBER|MONEY)(?: [a-z]+){0,4}|\([^()]*\)|,? NUMBER (?:days|times|hours) (?:a|per) [a-z]+)\s?[.!]?$"
)
# A number of the subject or of a leading clause is no answer: "All 3 workers finish ...", "At 60 mph, he ...".
_SUBJECT = re.compile(
    r"^\W*(?:(?:(?:so|thus|therefore|hence),? )?(?:the|all|each|these|those|both|every|his|her|their)"
    r" (?:\w+ )?(?:NUMBER|MONEY)"
    r"|(?:at|with|in|for|if|working|after|since|when|given)\b[^,]*(?:NUMBER|MONEY)[^,]*,)(?:(?!NUMBER|MONEY).)*$",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\W*(?:note|explanation|confidence|check|verification|reason|reasoning|source|let me know|i hope|hope this)\b",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"[^\w\n]*(?:(?:x|it is|it's|is|about|approximately|roughly|exactly|a total of|total|usd|rs\.?|eur)"
    r" ?=? ?)?[^\w\n]*\d",
    re.IGNORECASE,
)
_REFUSAL = re.compile(r"\b(?:don't|do not|can't|cannot|unable|unknown|none|no one|not enough|n/a)\b", re.IGNORECASE)
_DENIED = re.compile(
    r"\b(?:(?:is|are|was)(?: [a-z]+ly)? not|isn't|aren't|cannot be|can't be|[Nn]ot) [$]?\d[\d,.]*\b(?!,? but\b)"
    r"|(?<![\w,.])[$]?\d[\d,.]*\b (?:is|are|was) (?:wrong|incorrect|not)\b"
    r"|\b(?i:common )?(?i:wrong|incorrect|other) (?:answer|result)s?(?: (?:is|are|would be))?:? [$]?\d[\d,.]*"
)
# A plan or a refusal states no result.
_PLAN = re.compile(
    r"\W*(?:(?:let's|let us) (?:break|solve|think|look|go|work|start|analy[sz]e)\b|i need\b|i'm sorry\b"
    r"|sorry\b|step \d+\W*$)[^=]*$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-\u2013\u2022*+]|\d{1,2}[.)]) (?=\S)")
_STEP = re.compile(r"^\W*step \d{1,2}[:.]\W?", re.IGNORECASE)
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
    initial_prompt = "Solve the problem. End with '#### ' and the number."
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
        text = _DENIED.sub("", statements.narrow(statements.tidy(statements.after_thought(completion))))
        return statements.first_of(statements.segments(text), _stated, _concluded) or None

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the numbers are equal, however they are written."""
        right = extracted is not None and any(numbers_equal(extracted, gold) for gold in row.gold)
        return {"accuracy": float(right)}

    def leaks(self, prompt: str, row: Row) -> bool:
        """Whether the prompt has a number that equals the reference and stands neither in the query nor in p~."""
        return any(holds_number(prompt, gold, self._given(row)) for gold in row.gold)


def _stated(text: str) -> str | None:
    """The number of the last mark, box or statement; "" if the text ends in a mark without a number."""
    marks = [match.end() for match in _MARKER.finditer(text)]
    for end in reversed(marks):
        rest = text[end : end + 1000].strip(" ")
        if _ANSWER_HEADING.match(rest):
            rest = rest.partition("\n")[2]
        line = statements.first_line(rest).rstrip("# ")
        more = rest.strip().partition("\n")[2].strip()
        found = _of_statement(line, marked=True)
        if found and not (more and (_HEADING.match(line) or not (_LEADING.match(line) or "=" in line or ":" in line))):
            return found
        if not found and (line or len(marks) == 1) and end == marks[-1] and not more:
            return ""
    boxes = statements.boxes(text) or statements.boxes(text, r"\fbox")
    for _, _, content in reversed(boxes):
        if found := stated_number(content):
            return found
    for statement in statements.statements(statements.without_emphasis(text)):
        line = statements.first_line(statement.text)
        if _REFUSAL.search(line) and not any(map(str.isdecimal, line)):
            return ""
        # "Answer:" may open a worked solution.
        whole = statement.colon and statement.text.strip() != line and (not _LEADING.match(line) or "=" in line)
        if whole and (found := _concluded(statement.text)):
            return found
        if found := _of_statement(statements.sentence(statement.text)):
            return found
    return None


def _of_statement(line: str, *, marked: bool = False) -> str | None:
    """The number that a statement begins with, or the result in its sentence."""
    plain = statements.without_emphasis(line)
    found = stated_number(plain, marked=marked)
    if found is None or _LEADING.match(plain) or "=" in plain:
        return found
    return _concluded(line) or found


def _concluded(text: str) -> str | None:
    """The last number of the last sentence with a number, without what is said beside it."""
    lines = [line for line in text.split("\n") if line.strip() and not _REMARK.match(line) and not _PLAN.match(line)]
    if lines and len(lines) > 1 and (found := _only_number(lines[0])):
        return found
    lines = [_STEP.sub("", line) for line in lines if not line.rstrip("* ").endswith((":", "?"))]
    lines = [line for line in lines if any(map(str.isnumeric, line))]
    if not lines:
        return None if _REFUSAL.search(text) or _PLAN.match(text) else number_in_words(re.sub(r"\b[Oo]ne\b", "", text))
    bolds = [found for bold in _BOLD.findall(lines[-1]) if (found := _only_number(bold))]
    if bolds:
        return bolds[0] if len(bolds) > 1 and not re.search(r"=|\btotal\b", lines[-1]) else bolds[-1]
    line = plain_numbers(statements.without_emphasis(_BULLET.sub("", lines[-1])))
    last = next(part for part in reversed(_SENTENCES.split(line)) if any(map(str.isdecimal, part)))
    if len(last) > 2000:
        last = last[-2000:].partition(" ")[2]
    for side in reversed(last.split("=")) if last.count("=") == 1 else ():
        if len(result := find_numbers(side)) == 1:
            return result[0].value
    values = find_numbers(last)
    shape, at = "", 0
    for number in values:
        money = "$" in last[number.start : number.end]
        shape, at = f"{shape}{last[at : number.start]}{'MONEY' if money else 'NUMBER'}", number.end
    shape += last[at:]
    while adjunct := _ADJUNCT.search(shape):
        rest = shape[: adjunct.start()]
        if not _SLOT.search(rest) or (len(_SLOT.findall(rest)) == 1 and _SUBJECT.match(rest + " ")):
            break
        shape = rest
    return values[len(_SLOT.findall(shape)) - 1].value if values else None


def _only_number(text: str) -> str | None:
    """The number of a text with nothing else but a unit."""
    plain = statements.without_emphasis(text)
    if len(plain.split()) > 3 or plain.rstrip().endswith(":") or not re.match(r"\W*(?!\d{1,2}[.)] )[\d.]", plain):
        return None
    found = numbers(plain)
    return found[0] if len(found) == 1 else None
