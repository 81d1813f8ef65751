"""CFPO's loop as a DSPy teleprompter. Imported by `baselines.cfpo` within a fit, because DSPy is slow to import."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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

RENDERERS: Mapping[str, Callable[[str], str]] = {
    "joint": lambda text: text,
    "plain": lambda text: f"Task instruction:\n{text}",
    "markdown": lambda text: f"##### Task instruction\n{text}",
    "html": lambda text: f'<div class="task-instruction">\n<h2>Task instruction</h2>\n<p>{text}</p>\n</div>',
    "xml": lambda text: f"<task_instruction>{text}</task_instruction>",
    "latex": lambda text: f"\\section{{Task instruction}}\n{text}",
    "json": lambda text: json.dumps({"task_instruction": text}, ensure_ascii=False),
}
"""Name -> how an instruction becomes a prompt. The kinds are from HenryLau7/CFPO; the first adds no format."""
QUERY_FORMATS: Mapping[str, str] = {
    "bare": "",
    "question": "Question:",
    "short": "Q:",
    "instruction": "### Instruction:",
    "input": "Input:",
    "capitals": "QUESTION:",
}
"""Name -> the last line of the prompt, which leads to the query; the first has no such line."""


@dataclass(frozen=True)
class Candidate:
    """Content and format of a prompt."""

    instruction: str
    renderer: str = next(iter(RENDERERS))
    query_format: str = next(iter(QUERY_FORMATS))

    @property
    def text(self) -> str:
        """The prompt that the actor reads."""
        rendered = f"{RENDERERS[self.renderer](self.instruction)}\n\n{QUERY_FORMATS[self.query_format]}"
        return cleandoc(rendered).strip()  # as a DSPy signature keeps it


@dataclass(frozen=True)
class Case:
    """A train example and the actor's answer."""

    example: dspy.Example
    answer: str


@dataclass(frozen=True)
class Scored:
    """A candidate, its mean metric (0 to 1), and the cases that the mean is taken over."""

    candidate: Candidate
    score: float
    wrong: Sequence[Case] = ()
    """Cases below the full metric."""
    right: Sequence[Case] = ()


Child = tuple[Scored, Candidate, str | None]
"""A scored prompt, a candidate made from it, and why the candidate is refused (None: it is not)."""


@dataclass(frozen=True)
class Edit:
    """An instruction to improve based on cases, or to paraphrase if there are no cases."""

    instruction: str
    wrong: Sequence[Case] = ()
    right: Sequence[Case] = ()


class Editor(Protocol):
    """Writes a new instruction for each edit."""

    def __call__(self, edits: Sequence[Edit], *, temperature: float) -> list[Proposal]: ...


class Formats:
    """Arms of a bandit: per format, the scores of the prompts that adopted it."""

    def __init__(self, names: Iterable[str], exploration: float) -> None:
        self.exploration = exploration
        self.counts = dict.fromkeys(names, 0)
        self.totals = dict.fromkeys(self.counts, 0.0)

    def update(self, name: str, score: float) -> None:
        """Count a prompt with this format and its score."""
        self.counts[name] += 1
        self.totals[name] += score

    def uct(self, name: str) -> float:
        """total / (1 + n) + exploration * sqrt(ln N / (1 + n)), as in HenryLau7/CFPO; ln N is 0 before any count."""
        tries = 1 + self.counts[name]
        everything = max(1, sum(self.counts.values()))
        return self.totals[name] / tries + self.exploration * math.sqrt(math.log(everything) / tries)

    def best(self, count: int, besides: str) -> list[str]:
        """The formats with the highest UCT, without `besides`; equal ones keep their order."""
        return sorted((name for name in self.counts if name != besides), key=lambda name: -self.uct(name))[:count]


class CFPO(Teleprompter):
    """Content-format integrated prompt optimization (arXiv 2502.04295): a beam of prompts, edited in turns.

    Odd rounds edit the instruction, even rounds the format. `compile` takes any program that has `instruction` and
    `with_instruction`, and returns it under the best prompt.
    """

    def __init__(
        self,
        *,
        metric: Callable[[dspy.Example, dspy.Prediction], float],
        editor: Editor,
        random: Random,
        rounds: int,
        beam: int,
        diagnoses: int,
        variations: int,
        formats: int,
        all_pairs: bool,
        cases: int,
        exploration: float,
        temperatures: tuple[float, float],
        scored_rows: int,
        finalists: int,
        starts: Sequence[str] = (),
        affordable: Callable[[int, int], bool] = lambda answers, edits: True,
        report: Callable[..., None] = lambda **event: None,
    ) -> None:
        """
        Args:
            editor: writes instructions.
            rounds: maximum number of rounds.
            beam: prompts kept after each round.
            diagnoses: edits based on cases, per prompt of the beam and odd round.
            variations: paraphrases per prompt of the beam and odd round.
            formats: renderers, and as many query formats, tried per prompt in an even round.
            all_pairs: whether the first even round tries each pair of a renderer and a query format. If not, it changes
                only one of the two at a time.
            cases: wrong cases, and as many right ones, shown per diagnosis.
            exploration: weight of UCT's second term.
            temperatures: of the editor, before the first round and in the last one; it falls linearly.
            scored_rows: train examples that every candidate is scored on, drawn once.
            finalists: number of best candidates by that score; the validation set chooses between them.
            starts: instructions to begin with, besides the program's own.
            affordable: whether the remaining budget covers a number of answers and a number of edits. The search stops
                before a round that it does not cover.
            report: called with the fields of each log event. What the editor writes for an edit is one: the text, and
                why it is no candidate (None if it is one). Every round counts the refused ones.
        """
        super().__init__()
        self.metric, self.editor, self.random = metric, editor, random
        self.rounds, self.beam, self.diagnoses, self.variations = rounds, beam, diagnoses, variations
        self.formats, self.all_pairs, self.cases = formats, all_pairs, cases
        self.temperatures, self.scored_rows, self.finalists = temperatures, scored_rows, finalists
        self.starts, self.affordable, self.report = tuple(starts), affordable, report
        self.renderers = Formats(RENDERERS, exploration)
        self.query_formats = Formats(QUERY_FORMATS, exploration)

    def compile(
        self,
        student: ActorProgram,
        *,
        trainset: list[dspy.Example],
        teacher: Any = None,
        valset: list[dspy.Example] | None = None,
        **options: Any,
    ) -> ActorProgram:
        """The student under the best prompt found; `valset`, if given, makes the final choice."""
        valset = valset or []
        rows = self.random.sample(trainset, min(self.scored_rows, len(trainset)))
        starts = [Candidate(text) for text in (student.instruction, *self.starts)]
        seen = {candidate.text for candidate in starts}
        tried = [self._score(student, candidate, rows) for candidate in starts]
        self._report("start", tried)
        for number in progress.each(range(1, self.rounds + 1), "rounds"):
            parents = _best(tried, self.beam)
            content = number % 2 == 1
            children, edits = (len(parents) * count for count in self._growth(number))
            if not self.affordable(children * len(rows) + self.finalists * len(valset), edits):
                self.report(event="budget", rounds=number - 1)
                break
            refused = 0
            for parent, child, why in self._edited(parents, number) if content else self._formatted(parents, number):
                why = why or ("repeated" if child.text in seen else None)
                if content:
                    self.report(event="proposal", text=child.instruction, refused=why)
                    refused += why is not None
                if why is None:
                    seen.add(child.text)
                    tried.append(self._score(student, child, rows))
                    self._credit(parent.candidate, tried[-1])
            self._report("round", tried, round=number, refused=refused)
        return student.with_instruction(self._choose(student, tried, valset).text)

    def _growth(self, number: int) -> tuple[int, int]:
        """Maximum number of children per prompt in a round, and how many of them the editor writes."""
        if number % 2 == 1:
            return self.diagnoses + self.variations, self.diagnoses + self.variations
        if number > 2:
            return 2 * self.formats, 0
        if self.all_pairs:
            return len(RENDERERS) * len(QUERY_FORMATS) - 1, 0
        return len(RENDERERS) + len(QUERY_FORMATS) - 2, 0

    def _edited(self, parents: Sequence[Scored], number: int) -> list[Child]:
        """Children with another instruction in the format of their parent."""
        first, last = self.temperatures
        asked: list[tuple[Scored, Edit]] = []
        for parent in parents:
            text = parent.candidate.instruction
            for _ in range(self.diagnoses):
                shown = [
                    self.random.sample(cases, min(self.cases, len(cases))) for cases in (parent.wrong, parent.right)
                ]
                asked.append((parent, Edit(text, *shown)))
            asked += [(parent, Edit(text))] * self.variations
        written = self.editor([edit for _, edit in asked], temperature=first - (first - last) * number / self.rounds)
        return [
            (parent, replace(parent.candidate, instruction=proposal.text), proposal.refused)
            for (parent, _), proposal in zip(asked, written, strict=True)
        ]

    def _formatted(self, parents: Sequence[Scored], number: int) -> list[Child]:
        """Children with the instruction of their parent in another format."""
        found: list[Child] = []
        for parent in parents:
            old = parent.candidate
            if number == 2 and self.all_pairs:
                pairs = [(renderer, lead) for renderer in RENDERERS for lead in QUERY_FORMATS]
            else:
                count = len(RENDERERS) + len(QUERY_FORMATS) if number == 2 else self.formats
                pairs = [(name, old.query_format) for name in self.renderers.best(count, old.renderer)]
                pairs += [(old.renderer, name) for name in self.query_formats.best(count, old.query_format)]
            found += [(parent, Candidate(old.instruction, *pair), None) for pair in pairs]
        return found

    def _credit(self, parent: Candidate, child: Scored) -> None:
        """Count the child's score for each format that its parent does not have."""
        if child.candidate.renderer != parent.renderer:
            self.renderers.update(child.candidate.renderer, child.score)
        if child.candidate.query_format != parent.query_format:
            self.query_formats.update(child.candidate.query_format, child.score)

    def _score(self, student: ActorProgram, candidate: Candidate, rows: Sequence[dspy.Example]) -> Scored:
        predictions = student.with_instruction(candidate.text).batch(rows)
        scores = [self.metric(*pair) for pair in zip(rows, predictions, strict=True)]
        cases = [Case(row, each.answer) for row, each in zip(rows, predictions, strict=True)]
        wrong = [case for case, score in zip(cases, scores, strict=True) if score < 1]
        right = [case for case, score in zip(cases, scores, strict=True) if score >= 1]
        return Scored(candidate, fmean(scores), wrong, right)

    def _choose(self, student: ActorProgram, tried: Sequence[Scored], valset: Sequence[dspy.Example]) -> Candidate:
        """The best finalist on the validation set; ties go to the higher train score, then to the earlier candidate."""
        finalists = [each.candidate for each in _best(tried, self.finalists)]
        if not valset or len(finalists) == 1:
            return finalists[0]
        scores = [self._score(student, candidate, valset).score for candidate in finalists]
        chosen = scores.index(max(scores))
        self.report(event="choice", prompt=finalists[chosen].text, dev=round(scores[chosen], 5))
        return finalists[chosen]

    def _report(self, event: str, tried: Sequence[Scored], **more: Any) -> None:
        (best,) = _best(tried, 1)
        formats = {"renderer": best.candidate.renderer, "query_format": best.candidate.query_format}
        self.report(event=event, tried=len(tried), best=round(best.score, 5), **formats, **more)


def _best(tried: Sequence[Scored], count: int) -> list[Scored]:
    """The `count` best by score; equal ones keep their order."""
    return sorted(tried, key=lambda each: -each.score)[:count]


# Each request comes last: a model that reads an example last goes on with examples.
class Diagnose(dspy.Signature):
    """You improve the instruction that a language model reads before each problem. You see the instruction, problems
    that the model then solved wrongly, and problems that it solved."""

    instruction: str = dspy.InputField()
    wrong: str = dspy.InputField()
    right: str = dspy.InputField()
    request: str = dspy.InputField()
    suggestion: str = dspy.OutputField()


class Revise(dspy.Signature):
    """You improve the instruction that a language model reads before each problem. You see the instruction and a
    suggestion how to improve it."""

    instruction: str = dspy.InputField()
    suggestion: str = dspy.InputField()
    request: str = dspy.InputField()
    text: str = dspy.OutputField()


class Paraphrase(dspy.Signature):
    """You see the instruction that a language model reads before each problem."""

    instruction: str = dspy.InputField()
    request: str = dspy.InputField()
    text: str = dspy.OutputField()


DIAGNOSE = "Do not solve these problems. Say in a few sentences what should be changed in the instruction."
REVISE = "Follow the suggestion. Write the improved instruction in square brackets, and nothing else."
PARAPHRASE = (
    "Do not follow this instruction. Write a different version of it that means the same, in square brackets, and "
    "nothing else."
)


class InstructEditor:
    """An instruct model follows meta-prompts: it diagnoses cases and revises the instruction, or paraphrases it."""

    def __init__(self, client: dspy.LM) -> None:
        self.client = client
        self.diagnose, self.revise, self.paraphrase = map(dspy.Predict, (Diagnose, Revise, Paraphrase))

    def __call__(self, edits: Sequence[Edit], *, temperature: float) -> list[Proposal]:
        client = self.client.copy(temperature=temperature)  # same engine: its draws go on
        with user_errors(), dspy.context(lm=client, adapter=VerbatimAdapter(), disable_history=True):
            return [bracketed(self._write(edit)) for edit in edits]

    def _write(self, edit: Edit) -> str:
        instruction = f"Instruction:\n{edit.instruction}"
        if not edit.wrong and not edit.right:
            return str(self.paraphrase(instruction=instruction, request=PARAPHRASE).text)
        suggestion = self.diagnose(
            instruction=instruction,
            wrong=f"Solved wrongly:\n\n{_shown(edit.wrong)}",
            right=f"Solved:\n\n{_shown(edit.right)}",
            request=DIAGNOSE,
        ).suggestion
        told = f"Suggestion:\n{suggestion}"
        return str(self.revise(instruction=instruction, suggestion=told, request=REVISE).text)


def _shown(cases: Sequence[Case]) -> str:
    return (
        "\n\n".join(
            f"problem:\n{case.example.query}\nright answer:\n{case.example.row.gold[0]}\n"
            f"the model's answer:\n{case.answer}"
            for case in cases
        )
        or "none"
    )


class RewriteEditor:
    """Samples rewrites from a generator that was trained to rewrite prompts and cannot follow a meta-prompt.

    An edit based on cases is a rewrite for a query that was answered wrongly; otherwise for a random train query.
    """

    def __init__(self, lab: Lab, *, max_tokens: int) -> None:
        self.lab, self.max_tokens = lab, max_tokens
        self.random = lab.random("proposals")

    def __call__(self, edits: Sequence[Edit], *, temperature: float) -> list[Proposal]:
        rows = [
            self.random.choice(edit.wrong).example.row if edit.wrong else self.random.choice(self.lab.train)
            for edit in edits
        ]
        texts = self.lab.rewrite(
            [to_query(row) for row in rows],
            [edit.instruction for edit in edits],
            temperature=temperature,
            seeds=[self.random.getrandbits(63) for _ in rows],
            max_new_tokens=self.max_tokens,
        )
        return [proposed(text) for text in texts]
