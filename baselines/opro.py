"""OPRO: a language model proposes instructions from the scores of earlier ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from baselines.shared.proposing import ELSEWHERE, Proposing, prompts_with
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Positive
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    from baselines.shared.opro_teleprompter import Proposer


@dataclass(frozen=True)
class Settings:
    """Settings of OPRO. Defaults without a source come from `optimize_instructions.py` in google-deepmind/opro."""

    proposer: Literal["instruct", "rewrite"] = "instruct"
    """Who proposes instructions. `instruct`: the generator, or the server that `models.proposer` names, follows OPRO's
    meta-prompt. `rewrite`: the generator rewrites the best instruction and p~."""
    steps: Count = 200
    """Maximum number of steps. The search also ends when the budget does not cover another step."""
    samples: Count = 8
    """Instructions proposed per step."""
    temperature: Positive = 1.0
    """Sampling temperature of the proposals. Candidates are scored with greedy decoding."""
    shown: Count = 20
    """Earlier instructions shown in the meta-prompt."""
    exemplars: Count = 3
    """Train rows shown in the meta-prompt."""
    scored_rows: Count = 256
    """Train rows that each candidate is scored on (3.5 % of GSM8K's); all train rows if there are fewer."""
    max_characters: Count = 500
    """Maximum length of a proposal in characters; longer ones are refused."""
    proposal_tokens: Count = 128
    """Maximum length of a proposal in tokens; 128 tokens are about 500 characters of English."""
    finalists: Count = 5
    """Candidates with the best train scores; the dev rows choose between them."""


class OPRO(Proposing):
    """Searches one instruction for all queries; the generator, or a server's model, proposes."""

    name = "opro"
    title = "OPRO"
    reference = "Yang et al. 2024, Large Language Models as Optimizers (arXiv 2309.03409); google-deepmind/opro"
    deviations = (
        "The meta-prompt is worded anew and put to the generator (or to the server that the config names) instead of "
        "a commercial model.",
        "Dev rows choose between the best candidates; OPRO reports the best on train rows.",
        "Replies without the square brackets that are asked for, and instructions that are repeated or too long, are "
        "refused; the source also drops those with digits on GSM8K, and those with its own tags.",
        "With `proposer: rewrite` no meta-prompt is read: proposals are rewrites of the best instruction and of p~.",
        *ELSEWHERE,
    )
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        proposals = s.steps * s.samples
        answers = (1 + proposals) * min(s.scored_rows, rows.train) + s.finalists * rows.dev
        return Loop(Sequences(answers=answers, rewrites=proposals))

    def fit(self, lab: Lab) -> StaticPolicy:
        """Search from p~. If trained on several benchmarks, start from the p~ of each; all share one instruction."""
        from baselines.shared.budget import affordable
        from baselines.shared.dspy_bridge import ActorProgram, RewardMetric, examples
        from baselines.shared.opro_teleprompter import OPRO as Teleprompter

        settings = self.settings
        starts = list(dict.fromkeys(lab.initial_prompt(name) for name in lab.trained_on))
        optimizer = Teleprompter(
            metric=RewardMetric(lab),
            proposer=self._proposer(lab),
            random=lab.random("search"),
            steps=settings.steps,
            samples=settings.samples,
            exemplars=settings.exemplars,
            scored_rows=settings.scored_rows,
            max_characters=settings.max_characters,
            finalists=settings.finalists,
            starts=starts[1:],
            affordable=lambda answers, proposals: affordable(
                lab, answers=answers, proposals=proposals, proposal_tokens=settings.proposal_tokens
            ),
            report=lab.log,
        )
        program = optimizer.compile(
            ActorProgram(lab, starts[0]), trainset=examples(lab.train), valset=examples(lab.dev)
        )
        return StaticPolicy(lab, prompts_with(lab, program.instruction))

    def _proposer(self, lab: Lab) -> "Proposer":
        from baselines.shared.dspy_bridge import proposer_client
        from baselines.shared.opro_teleprompter import InstructProposer, RewriteProposer

        settings = self.settings
        if settings.proposer == "rewrite":
            return RewriteProposer(lab, temperature=settings.temperature, max_tokens=settings.proposal_tokens)
        client = proposer_client(
            lab, temperature=settings.temperature, max_tokens=settings.proposal_tokens, fan_out=settings.samples
        )
        return InstructProposer(client, shown=settings.shown)
