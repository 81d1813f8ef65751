"""What a preset will cost on models without metered runs: sequences, tokens, GPU-hours, memory and disk.

Each method counts its own loop in sequences (`harness.loop`). Tokens per sequence, weights and the machine's speed are
assumptions of `config/forecast.yaml`. FLOP are computed from tokens as in the meter (`harness.budget`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from metatuner.cost.assumptions import GPU, Assumptions, Lengths
from metatuner.harness.loop import Counts, Loop, Rows, Sequences, Shape
from metatuner.plan import Fit, Plan

ADAPTER_BYTES, TRAINED_BYTES = 4, 16
"""Bytes per trained weight: on disk, and in training with gradient and AdamW's moments."""
RECORD_BYTES, TOKEN_BYTES = 250, 4.5
"""Bytes per line of predictions.jsonl without its texts, and bytes per token of a text."""


# ---- tokens, FLOP, hours -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens(Counts):
    """What one model reads, writes and trains on."""

    calls: float = 0.0
    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0


Use = dict[str, Tokens]
"""Tokens of `actor` and `generator`."""


def tokens(loop: Loop, s: Sequences, at: Lengths, *, window: float = float("inf")) -> Use:
    """Tokens of actor and generator.

    Args:
        loop: says what stands before a query and what the actor is trained on.
        s: numbers of sequences.
        at: mean lengths of the sequences.
        window: the actor's window.
    """
    asked = max(at.asked, min(at.asked + loop.shots * at.demo, window - at.answer))
    taught = at.answer if loop.own_answers else at.target
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


# ---- jobs ----------------------------------------------------------------------------------------------------------

LIMITED = {"lm_calls": "calls", "generated_tokens": "written", "trained_tokens": "trained"}
"""The limits of a budget, with the field of `Tokens` that each one limits."""


@dataclass(frozen=True)
class Job:
    """A fit, a cell, or a trial of a search (a fit and its answers to the tune rows)."""

    kind: str
    """fit, cell or trial."""
    method: str
    settings: Any
    """The method's typed settings."""
    loop: Loop | None
    """The loop of the fit, on the rows of all its benchmarks together; None: the method does not count it."""
    benchmarks: tuple[str, ...]
    """The benchmarks that a fit trains on, or the benchmark that a cell answers."""
    generator: str
    """Path of the generator's model; "" for a method that uses none."""
    train: float
    """Train rows per benchmark."""
    asked: float = 0.0
    """Number of test or tune rows to answer."""
    key: str = ""
    requires: tuple["Job", ...] = ()
    """Fits that this job builds on; they are jobs of their own."""
    limits: Mapping[str, float | None] = field(default_factory=dict)
    """The limits of its budget; None, or missing: unlimited."""

    @property
    def parts(self) -> list[Loop]:
        """The loops that trained weights of its policy: its own loop, and the loops of required fits that it keeps."""
        own = self.loop or Loop()
        return [own, *(part for needed in self.requires * own.keeps_required for part in needed.parts)]

    @property
    def full(self) -> bool:
        """Whether all weights of the generator are trained."""
        return any(part.generator == "full" for part in self.parts)

    @property
    def recomputed(self) -> bool:
        """Whether activations are computed again in backward passes."""
        names = ("gradient_checkpointing", "activation_checkpointing")
        return any(getattr(each.settings, name, False) for each in (self, *self.requires) for name in names)


def job_of(plan: Plan, assumed: Assumptions, fit: Fit) -> Job:
    """A fit as a job, with the fits that it builds on."""
    sizes = [plan.grid.fit_sizes(name, fit.rows) for name in fit.train]
    train = sum(
        assumed.split(name).train if rows is None else rows for name, (rows, _) in zip(fit.train, sizes, strict=True)
    )
    method = plan.registry[fit.method].cls(fit.settings)
    rows = Rows(train, sum(dev for _, dev in sizes))
    return Job(
        "fit",
        fit.method,
        fit.settings,
        method.loop(rows, assumed.shares),
        fit.train,
        plan.config.models.generators[fit.generator].hub if fit.generator else "",
        train / len(sizes),
        key=fit.key,
        requires=tuple(job_of(plan, assumed, needed) for needed in fit.requires),
        limits=plan.config.budgets[fit.budget].limits(fit.train),
    )


def jobs_of(plan: Plan, assumed: Assumptions) -> list[Job]:
    """Every fit and cell of a preset, every trial of its searches, and the fits that these build on."""
    config = plan.config

    job = partial(job_of, plan, assumed)
    found = {key: job(fit) for key, fit in plan.grid.fits.items()}
    cells = []
    for cell in plan.grid.cells.values():
        test = config.benchmarks[cell.benchmark].sizes.test
        asked = assumed.split(cell.benchmark).test if test is None else test
        cells.append(replace(found[cell.fit.key], kind="cell", benchmarks=(cell.benchmark,), asked=asked, key=cell.key))
    trials = []
    for subject, benchmark in plan.searches.all:
        drawn = plan.searches.trials(subject, benchmark)
        tuning = config.tuning
        again = min(tuning.finalists, len(drawn)) * len(tuning.more_seeds) if tuning.finalists > 1 else 0
        for over in [*drawn, *[drawn[0]] * again]:  # finalists are not known before; they cost what the preset's do
            tried = job(plan.searches.fit(subject, benchmark, over))
            trials.append(replace(tried, kind="trial", asked=config.benchmarks[benchmark].sizes.tune, key=""))
    built_on = {fit.key: fit for benchmark in config.benchmarks for fit in plan.searches.needs(benchmark)}
    trials += [replace(job(fit), kind="trial", key="") for fit in built_on.values()]
    return [*found.values(), *cells, *trials]


def use_of(job: Job, at: Callable[[str], Lengths], *, window: float = float("inf")) -> Use:
    """Tokens of a job by model. Tokens of a fit are left out if its method does not count them."""
    total, share = {"actor": Tokens(), "generator": Tokens()}, 1 / len(job.benchmarks)
    loop = job.loop or Loop()
    for benchmark in job.benchmarks:
        counted = Sequences() if job.kind == "cell" else loop.sequences.times(share)
        answered = Sequences(answers=job.asked, rewrites=job.asked * loop.writes_prompts)
        for part in (
            tokens(loop, counted, at(benchmark), window=window),
            tokens(loop, answered, at(benchmark), window=window),
        ):
            total = {model: total[model] + part[model] for model in total}
    return total


def tflop_of(plan: Plan, assumed: Assumptions, fit: Fit) -> float | None:
    """The predicted compute of a fit with what it builds on, in TFLOP; None if a method does not count its loop."""
    actor = plan.config.models.actor
    job = job_of(plan, assumed, fit)
    if any(each.loop is None for each in _with_needed(job)):
        return None
    return predicted_tflop(job, actor.hub, assumed, actor.window or float("inf"))


def predicted_tflop(job: Job, actor: str, assumed: Assumptions, window: float) -> float:
    """The predicted compute of a job with what it builds on, in TFLOP. What no method counts is left out."""
    total = 0.0
    for each in _with_needed(job):
        shapes = {"actor": assumed.shape(actor)}
        if each.generator:
            shapes["generator"] = assumed.shape(each.generator)
        use = use_of(each, assumed.lengths, window=window)
        for model, shape in shapes.items():
            trained = shape.body if each.full and model == "generator" else 0.0
            total += sum(flops(use[model], shape, trained).values()) / 1e12
    return total


def _with_needed(job: Job) -> list[Job]:
    """A job and the fits that it builds on, each once."""
    found = {job.key: job}
    for needed in job.requires:
        found |= {each.key: each for each in _with_needed(needed)}
    return list(found.values())


# ---- by method -----------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """A method's sums over its jobs."""

    jobs: dict[str, int] = field(default_factory=dict)
    use: Use = field(default_factory=lambda: {"actor": Tokens(), "generator": Tokens()})
    hours: float = 0.0
    disk: float = 0.0
    """Bytes of policies and predictions."""
    memory_gb: float = 0.0
    """Memory of its largest fit."""
    counted: bool = True
    """False: the method does not count its loop, so its fits are not in the sums."""
    over: tuple[str, ...] = ()
    """Limits that its largest fit would pass; the prediction counts what fits into them."""


def predict(
    jobs: Iterable[Job], *, actor: str, assumed: Assumptions, window: float, batch_tokens: int, dtype_bytes: int
) -> dict[str, Line]:
    """Each method's predicted cost.

    Args:
        jobs: the jobs to predict.
        actor: path of the actor's model.
        assumed: lengths, shapes and machine.
        window: the actor's window.
        batch_tokens: padded tokens per generation batch.
        dtype_bytes: bytes per weight of a model.
    """
    lines: defaultdict[str, Line] = defaultdict(Line)
    for job in jobs:
        line = lines[job.method]
        line.jobs[job.kind] = line.jobs.get(job.kind, 0) + 1
        line.counted &= job.loop is not None
        use = use_of(job, assumed.lengths, window=window)
        if job.kind == "fit":
            own, whole = _spent(job, actor, assumed, window)
            past = {
                name: max(0.0, limit - whole[name] + own[name]) / own[name]
                for name, limit in job.limits.items()
                if limit and whole[name] > limit and own[name]
            }
            line.over = tuple(sorted({*line.over, *past}))
            use = {model: each.times(min(past.values(), default=1.0)) for model, each in use.items()}
        line.use = {model: line.use[model] + use[model] for model in use}
        shapes = {"actor": assumed.shape(actor)}
        if job.generator:
            shapes["generator"] = assumed.shape(job.generator)
        for model, shape in shapes.items():
            trained = shape.body if job.full and model == "generator" else 0.0
            line.hours += hours(use[model], shape, assumed.gpu, trained_weights=trained, recomputed=job.recomputed)
        if job.kind == "cell":
            at = assumed.lengths(job.benchmarks[0])
            line.disk += job.asked * (RECORD_BYTES + TOKEN_BYTES * (at.rewrite + at.answer))
        else:
            line.memory_gb = max(line.memory_gb, memory(job, shapes, batch_tokens, dtype_bytes) / 1e9)
        if job.kind == "fit":
            line.disk += policy_bytes(job, shapes, dtype_bytes)
    return dict(lines)


def _spent(job: Job, actor: str, assumed: Assumptions, window: float) -> tuple[dict[str, float], dict[str, float]]:
    """What counts against each limit: of a fit alone, and with what it builds on."""

    def of(jobs: Sequence[Job]) -> dict[str, float]:
        uses = [tokens for each in jobs for tokens in use_of(each, assumed.lengths, window=window).values()]
        return {name: sum(getattr(tokens, short) for tokens in uses) for name, short in LIMITED.items()}

    alone = replace(job, requires=())
    own = {**of([job]), "tflop": predicted_tflop(alone, actor, assumed, window)}
    return own, {**of(_with_needed(job)), "tflop": predicted_tflop(job, actor, assumed, window)}


def policy_bytes(job: Job, shapes: Mapping[str, Shape], dtype_bytes: int) -> float:
    """Bytes that a fit leaves on disk: its own trained weights, and trained weights that it keeps from other fits."""
    actor, generator, total = shapes["actor"], shapes.get("generator"), 0.0
    for part in job.parts:
        total += ADAPTER_BYTES * actor.lora(part.actor_rank)
        if generator is not None:
            full = part.generator == "full"
            total += dtype_bytes * generator.weights * full + ADAPTER_BYTES * generator.lora(
                0 if full else part.generator_rank
            )
            total += ADAPTER_BYTES * part.more_weights(actor, generator) if part.more_weights else 0.0
    return total


def memory(job: Job, shapes: Mapping[str, Shape], batch_tokens: int, dtype_bytes: int) -> float:
    """Bytes of memory that a fit needs, without its activations.

    They hold the models and their copies, trained weights with gradient and AdamW's moments, and the cache of a
    generation batch.
    """
    actor, generator = shapes["actor"], shapes.get("generator")
    held = dtype_bytes * (actor.weights + (generator.weights if generator else 0.0))
    trained, loop = 0.0, job.loop or Loop()
    for part in job.parts if loop.sequences.train else ():
        trained += TRAINED_BYTES * actor.lora(part.actor_rank)
        if generator is not None:
            # If the generator is trained in full, the original generator is held too.
            full = part.generator == "full"
            trained += (
                4 * dtype_bytes * generator.weights if full else TRAINED_BYTES * generator.lora(part.generator_rank)
            )
            trained += TRAINED_BYTES * part.more_weights(actor, generator) if part.more_weights else 0.0
    held += dtype_bytes * actor.body * loop.merged_actor
    cache = max(2 * model.layers * model.keys for model in shapes.values()) * batch_tokens * dtype_bytes
    return held + trained + cache
