"""What a preset will cost on models that nothing was metered on: sequences, tokens, GPU-hours, memory and disk.

A method's loop is counted in sequences that pass the actor and the generator (`loops`); a sequence's tokens, weights
and the machine's speed are assumptions of `config/forecast.yaml`; FLOP come from tokens as the meter's do
(`metatuner.harness.budget`). The same counts, with the lengths metered there, are set against a finished run.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from metatuner.analysis.loops import COUNTS, Counts, Rows, Sequences, Shares
from metatuner.errors import UserError, suggest
from metatuner.files import read_json

ASSUMED = Path("config/forecast.yaml")
PER_QUERY = ("bpo", "rewriter_sft", "static_lora", "metatuner_warmup", "metatuner_i", "metatuner_j")
"""Methods that write a prompt for each query they answer."""
JOINT = ("static_lora", "metatuner_i", "metatuner_j")
ADAPTERS = ("sft", "dpo", "ppo", "grpo", "better_together")
"""Methods that leave a LoRA on the actor and no more."""
REWARDED = ("dpo", "ppo", "grpo", "better_together")
"""Methods that train the actor on its own answers; others train on targets."""
DEMONSTRATIONS = {"few_shot": "shots", "bootstrap_few_shot": "labeled", "miprov2": "shots", "better_together": "shots"}
"""By which setting methods show demonstrations before a query."""
ADAPTER_BYTES, TRAINED_BYTES = 4, 16
"""Of a weight of a LoRA or of the parameter decoder: on disk, and in training with gradient and AdamW's moments."""


# ---- what is assumed ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Mean tokens on one benchmark."""

    asked: float
    """What the actor reads: p~ or a written prompt, and the query."""
    target: float
    answer: float
    request: float
    """What the generator reads before a rewrite."""
    rewrite: float
    demo: float
    """A demonstration: a query and its target."""


@dataclass(frozen=True)
class Texts:
    """Mean tokens of a benchmark's texts."""

    query: float
    target: float
    answer: float


@dataclass(frozen=True)
class TokenCounts:
    """Mean tokens, as the file has them."""

    prompt: float
    rewrite: float
    rewrite_request: float
    benchmarks: dict[str, Texts]


@dataclass(frozen=True)
class Split:
    """Rows of a published data set."""

    train: int
    test: int


@dataclass(frozen=True)
class Shape:
    """Weights and widths of a language model."""

    body: float
    head: float
    embedding: float
    layers: int
    hidden: int
    intermediate: int
    keys: int

    @property
    def weights(self) -> float:
        return self.body + self.head + self.embedding

    def lora(self, rank: int) -> float:
        """Weights of a LoRA on every linear of the decoder."""
        return self.layers * rank * sum(sum(side) for side in self.linears.values())

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Widths of a layer's linears."""
        h, i, k = self.hidden, self.intermediate, self.keys
        attention = {"q_proj": (h, h), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (h, h)}
        return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


@dataclass(frozen=True)
class GPU:
    """An accelerator, and the shares of its FLOP a second that each kind of work reaches."""

    name: str
    flops: float
    reads: float
    writes: float
    trains: float
    memory_gb: float


@dataclass(frozen=True)
class Assumptions:
    """`config/forecast.yaml`, or another file of its form."""

    models: dict[str, Shape]
    tokens: TokenCounts
    rows: dict[str, Split]
    shares: Shares
    gpu: GPU
    path: Path = ASSUMED

    @classmethod
    def read(cls, path: Path) -> "Assumptions":
        """UserError, with the file and the key, where one is missing or no number."""
        try:
            told = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name a file like {ASSUMED} (--assume)") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path}: no YAML ({' '.join(str(error).split())}); correct it") from None
        try:
            return replace(TypeAdapter(cls).validate_python(told), path=path)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: key {key!r}: {first['msg']}; give it the keys of {ASSUMED}") from None

    def shape(self, model: str) -> Shape:
        """Of a model by its path."""
        if model.startswith("nano:"):
            raise UserError("nano models are predicted from a finished run on them alone; name it (--from)")
        if model not in self.models:
            raise UserError(f"{self.path}: no shape of model {model!r} under `models`; {suggest(model, self.models)}")
        return self.models[model]

    def split(self, benchmark: str) -> Split:
        """Of a benchmark, where a preset takes all rows."""
        if benchmark not in self.rows:
            raise UserError(f"{self.path}: no rows of benchmark {benchmark!r} under `rows`; add them")
        return self.rows[benchmark]

    def lengths(self, benchmark: str) -> Lengths:
        """On a benchmark."""
        if benchmark not in self.tokens.benchmarks:
            raise UserError(f"{self.path}: no lengths of benchmark {benchmark!r} under `tokens.benchmarks`; add them")
        mine, prompt = self.tokens.benchmarks[benchmark], self.tokens.prompt
        return Lengths(
            asked=prompt + mine.query,
            target=mine.target,
            answer=mine.answer,
            request=self.tokens.rewrite_request + prompt + mine.query,
            rewrite=self.tokens.rewrite,
            demo=mine.query + mine.target,
        )


# ---- tokens, FLOP, hours ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens(Counts):
    """What one model reads, writes and trains on."""

    calls: float = 0.0
    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0


Use = dict[str, Tokens]
"""Tokens of `actor` and `generator`."""


def tokens(method: str, s: Sequences, at: Lengths, *, shots: float = 0.0, window: float = float("inf")) -> Use:
    """Tokens of actor and generator.

    Args:
        method: whose sequences they are.
        s: how many.
        at: how long.
        shots: demonstrations before each query, as many as the window takes.
        window: of the actor.
    """
    asked = max(at.asked, min(at.asked + shots * at.demo, window - at.answer))
    taught = at.answer if method in REWARDED else at.target
    actor = Tokens(
        calls=s.answers + s.answers_read,
        read=s.answers * asked + s.answers_read * (asked + at.answer),
        written=s.answers * at.answer,
        trained=s.actor_trained * (asked + taught),
    )
    generator = Tokens(
        calls=s.rewrites + s.drafts,
        read=s.rewrites * at.request + s.drafts,
        written=s.rewrites * at.rewrite + s.draft_tokens,
        trained=s.encoded * at.request + s.generator_trained * (at.request + at.rewrite),
    )
    return {"actor": actor, "generator": generator}


def flops(use: Tokens, shape: Shape, trained_weights: float) -> dict[str, float]:
    """FLOP of reading, writing and training, as the meter estimates them (arXiv 2001.08361, section 2.1)."""
    return {
        "reads": 2 * shape.body * use.read,
        "writes": 2 * (shape.body + shape.head) * use.written,
        "trains": use.trained * (4 * (shape.body + shape.head) + 2 * trained_weights),
    }


def hours(use: Tokens, shape: Shape, gpu: GPU, *, trained_weights: float = 0.0, recomputed: bool = False) -> float:
    """Hours on one accelerator; `recomputed` activations cost another forward pass, which the meter leaves out."""
    spent = flops(use, shape, trained_weights)
    spent["trains"] += recomputed * use.trained * 2 * shape.body
    return sum(spent[kind] / (getattr(gpu, kind) * gpu.flops) for kind in spent) / 3600


# ---- jobs ---------------------------------------------------------------------------------------------------------

Limits = Mapping[str, float | None]
LIMITED = {"lm_calls": "calls", "generated_tokens": "written", "trained_tokens": "trained"}
"""A budget's limits, by what of `Tokens` they hold down."""


@dataclass(frozen=True)
class Job:
    """A fit, a cell, or a trial of a search (a fit and its answers to the tune rows)."""

    kind: str
    """fit, cell or trial."""
    method: str
    settings: Mapping[str, Any]
    benchmarks: tuple[str, ...]
    """What a fit trains on; what a cell answers."""
    generator: str
    """Path of the generator's model; "" for a method that uses none."""
    rows: Rows
    """Of each benchmark."""
    asked: float = 0.0
    """Test or tune rows that are answered."""
    key: str = ""
    requires: tuple["Job", ...] = ()
    """Fits that this one builds on, jobs of their own."""
    limits: Limits = field(default_factory=dict)
    """Of its budget; None, or missing: unlimited."""

    def setting(self, name: str, default: Any = None) -> Any:
        """Its own, or that of a fit it builds on."""
        for values in (self.settings, *(needed.settings for needed in self.requires)):
            if name in values:
                return values[name]
        return default

    @property
    def full(self) -> bool:
        """Whether all weights of the generator are trained."""
        return bool(self.generator and self.setting("trainable") == "full")


def use_of(job: Job, at: Callable[[str], Lengths], shares: Shares, *, window: float = float("inf")) -> Use:
    """Tokens of a job by model; of a fit whose method is not counted, what its budget allows at most."""
    total = {"actor": Tokens(), "generator": Tokens()}
    shots = job.setting(DEMONSTRATIONS.get(job.method, ""), 0)
    share = 1 / len(job.benchmarks)
    rows = Rows(job.rows.train / share, job.rows.dev / share)  # all benchmarks' together
    for benchmark in job.benchmarks:
        lengths, parts = at(benchmark), []
        if job.kind != "cell" and job.method in COUNTS:
            counted = COUNTS[job.method](job.settings, rows, shares).times(share)
            parts.append(tokens(job.method, counted, lengths, shots=shots, window=window))
        elif job.kind != "cell":
            calls, written, trained = (share * (job.limits.get(name) or 0) for name in LIMITED)
            largest = "generator" if job.generator else "actor"
            parts.append({largest: Tokens(calls, calls * lengths.asked, written, trained)})
        if job.asked:
            rewrites = job.asked if job.method in PER_QUERY and job.settings.get("prompt_branch", True) else 0.0
            answered = Sequences(answers=job.asked, rewrites=rewrites)
            parts.append(tokens("", answered, lengths, shots=shots, window=window))
        for part in parts:
            total = {model: total[model] + part.get(model, Tokens()) for model in total}
    return total


@dataclass
class Line:
    """A method's sums over its jobs."""

    jobs: dict[str, int] = field(default_factory=dict)
    use: Use = field(default_factory=lambda: {"actor": Tokens(), "generator": Tokens()})
    hours: float = 0.0
    disk: float = 0.0
    """Bytes of policies and predictions."""
    memory_gb: float = 0.0
    """Of its largest fit."""
    bounded: bool = False
    """No count of this method is known: its budget's limits stand for what its fits use."""
    unlimited: bool = False
    """Nor does its budget bound it, so that nothing stands for its fits."""
    over: tuple[str, ...] = ()
    """Limits that its largest fit would pass; what is predicted is what fits into them."""


def predict(
    jobs: Iterable[Job], *, actor: str, assumed: Assumptions, window: float, batch_tokens: int, dtype_bytes: int
) -> dict[str, Line]:
    """Each method's predicted cost.

    Args:
        jobs: what there is to do.
        actor: path of the actor's model.
        assumed: lengths, shapes and machine.
        window: of the actor.
        batch_tokens: of a generation batch.
        dtype_bytes: of a model's weight.
    """
    lines: defaultdict[str, Line] = defaultdict(Line)
    for job in jobs:
        line = lines[job.method]
        line.jobs[job.kind] = line.jobs.get(job.kind, 0) + 1
        use = use_of(job, assumed.lengths, assumed.shares, window=window)
        if job.kind != "cell" and job.method not in COUNTS:
            line.bounded = True
            line.unlimited |= any(job.limits.get(name) is None for name in LIMITED)
        elif job.kind == "fit":
            spent = {name: sum(getattr(each, short) for each in use.values()) for name, short in LIMITED.items()}
            past = {name: limit / spent[name] for name, limit in job.limits.items() if limit and spent[name] > limit}
            line.over = tuple(sorted({*line.over, *past}))
            use = {model: each.times(min(past.values(), default=1.0)) for model, each in use.items()}
        line.use = {model: line.use[model] + use[model] for model in use}
        shapes = {"actor": assumed.shape(actor)}
        if job.generator:
            shapes["generator"] = assumed.shape(job.generator)
        recomputed = bool(job.setting("gradient_checkpointing") or job.setting("activation_checkpointing"))
        for model, shape in shapes.items():
            trained = shape.body if job.full and model == "generator" else 0.0
            line.hours += hours(use[model], shape, assumed.gpu, trained_weights=trained, recomputed=recomputed)
        if job.kind == "cell":
            at = assumed.lengths(job.benchmarks[0])
            line.disk += job.asked * (BYTES_A_RECORD + BYTES_A_TOKEN * (at.rewrite + at.answer))
        else:
            line.memory_gb = max(line.memory_gb, memory(job, shapes, batch_tokens, dtype_bytes) / 1e9)
        if job.kind == "fit":
            line.disk += _policy_bytes(job, shapes, dtype_bytes)
    return dict(lines)


BYTES_A_RECORD, BYTES_A_TOKEN = 250, 4.5
"""Of a line of predictions.jsonl beside its texts, and of a text."""


def _policy_bytes(job: Job, shapes: Mapping[str, Shape], dtype_bytes: int) -> float:
    """What a fit leaves on disk."""
    actor, generator = shapes["actor"], shapes.get("generator")
    if job.method in ADAPTERS:
        return ADAPTER_BYTES * actor.lora(job.setting("rank", 8))
    if generator is None or job.method not in PER_QUERY:
        return 0.0
    rank = job.setting("rank", 8) if job.method == "bpo" else job.setting("generator_rank", 16)
    rewriter = dtype_bytes * generator.weights if job.full else ADAPTER_BYTES * generator.lora(rank)
    if job.method == "bpo":
        return rewriter
    tuned = ADAPTER_BYTES * actor.lora(job.setting("actor_rank", 8))
    if job.method == "rewriter_sft":
        tuned += ADAPTER_BYTES * actor.lora(job.setting("rank", 8))
    return rewriter + tuned + ADAPTER_BYTES * _decoder(job, actor, generator)


def _decoder(job: Job, actor: Shape, generator: Shape) -> float:
    """Weights of the parameter decoder: down to the bottleneck and up to a factor, for each site and factor.

    Of a static LoRA, its factors.
    """
    s = job.settings
    if job.method not in JOINT or s["parameter_branch"] == "none":
        return 0.0
    sides = actor.linears
    chosen = sides if s["target_modules"] == "all-linear" else {name: sides[name] for name in s["target_modules"]}
    if s["parameter_branch"] == "static":
        return actor.layers * sum(s["rank"] * sum(side) for side in chosen.values())
    down = 2 * generator.hidden * s["bottleneck"]
    each = [down + s["bottleneck"] * s["rank"] * sum(side) for side in chosen.values()]
    return (1 if s["decoder"] == "layer_shared" else actor.layers) * sum(each)


def memory(job: Job, shapes: Mapping[str, Shape], batch_tokens: int, dtype_bytes: int) -> float:
    """Bytes of a fit without its activations: models and copies of them, what is trained with gradient and AdamW's
    moments, and the cache of a generation batch."""
    actor, generator = shapes["actor"], shapes.get("generator")
    held = dtype_bytes * (actor.weights + (generator.weights if generator else 0.0))
    trained = 0.0
    if job.method in ADAPTERS:
        trained += TRAINED_BYTES * actor.lora(job.setting("rank", 8))
    if generator and job.method in ("bpo", "metatuner_warmup", *JOINT):
        # The generator as it was given is held beside one that is trained in full.
        trained += 4 * dtype_bytes * generator.weights if job.full else TRAINED_BYTES * generator.lora(16)
    if generator and job.method in ("metatuner_warmup", *JOINT):
        held += dtype_bytes * actor.body  # the actor with its LoRA merged
        trained += TRAINED_BYTES * (actor.lora(job.setting("actor_rank", 8)) + _decoder(job, actor, generator))
    cache = max(2 * model.layers * model.keys for model in shapes.values()) * batch_tokens * dtype_bytes
    return held + trained + cache


# ---- against a finished run ---------------------------------------------------------------------------------------

COUNTED = {"calls": "lm_calls", "read": "prompt_tokens", "written": "generated_tokens", "trained": "trained_tokens"}
Costs = Mapping[str, Mapping[str, Mapping[str, float]]]
"""`by_model` of cost.json, by key of the fit or cell."""


def read_costs(root: Path) -> dict[str, Mapping[str, Any]]:
    """What fits and cells of a finished run used of each model, by key."""
    found = {}
    for path in sorted(root.glob("fits/*/cost.json")) + sorted(root.glob("cells/*/cost.json")):
        found[path.parent.name] = read_json(path, "remove its folder and run again")["by_model"]
    return found


def measured_lengths(jobs: Iterable[Job], costs: Costs) -> dict[str, Lengths]:
    """Lengths by benchmark as a finished run metered them: from its zero-shot cells, its fits of SFT under p~, and its
    warm-ups."""
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for job in jobs:
        if job.key not in costs or len(job.benchmarks) > 1:
            continue
        actor, generator = (costs[job.key].get(model, {}) for model in ("actor", "generator"))
        here = sums[job.benchmarks[0]]
        if job.kind == "cell" and job.method == "zero_shot":
            here["answers"] += actor["lm_calls"]
            here["asked"] += actor["prompt_tokens"]
            here["answered"] += actor["generated_tokens"]
        if job.kind == "fit" and job.method == "sft" and not job.settings.get("prompts"):
            here["passes"] += job.settings["epochs"] * job.rows.train
            here["trained"] += actor["trained_tokens"]
        if job.kind == "fit" and job.method == "metatuner_warmup" and generator.get("lm_calls"):
            here["rewrites"] += generator["lm_calls"]
            here["requests"] += generator["prompt_tokens"]
            here["rewritten"] += generator["generated_tokens"]
    lengths = {}
    for benchmark, here in sums.items():
        if here["answers"] and here["passes"] and here["rewrites"]:
            asked, trained = here["asked"] / here["answers"], here["trained"] / here["passes"]
            lengths[benchmark] = Lengths(
                asked=asked,
                target=trained - asked,
                answer=here["answered"] / here["answers"],
                request=here["requests"] / here["rewrites"],
                rewrite=here["rewritten"] / here["rewrites"],
                demo=trained,
            )
    return lengths


def against(jobs: Iterable[Job], costs: Costs, shares: Shares) -> dict[str, dict[str, float | None]]:
    """Predicted over metered for fits: calls and tokens read, written and trained, without what they build on.

    None where nothing was metered. Fits on several benchmarks, and methods that use nothing, are left out.
    """
    known = list(jobs)
    lengths = measured_lengths(known, costs)
    predicted: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0.0))
    metered: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0.0))
    for job in known:
        needed = [each.key for each in job.requires]
        there = job.key in costs and all(key in costs for key in needed)
        if job.kind != "fit" or not there or len(job.benchmarks) > 1 or job.benchmarks[0] not in lengths:
            continue
        if job.method not in COUNTS:
            continue
        use = use_of(job, lengths.__getitem__, shares)
        for short, name in COUNTED.items():
            predicted[job.method][short] += sum(getattr(each, short) for each in use.values())
            metered[job.method][short] += _sum(costs[job.key], name) - sum(_sum(costs[key], name) for key in needed)
    return {
        method: {short: predicted[method][short] / count if count else None for short, count in counts.items()}
        for method, counts in metered.items()
        if any(counts.values())
    }


def _sum(by_model: Mapping[str, Mapping[str, float]], name: str) -> float:
    return sum(each.get(name, 0) for each in by_model.values())


# ---- in words -----------------------------------------------------------------------------------------------------


def describe(lines: Mapping[str, Line], assumed: Assumptions, downloads_gb: float) -> str:
    """A text table, the costliest method first, and what is assumed."""
    kinds = ("fit", "cell", "trial")
    columns = {"fits": 6, "cells": 7, "trials": 7, "M calls": 9, "M read": 9, "M written": 10, "M trained": 10}
    columns |= {"GPU-hours": 11, "GB": 8}
    table = [f"{'method':<20}" + "".join(f"{name:>{width}}" for name, width in columns.items())]

    def row(name: str, chosen: list[Line]) -> str:
        counts = [str(sum(line.jobs.get(kind, 0) for line in chosen)) for kind in kinds]
        use = sum((each for line in chosen for each in line.use.values()), Tokens())
        told = [
            f"{use.calls / 1e6:.2f}",
            f"{use.read / 1e6:.0f}",
            f"{use.written / 1e6:.1f}",
            f"{use.trained / 1e6:.1f}",
        ]
        sums = [f"{sum(line.hours for line in chosen):.1f}", f"{sum(line.disk for line in chosen) / 1e9:.1f}"]
        cells = zip((*counts, *told, *sums), columns.values(), strict=True)
        return f"{name:<20}" + "".join(f"{text:>{width}}" for text, width in cells)

    for method, line in sorted(lines.items(), key=lambda each: (-each[1].hours, each[0])):
        table.append(row(f"{method}{' *' if line.bounded else ''}{' !' if line.over else ''}", [line]))
    table.append(row("total", list(lines.values())))
    gpu, shares = assumed.gpu, assumed.shares
    hungry, line = max(lines.items(), key=lambda each: each[1].memory_gb)
    short = f", more than one {gpu.name} has" if line.memory_gb > gpu.memory_gb else ""
    table += [
        f"Assumed, not measured ({assumed.path}): lengths, weights, {gpu.name} at {gpu.flops / 1e12:.0f} TFLOP",
        f"a second, of which reading reaches {gpu.reads:.0%}, writing {gpu.writes:.0%} and training {gpu.trains:.0%}; "
        f"{shares.right:.0%} of answers right, {shares.mixed:.0%} of rows with rollouts of different reward.",
        f"Memory: {line.memory_gb:.0f} GB for a fit of {hungry}, without activations{short}.",
        f"Disk: models {downloads_gb:.0f} GB; GB above are policies and predictions before `keep` removes weights.",
        "Trials are those of a search from nothing (`tune`), with what they build on; stored winners spare them.",
    ]
    if any(line.bounded for line in lines.values()):
        table.append("* nothing is known of the method's loop: the budget's limits stand for each of its fits.")
    for method, line in sorted(lines.items()):
        if line.unlimited:
            table.append(f"* {method}'s budget does not limit all that it may use, so its fits may cost more.")
        if line.over:
            limits = ", ".join(line.over)
            table.append(f"! {method} would pass its budget ({limits}): counted is what fits into it.")
    return "\n".join(table)


def describe_check(ratios: Mapping[str, Mapping[str, float | None]], root: Path) -> str:
    """How the counts compare with a finished run's meter."""
    if not ratios:
        return f"No fit in {root} is of this code and config, so the counts are not compared with a run."
    table = [
        f"Predicted over metered, a fit without what it builds on, in {root}, with the lengths metered there",
        "(from zero-shot's cells, SFT's fits and the warm-up's, whose own lengths so agree by construction):",
        f"{'method':<20}{'calls':>8}{'read':>8}{'written':>9}{'trained':>9}",
    ]
    for method, ratio in sorted(ratios.items()):
        told = {short: "-" if value is None else f"{value:.2f}" for short, value in ratio.items()}
        table.append(f"{method:<20}{told['calls']:>8}{told['read']:>8}{told['written']:>9}{told['trained']:>9}")
    return "\n".join(table)
