"""Statistics as pure functions of arrays: intervals and tests of one comparison, contrasts over several."""

from metatuner.analysis.statistics.contrasts import (
    Contrast,
    Gaps,
    cohens_dz,
    cohens_h,
    contrast,
    newcombe_interval,
    paired_difference,
    probability_of_improvement,
    unpaired_difference,
)
from metatuner.analysis.statistics.intervals import (
    LEVEL,
    MIN_SEEDS,
    TOLERANCE,
    Difference,
    Interval,
    derive_seed,
    holm,
    mean_interval,
    smallest_detectable_effect,
    wilson_interval,
)
from metatuner.analysis.statistics.spread import Array

__all__ = [
    "LEVEL",
    "MIN_SEEDS",
    "TOLERANCE",
    "Array",
    "Contrast",
    "Difference",
    "Gaps",
    "Interval",
    "cohens_dz",
    "cohens_h",
    "contrast",
    "derive_seed",
    "holm",
    "mean_interval",
    "newcombe_interval",
    "paired_difference",
    "probability_of_improvement",
    "smallest_detectable_effect",
    "unpaired_difference",
    "wilson_interval",
]
