r"""Where a completion states its answer: final answers in the forms that language models write.

All functions take and give text, and take time linear in its length. docs/benchmarks.md lists the rules with examples.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

Found = TypeVar("Found")

# The names under which a model states its final answer.
_NOUN = (
    r"(?<!wrong )(?<!incorrect )(?<!other )(?<!another )(?<!second )(?<!worst )(?<!least likely )(?<!bad )"
    r"(?:(?:final|correct|best|right|short|most likely|true)\s)?(?:answer|option|choice|letter)"
)
_VERB = (
    r"(?:is|was|would be|will be|must be|should be|has to be|ought to be|can only be|turns out to be|seems to be"
    r"|appears to be|equals)\b"
    r"(?:,? (?:therefore|thus|hence|clearly|most likely|likely|probably|definitely|indeed|actually|simply"
    r"|obviously)\b,?)?"
)
_ASIDE = r"(?:,? (?:to|of|for|here|in|among|from|that|which|based|given|according|I|we)\b[^.:;\n]{0,80}?,?)?"
_COLON = re.compile(
    rf"\b{_NOUN}(?: \([^()\n]{{0,40}}\)| (?:to|for) [^.:;\n]{{1,40}})?(?: {_VERB})?[\]\"']?\s?(?:[:\uff1a]"
    rf"|->|=>|\u2192)"
    rf"|^#*\s?(?:the )?{_NOUN}\s?(?:[-\u2013\u2014=]|--)\s"
    r"|^(?:ans|response|result|conclusion|selected|\u7b54\u6848)\s?[:\uff1a]",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(rf"^#*\s?(?:the )?{_NOUN}\s?[:\uff1a]?\s?$", re.IGNORECASE | re.MULTILINE)
_PHRASE = re.compile(rf"\b{_NOUN}{_ASIDE} {_VERB}(?: that)?:?", re.IGNORECASE)
_NEGATION = re.compile(r"not ")
_BUT = re.compile(r"\bbut (?:rather )?|\bit is |\bit's |\binstead ", re.IGNORECASE)
# A model that runs on invents another question after its answer. A header without a colon has a number or a mark.
_NEXT_QUESTION = re.compile(
    r"\n(?P<mark>[#>\[ ]{0,6})(?:(?P<asks>here(?:'s| is) (?:another|the next|a new) (?:question|problem)"
    r"|(?:(?:next|new|another) )?"
    r"(?:question|q|problem|exercise|example|task|human|user|student|instruction|input|prompt))"
    r"|passage|context|paragraphs?|story|text|document|facts?)"
    r"(?:\s?#?(?P<number>\d{1,3}))?\]?\s?(?P<end>[:\uff1a.]|(?=\n)|$|(?= ))"
    r"|(?P<turn>\n?(?:\[INST\]|<\|(?:user|im_start)\|>|<start_of_turn>))",
    re.IGNORECASE,
)
# What ends a turn, if the tokenizer does not leave it out.
_END_OF_TURN = re.compile(r"<\|(?:im_end|eot_id|endoftext|end|end_of_text|end_of_turn)\|>|</s>|<end_of_turn>|<eos>")
_ASKED = re.compile(r"\n(?:question|options)\b", re.IGNORECASE)
_NOT_THE_ANSWER = re.compile(
    r"\b(?:wrong|incorrect|other|another|second|common|worst|each|every"
    r"|following)\b[^.:;\n]{0,30}$",
    re.IGNORECASE,
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_TAGS = re.compile(r"<(/?)answer>", re.IGNORECASE)
_THOUGHT = re.compile(r"<(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(r"</(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"(?<![\w*\\])\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?![\w*])|(?<!\w)_{1,3}(?=[^\s{])|(?<=\S)_{1,3}(?![\w{])|`+"
)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_BLANKS = re.compile(r"[^\S\n]+")
_LINES = re.compile(r"[\r\v\f\x1c-\x1e\x85\u2028\u2029]+|\n\s*\n")
# So that a text of many statements is read in linear time: the last ones count, and so many characters of each.
_LAST, _READ = 40, 1000
_QUOTES = "\"'\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb`\u300a\u300b\u300c\u300d\u300e\u300f\uff02"
_SENTENCE_END = re.compile(r"\.(?=\s+[\"'(\u201c]?[A-Z]|\s*$)|\n")
# A sentence that surely begins, also after what looks like an initial ("Michael I. It is ...").
_NEXT_SENTENCE = re.compile(r"\s+(?:It|This|That|These|He|She|They|The|According|Based|Explanation)\b")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr st mt ft jr sr vs inc ltd co corp lt col gen capt sgt maj adm rev hon prof gov sen rep pres "
    "dept univ bros etc ave blvd rd cf al ca est u.s u.k d.c a.m p.m i.e e.g".split()
)


def after_thought(text: str) -> str:
    """What follows a reasoning trace (`<think>...</think>`), up to the end of the turn.

    All of the text if there is no trace. `<answer>...</answer>` becomes "Answer: ...".
    """
    ends = [match.end() for match in _THOUGHT_ENDS.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    opened = [match.start() for match in _THOUGHT.finditer(rest)]
    if opened and not _THOUGHT_ENDS.search(rest, opened[-1]):  # cut off while thinking
        rest = rest[: opened[-1]]
    turn = _END_OF_TURN.split(rest.lstrip(), maxsplit=1)[0]
    rest = turn if turn.strip() else rest
    return _TAGS.sub(lambda tag: "\n" if tag[1] else "\nAnswer: ", rest)


def tidy(text: str) -> str:
    """White space in plain form: one blank in place of several, `\n` for every line break, no blank line twice."""
    lines = _LINES.sub("\n\n", _INVISIBLE.sub("", text.replace("\r\n", "\n")))
    return "\n".join(line.strip() for line in _BLANKS.sub(" ", lines).split("\n")).strip()


def narrow(text: str) -> str:
    """The text with full-width letters, digits and signs as ASCII."""
    return text.translate(_FULL_WIDTH)


def without_emphasis(text: str) -> str:
    """The text without Markdown's bold, italic and code marks; a `*` between words stays (it may be a product)."""
    return _EMPHASIS.sub("", text)


@dataclass(frozen=True)
class Segments:
    """A text, divided where another question begins."""

    parts: tuple[str, ...]
    answered: bool
    """Whether the first part stands before another question, and begins with none: then it holds the answer."""


def segments(text: str) -> Segments:
    """The text, divided where another question or passage begins; parts without content are left out.

    Numbered questions from 1 on are steps of one answer and divide nothing.
    """
    if _NEXT_QUESTION.search(f"\n{without_emphasis(text)}"):
        text = without_emphasis(text)
    matches = [match for match in _NEXT_QUESTION.finditer(f"\n{text}") if _divides(match)]
    if any(match["number"] == "1" and match["asks"] for match in matches):
        matches = [match for match in matches if match["number"] is None]
    later = [match for match in matches if match.start() > 0]
    asked = later and (later[0]["asks"] or later[0]["turn"] or _ASKED.search(text, later[0].end()))
    starts = [0, *(match.start() for match in later), len(text)]
    parts = tuple(part for start, end in pairwise(starts) if (part := text[start:end]).strip())
    return Segments(parts, len(matches) == len(later) > 0 and bool(asked))


def _divides(match: re.Match[str]) -> bool:
    """Whether a header begins a question: a colon, or a number or a mark, or a speaker's name on a line."""
    if match["turn"] or match["end"] in (":", "\uff1a"):
        return True
    if match["number"]:
        return True
    alone = match.string[match.end() : match.end() + 1] in ("", "\n")
    return bool(match["mark"].strip()) or (alone and (match["asks"] or "").lower() in ("user", "human"))


def first_of(found: Segments, *readers: Callable[[str], Found | None]) -> Found | None:
    """The first reader's finding in the first part in which it finds something; else the second reader's, and so on.

    If the first part was answered before another question, all readers try it first.
    """
    if found.answered:
        for read in readers:
            if (early := read(found.parts[0])) is not None:
                return early
    return next((each for read in readers for part in found.parts if (each := read(part)) is not None), None)


@dataclass(frozen=True)
class Statement:
    """The text after a mark such as "Answer:"."""

    text: str
    """From the mark's end to the end of the segment, without leading white space."""
    colon: bool
    """True for "Answer:" and a heading "Answer", False for "the answer is"."""
    denied: bool = False
    """True for "the answer is not X": `text` then begins after "but", or is empty."""


def statements(text: str) -> Iterator[Statement]:
    """The statements of a tidy text without emphasis, last first; "Answer:" comes before "the answer is"."""
    colons, phrases = (
        {match.end() for form in forms for match in form.finditer(text) if not _other(text, match.start())}
        for forms in ((_COLON, _HEADING), (_PHRASE,))
    )
    phrases -= colons
    for ends, colon in ((colons, True), (phrases, False)):
        for end in sorted(ends, reverse=True)[:_LAST]:
            yield _statement(text, end, colon)


def _other(text: str, start: int) -> bool:
    """Whether a mark at this place names another answer than the one: "the other plausible option is"."""
    return _NOT_THE_ANSWER.search(text, max(0, start - 40), start) is not None


def _statement(text: str, end: int, colon: bool) -> Statement:
    rest = text[end : end + _READ].lstrip()
    if _NEGATION.match(rest):
        turn = _BUT.search(rest.split("\n", 1)[0])
        return Statement(rest[turn.end() :].lstrip() if turn else "", colon, denied=True)
    return Statement(rest, colon)


def is_mark(line: str) -> bool:
    """Whether a line without emphasis is only a mark, such as "Answer:"."""
    return _HEADING.fullmatch(line.strip()) is not None


def sentence(text: str) -> str:
    """The first sentence of a text. A full stop after an initial or an abbreviation ends none."""
    for match in _SENTENCE_END.finditer(text):
        words = text[max(0, match.start() - 24) : match.start()].split()
        word = words[-1].strip("(" + _QUOTES).lower() if words else ""
        last = word.endswith(".") or match[0] == "\n" or not text[match.end() :].strip()
        if (
            last
            or word.replace(".", "").isdigit()
            or _NEXT_SENTENCE.match(text, match.end())
            or (len(word) > 1 and word not in _ABBREVIATIONS and "." not in word)
        ):
            return text[: match.start()]
    return text


def first_line(text: str) -> str:
    """The first line that is not empty, stripped; "" if there is none."""
    return next((line.strip() for line in text.split("\n") if line.strip()), "")


def unquoted(text: str) -> str:
    """The text without white space, quotation marks or Markdown's marks around it."""
    before = None
    while before != text:
        before, text = text, text.strip().strip("*_" if len(text) > 1 else "")
        if len(text) > 1 and text[0] in _QUOTES and text.rstrip(".,")[-1:] in _QUOTES:
            text = text.rstrip(".,")[1:-1]
        if len(text) > 2 and text[0] == text[-1] == "$":
            text = text[1:-1]
    return text


def boxes(text: str, command: str = r"\boxed") -> list[tuple[int, int, str]]:
    r"""The contents of every `\boxed{...}`: (start, end, content), in order, outermost only.

    `\boxed 5` and `\boxed\frac12` count too. A box that is never closed is left out.
    """
    closing = _closing_braces(text)
    found: list[tuple[int, int, str]] = []
    at, reached = text.find(command), 0
    while at >= 0:
        start = at + len(command)
        while text.startswith(" ", start):
            start += 1
        if at >= reached and not text[start : start + 1].isalpha():
            if text.startswith("{", start):
                end = closing.get(start)
                if end is not None:
                    found.append((at, end + 1, text[start + 1 : end].strip()))
            elif (bare := _bare_argument(text, start, closing)) > start:
                found.append((at, bare, text[start:bare].strip()))
            reached = found[-1][1] if found else 0
        at = text.find(command, at + 1)
    return found


def unclosed_box(text: str) -> str | None:
    r"""The line after the last `\boxed{`, for a completion that was cut off; None if there is none."""
    at = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if at < 0 or text.index("{", at) in _closing_braces(text):
        return None
    return text[text.index("{", at) + 1 :].split("\n")[0].rstrip(" $.]") or None


def _closing_braces(text: str) -> dict[int, int]:
    """The place of the closing brace for each opening brace that is closed; escaped braces are characters."""
    stack: list[int] = []
    closing: dict[int, int] = {}
    at = 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in ("{", "}", "\\"):
            at += 1
        elif text[at] == "{":
            stack.append(at)
        elif text[at] == "}" and stack:
            closing[stack.pop()] = at
        at += 1
    return closing


_BARE = re.compile(r"(?:\\[a-zA-Z]+)?[^\s${}\\]{0,200}")


def _bare_argument(text: str, start: int, closing: dict[int, int]) -> int:
    """The end of an argument without braces: a command with its groups, or characters up to white space or `$`."""
    match = _BARE.match(text, start)
    end = match.end() if match else start
    while text.startswith("{", end) and end in closing:
        end = closing[end] + 1
    return end
