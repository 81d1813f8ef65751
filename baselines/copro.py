"""COPRO: proposes instructions in rounds; each round builds on the scores of earlier rounds."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from baselines.shared.proposing import DEVIATIONS, ELSEWHERE, Proposing, prompts_with
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Positive
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from baselines.shared.dspy_program import DemonstratedActor


@dataclass(frozen=True)
class Settings:
    """Settings of COPRO. Defaults without another source come from dspy.COPRO."""

    proposer: Literal["instruct", "rewrite"] = "instruct"
    """Who proposes instructions; the same options as in OPRO."""
    breadth: Annotated[int, Field(ge=2)] = 10
    """Instructions per round; in the first round, p~ is one of them."""
    depth: Count = 3
    """Number of rounds."""
    temperature: Positive = 1.4
    """Sampling temperature of the proposals. Candidates are scored with greedy decoding."""
    scored_rows: Count = 256
    """Train rows that each candidate is scored on; all train rows if there are fewer. As in OPRO."""
    proposal_tokens: Count = 128
    """Maximum length of a proposal in tokens; as in OPRO."""


class COPRO(Proposing):
    """DSPy's coordinate ascent over instructions. With one predictor, it is a search from the best ones so far."""

    name = "copro"
    title = "COPRO"
    reference = "Khattab et al. 2023, DSPy (arXiv 2310.03714), through dspy.COPRO"
    deviations = (
        *DEVIATIONS,
        *ELSEWHERE,
        "The prefix of the output field, which COPRO proposes beside an instruction, is not shown to the actor.",
        "Candidates are scored on a sample of the train rows that is drawn once.",
    )
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        candidates = s.breadth * s.depth
        answers = candidates * min(s.scored_rows, rows.train)
        return Loop(Sequences(answers=answers, rewrites=candidates - 1))

    def fit(self, lab: Lab) -> StaticPolicy:
        """Search from p~ on `lab.train`. If trained on several benchmarks, all share one instruction."""
        import dspy

        from baselines.shared.dspy_program import AnswerBook, examples, places, reward, search
        from baselines.shared.dspy_proposals import proposer

        settings: Settings = self.settings
        rows = lab.random("search").sample(list(lab.train), min(settings.scored_rows, len(lab.train)))
        book = AnswerBook(lab, proposals=settings.breadth, proposal_tokens=settings.proposal_tokens)
        book.together = [places(rows)]
        client, adapter = proposer(
            book,
            settings.proposer,
            temperature=settings.temperature,
            max_tokens=settings.proposal_tokens,
            fan_out=settings.breadth,
        )

        def compile(program: "DemonstratedActor") -> "DemonstratedActor":
            optimizer = dspy.COPRO(
                prompt_model=client,
                metric=reward,
                breadth=settings.breadth,
                depth=settings.depth,
                init_temperature=settings.temperature,
            )
            deep = nested_copies(settings.breadth * settings.depth)
            with dspy.context(adapter=adapter, max_errors=1), deep:
                return optimizer.compile(program, trainset=examples(rows), eval_kwargs={"num_threads": 1})

        found = search(self.name, book, rows, compile)
        return StaticPolicy(lab, prompts_with(lab, found.instruction))


@contextmanager
def nested_copies(candidates: int) -> "Iterator[None]":
    """Room for DSPy's copies: it nests the fields of each candidate in those of the one before, and copies them all.

    With 64 candidates they are deeper than Python's default limit of recursion.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 50 * candidates)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
