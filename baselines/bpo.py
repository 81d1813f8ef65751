"""BPO: a rewriter in front of the untouched actor, trained on pairs of the initial prompt and a better one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from metatuner import progress
from metatuner.harness.ground import Ground
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, Positive, Share, make_settings
from metatuner.harness.policy import Policy, register_policy
from metatuner.harness.query import Prepared, Query, to_query
from metatuner.harness.rows import Row
from metatuner.hashing import derive_seed

if TYPE_CHECKING:
    from metatuner.lm import LM

CHUNK = 64
"""Train rows per chunk. Rollouts of a chunk are made together; the budget is checked between chunks."""


@dataclass(frozen=True)
class Settings:
    """Settings of BPO. "(warm-up)" marks defaults of MetaTuner's warm-up, so that both rewriters are trained alike."""

    rollouts: Count = 8
    """Rewrites sampled per train row, from which a pair is found (warm-up)."""
    rollout_temperature: Positive = 1.0
    """Sampling temperature of these rewrites (warm-up)."""
    shrink: Positive = 2.0
    """A rewrite cannot be a target if the initial prompt has more than this many times its words (thu-coai/BPO)."""
    grow: Positive = 6.0
    """A rewrite cannot be a target if it has more than this many times the initial prompt's words (thu-coai/BPO)."""
    trainable: Literal["lora", "full"] = "lora"
    """Which weights of the generator are trained. `lora`: a LoRA on all linear layers (warm-up). `full`: all weights,
    as in the paper."""
    rank: Count = 16
    """Rank of the LoRA; its alpha is twice the rank (warm-up). Not used with `full`."""
    learning_rate: Positive = 1e-4
    """Peak learning rate of AdamW (warm-up). The paper has 2e-5 for all weights."""
    epochs: Count = 3
    """Passes over the pairs, as in the paper."""
    batch_size: Count = 16
    """Pairs per optimizer step (warm-up)."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises, as in the paper. It then falls linearly to 0."""
    temperature: Positive = 0.6
    """Sampling temperature of the rewrites under which queries are answered (thu-coai/BPO)."""
    top_p: Positive = 0.9
    """These rewrites are sampled from the likeliest tokens that together reach this probability (thu-coai/BPO)."""
    prompt_tokens: Count = 128
    """Maximum length of a rewrite in tokens (warm-up)."""


class BPO(Method):
    """The fine-tuned generator writes a prompt per query; the actor is not changed.

    It does not use DSPy, because DSPy's programs have one instruction for all queries.
    """

    name = "bpo"
    title = "BPO"
    family = "prompt"
    reference = "Cheng et al. 2024, Black-Box Prompt Optimization (arXiv 2311.04155); thu-coai/BPO"
    deviations = (
        "Pairs come from rollouts: the target is a sampled rewrite whose answer scored better than another's; in the "
        "source a commercial model writes it from a critique of a good and a bad response.",
        "What is rewritten is the instruction, given the query; the query itself stays as it is. The filter on lengths "
        "therefore compares instructions.",
        "The generator is trained by LoRA unless `trainable: full`; the source trains all weights of a 7B model.",
    )
    Settings = Settings
    uses_generator = True

    def skip(self, lab: Lab) -> str | None:
        return "no generator to train as a rewriter" if lab.generator is None else None

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        rollouts, trained = s.rollouts * rows.train, s.epochs * shares.mixed * rows.train
        counted = Sequences(answers=rollouts, rewrites=rollouts, generator_trained=trained)
        return Loop(counted, writes_prompts=True, generator=s.trainable, generator_rank=s.rank, batch=s.batch_size)

    def fit(self, lab: Lab) -> "RewriterPolicy":
        """Find pairs on `lab.train` and train on them; if there are none, the generator stays as it is."""
        from baselines.shared.bpo_rewriter import to_train, train
        from metatuner.lm import completion_ids, render_rewrite

        settings: Settings = self.settings
        generator = lab.need_generator()
        pairs = self._pairs(lab)
        limit = settings.prompt_tokens
        encoded = [
            (
                render_rewrite(generator, lab.initial_prompt(row), row.query, reserve=limit).ids,
                completion_ids(generator, rewrite)[:limit],
            )
            for row, rewrite in pairs
        ]
        to_train(generator, settings.trainable, settings.rank, lab.stream("adapter"))
        train(
            lab,
            generator,
            encoded,
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            warmup=settings.warmup,
            seed=lab.stream("batches"),
        )
        return RewriterPolicy(lab, generator, settings, lab.stream("answers"))

    def _pairs(self, lab: Lab) -> list[tuple[Row, str]]:
        """Train rows, each with the rewrite that is its target."""
        from baselines.shared.budget import affordable

        settings: Settings = self.settings
        samples, draws = lab.random("rollouts"), lab.random("ties")
        pairs: list[tuple[Row, str]] = []
        rewards: list[float] = []
        for start in progress.each(range(0, len(lab.train), CHUNK), "chunks of rollouts"):
            rows = [row for row in lab.train[start : start + CHUNK] for _ in range(settings.rollouts)]
            calls = len(rows)
            if not affordable(lab, answers=calls, proposals=calls, proposal_tokens=settings.prompt_tokens):
                lab.log(event="budget", rows=start)
                break
            rewrites = lab.rewrite(
                [to_query(row) for row in rows],
                [lab.initial_prompt(row) for row in rows],
                temperature=settings.rollout_temperature,
                seeds=[samples.getrandbits(63) for _ in rows],
                max_new_tokens=settings.prompt_tokens,
            )
            scores = _scores(lab, rows, rewrites)
            rewards += scores
            for first in range(0, len(rows), settings.rollouts):
                part = slice(first, first + settings.rollouts)
                row, place = rows[first], draws.random()  # drawn for every row, so that rows are independent
                best = targets(
                    lab.initial_prompt(row), rewrites[part], scores[part], shrink=settings.shrink, grow=settings.grow
                )
                if best:
                    pairs.append((row, best[int(place * len(best))]))
        lab.log(event="pairs", pairs=len(pairs), rollouts=len(rewards), reward=round(fmean(rewards or [0.0]), 5))
        return pairs


def _scores(lab: Lab, rows: Sequence[Row], prompts: Sequence[str]) -> list[float]:
    """The reward of each row's answer under its prompt; equal pairs of row and prompt are answered once."""
    pairs = list(zip(rows, prompts, strict=True))
    asked = list(dict.fromkeys(pairs))
    answers = lab.answer([to_query(row) for row, _ in asked], [prompt for _, prompt in asked])
    known = dict(zip(asked, lab.reward([row for row, _ in asked], answers), strict=True))
    return [known[pair] for pair in pairs]


def targets(
    initial: str, rewrites: Sequence[str], rewards: Sequence[float], *, shrink: float, grow: float
) -> list[str]:
    """The rewrites that may be a row's target: the best of those with a fitting length that beat another rewrite.

    A rewrite that was sampled twice is listed twice. Lengths are in words.
    """
    words = len(initial.split())
    fitting = [
        (reward, text)
        for reward, text in zip(rewards, rewrites, strict=True)
        if reward > min(rewards) and words <= shrink * len(text.split()) and len(text.split()) <= grow * words
    ]
    best = max((reward for reward, _ in fitting), default=0.0)
    return [text for reward, text in fitting if reward == best]


@register_policy("bpo_rewriter")
class RewriterPolicy(Policy):
    """The trained generator samples a prompt per query; each query has its own random stream."""

    def __init__(self, ground: Ground, generator: "LM", settings: Settings, seed: int) -> None:
        """Only the trained parameters of `generator` may require gradients."""
        self.ground, self.generator, self.settings, self.seed = ground, generator, settings, seed

    def write_prompts(self, queries: Sequence[Query]) -> list[str]:
        """A sampled prompt per query. The same text gets the same prompt, whatever the other queries are."""
        from metatuner.lm import generate, render_rewrite

        limit = self.settings.prompt_tokens
        initial = [self.ground.benchmark(query.benchmark).initial_prompt for query in queries]
        completions = generate(
            self.generator,
            [
                render_rewrite(self.generator, prompt, query.text, reserve=limit).ids
                for prompt, query in zip(initial, queries, strict=True)
            ],
            max_new_tokens=limit,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seeds=[derive_seed(self.seed, query.benchmark, query.text) for query in queries],
            batch_tokens=self.ground.batch_tokens,
        )
        return [completion.text for completion in completions]

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        return Prepared(self.write_prompts(queries))

    def write(self, folder: Path) -> dict[str, Any]:
        from baselines.shared.bpo_rewriter import save

        save(self.generator, folder / "generator.safetensors")
        return {"settings": asdict(self.settings), "seed": self.seed}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "RewriterPolicy":
        from baselines.shared.bpo_rewriter import load, to_train

        settings: Settings = make_settings(BPO, state["settings"], str(folder))
        generator = ground.need_generator()
        to_train(generator, settings.trainable, settings.rank, seed=0)
        load(generator, folder / "generator.safetensors")
        return cls(ground, generator, settings, state["seed"])
