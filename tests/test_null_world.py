"""In the null world prompts do not matter and no row is shifted: methods that only choose prompts must not differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.opro import OPRO
from baselines.opro import Settings as OPROSettings
from baselines.zero_shot import ZeroShot
from metatuner.analysis.statistics import holm, paired_difference
from metatuner.harness.benchmarks import get_benchmark, load_rows
from metatuner.harness.ground import Lab, to_query
from metatuner.lm import LM, ModelSpec, load_lm
from metatuner.nano import World, pretrain, write_rows

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


def test_prompts_make_no_difference_there_and_a_real_difference_would_be_seen(world: tuple[Path, dict[str, LM]]):
    folder, models = world
    p_values: dict[str, list[float]] = {"opro": [], "weaker": []}
    for name in BENCHMARKS:
        benchmark = get_benchmark(name).with_overrides(initial_prompt=None, max_new_tokens=32)
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
        scores = {
            method: lab.reward(test, fitted.fit(lab).respond([to_query(row) for row in test]))
            for method, fitted in METHODS.items()
        }
        # A method that loses every sixth of the right answers: what the test must be able to see.
        scores["weaker"] = [score * (index % 6 > 0) for index, score in enumerate(scores["zero_shot"])]
        # Models that answer nothing, or everything, could not show a difference.
        assert 0.2 < sum(scores["zero_shot"]) / len(test) < 0.99
        for method, found in p_values.items():
            difference = paired_difference([scores[method]], [scores["zero_shot"]], [row.group for row in test], seed=0)
            found.append(difference.p)
    assert min(holm(p_values["opro"])) > 0.05
    assert max(holm(p_values["weaker"])) < 0.05
