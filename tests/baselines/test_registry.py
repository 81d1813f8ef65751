"""The registry finds the baselines; the two without a fit; and the method that the docs walk through runs."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from baselines.few_shot import FewShot
from baselines.few_shot import Settings as FewShotSettings
from baselines.zero_shot import ZeroShot
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.loop import Rows, Shares
from metatuner.harness.method import Method
from metatuner.harness.policy import load_policy
from metatuner.harness.query import to_query
from metatuner.harness.registry import Registry
from tests.toys.baselines import NEW_TOKENS, SHORT, sums, tiny_lm, toy_lab

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {"zero_shot": "vanilla", "few_shot": "vanilla", "opro": "prompt", "sft": "parameter"}


def test_registry_finds_the_baselines() -> None:
    registry = Registry()
    found = {name: registry[name] for name in registry.names() if name in FAMILIES}
    assert {name: each.cls.family for name, each in found.items()} == FAMILIES
    assert all(each.file == ROOT / "baselines" / f"{name}.py" for name, each in found.items())


def test_every_setting_of_a_baseline_is_explained() -> None:
    for file in (ROOT / "baselines").glob("[!_]*.py"):
        block = re.search(r"class Settings:\n(.*?)\n\n\n", file.read_text(encoding="utf-8"), re.DOTALL)
        lines = block[1].splitlines() if block else []
        for line, after in pairwise([*lines, ""]):
            if re.match(r"    \w+: ", line):
                assert after.startswith('    """'), f"{file.name}: no docstring under {line.strip()!r}"


def test_zero_shot_asks_under_the_initial_prompt(tmp_path: Path) -> None:
    lab = toy_lab(tmp_path, sums(3), actor=tiny_lm())
    queries = [to_query(row) for row in lab.train]
    policy = ZeroShot().fit(lab)
    initial = SHORT["gsm8k"]
    assert [answer.prompt for answer in policy.respond(queries)] == [initial] * 3
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy", lab).respond(queries) == lab.answer(queries, initial)


def test_few_shot_shows_train_rows_only_and_the_same_for_every_query(tmp_path: Path) -> None:
    train, dev = sums(20), sums(20, seed=1)
    lab = toy_lab(tmp_path, train, dev, actor=tiny_lm())
    policy = FewShot(FewShotSettings(shots=5)).fit(lab)
    shown = policy.demos["gsm8k"]
    assert len(set(shown)) == 5
    assert set(shown) <= {(row.query, row.target) for row in train}
    assert FewShot(FewShotSettings(shots=5)).fit(lab).demos == policy.demos
    assert FewShot(FewShotSettings(shots=5)).fit(toy_lab(tmp_path, train, dev, seed=1)).demos != policy.demos
    queries = [to_query(row) for row in dev[:2]]
    expected = lab.answer(queries, lab.initial_prompt("gsm8k"), demos=[shown] * 2)
    assert policy.respond(queries) == expected
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy", lab).respond(queries) == expected


def test_few_shot_shows_each_benchmark_its_own_rows_and_others_to_one_without(tmp_path: Path) -> None:
    benchmarks = {name: get_benchmark(name) for name in ("gsm8k", "math", "cosmosqa")}
    sets = {"gsm8k": sums(8), "math": sums(8, seed=1, benchmark="math")}
    lab = toy_lab(tmp_path, [*sets["gsm8k"], *sets["math"]], benchmarks=benchmarks, trained_on=("gsm8k", "math"))
    demos = FewShot().fit(lab).demos
    for name, rows in sets.items():
        assert set(demos[name]) <= {(row.query, row.target) for row in rows}
    assert set(demos["cosmosqa"]) <= {(row.query, row.target) for row in lab.train}
    assert len(demos["cosmosqa"]) == 4


@pytest.mark.parametrize("shots", [0, 9])
def test_few_shot_says_how_many_rows_there_are(tmp_path: Path, shots: int) -> None:
    with pytest.raises(UserError, match="8 train rows"):
        FewShot(FewShotSettings(shots=shots)).fit(toy_lab(tmp_path, sums(8)))


def documented(tmp_path: Path) -> dict[str, type[Method]]:
    """The methods that the page shows in full, by name."""
    page = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    files = []
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page, re.DOTALL)):
        files.append(tmp_path / f"documented_{number}.py")
        files[-1].write_text(code, encoding="utf-8")
    registry = Registry(files)
    return {name: registry[name].cls for name in registry.extra}


def test_the_method_of_the_docs_runs_as_it_stands(tmp_path: Path) -> None:
    method = documented(tmp_path)["best_of_rewrites"]
    events: list[dict] = []
    lab = toy_lab(tmp_path, sums(6), sums(4, seed=1), actor=tiny_lm(), generator=tiny_lm(seed=1), events=events)
    lab.budget = Budget()
    lab.budget.attach(lab.actor, "actor")
    lab.budget.attach(lab.generator, "generator")
    chosen = method(method.Settings(candidates=3))
    policy = chosen.fit(lab)
    tried = [event["prompt"] for event in events]
    assert tried[0] == SHORT["gsm8k"]
    assert policy.prompts["gsm8k"] in tried
    counted = chosen.loop(Rows(6, 4), Shares(0.5, 0.5)).sequences
    calls = {role: use.usage.lm_calls for role, use in lab.budget.by_model.items()}
    assert calls["generator"] == counted.rewrites
    assert len(tried) * 4 == calls["actor"] <= counted.answers  # equal rewrites are asked once
    (answer,) = policy.respond([to_query(lab.dev[0])])
    assert 0 < answer.completion_tokens <= NEW_TOKENS


def test_the_policy_of_the_docs_shows_the_nearest_rows_also_when_loaded(tmp_path: Path) -> None:
    method = documented(tmp_path)["nearest_demos"]
    lab = toy_lab(tmp_path, sums(6), actor=tiny_lm())
    policy = method(method.Settings(shots=2)).fit(lab)
    policy.save(tmp_path / "policy")
    queries = [replace(to_query(row), id="new") for row in lab.train]
    for used in (policy, load_policy(tmp_path / "policy", lab)):
        prepared = used.prepare(queries)
        assert [shown[-1] for shown in prepared.demos] == [(row.query, row.target) for row in lab.train]
        assert {len(shown) for shown in prepared.demos} == {2}
    assert load_policy(tmp_path / "policy", lab).respond(queries) == policy.respond(queries)
