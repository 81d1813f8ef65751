"""BetterTogether on the lab: runs DSPy's steps on the actor as a program, and trains the actor.

Imported by `baselines.better_together` within a fit, because DSPy is slow to import.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import dspy
from dspy.clients.provider import Provider, TrainingJob
from dspy.teleprompt import BootstrapFinetune

from baselines.shared.adapter_training import Adapter, new_adapter
from baselines.shared.better_together_training import Settings as TrainSettings
from baselines.shared.better_together_training import Turn, train
from baselines.shared.dspy_bridge import VerbatimAdapter
from baselines.shared.dspy_program import (
    BASE,
    AnswerBook,
    DemonstratedActor,
    OutOfBudget,
    examples,
    quiet,
    reward,
    shown,
)
from metatuner.errors import UserError
from metatuner.harness.lab import Lab
from metatuner.harness.query import Demo
from metatuner.lm import LM

TRAINED = "local/actor+lora"
"""DSPy's name for the trained actor."""


class Settings(TrainSettings, Adapter, Protocol):
    """The settings of BetterTogether that the program uses; their meanings are documented there."""

    @property
    def strategy(self) -> str: ...
    @property
    def candidates(self) -> int: ...
    @property
    def shots(self) -> int: ...
    @property
    def threshold(self) -> float: ...


@dataclass(frozen=True)
class State:
    """The result of a strategy: the actor's name, the actor, and the demonstrations before each query."""

    actor: str
    lm: LM
    demos: list[Demo]


class TurnAdapter(VerbatimAdapter):
    """Renders a trace for training as the actor reads it: p~, the demonstrations without the query's own, the query."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab

    def format_finetune_data(
        self,
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
        outputs: dict[str, Any],
    ) -> dict[str, Any]:
        """`messages` as DSPy wants them, and the `benchmark`. Its limits cut what does not fit."""
        asked = dict(zip(("query", "answer"), (inputs["query"], outputs["answer"]), strict=True))
        before = [{"query": query, "answer": answer} for query, answer in shown(demos, inputs["query"])]
        benchmark = inputs["query"].place[0]
        instructed = signature.with_instructions(self.lab.initial_prompt(benchmark))
        messages = self.format(instructed, before, {"query": asked["query"]})
        messages.append({"role": "assistant", "content": asked["answer"]})
        return {"messages": messages, "benchmark": benchmark}


class InProcess(Provider):
    """Trains a LoRA on the lab's actor, in this process, when DSPy requests a finetuned model."""

    def __init__(self, book: AnswerBook, settings: Settings) -> None:
        super().__init__()
        self.finetunable = True
        self.book, self.settings = book, settings

    # DSPy declares it static, but calls it on the instance.
    def finetune(
        self,
        job: TrainingJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: Any,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The name of the trained actor, or the name of the given one if there is nothing to train on."""
        lab = self.book.lab
        with self.book.kept_error():
            turns = [turn for turn in (to_turn(lab, each) for each in train_data) if turn is not None]
            lab.log(event="finetune", answers=len(turns), dropped=len(train_data) - len(turns))
            if not turns:
                return model
            self.book.lms[TRAINED] = new_adapter(lab, self.settings)
            train(lab, self.book.lms[TRAINED], turns, self.settings)
            return TRAINED


def to_turn(lab: Lab, data: Mapping[str, Any]) -> Turn | None:
    """A datum as token ids, rendered in the same way as for inference; None if the window is too short."""
    from metatuner.lm import completion_ids, render

    system, *shots, query, answer = (message["content"] for message in data["messages"])
    demos = list(zip(shots[::2], shots[1::2], strict=True))
    asked = render(lab.actor, system, query, demos, reserve=lab.benchmark(data["benchmark"]).max_new_tokens).ids
    written = completion_ids(lab.actor, answer)
    return (asked, written) if len(asked) + len(written) <= lab.actor.window else None


def run(lab: Lab, settings: Settings) -> State:
    """Run DSPy's BetterTogether on the lab; return the state that is best on dev, or on train if there is no dev."""
    book = AnswerBook(lab)
    program = DemonstratedActor(book, dspy.LM(BASE, provider=InProcess(book, settings), cache=False))

    def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(prediction.reward >= settings.threshold)

    with quiet() as lines:
        search = dspy.BootstrapFewShotWithRandomSearch(
            metric=reward,
            metric_threshold=settings.threshold,
            max_bootstrapped_demos=settings.shots,
            max_labeled_demos=settings.shots,
            num_candidate_programs=settings.candidates,
            num_threads=1,
            max_errors=1,
        )
        finetune = BootstrapFinetune(metric=right, adapter=TurnAdapter(lab), num_threads=1)
        optimizer = dspy.BetterTogether(metric=reward, p=search, w=finetune)
        best = optimizer.compile(
            program,
            trainset=examples(lab.train),
            valset=examples(lab.dev or lab.train),
            strategy=settings.strategy,
            seed=lab.stream("search"),
            num_threads=1,
            max_errors=1,
        )
    states = sorted(best.candidate_programs, key=lambda state: len(state["strategy"]))
    if isinstance(book.error, OutOfBudget):
        states = [
            state for state in states if book.score(state["program"], lab.dev or lab.train) is not None
        ]  # the others have a score of 0 that was not measured
        lab.log(event="budget", states=len(states))
    elif book.error is not None:
        raise book.error
    elif best.flag_compilation_error_occurred or len(states) != 1 + len(settings.strategy.split(optimizer.STRAT_SEP)):
        why = lines() or "it does not say why"
        raise UserError(f"better_together: a step of {settings.strategy!r} failed in DSPy: {why}")
    for state in states:
        dev, shots = round(state["score"] / 100, 5), len(state["program"].predict.demos)
        lab.log(event="state", strategy=state["strategy"], dev=dev, shots=shots)
    actor = best.predict.lm.model
    if actor == BASE and TRAINED in book.lms:
        book.lms[TRAINED].model.unload()  # type: ignore[operator]
    return State(actor, book.lms[actor], list(shown(best.predict.demos, "")))
