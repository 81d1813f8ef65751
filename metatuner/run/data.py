"""The rows of a preset's benchmarks: checked at their source, and drawn into splits."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from metatuner.config import Config, expand_path
from metatuner.errors import UserError, suggest
from metatuner.files import write_text
from metatuner.harness.benchmarks import Benchmark, get_benchmark, load_hub, load_rows
from metatuner.harness.benchmarks.lm_eval_task import LmEvalBenchmark, Task
from metatuner.harness.splits import check_data, draw_splits
from metatuner.integrity import DIGESTS, altered, check_folder, write_digests
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
    return found.with_overrides(
        initial_prompt=wanted.initial_prompt, max_new_tokens=wanted.max_new_tokens, choices=wanted.choices
    )


def check_sources(plan: Plan) -> Iterator[str]:
    """Load the rows of each benchmark that is run from its source and yield lines with counts and hashes."""
    for name in plan.grid.benchmarks:
        benchmark = plan.config.benchmarks[name]
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
    if source.source == "nano":
        world = plan.layout.world
        remedy = f"remove {world}, then run again, or run `metatuner world --config {plan.layout.config}`"
        check_folder(world, remedy, only=[file.relative_to(world).as_posix() for file in files.values()])
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
    digests = folder / DIGESTS
    digests.unlink(missing_ok=True)
    splits.write(folder)
    write_text(_key(folder), plan.keys.data_key(name) + "\n")
    write_digests(folder, [*(f"{split}.jsonl" for split in SPLITS), "splits.json", _key(folder).name])  # last
    return f"{name}: {splits.summary()}"


def check_splits(plan: Plan, names: Iterable[str], splits: Sequence[str] = SPLITS) -> None:
    """UserError unless the split files are those drawn for this config, so that no cell is computed from others.

    Args:
        plan: the plan of the config.
        names: benchmarks.
        splits: the splits that are about to be read.
    """
    for name in sorted(names):
        folder = plan.layout.data(name)
        remedy = f"draw them with `metatuner data --config {plan.layout.config} --benchmark {name}`"
        why = altered(folder, only=[*(f"{split}.jsonl" for split in splits), "splits.json"])
        if why is not None:
            raise UserError(f"{folder}: no whole splits ({why}); {remedy}")
        key = _key(folder)
        if not key.is_file() or key.read_bytes().decode("utf-8", "replace").strip() != plan.keys.data_key(name):
            raise UserError(f"{folder}: no splits of this config; {remedy}")


def _key(folder: Path) -> Path:
    return folder / "key.txt"
