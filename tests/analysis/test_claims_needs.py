"""The paper's claims are judged where a preset says that it reproduces them, and on the paper's whole list alone."""

from pathlib import Path
from typing import Any

import pytest

from metatuner.analysis.claims import claims
from metatuner.analysis.claims.needs import lacking
from metatuner.analysis.claims.runs import Runs
from metatuner.config import Config, load_config, preset_names
from metatuner.files import read_csv
from tests.toys.results import METRICS, fake_config, fake_run, few_draws

quick = pytest.fixture(autouse=True)(few_draws)

PAPERS = ["zero_shot", "rlprompt", "bpo", "opro", "sft", "dpo", "ppo", "better_together"]
"""Baselines of the paper's Table 1."""


def measured(config: Config) -> dict[int, dict[str, str]]:
    """Lines of claims.csv on measured results."""
    path = claims(config)[0]
    return {int(row["claim"]): row for row in read_csv(path, ("claim", "data"), "") if row["data"] == "measured"}


def of_main(results: Path, methods: list[str], benchmarks: list[str], **keys: Any) -> Config:
    main = {"methods": methods, "benchmarks": benchmarks, "seeds": [0, 1, 2], "generator": "large"}
    return fake_config(results, methods=methods, experiments={"main": main}, **keys)


def test_a_part_of_the_papers_list_is_not_evaluable_and_says_how_large_a_part(tmp_path: Path) -> None:
    config = of_main(tmp_path, ["zero_shot", "few_shot", "opro", "sft", "metatuner_j"], ["gsm8k"])
    fake_run(config, n=100, chances={"zero_shot": 0.1, "few_shot": 0.1, "opro": 0.1, "sft": 0.1, "metatuner_j": 0.9})
    row = measured(config)[1]
    assert row["verdict"] == "not evaluable"
    assert row["detail"] == "3 of 8 baselines, 1 of 4 benchmarks in experiment main"
    assert "3 of 8 baselines" in (tmp_path / "claims.md").read_text()


@pytest.mark.parametrize("lost", [*PAPERS, "metatuner_j"])
def test_every_method_of_the_papers_table_is_needed(tmp_path: Path, lost: str) -> None:
    methods = [*PAPERS, "grpo", "metatuner_j"]
    whole = of_main(tmp_path, methods, list(METRICS))
    assert lacking(Runs(whole), 1) == ""
    part = of_main(tmp_path, [name for name in methods if name != lost], list(METRICS))
    expected = "0 of 1 methods of MetaTuner" if lost == "metatuner_j" else "7 of 8 baselines"
    assert lacking(Runs(part), 1) == f"{expected} in experiment main"


@pytest.mark.parametrize("preset", ["nano", "nano_full", "paper"])
def test_presets_that_reproduce_the_paper_hold_what_every_claim_needs(preset: str) -> None:
    runs = Runs(load_config(preset))
    assert {claim: lacking(runs, claim) for claim in range(1, 11)} == dict.fromkeys(range(1, 11), "")


def test_a_run_of_one_experiment_leaves_claims_on_others_not_evaluable() -> None:
    runs = Runs(load_config("nano", {"run": "main"}))
    found = {claim: lacking(runs, claim) for claim in range(1, 11)}
    assert [claim for claim, short in found.items() if not short] == [1, 2, 7, 10]
    assert found[3] == "experiment ablation was not run"
    assert found[8] == "experiment sft_prompts was not run"


def test_only_presets_that_say_so_reproduce_the_paper() -> None:
    assert [name for name in preset_names() if load_config(name).claims == "paper"] == [
        "nano",
        "nano_full",
        "paper",
        "paper_3b",
    ]


@pytest.mark.parametrize(
    ("overrides", "claims"),
    [
        ({"run": "main"}, "paper"),
        ({"tuning.trials": 2}, "paper"),
        ({"models.actor.path": "nano:generator"}, "none"),
        ({"benchmarks": {"gsm8k": {"sizes": {"test": 20}}}}, "none"),
        ({"nano.null": True}, "none"),
        ({"nano.null": True, "claims": "paper"}, "paper"),
        ({"claims": "none"}, "none"),
    ],
)
def test_other_models_benchmarks_or_worlds_are_no_reproduction_unless_they_say_so(
    overrides: dict[str, Any], claims: str
) -> None:
    assert load_config("nano", overrides).claims == claims


def test_where_the_claims_are_not_judged_the_page_says_so_and_how_to_change_it(tmp_path: Path) -> None:
    config = of_main(tmp_path, [*PAPERS, "metatuner_i", "metatuner_j"], list(METRICS), claims="none")
    fake_run(config, n=10)
    found = measured(config)
    assert {row["verdict"] for row in found.values()} == {"not judged"}
    assert not any(row["p_for"] for row in found.values())
    top = (tmp_path / "claims.md").read_text().split("| claim |")[0]
    assert "The paper's claims are not judged on this run" in top
    assert "claims: paper" in top
