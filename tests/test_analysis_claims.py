"""Claims: verdicts follow the data, a null world supports none, and what is missing is said and never guessed."""

import csv
import json
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from fake_results import CHANCES, fake_config, fake_run, plan_rows, write_cells

from metatuner.analysis.claims import VERDICTS, claims
from metatuner.analysis.claims.ruling import Outcome, Part, both, describe_needed, every, some
from metatuner.analysis.effects import Contrast, unpaired_difference
from metatuner.analysis.published import read_published, read_test_sizes
from metatuner.analysis.scores import write_scores
from metatuner.harness.config import Config

EQUAL = dict.fromkeys(CHANCES, 0.5)


def judged(config: Config) -> dict[tuple[int, str], dict[str, str]]:
    """Lines of claims.csv by claim and source."""
    paths = claims(config)
    assert [path.name for path in paths] == ["claims.csv", "claims_parts.csv", "claims.md"]
    with open(paths[0], encoding="utf-8", newline="") as file:
        return {(int(row["claim"]), row["data"]): row for row in csv.DictReader(file)}


def run(results: Path, chances: dict[str, float], n: int = 200, **keys: Any) -> dict[tuple[int, str], dict[str, str]]:
    config = fake_config(results, **keys)
    fake_run(config, n=n, chances=chances)
    return judged(config)


# ---- verdicts ------------------------------------------------------------------------------------------------------


def part(name: str, estimate: float, error: float = 1.0, group: str = "") -> Part:
    """A z-test of an estimate."""
    z = unpaired_difference([(0.5, 10**9)], [(0.5, 10**9)])
    greater = 1 - NormalDist().cdf(estimate / error)
    told = Contrast(estimate, 0, 0, z.conditional, 2 * min(greater, 1 - greater), error, 0.0, 100, greater, 1 - greater)
    return Part(name, told, group=group)


MISSING = Part("missing", None, "nobody ran it")


def test_every_part_must_hold_each_at_its_own_level() -> None:
    assert every([part("a", 3), part("b", 2.0)]).verdict == "supported"
    found = every([part("a", 3), part("b", 1.5)])
    assert (found.verdict, found.decisive.name, found.towards, found.tests) == ("undecided", "b", "supported", 2)
    assert found.p_for == pytest.approx(2 * (1 - NormalDist().cdf(1.5)))
    assert found.needed == pytest.approx(100 * ((1.959964 + 0.841621) / 1.5) ** 2, abs=1)


def test_the_reverse_is_corrected_for_all_parts() -> None:
    near = every([part("a", 3), part("b", -2.1)])
    assert (near.verdict, near.decisive.name, near.towards) == ("undecided", "b", "contradicted")
    assert near.p_against == pytest.approx(2 * 2 * NormalDist().cdf(-2.1))  # p = 0.036, twice that after Holm
    z = NormalDist().inv_cdf(1 - 0.025 / 2) + NormalDist().inv_cdf(0.8)  # what would tell it is corrected too
    assert near.needed == pytest.approx(100 * (z / 2.1) ** 2, abs=1)
    far = every([part("a", 3), part("b", -2.5)])
    assert (far.verdict, far.decisive.name, far.p_for) == ("contradicted", "b", 1.0)


def test_among_parts_that_all_point_the_other_way_the_furthest_decides() -> None:
    found = every([part("a", -0.5), part("b", -1.5), part("c", -0.1), part("d", 2)])
    assert (found.verdict, found.decisive.name) == ("undecided", "b")  # two-sided, a, b and c all have p = 1


def test_what_is_missing_is_not_evaluable_unless_the_rest_contradicts() -> None:
    assert every([part("a", 3), MISSING]).verdict == "not evaluable"
    assert every([part("a", -4), MISSING]).verdict == "contradicted"
    assert every([MISSING]).verdict == "not evaluable"
    assert some([part("a", 3), MISSING]).verdict == "not evaluable"


def test_some_one_group_must_hold_whole_after_correction() -> None:
    pair = [part("a1", 3, group="a"), part("a2", 3, group="a"), part("b1", 0.1, group="b"), part("b2", 4, group="b")]
    assert some(pair).verdict == "supported"
    near = [part("a1", 2.1, group="a"), part("a2", 3, group="a"), part("b1", 0.1, group="b"), part("b2", 4, group="b")]
    found = some(near)
    assert (found.verdict, found.decisive.name) == ("undecided", "a1")
    assert found.p_for == pytest.approx(2 * 2 * (1 - NormalDist().cdf(2.1)))  # p = 0.036, of two groups
    assert some([part("a", -3), part("b", -3)]).verdict == "contradicted"
    assert some([part("a", -3), part("b", -0.5)]).verdict == "undecided"


def test_the_strongest_part_decides_though_every_corrected_p_is_1() -> None:
    found = some([part("far off", -30), part("near", 2.05), *(part(f"null {index}", 0.01) for index in range(31))])
    assert (found.verdict, found.p_for) == ("undecided", 1.0)
    assert found.decisive.name == "near"
    assert found.towards == "supported"


def test_of_several_claims_all_must_hold_and_one_contradicts_after_correction() -> None:
    right, weak, wrong = every([part("a", 4)]), every([part("b", 1)]), every([part("c", -4)])
    assert both([right, right]).verdict == "supported"
    assert (both([right, weak]).verdict, both([right, weak]).decisive.name) == ("undecided", "b")
    assert (both([weak, wrong]).verdict, both([weak, wrong]).decisive.name) == ("contradicted", "c")
    assert both([right, Outcome("not evaluable")]).verdict == "not evaluable"
    assert both([wrong, Outcome("not evaluable")]).verdict == "contradicted"
    near = every([part("d", -2.1)])  # p = 0.036 alone, 0.072 as one of two
    assert near.verdict == "contradicted"
    found = both([right, near])
    assert (found.verdict, found.decisive.name, found.towards) == ("undecided", "d", "contradicted")
    z = NormalDist().inv_cdf(1 - 0.025 / 2) + NormalDist().inv_cdf(0.8)
    assert found.needed == pytest.approx(100 * (z / 2.1) ** 2, abs=1)


def test_of_several_undecided_claims_that_which_points_away_decides_in_any_order() -> None:
    towards, away = some([part("a", 0.3), part("b", -0.5)]), some([part("c", -1.2), part("d", -1.9)])
    for order in ([towards, away], [away, towards]):
        found = both(order)
        assert (found.decisive.name, found.towards) == ("c", "contradicted")


def test_a_claim_of_some_that_all_parts_speak_against_says_what_would_contradict_it() -> None:
    found = some([part("a", -1.8), part("b", -1.9)])
    assert (found.verdict, found.decisive.name, found.towards) == ("undecided", "a", "contradicted")
    assert found.p_against == pytest.approx(2 * NormalDist().cdf(-1.8))  # the largest reverse p: all must be reversed
    assert found.needed == pytest.approx(100 * ((1.959964 + 0.841621) / 1.8) ** 2, abs=1)
    end = [part("end over a", 1.8, group="end"), part("end over b", 1.9, group="end")]
    found = some([part("a", -1.8), part("b", -1.9)], end)
    assert (found.decisive.name, found.towards, found.tests) == ("end over a", "contradicted", 2)
    mixed = some([part("a1", 2, group="a"), part("a2", -1, group="a"), part("b", -2)], [part("e1", 1), part("e2", -1)])
    assert mixed.towards == "contradicted"


def test_where_seeds_are_what_is_lacking_no_number_of_queries_is_named() -> None:
    z = NormalDist().cdf(-1.5)
    told = Contrast(
        0.05, -0.01, 0.11, False, 2 * z, 0.01, 0.0, 300, z, 1 - z
    )  # five standard errors, but of queries alone
    found = every([Part("a", told)])
    assert (found.verdict, found.towards) == ("undecided", None)
    assert describe_needed(found) == "no number of test queries: seeds are what is lacking"


def test_how_many_queries_would_tell_it_says_of_what_and_for_which_side() -> None:
    assert "of its benchmark, and would then speak for supported" in describe_needed(every([part("a", 1)]))
    assert "speak for contradicted" in describe_needed(every([part("a", -1)]))
    assert describe_needed(every([part("a", 0)])) == "no number of test queries: it points nowhere"
    pooled = unpaired_difference([(0.5, 50), (0.5, 50)], [(0.45, 50), (0.45, 50)])
    assert "of all benchmarks together" in describe_needed(every([Part("a", pooled)]))
    assert describe_needed(every([part("a", 4)])) == ""


# ---- measured ------------------------------------------------------------------------------------------------------


def test_in_a_world_without_differences_no_claim_of_one_is_supported(tmp_path: Path) -> None:
    differences = (1, 2, 3, 4, 5, 6, 8, 9)
    found = []
    for first in range(6):
        config = everything(tmp_path / str(first), seeds=[10 * first, 10 * first + 1])
        fake_run(config, n=100, chances={})  # 0.5 for all
        rows = judged(config)
        found += [rows[number, "measured"]["verdict"] for number in differences]
    assert found.count("supported") == 0
    assert found.count("undecided") > len(found) / 2


def everything(results: Path, seeds: list[int]) -> Config:
    """Every experiment that claims ask for, but for timings."""
    main = {"methods": list(CHANCES), "benchmarks": ["math", "gsm8k"], "seeds": seeds, "generator": "large"}
    own = {"methods": ["metatuner_j"], "benchmarks": ["math", "gsm8k"], "seeds": seeds, "generator": "large"}
    shares = {"none": 0, "half": 0.5, "all": 1.0}
    variants = {
        "ablation": {name: {} for name in ("default", "without_f", "without_p", "without_s")},
        "regularisation": {"default": {}, "gumbel": {}},
        "sharing": {name: {"shared_layers": share} for name, share in shares.items()},
        "rollouts": {name: {"metatuner_warmup": {"rollouts": number}} for name, number in (("n1", 1), ("n8", 8))},
    }
    axes = {"sharing": "shared_layers", "rollouts": "metatuner_warmup.rollouts"}
    experiments: dict[str, Any] = {"main": main, "generalisation": {**main, "train": "others"}}
    for name, each in variants.items():
        experiments[name] = {**own, "variants": {"metatuner_j": each}, "axis": axes.get(name)}
    prompts = {"default": {}, "prompt_a": {}, "prompt_b": {}}
    experiments["sft_prompts"] = {**own, "methods": ["sft"], "variants": {"sft": prompts}}
    return fake_config(results, experiments=experiments)


def test_a_large_difference_is_found_and_its_reverse_contradicts(tmp_path: Path) -> None:
    better = run(tmp_path / "better", {**EQUAL, "metatuner_j": 0.9})
    assert better[1, "measured"]["verdict"] == better[2, "measured"]["verdict"] == "supported"
    assert float(better[1, "measured"]["low"]) > 0
    worse = run(tmp_path / "worse", {**EQUAL, "metatuner_j": 0.2})
    assert worse[1, "measured"]["verdict"] == worse[2, "measured"]["verdict"] == "contradicted"
    assert float(worse[1, "measured"]["high"]) < 0


def test_metatuners_own_parts_are_neither_baselines_nor_hybrids(tmp_path: Path) -> None:
    chances = {**EQUAL, "metatuner_j": 0.9, "rewriter_sft": 0.95, "static_lora": 0.95}
    config = fake_config(tmp_path, methods=list(chances))
    fake_run(config, n=60, chances=chances)
    rows = judged(config)
    assert rows[1, "measured"]["verdict"] == rows[2, "measured"]["verdict"] == "supported"
    assert "not counted, as MetaTuner's own parts: Rewriter + SFT, Static LoRA" in rows[1, "measured"]["detail"]
    with open(tmp_path / "claims_parts.csv", encoding="utf-8", newline="") as file:
        assert not [row for row in csv.DictReader(file) if "Static LoRA" in row["part"]]
    assert "Static LoRA" not in str(rows[2, "measured"])


def test_what_was_not_run_is_not_evaluable_and_says_so(tmp_path: Path) -> None:
    rows = run(tmp_path, CHANCES, n=20)
    for number in (3, 4, 5, 6, 7, 8, 9, 10):
        row = rows[number, "measured"]
        assert row["verdict"] == "not evaluable"
        assert row["detail"]
        assert row["estimate"] == row["p_for"] == row["p_against"] == ""


def test_a_claim_about_cells_that_are_not_there_is_not_evaluable_and_says_which(tmp_path: Path) -> None:
    config = everything(tmp_path, seeds=[0, 1])
    experiments = config.model_dump(mode="json")["experiments"]
    for name, other in (("regularisation", "gumbell"), ("ablation", "without_q")):
        variants = experiments[name]["variants"]["metatuner_j"]
        variants[other] = variants.popitem()[1]
    experiments["sharing"] |= {"variants": {}, "axis": None}
    config = fake_config(tmp_path, experiments=experiments)
    fake_run(config, n=20)
    rows = judged(config)
    for number, missing in ((3, "w/o S"), (4, "Gumbel-Softmax"), (5, "no inner depth")):
        row = rows[number, "measured"]
        assert row["verdict"] == "not evaluable", number
        assert missing in str(row), row


def test_of_ablations_under_their_own_settings_those_under_the_wholes_are_told_too(tmp_path: Path) -> None:
    config = everything(tmp_path, seeds=[0])
    experiments = config.model_dump(mode="json")["experiments"]
    names = ("without_f", "without_p", "without_s")
    variants = {name: {} for each in names for name in (each, f"{each}_tuned")}
    experiments["ablation"]["variants"]["metatuner_j"] = {"default": {}, **variants}
    config = fake_config(tmp_path, experiments=experiments)
    fake_run(config, n=40)
    row = judged(config)[3, "measured"]
    assert row["tests"] == "6"  # three of its own settings, on two benchmarks: the others do not decide
    assert "under the whole's instead: " in row["detail"]
    with open(tmp_path / "claims_parts.csv", encoding="utf-8", newline="") as file:
        groups = [row["group"] for row in csv.DictReader(file) if (row["claim"], row["data"]) == ("3", "measured")]
    assert (groups.count(""), groups.count("the whole's settings")) == (6, 6)


def test_both_halves_of_the_claim_on_prompts_are_told(tmp_path: Path) -> None:
    config = everything(tmp_path, seeds=[0])
    fake_run(config, n=40)
    rows = judged(config)
    assert re.search(
        r"range, alone: \w+, by SFT .*; worst below an optimiser, alone: \w+, by OPRO ", rows[8, "measured"]["detail"]
    )
    of_range = "by more than 5 points" in rows[8, "measured"]["part"]
    assert rows[8, "measured"]["tests"] == str(3 * 2 if of_range else 3)  # pairs of prompts; OPRO under each prompt


def test_that_winners_are_of_one_search_stands_above_the_claims_where_there_was_one(tmp_path: Path) -> None:
    run(tmp_path, CHANCES, n=20)
    assert "one random search" not in (tmp_path / "claims.md").read_text()
    search = {"subject": "sft", "benchmark": "math", "score": 50.0, "status": "current"}
    (tmp_path / "searches.json").write_text(json.dumps([search]))
    claims(fake_config(tmp_path))
    assert "one random search" in (tmp_path / "claims.md").read_text().split("##")[0]


def test_a_failed_cell_is_a_hole_and_no_zero(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    (lost,) = [
        row["cell"] for row in plan_rows(config) if (row["method"], row["benchmark"], row["seed"]) == ("sft", "math", 1)
    ]
    outcomes = {lost: ("failed", "RuntimeError: it broke")}
    rows = write_cells(config, n=200, outcomes=outcomes, chances={**EQUAL, "metatuner_j": 0.9})
    write_scores(rows, outcomes, tmp_path)
    found = judged(config)
    assert found[1, "measured"]["verdict"] == "not evaluable"
    assert "SFT on nano MATH, seed 1: failed: RuntimeError: it broke" in found[1, "measured"]["detail"]
    with open(tmp_path / "claims_parts.csv", encoding="utf-8", newline="") as file:
        parts = {row["part"]: row for row in csv.DictReader(file) if row["data"] == "measured" and row["claim"] == "1"}
    assert parts["MetaTuner-J over SFT on nano MATH"]["estimate"] == ""
    assert float(parts["MetaTuner-J over SFT on nano GSM8K"]["estimate"]) > 0


def test_a_sources_name_and_its_world_stand_in_every_line(tmp_path: Path) -> None:
    rows = run(tmp_path, CHANCES, n=20)
    assert {row["world"] for (_, data), row in rows.items() if data == "measured"} == {"nano"}
    assert all("secondary sources" in row["world"] for (_, data), row in rows.items() if data == "published")
    page = (tmp_path / "claims.md").read_text()
    assert "rankings are no evidence" in page.split("##")[0]
    assert all(row["verdict"] in VERDICTS for row in rows.values())


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config, n=30)
    first = [path.read_bytes() for path in claims(config)]
    assert [path.read_bytes() for path in claims(config)] == first


# ---- published -----------------------------------------------------------------------------------------------------


def test_published_numbers_decide_what_they_can(tmp_path: Path) -> None:
    rows = run(tmp_path, CHANCES, n=20)
    verdicts = {number: row["verdict"] for (number, data), row in rows.items() if data == "published"}
    assert {number for number, verdict in verdicts.items() if verdict == "not evaluable"} == {4, 5, 6, 8, 9, 10}
    # The largest gap between the whole and an ablation, in standard errors of unpaired scores, is small.
    scores, sizes = read_published(), read_test_sizes()
    for variant in ("without_f", "without_p", "without_s"):
        for benchmark, size in sizes.items():
            whole = scores["metatuner_j", "default", benchmark].score / 100
            part = scores["metatuner", variant, benchmark].score / 100
            error = np.sqrt((whole * (1 - whole) + part * (1 - part)) / size.size)
            assert abs(whole - part) / error < 1.96
    assert verdicts[3] == "undecided"
