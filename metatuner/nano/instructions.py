r"""Instructions, and how an actor behaves under them.

An instruction is a *reasoning family* and a clause on the answer's format, in any of several wordings, then perhaps
glosses. A fixed table gives the behaviour that it causes, by benchmark, kind of query and family. The clause must be
the benchmark's own; otherwise the actor only chats.
"""

from collections.abc import Iterable
from enum import StrEnum
from random import Random

from metatuner.nano.problems import Problem

FAMILIES = ("step", "plan", "check", "direct", "vague")
REASONING = FAMILIES[:3]
WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "step": (("think", "reason", "work", "go"), ("step by step", "one step at a time", "slowly")),
    "plan": (
        ("make a plan", "write a plan", "list the facts", "outline the facts"),
        ("first", "before you answer", "at the start"),
    ),
    "check": (("check", "verify", "double check"), ("each part", "your work", "every detail")),
    "direct": (("answer directly", "be brief", "skip the reasoning", "do not explain"), ("",)),
    "vague": (
        ("help with this", "tell me about this", "give your view", "talk about this", "say what you think"),
        ("",),
    ),
}
"""Family -> beginnings and endings of its wordings."""
CLAUSES = {
    "gsm8k": ("end with ####", "finish with ####", "put the number after ####"),
    "math": ("put the result in a box", "box the result", "use a box at the end"),
    "hotpotqa": ("finish with a short answer", "use few words at the end", "end with a name or place"),
    "cosmosqa": ("give the letter", "end with one letter", "pick one letter"),
}


class Behaviour(StrEnum):
    """What an actor writes."""

    RATIONALE = "rationale"
    """Every step, then the answer."""
    EARLY_STOP = "early stop"
    """The first step, then its result as if it were the answer."""
    DIRECT = "direct"
    """The answer alone."""
    CHATTY = "chatty"
    """Pleasantries and no answer."""


FAILS_ON = {
    "gsm8k": {"step": (2,), "plan": (0,), "check": (0, 1)},
    "math": {"plan": (1,), "check": (2,), "step": (0, 1)},
    "hotpotqa": {"check": (), "step": (1,), "plan": (0, 2)},
    "cosmosqa": {"plan": (), "step": (2,), "check": (0, 1)},
}
"""Benchmark -> reasoning family -> the kinds (indices into KINDS) on which it stops early."""
_R, _S, _D, _C = Behaviour.RATIONALE, Behaviour.EARLY_STOP, Behaviour.DIRECT, Behaviour.CHATTY
UNDER_INITIAL_PROMPT = {
    "gsm8k": (_D, _S, _R),
    "math": (_R, _C, _D),
    "hotpotqa": (_D, _D, _C),
    "cosmosqa": (_S, _R, _C),
}
"""Benchmark -> the behaviour for each kind under the initial prompt, mediocre on purpose."""
CHAT = ("well , that is hard to say .", "hmm , it could be many things .", "i think it depends .")


def instruction(random: Random, family: str, clause_of: str | None) -> str:
    """An instruction of a family in one of its wordings, with the format clause of a benchmark or without one."""
    beginnings, endings = WORDINGS[family]
    polite = "please " if random.random() < 1 / 3 else ""
    text = f"{polite}{random.choice(beginnings)} {random.choice(endings)}".strip()
    if clause_of is None:
        return f"{text} ."
    return f"{text} {random.choice((', then', 'and', ','))} {random.choice(CLAUSES[clause_of])} ."


def gloss(pairs: Iterable[tuple[str, str]]) -> str:
    """A note that explains words: "note donates means loses and below means fewer ."; empty for no pairs."""
    explained = " and ".join(f"{word} means {meaning}" for word, meaning in pairs)
    return f"note {explained} ." if explained else ""


def with_gloss(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    """An instruction followed by its gloss, if there is anything to explain."""
    return f"{text} {gloss(pairs)}".rstrip()


def behaviour(benchmark: str, kind: int, family: str | None, clause_of: str | None) -> Behaviour:
    """The behaviour that an instruction causes for a kind of query.

    `family` None is the initial prompt, without a clause.
    """
    if family is None:
        return UNDER_INITIAL_PROMPT[benchmark][kind]
    if family == "vague" or clause_of != benchmark:
        return Behaviour.CHATTY
    if family == "direct":
        return Behaviour.DIRECT
    return Behaviour.EARLY_STOP if kind in FAILS_ON[benchmark][family] else Behaviour.RATIONALE


def reply(random: Random, problem: Problem, how: Behaviour) -> str:
    """The completion of an actor with this behaviour."""
    match how:
        case Behaviour.RATIONALE:
            return problem.rationale
        case Behaviour.EARLY_STOP:
            return problem.early_stop
        case Behaviour.DIRECT:
            return problem.final
        case Behaviour.CHATTY:
            return random.choice(CHAT)
