"""BetterTogether on the lab: the actor as a DSPy program with demonstrations, and what makes DSPy's steps run on it.

Imported by `baselines.better_together` within a fit, because DSPy is slow to import.
"""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.provider import Provider, TrainingJob
from dspy.teleprompt import BootstrapFinetune

from baselines._better_together_training import Turn, attach_adapter, train
from baselines._budget import affordable
from metatuner.errors import UserError
from metatuner.harness.dspy_bridge import VerbatimAdapter, examples
from metatuner.harness.ground import Demo, Lab, to_query
from metatuner.harness.rows import Row
from metatuner.lm import LM

if TYPE_CHECKING:
    from baselines.better_together import Settings

BASE, TRAINED = "local/actor", "local/actor+lora"
"""What DSPy calls the two actors."""
Place = tuple[str, str]
"""A row's benchmark and id."""


class OutOfBudget(Exception):
    """The budget does not cover the answers that DSPy asks for next."""


@dataclass(frozen=True)
class State:
    """What a strategy leaves: an actor by name, itself, and what it is shown before each query."""

    actor: str
    lm: LM
    demos: list[Demo]


def shown(demos: Iterable[Mapping[str, Any]], query: str) -> tuple[Demo, ...]:
    """The demonstrations before a query, without the query's own."""
    return tuple((str(demo["query"]), str(demo["answer"])) for demo in demos if demo["query"] != query)


class AnswerBook:
    """Greedy answers with their rewards, asked for in batches ahead of DSPy, which wants them one at a time.

    Whoever asks for a dev row will ask for all of them. Of the train rows a bootstrap stops after a few, so with one
    that is asked for come as many others as are known already. The first error stays: DSPy takes errors for answers
    worth 0, so every later call raises it again.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.lms = {BASE: lab.actor}
        self.rows: dict[Place, Row] = {(row.benchmark, row.id): row for row in (*lab.train, *lab.dev)}
        self.dev = [(row.benchmark, row.id) for row in lab.dev]
        self.train = [(row.benchmark, row.id) for row in lab.train]
        self.error: Exception | None = None
        self._told: dict[tuple[str, tuple[Demo, ...]], dict[Place, tuple[str, float]]] = {}

    def answer(self, actor: str, demos: Sequence[Mapping[str, Any]], place: Place) -> tuple[str, float]:
        """What the actor of that name answers after the demonstrations, and its reward, 0 to 1."""
        told = self._told.setdefault((actor, shown(demos, "")), {})
        if place not in told:
            with self.kept_error():
                told |= self._ask(actor, demos, self._with(place, told))
        return told[place]

    def knows(self, program: "DemonstratedActor") -> bool:
        """Whether the program has answered every dev row."""
        told = self._told.get((program.predict.lm.model, shown(program.predict.demos, "")), {})
        return all(place in told for place in self.dev)

    @contextlib.contextmanager
    def kept_error(self) -> Iterator[None]:
        """Within it, the first error is kept, and raised again whenever something is tried after it."""
        if self.error is not None:
            raise self.error
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def _with(self, place: Place, told: Mapping[Place, Any]) -> list[Place]:
        if place in self.dev:
            return [each for each in self.dev if each not in told]
        known = sum(each in told for each in self.train)
        others = [each for each in self.train if each not in told and each != place]
        return [place, *others[: max(0, known - 1)]]

    def _ask(
        self, actor: str, demos: Sequence[Mapping[str, Any]], places: Sequence[Place]
    ) -> dict[Place, tuple[str, float]]:
        if not affordable(self.lab, answers=len(places), proposals=0, proposal_tokens=0):
            raise OutOfBudget
        rows = [self.rows[place] for place in places]
        with self._as_base() if actor == BASE else contextlib.nullcontext():
            responses = self.lab.answer(
                [to_query(row) for row in rows],
                [self.lab.initial_prompt(row) for row in rows],
                demos=[shown(demos, row.query) for row in rows],
                actor=self.lms[actor],
            )
        rewards = self.lab.reward(rows, responses)
        texts = [response.completion for response in responses]
        return dict(zip(places, zip(texts, rewards, strict=True), strict=True))

    def _as_base(self) -> contextlib.AbstractContextManager[Any]:
        """PEFT puts an adapter into the model itself: within this it is as if it were not there."""
        trained = self.lms.get(TRAINED)
        return contextlib.nullcontext() if trained is None else trained.model.disable_adapter()  # type: ignore[operator]


class DemonstratedActor(dspy.Module):
    """The actor under p~ as a DSPy program. Its only predictor holds the demonstrations and names the actor."""

    def __init__(self, book: AnswerBook, lm: dspy.LM) -> None:
        super().__init__()
        self.book = book
        self.predict = dspy.Predict("query -> answer")
        self.predict.lm = lm

    def deepcopy(self) -> "DemonstratedActor":
        """A copy with its own demonstrations; actors and answers are shared."""
        copied = self.reset_copy()
        copied.predict.demos = list(self.predict.demos)
        return copied

    def reset_copy(self) -> "DemonstratedActor":
        """A copy without demonstrations. DSPy's own would forget the trained actor as well."""
        return DemonstratedActor(self.book, self.predict.lm)

    def forward(self, query: str, id: str, benchmark: str) -> dspy.Prediction:
        text, reward = self.book.answer(self.predict.lm.model, self.predict.demos, (benchmark, id))
        inputs = {"query": query, "id": id, "benchmark": benchmark}
        if dspy.settings.trace is not None:  # what a bootstrap makes demonstrations and train data of
            dspy.settings.trace.append((self.predict, inputs, dspy.Prediction(answer=text)))
        return dspy.Prediction(answer=text, reward=reward)


class TurnAdapter(VerbatimAdapter):
    """Renders a trace for training as the actor is asked: p~, the demonstrations without the query's own, the query."""

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
        """`messages` as DSPy wants them, and the `benchmark`, whose limits cut what does not fit."""
        asked = dict(zip(("query", "answer"), (inputs["query"], outputs["answer"]), strict=True))
        before = [{"query": query, "answer": answer} for query, answer in shown(demos, inputs["query"])]
        instructed = signature.with_instructions(self.lab.initial_prompt(inputs["benchmark"]))
        messages = self.format(instructed, before, {"query": asked["query"]})
        messages.append({"role": "assistant", "content": asked["answer"]})
        return {"messages": messages, "benchmark": inputs["benchmark"]}


class InProcess(Provider):
    """Trains a LoRA on the lab's actor, in this process, when DSPy asks for a finetuned model."""

    def __init__(self, book: AnswerBook, settings: "Settings") -> None:
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
        """The name of the trained actor; that of the given one if there is nothing to train on."""
        lab = self.book.lab
        with self.book.kept_error():
            turns = [turn for turn in (to_turn(lab, each) for each in train_data) if turn is not None]
            lab.log(event="finetune", answers=len(turns), dropped=len(train_data) - len(turns))
            if not turns:
                return model
            self.book.lms[TRAINED] = attach_adapter(lab, self.settings)
            train(lab, self.book.lms[TRAINED], turns, self.settings)
            return TRAINED


def to_turn(lab: Lab, data: Mapping[str, Any]) -> Turn | None:
    """What training reads of a datum, by the rendering that the actor is asked by; None if the window is too short."""
    from metatuner.lm import completion_ids, render

    system, *shots, query, answer = (message["content"] for message in data["messages"])
    demos = list(zip(shots[::2], shots[1::2], strict=True))
    asked = render(lab.actor, system, query, demos, reserve=lab.benchmark(data["benchmark"]).max_new_tokens).ids
    written = completion_ids(lab.actor, answer)
    return (asked, written) if len(asked) + len(written) <= lab.actor.window else None


def run(lab: Lab, settings: "Settings") -> State:
    """DSPy's BetterTogether on the lab; the state that does best on dev, or on train where there is no dev."""
    book = AnswerBook(lab)
    program = DemonstratedActor(book, dspy.LM(BASE, provider=InProcess(book, settings), cache=False))

    def reward(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return float(prediction.reward)

    def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(prediction.reward >= settings.threshold)

    with _quiet() as lines:
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
        states = [state for state in states if book.knows(state["program"])]  # others have a 0 that nobody measured
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


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Within it DSPy says nothing; what it logs as an error is kept, and given by the function that this yields."""
    kept = logging.StreamHandler(io.StringIO())
    kept.setLevel(logging.ERROR)
    logger = logging.getLogger("dspy")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [kept], False
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield lambda: " ".join(kept.stream.getvalue().split())[-500:]
    finally:
        logger.handlers, logger.propagate = before
