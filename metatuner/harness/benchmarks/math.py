r"""MATH: competition mathematics with a LaTeX expression for an answer (Hendrycks et al., arXiv 2103.03874)."""

import re
from collections.abc import Sequence
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark, HubSource, Scored, kind_of, text_field
from metatuner.harness.metrics import statements
from metatuner.harness.metrics.equivalence import equivalent
from metatuner.harness.metrics.leaks import holds_expression
from metatuner.harness.metrics.numeric import find_numbers, plain_numbers
from metatuner.harness.rows import Row, normalise_text

# Between two boxes that give one answer together: "$x = \\boxed{3}$ and $x = \\boxed{8}$".
_JOIN = re.compile(
    r"(?:[\s$\\)\]]|\\quad|\\ )*(?:,|;|,? ?(?:and|or)|\\text\{ ?(?:and|or) ?\})(?:[\s$\\(\[]"
    r"|\\quad)*(?:[A-Za-z](?:_\{?\w\}?)? ?= ?)?"
)
_SPAN = re.compile(
    r"\$\$([^$]+)\$\$|(?<!\\)\$((?:\\.|[^$\\\n])+)\$|\\\(((?:[^\n\\]|\\[^()\n])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]"
)
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*\}")
_BETWEEN = re.compile(r"[\s.]*(?:,|;|,? ?(?:and|or))?\s*$")
_LEAD = re.compile(
    r"(?:(?:therefore|thus|hence|so|then|simply|just|exactly|clearly|now|equal to|given by|that|it is|we get|[,:])"
    r"\s?)+",
    re.IGNORECASE,
)
# What may follow an answer in its sentence.
_TAIL = re.compile(
    r",? (?:(?:because|since|which|so that|where|when|after)\b"
    r"|as (?=[\da-z])|\((?:since|because|as)|[-\u2013] (?:that is|found|obtained)|by (?=[a-z]+ing)|for"
    r" (?=the|all|this|any)).*"
    r"|, (?!and |or )(?=[a-z]{2,} ).*",
    re.DOTALL,
)
_NO_ANSWER = frozenset(
    "fine obtained clear right correct wrong simple obvious unique below above found given known needed".split()
)
_GOES_ON = re.compile(r"\s?(?:times|plus|minus|divided|over|squared|cubed)\b")
_DENIED = re.compile(r"\banswer (?:is not|isn't|cannot be|can't be)\b(?![^.\n]*\bbut\b)", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]{1,100})\*\*")
_NAMED = re.compile(r"(?<![\w\\])(?:[a-zA-Z] ?= ?)?[-+]?(?:\d[\d.,/]*\d|\d)(?:\s?%)?")


class MATH(Benchmark):
    r"""Raw rows: `problem`, `level`, `type`, `solution` (its last `\boxed{}` is the answer)."""

    id = "math"
    version = 2
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
    initial_prompt = r"Solve the problem. Put the final answer in \boxed{}."
    max_new_tokens = 1024

    def row(self, raw: dict[str, Any]) -> Row:
        r"""The query is the problem, the target the whole solution, and the gold what its last `\boxed{}` holds."""
        query, solution = text_field(raw, "problem"), text_field(raw, "solution")
        text_field(raw, "type")
        boxes = statements.boxes(solution) or statements.boxes(solution, r"\fbox")
        if not boxes:  # an empty box is allowed: two official solutions end in one
            raise UserError(r"field 'solution' states no answer; put it in \boxed{}")
        return Row(
            id=text_field(raw, "id"),
            benchmark=self.id,
            query=query,
            gold=tuple(dict.fromkeys([boxes[-1][2], _boxed(solution) or ""] if boxes[-1][2] else [""])),
            target=solution,
            kind=kind_of(raw, text_field(raw, "level")),
            group=normalise_text(query),
        )

    def extract(self, completion: str, row: Row) -> str | None:
        r"""What the last `\boxed{}` holds; without one, what "the answer is" or "Answer:" states, else the last result.

        Several boxes that are joined ("\boxed{3} and \boxed{8}") are one answer. An empty box states nothing, unless
        the reference is empty too.
        """
        text = statements.tidy(statements.after_thought(completion.replace("\x08oxed", r"\boxed")))
        if not any(row.gold):
            contents = [content for _, _, content in statements.boxes(text)]
            return contents[-1] if contents else None
        return statements.first_of(statements.segments(text), _boxed, _stated, _concluded)

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the answer means the same as the reference (`mathematics.equal_answers`)."""
        return self.score_all([extracted], [row])[0].metrics

    def score_all(self, extracted: Sequence[str | None], rows: Sequence[Row]) -> list[Scored]:
        """As `score`, for a batch. A worker process with limits compares expressions that differ as text."""
        answered = [(i, answer) for i, answer in enumerate(extracted) if answer is not None]
        verdicts = equivalent([(answer, rows[i].gold) for i, answer in answered])
        scores = [Scored({"accuracy": 0.0})] * len(rows)
        for (i, _), verdict in zip(answered, verdicts, strict=True):
            scores[i] = Scored({"accuracy": float(verdict.equal)}, verdict.stopped)
        return scores

    def leaks(self, prompt: str, row: Row) -> bool:
        """Whether the prompt has the reference, as a number or as written, and neither the query nor p~ has it."""
        return any(holds_expression(prompt, gold, self._given(row)) for gold in row.gold)


def _boxed(text: str) -> str | None:
    for command in (r"\boxed", r"\fbox"):
        found = [box for box in statements.boxes(text, command) if box[2].strip(r" \,;.$")]
        if found:
            contents, start = [found[-1][2]], found[-1][0]
            for before, end, content in reversed(found[:-1]):
                if start - end > 40 or not _JOIN.fullmatch(text, end, start):
                    break
                contents.append(content)
                start = before
            return ", ".join(dict.fromkeys(reversed(contents)))
    return statements.unclosed_box(text)


def _stated(text: str) -> str | None:
    """What the last statement with a number or a formula gives; without one, the last statement in words."""
    if _DENIED.search(text):
        return ""
    spoken = None
    for statement in statements.statements(statements.without_emphasis(text)):
        answer = _clause(statement.text)
        if answer and (any(map(str.isdigit, answer)) or "\\" in answer or statement.text.startswith("$")):
            return answer
        if answer.lower() in _NO_ANSWER:
            continue
        spoken = spoken or (answer if statement.colon or len(answer.split()) <= 3 else None)
    return spoken or None


def _clause(text: str) -> str:
    """The formula, or the words, that a statement begins with."""
    text = text.strip()
    if text.startswith(("$", r"\(", r"\[")):
        spans: list[str] = []
        end = 0
        while (span := _SPAN.search(text, end)) and (not spans or _BETWEEN.match(text[end : span.start()])):
            spans.append(next(group for group in span.groups() if group).strip())
            end = span.end()
        if spans:
            return "" if _GOES_ON.match(text, end) else ", ".join(spans)
    line = statements.sentence(statements.first_line(text))
    if spans := [next(group for group in span.groups() if group) for span in _SPAN.finditer(line)]:
        return spans[-1].strip()
    line = _TAIL.sub("", _LEAD.sub("", line, count=1) if _LEAD.match(line) else line, count=1)
    return statements.unquoted(line).lstrip(" :,").rstrip(" .$:,")


def _concluded(text: str) -> str | None:
    """The last formula, bold text or number of the last line that has one."""
    for line in reversed(text.split("\n")):
        spans = [next(group for group in span.groups() if group).strip() for span in _SPAN.finditer(line)]
        if spans := [span for span in spans if not _EMPTY_BOX.fullmatch(span)]:
            return next((span for span in reversed(spans) if any(map(str.isdigit, span)) or "=" in span), spans[-1])
        if bold := [content for content in _BOLD.findall(line) if not content.endswith(":")]:
            return str(bold[-1])
        if named := _NAMED.findall(statements.without_emphasis(line)):
            return str(named[-1])
        if found := find_numbers(plain_numbers(line)):
            return found[-1].value
    return None
