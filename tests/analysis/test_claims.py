"""Claims: verdicts follow the data, a null world supports none, and what is missing is said and never guessed."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from metatuner.analysis.claims import VERDICTS, claims
from metatuner.analysis.claims.ruling import Outcome, Part, both, describe_needed, every, some
from metatuner.analysis.claims.runs import Arm, Runs
from metatuner.analysis.results.published import read_published, read_test_sizes
from metatuner.analysis.results.scores import read_query_scores, write_scores
from metatuner.analysis.statistics import Contrast, unpaired_difference, wilson_interval
from metatuner.analysis.statistics.intervals import mcnemar_exact
from metatuner.config import Config
from metatuner.errors import UserError
from tests.toys.results import (
    CHANCES,
    METRICS,
    fake_config,
    fake_name,
    fake_run,
    few_draws,
    judge_parts,
    plan_rows,
    write_cells,
)

EQUAL = dict.fromkeys(CHANCES, 0.5)

quick = pytest.fixture(autouse=True)(few_draws)


small = pytest.fixture(autouse=True)(judge_parts)


def judged(config: Config) -> dict[tuple[int, str], dict[str, str]]:
    """Lines of claims.csv by claim and source."""
    paths = claims(config)
    assert [path.name for path in paths] == ["claims.csv", "claims_parts.csv", "claims.md"]
    with open(paths[0], encoding="utf-8", newline="") as file:
        return {(int(row["claim"]), row["data"]): row for row in csv.DictReader(file)}


def parts_of(config: Config, claim: int, data: str = "measured") -> list[dict[str, str]]:
    """Lines of claims_parts.csv."""
    with open(Path(config.results) / "claims_parts.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if (row["claim"], row["data"]) == (str(claim), data)]


def run(results: Path, chances: dict[str, float], n: int = 200, **keys: Any) -> dict[tuple[int, str], dict[str, str]]:
    config = fake_config(results, **keys)
    fake_run(config, n=n, chances=chances)
    return judged(config)


# ---- verdicts ------------------------------------------------------------------------------------------------------


def part(name: str, estimate: float, error: float = 1.0, group: str = "", seeds: int = 3) -> Part:
    """A z-test of an estimate, on three seeds."""
    greater = 1 - NormalDist().cdf(estimate / error)
    told = Contrast(
        estimate, 0, 0, False, 2 * min(greater, 1 - greater), error, 0.0, 100, greater, 1 - greater, seeds=seeds
    )
    return Part(name, told, group=group)


MISSING = Part("missing", None, "nobody ran it")


def test_every_part_must_hold_each_at_its_own_level() -> None:
    assert every([part("a", 3), part("b", 2.0)]).verdict == "supported"
    found = every([part("a", 3), part("b", 1.8)])  # p = 0.036 one-sided, twice that two-sided
    assert (found.verdict, found.decisive.name, found.towards, found.tests) == ("undecided", "b", "supported", 2)
    assert found.p_for == pytest.approx(2 * (1 - NormalDist().cdf(1.8)))
    assert found.needed == pytest.approx(100 * ((1.959964 + 0.841621) / 1.8) ** 2, abs=1)


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


def test_the_reverse_of_several_claims_is_that_of_the_one_most_spoken_against_whichever_decides() -> None:
    # Five tests make the second's p-value against it larger, though its one part is further off.
    spoken, weakest = every([part("a", -1.5)]), every([part("b", -1.6), *(part(f"c{index}", 3) for index in range(5))])
    for order in ([spoken, weakest], [weakest, spoken]):
        found = both(order)
        assert (found.verdict, found.decisive.name) == ("undecided", "b")
        assert found.p_against == pytest.approx(2 * 2 * NormalDist().cdf(-1.5))  # of two claims


def test_what_contradicts_one_of_several_claims_is_corrected_for_its_own_tests_and_for_the_claims() -> None:
    near = every([part("a", 3), part("b", -2.4)])  # p = 0.016, twice that in its claim, four times as one of two
    assert near.verdict == "contradicted"
    found = both([every([part("c", 4)]), near])
    assert (found.verdict, found.towards) == ("undecided", "contradicted")
    assert found.p_against == pytest.approx(4 * 2 * NormalDist().cdf(-2.4))
    z = NormalDist().inv_cdf(1 - 0.025 / 4) + NormalDist().inv_cdf(0.8)
    assert found.needed == pytest.approx(100 * (z / 2.4) ** 2, abs=1)
    further = every([part("d", -4)])
    for order in ([near, further], [further, near]):
        assert both(order).decisive.name == "d"


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


@pytest.mark.parametrize(
    ("estimate", "margin", "towards"), [(0.03, 0.05, "contradicted"), (-0.005, -0.01, "supported")]
)
def test_a_part_points_where_it_lies_beside_its_margin(estimate: float, margin: float, towards: str) -> None:
    told = replace(unpaired_difference([(0.5 + estimate, 100)], [(0.5, 100)], margin=margin), conditional=False)
    assert every([Part("a", told)]).towards == towards
    assert some([Part("a", told)]).towards == towards


def test_where_seeds_are_what_is_lacking_no_number_of_queries_is_named() -> None:
    z = NormalDist().cdf(-1.5)
    told = Contrast(
        0.05, -0.01, 0.11, False, 2 * z, 0.01, 0.0, 300, z, 1 - z
    )  # five standard errors, but of queries alone
    found = every([Part("a", told)])
    assert (found.verdict, found.towards) == ("undecided", None)
    assert "seeds" in describe_needed(found)


def test_how_many_queries_would_tell_it_says_of_what_and_for_which_side() -> None:
    towards = describe_needed(every([part("a", 1)]))
    assert towards.startswith("785 ")  # 100 times the square of 1.96 and 0.84
    assert "its benchmark" in towards
    assert towards.endswith("supported")
    assert describe_needed(every([part("a", -1)])).endswith("contradicted")
    assert "nowhere" in describe_needed(every([part("a", 0)]))
    pooled = unpaired_difference([(0.5, 50), (0.5, 50)], [(0.45, 50), (0.45, 50)])
    pooled = replace(pooled, conditional=False)
    assert "all benchmarks" in describe_needed(every([Part("a", pooled)]))
    assert describe_needed(every([part("a", 4)])) == ""


# ---- measured ------------------------------------------------------------------------------------------------------


DIFFERENCES = (1, 2, 3, 4, 5, 6, 8, 9)
"""Claims that something differs; 7 is that something does not."""


def everything(results: Path, seeds: Sequence[int], **experiments: Mapping[str, Any]) -> Config:
    """Every experiment that claims ask for, but for timings; `experiments` change keys of those they name."""
    own = {"methods": ["metatuner_j"], "benchmarks": ["math", "gsm8k"], "seeds": list(seeds), "generator": "large"}
    main = {**own, "methods": [*CHANCES, "metatuner_i"]}
    shares = {"none": 0, "half": 0.5, "all": 1.0}
    variants = {
        "ablation": {name: {} for name in ("default", "without_f", "without_p", "without_s")},
        "regularisation": {"default": {}, "gumbel": {}},
        "sharing": {name: {"shared_layers": share} for name, share in shares.items()},
        "rollouts": {name: {"metatuner_warmup": {"rollouts": number}} for name, number in (("n1", 1), ("n8", 8))},
    }
    axes = {"sharing": "shared_layers", "rollouts": "metatuner_warmup.rollouts"}
    found: dict[str, Any] = {"main": main, "generalisation": {**main, "train": "others"}}
    for name, each in variants.items():
        found[name] = {**own, "variants": {"metatuner_j": each}, "axis": axes.get(name)}
    prompts = {"default": {}, "prompt_a": {}, "prompt_b": {}}
    found["sft_prompts"] = {**own, "methods": ["sft"], "variants": {"sft": prompts}}
    for name, changes in experiments.items():
        found[name] |= changes
    generators = {name: {"path": f"nano:{name}"} for name in ("large", "small")}
    return fake_config(results, models={"actor": {"path": "nano:actor"}, "generators": generators}, experiments=found)


def without_differences(config: Config) -> list[str]:
    """Verdicts on claims of a difference where every chance is 0.5."""
    fake_run(config, n=100, chances={})
    rows = judged(config)
    return [rows[number, "measured"]["verdict"] for number in DIFFERENCES]


def test_in_a_world_without_differences_no_claim_of_one_is_supported(tmp_path: Path) -> None:
    found = []
    for seed in (0, 10):
        found += without_differences(everything(tmp_path / str(seed), range(seed, seed + 3)))
    assert found.count("supported") <= 1  # of 16, each with a chance of 2.5 % at most
    assert found.count("undecided") > len(found) / 2


@pytest.mark.slow
def test_in_sixteen_worlds_without_differences_hardly_a_claim_of_one_is_supported(tmp_path: Path) -> None:
    found = []
    for seed in range(0, 160, 10):
        found += without_differences(everything(tmp_path / str(seed), range(seed, seed + 3)))
    assert found.count("supported") <= 0.05 * len(found)
    assert found.count("undecided") > len(found) / 2


FOR = {
    **EQUAL,
    "metatuner_j": 0.9,
    "metatuner_i": 0.8,
    "metatuner_j others": 0.9,
    "metatuner_j.half": 0.9,
    "metatuner_j.n1": 0.9,
    "opro": 0.6,
    "sft.prompt_a": 0.3,
}
AGAINST = {
    **EQUAL,
    "metatuner_j": 0.2,
    "metatuner_i": 0.3,
    "metatuner_j others": 0.2,
    "metatuner_j.half": 0.2,
    "metatuner_j.n1": 0.2,
    "opro": 0.2,
    "sft": 0.9,
    "sft.prompt_a": 0.9,
    "sft.prompt_b": 0.9,
}


@pytest.mark.parametrize(("chances", "verdict"), [(FOR, "supported"), (AGAINST, "contradicted")])
def test_a_large_difference_is_found_and_its_reverse_contradicts(
    tmp_path: Path, chances: dict[str, float], verdict: str
) -> None:
    config = everything(tmp_path, range(3))
    fake_run(config, n=150, chances=chances)
    rows = judged(config)
    assert {number: rows[number, "measured"]["verdict"] for number in range(1, 10)} == dict.fromkeys(
        range(1, 10), verdict
    )
    for number in (1, 2, 3, 4, 7, 9):
        low, high = (float(rows[number, "measured"][name]) for name in ("low", "high"))
        assert (low > 0) if verdict == "supported" else (high < 0), number


def test_one_benchmark_on_which_a_baseline_is_better_decides_against_the_whole(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    right = {("metatuner_j", "gsm8k"): 0.2}
    rng = np.random.default_rng(0)
    chance = {"metatuner_j": 0.9}
    fake_run(
        config,
        scores=lambda row: (
            rng.random(120) < right.get((row["method"], row["benchmark"]), chance.get(row["method"], 0.6))
        ).astype(float),
    )
    row = judged(config)[1, "measured"]
    assert row["verdict"] == "contradicted"
    assert row["part"].endswith("on nano GSM8K")
    assert len(parts_of(config, 1)) == 4 * 4  # every baseline on every benchmark


def test_a_part_over_benchmarks_is_the_mean_of_means_whatever_the_benchmarks_sizes(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["opro", "cfpo", "sft", "metatuner_i", "metatuner_j"])
    rng, sizes = np.random.default_rng(1), dict(zip(METRICS, (20, 40, 80, 10), strict=True))
    rows = fake_run(config, scores=lambda row: rng.choice([0.0, 0.5, 1.0], sizes[row["benchmark"]]))
    judged(config)
    means = {
        (row["method"], row["benchmark"], row["seed"]): np.mean(
            [each.score for each in read_query_scores(tmp_path, row["cell"]).values()]
        )
        for row in rows
    }

    def mean(*methods: str) -> float:
        return float(np.mean([means[name, where, seed] for name in methods for where in METRICS for seed in (0, 1, 2)]))

    prompt, parameter = parts_of(config, 2)
    for row, others in ((prompt, ("opro", "cfpo")), (parameter, ("sft",))):
        expected = mean("metatuner_i", "metatuner_j") - mean(*others)
        assert float(row["estimate"]) == pytest.approx(100 * expected, abs=0.006)
        assert row["queries"] == "150"
    (row,) = parts_of(config, 7)
    assert float(row["estimate"]) == pytest.approx(100 * (mean("metatuner_j") - mean("metatuner_i")), abs=0.006)


def test_a_part_has_the_effect_size_and_the_probability_of_improvement_of_its_differences(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft", "metatuner_j"])
    rng = np.random.default_rng(2)
    rows = fake_run(config, scores=lambda row: rng.choice([0.0, 0.5, 1.0], 30))
    judged(config)
    scores = {
        method: np.array(
            [
                [answers[f"gsm8k-{index}"].score for index in range(30)]
                for row in rows
                if (row["method"], row["benchmark"]) == (method, "gsm8k")
                for answers in [read_query_scores(tmp_path, row["cell"])]
            ]
        )
        for method in ("sft", "metatuner_j")
    }
    gaps = scores["metatuner_j"] - scores["sft"]
    (row,) = [row for row in parts_of(config, 1) if row["part"].endswith("GSM8K")]
    each = gaps.mean(axis=0)
    assert float(row["effect"]) == pytest.approx(each.mean() / each.std(ddof=1), abs=0.0006)
    assert float(row["probability_of_improvement"]) == pytest.approx(
        ((gaps > 0) + 0.5 * (gaps == 0)).mean(), abs=0.0006
    )


def test_seeds_that_only_some_have_are_left_out_on_either_side(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft", "metatuner_j"], seeds=[0, 1, 2])
    rng = np.random.default_rng(3)
    rows = fake_run(config, scores=lambda row: (rng.random(30) < 0.5).astype(float))
    gone = {(row["method"], row["seed"]): row["cell"] for row in rows if row["benchmark"] == "math"}
    lines = (tmp_path / "scores.csv").read_text().splitlines(keepends=True)
    lost = (gone["metatuner_j", 0], gone["sft", 1])
    (tmp_path / "scores.csv").write_text("".join(line for line in lines if not line.strip().endswith(lost)))
    judged(config)
    (row,) = [row for row in parts_of(config, 1) if row["part"].endswith("nano MATH")]
    mean = {
        name: np.mean([each.score for each in read_query_scores(tmp_path, gone[name, 2]).values()])
        for name in ("metatuner_j", "sft")
    }
    assert float(row["estimate"]) == pytest.approx(100 * (mean["metatuner_j"] - mean["sft"]), abs=0.006)
    assert np.mean([each.score for each in read_query_scores(tmp_path, gone["sft", 0]).values()]) != mean["sft"]


def test_an_optimiser_and_sft_under_a_prompt_are_compared_on_the_seeds_that_both_experiments_have(
    tmp_path: Path,
) -> None:
    config = everything(tmp_path, [0, 1, 3], sft_prompts={"seeds": [1, 2, 3]})
    rng = np.random.default_rng(4)
    rows = fake_run(config, scores=lambda row: (rng.random(25) < 0.5).astype(float))
    judged(config)
    cells = {(fake_name(row), row["benchmark"], row["seed"]): row["cell"] for row in rows}

    def mean(name: str, seeds: Sequence[int]) -> float:
        found = [read_query_scores(tmp_path, cells[name, where, seed]) for where in ("math", "gsm8k") for seed in seeds]
        return float(np.mean([each.score for answers in found for each in answers.values()]))

    parts = {row["part"]: row for row in parts_of(config, 8)}
    for variant in ("default", "prompt_a", "prompt_b"):
        name = "sft" if variant == "default" else f"sft.{variant}"
        expected = mean("opro", (1, 3)) - mean(name, (1, 3))
        assert float(parts[f"OPRO over SFT under {variant}"]["estimate"]) == pytest.approx(100 * expected, abs=0.006)
    assert mean("sft.prompt_a", (1, 3)) != mean("sft.prompt_a", (1, 2))
    config = everything(tmp_path / "apart", [0, 1], sft_prompts={"seeds": [2]})
    fake_run(config, n=10)
    row = judged(config)[8, "measured"]
    assert row["verdict"] == "not evaluable"
    assert "no seed is common" in row["detail"]


@pytest.mark.parametrize(
    ("lost", "verdict"), [(0, "supported"), (1, "supported"), (3, "undecided"), (30, "contradicted")]
)
def test_j_is_as_good_as_i_within_a_point(tmp_path: Path, lost: int, verdict: str) -> None:
    config = fake_config(tmp_path, methods=["metatuner_i", "metatuner_j"])
    right = {"metatuner_i": 160, "metatuner_j": 160 - lost}
    fake_run(config, scores=lambda row: [float(index < right[row["method"]]) for index in range(320)])
    row = judged(config)[7, "measured"]
    assert row["verdict"] == verdict
    (part,) = parts_of(config, 7)
    assert part["margin"] == "-1.00"
    assert float(part["estimate"]) == pytest.approx(-100 * lost / 320, abs=0.006)


@pytest.mark.parametrize(("apart", "verdict"), [(0.04, "contradicted"), (0.06, "supported")])
def test_scores_under_different_prompts_are_to_be_more_than_five_points_apart(
    tmp_path: Path, apart: float, verdict: str
) -> None:
    config = everything(tmp_path, range(3))
    levels = {"sft.prompt_a": 0.4 + apart, "sft": 0.4 + apart, "sft.prompt_b": 0.4}
    fake_run(config, scores=lambda row: [levels.get(fake_name(row), 0.5)] * 900)
    row = judged(config)[8, "measured"]
    assert row["verdict"] == verdict
    assert {part["margin"] for part in parts_of(config, 8)} == {"5.00", "0.00"}


def test_the_control_of_the_sharing_experiment_is_no_depth_of_it(tmp_path: Path) -> None:
    shares = {"none": 0, "half": 0.5, "all": 1.0}
    variants: dict[str, Any] = {name: {"shared_layers": share} for name, share in shares.items()}
    variants["half_fixed"] = {"shared_layers": 0.5, "encoder_layers": 1.0}
    config = everything(tmp_path, [0], sharing={"variants": {"metatuner_j": variants}})
    fake_run(config, n=100, chances={"metatuner_j.half_fixed": 0.95})
    row = judged(config)[5, "measured"]
    assert row["verdict"] != "supported"
    assert [part["part"] for part in parts_of(config, 5)] == [
        "k = 0.5 K over 0 K, generator large",
        "k = 0.5 K over 1 K, generator large",
        "k = 0 K over 0.5 K, generator large",
        "k = 1 K over 0.5 K, generator large",
    ]


@pytest.mark.parametrize(
    ("chances", "verdict"),
    [
        ({"metatuner_j.half": 0.9, "metatuner_j.half small": 0.9}, "supported"),
        ({"metatuner_j.half": 0.9}, "undecided"),
        ({"metatuner_j.half": 0.9, "metatuner_j.none": 0.9, "metatuner_j.half small": 0.9}, "undecided"),
        ({"metatuner_j.half": 0.9, "metatuner_j.none small": 0.9}, "contradicted"),
    ],
)
def test_an_inner_depth_must_beat_both_ends_with_each_generator(
    tmp_path: Path, chances: dict[str, float], verdict: str
) -> None:
    config = everything(tmp_path, range(3), sharing={"generator": ["large", "small"]})
    fake_run(config, n=120, chances=chances)
    assert judged(config)[5, "measured"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ({"math": (0.2, 0.3), "gsm8k": (0.3, 0.49)}, "supported"),
        ({"math": (0.2, 0.3), "gsm8k": (0.4, 0.6)}, "undecided"),
        ({"math": (0.2, 0.3), "gsm8k": (0.51, 0.6)}, "contradicted"),
        ({"math": (0.4, 0.5)}, "undecided"),
        ({"math": (0.5, 0.6)}, "undecided"),
        ({}, "not evaluable"),
    ],
)
def test_the_time_of_writing_is_judged_by_its_quartiles_on_every_benchmark(
    tmp_path: Path, shares: dict[str, tuple[float, float]], verdict: str
) -> None:
    config = fake_config(tmp_path, methods=["metatuner_j"])
    fake_run(config, n=5)
    head = "method,benchmark,write_share,write_share_low,write_share_high\n"
    lines = [f"metatuner_j,{name},0.1,{low},{high}\n" for name, (low, high) in shares.items()]
    (tmp_path / "efficiency.csv").write_text(head + "".join(lines) + "metatuner_i,math,0.7,0.65,0.75\n")
    assert judged(config)[10, "measured"]["verdict"] == verdict
    untimed = judged(config.model_copy(update={"timed_rows": 0}))[10, "measured"]
    assert untimed["verdict"] == "not evaluable"
    assert "not measured, as the preset times no policies" in " ".join(untimed.values())
    (tmp_path / "efficiency.csv").write_text("method,benchmark\nmetatuner_j,math\n")
    with pytest.raises(UserError, match=r"efficiency.csv: .*write_share_low"):
        claims(config)


def test_no_two_parts_share_their_draws_and_each_depends_on_what_it_compares_alone(tmp_path: Path) -> None:
    config = everything(tmp_path, [0, 1])
    values = {seed: np.random.default_rng(seed).random(400) for seed in (0, 1)}
    better = {seed: np.random.default_rng(7 + seed).random(400) for seed in (0, 1)}
    fake_run(
        config,
        scores=lambda row: list(
            (values[row["seed"]] + (better[row["seed"]] if row["method"] == "metatuner_j" else 0.5)) / 2
        ),
    )
    runs = Runs(config)
    whole = Arm("metatuner_j")
    names = [(experiment, other) for experiment in ("main", "generalisation") for other in ("sft", "opro", "few_shot")]
    for benchmarks in (["math"], ["gsm8k"], ["math", "gsm8k"]):
        found = [runs.part(f"over {other}", name, [whole], [Arm(other)], benchmarks) for name, other in names]
        assert len({part.contrast.estimate for part in found}) == 1
        assert len({part.contrast.low for part in found}) == len(names)
        again = Runs(config).part("over sft", "main", [whole], [Arm("sft")], benchmarks)
        assert again.contrast == found[0].contrast
    one, other = (runs.part("over sft", "main", [whole], [Arm("sft")], [name]) for name in ("math", "gsm8k"))
    assert one.contrast.low != other.contrast.low


def test_the_order_of_rows_in_a_cells_file_changes_no_bit(tmp_path: Path) -> None:
    config = everything(tmp_path, range(5), main={"methods": ["sft", "metatuner_j"], "benchmarks": ["math"]})
    rng = np.random.default_rng(5)
    rows = fake_run(config, scores=lambda row: rng.random(40), rows_a_group={"math": 3})
    arms = [Arm("metatuner_j")], [Arm("sft")]
    before = Runs(config).part("a part", "main", *arms, ["math"])
    for place, row in enumerate(rows):
        path = tmp_path / "cells" / row["cell"] / "predictions.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[(7 * index + place) % 40] for index in range(40)))
    assert Runs(config).part("a part", "main", *arms, ["math"]) == before


def test_graded_scores_and_rows_that_share_a_context_are_no_case_for_mcnemars_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    told = {}
    for name, values, rows_a_group in (
        ("binary", [0.0, 1.0], 1),
        ("graded", [0.1, 0.9], 1),
        ("grouped", [0.0, 1.0], 5),
    ):
        config = fake_config(tmp_path / name, methods=["sft", "metatuner_j"], seeds=[0])
        cells = {method: rng.permutation(np.repeat(values, 20)) for method in ("sft", "metatuner_j")}
        cells["metatuner_j"][:10] = values[1]
        fake_run(
            config,
            scores=lambda row, cells=cells: cells[row["method"]],
            rows_a_group=dict.fromkeys(METRICS, rows_a_group),
        )
        part = Runs(config).part("a part", "main", [Arm("metatuner_j")], [Arm("sft")], ["math"])
        gaps = cells["metatuner_j"] - cells["sft"]
        wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
        told[name] = part.contrast.p == mcnemar_exact(wins, losses)
    assert told == {"binary": True, "graded": False, "grouped": False}


def test_no_two_comparisons_of_an_optimiser_with_sft_share_their_draws(tmp_path: Path) -> None:
    config = everything(tmp_path, [0], main={"methods": ["opro", "cfpo", "sft", "metatuner_j"]})
    one, two = np.random.default_rng(2).random((2, 400))
    fake_run(config, scores=lambda row: one if row["method"] in ("opro", "cfpo") else two)
    judged(config)
    parts = [
        part for part in parts_of(config, 8) if " over SFT under " in part["part"] and "points" not in part["part"]
    ]
    assert len({part["estimate"] for part in parts}) == 1
    assert len({(part["low"], part["high"]) for part in parts}) == len(parts) == 6


def test_metatuners_own_parts_are_neither_baselines_nor_hybrids(tmp_path: Path) -> None:
    chances = {**EQUAL, "metatuner_j": 0.9, "rewriter_sft": 0.95, "static_lora": 0.95}
    config = fake_config(tmp_path, methods=list(chances))
    fake_run(config, n=60, chances=chances)
    rows = judged(config)
    assert rows[1, "measured"]["verdict"] == rows[2, "measured"]["verdict"] == "supported"
    detail = rows[1, "measured"]["detail"]
    assert "no baselines, but MetaTuner's own parts in another combination: Rewriter + SFT, Static LoRA" in detail
    assert rows[1, "measured"]["tests"] == "16"  # four baselines on four benchmarks
    beside = {row["group"] for row in parts_of(config, 1) if "Static LoRA" in row["part"]}
    assert beside == {"MetaTuner's own parts"}
    assert "Static LoRA" not in str(rows[2, "measured"])


def test_claims_name_j_and_i_only_stands_beside_it(tmp_path: Path) -> None:
    chances = {**EQUAL, "metatuner_j": 0.5, "metatuner_i": 0.95}
    config = fake_config(tmp_path, methods=list(chances))
    fake_run(config, n=60, chances=chances)
    search = [
        {"subject": name, "benchmark": benchmark, "score": score, "status": "current"}
        for name, score in (("metatuner_i", 95.0), ("metatuner_j", 50.0))
        for benchmark in METRICS
    ]
    (tmp_path / "searches.json").write_text(json.dumps(search))  # -I is better on tune rows too
    row = judged(config)[1, "measured"]
    assert row["verdict"] == "undecided"
    assert row["part"].startswith("MetaTuner-J over ")
    assert "MetaTuner-I in its place, which decides nothing: supported" in row["detail"]
    groups = {row["part"].split(" over ")[0]: row["group"] for row in parts_of(config, 1)}
    assert groups == {"MetaTuner-J": "", "MetaTuner-I": "MetaTuner-I instead"}


@pytest.mark.parametrize(("seeds", "words"), [([0], "one seed"), ([0, 1], "2 seeds")])
def test_too_few_seeds_decide_nothing_however_clear(tmp_path: Path, seeds: list[int], words: str) -> None:
    config = everything(tmp_path, seeds)
    fake_run(config, n=60, chances=FOR)
    rows = judged(config)
    for number in range(1, 10):
        row = rows[number, "measured"]
        assert row["verdict"] == f"undecided ({words})"
        assert (row["needed"], row["towards"], row["seeds"]) == ("unknown", "", str(len(seeds)))
    assert float(rows[1, "measured"]["p_for"]) < 0.01
    page = (tmp_path / "claims.md").read_text()
    assert f"## 1, measured (nano): undecided ({words})" in page
    assert "no number of test queries: 3 seeds are the least" in page


def test_of_parts_with_many_seeds_and_with_few_only_the_many_decide() -> None:
    few = replace(part("few", 4), contrast=replace(part("few", 4).contrast, conditional=True, seeds=1))
    against = replace(part("few", -4), contrast=replace(part("few", -4).contrast, conditional=True, seeds=2))
    assert every([part("a", 3), few]).label == "undecided (one seed)"
    assert every([part("a", -4), few]).label == "contradicted"
    assert every([part("a", 3), against]).label == "undecided (2 seeds)"
    assert some([part("a", 3), few]).label == "undecided (one seed)"
    assert both([every([part("a", 3)]), every([few])]).label == "undecided (one seed)"


def test_a_fit_that_diverged_is_a_hole_with_its_reason(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    (lost,) = [
        row["cell"] for row in plan_rows(config) if (row["method"], row["benchmark"], row["seed"]) == ("sft", "math", 1)
    ]
    rows = fake_run(config, n=40)
    write_scores(rows, {lost: ("diverged", "the loss began at 0.5 and ended at 2.0")}, tmp_path)
    row = judged(config)[1, "measured"]
    assert row["verdict"] == "not evaluable"
    assert "SFT on nano MATH, seed 1: diverged: the loss began at 0.5 and ended at 2.0" in row["detail"]


def test_where_all_answers_are_wrong_nothing_is_decided(tmp_path: Path) -> None:
    config = everything(tmp_path, range(3))
    fake_run(config, scores=lambda row: [0.0] * 12)
    rows = judged(config)
    assert {rows[number, "measured"]["verdict"] for number in range(1, 10)} == {"undecided"}
    low, high = (float(rows[7, "measured"][name]) for name in ("low", "high"))
    assert low < -10 < 10 < high


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
    detail = rows[8, "measured"]["detail"]
    assert all(words in detail for words in ("range, alone: ", ", by SFT ", "optimiser, alone: ", ", by OPRO "))
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
    assert all(row["verdict"].split(" (")[0] in VERDICTS for row in rows.values())


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    config = fake_config(tmp_path)
    fake_run(config, n=30)
    first = [path.read_bytes() for path in claims(config)]
    assert [path.read_bytes() for path in claims(config)] == first


# ---- published -----------------------------------------------------------------------------------------------------


def test_published_numbers_decide_what_they_can(tmp_path: Path) -> None:
    config = fake_config(tmp_path, methods=["sft", "metatuner_j"], seeds=[0])
    fake_run(config, n=5)
    verdicts = {number: row["verdict"] for (number, data), row in judged(config).items() if data == "published"}
    assert {number for number, verdict in verdicts.items() if verdict == "not evaluable"} == {4, 5, 6, 8, 9, 10}
    scores = {key: each.score / 100 for key, each in read_published().items()}
    sizes = {name: each.size for name, each in read_test_sizes().items()}
    methods = dict.fromkeys(method for method, variant, _ in scores if variant == "default")

    def variance(*names: str) -> float:
        proportions = [(scores[name, "default", where], sizes[where]) for name in names for where in sizes]
        return sum(p * (1 - p) / n for p, n in proportions) / len(proportions) ** 2

    def mean(*names: str) -> float:
        return float(np.mean([scores[name, "default", where] for name in names for where in sizes]))

    # One score against one: each baseline on each benchmark, each ablation on each benchmark that has one.
    ablations = [(variant, where) for method, variant, where in scores if method == "metatuner"]
    pairs = {
        1: [("default", name, where) for where in sizes for name in methods if not name.startswith("metatuner")],
        3: [(variant, "metatuner", where) for variant, where in ablations],
    }
    for number, expected in pairs.items():
        found = parts_of(config, number, "published")
        rows = sorted((float(row["estimate"]), float(row["low"]), float(row["effect"])) for row in found)
        told = []
        for variant, name, where in expected:
            one, other = (
                wilson_interval(scores[key], sizes[where])
                for key in (("metatuner_j", "default", where), (name, variant, where))
            )
            gap = one.estimate - other.estimate
            low = gap - np.hypot(one.estimate - one.low, other.high - other.estimate)
            effect = 2 * (np.arcsin(np.sqrt(one.estimate)) - np.arcsin(np.sqrt(other.estimate)))
            told.append((100 * gap, 100 * low, effect))
        for row, each in zip(rows, sorted(told), strict=True):
            assert row == pytest.approx(each, abs=0.006)
    # Means: hybrids over each other family; -J less -I, above a point less.
    hybrids = ("better_together", "metatuner_i", "metatuner_j")
    families = {"prompt": ("rlprompt", "bpo", "opro"), "parameter": ("sft", "dpo", "ppo")}
    found = parts_of(config, 2, "published")
    for row, others in zip(found, families.values(), strict=True):
        assert float(row["estimate"]) == pytest.approx(100 * (mean(*hybrids) - mean(*others)), abs=0.006)
        assert float(row["standard_error"]) == pytest.approx(
            100 * np.sqrt(variance(*hybrids) + variance(*others)), abs=0.006
        )
        assert int(row["queries"]) == sum(sizes.values())  # not once a method: they are tested on the same rows
    (row,) = parts_of(config, 7, "published")
    z = (mean("metatuner_j") - mean("metatuner_i") + 0.01) / np.sqrt(variance("metatuner_j") + variance("metatuner_i"))
    assert float(row["p"]) == pytest.approx(2 * NormalDist().cdf(-z), rel=0.01)
    assert row["margin"] == "-1.00"
