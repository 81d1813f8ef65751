"""The paper's ten claims: what each says, how it is decided, and the function that judges it on a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from metatuner.analysis.claims.measured import (
    claim_1,
    claim_2,
    claim_3,
    claim_4,
    claim_5,
    claim_6,
    claim_7,
    claim_8,
    claim_9,
    claim_10,
)
from metatuner.analysis.claims.needs import lacking
from metatuner.analysis.claims.ruling import NOT_EVALUABLE, NOT_JUDGED, Judged, Ruling
from metatuner.analysis.claims.runs import Runs


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how it is decided."""

    number: int
    title: str
    estimand: str
    test: str
    threshold: str
    judge: Callable[[Runs], Judged]

    def on(self, runs: Runs) -> Ruling:
        """Judge the claim on a run, if the run's preset says that it reproduces the paper, and holds what it takes."""
        if runs.config.claims == "none":
            return self.ruling(Judged(NOT_JUDGED, (), NOT_REPRODUCED), "measured")
        if short := lacking(runs, self.number):
            return self.ruling(Judged(NOT_EVALUABLE, (), short), "measured")
        return self.ruling(self.judge(runs), "measured")

    def ruling(self, judged: Judged, data: Literal["measured", "published"], test: str | None = None) -> Ruling:
        """The ruling on one source of data, with the claim's description."""
        test = self.test if test is None else test
        names = (self.number, self.title, data, self.estimand, test, self.threshold)
        return Ruling(judged.outcome, judged.parts, judged.detail, *names)


NOT_REPRODUCED = "the preset does not say that it reproduces the paper (config key `claims: paper`)"
PAIRED = "paired test over seeds and queries (Student's t, random seeds and groups of queries)"
POOLED = f"{PAIRED} of all benchmarks"
EACH = "each difference above 0, p <= 0.05"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        1,
        "MetaTuner-J beats every baseline on every benchmark",
        "difference of mean scores, for each baseline and benchmark",
        f"{PAIRED}; intersection-union",
        EACH,
        claim_1,
    ),
    Claim(
        2,
        "Hybrid methods beat prompt-only and parameter-only methods on average over benchmarks",
        "mean score of the hybrids less that of each other family, averaged over methods and benchmarks",
        f"{POOLED}; intersection-union",
        EACH,
        claim_2,
    ),
    Claim(
        3,
        "The full method beats w/o F, w/o P and w/o S on every benchmark",
        "difference of mean scores, for each ablation and benchmark",
        f"{PAIRED}; intersection-union",
        EACH,
        claim_3,
    ),
    Claim(
        4,
        "Supervised regularisation beats Gumbel-Softmax, both tuned",
        "difference of mean scores, averaged over benchmarks",
        POOLED,
        "difference above 0, p <= 0.05",
        claim_4,
    ),
    Claim(
        5,
        "The best sharing depth is inside (0, K): some inner k beats both ends",
        "for each generator, difference of mean scores between an inner depth and each end",
        f"{PAIRED}; an inner depth needs both, inner depths are corrected by Holm; for each generator",
        "both differences above 0, corrected p <= 0.05",
        claim_5,
    ),
    Claim(
        6,
        "More rollouts do not always help: some smaller number beats the largest",
        "difference of mean scores between a smaller number and the largest",
        f"{PAIRED}; Holm over the numbers",
        "a difference above 0, corrected p <= 0.05",
        claim_6,
    ),
    Claim(
        7,
        "MetaTuner-J is at least as good as MetaTuner-I on average (non-inferiority)",
        "mean score of -J less that of -I, averaged over benchmarks",
        POOLED,
        "difference above -1 point, p <= 0.05",
        claim_7,
    ),
    Claim(
        8,
        "SFT's score varies with its training prompt, and its worst falls below the best prompt optimiser",
        "difference between two prompts, averaged over benchmarks; an optimiser's mean less SFT's under a prompt",
        f"{POOLED}; all ordered pairs of prompts, Holm; all pairs of an optimiser and a prompt, Holm",
        "a pair more than 5 points apart; an optimiser above SFT under some prompt; corrected p <= 0.05",
        claim_8,
    ),
    Claim(
        9,
        "Trained on three benchmarks, MetaTuner-J beats the baselines on the fourth",
        "difference of mean scores on the benchmark left out, for each baseline",
        f"{PAIRED}; intersection-union",
        EACH,
        claim_9,
    ),
    Claim(
        10,
        "Generating a query's prompt and parameters takes less than half of the time of answering it",
        "seconds for writing a query's prompt and parameters over seconds for answering it, on each benchmark",
        "none: quartiles of interleaved repeats",
        "upper quartile of the share below 0.5 on every benchmark; contradicted: a lower quartile above it",
        claim_10,
    ),
)
