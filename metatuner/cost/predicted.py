"""What a preset will cost on models without metered runs: sequences, tokens, GPU-hours, memory and disk.

Each method counts its own loop in sequences (`harness.loop`). Tokens per sequence, weights and the machine's speed are
assumptions of `config/forecast.yaml`. FLOP are computed from tokens as in the meter (`harness.budget`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from metatuner.cost.assumptions import GPU, Assumptions, Lengths
from metatuner.cost.jobs import Job, job_of
from metatuner.cost.memory import cache_bytes, model_bytes, policy_bytes
from metatuner.harness.loop import Counts, Loop, Sequences, Shape
from metatuner.plan import Fit, Plan

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


# ---- tokens of a job ------------------------------------------------------------------------------------------------

LIMITED = {"lm_calls": "calls", "generated_tokens": "written", "trained_tokens": "trained"}
"""The limits of a budget, with the field of `Tokens` that each one limits."""


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
            line.memory_gb = max(line.memory_gb, _memory(job, shapes, batch_tokens, dtype_bytes) / 1e9)
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


def _memory(job: Job, shapes: Mapping[str, Shape], batch_tokens: int, dtype_bytes: int) -> float:
    """Bytes of memory that a fit needs, without its activations."""
    return model_bytes(job, shapes, dtype_bytes) + cache_bytes(shapes.values(), batch_tokens, dtype_bytes)
