"""Where prompts do not matter, methods that only choose prompts must not differ, and a real difference is seen.

First with an actor that answers at random, whatever it is told; then with models pretrained in the null world.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

import pytest
import torch

from baselines.opro import OPRO
from baselines.opro import Settings as OPROSettings
from baselines.zero_shot import ZeroShot
from metatuner.analysis.statistics import holm, paired_difference
from metatuner.harness.benchmarks import load_rows
from metatuner.harness.lab import Lab
from metatuner.harness.query import Query, Response, to_query
from metatuner.harness.rows import Row
from metatuner.lm import LM, ModelSpec, load_lm
from metatuner.nano import World, as_asked, pretrain, write_rows

# ---- an actor that answers at random -------------------------------------------------------------------------------

REPEATS, RIGHT = 20, 0.6
ROWS = [Row(f"r{i}", "gsm8k", f"q{i}", ("1",), "#### 1", "all", f"group {i // 2}") for i in range(240)]


class Careless(Lab):
    """Whether an answer is right depends on query and prompt, but no prompt is better than another."""

    def answer(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[Response]:
        told = [prompts] * len(queries) if isinstance(prompts, str) else prompts
        right = [
            Random(f"{self.seed} {query.id} {prompt}").random() < RIGHT
            for query, prompt in zip(queries, told, strict=True)
        ]
        return [Response(prompt, f"#### {int(each)}", 1, 1, False) for prompt, each in zip(told, right, strict=True)]

    def rewrite(self, queries: Sequence[Query], prompts: str | Sequence[str], **options: Any) -> list[str]:
        return [f"{prompt} {seed % 1000}" for prompt, seed in zip(prompts, options["seeds"], strict=True)]


def scores_of(lab: Lab, policy: Any, rows: Sequence[Row]) -> list[float]:
    return lab.reward(rows, policy.respond([to_query(row) for row in rows]))


def test_choosing_a_prompt_by_luck_on_train_rows_is_no_gain_on_others_and_on_test_rows_would_be_seen():
    test, groups = ROWS[80:], [row.group for row in ROWS[80:]]
    gains: dict[str, list[float]] = {"opro": [], "leaking": [], "weaker": []}
    p_values: dict[str, list[float]] = {name: [] for name in gains}
    settings = OPROSettings(proposer="rewrite", steps=3, samples=6, scored_rows=40)
    for seed in range(REPEATS):

        def lab(train: Sequence[Row], dev: Sequence[Row], seed: int = seed) -> Lab:
            told = {"train": train, "dev": dev, "trained_on": ("gsm8k",), "seed": seed}
            return Careless(None, None, {"gsm8k": as_asked("gsm8k")}, **told)  # type: ignore[arg-type]

        honest, leaking = lab(ROWS[:60], ROWS[60:80]), lab(test, test)
        base = scores_of(honest, ZeroShot(ZeroShot.Settings()).fit(honest), test)
        scores = {
            "opro": scores_of(honest, OPRO(settings).fit(honest), test),
            "leaking": scores_of(leaking, OPRO(settings).fit(leaking), test),
            "weaker": [score * (index % 3 > 0) for index, score in enumerate(base)],
        }
        for name, found in scores.items():
            difference = paired_difference([found], [base], groups, seed=seed, resamples=2000)
            gains[name].append(difference.estimate)
            p_values[name].append(difference.p)
    error = {name: stdev(found) / REPEATS**0.5 for name, found in gains.items()}
    assert abs(mean(gains["opro"])) < 3 * error["opro"]
    assert sum(p < 0.05 for p in p_values["opro"]) <= 4  # one is expected; more than four in 0.3 % of such worlds
    assert mean(gains["leaking"]) > 3 * error["leaking"]
    assert max(p_values["weaker"]) < 0.05


# ---- models of the null world --------------------------------------------------------------------------------------

NULL = World(null=True)
STEPS = {"actor": 220, "generator_small": 60}
"""Enough for the actor to answer what is easy, and for the generator to write something."""
BENCHMARKS = ("hotpotqa", "cosmosqa")
METHODS: dict[str, Any] = {
    "zero_shot": ZeroShot(ZeroShot.Settings()),
    "opro": OPRO(OPROSettings(proposer="rewrite", steps=2, samples=4, scored_rows=24, proposal_tokens=24)),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, LM]]]:
    folder, threads = tmp_path_factory.mktemp("null"), torch.get_num_threads()
    torch.set_num_threads(1)
    write_rows(NULL, folder, {name: {"train": 100, "tune": 1, "test": 150, "audit": 1} for name in BENCHMARKS})
    models = {}
    for role, steps in STEPS.items():
        pretrain(role, NULL, folder / role, steps=steps)
        models[role] = load_lm(ModelSpec(str(folder / role), window=1024))
    yield folder, models
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_prompts_make_no_difference_there_and_a_real_difference_would_be_seen(world: tuple[Path, dict[str, LM]]):
    folder, models = world
    p_values: dict[str, list[float]] = {"opro": [], "weaker": []}
    for name in BENCHMARKS:
        benchmark = as_asked(name).with_overrides(initial_prompt=None, max_new_tokens=32)
        train, test = (load_rows(benchmark, folder / name / f"{split}.jsonl") for split in ("train", "test"))
        lab = Lab(
            actor=models["actor"],
            generator=models["generator_small"],
            benchmarks={name: benchmark},
            train=train[:60],
            dev=train[60:],
            trained_on=(name,),
            generator_name="small",
        )
        scores = {method: scores_of(lab, fitted.fit(lab), test) for method, fitted in METHODS.items()}
        # A method that loses every sixth of the right answers: what the test must be able to see.
        scores["weaker"] = [score * (index % 6 > 0) for index, score in enumerate(scores["zero_shot"])]
        # Models that answer nothing, or everything, could not show a difference.
        assert 0.2 < sum(scores["zero_shot"]) / len(test) < 0.99
        for method, found in p_values.items():
            difference = paired_difference([scores[method]], [scores["zero_shot"]], [row.group for row in test], seed=0)
            found.append(difference.p)
    assert min(holm(p_values["opro"])) > 0.05
    assert max(holm(p_values["weaker"])) < 0.05
