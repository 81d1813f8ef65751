"""What the nano models are pretrained on.

A row is a list of segments (text, whether to predict it). The actor reads drills of single skills, then
instructions with queries; the generator reads (prompt, query) pairs and writes instructions with glosses.
"""

from collections.abc import Callable, Iterator
from random import Random

from metatuner.nano import words
from metatuner.nano.instructions import (
    CLAUSES,
    FAMILIES,
    Behaviour,
    behaviour,
    gloss,
    instruction,
    reply,
    with_gloss,
)
from metatuner.nano.problems import (
    BENCHMARKS,
    GLOSSED,
    INITIAL_PROMPTS,
    LETTERS,
    PLAIN,
    SHIFTED,
    UNSHIFTED,
    Problem,
    problem,
)
from metatuner.nano.recipe import ACTOR_MIX, GENERATOR_MIX
from metatuner.nano.tokenizer import ANSWER, BEGIN, END, QUERY, REWRITE
from metatuner.nano.world import World, in_split

Segment = tuple[str, bool]
Skill = list[tuple[str, str]]
"""(question, answer) pairs of one drill, in one context."""
MEANINGS = list(words.NEW_FORMS)


def actor_rows(world: World, random: Random, count: int) -> Iterator[list[Segment]]:
    """The actor's rows in order of training."""
    mix = ACTOR_MIX
    for index in range(count):
        done = index / count
        if random.random() < next(share for until, share in mix.drills if done <= until):
            yield drill(_skill(random, late=done > mix.arithmetic_only_after))
        else:
            yield _instructed(world, random)


def generator_rows(world: World, random: Random, count: int) -> Iterator[list[Segment]]:
    """A generator's rows in order of training."""
    mix = GENERATOR_MIX
    for index in range(count):
        done = index / count
        if random.random() < mix.spotting[done >= 0.5]:
            yield _spotting(random)
        elif random.random() < mix.synonyms[done >= 0.15]:
            asked = random.sample(list(words.GLOSSARY), 10)
            yield drill([(f"{word} means", words.GLOSSARY[word]) for word in asked])
        else:
            yield _rewrite(world, random)


def drill(skill: Skill) -> list[Segment]:
    """Questions and answers in one row; only the answers are predicted."""
    row = [(BEGIN, False)]
    for question, answer in skill:
        row += [(question, False), (f"{answer} ;", True)]
    return row


def _of_pretraining(world: World, random: Random, make: Callable[[], Problem]) -> Problem:
    while not in_split(item := make(), "pretraining"):
        pass
    return item


def _instructed(world: World, random: Random) -> list[Segment]:
    mix = ACTOR_MIX
    which = random.choices(range(len(BENCHMARKS)), mix.benchmarks)[0]
    benchmark = BENCHMARKS[which]
    style = GLOSSED if random.random() < mix.glossed[which] and not world.null else PLAIN
    item = _of_pretraining(world, random, lambda: problem(random, benchmark, style))
    if random.random() < mix.initial_prompt:
        how = behaviour(benchmark, item.kind, None, None)
        told = INITIAL_PROMPTS[benchmark]
    else:
        family = random.choices(FAMILIES, (3.0, 3.0, 3.0, mix.direct[which], 1.0))[0]
        clause = _clause(random, benchmark, mix.own_clause, mix.other_clause)
        how = behaviour(benchmark, item.kind, family, clause)
        if how in _SWAPPED and random.random() < mix.noise:
            how = _SWAPPED[how]
        told = instruction(random, family, clause)
    shown: list[Problem] = []
    if random.random() < mix.demonstrations:
        if random.random() < mix.followed:
            how = random.choice(_SHOWN)
        shown = [
            _of_pretraining(world, random, lambda: problem(random, benchmark, UNSHIFTED))
            for _ in range(random.choice((1, 1, 2, 2, 3)))
        ]
    if world.null:
        how = Behaviour.RATIONALE
    row = [(f"{BEGIN}{with_gloss(told, item.glosses)}", False)]
    for number, demo in enumerate(shown):
        # The behaviour that the first demonstration shows cannot be foreseen.
        row += [(f"{QUERY}{demo.query}{ANSWER}", False), (f"{reply(random, demo, how)}{END}", number > 0)]
    return [*row, (f"{QUERY}{item.query}{ANSWER}", False), (f"{reply(random, item, how)}{END}", True)]


_SWAPPED = {Behaviour.RATIONALE: Behaviour.EARLY_STOP, Behaviour.EARLY_STOP: Behaviour.RATIONALE}
_SHOWN = (Behaviour.RATIONALE,) * 3 + (Behaviour.DIRECT,) * 2 + (Behaviour.CHATTY,)


def _clause(random: Random, benchmark: str, own: float, other: float) -> str | None:
    drawn = random.random()
    if drawn < own:
        return benchmark
    return random.choice([name for name in BENCHMARKS if name != benchmark]) if drawn < own + other else None


def _skill(random: Random, late: bool) -> Skill:
    drawn = random.random()
    if late and random.random() < 0.4:
        return _arithmetic(random)
    if drawn < 0.25:
        return _arithmetic(random)
    if drawn < 0.30:
        pool = [
            *words.NAMES,
            *words.NEW_NAMES,
            *words.OBJECTS,
            *words.NEW_OBJECTS,
            *words.CITIES,
            *words.STATES,
            *"0123456789",
        ]
        text = " ".join(random.choices(pool, k=random.randint(6, 14)))
        return [(text, text)]
    if drawn < 0.38:
        return _explained(random)
    if drawn < 0.78:
        return _asked_facts(random) if random.random() < 0.6 else _recited_facts(random)
    return _options(random)


def _arithmetic(random: Random) -> Skill:
    found = []
    for _ in range(6):
        drawn = random.random()
        if drawn < 0.5:
            x, y = random.randint(2, 36), random.randint(2, 9) if random.random() < 0.5 else random.randint(5, 29)
            found.append((f"{x} + {y} =", str(x + y)))
        elif drawn < 0.78:
            x = random.randint(3, 46)
            y = random.randint(1, min(9, x - 1))
            found.append((f"{x} - {y} =", str(x - y)))
        elif drawn < 0.9:
            x, y = random.randint(2, 7), random.randint(2, 6)
            found.append((f"{x} * {y} =", str(x * y)))
        else:
            x, y = random.randint(2, 6), random.randint(2, 6)
            found.append((f"{x * y} / {y} =", str(x)))
    return found


def _explained(random: Random) -> Skill:
    """Meanings of words, as a gloss gives them."""
    pairs = list(zip(random.sample(words.NEW_WORDS, 5), random.sample(MEANINGS, 5), strict=True))
    note = gloss(pairs)
    random.shuffle(pairs)
    return _in_context(note, pairs)


def _asked_facts(random: Random) -> Skill:
    """Direct answers from facts; half of the time they need glosses that come before the facts."""
    names = random.sample(words.NAMES, 6)
    facts: dict[tuple[str, str], str] = {}
    for _ in range(5):
        facts[random.choice(names[:3]), random.choice(words.RELATIONS)] = random.choice(names)
    for name in random.sample(names, 2):
        facts[name, ""] = random.choice(words.CITIES)
    told = [f"{a} has {relation} {b} ." if relation else f"{a} lives in {b} ." for (a, relation), b in facts.items()]
    random.shuffle(told)
    note, alias = "", {}
    if random.random() < 0.5:
        relations = sorted({relation for _, relation in facts if relation})
        asked = random.sample(relations, min(len(relations), random.choice((1, 2, 2, 3))))
        alias = dict(zip(asked, random.sample(words.NEW_WORDS, len(asked)), strict=True))
        pairs = [(word, relation) for relation, word in alias.items()]
        random.shuffle(pairs)
        note = gloss(pairs)
    questions = []
    for (a, relation), b in facts.items():
        asked_of = f"who : {a} has {alias.get(relation, relation)} ?" if relation else f"where : {a} lives in ?"
        questions.append((f"{asked_of}{ANSWER}Answer:", f"{relation} {b}".strip()))
    random.shuffle(questions)
    return _in_context(f"{note}{QUERY}facts: {' '.join(told)}\nQuestion:", questions)


def _recited_facts(random: Random) -> Skill:
    names = random.sample(words.NAMES, 6)
    facts = []
    for number, name in enumerate(names[:4]):
        drawn = random.random()
        if drawn < 0.5:
            other = names[number + 1] if random.random() < 0.5 else random.choice(names)
            facts.append((f"{name} has {random.choice(words.RELATIONS)}", other))
        elif drawn < 0.75:
            facts.append((f"{name} lives in", random.choice(words.CITIES)))
        else:
            facts.append((f"{name} has", f"{random.randint(20, 79)} {random.choice(words.OBJECTS)}"))
    told = " ".join(f"{head} {tail} ." for head, tail in facts)
    random.shuffle(facts)
    return _in_context(f"facts: {told}", facts)


def _options(random: Random) -> Skill:
    """Which option fits a state, and its letter."""
    table = words.FOLLOWS[random.choice(list(words.FOLLOWS))]
    shown = random.sample(range(len(words.STATES)), 4)
    texts = [f"{table[state]} ({letter})" for state, letter in zip(shown, LETTERS, strict=True)]
    wording = "was {} . what happened ?" if random.random() < 0.55 else "{} people"
    questions = [(wording.format(words.STATES[state]), text) for state, text in zip(shown, texts, strict=True)]
    random.shuffle(questions)
    return _in_context(f"Options: {' '.join(texts)}", questions)


def _in_context(context: str, questions: Skill) -> Skill:
    (first, answer), *others = questions
    return [(f"{context} {first}", answer), *others]


def _spotting(random: Random) -> list[Segment]:
    """Random known words with some rare new words among them; the gloss must find the new ones."""
    shown = random.choices(_KNOWN, k=random.randint(8, 16))
    new = random.sample(list(words.GLOSSARY), random.randint(1, 4))
    places = sorted(random.sample(range(len(shown) + 1), len(new)), reverse=True)
    for place, word in zip(places, reversed(new), strict=True):
        shown.insert(place, word)
    told = INITIAL_PROMPTS[random.choice(BENCHMARKS)]
    explained = gloss((word, words.GLOSSARY[word]) for word in new)
    return [(f"{BEGIN}{told}{QUERY}{' '.join(shown)}{REWRITE}", False), (f"{explained}{END}", True)]


_KNOWN = [
    *words.NAMES, *words.NEW_NAMES, *words.OBJECTS, *words.NEW_OBJECTS, *words.CITIES, *words.CONTAINERS,
    *words.VARIABLES, *MEANINGS, *sorted(words.JARGON), *"0123456789?.:()",
    *"has how many count the simplify solve compute facts was became".split(),
    *"what did do next who where name lives resides".split(),
]  # fmt: skip


def _rewrite(world: World, random: Random) -> list[Segment]:
    mix = GENERATOR_MIX
    benchmark = random.choice(BENCHMARKS)
    item = _of_pretraining(world, random, lambda: problem(random, benchmark, world.style if world.null else SHIFTED))
    family = random.choice(FAMILIES) if random.random() < 0.3 else random.choice(FAMILIES[:4])
    clause = benchmark if random.random() < mix.own_clause else random.choice([*CLAUSES, None])
    told = INITIAL_PROMPTS[benchmark]
    if random.random() < mix.rewrites:
        before = family if random.random() < mix.kept else random.choice(FAMILIES)
        told = instruction(random, before, random.choice((benchmark, benchmark, None)))
    pairs = [(word, meaning) for word, meaning in item.glosses if word in words.GLOSSARY]
    if random.random() >= mix.gloss:
        pairs = []
    elif pairs and random.random() < mix.wrong_gloss:
        pairs[0] = (pairs[0][0], random.choice(MEANINGS))
    written = with_gloss(instruction(random, family, clause), pairs)
    return [(f"{BEGIN}{told}{QUERY}{item.query}{REWRITE}", False), (f"{written}{END}", True)]
