"""The bars of a nano world: what its models must show so that comparing methods in it is meaningful.

Everything is chosen on dev rows and measured on the audit draw. Nothing else uses the audit draw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import cos, pi
from pathlib import Path
from random import Random
from statistics import mean
from typing import cast

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from metatuner.files import write_json, write_text
from metatuner.harness.benchmarks import Benchmark, load_rows
from metatuner.harness.rows import Row
from metatuner.lm import LM, ModelSpec, completion_ids, completion_loss, generate, load_lm, render, render_rewrite
from metatuner.nano.constants import constants_hash
from metatuner.nano.instructions import FAMILIES, instruction
from metatuner.nano.problems import BENCHMARKS, KINDS, as_asked
from metatuner.nano.world import World

ROWS = 128
"""Number of train rows, and of dev rows, from the start of the train pool; fewer if the audit draw is smaller."""
AUDIT_ROWS = 300
WORDINGS = 2
"""Wordings tried per reasoning family."""
ROLLOUTS, ROLLOUT_ROWS, TEMPERATURE = 8, 40, 1.0
SHOTS = (2, 4)
NEW_TOKENS, NEW_TOKENS_UNTRAINED = 48, 4
"""Maximum tokens of a completion. The second is for models with initial weights, which would never stop."""
WINDOW = 1024
RATES, EPOCHS, BATCH, RANK = (3e-3, 8e-3, 2e-2), 6, 16, 8
"""Fine-tuning: the learning rates to try, epochs, batch size and LoRA rank."""
STANDING = (
    "Prompts, per-query prompts and parameters each carry a signal here because the world was made so: what it splits "
    "between them favours hybrids by construction. Its rankings are no evidence about the paper."
)

Prompts = str | Sequence[str]


@dataclass(frozen=True)
class Bar:
    """One requirement and what was measured, in percent of the primary metric."""

    benchmark: str
    name: str
    measured: float
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool:
        """Whether the measured value lies in the range, both ends included."""
        return (self.low is None or self.measured >= self.low) and (self.high is None or self.measured <= self.high)


@dataclass
class _Bench:
    """One benchmark with its models and draws."""

    benchmark: Benchmark
    actor: LM
    generator: LM
    train: list[Row]
    dev: list[Row]
    audit: list[Row]
    new_tokens: int

    def scores(
        self, prompts: Prompts, rows: Sequence[Row], demos: Sequence[tuple[str, str]] = (), actor: LM | None = None
    ) -> list[float]:
        """The primary metric, 0 or 1, of greedy answers to each row; one prompt for all rows or one per row."""
        lm = actor or self.actor
        told = [prompts] * len(rows) if isinstance(prompts, str) else prompts
        inputs = [
            render(lm, prompt, row.query, demos, reserve=self.new_tokens).ids
            for prompt, row in zip(told, rows, strict=True)
        ]
        answers = generate(lm, inputs, max_new_tokens=self.new_tokens)
        scored = self.benchmark.score_all(
            [self.benchmark.extract(answer.text, row) for answer, row in zip(answers, rows, strict=True)], rows
        )
        return [one.metrics[self.benchmark.primary] for one in scored]


def measure(
    world: World,
    *,
    rows: Path,
    actor: Path,
    generator: Path,
    out: Path,
    benchmarks: Sequence[str] = BENCHMARKS,
    trained: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[Bar]:
    """Measure the bars and write `out/world.json` and `out/world.md`; returns the bars.

    Args:
        rows: folder of raw rows, as `write_rows` leaves it: `<benchmark>/{train,audit}.jsonl`.
        actor, generator: model folders, as `pretrain` leaves them.
        benchmarks: names of those to measure.
        trained: False for models with initial weights; their report says that the bars do not apply.
    """
    actor_lm, generator_lm = (load_lm(ModelSpec(str(path), window=WINDOW)) for path in (actor, generator))
    new_tokens = NEW_TOKENS if trained else NEW_TOKENS_UNTRAINED
    measured: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for name in benchmarks:
        benchmark = as_asked(name)
        audit = load_rows(benchmark, rows / name / "audit.jsonl")[:AUDIT_ROWS]
        pool = load_rows(benchmark, rows / name / "train.jsonl")
        counts[name] = len(audit)
        size = min(ROWS, len(audit), len(pool) // 2)
        train, dev = pool[:size], pool[size : 2 * size]
        bench = _Bench(benchmark, actor_lm, generator_lm, train, dev, audit, new_tokens)
        measured[name] = _measure(bench, world)
        if progress:
            progress(f"{name}: " + ", ".join(f"{what} {value:.1f}" for what, value in measured[name].items()))
    bars = judge(measured)
    record = {
        "world": asdict(world),
        "constants": constants_hash(),
        "trained": trained,
        "audit_rows": counts,
        "measured": measured,
        "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
        "met": all(bar.met for bar in bars),
    }
    write_json(out / "world.json", record)
    write_text(out / "world.md", report(world, bars, trained, counts))
    return bars


def _measure(bench: _Bench, world: World) -> dict[str, float]:
    """Percent scores of one benchmark, each rounded to two decimals."""
    initial = bench.benchmark.initial_prompt
    random = Random(f"bank {bench.benchmark.id}")
    bank = [initial, *(instruction(random, family, bench.benchmark.id) for family in FAMILIES for _ in range(WORDINGS))]
    on_dev = {prompt: bench.scores(prompt, bench.dev) for prompt in bank}
    best = max(bank, key=lambda prompt: sum(on_dev[prompt]))
    best_for = {
        kind: max(bank, key=lambda p: sum(s for s, row in zip(on_dev[p], bench.dev, strict=True) if row.kind == kind))
        for kind in KINDS[bench.benchmark.id]
    }
    demos = [(row.query, row.target) for row in bench.train]
    shots = max(SHOTS, key=lambda count: sum(bench.scores(initial, bench.dev, demos[:count])))
    found = {
        "zero_shot": bench.scores(initial, bench.audit),
        "best_prompt": bench.scores(best, bench.audit),
        "best_prompt_per_kind": bench.scores([best_for[row.kind] for row in bench.audit], bench.audit),
        "few_shot": bench.scores(initial, bench.audit, demos[:shots]),
        "sft": _sft(bench, world),
        "mixed_rollouts": _mixed_rollouts(bench, world),
    }
    return {name: round(100 * mean(scores), 2) for name, scores in found.items()}


def _mixed_rollouts(bench: _Bench, world: World) -> list[float]:
    """1 for each audit query with both right and wrong answers under its sampled prompts, else 0.

    It uses the first `ROLLOUT_ROWS` audit queries. The generator writes the prompts.
    """
    rows = [row for row in bench.audit[:ROLLOUT_ROWS] for _ in range(ROLLOUTS)]
    streams = Random(f"{world.seed} rollouts {bench.benchmark.id}")
    inputs = [
        render_rewrite(bench.generator, bench.benchmark.initial_prompt, row.query, reserve=bench.new_tokens).ids
        for row in rows
    ]
    written = generate(
        bench.generator,
        inputs,
        max_new_tokens=bench.new_tokens,
        temperature=TEMPERATURE,
        seeds=[streams.getrandbits(31) for _ in rows],
    )
    scores = bench.scores([completion.text for completion in written], rows)
    groups = [scores[start : start + ROLLOUTS] for start in range(0, len(scores), ROLLOUTS)]
    return [float(0 < sum(group) < ROLLOUTS) for group in groups]


def _sft(bench: _Bench, world: World) -> list[float]:
    """Audit scores under the initial prompt after LoRA fine-tuning at the learning rate that is best on dev."""
    initial = bench.benchmark.initial_prompt
    base = bench.actor.model
    examples = [
        (render(bench.actor, initial, row.query).ids, completion_ids(bench.actor, row.target)) for row in bench.train
    ]
    best: tuple[float, list[float]] = (-1.0, [])
    for rate in RATES:
        torch.manual_seed(world.seed)
        model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
        tuned = replace(bench.actor, model=cast(PreTrainedModel, model))
        try:
            _fine_tune(tuned, examples, rate, Random(f"{world.seed} sft"))
            reached = sum(bench.scores(initial, bench.dev, actor=tuned))
            if reached > best[0]:
                best = reached, bench.scores(initial, bench.audit, actor=tuned)
        finally:
            model.unload()
            base.requires_grad_(True)
    return best[1]


def _fine_tune(lm: LM, examples: list[tuple[list[int], list[int]]], rate: float, random: Random) -> None:
    parameters = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    batches: list[list[tuple[list[int], list[int]]]] = []
    for _ in range(EPOCHS):
        order = random.sample(examples, len(examples))
        batches += [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    lm.model.train()
    for step, batch in enumerate(batches):
        warm = min(1.0, (step + 1) / (0.1 * len(batches)))
        optimizer.param_groups[0]["lr"] = rate * warm * 0.5 * (1 + cos(pi * step / len(batches)))
        completion_loss(lm, batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    lm.model.eval()


def judge(measured: dict[str, dict[str, float]]) -> list[Bar]:
    """The bars for measured percentages, keyed by benchmark and by the names that `measure` uses."""
    bars = []
    for name, got in measured.items():
        zero = got["zero_shot"]
        bars += [
            Bar(name, "zero-shot", zero, 15, 50),
            Bar(name, "best single prompt over zero-shot", round(got["best_prompt"] - zero, 2), 10),
            Bar(name, "SFT over zero-shot", round(got["sft"] - zero, 2), 10 if name == "hotpotqa" else 20),
            Bar(name, "SFT", got["sft"], None, 95),
            Bar(name, "queries with mixed rollouts", got["mixed_rollouts"], 40),
            Bar(name, "few-shot over zero-shot", round(got["few_shot"] - zero, 2), -3),
        ]
    gains = sorted((got["best_prompt_per_kind"] - got["best_prompt"] for got in measured.values()), reverse=True)
    if len(gains) > 1:
        bars.append(Bar("second best", "best prompt per kind over best single", round(gains[1], 2), 5))
    return bars


def report(world: World, bars: Sequence[Bar], trained: bool, counts: Mapping[str, int]) -> str:
    """The bars as a page of Markdown; `counts` are the audit rows of each benchmark."""
    failed = sum(not bar.met for bar in bars)
    if not trained:
        verdict = "The models have their initial weights: the bars do not apply."
    elif failed:
        verdict = f"**{failed} of {len(bars)} bars are missed.**"
    else:
        verdict = f"All {len(bars)} bars are met."
    lines = [
        "# The nano world",
        "",
        f"World seed {world.seed}{', null world' if world.null else ''}; constants `{constants_hash()}`. {verdict}",
        "",
        STANDING,
        "",
        "In percent (points, for differences) of each benchmark's primary metric, on the audit draw: "
        f"{', '.join(f'{name} {count} rows' for name, count in counts.items())}; mixed rollouts on {ROLLOUT_ROWS}.",
        "",
        "| benchmark | bar | required | measured | |",
        "|---|---|---|---|---|",
    ]
    for bar in bars:
        lines.append(
            f"| {bar.benchmark} | {bar.name} | {_range(bar)} | {bar.measured:.1f} | {'met' if bar.met else 'missed'} |"
        )
    return "\n".join(lines) + "\n"


def _range(bar: Bar) -> str:
    if bar.low is None:
        return f"<= {bar.high:g}"
    return f">= {bar.low:g}" if bar.high is None else f"{bar.low:g} to {bar.high:g}"
