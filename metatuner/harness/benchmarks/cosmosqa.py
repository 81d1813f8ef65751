"""Cosmos QA: four-way commonsense reading comprehension (Huang et al., arXiv 1909.00277)."""

import re
from typing import Any, ClassVar

from metatuner.harness.benchmarks.base import Benchmark, Choice, HubSource, int_field, kind_of, text_field
from metatuner.harness.metrics import statements
from metatuner.harness.metrics.text import normalise_answer
from metatuner.harness.rows import Row, normalise_text

_LETTERS = "ABCD"
# The end of a query with `options: letter_first`: each option on its line.
_LETTER_FIRST = re.compile("\nOptions:" + "".join(rf"\n\({letter}\) ([^\n]*)" for letter in _LETTERS) + r"\Z")
_COPY = re.compile(r"\(([A-D])\) (.+)")
# What closes and opens a letter besides emphasis: "(B)", "[B]", "<B>", '"B"'.
_OPEN, _CLOSE = "[(\\[<\"'\u201c\u2018{]", "[)\\]>\"'\u201d\u2019}]"
# What follows a letter that is one: "A" before any other word is an article.
_AFTER = (
    r"(?= ?(?:$|\n|[.,;:!?)\]=+/&\u2013\u2014\u2192\u2705\u2713-]|\(|(?:because|since|as|is|and|or"
    r"|according|based|from|due|for|if|"
    r"would|seems|which|here|in this|correct|given|rather|over|not|with|so|\\)\b))"
)
# A letter at the start of a statement. "A meal" and "a meal" begin with an article; "Because" is a word.
_LED = re.compile(
    rf"\W{{0,3}}?(?:(?i:option|choice|letter|answer) ?:? )?"
    rf"(?:{_OPEN} ?(?P<enclosed>[A-Da-d]) ?{_CLOSE}"
    r"|(?P<b>[B-D])(?![\w'\u2019]|\.\w)"
    rf"|(?P<a>A)(?![\w'\u2019]|\.\w){_AFTER}"
    r"|(?P<small>[a-d])(?=\s?(?:[.):,;]|$)))"
)
_OTHERS = re.compile(rf" ?(?:,|;|/|\+|,? ?(?:and|or)\b|&) ?{_OPEN}?(?:option )?([A-D])(?![\w'\u2019])")
_AFTER_LETTER = re.compile(_AFTER)
_JOINED = re.compile(
    r"(?:\b(?:and|or)|,) (?!not\b|rather\b|over\b)(?:[^.;\n]{0,60}? )?\(? ?\b([A-D]) ?\)|\b(?:and|or) \( ?([A-D]) ?\)"
)
_STARTED = re.compile(r"\W*(?i:option |choice |letter |answer )?\W*[B-D]\b")
_LONE_LETTERS = re.compile(r"(?<![\w'\u2019])([A-D])(?![\w'\u2019])")
_IN_PARENTHESES = re.compile(r"\( ?([A-Da-d]) ?\)")
_LETTER = rf"{_OPEN}? ?(?P<letter>[A-D]) ?{_CLOSE}?(?![\w'\u2019]){_AFTER}"
_CHOSEN = re.compile(
    r"\b(?:choose|pick|select|chose|picked|selected|go with|opt for|going with|choosing|say|guess is|pick is|guess"
    r"|(?:matches|supports|corresponds to|points to|suggests|fits|must be|it is|it's|its|it would be|probably|likely"
    r"|so|hence|thus|therefore|namely|but|believe|vote for|->|=>|\u2192|[-\u2013\u2014])(?: probably|"
    r" likely| most likely| clearly)?"
    r"(?=,? (?i:option|answer|choice|letter)?\W{0,3}[A-D]\b)),?"
    rf"(?: (?i:option|answer|choice|letter))? {_LETTER}",
    re.IGNORECASE,
)
_CALLED_RIGHT = re.compile(
    rf"(?:\b[Oo]ption |\b[Cc]hoice |\b[Aa]nswer |(?<![\w'\u2019])){_OPEN}? ?(?P<letter>[A-D]) ?{_CLOSE}?"
    r"(?: is| would be| (?:seems|appears|looks)(?: to be)?| must be|:)(?: the| more| most| clearly| likely"
    r"| therefore){0,3}"
    r" (?:correct|right|best|true|likely|likeliest|plausible|appropriate|reasonable|answer)",
)
_CONCLUSION = re.compile(
    r"(?:^|[.!?\n] ?)(?:(?i:so|thus|therefore|hence),? ?)?(?:(?i:it is|it's|it must be|probably) )?"
    rf"{_OPEN}?(?P<letter>[A-D]){_CLOSE}?[.!]?$",
    re.MULTILINE,
)
_CORRECTED = re.compile(
    r"\b(?i:wait|correction|actually|no|sorry)\b[,:.!\u2026 ]{1,5}(?:(?i:actually|no|the answer is|it is"
    r"|it's|it should be|i meant)[,: ]{1,3}){0,3}"
    rf"{_OPEN}?(?P<letter>[A-D])(?![\w'\u2019]){_CLOSE}?(?= ?(?:$|[.,!;\n]))"
)
_CHOOSING = re.compile(r"\bI(?: would|'d| will|'ll)? (?:choose|pick|select|go with|opt for|chose|say):? (?=\S)")
_TICKED = re.compile(
    r"^\W*([A-D])\b[^\n]*(?:\u2705|\u2713|\u2714|[-\u2013:(] ?(?:correct|right|yes)\b)", re.IGNORECASE | re.MULTILINE
)
# What rejects an option: it is not read as a choice.
_ONE = rf"{_OPEN}?\b[A-D]\b{_CLOSE}?"
_REJECTED = re.compile(
    rf"(?:\b[Oo]ptions? |\b[Cc]hoice |\b[Aa]nswer )?{_ONE}(?:,? {_ONE}){{0,3}}(?:,? (?:and|or) {_ONE})?"
    r" (?:is|are|was|seems?|can be|cannot|can't|do|does|did|isn't|aren't|don't|doesn't)\b"
    r"(?: clearly| definitely| obviously| also)?(?: an?| the)?(?: most)?(?: common)?"
    r"(?<!t be) ?(?:not|wrong|incorrect|ruled out|eliminated|unlikely|implausible|false|irrelevant"
    r"|be (?:right|correct|true)|fit|follow|make)\b[^.;\n]*"
    rf"|\b(?:[Nn]ot|[Nn]either|[Nn]or|anything but|(?:don't|do not|did not|didn't|would not|wouldn't|never)"
    rf" (?:choose|pick|select))"
    rf" (?:[Oo]ption )?{_ONE}(?:\)? ?(?!but\b)[a-z][^.,;\n]*?(?=,? but\b|[.,;\n]|$))?"
    rf"|\b(?:wrong|incorrect|other|worst) (?:answer|option|choice)s? (?:is|are|would be) {_ONE}"
    rf"|\b[Ii]f\b[^.;\n]{{0,80}}\bwould (?:choose|pick|select|be) (?:[Oo]ption )?{_ONE}"
)
# Options that are gone through, in a completion that was cut off: none is chosen yet.
_LISTING = re.compile(r"\b(?:each option|the options|options one by one)\b", re.IGNORECASE)
_UNFINISHED = re.compile(r"[\w,;:]$")
_NEXT_LETTER = re.compile(r"\(?\b([A-D]) ?\)")
_REASON = re.compile(r",? (?:because|since|as)\b.*")
# In a prompt: a letter that shows the form of an answer, the turns of a pattern ("Q: ... A:"), all letters.
_EXAMPLE = re.compile(
    r"\b(?:for example|for instance|such as|e\.g\.|like|in the form|in the format|format:)[^.;\n]{0,40}?"
    r"[(\"'\u201c]?\b[A-D]\b[)\"'\u201d]?"
    r"|^A: ?(?=\n|$)|\bA ?(?:-|\u2013|to|through) ?D\b|\bA\b(?:\W{1,4}(?:and |or )?[B-D]\b){2,3}",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE = re.compile(r"(?:^|[.!?;:\n] )([A-D])[.:)](?= )")
_EVERYWHERE = "none of above"  # the beginning of an option that thousands of rows have
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}|\\[()\[\]]|(?<!\\)\$")


class CosmosQA(Benchmark):
    """Raw rows: `context`, `question`, `answer0` .. `answer3`, `label` (0..3)."""

    id = "cosmosqa"
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
    initial_prompt = "Choose the best option. Reply with its letter in parentheses and its text."
    max_new_tokens = 256
    takes: ClassVar = {
        "options": Choice(
            {"letter_first": "", "letter_last": ""},
            "how a query lists its options. letter_first: `(A) text`, one a line; letter_last: `text (A)`, all on one "
            "line, as the nano models read them. The paper does not say; letters come first in most prompts of the "
            "field, and after an option a small model reads the letter of the option before",
        )
    }

    @property
    def version(self) -> int:  # type: ignore[override]
        """3; with `options: letter_last`, whose scores still mean the same, 2."""
        return 3 if self.chosen("options") == "letter_first" else 2

    def row(self, raw: dict[str, Any]) -> Row:
        """Context, question and lettered options; the target is the right option as it is listed.

        So a model that copies an option is right by the letter that it copied, and extraction reads such a copy surely,
        whatever the option's text says (`_copied`).
        """
        context = text_field(raw, "context")
        texts = [text_field(raw, f"answer{i}") for i in range(4)]
        label = int_field(raw, "label", 0, 3)
        if self.chosen("options") == "letter_first":
            options = [f"({letter}) {' '.join(text.split())}" for text, letter in zip(texts, _LETTERS, strict=True)]
            listed = "".join(f"\n{option}" for option in options)
        else:
            options = [f"{text} ({letter})" for text, letter in zip(texts, _LETTERS, strict=True)]
            listed = f" {' '.join(options)}"
        return Row(
            id=text_field(raw, "id"),
            benchmark=self.id,
            query=f"{context}\nQuestion: {text_field(raw, 'question')}\nOptions:{listed}",
            gold=(_LETTERS[label],),
            target=options[label],
            kind=kind_of(raw, "all"),
            group=normalise_text(context),
        )

    def extract(self, completion: str, row: Row) -> str | None:
        """The letter of the option that the completion chooses; None if it chooses none, or several.

        The most explicit form counts: a box or "the answer is", else a line that is or begins with a letter, else the
        last letter in parentheses. An option's text counts as its letter where no letter is stated.
        """
        text = statements.without_emphasis(statements.narrow(statements.tidy(statements.after_thought(completion))))
        if copied := _copied(text, row.query):
            return copied
        options = _options(row.query)
        parts = statements.segments(_REJECTED.sub("", _WRAPPER.sub(r"\1", text)))
        readers = (_boxed, _stated, _unfinished, _line, _parenthesised, _alone)
        return statements.first_of(parts, *(lambda part, read=read: read(part, options) for read in readers)) or None

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """Accuracy: whether the letter names the right option."""
        return {"accuracy": float(extracted in row.gold)}

    def leaks(self, prompt: str, row: Row) -> bool:
        """Whether the prompt states a letter as the answer, or quotes the text of one option and of no other.

        The option may be right or wrong. A prompt that lists options, or shows the form of an answer ("such as (B)"),
        singles out none.
        """
        options = _options(row.query)
        text = _EXAMPLE.sub("", statements.without_emphasis(statements.narrow(statements.tidy(prompt))))
        text = _without_list(text, options)
        parts = statements.segments(_REJECTED.sub("", _WRAPPER.sub(r"\1", text)))
        readers = [_boxed, _stated]
        if len(_named(text)) < 2:
            readers += [_line, _parenthesised, _alone]
        chosen = statements.first_of(parts, *(lambda part, read=read: read(part, options) for read in readers))
        asked = row.query.rpartition("\nOptions:")[0]
        given = _normalised(f"{asked} {self.initial_prompt}")
        return bool(chosen) or len(_quoted(text, options, given)) == 1


def _options(query: str) -> dict[str, str]:
    """The letter of each option's text, normalised, from a query that `CosmosQA.row` rendered in either form."""
    found: dict[str, str] = {}
    if lines := _LETTER_FIRST.search(query):
        for letter, text in zip(_LETTERS, lines.groups(), strict=True):
            found.setdefault(_normalised(text), letter)
        return found
    rest = query.rpartition("\nOptions: ")[2]
    for letter in _LETTERS:
        text, _, rest = rest.partition(f" ({letter})")
        found.setdefault(_normalised(text), letter)
    return found


def _copied(text: str, query: str) -> str | None:
    """The letter of a completion that is one option as a `letter_first` query lists it; else None.

    An option's text may hold other letters, or read as a rejection: "(B) is not right".
    """
    copy, lines = _COPY.fullmatch(text), _LETTER_FIRST.search(query)
    if copy is None or lines is None:
        return None
    option = statements.narrow(statements.tidy(lines[_LETTERS.index(copy[1]) + 1]))
    return copy[1] if _normalised(copy[2]) == _normalised(option) else None


def _named(text: str) -> set[str]:
    """The letters of a prompt that stand in parentheses or begin a line or sentence."""
    led = [_letter(match) for line in text.split("\n") if (match := _LED.match(line))]
    return {letter.upper() for letter in (*_IN_PARENTHESES.findall(text), *_INLINE.findall(text), *led)}


def _without_list(text: str, options: dict[str, str]) -> str:
    """The text without the letters in parentheses beside their own options, if it has several such options."""
    texts = {letter: f" {option} " for option, letter in options.items()}
    pairs = []
    for match in _IN_PARENTHESES.finditer(text):
        own = texts.get(match[1].upper())
        before = f" {_normalised(text[max(0, match.start() - 1000) : match.start()])} "
        after = f" {_normalised(text[match.end() : match.end() + 1000])} "
        if own and (before.endswith(own) or after.startswith(own)):
            pairs.append(match)
    if len({match[1].upper() for match in pairs}) > 1:
        for match in reversed(pairs):
            text = text[: match.start()] + text[match.end() :]
    return text


def _quoted(text: str, options: dict[str, str], given: str) -> set[str]:
    """The letters of the options of three words or more that a prompt quotes and that the given text does not hold."""
    rest, found = f" {_normalised(text)} ", set()
    for option in sorted(options, key=len, reverse=True):  # an option may be a part of a longer one
        if f" {option} " in rest and len(option.split()) >= 3 and not option.startswith(_EVERYWHERE):
            rest = rest.replace(f" {option} ", " | ")
            if f" {option} " not in f" {given} ":
                found.add(options[option])
    return found


def _normalised(text: str) -> str:
    return normalise_answer(text.translate({ord("\u2019"): "'"}))


def _boxed(text: str, options: dict[str, str]) -> str | None:
    found = {_read(content, options) for _, _, content in statements.boxes(text)[-2:]}
    found.discard(None)
    return None if not found else found.pop() if len(found) == 1 else ""


def _stated(text: str, options: dict[str, str]) -> str | None:
    if corrected := list(_CORRECTED.finditer(text)):
        return str(corrected[-1]["letter"])
    for statement in statements.statements(text):
        if (found := _read(statement.text, options)) is not None:
            return found
    for match in reversed(list(_CHOOSING.finditer(text))[-20:]):
        if found := _read(text[match.end() : match.end() + 400], options):
            return found
    chosen = [match for form in (_CHOSEN, _CALLED_RIGHT, _CONCLUSION) for match in form.finditer(text)]
    if not chosen:
        return None
    last = max(chosen, key=lambda match: match.end())
    others = _OTHERS.match(text, last.end("letter") + (text[last.end("letter") :][:1] in ")]"))
    return None if others and others[1] != last["letter"] else str(last["letter"]).upper()


def _unfinished(text: str, options: dict[str, str]) -> str | None:
    """ "" for a list of options that was cut off; else None."""
    last = text.rstrip().rpartition("\n")[2]
    ended = _UNFINISHED.search(last) is None or _normalised(last).endswith(tuple(filter(None, options)))
    return "" if _LISTING.search(text) and len(last.split()) > 1 and not ended else None


def _line(text: str, options: dict[str, str]) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    led = [(line, match) for line in lines if (match := _LED.match(line)) and not _article(line, match)]
    if len({_letter(match) for _, match in led}) > 1:
        # The options are listed: only a line of its own paragraph, or with nothing but a letter, chooses.
        ticked = set(_TICKED.findall(text))
        if len(ticked) == 1:
            return str(ticked.pop()).upper()
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        apart = (
            [part for part in (paragraphs[-1], paragraphs[0]) if "\n" not in part.strip()]
            if len(paragraphs) > 1
            else []
        )
        lines = [*apart[::-1], *(line for line in lines if len(line.strip(" ().[]")) == 1)]
    for line in (lines[-1:] + lines[:1]) if lines else []:
        if found := _read(line, options, alone=True):
            return found
    return None


def _parenthesised(text: str, options: dict[str, str]) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    for line in (*lines[-1:], *lines[:1]):  # an option's text with its letter
        match = _IN_PARENTHESES.search(line)
        if match and _normalised(line[: match.start()]) in options:
            return "" if _joined(line, match) else str(match[1]).upper()
    if len(lines) > 1 and all(
        (match := _LED.match(line)) and _normalised(line[match.end() :]) in options for line in lines
    ):
        return ""
    for line in reversed(lines):
        letters = [letter.upper() for letter in _IN_PARENTHESES.findall(line)]
        if letters and letters != list(_LETTERS):
            last = list(_IN_PARENTHESES.finditer(line))[-2:]
            return "" if len(last) == 2 and letters[-1] != letters[-2] and _joined(line, last[0]) else letters[-1]
    return None


def _alone(text: str, options: dict[str, str]) -> str | None:
    """The letter that begins a short text, as in "B it is"."""
    letters = set(_LONE_LETTERS.findall(text)) if len(text) < 20 else set()
    return letters.pop() if len(letters) == 1 and _STARTED.match(text) else None


def _read(text: str, options: dict[str, str], *, alone: bool = False) -> str | None:
    """The option that a statement names by its letter or its text; "" if it names several letters."""
    line = statements.first_line(text)
    match = _LED.match(line)
    firm = match and (match["enclosed"] or line[match.end() : match.end() + 1] in (".", ")", ":"))
    for whole in (line, statements.sentence(line), _REASON.sub("", line)):
        lettered = firm or _IN_PARENTHESES.search(whole) or _LONE_LETTERS.fullmatch(whole.strip(" ."))
        if (letter := options.get(_normalised(whole))) is not None and not lettered:
            return letter
    if match is None:
        first = None if alone else _IN_PARENTHESES.search(statements.sentence(line))
        return ("" if _joined(line, first) else first[1].upper()) if first else None
    if alone and _article(line, match):
        return None
    letter = _letter(match)
    rest = line[match.end() :].split()
    if (
        match["b"]
        and len(rest) == 1
        and rest[0].isalpha()
        and line[match.end()] == " "
        and not _AFTER_LETTER.match(line, match.end())
    ):
        return None  # "B vitamins"
    if _also(line[match.end() :], letter, options):
        return ""
    others = _OTHERS.match(line, match.end())
    if (others and others[1] != letter) or (match["enclosed"] and _joined(line, match)):
        return ""
    return letter


def _also(rest: str, letter: str, options: dict[str, str]) -> bool:
    """Whether another option is listed right after the first: "A) she slept and B) he ate"."""
    other = _NEXT_LETTER.search(rest)
    if other is None or other[1] == letter:
        return False
    between = _normalised(rest[: other.start()])
    return between.removesuffix(" and").removesuffix(" or") in options


def _article(line: str, match: re.Match[str]) -> bool:
    return (
        bool(match["a"])
        and len(line) > match.end() + 1
        and line[match.end()] == " "
        and line[match.end() + 1].isalpha()
    )


def _joined(line: str, match: re.Match[str]) -> bool:
    """Whether "and" or "or" joins another letter to one in parentheses, within its sentence."""
    letter = next(value for value in match.groups() if value).upper()
    found = _JOINED.search(line.split(". ")[0] if ". " in line[match.end() :] else line, match.end())
    return found is not None and (found[1] or found[2]) != letter and "because" not in line[match.end() : found.start()]


def _letter(match: re.Match[str]) -> str:
    return next(value for value in match.groups() if value).upper()
