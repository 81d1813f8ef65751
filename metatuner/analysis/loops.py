"""Each method's loop in sequences that pass actor and generator, by its settings: what a forecast starts from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

MIXED = 0.5
"""Share of train rows whose rollouts differ in reward, so that they teach something: assumed."""


RENDERERS, QUERY_FORMATS = 7, 6
"""CFPO's (`baselines/_cfpo_teleprompter.py`)."""


@dataclass(frozen=True)
class Rows:
    """What a fit sees."""

    train: float
    dev: float


@dataclass(frozen=True)
class Sequences:
    """How many sequences pass the models in a fit or a cell."""

    answers: float = 0.0
    """Written by the actor."""
    answers_read: float = 0.0
    """Answers that the actor scores: prompt and answer read."""
    actor_trained: float = 0.0
    """Prompt and target, or answer, forward and backward."""
    rewrites: float = 0.0
    """Prompts written by the generator."""
    generator_trained: float = 0.0
    """Request and rewrite, forward and backward."""

    def __add__(self, other: "Sequences") -> "Sequences":
        return Sequences(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def times(self, factor: float) -> "Sequences":
        return Sequences(*(getattr(self, each.name) * factor for each in fields(self)))


# ---- a fit's sequences, by its method's settings -----------------------------------------------------------------


def _sft(s: Mapping[str, Any], rows: Rows) -> Sequences:
    return Sequences(actor_trained=s["epochs"] * rows.train)


def _dpo(s: Mapping[str, Any], rows: Rows) -> Sequences:
    pairs = MIXED * rows.train * min(s["pairs"], s["rollouts"] // 2)
    sides = 2 * s["epochs"] * pairs  # the reference reads what the policy trains on
    return Sequences(answers=s["rollouts"] * rows.train, answers_read=sides, actor_trained=sides)


def _ppo(s: Mapping[str, Any], rows: Rows) -> Sequences:
    answers = s["steps"] * min(s["batch"], rows.train)
    return Sequences(answers=answers, answers_read=2 * answers, actor_trained=s["epochs"] * answers)


def _grpo(s: Mapping[str, Any], rows: Rows) -> Sequences:
    answers = s["steps"] * min(s["queries"], rows.train) * s["group"]
    used = MIXED * answers
    return Sequences(answers=answers, answers_read=2 * used, actor_trained=s["updates"] * used)


def _opro(s: Mapping[str, Any], rows: Rows) -> Sequences:
    proposals = s["steps"] * s["samples"]
    answers = (1 + proposals) * min(s["scored_rows"], rows.train) + s["finalists"] * rows.dev
    return Sequences(answers=answers, rewrites=proposals)


def _cfpo(s: Mapping[str, Any], rows: Rows) -> Sequences:
    odd, even, growth = (s["rounds"] + 1) // 2, s["rounds"] // 2, s["diagnoses"] + s["variations"]
    edits = growth * (1 + (odd - 1) * s["beam"])  # the first round starts from p~ alone
    first = RENDERERS * QUERY_FORMATS - 1 if s["all_pairs"] else RENDERERS + QUERY_FORMATS - 2
    formats = s["beam"] * ((even > 0) * first + max(0, even - 1) * 2 * s["formats"])
    answers = (1 + edits + formats) * min(s["scored_rows"], rows.train) + s["finalists"] * rows.dev
    return Sequences(answers=answers, rewrites=edits * (2 if s["proposer"] == "instruct" else 1))


def _copro(s: Mapping[str, Any], rows: Rows) -> Sequences:
    candidates = s["breadth"] * s["depth"]
    return Sequences(answers=candidates * min(s["scored_rows"], rows.train), rewrites=candidates - 1)


def _miprov2(s: Mapping[str, Any], rows: Rows) -> Sequences:
    scored, sets = rows.dev or rows.train, max(0, s["candidates"] - 2)
    answers = (1 + s["trials"]) * scored + sets * 2 * s["shots"] / MIXED
    return Sequences(answers=answers, rewrites=s["candidates"] + (12 if s["proposer"] == "instruct" else 0))


def _gepa(s: Mapping[str, Any], rows: Rows) -> Sequences:
    # Half of the mutations are kept, and those are asked on all dev rows.
    return Sequences(answers=s["answers"], rewrites=s["answers"] / (2 * s["minibatch"] + (rows.dev or rows.train) / 2))


def _bootstrap_few_shot(s: Mapping[str, Any], rows: Rows) -> Sequences:
    return Sequences(answers=2 * s["bootstrapped"] / MIXED)  # asked for in batches that double


def _rlprompt(s: Mapping[str, Any], rows: Rows) -> Sequences:
    judged = 2 * (s["steps"] // s["eval_steps"]) * (rows.dev or rows.train)
    answers = s["steps"] * s["samples"] * min(s["scored_rows"], rows.train) + judged
    return Sequences(answers=answers, rewrites=s["steps"] * s["samples"])


def _bpo(s: Mapping[str, Any], rows: Rows) -> Sequences:
    rollouts = s["rollouts"] * rows.train
    return Sequences(answers=rollouts, rewrites=rollouts, generator_trained=s["epochs"] * MIXED * rows.train)


def _better_together(s: Mapping[str, Any], rows: Rows) -> Sequences:
    scored, steps = rows.dev or rows.train, s["strategy"].split(" -> ")
    searched = (s["candidates"] + 3) * scored + s["candidates"] * s["shots"] / MIXED
    answers = steps.count("p") * searched + steps.count("w") * (rows.train + scored)
    return Sequences(answers=answers, actor_trained=s["epochs"] * MIXED * rows.train)


def _metatuner_warmup(s: Mapping[str, Any], rows: Rows) -> Sequences:
    rollouts = s["rollouts"] * rows.train
    first = rows.train if s["actor_prompts"] == "rollouts" else 0
    trained = {"actor": s["actor_epochs"] * rows.train, "generator": s["generator_epochs"] * rows.train}
    return Sequences(
        answers=rollouts,
        rewrites=rollouts + first,
        actor_trained=trained["actor"],
        generator_trained=trained["generator"],
    )


def _joint(s: Mapping[str, Any], rows: Rows) -> Sequences:
    passes = s["epochs"] * rows.train
    # The task term reads the query through the meta encoder with a gradient, the prompt term trains on D2.
    read = passes * (s["parameter_branch"] == "query")
    taught = passes * s["prompt_branch"]
    written = passes / s["refresh_epochs"] if s["prompt_branch"] else 0.0
    return Sequences(rewrites=written, actor_trained=passes, generator_trained=read + taught)


COUNTS: dict[str, Callable[[Mapping[str, Any], Rows], Sequences]] = {
    "sft": _sft,
    "dpo": _dpo,
    "ppo": _ppo,
    "grpo": _grpo,
    "opro": _opro,
    "cfpo": _cfpo,
    "copro": _copro,
    "miprov2": _miprov2,
    "gepa": _gepa,
    "bootstrap_few_shot": _bootstrap_few_shot,
    "rlprompt": _rlprompt,
    "bpo": _bpo,
    "better_together": _better_together,
    "metatuner_warmup": _metatuner_warmup,
    "metatuner_i": _joint,
    "metatuner_j": _joint,
    "zero_shot": lambda s, rows: Sequences(),
    "few_shot": lambda s, rows: Sequences(),
    "rewriter_sft": lambda s, rows: Sequences(),
}
"""Sequences of a fit, without those of the fits it builds on. A method that is not here is bounded by its budget."""
