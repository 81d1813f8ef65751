"""Who proposes instructions to DSPy's optimizers. Imported within a fit, because DSPy is slow to import."""

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal

import dspy
from dspy.utils.exceptions import AdapterParseError

from metatuner.harness.dspy_bridge import Engine, proposer_client
from metatuner.harness.ground import Demo, Lab, to_query
from metatuner.harness.proposer import Reply

Proposes = Literal["instruct", "rewrite"]


def proposer(
    lab: Lab, proposes: Proposes, *, temperature: float, max_tokens: int, fan_out: int = 1
) -> tuple[dspy.LM, dspy.Adapter]:
    """The client that proposes and the adapter through which DSPy must ask it.

    Args:
        lab: its generator, or its server.
        proposes: `instruct`: a model reads what DSPy writes to it. `rewrite`: the generator, which was trained to
            rewrite prompts, rewrites one.
        temperature: of the proposals.
        max_tokens: most tokens of one.
        fan_out: how often a request is sampled at once; as many as candidates are asked for.
    """
    if proposes == "instruct":
        client = proposer_client(lab, temperature=temperature, max_tokens=max_tokens, fan_out=fan_out)
        return client, InstructionAdapter(use_json_adapter_fallback=False)
    engine = RewriteEngine(lab, fan_out=fan_out)
    return engine.client(temperature=temperature, max_tokens=max_tokens), RewriteAdapter()


class InstructionAdapter(dspy.ChatAdapter):
    """DSPy's own format; a reply out of form is the first output field, without what it marks as another."""

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        try:
            parsed: dict[str, Any] = super().parse(signature, completion)
        except AdapterParseError:
            before, *fields = re.split(r"\[\[ ## (\w+) ## \]\]", completion)
            marked = dict(zip(fields[::2], fields[1::2], strict=True))
            return _first_field(signature, marked.get(next(iter(signature.output_fields)), before or completion))
        return parsed


class RewriteAdapter(dspy.ChatAdapter):
    """Asks for a rewrite of the instruction that DSPy wants improved, and for nothing else."""

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, str]]:
        return [{"role": "user", "content": _instruction(inputs)}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        return _first_field(signature, completion)


class RewriteEngine(Engine):
    """The generator as what it was trained to be: it rewrites a prompt for a train query, drawn anew each time."""

    name = "local/rewriter"

    def __init__(self, lab: Lab, *, fan_out: int = 1) -> None:
        super().__init__(seed=lab.stream("proposals"), fan_out=fan_out)
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
    """The instruction that DSPy asks to improve: the basic one, or of COPRO's attempts the last, which scored best."""
    if "basic_instruction" in inputs:
        return str(inputs["basic_instruction"])
    attempts = [str(each) for each in inputs["attempted_instructions"] if str(each).startswith("Instruction #")]
    return attempts[-1].partition(": ")[2]


def _first_field(signature: type[dspy.Signature], text: str) -> dict[str, Any]:
    first, *others = signature.output_fields
    return {first: text.strip()} | dict.fromkeys(others, "")
