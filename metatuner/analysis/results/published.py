"""The paper's numbers, kept apart from measured ones. results/published/README.md gives their sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metatuner.analysis.statistics import Interval, wilson_interval
from metatuner.config import DEFAULT_VARIANT, Config
from metatuner.errors import UserError
from metatuner.files import read_csv
from metatuner.hashing import ROOT

FOLDER = ROOT / "results" / "published"
TABLES = {"large": "main_7b"}
"""The paper's table by the generator's name in the config; the table of its smaller generator is not public."""
MODELS = {"main_7b": ("Qwen2.5-7B", "Qwen2.5-3B")}
"""Generator and actor of each table."""
STATED = {
    "sharing": "The paper has its best at K/4 for the 7B generator, at 3K/4 for the 3B one; its values are not public.",
    "regularisation": "The paper states that Gumbel-Softmax is much worse; its values are not public.",
    "d2": "The paper compares ways of making D2; which, and with what scores, is not public.",
    "rollouts": "The paper states that too many rollouts hurt; its values are not public.",
}
"""What is public about the paper's figures, by experiment; the values behind them are not."""
COLUMNS = ["method", "variant", "benchmark", "score", "standing", "note"]
SIZE_COLUMNS = ["benchmark", "test_size", "standing", "note"]


@dataclass(frozen=True)
class Published:
    """One number of the paper."""

    score: float
    """0 to 100."""
    sampling: Interval | None
    """Wilson's interval from sampling of the test rows alone (0 to 100); None if the test size is not known."""
    note: str


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, shown as columns beside measured ones."""

    heading: str
    scores: Mapping[tuple[str, str, str], Published]
    """By (method, variant, benchmark)."""

    def of(self, method: str, variant: str, benchmark: str) -> Published | None:
        """The paper's number for a measured method; the paper does not say if its ablations are of -I or -J."""
        ablated = method in ("metatuner_i", "metatuner_j") and variant != DEFAULT_VARIANT
        return self.scores.get(("metatuner" if ablated else method, variant, benchmark))


def _read(path: Path, columns: list[str]) -> list[tuple[int, dict[str, str]]]:
    return list(enumerate(read_csv(path, columns, "restore it from the repository"), 2))


@dataclass(frozen=True)
class TestSize:
    """The number of test rows behind the paper's scores, and how it is known."""

    size: int
    standing: str


def read_test_sizes(folder: Path = FOLDER) -> dict[str, TestSize]:
    """The paper's test sizes by benchmark."""
    rows = _read(folder / "test_sizes.csv", SIZE_COLUMNS)
    return {row["benchmark"]: TestSize(int(row["test_size"]), row["standing"]) for _, row in rows}


def read_published(folder: Path = FOLDER, table: str = "main_7b") -> dict[tuple[str, str, str], Published]:
    """A table of the paper by (method, variant, benchmark), without unpublished numbers.

    Raises:
        UserError: a score is not a percentage, or stands twice; the message names the line.
    """
    sizes = read_test_sizes(folder)
    path = folder / f"{table}.csv"
    found: dict[tuple[str, str, str], Published] = {}
    for line, row in _read(path, COLUMNS):
        key = (row["method"], row["variant"] or DEFAULT_VARIANT, row["benchmark"])
        if key in found:
            raise UserError(f"{path}, line {line}: {' '.join(key)} stands twice; keep one")
        if not row["score"]:
            continue
        try:
            score = float(row["score"])
        except ValueError:
            score = -1.0
        if not 0 <= score <= 100:
            raise UserError(
                f"{path}, line {line}: score {row['score']!r} is not in 0 to 100; leave unpublished cells empty"
            )
        sampling = None
        if key[2] in sizes:
            unit = wilson_interval(score / 100, sizes[key[2]].size)
            sampling = Interval(score, 100 * unit.low, 100 * unit.high)
        found[key] = Published(score, sampling, row["note"])
    return found


def published_beside(config: Config, experiment: str, generator: str | None = None) -> PaperTable:
    """The paper's table to show beside an experiment with one of its generators (None means the first).

    The table has no scores if none are public. The paper's table of training on other benchmarks is not public.

    The column heading names the paper's models, unless the config measures the same models (`-Instruct` or not).
    """
    generator = generator or config.experiments[experiment].generators[0]
    table = TABLES.get(generator)
    if table is None or config.experiments[experiment].train == "others":
        return PaperTable("paper", {})
    measured, papers = (config.models.generators[generator].path, config.models.actor.path), MODELS[table]
    same = all(path.removesuffix("-Instruct") == f"Qwen/{name}" for path, name in zip(measured, papers, strict=True))
    sizes = " + ".join(name.removeprefix("Qwen2.5-") for name in papers)
    return PaperTable("paper" if same else f"paper ({sizes})", read_published(table=table))
