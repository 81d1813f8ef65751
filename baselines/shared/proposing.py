"""Shared by methods in which a language model proposes instructions through DSPy's optimizers."""

import re
from dataclasses import dataclass

from metatuner.harness.lab import Lab
from metatuner.harness.method import Method

DEVIATIONS = (
    "The generator, or the server that the config names, proposes instead of a commercial model; a reply without "
    "DSPy's marker of the instruction is refused, and the instruction that was to be improved stays.",
    "With `proposer: rewrite` no meta-prompt is read: a proposal is a rewrite of the instruction that DSPy asks to "
    "improve.",
    "A program is the actor asked once under one instruction, without a chain of modules; trained on several "
    "benchmarks, the search starts from the initial prompt of the first.",
    "Where the budget ends the search, the best candidate so far is kept.",
)
ELSEWHERE = (
    "On a benchmark that it was not trained on, the instruction stands before that benchmark's own p~, which states "
    "the form of the answer.",
)


@dataclass(frozen=True)
class Proposal:
    """An instruction that a language model proposed, or its reply and the reason for which it is no candidate."""

    text: str
    refused: str | None = None


def bracketed(reply: str) -> Proposal:
    """The text between the outermost square brackets of a reply; refused if there is none."""
    found = re.search(r"\[(.*)\]", reply, re.DOTALL)
    if found is None:
        return Proposal(reply.strip(), "no brackets")
    return proposed(found[1])


def proposed(text: str) -> Proposal:
    """A proposal in plain text; refused if it is empty."""
    return Proposal(text.strip(), None if text.strip() else "empty")


def prompts_with(lab: Lab, instruction: str) -> dict[str, str]:
    """A prompt per benchmark of the lab: the instruction found, with p~ after it on a benchmark not trained on."""
    return {
        name: instruction if name in lab.trained_on else f"{instruction} {lab.initial_prompt(name)}"
        for name in lab.benchmarks
    }


class Proposing(Method):
    """A prompt method in which a language model proposes; the setting `proposer` selects how.

    `instruct`: the generator, or the server that `models.proposer` names, reads what DSPy writes to it. `rewrite`: the
    generator rewrites an instruction.
    """

    family = "prompt"
    uses_generator = True

    @property
    def asks_proposer(self) -> bool:
        return bool(self.settings.proposer == "instruct")

    def skip(self, lab: Lab) -> str | None:
        return "no generator to propose instructions" if lab.generator is None and lab.proposer is None else None
