"""The words of the nano language.

*Known* words are seen in pretraining. *New* words stand for a known word and appear downstream only. The generator
learned to explain the rare new words (with a gloss). Fifteen frequent new words are jargon: no model has seen them
explained, so only training on rows can teach them. All words consist of letters only.
"""

NAMES = (
    "tom ann bob sue jim kate max lily sam eva leo mia ben zoe dan amy ian ivy ted joy ron meg hal fay gus nan pat roy "
    "kim lou"
).split()
NEW_NAMES = "omar priya chen ingrid diego noor yuki fatou sven leila pavel aisha bruno hana igor rosa".split()
OBJECTS = "apples pens books coins cards eggs shells stamps cups balls".split()
NEW_OBJECTS = "marbles tickets lemons buttons stickers candles".split()
CONTAINERS, NEW_CONTAINERS = "boxes bags".split(), "crates jars".split()
VARIABLES, NEW_VARIABLES = "x n".split(), "y t k".split()
CITIES = "oslo rome lima cairo paris tokyo delhi quito milan seoul perth dakar".split()
RELATIONS = "boss wife friend teacher brother doctor".split()
OPERATORS = "plus minus times".split()
STATES = "hungry tired cold sick late lost wet bored thirsty broke dirty lonely".split()

KNOWN_FORMS = {"gets": "buys finds gets".split(), "loses": "sells eats loses".split()}
"""Meanings with several known words; any other meaning is its own only known word."""

NEW_FORMS = {
    "gets": "collects earns receives wins picks gathers acquires obtains inherits saves".split(),
    "loses": "donates misplaces drops gives burns wastes spends ruins trades hides".split(),
    "more": "extra additional beyond above".split(),
    "fewer": "less below beneath under".split(),
    "plus": "added increased joined raised together combined".split(),
    "minus": "reduced lowered without decreased cut net".split(),
    "times": "scaled multiplied repeated factor stretched copies".split(),
    "boss": "manager supervisor chief".split(),
    "wife": "spouse bride partner".split(),
    "friend": "buddy pal mate".split(),
    "teacher": "mentor tutor coach".split(),
    "brother": "sibling twin bro".split(),
    "doctor": "physician medic surgeon".split(),
    "hungry": "famished starving peckish".split(),
    "tired": "exhausted weary drained".split(),
    "cold": "freezing chilly frosty".split(),
    "sick": "ill unwell nauseous".split(),
    "late": "delayed overdue tardy".split(),
    "lost": "stranded astray misled".split(),
    "wet": "soaked drenched damp".split(),
    "bored": "restless listless idle".split(),
    "thirsty": "parched dehydrated thirsting".split(),
    "broke": "penniless bankrupt cashless".split(),
    "dirty": "muddy filthy stained".split(),
    "lonely": "isolated friendless alone".split(),
}
"""Meaning -> the new words for it."""

JARGON = frozenset(
    [word for meaning in ("gets", "loses") for word in NEW_FORMS[meaning][:2]]
    + [NEW_FORMS[meaning][0] for meaning in ("more", "fewer", "plus", "minus", "times")]
    + [NEW_FORMS[meaning][0] for meaning in (*STATES[:4], *RELATIONS[:2])]
)
NEW_WORDS = [word for words in NEW_FORMS.values() for word in words]
GLOSSARY = {word: meaning for meaning, words in NEW_FORMS.items() for word in words if word not in JARGON}
"""Rare new word -> its meaning: what the generator knows and the actor does not."""

FOLLOWS = {
    "next": (
        "cook dinner,go bed,wear coat,call nurse,run fast,read map,dry clothes,play games,drink water,find job,"
        "take bath,visit friend"
    ).split(","),
    "cause": (
        "skipped lunch,worked nights,lost jacket,ate mold,missed bus,took shortcut,forgot umbrella,had nothing,"
        "ran race,spent money,fell down,moved away"
    ).split(","),
    "mood": "starved,sleepy,shivery,weak,rushed,confused,soggy,dull,dry,poor,grimy,sad".split(","),
}
"""What goes with each of STATES, in their order: the world's common sense."""
