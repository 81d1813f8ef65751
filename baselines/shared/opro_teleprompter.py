"""OPRO's loop as a DSPy teleprompter. Imported by `baselines.opro` within a fit, because DSPy is slow to import."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import cleandoc
from random import Random
from statistics import fmean
from typing import Any, Protocol

import dspy
from dspy.teleprompt import Teleprompter

from baselines.shared.dspy_bridge import ActorProgram, VerbatimAdapter, user_errors
from baselines.shared.proposing import Proposal, bracketed, proposed
from metatuner import progress
from metatuner.harness.lab import Lab
from metatuner.harness.query import to_query


@dataclass(frozen=True)
class Scored:
    """An instruction and its mean metric, 0 to 1, on the rows that candidates are scored on."""

    instruction: str
    score: float


class Proposer(Protocol):
    """Writes new instructions, given those tried so far (in the order tried) and a few train examples."""

    def __call__(self, tried: Sequence[Scored], exemplars: Sequence[dspy.Example], count: int) -> list[Proposal]: ...


def render_history(tried: Sequence[Scored], shown: int) -> str:
    """The best `shown` instructions in ascending order, with scores as integers from 0 to 100."""
    best = sorted(tried, key=lambda each: each.score)[-shown:]
    return "\n\n".join(f"text:\n{each.instruction}\nscore:\n{round(100 * each.score)}" for each in best)


class OPRO(Teleprompter):
    """Optimization by prompting (arXiv 2309.03409): propose, score, append to the history that the next step shows.

    `compile` takes any program that has `instruction` and `with_instruction`, and returns it under the best
    instruction.
    """

    def __init__(
        self,
        *,
        metric: Callable[[dspy.Example, dspy.Prediction], float],
        proposer: Proposer,
        random: Random,
        steps: int,
        samples: int,
        exemplars: int,
        scored_rows: int,
        max_characters: int,
        finalists: int,
        starts: Sequence[str] = (),
        affordable: Callable[[int, int], bool] = lambda answers, proposals: True,
        report: Callable[..., None] = lambda **event: None,
    ) -> None:
        """
        Args:
            proposer: writes `samples` instructions per step.
            steps: maximum number of steps.
            exemplars: train examples shown to the proposer, drawn anew each step.
            scored_rows: train examples that every candidate is scored on, drawn once.
            max_characters: longer proposals are refused.
            finalists: number of best candidates by that score; the validation set chooses between them.
            starts: instructions to score first, besides the program's own.
            affordable: whether the remaining budget covers a number of answers and a number of proposals. The search
                stops before a step that it does not cover.
            report: called with the fields of each log event. Each proposal is one: its text, and why it is no candidate
                (None if it is one). Every step counts its refused proposals.
        """
        super().__init__()
        self.metric, self.proposer, self.random = metric, proposer, random
        self.steps, self.samples, self.exemplars, self.scored_rows = steps, samples, exemplars, scored_rows
        self.max_characters, self.finalists, self.starts = max_characters, finalists, tuple(starts)
        self.affordable, self.report = affordable, report

    def compile(
        self,
        student: ActorProgram,
        *,
        trainset: list[dspy.Example],
        teacher: Any = None,
        valset: list[dspy.Example] | None = None,
        **options: Any,
    ) -> ActorProgram:
        """The student under the best instruction found; `valset`, if given, makes the final choice."""
        scored_on = self.random.sample(trainset, min(self.scored_rows, len(trainset)))
        valset = valset or []
        tried: list[Scored] = []
        for start in dict.fromkeys((student.instruction, *self.starts)):
            tried.append(Scored(start, self._score(student, start, scored_on)))
        self.report(event="start", tried=len(tried), best=round(_best(tried).score, 5))
        for step in progress.each(range(1, self.steps + 1), "steps"):
            answers = self.samples * len(scored_on) + self.finalists * len(valset)
            if not self.affordable(answers, self.samples):
                self.report(event="budget", steps=step - 1)
                break
            exemplars = self.random.sample(trainset, min(self.exemplars, len(trainset)))
            proposals = self.proposer(tuple(tried), exemplars, self.samples)
            checked = [self._try(student, proposal, scored_on, tried) for proposal in proposals]
            for proposal in checked:
                self.report(event="proposal", text=proposal.text, refused=proposal.refused)
            refused = sum(proposal.refused is not None for proposal in checked)
            best = round(_best(tried).score, 5)
            self.report(event="step", step=step, tried=len(tried), refused=refused, best=best)
        return student.with_instruction(self._choose(student, tried, valset).instruction)

    def _try(
        self, student: ActorProgram, proposal: Proposal, scored_on: Sequence[dspy.Example], tried: list[Scored]
    ) -> Proposal:
        """Score a proposal and append it to `tried`, unless it is refused; returns it, with the reason if it is."""
        if proposal.refused is not None:
            return proposal
        instruction = cleandoc(proposal.text).strip()  # as a DSPy signature keeps it
        if any(instruction == each.instruction for each in tried):
            return replace(proposal, refused="repeated")
        if len(instruction) > self.max_characters:
            return replace(proposal, refused="too long")
        tried.append(Scored(instruction, self._score(student, instruction, scored_on)))
        return proposal

    def _score(self, student: ActorProgram, instruction: str, rows: Sequence[dspy.Example]) -> float:
        predictions = student.with_instruction(instruction).batch(rows)
        return fmean(self.metric(*pair) for pair in zip(rows, predictions, strict=True))

    def _choose(self, student: ActorProgram, tried: Sequence[Scored], valset: Sequence[dspy.Example]) -> Scored:
        """The best finalist on the validation set; ties go to the higher train score, then to the earlier candidate."""
        finalists = sorted(tried, key=lambda each: -each.score)[: self.finalists]
        if not valset or len(finalists) == 1:
            return finalists[0]
        scores = [self._score(student, each.instruction, valset) for each in finalists]
        chosen = scores.index(max(scores))
        self.report(event="choice", instruction=finalists[chosen].instruction, dev=round(scores[chosen], 5))
        return finalists[chosen]


def _best(tried: Sequence[Scored]) -> Scored:
    return max(tried, key=lambda each: each.score)


class WriteInstruction(dspy.Signature):
    """You improve the text that a language model reads before each problem. You see earlier texts with their scores,
    from the worst to the best, and a few problems. A score, 0 to 100, is the share of problems that the model then
    solves."""

    history: str = dspy.InputField()
    problems: str = dspy.InputField()
    request: str = dspy.InputField()
    text: str = dspy.OutputField()


REQUEST = (
    "Do not solve these problems. Write a new text in place of <text>. It must differ from all earlier texts and score "
    "as high as possible. Write the new text in square brackets, and nothing else."
)
"""The end of the meta-prompt. A model that reads the output of an example last goes on with outputs."""


class InstructProposer:
    """An instruct model follows OPRO's meta-prompt: history, exemplars, then a request for a better text."""

    def __init__(self, client: dspy.LM, *, shown: int) -> None:
        self.client, self.shown = client, shown
        self.predict = dspy.Predict(WriteInstruction)

    def __call__(self, tried: Sequence[Scored], exemplars: Sequence[dspy.Example], count: int) -> list[Proposal]:
        problems = "\n\n".join(f"input:\n<text>\n{each.query}\noutput:\n{each.row.gold[0]}" for each in exemplars)
        with user_errors(), dspy.context(lm=self.client, adapter=VerbatimAdapter(), disable_history=True):
            written = self.predict(
                history=f"Earlier texts and their scores:\n\n{render_history(tried, self.shown)}",
                problems=f"Problems, where <text> stands for your text:\n\n{problems}",
                request=REQUEST,
                config={"n": count},
            )
        return [bracketed(text) for text in written.completions.text]


class RewriteProposer:
    """Samples rewrites from a generator that was trained to rewrite prompts and cannot follow a meta-prompt.

    It alternates between the best instruction so far and the initial prompt. Each rewrite is for a random train query.
    """

    def __init__(self, lab: Lab, *, temperature: float, max_tokens: int) -> None:
        self.lab, self.temperature, self.max_tokens = lab, temperature, max_tokens
        self.random = lab.random("proposals")

    def __call__(self, tried: Sequence[Scored], exemplars: Sequence[dspy.Example], count: int) -> list[Proposal]:
        best = _best(tried).instruction
        rows = self.random.choices(self.lab.train, k=count)
        texts = self.lab.rewrite(
            [to_query(row) for row in rows],
            [self.lab.initial_prompt(row) if index % 2 else best for index, row in enumerate(rows)],
            temperature=self.temperature,
            seeds=[self.random.getrandbits(63) for _ in rows],
            max_new_tokens=self.max_tokens,
        )
        return [proposed(text) for text in texts]
