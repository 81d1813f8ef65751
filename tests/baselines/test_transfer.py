"""What an instruction that was found on one benchmark becomes on another."""

from pathlib import Path

from baselines.opro import OPRO, Settings
from baselines.shared.proposing import prompts_with
from metatuner.harness.budget import Budget
from tests.baselines.test_opro import ScriptedLab
from tests.toys.baselines import PAIR, lab_settings, sums, toy_lab


def test_an_instruction_stands_alone_where_it_was_found_and_before_p_elsewhere(tmp_path: Path) -> None:
    lab = toy_lab(tmp_path, sums(2), benchmarks=PAIR, trained_on=("gsm8k",))
    assert prompts_with(lab, "count") == {"gsm8k": "count", "math": f"count {PAIR['math'].initial_prompt}"}
    both = toy_lab(tmp_path, sums(2), benchmarks=PAIR, trained_on=("gsm8k", "math"))
    assert prompts_with(both, "count") == {"gsm8k": "count", "math": "count"}


def test_a_search_hands_its_instruction_over_so(tmp_path: Path) -> None:
    settings = lab_settings(tmp_path, sums(30), sums(12, seed=1), []) | {"benchmarks": PAIR}
    lab = ScriptedLab(actor=None, generator=None, seed=0, budget=Budget({}, "toy"), **settings)  # type: ignore[arg-type]
    prompts = OPRO(Settings(proposer="rewrite", steps=3, scored_rows=15)).fit(lab).prompts
    assert prompts["gsm8k"] != PAIR["gsm8k"].initial_prompt
    assert prompts["math"] == f"{prompts['gsm8k']} {PAIR['math'].initial_prompt}"
