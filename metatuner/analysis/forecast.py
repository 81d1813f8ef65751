"""What a preset will cost on models that nothing was metered on: sequences, tokens, GPU-hours, memory and disk.

A method's loop is counted in sequences that pass the actor and the generator; a sequence's tokens, the weights and the
machine's speed are assumptions of `config/forecast.yaml`; FLOP come from tokens as the meter's do
(`metatuner.harness.budget`). The same counts, with the lengths metered there, are set against a finished run.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from metatuner.analysis.loops import COUNTS, Rows, Sequences
from metatuner.errors import UserError, suggest
from metatuner.files import read_json

ASSUMED = Path("config/forecast.yaml")
PER_QUERY = ("bpo", "rewriter_sft", "metatuner_warmup", "metatuner_i", "metatuner_j")
"""Methods that write a prompt for each query they answer."""


# ---- lengths, weights, machine ------------------------------------------------------------------------------------


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
        h, i, k = self.hidden, self.intermediate, self.keys
        return self.layers * rank * (4 * h + 2 * (h + k) + 3 * (h + i))


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
    """`config/forecast.yaml`."""

    models: dict[str, Shape]
    tokens: dict[str, Any]
    gpu: GPU

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
            return TypeAdapter(cls).validate_python(told)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: key {key!r}: {first['msg']}; give it the keys of {ASSUMED}") from None

    def shape(self, model: str) -> Shape:
        if model not in self.models:
            raise UserError(f"{ASSUMED}: no shape of model {model!r} under `models`; {suggest(model, self.models)}")
        return self.models[model]

    def lengths(self, benchmark: str) -> Lengths:
        if benchmark not in self.tokens:
            raise UserError(f"{ASSUMED}: no lengths of benchmark {benchmark!r} under `tokens`; add them")
        mine, prompt = self.tokens[benchmark], self.tokens["prompt"]
        return Lengths(
            asked=prompt + mine["query"],
            target=mine["target"],
            answer=mine["answer"],
            request=self.tokens["rewrite_request"] + prompt + mine["query"],
            rewrite=self.tokens["rewrite"],
            demo=mine["query"] + mine["target"],
        )


@dataclass(frozen=True)
class Tokens:
    """What one model reads, writes and trains on."""

    calls: float = 0.0
    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


DEMONSTRATIONS = {
    "few_shot": "shots",
    "bootstrap_few_shot": "labeled",
    "miprov2": "shots",
    "better_together": "shots",
}
"""By which setting methods show demonstrations before a query."""
REWARDED = ("dpo", "ppo", "grpo", "better_together")
"""Methods that train the actor on its own answers; others train on targets."""


def tokens(method: str, sequences: Sequences, at: Lengths, shots: float = 0.0) -> dict[str, Tokens]:
    """Tokens of actor and generator; `shots` demonstrations stand before each query."""
    asked, s = at.asked + shots * at.demo, sequences
    taught = at.answer if method in REWARDED else at.target
    actor = Tokens(
        calls=s.answers + s.answers_read,
        read=s.answers * asked + s.answers_read * (asked + at.answer),
        written=s.answers * at.answer,
        trained=s.actor_trained * (asked + taught),
    )
    generator = Tokens(
        calls=s.rewrites,
        read=s.rewrites * at.request,
        written=s.rewrites * at.rewrite,
        trained=s.generator_trained * (at.request + at.rewrite),
    )
    return {"actor": actor, "generator": generator}


def flops(use: Tokens, shape: Shape, trained_weights: float) -> dict[str, float]:
    """FLOP of reading, writing and training, as the meter estimates them (arXiv 2001.08361, section 2.1)."""
    return {
        "reads": 2 * shape.body * (use.read + use.written),
        "writes": 2 * shape.head * use.written,
        "trains": use.trained * (4 * (shape.body + shape.head) + 2 * trained_weights),
    }


def hours(use: Tokens, shape: Shape, trained_weights: float, gpu: GPU) -> float:
    """Hours on one accelerator."""
    spent = flops(use, shape, trained_weights)
    writing = 2 * (shape.body + shape.head) * use.written
    seconds = 2 * shape.body * use.read / gpu.reads + writing / gpu.writes + spent["trains"] / gpu.trains
    return seconds / gpu.flops / 3600


# ---- a preset -----------------------------------------------------------------------------------------------------


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


@dataclass
class Line:
    """A method's sums over its jobs."""

    jobs: dict[str, int]
    use: dict[str, Tokens]
    hours: float = 0.0
    disk: float = 0.0
    """Bytes of policies and predictions."""
    bounded: bool = False
    """No count of this method is known: its budget's limits stand for what its fits use."""
    over: tuple[str, ...] = ()
    """Limits that its largest fit is predicted to reach; a search then ends before its last step."""


Limits = Mapping[str, float | None]


def use_of(job: Job, at: Callable[[str], Lengths], limits: Limits) -> tuple[dict[str, Tokens], bool]:
    """Tokens of a job by model, and whether they are the budget's limits for want of a count."""
    total = {"actor": Tokens(), "generator": Tokens()}
    bounded = False
    share = 1 / len(job.benchmarks)
    shots = job.settings.get(DEMONSTRATIONS.get(job.method, ""), 0)
    for benchmark in job.benchmarks:
        lengths = at(benchmark)
        rows = Rows(job.rows.train / share, job.rows.dev / share)  # all benchmarks' together
        if job.kind != "cell":
            if job.method in COUNTS:
                one = tokens(job.method, COUNTS[job.method](job.settings, rows).times(share), lengths, shots)
            else:
                bounded = True
                calls, written = limits.get("lm_calls") or 0, limits.get("generated_tokens") or 0
                trained = limits.get("trained_tokens") or 0
                one = {"actor": Tokens(calls, calls * lengths.asked, written, trained), "generator": Tokens()}
            total = {model: total[model] + one[model] for model in total}
        if job.asked:
            written = job.asked if job.method in PER_QUERY and job.settings.get("prompt_branch", True) else 0
            one = tokens("", Sequences(answers=job.asked, rewrites=written), lengths, shots)
            total = {model: total[model] + one[model] for model in total}
    return total, bounded


def predict(
    jobs: Iterable[Job], *, actor: str, assumed: Assumptions, limits: Limits, dtype_bytes: int
) -> dict[str, Line]:
    """Each method's predicted cost.

    Args:
        jobs: what there is to do.
        actor: path of the actor's model.
        assumed: lengths, shapes and machine.
        limits: the budget of one fit; what is not in it is not limited.
        dtype_bytes: of a weight.
    """
    lines: defaultdict[str, Line] = defaultdict(lambda: Line({}, {"actor": Tokens(), "generator": Tokens()}))
    for job in jobs:
        line = lines[job.method]
        line.jobs[job.kind] = line.jobs.get(job.kind, 0) + 1
        use, bounded = use_of(job, assumed.lengths, limits)
        line.bounded |= bounded
        line.use = {model: line.use[model] + use[model] for model in use}
        shapes = {"actor": assumed.shape(actor)}
        if job.generator:
            shapes["generator"] = assumed.shape(job.generator)
        full = job.settings.get("trainable") == "full"
        for model, shape in shapes.items():
            line.hours += hours(use[model], shape, shape.body if full and model == "generator" else 0.0, assumed.gpu)
        if job.kind == "cell":
            line.disk += job.asked * sum(
                4.5 * (each.asked + each.answer) for each in map(assumed.lengths, job.benchmarks)
            )
        if job.kind == "fit":
            line.disk += dtype_bytes * _policy_weights(job, shapes)
            spent = {
                "lm_calls": use["actor"].calls + use["generator"].calls,
                "generated_tokens": use["actor"].written + use["generator"].written,
                "trained_tokens": use["actor"].trained + use["generator"].trained,
            }
            reached = {name for name, count in spent.items() if not bounded and count > (limits.get(name) or count)}
            line.over = tuple(sorted({*line.over, *reached}))
    return dict(lines)


def _policy_weights(job: Job, shapes: Mapping[str, Shape]) -> float:
    """Weights that a fit leaves on disk."""
    s, actor, generator = job.settings, shapes["actor"], shapes.get("generator")
    if job.method in ("sft", *REWARDED):
        return actor.lora(s.get("rank", 8))
    if generator is None or job.method not in PER_QUERY:
        return 0.0
    rewriter = (
        generator.weights if s.get("trainable") == "full" else generator.lora(s.get("generator_rank", s.get("rank", 8)))
    )
    if job.method == "bpo":
        return rewriter
    tuned = actor.lora(s.get("actor_rank", 8))
    if job.method in ("metatuner_i", "metatuner_j") and s["parameter_branch"] == "query":
        rewriter += _decoder(s, actor, generator)
    return rewriter + tuned


def _decoder(s: Mapping[str, Any], actor: Shape, generator: Shape) -> float:
    """Weights of the parameter decoder: down to the bottleneck and up to a factor, for each site and factor."""
    h, i, k = actor.hidden, actor.intermediate, actor.keys
    sides = {"q_proj": (h, h), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (h, h)}
    sides |= {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}
    chosen = sides if s["target_modules"] == "all-linear" else {name: sides[name] for name in s["target_modules"]}
    shared = 1 if s["decoder"] == "layer_shared" else actor.layers
    each = [
        2 * generator.hidden * s["bottleneck"] + s["bottleneck"] * s["rank"] * sum(side) for side in chosen.values()
    ]
    return shared * sum(each)


def memory_gb(actor: Shape, generator: Shape | None, *, full: bool, batch_tokens: int, dtype_bytes: int) -> float:
    """GB of the largest fit: weights, gradients and AdamW's moments of what is trained, and the cache of a generation
    batch; activations are not in it."""
    models = [actor] + ([generator] if generator else [])
    weights = sum(model.weights for model in models)
    trained = generator.weights if generator and full else 0.0
    cache = max(2 * model.layers * model.keys for model in models) * batch_tokens
    return dtype_bytes * (weights + 3 * trained + cache) / 1e9


# ---- against a finished run ---------------------------------------------------------------------------------------

COUNTED = {"calls": "lm_calls", "read": "prompt_tokens", "written": "generated_tokens", "trained": "trained_tokens"}


def measured_lengths(jobs: Iterable[Job], costs: Mapping[str, Mapping[str, Any]]) -> dict[str, Lengths]:
    """Lengths by benchmark as a finished run metered them, from zero-shot cells and fits of SFT and of the warm-up.

    Args:
        jobs: fits and cells of that run.
        costs: `by_model` of each one's cost.json, by key.
    """
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for job in jobs:
        if job.key not in costs or len(job.benchmarks) > 1:
            continue
        told, here = costs[job.key], found[job.benchmarks[0]]
        actor, generator = told.get("actor", {}), told.get("generator", {})
        if job.kind == "cell" and job.method == "zero_shot":
            here["asked"] = actor["prompt_tokens"] / actor["lm_calls"]
            here["answer"] = actor["generated_tokens"] / actor["lm_calls"]
        if job.kind == "fit" and job.method == "sft" and job.settings["epochs"]:
            here["trained"] = actor["trained_tokens"] / (job.settings["epochs"] * job.rows.train)
        if job.kind == "fit" and job.method == "metatuner_warmup":
            here["request"] = generator["prompt_tokens"] / generator["lm_calls"]
            here["rewrite"] = generator["generated_tokens"] / generator["lm_calls"]
    lengths = {}
    for benchmark, here in found.items():
        if here.keys() >= {"asked", "answer", "trained", "request", "rewrite"}:
            target = here["trained"] - here["asked"]
            lengths[benchmark] = Lengths(
                here["asked"], target, here["answer"], here["request"], here["rewrite"], here["asked"] + target
            )
    return lengths


def against(jobs: Iterable[Job], costs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Predicted over metered for the fits of each method that is known: calls and tokens read, written and trained.

    None where nothing was metered; fits on several benchmarks are left out.
    """
    known = list(jobs)
    lengths = measured_lengths(known, costs)
    predicted: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0.0))
    metered: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0.0))
    for job in known:
        simple = job.kind == "fit" and job.key in costs and len(job.benchmarks) == 1
        if not simple or job.method not in COUNTS or job.benchmarks[0] not in lengths:
            continue
        for each in (job, *job.requires):  # a fit's metered cost has in it that of what it builds on
            use, _ = use_of(each, lengths.__getitem__, {})
            for short in COUNTED:
                predicted[job.method][short] += sum(getattr(model, short) for model in use.values())
        for short, name in COUNTED.items():
            metered[job.method][short] += sum(each.get(name, 0) for each in costs[job.key].values())
    return {
        method: {short: predicted[method][short] / count if count else None for short, count in counts.items()}
        for method, counts in metered.items()
        if any(counts.values())
    }


def read_costs(root: Path) -> dict[str, Mapping[str, Any]]:
    """What fits and cells of a finished run used of each model, by key."""
    found = {}
    for path in sorted(root.glob("fits/*/cost.json")) + sorted(root.glob("cells/*/cost.json")):
        found[path.parent.name] = read_json(path, "remove its folder and run again")["by_model"]
    return found


# ---- in words -----------------------------------------------------------------------------------------------------


def describe(lines: Mapping[str, Line], assumed: Assumptions, largest_gb: float, downloads_gb: float) -> str:
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
    gpu = assumed.gpu
    short = largest_gb > gpu.memory_gb
    table += [
        f"Assumed, not measured ({ASSUMED}): lengths, weights, {gpu.name} at {gpu.flops / 1e12:.0f} TFLOP a second,",
        f"of which reading reaches {gpu.reads:.0%}, writing {gpu.writes:.0%} and training {gpu.trains:.0%}.",
        f"Memory: {largest_gb:.0f} GB for weights, optimizer and cache of the largest fit, without activations"
        + (f"; more than one {gpu.name} has." if short else "."),
        f"Disk: models {downloads_gb:.0f} GB; GB above are policies and predictions before `keep` removes weights.",
        "Trials are those of a search from nothing (`tune`), which stored winners spare.",
    ]
    if any(line.bounded for line in lines.values()):
        table.append("* nothing is known of the method's loop: the budget's limits stand for each of its fits.")
    for method, line in sorted(lines.items()):
        if line.over:
            table.append(f"! {method} reaches its budget before its settings are through: {', '.join(line.over)}.")
    return "\n".join(table)


def describe_check(ratios: Mapping[str, Mapping[str, float | None]], root: Path) -> str:
    """How the counts compare with a finished run's meter."""
    table = [
        f"Predicted over metered in {root}, with the lengths metered there:",
        f"{'method':<20}{'calls':>8}{'read':>8}{'written':>9}{'trained':>9}",
    ]
    for method, ratio in sorted(ratios.items()):
        told = {short: "-" if value is None else f"{value:.2f}" for short, value in ratio.items()}
        table.append(f"{method:<20}{told['calls']:>8}{told['read']:>8}{told['written']:>9}{told['trained']:>9}")
    return "\n".join(table)
