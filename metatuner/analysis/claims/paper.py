"""The claims on the paper's published numbers: single scores from secondary sources, tested as if unpaired."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metatuner.analysis.claims.listed import CLAIMS, Claim
from metatuner.analysis.claims.measured import NOT_INFERIOR
from metatuner.analysis.claims.ruling import NOT_EVALUABLE, Judged, Part, Ruling, every
from metatuner.analysis.names import BENCHMARKS, Names, benchmark_rank
from metatuner.analysis.results.published import Published, TestSize
from metatuner.analysis.statistics import cohens_h, unpaired_difference
from metatuner.config import DEFAULT_VARIANT

UNPAIRED = "unpaired z-test (interval of one score against one: Newcombe's; of means: normal): scores of single "
UNPAIRED += "queries are not public"
NOT_PUBLIC = {
    4: "the scores of the Gumbel-Softmax variant are not public",
    5: "the scores by sharing depth are not public",
    6: "the scores by number of rollouts are not public",
    8: "SFT's scores under other prompts are not public",
    9: "the table of generalisation is not public",
    10: "0.03 to 0.53 s per query are stated for writing; the time of answering is not public",
}
"""Why a claim cannot be judged on published numbers."""


@dataclass(frozen=True)
class Paper:
    """A table of the paper, with the sizes of its tests."""

    scores: dict[tuple[str, str, str], Published]
    """By (method, variant, benchmark)."""
    sizes: dict[str, TestSize]

    @property
    def benchmarks(self) -> list[str]:
        """The table's benchmarks, in the order of tables."""
        return sorted({benchmark for _, _, benchmark in self.scores}, key=benchmark_rank)

    def methods(self, family: str = "") -> list[str]:
        """Methods with a score in their default variant, of one family if `family` is given."""
        names = dict.fromkeys(method for method, variant, _ in self.scores if variant == DEFAULT_VARIANT)
        return [name for name in names if not family or Names().family(name) == family]

    def of(self, method: str, variant: str = DEFAULT_VARIANT, *where: str) -> list[tuple[float, int]]:
        """Proportion and test rows of a method on benchmarks (all, if none is named)."""
        return [
            (self.scores[method, variant, benchmark].score / 100, self.sizes[benchmark].size)
            for benchmark in where or self.benchmarks
        ]


def rulings(paper: Paper) -> list[Ruling]:
    """Rulings on every claim, from published numbers."""
    return [_ruling(claim, paper) for claim in CLAIMS]


def _ruling(claim: Claim, paper: Paper) -> Ruling:
    if claim.number in NOT_PUBLIC:
        return claim.ruling(Judged(NOT_EVALUABLE, (), NOT_PUBLIC[claim.number]), "published", "")
    parts = PARTS[claim.number](paper)
    return claim.ruling(Judged(every(parts), tuple(parts), DETAILS.get(claim.number, "")), "published", UNPAIRED)


Side = Sequence[tuple[float, int]]


def _part(name: str, first: Side, second: Side, margin: float = 0.0, rows: int | None = None) -> Part:
    effect = cohens_h(first[0][0], second[0][0]) if len(first) == len(second) == 1 else None
    return Part(name, unpaired_difference(first, second, margin=margin, rows=rows), "", effect)


def _claim_1(paper: Paper) -> list[Part]:
    return [
        _part(
            f"{Names().title('metatuner_j')} over {Names().title(name)} on {BENCHMARKS[where]}",
            paper.of("metatuner_j", DEFAULT_VARIANT, where),
            paper.of(name, DEFAULT_VARIANT, where),
        )
        for where in paper.benchmarks
        for name in paper.methods()
        if not name.startswith("metatuner")
    ]


def _claim_2(paper: Paper) -> list[Part]:
    families = {
        family: [score for method in paper.methods(family) for score in paper.of(method)]
        for family in ("hybrid", "prompt", "parameter")
    }
    rows = sum(paper.sizes[benchmark].size for benchmark in paper.benchmarks)
    return [
        _part(f"hybrids over {family}-only methods", families["hybrid"], families[family], rows=rows)
        for family in ("prompt", "parameter")
    ]


def _claim_3(paper: Paper) -> list[Part]:
    return [
        _part(
            f"{Names().title('metatuner_j')} over {Names().title('MetaTuner', variant)} on {BENCHMARKS[where]}",
            paper.of("metatuner_j", DEFAULT_VARIANT, where),
            paper.of("metatuner", variant, where),
        )
        for variant in ("without_f", "without_p", "without_s")
        for where in paper.benchmarks
    ]


def _claim_7(paper: Paper) -> list[Part]:
    name = "MetaTuner-J less MetaTuner-I, above -1 point"
    return [_part(name, paper.of("metatuner_j"), paper.of("metatuner_i"), NOT_INFERIOR)]


PARTS: dict[int, Callable[[Paper], list[Part]]] = {1: _claim_1, 2: _claim_2, 3: _claim_3, 7: _claim_7}
DETAILS = {
    1: "MetaTuner-J, as in the paper's headline",
    3: "against -J; whether -I or -J was ablated is not public",
}
