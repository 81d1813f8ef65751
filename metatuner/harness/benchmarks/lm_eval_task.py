"""A task of lm-eval's that generates text, as a benchmark: its own queries, filter and metric, without demonstrations.

The task is loaded when its rows or scores are needed. A stock task loads its data through `datasets`: from the network,
or from the cache of an earlier run.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark
from metatuner.harness.rows import Row, normalise_text


@dataclass(frozen=True)
class Task:
    """Names a task, and what of it is used."""

    name: str
    folder: Path | None = None
    """The folder of the task's files; None: lm-eval's own tasks."""
    metric: str | None = None
    """None: exact_match."""
    filter: str | None = None
    """None: the task's first."""

    @cached_property
    def loaded(self) -> Any:
        """lm-eval's object of the task; `UserError` says why there is none, or why it cannot be a benchmark."""
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=self.folder, include_defaults=False)
        place = str(self._own_file()) if self.folder is None else self.name
        if self.folder is not None and self.name not in manager.all_subtasks:
            raise self.wrong(f"is in no file below {self.folder}; name another task or folder")
        try:
            (task,) = manager.load(place)["tasks"].values()
        # Tasks and `datasets` raise errors without a common base.
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            raise self.wrong(f"does not load ({reason}); connect to the network for its data, or mend it") from error
        if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "generate_until":
            raise self.wrong("does not generate text (output_type generate_until); choose another")
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False) or task.config.repeats != 1:
            raise self.wrong("runs code, shows images or sounds, or repeats its questions; choose another")
        higher = [name for name, better in task.higher_is_better().items() if better]
        if self.scored not in higher:
            raise self.wrong(f"has no metric {self.scored!r} where higher is better; set metric: {', '.join(higher)}")
        if self.filter is not None and self.filter not in [each.name for each in task._filters]:
            raise self.wrong(f"has no filter {self.filter!r}; set {', '.join(each.name for each in task._filters)}")
        task.config.description = ""  # a policy has its own prompt
        return task

    @property
    def scored(self) -> str:
        """The name of the metric."""
        return self.metric or "exact_match"

    def wrong(self, what: str) -> UserError:
        """An error about the task."""
        return UserError(f"lm-eval's task {self.name} {what}")

    def _own_file(self) -> Path:
        """The file of one of lm-eval's own tasks. To search texts is ten times as fast as lm-eval's index."""
        import lm_eval

        named = re.compile(rf"^task:\s*(['\"]?){re.escape(self.name)}\1\s*(#.*)?$", re.MULTILINE)
        for file in sorted((Path(lm_eval.__path__[0]) / "tasks").rglob("*.yaml")):
            if named.search(file.read_text(encoding="utf-8", errors="replace")):
                return file
        raise self.wrong("does not exist; `metatuner lm-eval ls tasks` lists those that do")

    @cache
    def docs(self, split: str) -> Any:
        """The documents of the split "training", "validation" or "test"; None if the task has no such split."""
        return getattr(self.loaded, f"{split}_docs")() if getattr(self.loaded, f"has_{split}_docs")() else None

    def query(self, doc: dict[str, Any]) -> str:
        """The text that lm-eval shows a model, without description and demonstrations."""
        return str(self.loaded.fewshot_context(doc, 0, gen_prefix=self.loaded.doc_to_prefix(doc)))

    def golds(self, doc: dict[str, Any]) -> tuple[str, ...]:
        """The reference answers as texts, the first one first."""
        target = self.loaded.doc_to_target(doc)
        if isinstance(target, int) and self.loaded.config.doc_to_choice is not None:
            target = self.loaded.doc_to_choice(doc)[target]
        golds = tuple(str(each) for each in target) if isinstance(target, list) else (str(target),)
        return golds or ("",)


class LmEvalBenchmark(Benchmark):
    """A benchmark made from a task. Its rows are the task's documents, named by split and number."""

    def __init__(self, id: str, task: Task) -> None:
        """
        Args:
            id: the benchmark's name in the preset.
            task: the task.
        """
        self.id = id  # type: ignore[misc]
        self.task = task
        self.metrics, self.primary = (task.scored,), task.scored  # type: ignore[misc]

    @property
    def version(self) -> Any:  # type: ignore[override]
        """The version that the task states."""
        return self.task.loaded.VERSION

    @property
    def stops(self) -> tuple[str, ...]:  # type: ignore[override]
        """The texts at which the task cuts answers."""
        until = self.task.loaded.config.generation_kwargs.get("until") or ()
        return (until,) if isinstance(until, str) else tuple(until)

    def official(self, split: str) -> list[Row]:
        """Rows of the task's test split, or of its validation split; train rows from another split that it has."""
        tested = "test" if self.task.loaded.has_test_docs() else "validation"
        wanted = [tested] if split == "test" else [each for each in ("training", "validation") if each != tested]
        for name in wanted:
            if (docs := self.task.docs(name)) is not None:
                return [self._row(f"{name}-{number}", doc) for number, doc in enumerate(docs)]
        raise self.task.wrong(f"has no rows to train on, only its {tested} split; a preset's benchmark needs both")

    def row(self, raw: dict[str, Any]) -> Row:
        """Always raises `UserError`: rows come from the task."""
        raise self.task.wrong("has its own rows; leave `path` out")

    def _row(self, id: str, doc: dict[str, Any]) -> Row:
        query, golds = self.task.query(doc), self.task.golds(doc)
        return Row(id, self.id, query, golds, golds[0].strip(), "all", normalise_text(query))

    def _doc(self, row: Row) -> dict[str, Any]:
        """The document of a row; `UserError` if the task's data are not those that the row was drawn from."""
        split, _, number = row.id.rpartition("-")
        docs = self.task.docs(split) if split in ("training", "validation", "test") else None
        if docs is None or not number.isdigit() or int(number) >= len(docs):
            raise self.task.wrong(f"has no row {row.id}; draw the splits again with `metatuner data`")
        doc: dict[str, Any] = docs[int(number)]
        if self.task.query(doc) != row.query:
            raise self.task.wrong(
                f"asks something else in row {row.id} now; draw the splits again with `metatuner data`"
            )
        return doc

    def extract(self, completion: str, row: Row) -> str | None:
        """What the task's filter finds."""
        from lm_eval.api.instance import Instance

        task = self.task.loaded
        chosen = next(each for each in task._filters if self.task.filter in (None, each.name))
        asked = Instance("generate_until", self._doc(row), ("", {}), 0, resps=[completion])
        chosen.apply([asked])
        found = asked.filtered_resps[chosen.name]
        if isinstance(found, list | tuple):
            found = found[0] if found else None
        # lm-eval's filters say "[invalid]" where they find nothing.
        return None if found in (None, "[invalid]") else str(found)

    def score(self, extracted: str | None, row: Row) -> dict[str, float]:
        """The task's metric, as its `process_results` computes it for one document; no answer scores 0."""
        if extracted is None:
            return {self.primary: 0.0}
        value = self.task.loaded.process_results(self._doc(row), [extracted]).get(self.primary)
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = -1.0
        if not 0 <= score <= 1:
            raise self.task.wrong(f"gives {value!r} as {self.primary} of row {row.id}, not a share; set another metric")
        return {self.primary: score}
