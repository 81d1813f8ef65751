"""Splits are fixed by a seed, disjoint by group, counted, and written with a hash of their ids."""

import hashlib
import json
from pathlib import Path

import pytest

from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.rows import Row, read_rows, rows_to_text
from metatuner.harness.splits import check_data, draw_splits, draw_train_dev


def row(name: str, group: str | None = None) -> Row:
    return Row(name, "gsm8k", f"q {name}", ("1",), "#### 1", "all", group or f"q {name}")


TRAIN = [row(f"train-{i}") for i in range(100)]
TEST = [row(f"test-{i}") for i in range(40)]


def ids(rows: object) -> list[str]:
    return [one.id for one in rows]  # type: ignore[attr-defined]


def test_the_same_seed_draws_the_same_splits_and_another_seed_others() -> None:
    first, again, other = (draw_splits("gsm8k", TRAIN, TEST, tune=10, test=20, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert ids(first.test) != ids(other.test)
    assert ids(first.tune) != ids(other.tune)


def test_each_benchmark_has_a_draw_of_its_own() -> None:
    one, other = (draw_splits(name, TRAIN, TEST, tune=10, test=20, seed=0) for name in ("gsm8k", "math"))
    assert ids(one.test) != ids(other.test)
    assert ids(one.tune) != ids(other.tune)


def test_test_rows_come_from_the_test_file_and_tune_rows_leave_the_pool() -> None:
    splits = draw_splits("gsm8k", TRAIN, TEST, tune=10, test=20, seed=0)
    assert (len(splits.test), len(splits.tune), len(splits.pool)) == (20, 10, 90)
    assert set(ids(splits.test)) <= set(ids(TEST))
    assert set(ids(splits.tune)) | set(ids(splits.pool)) == set(ids(TRAIN))
    assert splits.dropped == {"test": 0, "tune": 0}
    assert ids(draw_splits("gsm8k", TRAIN, TEST, tune=10, test=None, seed=0).test) == ids(TEST)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("own_tune", [False, True])
def test_no_group_lies_in_two_splits_and_what_is_left_out_is_counted(seed: int, own_tune: bool) -> None:
    def many(name: str, count: int, groups: range) -> list[Row]:
        return [row(f"{name}-{i}", group=f"group {groups[i % len(groups)]}") for i in range(count)]

    # Rows of a group have different ids and queries; groups 0 to 9 are in the train and in the test file.
    train, test = many("train", 120, range(40)), many("test", 30, range(10))
    tune = many("tune", 60, range(5, 20)) if own_tune else None
    splits = draw_splits("gsm8k", train, test, tune_rows=tune, tune=20, test=12, seed=seed)
    parts = {"pool": splits.pool, "tune": splits.tune, "test": splits.test}
    groups = {name: {one.group for one in rows} for name, rows in parts.items()}
    assert not groups["test"] & (groups["tune"] | groups["pool"])
    assert not groups["tune"] & groups["pool"]
    assert (len(splits.tune), len(splits.test)) == (20, 12)
    for name, rows, source in (("tune", splits.tune, train if tune is None else tune), ("test", splits.test, test)):
        assert set(ids(rows)) <= set(ids(source)), name
        assert ids(rows) == [one.id for one in source if one.id in set(ids(rows))]  # in the file's order
    # Whatever may be in the pool is, and every other row is counted once.
    apart = [one for one in train if one.group not in groups["test"] | groups["tune"]]
    assert list(splits.pool) == apart
    like_test = sum(one.group in groups["test"] for one in train)
    assert splits.dropped == {
        "test": like_test,
        "tune": len(train) - len(apart) - like_test - (0 if own_tune else 20),
    }
    assert splits.dropped["tune"] > 0 < splits.dropped["test"]


def test_tune_asks_only_for_rows_unlike_the_test_rows() -> None:
    leaks = [row(f"leak-{i}", group=TEST[i].group) for i in range(40)]
    draw_splits("gsm8k", [*TRAIN, *leaks], TEST, tune=100, test=None, seed=0)
    with pytest.raises(UserError, match="tune asks for 101 rows, 100 are there"):
        draw_splits("gsm8k", [*TRAIN, *leaks], TEST, tune=101, test=None, seed=0)


def test_tune_rows_of_their_own_are_used_where_there_are_any() -> None:
    own = [row(f"tune-{i}") for i in range(12)]
    splits = draw_splits("gsm8k", TRAIN, TEST, tune_rows=own, tune=12, test=None, seed=0)
    assert ids(splits.tune) == ids(own)
    assert ids(splits.pool) == ids(TRAIN)
    # Rows that stand in both files are left out of the pool, and counted as lost to it.
    same = draw_splits("gsm8k", TRAIN, TEST, tune_rows=TRAIN[:12], tune=12, test=None, seed=0)
    assert same.dropped == {"test": 0, "tune": 12}
    assert ids(same.pool) == ids(TRAIN[12:])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"tune": 10, "test": 41}, r"gsm8k: test asks for 41 rows, 40 are there; lower benchmarks\.gsm8k\.sizes"),
        ({"tune": 101, "test": 40}, "gsm8k: tune asks for 101 rows, 100 are there"),
    ],
)
def test_asking_for_more_rows_than_there_are_names_benchmark_split_and_counts(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        draw_splits("gsm8k", TRAIN, TEST, **sizes, seed=0)


def test_the_need_of_train_and_dev_rows_is_checked_before_anything_is_fitted() -> None:
    splits = draw_splits("gsm8k", TRAIN, TEST, tune=10, test=None, seed=0)
    splits.need(train=80, dev=10)
    splits.need(train=None, dev=89)
    with pytest.raises(UserError, match="train and dev asks for 91 rows, 90 are there"):
        splits.need(train=81, dev=10)
    with pytest.raises(UserError, match="asks for 91 rows"):
        splits.need(train=None, dev=90)


def test_written_splits_list_their_ids_with_a_hash(tmp_path: Path) -> None:
    splits = draw_splits("gsm8k", TRAIN, TEST, tune=10, test=20, seed=0)
    splits.write(tmp_path)
    listing = json.loads((tmp_path / "splits.json").read_text(encoding="utf-8"))
    for name, rows in (("pool", splits.pool), ("tune", splits.tune), ("test", splits.test)):
        assert read_rows(tmp_path / f"{name}.jsonl") == list(rows)
        entry = listing["splits"][name]
        assert entry["ids"] == ids(rows)
        assert entry["sha256"] == hashlib.sha256("".join(f"{one}\n" for one in ids(rows)).encode()).hexdigest()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    splits.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def pool(tmp_path: Path, rows: list[Row]) -> Path:
    path = tmp_path / "pool.jsonl"
    path.write_text(rows_to_text(rows), encoding="utf-8")
    return path


def test_each_seed_redraws_train_and_dev_and_no_group_is_in_both(tmp_path: Path) -> None:
    path = pool(tmp_path, [row(f"r{i}", group=f"g{i // 3}") for i in range(90)])
    drawn = [draw_train_dev(path, 30, 10, seed=seed, benchmark="gsm8k") for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert ids(drawn[0][0]) != ids(drawn[2][0])
    for train, dev in drawn:
        assert (len(train), len(dev)) == (30, 10)
        assert not {one.group for one in train} & {one.group for one in dev}


def test_more_train_rows_extend_the_same_draw_and_keep_dev(tmp_path: Path) -> None:
    path = pool(tmp_path, TRAIN)
    few, many, every = (draw_train_dev(path, n, 10, seed=5, benchmark="gsm8k") for n in (20, 50, None))
    assert few[0] == many[0][:20] == every[0][:20]
    assert few[1] == many[1] == every[1]
    assert len(every[0]) == 90


def test_a_pool_too_small_names_what_is_asked_and_there(tmp_path: Path) -> None:
    path = pool(tmp_path, TRAIN)
    with pytest.raises(UserError, match="gsm8k: dev asks for 101 rows, 100 are there"):
        draw_train_dev(path, 1, 101, seed=0, benchmark="gsm8k")
    with pytest.raises(UserError, match="gsm8k: train asks for 91 rows, 90 are there"):
        draw_train_dev(path, 91, 10, seed=0, benchmark="gsm8k")


def test_check_data_counts_hashes_and_finds_shared_questions(tmp_path: Path) -> None:
    def write(name: str, questions: list[str]) -> Path:
        lines = [
            json.dumps({"id": f"{name}{i}", "question": question, "answer": "#### 1"})
            for i, question in enumerate(questions)
        ]
        path = tmp_path / name
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    files = [write("train", ["One?", "two?", "three?"]), write("test", ["ONE?", "four?"])]
    said = "\n".join(check_data(get_benchmark("gsm8k"), files))
    assert "gsm8k train: 3 rows" in said
    assert hashlib.sha256(b"test0\ntest1\n").hexdigest() in said
    assert "1 train rows share a query" in said


def test_real_rows_make_disjoint_splits(data_root: Path) -> None:
    from metatuner.harness.benchmarks import load_rows

    for name, tune, test in (("cosmosqa", 100, 1000), ("math", 200, 450)):
        benchmark = get_benchmark(name)
        train_rows, test_rows = (load_rows(benchmark, data_root / name / f"{part}.jsonl") for part in ("train", "test"))
        splits = draw_splits(name, train_rows, test_rows, tune=tune, test=test, seed=0)
        groups = [{one.group for one in part} for part in (splits.pool, splits.tune, splits.test)]
        assert not groups[0] & groups[1]
        assert not (groups[0] | groups[1]) & groups[2]
        assert len(splits.pool) + tune + sum(splits.dropped.values()) == len(train_rows)
