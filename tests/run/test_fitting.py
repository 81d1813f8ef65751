"""One fit: what exists is complete, what fails says why and leaves nothing, and random streams come from the cell."""

import errno
import json
import random
import re
import shutil
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch

from metatuner.errors import UserError
from metatuner.files import complete_folder
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget, Usage
from metatuner.harness.ground import Ground
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import load_policy
from metatuner.harness.query import to_query
from metatuner.harness.rows import Row, rows_to_text
from metatuner.hashing import derive_seed
from metatuner.lm import ModelSpec, generate
from metatuner.run.fitting import FitTask, Outcome, run_fit
from metatuner.run.models import ModelPool
from tests.toys.lm import save_tiny, tiny_lm


def rows_of(benchmark: str) -> list[Row]:
    """Of the same ids in every benchmark, two a group."""
    return [
        Row(f"r{i}", benchmark, f"w{i % 50} w{i // 50}", (str(i),), f"#### {i}", "all", f"g{i // 2}") for i in range(60)
    ]


ROWS = rows_of("gsm8k")


@dataclass(frozen=True)
class Toy(Method):
    """A method whose fit is a function."""

    act: object = None
    settings: object = None
    name = "toy"
    title = "toy"
    family = "vanilla"
    reference = "none"

    def skip(self, lab):
        return "no reason at all" if self.act == "skip" else None

    def fit(self, lab):
        return self.act(lab)


class TinyPool(ModelPool):
    """A pool of random models made on the spot."""

    def __init__(self):
        super().__init__({})

    def get(self, role, *, share):
        return tiny_lm()


@pytest.fixture
def fit(tmp_path):
    def pool(name: str) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(rows_to_text(rows_of(name)), encoding="utf-8")
        return path

    def run(act, *, seed=0, prerequisites=None, budget=None, seconds=None, train=("gsm8k",), sizes=None, generator=""):
        task = FitTask(
            key="k",
            method=Toy(act),
            benchmarks={name: get_benchmark(name).with_overrides(max_new_tokens=3) for name in train},
            pools={name: pool(name) for name in train},
            sizes=sizes or dict.fromkeys(train, (20, 10)),
            generator=generator,
            seed=seed,
            budget=budget or Budget(),
            prerequisites=prerequisites or {},
            batch_tokens=512,
            identity={"method": "toy"},
            seconds=seconds,
        )
        return run_fit(task, TinyPool(), tmp_path / "fits" / "k", tmp_path / "failed.txt", share=False)

    run.folder = tmp_path / "fits" / "k"
    run.traceback = tmp_path / "failed.txt"
    return run


def zero(lab):
    return StaticPolicy(lab, {"gsm8k": "w1 w2"})


def nothing_left(folder: Path) -> bool:
    return not folder.exists() and list(folder.parent.iterdir()) == []


def test_a_fit_leaves_policy_cost_log_and_identity(fit):
    def act(lab):
        lab.log(event="hello", rows=len(lab.train))
        lab.answer([to_query(row) for row in lab.train[:4]], "w1")
        return zero(lab)

    assert fit(act) == Outcome("k", "ok")
    names = ["cost.json", "digests.json", "fit.json", "log.jsonl", "policy"]
    assert sorted(path.name for path in fit.folder.iterdir()) == names
    assert json.loads((fit.folder / "log.jsonl").read_text()) == {"event": "hello", "rows": 20}
    cost = json.loads((fit.folder / "cost.json").read_text())
    assert cost["lm_calls"] == 4
    assert 0 < cost["generated_tokens"] <= 12
    assert cost["seconds"] > 0
    assert cost["peak_memory_bytes"] > 10**7


def test_the_saved_policy_answers_as_the_fitted_one(fit):
    held = {}

    def act(lab):
        policy = zero(lab)
        held["answers"] = policy.respond([to_query(row) for row in ROWS[:5]])
        return policy

    fit(act)
    ground = Ground(tiny_lm(), None, {"gsm8k": get_benchmark("gsm8k").with_overrides(max_new_tokens=3)})
    loaded = load_policy(fit.folder / "policy", ground)
    assert loaded.respond([to_query(row) for row in ROWS[:5]]) == held["answers"]


def test_what_a_method_raises_is_its_outcome_with_the_traceback_kept(fit):
    def act(lab):
        raise ZeroDivisionError("the author's mistake")

    outcome = fit(act)
    assert (outcome.status, outcome.reason) == ("failed", "ZeroDivisionError: the author's mistake")
    assert "in act" in fit.traceback.read_text()
    assert nothing_left(fit.folder)
    assert fit(zero).status == "ok"
    assert not fit.traceback.exists()


def test_returning_no_policy_fails_in_plain_words(fit):
    outcome = fit(lambda lab: "a prompt")
    assert outcome.reason == "method toy: fit returned str, not a Policy"
    assert nothing_left(fit.folder)


def test_a_skipped_fit_gives_its_reason_and_no_folder(fit):
    assert fit("skip") == Outcome("k", "skipped", "no reason at all")
    assert nothing_left(fit.folder)


def test_a_full_disk_while_saving_leaves_no_policy_that_is_later_believed(fit, monkeypatch):
    def full(self, folder):
        (folder / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(StaticPolicy, "write", full)
    outcome = fit(zero)
    assert outcome.status == "failed"
    assert "No space left on device" in outcome.reason
    assert nothing_left(fit.folder)


def test_a_policy_folder_without_its_manifest_is_not_believed(fit):
    fit(zero)
    (fit.folder / "policy" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no complete policy is saved here"):
        load_policy(fit.folder / "policy", Ground(tiny_lm(), None, {}))


def test_over_budget_fails_and_says_which_limit(fit):
    outcome = fit(
        lambda lab: lab.answer([to_query(row) for row in lab.train], "w1"), budget=Budget({"lm_calls": 5}, "small")
    )
    assert outcome.status == "failed"
    assert outcome.reason.startswith("budget 'small': lm_calls reached 20, the limit is 5")


def test_what_a_prerequisite_cost_is_counted(fit, tmp_path):
    before = tmp_path / "before"
    before.mkdir()
    spent = {"lm_calls": 100, "prompt_tokens": 200, "generated_tokens": 300, "trained_tokens": 400}
    by_model = {"actor": {**spent, "flops": 5_000}}
    (before / "cost.json").write_text(json.dumps({**spent, "seconds": 1.0, "flops": 5_000, "by_model": by_model}))
    fit(zero, prerequisites={"warm_up": before})
    cost = json.loads((fit.folder / "cost.json").read_text())
    assert {name: cost[name] for name in spent} == spent
    assert cost["flops"] == 5_000
    assert cost["by_model"]["actor"] == by_model["actor"]


def test_the_lab_is_told_what_the_fit_is_of(fit, tmp_path):
    before = tmp_path / "before"
    before.mkdir()
    (before / "cost.json").write_text(json.dumps({**asdict(Usage()), "flops": 0, "by_model": {}}))
    seen = {}

    def act(lab):
        (lab.workdir / "scratch").write_text("x")
        lab.log(event="proposer" if lab.proposer else "none")
        seen["lab"] = (lab.trained_on, lab.generator_name, lab.seed, lab.batch_tokens, lab.required("warm_up"))
        return zero(lab)

    changes = {"train": ("math", "gsm8k"), "generator": "large", "seed": 5, "prerequisites": {"warm_up": before}}
    assert fit(act, **changes).status == "ok"
    assert seen["lab"] == (("math", "gsm8k"), "large", 5, 512, before / "policy")
    assert json.loads((fit.folder / "fit.json").read_text()) == {"method": "toy"}


def test_a_hung_method_fails_with_the_key_to_raise(fit):
    def hang(lab):
        while True:
            pass

    outcome = fit(hang, seconds=0.3)
    assert outcome.status == "failed"
    assert re.search(r"not done after 0.3 s; .*budgets\.\w+\.seconds", outcome.reason)
    assert not fit.folder.exists()


@pytest.fixture
def drawn(fit):
    """The train and dev rows of a fit, as (benchmark, id) pairs."""

    def draw(**changes):
        found = []

        def act(lab):
            found.extend([(row.benchmark, row.id) for row in rows] for rows in (lab.train, lab.dev))
            return zero(lab)

        shutil.rmtree(fit.folder, ignore_errors=True)
        assert fit(act, **changes).status == "ok"
        return tuple(found)

    return draw


def test_train_and_dev_are_redrawn_by_the_seed_and_disjoint(drawn):
    train, dev = drawn(seed=0)
    assert (len(train), len(dev)) == (20, 10)
    assert not set(train) & set(dev)
    assert drawn(seed=0) == (train, dev)
    other = drawn(seed=1)
    assert other[0] != train
    assert other[1] != dev


def test_rows_of_several_benchmarks_come_in_one_mixed_stream_redrawn_by_the_seed(drawn):
    names, sizes = ("gsm8k", "math", "cosmosqa"), {"gsm8k": (20, 10), "math": (8, 3), "cosmosqa": (None, 6)}
    train, dev = drawn(train=names, sizes=sizes)
    alone = {name: drawn(train=(name,), sizes={name: sizes[name]}) for name in names}
    # Which rows are drawn of a benchmark does not depend on the others.
    for index, rows in enumerate((train, dev)):
        for name in names:
            assert sorted(row for row in rows if row[0] == name) == sorted(alone[name][index])
    assert {id for _, id in alone["gsm8k"][0]} != {id for _, id in alone["math"][0]}  # each has a draw of its own
    labels = [name for name, _ in train]
    changes = sum(left != right for left, right in pairwise(labels))
    assert changes > len(train) / 3  # one benchmark after the other: 2
    torch.rand(3)
    random.random()
    assert drawn(train=names, sizes=sizes) == (train, dev)
    redrawn = drawn(train=names, sizes=sizes, seed=1)[0]
    assert set(redrawn) != set(train)
    other = [name for name, _ in redrawn]
    assert sorted(other) == sorted(labels)
    assert other != labels


def test_the_lab_has_no_handle_on_tune_or_test(fit):
    def act(lab):
        assert not [name for name in dir(lab) if "test" in name or "tune" in name]
        return zero(lab)

    assert fit(act).status == "ok"


def test_global_generators_are_seeded_by_the_cell_not_by_what_ran_before(fit):
    def drawn(**changes):
        found = []

        def act(lab):
            found.append((random.random(), float(numpy.random.rand()), torch.rand(1).item(), lab.stream("global")))
            return zero(lab)

        shutil.rmtree(fit.folder, ignore_errors=True)
        fit(act, **changes)
        torch.rand(7)
        random.random()
        numpy.random.rand()
        return found[0]

    first, other, paired = drawn(), drawn(seed=1), drawn(train=("math",))
    assert drawn() == first
    seed = derive_seed("gsm8k", "", 0, "global")
    assert first[3] == seed
    assert first[0] == random.Random(seed).random()
    assert first[1] == numpy.random.RandomState(seed % 2**32).rand()
    assert first[2] == torch.rand(1, generator=torch.Generator().manual_seed(seed)).item()
    for each in (other, paired):
        assert not set(each) & set(first)


def test_models_are_metered_by_role_while_the_method_fits_and_no_longer_after(fit):
    held = {}

    def act(lab):
        held.update(actor=lab.actor, generator=lab.generator)
        lab.answer([to_query(row) for row in ROWS[:4]], "w1")
        lab.rewrite([to_query(row) for row in ROWS[:3]], "w1", max_new_tokens=2)
        if held.get("fails"):
            raise ValueError("no luck")
        return zero(lab)

    for fails in (False, True):
        held["fails"], budget = fails, Budget({"lm_calls": 7}, "small")
        assert fit(act, budget=budget, generator="large").status == ("failed" if fails else "ok")
        assert {role: use.usage.lm_calls for role, use in budget.by_model.items()} == {"actor": 4, "generator": 3}
        before = budget.cost()
        ground = Ground(held["actor"], held["generator"], {"gsm8k": get_benchmark("gsm8k")})
        ground.rewrite([to_query(row) for row in ROWS[:9]], "w1", max_new_tokens=2)
        held["actor"].model(input_ids=torch.tensor([[7, 8]]))
        assert budget.cost() == before
        shutil.rmtree(fit.folder, ignore_errors=True)


def test_a_block_that_dies_leaves_no_folder_and_one_that_ends_leaves_all(tmp_path):
    final = tmp_path / "made"

    def die():
        with complete_folder(final) as temporary:
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    assert list(tmp_path.iterdir()) == []
    with complete_folder(final) as temporary:
        (temporary / "whole").write_text("x")
    assert [path.name for path in final.iterdir()] == ["whole"]


def test_what_another_process_has_made_meanwhile_stays_and_is_no_error(tmp_path):
    final = tmp_path / "made"
    with complete_folder(final) as temporary:
        (temporary / "mine").write_text("x")
        final.mkdir()
        (final / "theirs").write_text("x")
    assert [path.name for path in final.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_cannot_take_its_place_is_an_error_and_leaves_nothing(tmp_path):
    final = tmp_path / "made"
    final.write_text("a file")

    def make():
        with complete_folder(final) as temporary:
            (temporary / "mine").write_text("x")

    with pytest.raises(OSError, match="made"):
        make()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert final.read_text() == "a file"


def test_the_pools_spec_says_what_to_load(tmp_path):
    pool = ModelPool({"actor": ModelSpec(str(tmp_path / "none"))})
    with pytest.raises(UserError, match="no such folder"):
        pool.get("actor", share=False)


def test_each_fit_gets_a_model_that_no_other_has_changed_or_meters(tmp_path):
    save_tiny(tmp_path / "model")
    pool = ModelPool({"actor": ModelSpec(str(tmp_path / "model"))})
    prompts = [[7, 8, 9], [10, 11]]

    def answers(lm):
        return [each.ids for each in generate(lm, prompts, max_new_tokens=4)]

    heard, found = [], []
    for share in (False, False, True, True):
        lm = pool.get("actor", share=share)
        found.append(answers(lm))
        lm.traffic.listeners.append(lambda *counts: heard.append(counts))
        with torch.no_grad():
            lm.model.get_input_embeddings().weight.zero_()
        assert answers(lm) != found[0]
    assert found == [found[0]] * 4
    assert len(heard) == 4  # each once, by its own meter: in the second answers
