"""What the Snakefile needs: the plan's packs, keys and files, in Snakemake's terms."""

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from metatuner.analysis.figures import figures_of
from metatuner.analysis.tables import tables_of
from metatuner.config import Config, dump_config, from_snakemake, load_config
from metatuner.errors import UserError
from metatuner.files import write_text
from metatuner.hashing import ROOT, hash_code, hash_value
from metatuner.plan import Pack, Plan
from metatuner.plan.attempts import is_lost, read_attempts

ANALYSIS = ROOT / "metatuner" / "analysis"
PUBLISHED = sorted((ROOT / "results" / "published").glob("*.csv"))


def _check_writable(key: str, folder: Path) -> None:
    """UserError unless the folder that a config key names can be written or made."""
    where, remedy = f"config key {key!r}: {folder}", f"choose another folder with --config {key}=FOLDER"
    if "{" in str(folder) or "}" in str(folder):
        raise UserError(f"{where}: braces are Snakemake's; {remedy}")
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long
        raise UserError(f"{where}: {error.strerror}; {remedy}") from None
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{where}: {there} is no folder that can be written; make it one, or {remedy}")


class Dag:
    """A plan seen as files."""

    def __init__(self, config: Config) -> None:
        self.plan = Plan(config)
        self.layout = self.plan.layout
        self.config_file = str(self.layout.config)

    @classmethod
    def from_snakemake(cls, config: Mapping[str, Any]) -> "Dag":
        """From Snakemake's config: `preset`, and any keys that override it. Any error in it is raised here."""
        overrides = from_snakemake({key: value for key, value in config.items() if key != "preset"})
        dag = cls(load_config(str(config["preset"]), overrides))
        dag.plan.check()
        _check_writable("results", dag.layout.root)
        _check_writable("cache", dag.layout.cache)
        return dag

    def write_config(self) -> None:
        """Write the resolved config, which every command reads."""
        text, path = dump_config(self.plan.config), self.layout.config
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)

    # ---- ground ------------------------------------------------------------------------------------------------

    @property
    def uses_nano_rows(self) -> bool:
        """Whether any benchmark's rows come from the nano world."""
        return any(benchmark.source == "nano" for benchmark in self.plan.config.benchmarks.values())

    @property
    def world_files(self) -> list[Path]:
        """Files of raw nano rows."""
        nano = [name for name, config in self.plan.config.benchmarks.items() if config.source == "nano"]
        return [file for name in nano for file in self.plan.keys.source_files(name)]

    @property
    def world_words(self) -> list[str]:
        """Command-line arguments for this preset's world: all that pretraining takes from a config."""
        config = self.plan.config
        world = {f"nano.{key}": value for key, value in config.nano.model_dump(mode="json").items()}
        return [f"{key}={json.dumps(value)}" for key, value in sorted(world.items())] + [f"cache={config.cache}"]

    @property
    def world_key(self) -> str:
        """What the raw nano rows depend on."""
        return hash_value([self.plan.keys.world_key, self.plan.keys.world_sizes()])

    @property
    def world_report_key(self) -> str:
        """What the measured bars depend on."""
        code = hash_code(ROOT / "metatuner" / "nano" / "bars.py")
        return hash_value([self.world_key, self.plan.grid.benchmarks, code])

    @property
    def model_marks(self) -> list[Path]:
        """The marker files of the nano models: a model is complete if its file exists."""
        keys = self.plan.keys
        return [self.layout.model(role, keys.nano_key(role)) / "pretraining.json" for role in keys.nano_roles]

    def data_inputs(self, benchmark: str) -> list[Path]:
        """Raw files of a benchmark; none for the Hub."""
        return list(self.plan.keys.source_files(benchmark))

    def split_file(self, benchmark: str) -> Path:
        """The list of a benchmark's splits."""
        return self.layout.data(benchmark) / "splits.json"

    def split_files(self, benchmark: str, *splits: str) -> list[Path]:
        """The list of a benchmark's splits, and files of rows, so that a lost one is drawn again."""
        return [self.split_file(benchmark), *(self.layout.data(benchmark) / f"{split}.jsonl" for split in splits)]

    # ---- packs -------------------------------------------------------------------------------------------------

    def _pack(self, packs: Mapping[str, Any], name: str) -> Any:
        if name not in packs:
            raise UserError(f"no pack {name!r} in this preset; see results/<preset>/packs")
        return packs[name]

    def fit_inputs(self, name: str) -> list[Path]:
        """Splits of the benchmarks a pack trains on, and the packs it builds on."""
        pack = self._pack(self.plan.packs.fits, name)
        trained = dict.fromkeys(benchmark for key in pack.keys for benchmark in self.plan.grid.fits[key].train)
        splits = [file for name in trained for file in self.split_files(name, "pool")]
        return [*splits, *map(self.plan.packs.fit_file, pack.needs)]

    def first_packs(self, packs: dict[str, Pack]) -> str:
        """A pattern that matches the names of the packs that the main experiment needs."""
        return "|".join(name for name, pack in packs.items() if self.plan.packs.comes_first(pack))

    def fit_keys(self, name: str) -> list[str]:
        """Keys of a fit pack."""
        return list(self._pack(self.plan.packs.fits, name).keys)

    @property
    def efficiency_inputs(self) -> list[Path]:
        """The fit and evaluation packs of the policies that are timed, and splits to time them on."""
        packs, timed = self.plan.packs, self.plan.grid.timed_cells
        fits, cells = {cell.fit.key for cell in timed}, {cell.key for cell in timed}
        fitted = [name for name, pack in packs.fits.items() if not fits.isdisjoint(pack.keys)]
        tested = [name for name, pack in packs.evaluations.items() if not cells.isdisjoint(pack.keys)]
        names = dict.fromkeys(cell.benchmark for cell in timed)
        splits = [file for name in names for file in self.split_files(name, "tune")]
        return [*splits, *map(packs.fit_file, fitted), *map(packs.evaluation_file, tested)]

    @property
    def efficiency_key(self) -> str:
        """What timings depend on."""
        keys = [cell.fit.key for cell in self.plan.grid.timed_cells]
        code = hash_code(ROOT / "metatuner" / "run" / "efficiency.py")
        return hash_value([keys, self.plan.config.timed_rows, code])

    @property
    def timings(self) -> list[Path]:
        """The file of timings; none if the preset times no policies."""
        return [self.layout.efficiency] if self.plan.config.timed_rows else []

    def table_inputs(self, name: str) -> list[Path]:
        """What a table is made from, in addition to cells and logs."""
        return [self.layout.scores, *(self.timings if name == "table_5" else [])]

    def evaluate_inputs(self, name: str) -> list[Path]:
        """Splits of the benchmarks a pack is tested on, and the fit packs that hold its policies."""
        pack = self._pack(self.plan.packs.evaluations, name)
        tested = dict.fromkeys(self.plan.grid.cells[key].benchmark for key in pack.keys)
        splits = [file for name in tested for file in self.split_files(name, "test")]
        return [*splits, *map(self.plan.packs.fit_file, pack.needs)]

    def evaluate_keys(self, name: str) -> list[str]:
        """Keys of an evaluate pack."""
        return list(self._pack(self.plan.packs.evaluations, name).keys)

    def retry(self, step: str, name: str) -> str:
        """A number that changes if a pack must run again although its keys are the same ("" for 0).

        It counts the runs that left a failure, and the runs for something that was complete and is now missing or
        altered. The job gets the number and stores it (after a failure, the next number) for the next run.

        Args:
            step: a rule with packs, or world, data, pretrain, results.
            name: the pack, or what distinguishes the jobs of the other rules.
        """
        count = read_attempts(self.layout.attempts(step, name)) + is_lost(self.plan, step, name)
        return str(count) if count else ""

    @property
    def collected_files(self) -> list[Path]:
        """Outcomes, and what `scores` makes from them.

        They are targets, because Snakemake does not make a lost file again if the files made from it exist.
        """
        return [
            *self.plan.packs.files,
            self.layout.settings,
            self.layout.methods,
            self.layout.searches,
            self.layout.query_scores,
            self.layout.digests,
        ]

    # ---- tuning ------------------------------------------------------------------------------------------------

    def tuning_needs(self, benchmark: str) -> list[str]:
        """Keys of the fits that the searches on a benchmark build on."""
        return [fit.key for fit in self.plan.searches.needs(benchmark)]

    def tune_inputs(self, method: str, benchmark: str) -> list[Path]:
        """What a search reads: splits, and warm-ups if its method builds on some."""
        builds_on = self.plan.registry[method.partition(".")[0]].cls.requires
        splits = self.split_files(benchmark, "pool", "tune")
        return [*splits, *([self.layout.pack("tune", benchmark)] if builds_on else [])]

    @property
    def tune_files(self) -> list[Path]:
        """The files of all searches of the preset."""
        return [self.layout.tune(method, benchmark) for method, benchmark in self.plan.searches.all]

    # ---- results -----------------------------------------------------------------------------------------------

    @cached_property
    def scores_key(self) -> str:
        """What scores.csv, the files written with it and the provenance depend on, in addition to the packs."""
        code = hash_code(*(ANALYSIS / "results" / f"{name}.py" for name in ("scores", "divergence", "provenance")))
        rows = [row.as_dict() for row in self.plan.grid.rows]
        return hash_value([rows, self.plan.descriptions, self.plan.searches.describe(), code])

    @cached_property
    def tables_key(self) -> str:
        """What tables depend on, in addition to scores.csv."""
        return hash_code(ANALYSIS / "tables" / "__init__.py", data=PUBLISHED)

    @cached_property
    def figures_key(self) -> str:
        """What figures depend on, in addition to scores.csv."""
        return hash_code(ANALYSIS / "figures" / "__init__.py", ANALYSIS / "figures" / "budget.py", data=PUBLISHED)

    @cached_property
    def claims_key(self) -> str:
        """What claims depend on, in addition to scores.csv."""
        config = self.plan.config
        experiments = config.model_dump(mode="json")["experiments"]
        return hash_value([experiments, config.claims, hash_code(ANALYSIS / "claims" / "__init__.py", data=PUBLISHED)])

    @property
    def draws_framework(self) -> bool:
        """Whether Figure 2 is drawn: an experiment has MetaTuner-J."""
        return self.plan.settings.framework() is not None

    @cached_property
    def framework_key(self) -> str:
        """What the drawing of the framework depends on."""
        return hash_value(
            [self.plan.settings.framework(), self.plan.config.preset, hash_code(ANALYSIS / "figures" / "framework.py")]
        )

    @property
    def tables(self) -> list[str]:
        """Names of the preset's tables."""
        return list(tables_of(self.plan.config))

    @property
    def figures(self) -> list[str]:
        """Names of the preset's figures that are drawn from scores."""
        return list(figures_of(self.plan.config))

    @cached_property
    def report_key(self) -> str:
        """What the report depends on, in addition to the files that it shows."""
        assets = [path for path in sorted((ANALYSIS / "report").iterdir()) if path.suffix in (".css", ".js", ".jinja")]
        return hash_code(ANALYSIS / "report" / "page.py", data=assets)

    @property
    def report_inputs(self) -> list[Path]:
        """The files that the report shows."""
        layout = self.layout
        files = [layout.scores, layout.provenance]
        drawn = self.figures + ["figure_2"] * self.draws_framework
        files += [layout.table(name, suffix) for name in self.tables for suffix in ("csv", "md", "tex", "json")]
        files += [layout.figure(name, suffix) for name in drawn for suffix in ("png", "pdf")]
        files += [layout.claims(suffix) for suffix in ("csv", "parts.csv", "md")]
        if self.uses_nano_rows:
            files += [layout.root / "world.json", layout.root / "world.md"]
        return files

    @property
    def result_files(self) -> list[Path]:
        """What `snakemake --cores all` makes."""
        return [*self.report_inputs, self.layout.report]
