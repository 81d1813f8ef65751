"""CFPO: a beam search over the content and the format of a prompt."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from baselines.shared.proposing import ELSEWHERE, Proposing, prompts_with
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, NotNegative, Positive
from metatuner.harness.policies import StaticPolicy

if TYPE_CHECKING:
    from baselines.shared.cfpo_teleprompter import Editor


RENDERERS, QUERY_FORMATS = 7, 6
"""Numbers of renderers and query formats in `shared.cfpo_teleprompter`."""


@dataclass(frozen=True)
class Settings:
    """Settings of CFPO. Defaults without a source come from `src/main.py` in HenryLau7/CFPO."""

    proposer: Literal["instruct", "rewrite"] = "instruct"
    """Who proposes instructions. `instruct`: the generator, or the server that `models.proposer` names, follows
    meta-prompts. `rewrite`: the generator rewrites the instructions of the beam."""
    rounds: Count = 5
    """Maximum number of rounds; rounds of content and of format alternate. The search also ends when the budget does
    not cover another round."""
    beam: Count = 8
    """Prompts kept after each round."""
    diagnoses: Count = 1
    """Edits per prompt in a round of content, each based on cases: rows that were answered wrongly or rightly."""
    variations: Count = 1
    """Paraphrases per prompt in a round of content."""
    formats: Count = 1
    """Renderers, and as many query formats, tried per prompt in each round of formats after the first."""
    all_pairs: bool = True
    """The first round of formats tries each prompt in all pairs of renderer and query format. If false, it changes only
    one of the two at a time."""
    cases: Count = 5
    """Wrong cases, and as many right ones, shown per diagnosis (`scripts/GSM8K.sh`)."""
    exploration: NotNegative = 0.001
    """Weight of the second term of UCT."""
    temperature: Positive = 1.0
    """Sampling temperature of the edits before the first round."""
    last_temperature: Positive = 0.7
    """Sampling temperature of the edits in the last round; it falls linearly."""
    scored_rows: Count = 256
    """Train rows that each candidate is scored on; all train rows if there are fewer. The same default as OPRO."""
    proposal_tokens: Count = 128
    """Maximum length in tokens of what the proposer writes. The same default as OPRO; the source has 4096."""
    finalists: Count = 4
    """Candidates with the best train scores; the dev rows choose between them."""


class CFPO(Proposing):
    """Searches one prompt for all queries: an instruction and its format. The generator, or a server, proposes."""

    name = "cfpo"
    title = "CFPO"
    reference = "Liu et al. 2025, Content-Format Integrated Prompt Optimization (arXiv 2502.04295); HenryLau7/CFPO"
    deviations = (
        "The release cannot finish its fourth round, in which a model writes new formats as code; here formats come "
        "from a fixed pool, chosen by UCT among those that a prompt does not have.",
        "The content is the instruction alone, not also task detail, output format and examples as parts of their own.",
        "The ground renders queries for all methods alike, so a query format is a last line of the prompt that leads "
        "to the query.",
        "Cases for a diagnosis are those of the rows that candidates are scored on, not of a batch of their own.",
        "The meta-prompts are worded anew and put to the generator (or to the server that the config names) instead of "
        "a commercial model.",
        "Replies without the square brackets that are asked for, and instructions that are repeated, are refused.",
        "Dev rows choose between the best candidates; the source returns the best on the rows they are scored on.",
        "With `proposer: rewrite` no meta-prompt is read: a diagnosis is a rewrite for a query that was answered "
        "wrongly, a paraphrase one for any train query.",
        "With `all_pairs: false` the first round of formats changes renderer or query format, not both.",
        *ELSEWHERE,
    )
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        tried, calls = 1, 0
        for number in range(1, s.rounds + 1):
            parents = min(s.beam, tried)
            if number % 2 == 1:
                calls += parents * (s.diagnoses * (2 if s.proposer == "instruct" else 1) + s.variations)
                tried += parents * (s.diagnoses + s.variations)
            elif number == 2:
                both = RENDERERS * QUERY_FORMATS - 1
                tried += parents * (both if s.all_pairs else RENDERERS + QUERY_FORMATS - 2)
            else:
                tried += parents * 2 * s.formats
        answers = tried * min(s.scored_rows, rows.train) + s.finalists * rows.dev
        return Loop(Sequences(answers=answers, rewrites=calls))

    def fit(self, lab: Lab) -> StaticPolicy:
        """Search from p~. If trained on several benchmarks, start from the p~ of each; all share one prompt."""
        from baselines.shared.budget import affordable
        from baselines.shared.cfpo_teleprompter import CFPO as Teleprompter
        from baselines.shared.dspy_bridge import ActorProgram, RewardMetric, examples

        settings: Settings = self.settings
        # A diagnosis by meta-prompt takes two calls.
        calls = 2 if settings.proposer == "instruct" else 1
        starts = list(dict.fromkeys(lab.initial_prompt(name) for name in lab.trained_on))
        optimizer = Teleprompter(
            metric=RewardMetric(lab),
            editor=self._editor(lab),
            random=lab.random("search"),
            rounds=settings.rounds,
            beam=settings.beam,
            diagnoses=settings.diagnoses,
            variations=settings.variations,
            formats=settings.formats,
            all_pairs=settings.all_pairs,
            cases=settings.cases,
            exploration=settings.exploration,
            temperatures=(settings.temperature, settings.last_temperature),
            scored_rows=settings.scored_rows,
            finalists=settings.finalists,
            starts=starts[1:],
            affordable=lambda answers, edits: affordable(
                lab, answers=answers, proposals=calls * edits, proposal_tokens=settings.proposal_tokens
            ),
            report=lab.log,
        )
        program = optimizer.compile(
            ActorProgram(lab, starts[0]), trainset=examples(lab.train), valset=examples(lab.dev)
        )
        return StaticPolicy(lab, prompts_with(lab, program.instruction))

    def _editor(self, lab: Lab) -> "Editor":
        from baselines.shared.cfpo_teleprompter import InstructEditor, RewriteEditor
        from baselines.shared.dspy_bridge import proposer_client

        limit = self.settings.proposal_tokens
        if self.settings.proposer == "rewrite":
            return RewriteEditor(lab, max_tokens=limit)
        return InstructEditor(proposer_client(lab, temperature=self.settings.temperature, max_tokens=limit))
