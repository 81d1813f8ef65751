"""Shared by methods in which a language model proposes instructions through DSPy's optimizers."""

from metatuner.harness.lab import Lab
from metatuner.harness.method import Method

DEVIATIONS = (
    "The generator, or the server that the config names, proposes instead of a commercial model; a reply without "
    "DSPy's field markers is taken for the instruction as a whole.",
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
