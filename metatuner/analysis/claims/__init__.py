"""The paper's claims as code: each with its estimand, test and threshold, judged on the data available."""

from metatuner.analysis.claims.output import claims
from metatuner.analysis.claims.ruling import VERDICTS, Part, Ruling

__all__ = ["VERDICTS", "Part", "Ruling", "claims"]
