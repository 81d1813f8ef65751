"""The places of a preset's files. Nothing here reads or writes."""

from pathlib import Path

from metatuner.config.types import Config


class Layout:
    """Paths below `results/<preset>`, and the cache that presets share."""

    def __init__(self, config: Config) -> None:
        self.root = Path(config.results)
        self.cache = Path(config.cache)
        self.config = self.root / "config.json"
        self.world = self.root / "world"
        self.scores = self.root / "scores.csv"
        self.settings = self.root / "settings.csv"
        self.methods = self.root / "methods.json"
        self.searches = self.root / "searches.json"
        self.query_scores = self.root / "query_scores.json"
        self.digests = self.root / "digests.json"
        self.report = self.root / "report.html"
        self.efficiency = self.root / "efficiency.csv"
        self.provenance = self.root / "provenance.json"
        self.verdict = self.root / "verdict.json"
        self.usage = self.root / "usage"
        self.logs = self.root / "logs"

    def data(self, benchmark: str) -> Path:
        """Folder of a benchmark's split files."""
        return self.root / "data" / benchmark

    def model(self, role: str, key: str) -> Path:
        """Folder of a pretrained nano model."""
        return self.cache / "models" / f"{role}-{key}"

    def fit(self, key: str) -> Path:
        """Folder of a fit: policy/ (while it is kept), fit.json, cost.json, log.jsonl. It exists only if complete."""
        return self.root / "fits" / key

    def cell(self, key: str) -> Path:
        """Folder of a cell: predictions.jsonl, metrics.json, cell.json, cost.json. It exists only if complete."""
        return self.root / "cells" / key

    def pack(self, step: str, name: str) -> Path:
        """The list that a fit or evaluate job writes: its keys and their outcomes."""
        return self.root / "packs" / step / f"{name}.json"

    def failure(self, key: str) -> Path:
        """The file for a failed fit's or cell's traceback."""
        return self.logs / "failed" / f"{key}.txt"

    def attempts(self, step: str, name: str) -> Path:
        """How often a job had to run again although its inputs were the same; see `Dag.retry`.

        Snakemake does not know this file, so it survives a rerun. Presets share a model's file, as they share the
        model.
        """
        folder = self.cache / "models" if step == "pretrain" else self.root / "packs" / step
        return folder / f".{name}.attempts"

    def tune(self, method: str, benchmark: str) -> Path:
        """The trials of one method (or METHOD.VARIANT) on one benchmark."""
        return self.root / "tune" / f"{method}-{benchmark}.json"

    def trial(self, fit: str) -> Path:
        """The score of one finished trial, so that an interrupted search can continue."""
        return self.root / "tune" / "trials" / f"{fit}.json"

    def table(self, name: str, suffix: str) -> Path:
        """A table's file."""
        return self.root / "tables" / f"{name}.{suffix}"

    def claims(self, suffix: str) -> Path:
        """The verdicts on the paper's claims: csv, parts.csv or md."""
        return self.root / ("claims_parts.csv" if suffix == "parts.csv" else f"claims.{suffix}")

    def figure(self, name: str, suffix: str) -> Path:
        """A figure's file."""
        return self.root / "figures" / f"{name}.{suffix}"
