"""What fit and evaluation share (Ground), and what a method is given to fit with (Lab)."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.errors import UserError, suggest
from metatuner.harness.benchmarks import Benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.policy import Query, Response
from metatuner.harness.proposer import ProposerServer
from metatuner.harness.rows import Row

if TYPE_CHECKING:
    from metatuner.lm import LM, Adapt

Demo = tuple[str, str]
"""A demonstration: a query and the answer to imitate."""


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from names and numbers, the same on every machine."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def to_query(row: Row) -> Query:
    """The row as a policy sees it: without its answer."""
    return Query(row.id, row.benchmark, row.query)


@dataclass
class Ground:
    """The models and the benchmarks' decoding rules: how any prompt and query become an answer, the same for all."""

    actor: "LM"
    generator: "LM | None"
    benchmarks: Mapping[str, Benchmark]
    batch_tokens: int = 16384
    """Padded tokens a generation batch may hold, in whatever way these models (and those made of them) are asked."""

    def __post_init__(self) -> None:
        for role in ("actor", "generator"):
            if (lm := getattr(self, role)) is not None:
                setattr(self, role, replace(lm, batch_tokens=self.batch_tokens))

    def benchmark(self, name: str) -> Benchmark:
        """A benchmark of this ground by id."""
        if name not in self.benchmarks:
            raise UserError(f"benchmark {name!r} is not part of this cell; {suggest(name, self.benchmarks)}")
        return self.benchmarks[name]

    def need_generator(self) -> "LM":
        """The generator, or an error that says where to name one."""
        if self.generator is None:
            raise UserError("this method needs a generator; name one in the preset under models.generators")
        return self.generator

    def answer(
        self,
        queries: Sequence[Query],
        prompts: str | Sequence[str],
        *,
        demos: Sequence[Sequence[Demo]] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        adapt: "Adapt | None" = None,
        actor: "LM | None" = None,
    ) -> list[Response]:
        """Ask the actor: one answer a query, batched by length.

        Args:
            prompts: one prompt for all queries, or one each.
            demos: demonstrations of each query, oldest first.
            temperature: 0 decodes greedily; above, `seeds` gives each query's own random stream.
            adapt: per-query adaptation of the actor (see `metatuner.lm.generate`); receives indices into `queries`.
            actor: another model in the actor's place (e.g. with an adapter).
        """
        from metatuner.lm import generate, render

        lm = actor or self.actor
        prompts = [prompts] * len(queries) if isinstance(prompts, str) else list(prompts)
        shots = [()] * len(queries) if demos is None else demos
        responses: list[Response | None] = [None] * len(queries)
        for name in dict.fromkeys(query.benchmark for query in queries):
            benchmark = self.benchmark(name)
            chosen = [i for i, query in enumerate(queries) if query.benchmark == name]
            limit = benchmark.max_new_tokens
            inputs = [render(lm, prompts[i], queries[i].text, shots[i], reserve=limit) for i in chosen]
            completions = generate(
                lm,
                [rendered.ids for rendered in inputs],
                max_new_tokens=limit,
                stops=benchmark.stops,
                temperature=temperature,
                seeds=None if seeds is None else [seeds[i] for i in chosen],
                batch_tokens=self.batch_tokens,
                adapt=None if adapt is None else _shifted(adapt, chosen),
            )
            for i, rendered, completion in zip(chosen, inputs, completions, strict=True):
                responses[i] = Response(
                    prompt=prompts[i],
                    completion=completion.text,
                    prompt_tokens=completion.prompt_tokens,
                    completion_tokens=len(completion.ids),
                    truncated=completion.truncated,
                    cut_tokens=rendered.cut_tokens,
                    cut_demos=rendered.cut_demos,
                )
        return [response for response in responses if response is not None]

    def rewrite(
        self,
        queries: Sequence[Query],
        prompts: str | Sequence[str],
        *,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        max_new_tokens: int = 64,
        generator: "LM | None" = None,
    ) -> list[str]:
        """Ask the generator to rewrite a prompt for each query (G(p, x) of the paper)."""
        from metatuner.lm import generate, render_rewrite

        lm = generator or self.need_generator()
        prompts = [prompts] * len(queries) if isinstance(prompts, str) else list(prompts)
        inputs = [
            render_rewrite(lm, prompt, query.text, reserve=max_new_tokens).ids
            for prompt, query in zip(prompts, queries, strict=True)
        ]
        completions = generate(
            lm,
            inputs,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=seeds,
            batch_tokens=self.batch_tokens,
        )
        return [completion.text for completion in completions]


def _shifted(adapt: "Adapt", chosen: Sequence[int]) -> "Adapt":
    return lambda rows: adapt([chosen[row] for row in rows])


@dataclass
class Lab(Ground):
    """What a method is given. It has no handle on the tune and test splits."""

    train: Sequence[Row] = ()
    dev: Sequence[Row] = ()
    """Rows for choices inside the fit, disjoint from train."""
    trained_on: tuple[str, ...] = ()
    generator_name: str = ""
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    workdir: Path = Path(".")
    """A scratch folder, removed after the fit."""
    prerequisites: Mapping[str, Path] = field(default_factory=dict)
    log_line: Callable[[str], None] = lambda line: None
    proposer: ProposerServer | None = None
    """Asked for prompts in the generator's place, by methods that ask one (see `dspy_bridge.proposer_client`)."""
    _start: float = field(default_factory=time.monotonic)

    def initial_prompt(self, where: Row | Query | str) -> str:
        """p~ of a row's (or query's, or named) benchmark."""
        return self.benchmark(where if isinstance(where, str) else where.benchmark).initial_prompt

    def reward(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float]:
        """The primary metric of each response, 0 to 1."""
        return self.reward_texts(rows, [response.completion for response in responses])

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        """The primary metric of each completion, 0 to 1."""
        rewards = [0.0] * len(rows)
        for name in dict.fromkeys(row.benchmark for row in rows):
            benchmark = self.benchmark(name)
            chosen = [i for i, row in enumerate(rows) if row.benchmark == name]
            extracted = [benchmark.extract(completions[i]) for i in chosen]
            for i, scored in zip(chosen, benchmark.score_all(extracted, [rows[i] for i in chosen]), strict=True):
                rewards[i] = scored.metrics[benchmark.primary]
        return rewards

    def stream(self, name: str) -> int:
        """An integer seed for one named use.

        It derives from the train benchmarks, the generator and the seed, not from the method: variants of a method that
        draw from the same stream are paired.
        """
        return derive_seed("+".join(self.trained_on), self.generator_name, self.seed, name)

    def random(self, name: str) -> random.Random:
        """A random generator for one named use; see `stream`."""
        return random.Random(self.stream(name))

    def required(self, method: str) -> Path:
        """The folder of the saved policy of a method named in `requires`."""
        if method not in self.prerequisites:
            raise UserError(f"{method!r} was not fitted before; name it in the method's `requires`")
        return self.prerequisites[method]

    def log(self, **event: Any) -> None:
        """Write one JSON line to the fit's training log (no times: the log is the same in every run)."""
        self.log_line(json.dumps(event, ensure_ascii=False, sort_keys=True))
