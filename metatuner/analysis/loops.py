"""Each method's loop in sequences that pass actor and generator, by its settings: what a forecast starts from.

Not counted: D2 collected anew within joint training (`d2_refresh_epochs`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

RENDERERS, QUERY_FORMATS = 7, 6
"""CFPO's (`baselines/_cfpo_teleprompter.py`)."""
DESCRIBING = 12
"""Most calls in which MIPROv2 describes the train rows (`baselines/miprov2.py`)."""


@dataclass(frozen=True)
class Rows:
    """What a fit sees."""

    train: float
    dev: float


@dataclass(frozen=True)
class Shares:
    """How much of what is sampled teaches."""

    right: float
    """Of answers: those that are right."""
    mixed: float
    """Of train rows: those whose rollouts differ in reward."""


@dataclass(frozen=True)
class Counts:
    """Counts that add up and multiply, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def times(self, factor: float) -> Self:
        """All counts by a factor."""
        return type(self)(*(getattr(self, each.name) * factor for each in fields(self)))


@dataclass(frozen=True)
class Sequences(Counts):
    """How many sequences pass the models in a fit or a cell."""

    answers: float = 0.0
    """Written by the actor."""
    answers_read: float = 0.0
    """Answers that the actor scores: prompt and answer read."""
    actor_trained: float = 0.0
    """Prompt and target, or answer, forward and backward."""
    rewrites: float = 0.0
    """Prompts written by the generator."""
    drafts: float = 0.0
    """Prompts of a few tokens that a policy on the generator writes from nothing."""
    draft_tokens: float = 0.0
    """Tokens of all drafts."""
    encoded: float = 0.0
    """Requests that the meta encoder reads, forward and backward; counted as if it had all layers of the generator."""
    generator_trained: float = 0.0
    """Request and rewrite, forward and backward."""


AHEAD = 16
"""Rows of a bootstrap's first batch (`baselines/_dspy_program.py`)."""
Count = Callable[[Mapping[str, Any], Rows, Shares], Sequences]


def _sft(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    return Sequences(actor_trained=s["epochs"] * rows.train)


def _dpo(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    pairs = share.mixed * rows.train * min(s["pairs"], s["rollouts"] // 2)
    sides = 2 * s["epochs"] * pairs  # the reference reads what the policy trains on
    return Sequences(answers=s["rollouts"] * rows.train, answers_read=sides, actor_trained=sides)


def _ppo(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    answers = s["steps"] * min(s["batch"], rows.train)
    return Sequences(answers=answers, answers_read=2 * answers, actor_trained=s["epochs"] * answers)


def _grpo(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    answers = s["steps"] * min(s["queries"], rows.train) * s["group"]
    used = share.mixed * answers
    return Sequences(answers=answers, answers_read=2 * used, actor_trained=s["updates"] * used)


def _opro(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    proposals = s["steps"] * s["samples"]
    answers = (1 + proposals) * min(s["scored_rows"], rows.train) + s["finalists"] * rows.dev
    return Sequences(answers=answers, rewrites=proposals)


def _cfpo(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    tried, calls = 1, 0
    for number in range(1, s["rounds"] + 1):
        parents = min(s["beam"], tried)
        if number % 2 == 1:
            calls += parents * (s["diagnoses"] * (2 if s["proposer"] == "instruct" else 1) + s["variations"])
            tried += parents * (s["diagnoses"] + s["variations"])
        elif number == 2:
            both = RENDERERS * QUERY_FORMATS - 1
            tried += parents * (both if s["all_pairs"] else RENDERERS + QUERY_FORMATS - 2)
        else:
            tried += parents * 2 * s["formats"]
    return Sequences(answers=tried * min(s["scored_rows"], rows.train) + s["finalists"] * rows.dev, rewrites=calls)


def _copro(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    candidates = s["breadth"] * s["depth"]
    return Sequences(answers=candidates * min(s["scored_rows"], rows.train), rewrites=candidates - 1)


def _miprov2(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    scored, sets = rows.dev or rows.train, max(0, s["candidates"] - 2)
    answers = (1 + s["trials"]) * scored + sets * max(AHEAD, s["shots"] / share.right)
    return Sequences(answers=answers, rewrites=s["candidates"] + (DESCRIBING if s["proposer"] == "instruct" else 0))


def _gepa(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    # Half of the mutations are kept, and those are asked on all dev rows.
    return Sequences(answers=s["answers"], rewrites=s["answers"] / (2 * s["minibatch"] + (rows.dev or rows.train) / 2))


def _bootstrap_few_shot(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    asked = s["bootstrapped"] / share.right  # the batches after the first double
    return Sequences(answers=min(rows.train, AHEAD if asked <= AHEAD else 2 * asked))


def _rlprompt(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    judged, drafts = 2 * (s["steps"] // s["eval_steps"]) * (rows.dev or rows.train), s["steps"] * s["samples"]
    answers = drafts * min(s["scored_rows"], rows.train) + judged
    return Sequences(answers=answers, drafts=drafts, draft_tokens=drafts * s["prompt_tokens"])


def _bpo(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    rollouts = s["rollouts"] * rows.train
    return Sequences(answers=rollouts, rewrites=rollouts, generator_trained=s["epochs"] * share.mixed * rows.train)


def _better_together(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    scored, steps = rows.dev or rows.train, s["strategy"].split(" -> ")
    searched = (s["candidates"] + 3) * scored + s["candidates"] * max(AHEAD, s["shots"] / share.right)
    answers = steps.count("p") * searched + steps.count("w") * (rows.train + scored)
    return Sequences(answers=answers, actor_trained=s["epochs"] * share.right * rows.train)


def _metatuner_warmup(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    rollouts = s["rollouts"] * rows.train if s["d2"] in ("best", "threshold") else 0.0
    written = {"expert": rows.train, "initial": 0.0}.get(s["d2"], rollouts)
    rewarded = {"best": 1 - (1 - share.right) ** s["rollouts"], "threshold": share.right * s["rollouts"]}
    d2 = rewarded.get(s["d2"], 1.0) * rows.train
    met = s["actor_epochs"] * rows.train if s["actor_prompts"] == "rollouts" else 0.0
    return Sequences(
        answers=rollouts,
        rewrites=written + met,
        actor_trained=s["actor_epochs"] * rows.train,
        generator_trained=s["generator_epochs"] * d2,
    )


def _joint(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    passes = s["epochs"] * rows.train
    task = s["parameter_branch"] != "none" or s["actor"] == "lora"
    measured = s["epochs"] // s["evaluate_epochs"] * rows.dev if s["evaluate_epochs"] else 0.0
    prompts = passes / max(1.0, s["refresh_epochs"]) if task and s["prompt_branch"] else 0.0
    return Sequences(
        answers=measured,
        rewrites=prompts + (measured if s["prompt_branch"] else 0.0),
        actor_trained=passes if task else 0.0,
        encoded=passes if s["parameter_branch"] == "query" else 0.0,
        generator_trained=passes if s["prompt_branch"] else 0.0,
    )


def _nothing(s: Mapping[str, Any], rows: Rows, share: Shares) -> Sequences:
    return Sequences()


COUNTS: dict[str, Count] = {
    "zero_shot": _nothing,
    "few_shot": _nothing,
    "rlprompt": _rlprompt,
    "bpo": _bpo,
    "opro": _opro,
    "cfpo": _cfpo,
    "copro": _copro,
    "miprov2": _miprov2,
    "gepa": _gepa,
    "bootstrap_few_shot": _bootstrap_few_shot,
    "sft": _sft,
    "dpo": _dpo,
    "ppo": _ppo,
    "grpo": _grpo,
    "better_together": _better_together,
    "rewriter_sft": _nothing,
    "static_lora": _joint,
    "metatuner_warmup": _metatuner_warmup,
    "metatuner_i": _joint,
    "metatuner_j": _joint,
}
"""Sequences of a fit, without those of the fits it builds on. A method that is not here is bounded by its budget."""
