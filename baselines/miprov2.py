"""MIPROv2: instructions and demonstrations are proposed first, then a surrogate model searches their combinations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from baselines.shared.budget import AHEAD
from baselines.shared.proposing import DEVIATIONS, Proposing
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Positive
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    from baselines.shared.dspy_program import DemonstratedActor


DESCRIBING = 12
"""Most calls in which DSPy describes the train rows before it proposes."""


@dataclass(frozen=True)
class Settings:
    """What may be set; defaults without another source are those of dspy.MIPROv2 with `auto="light"`, but that this has
    half as many instructions as sets of demonstrations, and scores on 100 rows."""

    proposer: Literal["instruct", "rewrite"] = "instruct"
    """Who proposes, as in OPRO."""
    candidates: Count = 6
    """Instructions, p~ among them, and sets of demonstrations, the empty one among them."""
    trials: Count = 10
    """Combinations asked on all dev rows."""
    shots: Count = 4
    """Most demonstrations in a set, and most of them that are answers of the actor."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Reward from which an answer is right and may be a demonstration: here the full one."""
    viewed: Count = 10
    """Train rows that the proposer is shown at once to describe the data; set fewer where ten outgrow its window (the
    log of a fit says `request cut`)."""
    temperature: Positive = 1.0
    """Of the proposals; candidates are scored greedily."""
    proposal_tokens: Count = 128
    """Most tokens of a proposal; as in OPRO."""


DESCRIBING = 12
"""Calls in which DSPy describes the train rows, at most (`dspy.propose.dataset_summary_generator`)."""


class MIPROv2(Proposing):
    """DSPy's MIPROv2: bootstrapped demonstrations, instructions grounded in them and in the data, and TPE over both."""

    name = "miprov2"
    title = "MIPROv2"
    reference = (
        "Opsahl-Ong et al. 2024, Optimizing Instructions and Demonstrations for Multi-Stage Language Model Programs "
        "(arXiv 2406.11695), through dspy.MIPROv2"
    )
    deviations = (
        *DEVIATIONS,
        "Every combination is asked on all dev rows (`minibatch=False`), and the proposer is told nothing of the "
        "program's code, which is one call.",
    )
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        sets = max(0, s.candidates - 2)
        answers = (1 + s.trials) * rows.judging + sets * max(AHEAD, s.shots / shares.right)
        rewrites = s.candidates + (DESCRIBING if s.proposer == "instruct" else 0)
        return Loop(Sequences(answers=answers, rewrites=rewrites), shots=s.shots)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Bootstrap and propose from `lab.train`, search on `lab.dev` (on train rows where there are none); trained on
        several benchmarks, one instruction and one set of demonstrations for all."""
        import dspy

        from baselines.shared.dspy_program import AnswerBook, examples, places, reward, search
        from baselines.shared.dspy_proposals import proposer

        settings: Settings = self.settings
        instructs = settings.proposer == "instruct"
        rows = lab.dev or lab.train
        book = AnswerBook(lab, proposals=settings.candidates + DESCRIBING, proposal_tokens=settings.proposal_tokens)
        if lab.dev:
            book.together = [places(lab.dev)]
        client, adapter = proposer(
            book, settings.proposer, temperature=settings.temperature, max_tokens=settings.proposal_tokens
        )

        def compile(program: "DemonstratedActor") -> "DemonstratedActor":
            optimizer = dspy.MIPROv2(
                metric=reward,
                metric_threshold=settings.threshold,
                prompt_model=client,
                task_model=program.predict.lm,
                auto=None,
                num_candidates=settings.candidates,
                max_bootstrapped_demos=settings.shots,
                max_labeled_demos=settings.shots,
                init_temperature=settings.temperature,
                num_threads=1,
                max_errors=1,
            )
            with dspy.context(adapter=adapter):
                return optimizer.compile(
                    program,
                    trainset=examples(lab.train),
                    valset=examples(rows),
                    num_trials=settings.trials,
                    seed=1 + lab.stream("search") % (2**32 - 1),  # DSPy takes 0 for none, the sampler no more bits
                    minibatch=False,
                    view_data_batch_size=settings.viewed,
                    program_aware_proposer=False,
                    data_aware_proposer=instructs,
                    tip_aware_proposer=instructs,
                    fewshot_aware_proposer=instructs,
                )

        found = search(self.name, book, rows, compile)
        prompts = dict.fromkeys(lab.benchmarks, found.instruction)
        return StaticPolicy(lab, prompts, dict.fromkeys(lab.benchmarks, found.demos))
