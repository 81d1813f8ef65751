"""DSPy on the shared harness: the actor as a program, a local model as an engine, prompts without DSPy's markers.

Import it within a fit, because DSPy takes more than a second. DSPy caches nothing here: repeated calls are metered.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

from metatuner.errors import UserError
from metatuner.harness.budget import Budget, ModelUse
from metatuner.harness.ground import Ground
from metatuner.harness.lab import Lab
from metatuner.harness.proposer import ProposerServer, Reply
from metatuner.harness.query import Demo, Query
from metatuner.harness.rows import Row
from metatuner.hashing import derive_seed
from metatuner.lm import LM, generate, render

PROGRAM_INPUTS = ("query", "id", "benchmark")
PROPOSER = "proposer"
"""Name of a server in the cost per model."""
SIDE_BY_SIDE = 8
"""Maximum number of parallel requests to a server."""


def examples(rows: Iterable[Row]) -> list[dspy.Example]:
    """Rows as DSPy examples: inputs `query`, `id` and `benchmark`; label `answer`; the row itself as `row`."""
    return [
        dspy.Example(query=row.query, id=row.id, benchmark=row.benchmark, answer=row.target, row=row).with_inputs(
            *PROGRAM_INPUTS
        )
        for row in rows
    ]


@contextmanager
def user_errors() -> Iterator[None]:
    """In this context, a UserError that an engine raised leaves DSPy unwrapped."""
    try:
        yield
    except dspy.LMError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


class RewardMetric:
    """The benchmark's primary metric, 0 to 1, as a DSPy metric."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return self.lab.reward_texts([example.row], [prediction.answer])[0]


class ActorProgram(dspy.Module):
    """The actor under one instruction, as a DSPy program.

    Its only predictor holds the instruction, because DSPy's optimizers look for it there. Answers come from the ground,
    so that a prompt is rendered and decoded exactly as in evaluation. `batch` answers all examples in one call.
    """

    def __init__(self, ground: Ground, instruction: str) -> None:
        super().__init__()
        self.ground = ground
        self.predict = dspy.Predict(dspy.Signature("query -> answer", instruction))

    @property
    def instruction(self) -> str:
        return str(self.predict.signature.instructions)

    def with_instruction(self, instruction: str) -> "ActorProgram":
        """The same program under another instruction."""
        return ActorProgram(self.ground, instruction)

    def deepcopy(self) -> "ActorProgram":
        """A copy with its own instruction; the models are shared."""
        return self.with_instruction(self.instruction)

    def forward(self, query: str, id: str, benchmark: str) -> dspy.Prediction:
        return self._answer([Query(id, benchmark, query)])[0]

    def batch(self, examples: Sequence[dspy.Example], **options: Any) -> list[dspy.Prediction]:
        """One prediction per example, in order. DSPy's threading options have no effect here."""
        return self._answer([Query(each.id, each.benchmark, each.query) for each in examples])

    def _answer(self, queries: Sequence[Query]) -> list[dspy.Prediction]:
        return [dspy.Prediction(answer=each.completion) for each in self.ground.answer(queries, self.instruction)]


class VerbatimAdapter(dspy.ChatAdapter):
    """Renders a signature verbatim: the instruction, then the input fields. The whole reply is the output field.

    DSPy's own adapter adds field markers and a required format, which small models cannot follow.
    """

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, str]]:
        (reply,) = signature.output_fields
        turns = [{"role": "system", "content": signature.instructions}]
        for demo in demos:
            turns.append({"role": "user", "content": self._fields(signature, demo)})
            turns.append({"role": "assistant", "content": str(demo[reply])})
        return [*turns, {"role": "user", "content": self._fields(signature, inputs)}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, str]:
        (reply,) = signature.output_fields
        return {reply: completion.strip()}

    def _fields(self, signature: type[dspy.Signature], values: Mapping[str, Any]) -> str:
        return "\n\n".join(str(values[name]) for name in signature.input_fields if name in values)


class Engine(ABC):
    """A language model behind `dspy.LM`.

    A request at temperature > 0 is sampled `fan_out` times at once. DSPy turns `n` candidates into n equal requests one
    after another, so `n = fan_out` costs one batch. A sample's random stream comes from the seed, the request and how
    often that request was sampled before; it does not depend on other requests.
    """

    name: str
    """Name of the model in DSPy's records."""

    def __init__(self, *, seed: int, fan_out: int = 1) -> None:
        self.seed, self.fan_out = seed, fan_out
        self._ready: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self._drawn: Counter[str] = Counter()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Engine":
        return self  # DSPy copies its clients; the model stays one

    def client(self, *, temperature: float, max_tokens: int) -> dspy.LM:
        """The DSPy client of this engine: no cache, no retries."""
        return dspy.LM(
            self.name,
            engine=self,
            temperature=temperature,
            max_tokens=max_tokens,
            cache=False,
            num_retries=0,
        )

    def complete(self, request: Request) -> Response:
        """One completion; the last message is the query, earlier ones are demonstrations."""
        *shown, query = (_text(message.parts) for message in request.messages)
        system = request.system if isinstance(request.system, str) else _text(request.system or ())
        temperature, limit = request.config.temperature or 0.0, request.config.max_tokens
        key = hashlib.sha256(repr((system, shown, query, temperature, limit)).encode()).hexdigest()
        if not self._ready[key]:
            count = self.fan_out if temperature > 0 else 1
            seeds = [derive_seed(self.seed, key, self._drawn[key] + index) for index in range(count)]
            demos = list(zip(shown[::2], shown[1::2], strict=True))
            drawn = self.sample(system, demos, query, temperature=temperature, limit=limit, seeds=seeds)
            self._ready[key].extend(drawn)
            self._drawn[key] += count
        sample = self._ready[key].popleft()
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(sample.text or " "),  # DSPy takes an empty reply for a failure
            finish_reason="length" if sample.truncated else "stop",
            usage=Usage(input_tokens=sample.prompt_tokens, output_tokens=sample.generated_tokens),
        )

    @abstractmethod
    def sample(
        self, system: str, demos: Sequence[Demo], query: str, *, temperature: float, limit: int, seeds: Sequence[int]
    ) -> list[Reply]:
        """A completion of at most `limit` tokens for each seed."""


class LMEngine(Engine):
    """A local language model. `report` logs each request that its window cuts."""

    def __init__(
        self,
        lm: LM,
        *,
        seed: int,
        fan_out: int = 1,
        batch_tokens: int = 16384,
        report: Callable[..., None] = lambda **event: None,
    ) -> None:
        super().__init__(seed=seed, fan_out=fan_out)
        self.lm, self.batch_tokens, self.report = lm, batch_tokens, report
        self.name = f"local/{lm.spec.path}"

    def sample(
        self, system: str, demos: Sequence[Demo], query: str, *, temperature: float, limit: int, seeds: Sequence[int]
    ) -> list[Reply]:
        asked = render(self.lm, system, query, demos, reserve=limit)
        if asked.cut_tokens or asked.cut_demos:
            self.report(event="request cut", tokens=asked.cut_tokens, demos=asked.cut_demos)
        completions = generate(
            self.lm,
            [asked.ids] * len(seeds),
            max_new_tokens=limit,
            temperature=temperature,
            seeds=seeds,
            batch_tokens=self.batch_tokens,
        )
        return [Reply(each.text, each.prompt_tokens, each.generated_tokens, each.truncated) for each in completions]


class ServerEngine(Engine):
    """A language model behind a server; the samples of a request are drawn in parallel.

    Calls are counted before they are made, so that none exceeds the budget. Tokens are counted from the replies'
    `usage`. A server's samples are not reproducible, whatever the seeds.
    """

    def __init__(self, server: ProposerServer, *, budget: Budget, seed: int, fan_out: int = 1) -> None:
        super().__init__(seed=seed, fan_out=fan_out)
        self.server, self.budget = server, budget
        self.name = f"{PROPOSER}/server"  # not the model's name: DSPy has special rules for some

    def sample(
        self, system: str, demos: Sequence[Demo], query: str, *, temperature: float, limit: int, seeds: Sequence[int]
    ) -> list[Reply]:
        messages = [{"role": "system", "content": system}] if system else []
        for asked, answered in demos:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": query})
        self._count(lm_calls=len(seeds))
        ask = partial(self.server.chat, messages, temperature=temperature, max_tokens=limit)
        with ThreadPoolExecutor(max_workers=min(len(seeds), SIDE_BY_SIDE)) as threads:
            replies = list(threads.map(lambda seed: ask(seed=seed), seeds))
        self._count(
            prompt_tokens=sum(each.prompt_tokens for each in replies),
            generated_tokens=sum(each.generated_tokens for each in replies),
        )
        return replies

    def _count(self, **counts: int) -> None:
        self.budget.by_model.setdefault(PROPOSER, ModelUse()).usage.add(counts)
        self.budget.add(**counts)


def proposer_client(lab: Lab, *, temperature: float, max_tokens: int, fan_out: int = 1) -> dspy.LM:
    """The client that proposes prompts: the generator, or the server that the config names instead.

    The generator's samples derive from the lab's stream `proposals`. A server's samples are not reproducible, and the
    fit's log says so. Make one client per fit, because a second one draws the same samples again. For another
    temperature use `client.copy(temperature=...)`.

    Args:
        lab: its budget counts every call.
        temperature: sampling temperature.
        max_tokens: maximum length of a sample in tokens.
        fan_out: how often a request is sampled at once; set it to the number of candidates that are requested.
    """
    return proposer_engine(lab, fan_out=fan_out).client(temperature=temperature, max_tokens=max_tokens)


def proposer_engine(lab: Lab, *, fan_out: int = 1) -> Engine:
    """The engine behind `proposer_client`."""
    seed = lab.stream("proposals")
    if lab.proposer is not None:
        return ServerEngine(lab.proposer, budget=lab.budget, seed=seed, fan_out=fan_out)
    return LMEngine(lab.need_generator(), seed=seed, fan_out=fan_out, batch_tokens=lab.batch_tokens, report=lab.log)


def _text(parts: Iterable[Any]) -> str:
    return "".join(part.text for part in parts)
