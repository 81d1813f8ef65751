"""The rows of a preset's benchmarks: checked at their source, and drawn into splits."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from metatuner.config import Config, expand_path
from metatuner.errors import UserError, suggest
from metatuner.files import write_text
from metatuner.harness.benchmarks import Benchmark, get_benchmark, load_hub, load_rows
from metatuner.harness.benchmarks.lm_eval_task import LmEvalBenchmark, Task
from metatuner.harness.splits import check_data, draw_splits
from metatuner.plan import Plan

SPLITS = ("pool", "tune", "test")
"""Files of a benchmark's splits."""


def configured(config: Config, name: str) -> Benchmark:
    """A benchmark with the preset's overrides."""
    wanted = config.benchmarks[name]
    found: Benchmark
    if wanted.task is not None:
        folder = wanted.include_path and expand_path(wanted.include_path, f"benchmarks.{name}.include_path")
        found = LmEvalBenchmark(name, Task(wanted.task, folder or None, wanted.metric, wanted.filter))
    else:
        found = get_benchmark(name, config.extra_benchmarks)
    return found.with_overrides(initial_prompt=wanted.initial_prompt, max_new_tokens=wanted.max_new_tokens)


def check_sources(plan: Plan) -> Iterator[str]:
    """Load each benchmark's rows from its source and yield lines with counts and hashes."""
    for name, benchmark in plan.config.benchmarks.items():
        files = plan.keys.source_files(name)
        if benchmark.source == "nano" and not all(file.is_file() for file in files):
            preset = plan.config.preset
            yield f"{name}: nano rows, not written yet; the run makes them, or `metatuner world preset={preset}`"
            continue
        # Nano files are train, tune, test, audit. Check train and test, which stand for the official splits.
        official = (files[0], files[2]) if benchmark.source == "nano" else files
        yield from check_data(configured(plan.config, name), official)


def draw(plan: Plan, name: str) -> str:
    """Draw a benchmark's splits and write them. Returns a line that says what was drawn."""
    config = plan.config
    if name not in config.benchmarks:
        raise UserError(f"--benchmark {name!r}: {suggest(name, config.benchmarks)}")
    benchmark, source = configured(config, name), config.benchmarks[name]
    names = ("train", "test") if source.source == "local" else ("train", "tune", "test", "audit")
    afar = source.source in ("hub", "lm_eval")
    files = dict(zip(names, plan.keys.source_files(name), strict=not afar))
    if afar:
        loaded = {split: load_hub(benchmark, split) for split in ("train", "test")}
    else:
        loaded = {split: load_rows(benchmark, file) for split, file in files.items() if split != "audit"}
    sizes = source.sizes
    splits = draw_splits(
        name,
        loaded["train"],
        loaded["test"],
        tune_rows=loaded.get("tune"),
        tune=sizes.tune,
        test=sizes.test,
        seed=source.split_seed,
    )
    splits.need(train=sizes.train, dev=sizes.dev)
    folder = plan.layout.data(name)
    key = _key(folder)
    key.unlink(missing_ok=True)
    splits.write(folder)
    write_text(key, plan.keys.data_key(name) + "\n")  # last: it marks the others as complete
    return f"{name}: {splits.summary()}"


def check_splits(plan: Plan, names: Iterable[str]) -> None:
    """UserError if the split files on disk belong to another config, so that no cell is computed from them."""
    for name in sorted(names):
        folder = plan.layout.data(name)
        key = _key(folder)
        lost = [split for split in SPLITS if not (folder / f"{split}.jsonl").is_file()]
        if lost or not key.is_file() or key.read_text(encoding="utf-8").strip() != plan.keys.data_key(name):
            command = f"metatuner data --config {plan.layout.config} --benchmark {name}"
            raise UserError(f"{folder}: no splits of this config; draw them with `{command}`")


def _key(folder: Path) -> Path:
    return folder / "key.txt"
