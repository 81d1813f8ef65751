"""The actor as a DSPy program, shared by methods that run DSPy's own optimizers.

Imported within a fit, because DSPy is slow to import. DSPy's optimizers ask a program one example at a time. Here an
`AnswerBook` looks ahead, so that the local model answers dozens of rows per forward pass.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import dspy

from baselines.shared.budget import AHEAD, affordable
from baselines.shared.proposing import Proposal
from metatuner.errors import UserError
from metatuner.harness.lab import Lab
from metatuner.harness.query import Demo, to_query
from metatuner.harness.rows import Row

BASE = "local/actor"
"""DSPy's name for the actor."""
Place = tuple[str, str]
"""A row's benchmark and id."""
Before = tuple[str, str | None, tuple[Demo, ...]]
"""The context of a query: the actor's name, the instruction (None: each benchmark's p~), the demonstrations."""


class OutOfBudget(Exception):
    """The budget does not cover the answers that DSPy requests next."""


@dataclass(frozen=True)
class Prompt:
    """The result of a search over prompts."""

    instruction: str
    demos: list[Demo]


def shown(demos: Iterable[Mapping[str, Any]], query: str) -> tuple[Demo, ...]:
    """The demonstrations before a query, without the query's own."""
    return tuple((str(demo["query"]), str(demo["answer"])) for demo in demos if demo["query"] != query)


def places(rows: Iterable[Row]) -> list[Place]:
    """The places of the rows in an `AnswerBook`."""
    return [(row.benchmark, row.id) for row in rows]


class Asked(str):
    """The query of a row, with the row's place. DSPy sees, and shows to a proposer, only what the actor reads."""

    place: Place

    @classmethod
    def of(cls, row: Row) -> "Asked":
        """The query of a row."""
        asked = cls(row.query)
        asked.place = (row.benchmark, row.id)
        return asked


def examples(rows: Iterable[Row]) -> list[dspy.Example]:
    """Rows as DSPy examples: input `query`, label `answer`."""
    return [dspy.Example(query=Asked.of(row), answer=row.target).with_inputs("query") for row in rows]


class AnswerBook:
    """Greedy answers with their rewards, computed in batches ahead of DSPy, which requests them one at a time.

    A request for one row of a set in `together` answers the whole set, because DSPy will request all of it. A bootstrap
    stops after a few of the other train rows, so a request for one of these answers `AHEAD` rows in all, or as many as
    are known already. The first error is kept and raised again by every later call, because DSPy counts an error as an
    answer with reward 0.
    """

    def __init__(self, lab: Lab, *, proposals: int = 0, proposal_tokens: int = 0) -> None:
        """
        Args:
            lab: provides answers, rewards, the budget and the log.
            proposals: number of proposals that answers must leave in the budget, so that a search never ends within its
                proposals.
            proposal_tokens: maximum length of each in tokens.
        """
        self.lab, self.proposals, self.proposal_tokens = lab, proposals, proposal_tokens
        self.lms = {BASE: lab.actor}
        self.rows: dict[Place, Row] = {(row.benchmark, row.id): row for row in (*lab.train, *lab.dev)}
        self.train = places(lab.train)
        self.together = [places(lab.dev)]
        self.error: Exception | None = None
        self.proposals_made = self.proposals_refused = 0
        self._told: dict[Before, dict[Place, tuple[str, float]]] = {}

    def answer(self, program: "DemonstratedActor", place: Place) -> tuple[str, float]:
        """The program's answer and its reward, 0 to 1."""
        told = self._told.setdefault(program.asked, {})
        if place not in told:
            with self.kept_error():
                told |= self._ask(program, self._with(place, told))
        return told[place]

    def score(self, program: "DemonstratedActor", rows: Iterable[Row]) -> float | None:
        """The program's mean reward on the rows; None if it has not answered all of them, or if there are none."""
        return self._score(program.asked, places(rows))

    def best(self, rows: Iterable[Row]) -> Prompt | None:
        """The best instruction and demonstrations among those asked on all of the rows; the first one if equal."""
        known = [(self._score(asked, places(rows)), asked) for asked in self._told]
        scored = [(score, asked) for score, asked in known if score is not None]
        if not scored:
            return None
        _, instruction, demos = max(scored, key=lambda each: each[0])[1]
        return None if instruction is None else Prompt(instruction, list(demos))

    def note(self, proposal: Proposal) -> None:
        """Log and count a proposal."""
        self.proposals_made += 1
        self.proposals_refused += proposal.refused is not None
        self.lab.log(event="proposal", text=proposal.text, refused=proposal.refused)

    @contextlib.contextmanager
    def kept_error(self) -> Iterator[None]:
        """In this context, the first error is kept. Entering the context again raises it again."""
        if self.error is not None:
            raise self.error
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def affords(self, answers: int) -> bool:
        """Whether the budget covers this many answers and, after them, the proposals that must remain possible."""
        return affordable(self.lab, answers=answers, proposals=self.proposals, proposal_tokens=self.proposal_tokens)

    def _score(self, asked: Before, rows: Sequence[Place]) -> float | None:
        told = self._told.get(asked, {})
        return fmean(told[place][1] for place in rows) if rows and all(place in told for place in rows) else None

    def _with(self, place: Place, told: Mapping[Place, Any]) -> list[Place]:
        for whole in self.together:
            if place in whole:
                return [each for each in dict.fromkeys(whole) if each not in told]
        known = sum(each in told for each in self.train)
        others = [each for each in self.train if each not in told and each != place]
        return [place, *others[: max(AHEAD, known) - 1]]

    def _ask(self, program: "DemonstratedActor", asked: Sequence[Place]) -> dict[Place, tuple[str, float]]:
        if not self.affords(len(asked)):
            raise OutOfBudget
        rows = [self.rows[place] for place in asked]
        actor, instruction, demos = program.predict.lm.model, program.instruction, program.predict.demos
        with self._as_base() if actor == BASE else contextlib.nullcontext():
            responses = self.lab.answer(
                [to_query(row) for row in rows],
                [self.lab.initial_prompt(row) if instruction is None else instruction for row in rows],
                demos=[shown(demos, row.query) for row in rows],
                actor=self.lms[actor],
            )
        rewards = self.lab.reward(rows, responses)
        texts = [response.completion for response in responses]
        return dict(zip(asked, zip(texts, rewards, strict=True), strict=True))

    def _as_base(self) -> contextlib.AbstractContextManager[Any]:
        """A context without the adapter, which PEFT puts into the model itself.

        (For the type checker, a PeftModel is the model that it wraps, which has no such method.)
        """
        trained = next((lm for name, lm in self.lms.items() if name != BASE), None)
        return contextlib.nullcontext() if trained is None else trained.model.disable_adapter()  # type: ignore[operator]


class DemonstratedActor(dspy.Module):
    """The actor as a DSPy program.

    Its only predictor holds the instruction and the demonstrations, because DSPy's optimizers look for them there. It
    also names the actor. Without an instruction, each query has the p~ of its benchmark.
    """

    def __init__(self, book: AnswerBook, lm: dspy.LM, instruction: str | None = None) -> None:
        super().__init__()
        self.book, self.instructed = book, instruction is not None
        self.predict = dspy.Predict(dspy.Signature("query -> answer", instruction or ""))
        self.predict.lm = lm

    @property
    def instruction(self) -> str | None:
        return str(self.predict.signature.instructions) if self.instructed else None

    @property
    def asked(self) -> Before:
        return self.predict.lm.model, self.instruction, shown(self.predict.demos, "")

    def deepcopy(self) -> "DemonstratedActor":
        """A copy with its own instruction and demonstrations; actors and answers are shared."""
        copied = self.reset_copy()
        copied.predict.demos = list(self.predict.demos)
        return copied

    def reset_copy(self) -> "DemonstratedActor":
        """A copy without demonstrations. DSPy's own method would also forget the trained actor."""
        copied = DemonstratedActor(self.book, self.predict.lm)
        copied.instructed, copied.predict.signature = self.instructed, self.predict.signature
        return copied

    def forward(self, query: Asked) -> dspy.Prediction:
        text, reward = self.book.answer(self, query.place)
        if dspy.settings.trace is not None:  # a bootstrap makes demonstrations and train data of it
            dspy.settings.trace.append((self.predict, {"query": query}, dspy.Prediction(answer=text)))
        return dspy.Prediction(answer=text, reward=reward)


def reward(example: dspy.Example, prediction: dspy.Prediction, *trace: Any) -> float:
    """The metric of a `DemonstratedActor`: the reward from its book."""
    return float(prediction.reward)


def search(
    name: str,
    book: AnswerBook,
    rows: Sequence[Row],
    compile: Callable[[DemonstratedActor], DemonstratedActor],
    *,
    instructed: bool = True,
) -> Prompt:
    """Run one of DSPy's optimizers from p~; if trained on several benchmarks, from the p~ of the first.

    Args:
        name: name of the method, for errors.
        book: provides the answers.
        rows: rows on which the optimizer scores its candidates. If the budget ends the search, the best candidate that
            was asked on all of them is kept, or p~ if there is none.
        compile: runs the optimizer on the program that it is given.
        instructed: whether the search is over instructions. If not, each query has the p~ of its own benchmark.

    Raises:
        UserError: DSPy fails by itself, or the budget does not cover p~ on the rows.
        Exception: any other error that made a call fail.
    """
    lab = book.lab
    start = lab.initial_prompt(lab.trained_on[0])
    program = DemonstratedActor(book, dspy.LM(BASE, cache=False), start if instructed else None)
    if not book.affords(len(rows)):
        raise UserError(f"{name}: the budget does not cover {len(rows)} answers under p~; raise it in the preset")
    found: DemonstratedActor | None = None
    failure: Exception | None = None
    with quiet() as lines:
        try:
            found = compile(program)
        except Exception as error:
            failure = error
    if book.proposals_made:
        lab.log(event="proposals", made=book.proposals_made, refused=book.proposals_refused)
    if isinstance(book.error, OutOfBudget):
        kept = book.best(rows) if instructed else None
        lab.log(event="budget", found=kept is not None)
        return kept or Prompt(start, [])
    if book.error is not None:
        raise book.error
    if failure is not None:
        why = lines() or f"{type(failure).__name__}: {failure}"
        raise UserError(f"{name}: the search failed in DSPy: {why}") from failure
    assert found is not None
    told = book.score(found, rows)
    lab.log(event="choice", instruction=found.instruction, score=None if told is None else round(told, 5))
    return Prompt(found.instruction or start, list(shown(found.predict.demos, "")))


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """In this context, DSPy prints nothing. The yielded function returns what DSPy logged as an error."""
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
