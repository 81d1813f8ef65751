"""MIPROv2: instructions and demonstrations are proposed first, then a surrogate model searches their combinations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from baselines.shared.budget import AHEAD
from baselines.shared.proposing import DEVIATIONS, ELSEWHERE, Proposing, prompts_with
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Positive
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    from baselines.shared.dspy_program import DemonstratedActor


@dataclass(frozen=True)
class Settings:
    """Settings of MIPROv2. Defaults without another source come from dspy.MIPROv2 with `auto="light"`, except that
    `auto="light"` has half as many instructions as sets of demonstrations and scores on 100 rows."""

    proposer: Literal["instruct", "rewrite"] = "instruct"
    """Who proposes instructions; the same options as in OPRO."""
    candidates: Count = 6
    """Number of instructions (including p~) and number of sets of demonstrations (including the empty one)."""
    trials: Count = 10
    """Combinations of an instruction and a set of demonstrations that are scored on all dev rows."""
    shots: Count = 4
    """Maximum number of demonstrations in a set; all of them may be answers of the actor."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Lowest reward, 0 to 1, at which an answer counts as right and may become a demonstration. The default is the full
    reward."""
    viewed: Count = 10
    """Train rows that the proposer sees at once to describe the data. Set fewer if ten do not fit its window (the log
    of a fit then says `request cut`)."""
    temperature: Positive = 1.0
    """Sampling temperature of the proposals. Candidates are scored with greedy decoding."""
    proposal_tokens: Count = 128
    """Maximum length of a proposal in tokens; as in OPRO."""


DESCRIBING = 12
"""Maximum number of calls in which DSPy describes the train rows (`dspy.propose.dataset_summary_generator`)."""


class MIPROv2(Proposing):
    """DSPy's MIPROv2: bootstraps demonstrations, proposes instructions grounded in them and in the data, and searches
    the combinations with TPE."""

    name = "miprov2"
    title = "MIPROv2"
    reference = (
        "Opsahl-Ong et al. 2024, Optimizing Instructions and Demonstrations for Multi-Stage Language Model Programs "
        "(arXiv 2406.11695), through dspy.MIPROv2"
    )
    deviations = (
        *DEVIATIONS,
        *ELSEWHERE,
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
        """Bootstrap and propose from `lab.train`; search on `lab.dev`, or on train rows if there are no dev rows.

        If trained on several benchmarks, all share one instruction and one set of demonstrations.
        """
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
                    seed=1 + lab.stream("search") % (2**32 - 1),  # DSPy reads 0 as no seed; the sampler takes 32 bits
                    minibatch=False,
                    view_data_batch_size=settings.viewed,
                    program_aware_proposer=False,
                    data_aware_proposer=instructs,
                    tip_aware_proposer=instructs,
                    fewshot_aware_proposer=instructs,
                )

        found = search(self.name, book, rows, compile)
        prompts = prompts_with(lab, found.instruction)
        return StaticPolicy(lab, prompts, dict.fromkeys(lab.benchmarks, found.demos))
