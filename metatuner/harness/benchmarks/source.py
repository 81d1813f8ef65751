"""Where rows come from: local JSON Lines in a benchmark's raw schema, or the Hugging Face Hub."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.harness.benchmarks.base import Benchmark
from metatuner.harness.rows import Row, numbered_objects


def load_raw(path: Path) -> Iterator[dict[str, Any]]:
    """The raw rows of a JSON Lines file; `UserError` names the file and line that cannot be read."""
    return (raw for _, raw in numbered_objects(path))


def load_rows(benchmark: Benchmark, path: Path) -> list[Row]:
    """The rows of a JSON Lines file in the benchmark's raw schema, in file order.

    Raises `UserError` with file and line as `load_raw` does, or if a field is missing or has the wrong type.
    """
    return _checked(benchmark, ((f"{path}:{number}", raw) for number, raw in numbered_objects(path)))


def _checked(benchmark: Benchmark, placed: Iterable[tuple[str, dict[str, Any]]]) -> list[Row]:
    rows = []
    for place, raw in placed:
        try:
            rows.append(benchmark.row(raw))
        except UserError as error:
            raise UserError(f"{place}: {benchmark.id}: {error}") from None
    return rows


def load_hub(benchmark: Benchmark, split: str) -> list[Row]:
    """The rows of the official `split` ("train" or "test") from the Hugging Face Hub, in the order of the Hub.

    A benchmark that loads its rows itself is asked for them.

    Raises `UserError` if the benchmark has no Hub address, the Hub cannot be reached, or a record lacks a field.
    """
    if (own := benchmark.official(split)) is not None:
        return own
    source = benchmark.hub
    if source is None:
        raise UserError(f"{benchmark.id}: has no Hub address; name local JSON Lines files in the config instead")
    from datasets import load_dataset

    name = source.train if split == "train" else source.test
    place = f"{source.path}, {name} split"
    try:
        records = load_dataset(source.path, source.config, split=name, revision=source.revision)
    # The library's errors for a missing network, repository, revision or split have no more specific common base.
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{benchmark.id}: cannot load {place} from the Hugging Face Hub ({reason}); "
            "connect to the network, or name local JSON Lines files in the config"
        ) from error
    return _checked(benchmark, _numbered(benchmark, records, split, place))


def _numbered(
    benchmark: Benchmark, records: Iterable[Any], split: str, place: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, record in enumerate(records):
        try:
            raw = benchmark.raw_from_hub(dict(record), f"{split}-{index}")
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{place}, record {index}: {benchmark.id}: not the published form ({error!r}); use local files"
            ) from None
        yield f"{place}, record {index}", raw
