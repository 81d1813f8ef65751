"""Who proposes instructions to DSPy's optimizers. Imported within a fit, because DSPy is slow to import."""

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Literal

import dspy
from dspy.lm15 import Request, Response
from dspy.utils.exceptions import AdapterParseError

from baselines.shared.dspy_bridge import Engine, proposer_engine
from baselines.shared.dspy_program import AnswerBook, OutOfBudget
from baselines.shared.proposing import Proposal, proposed
from metatuner.harness.lab import Lab
from metatuner.harness.proposer import Reply
from metatuner.harness.query import Demo, to_query

Proposes = Literal["instruct", "rewrite"]
INSTRUCTIONS = ("proposed_instruction", "new_instruction")
"""Output fields that become candidates, in COPRO and MIPROv2, and in GEPA. Others describe the data to a proposer."""


def proposer(
    book: AnswerBook, proposes: Proposes, *, temperature: float, max_tokens: int, fan_out: int = 1
) -> tuple[dspy.LM, dspy.Adapter]:
    """The client that proposes and the adapter through which DSPy must ask it.

    Args:
        book: the generator or server of its lab proposes. The book keeps the first error, because DSPy's optimizers go
            on after errors. It ends the search if the budget does not cover another proposal. It notes each proposal.
        proposes: `instruct`: a model reads what DSPy writes to it. `rewrite`: the generator, which was trained to
            rewrite prompts, rewrites one.
        temperature: sampling temperature of the proposals.
        max_tokens: maximum length of a proposal in tokens.
        fan_out: how often a request is sampled at once; set it to the number of candidates that DSPy requests.
    """
    lab = book.lab
    if proposes == "rewrite":
        engine: Engine = RewriteEngine(lab, seed=lab.stream("proposals"), fan_out=fan_out)
    else:
        engine = proposer_engine(lab, fan_out=fan_out)
    client = BookedEngine(engine, book).client(temperature=temperature, max_tokens=max_tokens)
    return client, (RewriteAdapter if proposes == "rewrite" else InstructionAdapter)(book.note)


class BookedEngine(Engine):
    """Wraps an engine. The book keeps its errors and stops it when the budget ends."""

    def __init__(self, engine: Engine, book: AnswerBook) -> None:
        super().__init__(seed=engine.seed, fan_out=engine.fan_out)
        self.engine, self.book, self.name = engine, book, engine.name

    def complete(self, request: Request) -> Response:
        with self.book.kept_error():
            if not self.book.affords(0):
                raise OutOfBudget
            return self.engine.complete(request)

    def sample(self, *args: Any, **options: Any) -> list[Reply]:
        return self.engine.sample(*args, **options)


class InstructionAdapter(dspy.ChatAdapter):
    """DSPy's own format, in which the request for the output fields comes last.

    A reply that does not mark the instruction, or leaves it empty, is refused: the instruction that was to be improved
    takes its place, so that no candidate comes of it. A reply that marks it may lack other fields. Other requests, for
    descriptions of the data, take any reply.
    """

    def __init__(self, note: Callable[[Proposal], None] = lambda proposal: None) -> None:
        """`note` is called with each proposal of an instruction."""
        super().__init__(use_json_adapter_fallback=False)
        self.note, self.improved = note, ""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, str]]:
        self.improved = _instruction(inputs)
        return super().format(signature, demos, inputs)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        first, *others = signature.output_fields
        try:
            parsed: dict[str, Any] = super().parse(signature, completion)
        except AdapterParseError:
            before, *fields = re.split(r"\[\[ ## (\w+) ## \]\]", completion)
            marked = dict(zip(fields[::2], fields[1::2], strict=True))
            if first in INSTRUCTIONS and first not in marked:
                return self._taken(first, Proposal(completion.strip(), "no marker")) | dict.fromkeys(others, "")
            parsed = {first: marked.get(first, before or completion)} | dict.fromkeys(others, "")
        return parsed | self._taken(first, proposed(str(parsed[first])))

    def _taken(self, field: str, proposal: Proposal) -> dict[str, str]:
        """The field with the proposal, or with the instruction that was to be improved if it is refused."""
        if field in INSTRUCTIONS:
            self.note(proposal)
        return {field: proposal.text if proposal.refused is None else self.improved}


class RewriteAdapter(InstructionAdapter):
    """Requests a rewrite of the instruction that DSPy wants improved, and nothing else."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, str]]:
        self.improved = _instruction(inputs)
        return [{"role": "user", "content": self.improved}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        first, *others = signature.output_fields
        return self._taken(first, proposed(completion)) | dict.fromkeys(others, "")


class RewriteEngine(Engine):
    """The generator as the rewriter that it was trained to be: each rewrite is for a train query, drawn anew."""

    name = "local/rewriter"

    def __init__(self, lab: Lab, *, seed: int, fan_out: int = 1) -> None:
        super().__init__(seed=seed, fan_out=fan_out)
        self.lab = lab

    def sample(
        self, system: str, demos: Sequence[Demo], query: str, *, temperature: float, limit: int, seeds: Sequence[int]
    ) -> list[Reply]:
        rows = [Random(seed).choice(self.lab.train) for seed in seeds]
        texts = self.lab.rewrite(
            [to_query(row) for row in rows],
            [query] * len(rows),
            temperature=temperature,
            seeds=list(seeds),
            max_new_tokens=limit,
        )
        return [Reply(text, 0, 0, False) for text in texts]  # the lab's meter counts the tokens


def _instruction(inputs: Mapping[str, Any]) -> str:
    """The instruction that DSPy wants improved; for COPRO it is the last of the attempts, which scored best."""
    for name in ("basic_instruction", "current_instruction"):
        if name in inputs:
            return str(inputs[name])
    attempts = [str(each) for each in inputs.get("attempted_instructions", []) if str(each).startswith("Instruction #")]
    return attempts[-1].partition(": ")[2] if attempts else ""
