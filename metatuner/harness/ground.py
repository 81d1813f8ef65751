"""What fit and evaluation share: the models, and how they answer a query under a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metatuner.errors import UserError, suggest
from metatuner.harness.benchmarks import Benchmark
from metatuner.harness.query import Demo, Query, Response

if TYPE_CHECKING:
    from metatuner.lm import LM, Adapt


@dataclass
class Ground:
    """The models and the benchmarks' decoding rules. Every method gets its answers in this same way."""

    actor: "LM"
    generator: "LM | None"
    benchmarks: Mapping[str, Benchmark]
    batch_tokens: int = 16384
    """Maximum padded tokens per generation batch, for every use of these models and of models made from them."""

    def __post_init__(self) -> None:
        for role in ("actor", "generator"):
            if (lm := getattr(self, role)) is not None:
                setattr(self, role, lm.within(self.batch_tokens))

    def benchmark(self, name: str) -> Benchmark:
        """A benchmark of this ground by id."""
        if name not in self.benchmarks:
            raise UserError(f"benchmark {name!r} is not part of this cell; {suggest(name, self.benchmarks)}")
        return self.benchmarks[name]

    def need_generator(self) -> "LM":
        """The generator; if there is none, an error that says where to name one."""
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
        """Ask the actor: one answer per query, batched by length.

        Args:
            prompts: one prompt for all queries, or one per query.
            demos: demonstrations per query, oldest first.
            temperature: 0 decodes greedily; above 0, `seeds` gives each query its own random stream.
            adapt: per-query adaptation of the actor (see `metatuner.lm.generate`); receives indices into `queries`.
            actor: another model to use instead of the actor (e.g. with an adapter).
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
                    completion_tokens=completion.generated_tokens,
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
