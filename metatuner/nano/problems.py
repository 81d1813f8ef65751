"""Queries of the four nano benchmarks, each with its reasoning and its answer.

Every benchmark has three kinds of query. A `Style` says how often a slot of a query takes a new word, a new name or a
new phrase. Pretraining sees known ones; downstream rows are shifted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Any, TypeVar

from metatuner.harness.benchmarks import Benchmark, get_benchmark
from metatuner.nano import words

_T = TypeVar("_T")
BENCHMARKS = ("gsm8k", "math", "hotpotqa", "cosmosqa")
KINDS = {
    "gsm8k": ("change", "groups", "compare"),
    "math": ("simplify", "solve", "compute"),
    "hotpotqa": ("bridge", "single", "place"),
    "cosmosqa": ("next", "cause", "mood"),
}
"""Benchmark -> its kinds of query; behaviour tables index them."""
LETTERS = "ABCD"
INITIAL_PROMPTS = {
    "gsm8k": "solve the problem and give the answer",
    "math": "find the result and give the answer",
    "hotpotqa": "answer the question from the facts",
    "cosmosqa": "choose the best option",
}
"""p~ in the language that the models are pretrained in; presets say the same."""
_CHOICES = {"cosmosqa": {"options": "letter_last"}}


@cache
def as_asked(name: str) -> Benchmark:
    """A benchmark as the models are taught it: with the world's own p~ and its form of options."""
    return get_benchmark(name).with_overrides(initial_prompt=INITIAL_PROMPTS[name], choices=_CHOICES.get(name))


@dataclass(frozen=True)
class Style:
    """Chances that a slot is filled with something new."""

    word: float
    """A new word for a meaning."""
    name: float
    """A name, object or variable not seen (or, in pretraining, seldom seen)."""
    phrase: float
    """Another way to put the question."""
    any_word: bool = False
    """New words stand for any meaning, not for their own, so that only a gloss can explain them."""


PLAIN = Style(word=0.0, name=0.15, phrase=0.0)
GLOSSED = Style(word=0.6, name=0.15, phrase=0.0, any_word=True)
SHIFTED = Style(word=0.5, name=0.5, phrase=0.5)
UNSHIFTED = Style(word=0.0, name=0.0, phrase=0.0)
JARGON_FACTOR, JARGON_SHARE = 1.5, 0.4
"""A meaning with three new words, one of them jargon, takes this one at JARGON_FACTOR times the style's rate. A meaning
with more new words takes jargon for a share of JARGON_SHARE."""
OPERATOR_FACTOR = 0.7
"""Factor on the style's rate for words of operators: a query has up to two, and each one decides its answer."""


@dataclass(frozen=True)
class Problem:
    """A query with everything an actor could say about it."""

    benchmark: str
    kind: int
    """Index into KINDS[benchmark]."""
    raw: dict[str, Any]
    """A raw row of the benchmark's schema, without its id."""
    steps: tuple[str, ...]
    """The reasoning."""
    final: str
    """The right answer in its extractable form."""
    early_stop: str
    """The first step and an answer that stops there."""
    rationale: str
    """All steps and the answer."""
    glosses: tuple[tuple[str, str], ...]
    """The (new word, meaning) pairs of the query."""

    @cached_property
    def query(self) -> str:
        """The query's text, as the benchmark renders it."""
        return as_asked(self.benchmark).row({"id": "-", **self.raw}).query

    @property
    def gold(self) -> str:
        """The target that rows give for training. As in the real data, only gsm8k and math have rationales."""
        return self.rationale if self.benchmark in ("gsm8k", "math") else self.final

    @property
    def group(self) -> str:
        """The text that must not be in two splits."""
        return str(self.raw["context"]) if self.benchmark == "cosmosqa" else self.query


class _Writer:
    """Fills the slots of one query and remembers its new words."""

    def __init__(self, random: Random, style: Style) -> None:
        self.random, self.style = random, style
        self.glosses: list[tuple[str, str]] = []

    def coin(self) -> bool:
        return self.random.random() < 0.5

    def of(self, known: Sequence[_T], new: Sequence[_T], chance: float) -> _T:
        return self.random.choice(new if self.random.random() < chance else known)

    def name(self, known: Sequence[str], new: Sequence[str]) -> str:
        return self.of(known, new, self.style.name)

    def names(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            name = self.name(words.NAMES, words.NEW_NAMES)
            if name not in found:
                found.append(name)
        return found

    def phrase(self, known: str, *new: str) -> str:
        return self.of([known], new, self.style.phrase)

    def word(self, meaning: str) -> str:
        """A word for a meaning; a new one is remembered with its gloss."""
        own = words.NEW_FORMS[meaning]
        jargon = [word for word in own if word in words.JARGON]
        mostly_jargon = bool(jargon) and len(own) == 3 and not self.style.any_word
        chance = self.style.word
        if mostly_jargon:
            chance = min(1.0, chance * JARGON_FACTOR)
        elif meaning in words.OPERATORS and not self.style.any_word:
            chance *= OPERATOR_FACTOR
        if self.random.random() >= chance:
            return self.random.choice(words.KNOWN_FORMS.get(meaning, [meaning]))
        if self.style.any_word:
            pool = words.NEW_WORDS
        elif jargon and (mostly_jargon or self.random.random() < JARGON_SHARE):
            pool = jargon
        else:
            pool = [word for word in own if word not in words.JARGON]
        used = {word for word, _ in self.glosses}
        if set(pool) <= used:
            pool = own
        word = self.random.choice([word for word in pool if word not in used])
        self.glosses.append((word, meaning))
        return word

    def signed(self, first: int, second: int, *, above: int = 0) -> tuple[str, int, int]:
        """A sum, or a difference that stays at `above` or more: (sign, second operand, result)."""
        if self.coin() or first - 1 < above:
            return "+", second, first + second
        second = min(second, first - above)
        return "-", second, first - second


def problem(random: Random, benchmark: str, style: Style, kind: int | None = None) -> Problem:
    """A random query of a benchmark, of the given kind or of any."""
    kind = random.randrange(3) if kind is None else kind
    return _MAKERS[benchmark](_Writer(random, style), kind)


def _gsm8k(w: _Writer, kind: int) -> Problem:
    integer = w.random.randint
    a, b = w.names(2)
    thing = w.name(words.OBJECTS, words.NEW_OBJECTS)
    change = {"+": "gets", "-": "loses"}
    if kind == 0:
        x = integer(5, 20)
        sign, y, first = w.signed(x, integer(2, 9), above=1)
        sign2, z, answer = w.signed(first, integer(1, 9))
        story = f"{a} has {x} {thing} . {a} {w.word(change[sign])} {y} . {a} {w.word(change[sign2])} {z} ."
        steps = (f"{x} {sign} {y} = {first}", f"{first} {sign2} {z} = {answer}")
        tail = "now ?"
    elif kind == 1:
        x, y = integer(2, 6), integer(2, 6)
        first = x * y
        sign, z, answer = w.signed(first, integer(2, 9))
        box = w.name(words.CONTAINERS, words.NEW_CONTAINERS)
        story = f"{a} has {x} {box} of {y} {thing} . {a} {w.word(change[sign])} {z} ."
        steps = (f"{x} * {y} = {first}", f"{first} {sign} {z} = {answer}")
        tail = "now ?"
    else:
        x = integer(5, 20)
        sign, y, first = w.signed(x, integer(2, 9), above=2)
        answer = x + first
        story = f"{a} has {x} {thing} . {b} has {y} {w.word('more' if sign == '+' else 'fewer')} ."
        steps = (f"{x} {sign} {y} = {first}", f"{x} + {first} = {answer}")
        tail = "in total ?"
    final = f"#### {answer}"
    rationale = " . ".join((*steps, final))
    question = f"{story} {w.phrase('how many', 'count the')} {thing} {tail}"
    return Problem(
        "gsm8k",
        kind,
        {"question": question, "answer": rationale},
        steps,
        final,
        f"{steps[0]} . #### {first}",
        rationale,
        tuple(w.glosses),
    )


def _math(w: _Writer, kind: int) -> Problem:
    integer = w.random.randint
    v = w.name(words.VARIABLES, words.NEW_VARIABLES)
    spelled = {"+": "plus", "-": "minus", "*": "times"}
    if kind == 0:
        x = integer(2, 20)
        sign, y, m = w.signed(x, integer(2, 9), above=1)
        sign2, z, n = w.signed(m, integer(1, 9), above=1)
        head = w.phrase("simplify", "reduce", "collect")
        text = f"{head} {x} {v} {w.word(spelled[sign])} {y} {v} {w.word(spelled[sign2])} {z} {v}"
        steps = (f"{x} {sign} {y} = {m}", f"{m} {sign2} {z} = {n}")
        answer, first = f"{n} {v}", f"{m} {v}"
    elif kind == 1:
        x, c = integer(2, 6), integer(2, 6)
        sign, b, total = w.signed(c * x, integer(2, 9), above=1)
        text = f"{w.phrase('solve', 'root', 'determine')} {c} {v} {w.word(spelled[sign])} {b} = {total}"
        steps = (f"{total} {'-' if sign == '+' else '+'} {b} = {c * x}", f"{c * x} / {c} = {x}")
        answer, first = str(x), str(c * x)
    else:
        if w.coin():
            sign, x, y = "+", integer(1, 4), integer(1, 3)
        else:
            y = integer(1, 3)
            sign, x = "-", integer(y + 1, 6)
        m = x + y if sign == "+" else x - y
        sign2, c = "*" if w.random.random() < 0.6 else "+", integer(2, 6)
        n = m * c if sign2 == "*" else m + c
        head = w.phrase("compute", "evaluate", "calculate")
        text = f"{head} ( {x} {w.word(spelled[sign])} {y} ) {w.word(spelled[sign2])} {c}"
        steps = (f"{x} {sign} {y} = {m}", f"{m} {sign2} {c} = {n}")
        answer, first = str(n), str(m)
    final = rf"\boxed{{{answer}}}"
    rationale = " . ".join((*steps, final))
    name = KINDS["math"][kind]
    return Problem(
        "math",
        kind,
        {"problem": text, "level": "Level 1", "type": name, "solution": rationale},
        steps,
        final,
        rf"{steps[0]} . \boxed{{{first}}}",
        rationale,
        tuple(w.glosses),
    )


def _hotpotqa(w: _Writer, kind: int) -> Problem:
    a, b, c, d, e = w.names(5)
    r, r2 = w.random.sample(words.RELATIONS, 2)
    town, other, third = w.random.sample(words.CITIES, 3)
    lives = w.phrase("lives", "resides")
    if kind == 0:
        facts = [f"{a} has {r} {b} .", f"{b} has {r2} {c} .", f"{d} has {r2} {e} ."]
        support, asked = facts[:2], f"{a} has {w.word(r)} has {w.word(r2)}"
        steps: tuple[str, ...] = (f"{a} has {r} {b}", f"{b} has {r2} {c}")
        answer, first = f"{r2} {c}", f"{r} {b}"
    elif kind == 1:
        facts = [f"{a} has {r} {b} .", f"{a} has {r2} {c} .", f"{d} has {r} {e} ."]
        support, asked = facts[:1], f"{a} has {w.word(r)}"
        steps = (f"{a} has {r} {b}",)
        answer, first = f"{r} {b}", a
    else:
        facts = [
            f"{a} {lives} in {town} .",
            f"{d} {lives} in {other} .",
            f"{e} {lives} in {third} .",
            f"{a} has {r} {d} .",
        ]
        support, asked = facts[:1], f"{a} {lives} in"
        steps = (f"{a} lives in {town}",)
        answer, first = town, other
    w.random.shuffle(facts)
    question = w.phrase(f"{'where' if kind == 2 else 'who'} : {asked} ?", f"name : {asked} .")
    final = f"Answer: {answer}"
    raw = {
        "question": question,
        "answer": answer,
        "type": KINDS["hotpotqa"][kind],
        "level": "easy",
        "context": [["facts", facts]],
        "supporting_facts": [["facts", index] for index in sorted(facts.index(fact) for fact in support)],
    }
    return Problem(
        "hotpotqa",
        kind,
        raw,
        steps,
        final,
        f"{steps[0]} . Answer: {first}",
        " . ".join((*steps, final)),
        tuple(w.glosses),
    )


def _cosmosqa(w: _Writer, kind: int) -> Problem:
    (a,) = w.names(1)
    shown = w.random.sample(range(len(words.STATES)), 4)
    label = w.random.randrange(4)
    state = words.STATES[shown[label]]
    context = f"{a} {w.phrase('was', 'became')} {w.word(state)} ."
    question = (
        w.phrase(f"what did {a} do next ?", "what happened after ?"),
        w.phrase("why was that ?", "what was the reason ?"),
        w.phrase(f"how did {a} feel ?", "which mood fits ?"),
    )[kind]
    texts = [words.FOLLOWS[KINDS["cosmosqa"][kind]][index] for index in shown]
    options = [f"{text} ({letter})" for text, letter in zip(texts, LETTERS, strict=True)]
    step = f"{state} people"
    return Problem(
        "cosmosqa",
        kind,
        {
            "context": context,
            "question": question,
            **{f"answer{i}": text for i, text in enumerate(texts)},
            "label": label,
        },
        (step,),
        options[label],
        f"people often {options[(label + 1) % 4]}",
        f"{step} {options[label]}",
        tuple(w.glosses),
    )


_MAKERS: dict[str, Callable[[_Writer, int], Problem]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "hotpotqa": _hotpotqa,
    "cosmosqa": _cosmosqa,
}
