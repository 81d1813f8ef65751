"""GEPA: a language model reflects on answers and mutates instructions. Those that are best on any dev row survive."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from baselines.shared.proposing import DEVIATIONS, ELSEWHERE, Proposing, prompts_with, proposed
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Positive
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    from baselines.shared.dspy_program import DemonstratedActor


@dataclass(frozen=True)
class Settings:
    """Settings of GEPA. Defaults without another source come from dspy.GEPA."""

    proposer: Literal["instruct", "rewrite"] = "instruct"
    """Who proposes instructions; the same options as in OPRO."""
    answers: Count = 2000
    """Number of scored answers after which the search ends; about as many as `auto="light"` with 400 dev rows."""
    minibatch: Count = 3
    """Train rows that a reflection reads. The instruction that it proposes must do better on them."""
    temperature: Positive = 1.0
    """Sampling temperature of the proposals (DSPy's advice). Candidates are scored with greedy decoding."""
    proposal_tokens: Count = 512
    """Maximum length of a reflection in tokens; GEPA's instructions are long."""


class GEPA(Proposing):
    """DSPy's GEPA: reflective mutation of instructions, chosen from the Pareto front over dev rows."""

    name = "gepa"
    title = "GEPA"
    reference = (
        "Agrawal et al. 2025, GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning "
        "(arXiv 2507.19457), through dspy.GEPA"
    )
    deviations = (
        *DEVIATIONS,
        *ELSEWHERE,
        "The feedback on an answer is its score and the row's reference answer.",
        "The proposer is asked in DSPy's chat format, not in its JSON format, which small models cannot keep.",
    )
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        # Half of the mutations are kept, and these are scored on all dev rows.
        rewrites = s.answers / (2 * s.minibatch + rows.judging / 2)
        return Loop(Sequences(answers=s.answers, rewrites=rewrites))

    def fit(self, lab: Lab) -> StaticPolicy:
        """Reflect on `lab.train`; keep what does well on `lab.dev`, or on train rows if there are no dev rows.

        If trained on several benchmarks, all share one instruction.
        """
        import dspy
        from dspy.teleprompt.gepa import InstructionProposer
        from gepa.strategies.batch_sampler import EpochShuffledBatchSampler

        from baselines.shared.dspy_program import AnswerBook, examples, places, search
        from baselines.shared.dspy_proposals import proposer

        settings: Settings = self.settings
        rows, whole = lab.dev or lab.train, places(lab.dev or lab.train)
        train = places(lab.train)
        book = AnswerBook(lab, proposals=1, proposal_tokens=settings.proposal_tokens)
        client, adapter = proposer(
            book, settings.proposer, temperature=settings.temperature, max_tokens=settings.proposal_tokens
        )
        reflect = InstructionProposer(adapter=adapter)

        class AnnouncedMinibatches(EpochShuffledBatchSampler):
            """GEPA's own minibatches. The book knows each one before DSPy requests its answers."""

            def next_minibatch_ids(self, loader: Any, state: Any) -> Any:
                chosen = super().next_minibatch_ids(loader, state)
                book.together = [[train[index] for index in chosen], whole]
                return chosen

        def propose(candidate: dict[str, str], components_to_update: list[str], **context: Any) -> dict[str, str]:
            """New texts for the components."""
            if settings.proposer == "rewrite":
                found = {}
                for name in components_to_update:
                    proposal = proposed(str(client(candidate[name])[0]))
                    book.note(proposal)
                    found[name] = candidate[name] if proposal.refused else proposal.text
                return found
            return dict(reflect(candidate=candidate, components_to_update=components_to_update, **context))

        def scored(
            gold: dspy.Example, pred: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
        ) -> dspy.Prediction:
            feedback = f"Score {pred.reward:.2f} of 1. The reference answer: {gold.answer}"
            return dspy.Prediction(score=pred.reward, feedback=feedback)

        def compile(program: "DemonstratedActor") -> "DemonstratedActor":
            book.together = [whole]
            seed = lab.stream("search")
            optimizer = dspy.GEPA(
                metric=scored,
                max_metric_calls=settings.answers,
                reflection_lm=client,
                instruction_proposer=propose,
                reflection_minibatch_size=None,
                num_threads=1,
                seed=seed,
                gepa_kwargs={
                    "batch_sampler": AnnouncedMinibatches(
                        min(settings.minibatch, len(train)), lab.random("minibatches")
                    )
                },
            )
            return optimizer.compile(program, trainset=examples(lab.train), valset=examples(rows))

        found = search(self.name, book, rows, compile)
        return StaticPolicy(lab, prompts_with(lab, found.instruction))
