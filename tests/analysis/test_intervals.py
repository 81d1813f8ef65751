"""The statistics agree with closed forms, with scipy, and with what they promise about coverage and error rates."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metatuner.analysis.statistics import (
    LEVEL,
    MIN_SEEDS,
    derive_seed,
    holm,
    mean_interval,
    paired_difference,
    smallest_detectable_effect,
    wilson_interval,
)
from metatuner.analysis.statistics.intervals import bootstrap_means, mcnemar_exact, sign_flip_p


def answers(seeds: int, queries: int, chance: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((seeds, queries)) < chance).astype(float)


def labels(groups: int) -> list[str]:
    """One to four queries a group, the groups' queries apart from each other."""
    return sorted((f"g{index}" for index in range(groups) for _ in range(1 + index % 4)), key=lambda name: name[::-1])


def clustered(seeds: int, groups: int, seed: int) -> np.ndarray:
    """Binary scores of mean 0.4 whose chance is shared by the queries of a group."""
    rng = np.random.default_rng(seed)
    chances = dict(zip((f"g{index}" for index in range(groups)), rng.beta(0.8, 1.2, size=groups), strict=True))
    names = labels(groups)
    return (rng.random((seeds, len(names))) < [chances[name] for name in names]).astype(float)


def same_distribution(first: np.ndarray, second: list[float]) -> bool:
    """Not told apart by the Kolmogorov-Smirnov test; equal means may differ by rounding errors."""
    return bool(stats.ks_2samp(np.round(first, 9), np.round(second, 9)).pvalue > 0.01)


def test_one_seeds_interval_is_the_binomial_one() -> None:
    scores = answers(1, 2000, 0.6)
    found = mean_interval(scores, seed=1)
    half = 1.96 * np.sqrt(scores.mean() * (1 - scores.mean()) / 2000)
    assert found.estimate == scores.mean()
    assert (found.low, found.high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.0015)


def test_means_are_resampled_as_by_drawing_queries_one_by_one() -> None:
    scores = np.random.default_rng(3).choice([0.0, 0.25, 0.5, 1.0], size=(3, 50))
    rng = np.random.default_rng(4)
    slow = [scores[:, rng.integers(50, size=50)].mean() for _ in range(20_000)]
    assert same_distribution(bootstrap_means(scores, seed=5), slow)


def test_repeating_a_seed_adds_no_evidence() -> None:
    scores = answers(1, 300, 0.4)
    once, thrice = mean_interval(scores, seed=1), mean_interval(np.repeat(scores, 3, axis=0), seed=1)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=0.004)  # Wilson's, and the bootstrap's
    assert thrice.high - thrice.low > 0.98 * (once.high - once.low)


def test_seeds_that_differ_widen_the_interval_once_they_are_enough_to_tell() -> None:
    levels = np.array([0.2, 0.3, 0.5, 0.7, 0.8])
    scores = np.tile(np.arange(200) / 200, (5, 1)) < levels[:, None]  # two seeds are not enough
    few, enough = mean_interval(scores[:2].astype(float), seed=1), mean_interval(scores.astype(float), seed=1)
    assert few.conditional
    assert not enough.conditional
    assert enough.high - enough.low > 0.3 > 2 * (few.high - few.low)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for index in range(400):
        hardness = rng.beta(2, 3, size=200)  # queries differ; their mean chance is 0.4
        found = mean_interval((rng.random((3, 200)) < hardness).astype(float), seed=index, resamples=1000)
        covered += found.low <= 0.4 <= found.high
    assert stats.binomtest(covered, 400, 0.95).pvalue > 0.001


@pytest.mark.parametrize("seeds", [1, 3, MIN_SEEDS])
def test_equal_methods_differ_significantly_no_more_often_than_promised(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    rejected = 0
    for index in range(400):
        hardness = rng.beta(2, 2, size=150)
        first, second = (rng.random((2, seeds, 150)) < hardness).astype(float)
        rejected += paired_difference(first, second, seed=index, resamples=500).p <= 0.05
    assert stats.binomtest(rejected, 400, 0.05, alternative="greater").pvalue > 0.001


def test_nothing_right_and_all_right_leave_wilsons_interval_open() -> None:
    nothing, all_right = mean_interval(np.zeros((3, 300)), seed=1), mean_interval(np.ones((3, 300)), seed=1)
    assert (nothing.low, nothing.high) == pytest.approx((0.0, 3.8415 / 303.8415), abs=1e-5)
    assert all_right.low == pytest.approx(1 - nothing.high)


@pytest.mark.parametrize("level", [0.8, LEVEL])
def test_an_interval_leaves_half_of_what_its_level_leaves_on_either_side(level: float) -> None:
    first, second = answers(3, 200, 0.6, 1), answers(3, 200, 0.45, 2)
    for found, scores in (
        (mean_interval(first, seed=1, level=level), first),
        (paired_difference(first, second, seed=1, level=level), first - second),
    ):
        error = scores.mean(axis=0).std() / np.sqrt(200)
        half = stats.norm.ppf((1 + level) / 2) * error
        assert (found.low, found.high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.15 * error)
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    assert mean_interval(np.zeros((3, 300)), seed=1, level=level).high == pytest.approx(z2 / (300 + z2))


def test_a_difference_of_one_seed_is_tested_by_mcnemar() -> None:
    first, second = answers(1, 80, 0.7, 1), answers(1, 80, 0.5, 2)
    wins, losses = int((first > second).sum()), int((first < second).sum())
    found = paired_difference(first, second, seed=1)
    assert found.p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    assert found.estimate == pytest.approx(first.mean() - second.mean())


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (5, 9), (9, 5), (40, 40), (180, 120)])
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar_exact(wins, losses) == pytest.approx(expected)


def test_sign_flips_agree_with_mcnemar_and_with_all_flips() -> None:
    assert sign_flip_p([1.0] * 14 + [-1.0] * 4 + [0.0] * 50, seed=1) == pytest.approx(mcnemar_exact(14, 4), abs=0.002)
    graded = np.random.default_rng(2).normal(0.3, 1, size=12)
    exact = stats.permutation_test((graded,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(graded, seed=3) == pytest.approx(exact, abs=0.005)


@pytest.mark.parametrize("resamples", [1, 19, 99])
def test_a_resampled_p_value_counts_the_data_as_one_of_the_draws_and_is_never_0(resamples: int) -> None:
    assert sign_flip_p(np.ones(200), seed=1, resamples=resamples) == 1 / (1 + resamples)
    assert sign_flip_p([0.5], seed=1, resamples=resamples) == 1.0  # both signs are as extreme
    clear = paired_difference(np.ones((2, 200)), np.zeros((2, 200)), seed=1, resamples=resamples)
    assert clear.p == 1 / (1 + resamples)


def test_a_test_by_so_few_flips_that_its_level_is_one_draw_rejects_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(5)
    rejected = sum(sign_flip_p(rng.normal(size=30), seed=run, resamples=39) <= 0.025 for run in range(2000))
    assert stats.binomtest(rejected, 2000, 0.025).pvalue > 0.001


@pytest.mark.parametrize("seeds", [1, 2])
def test_graded_scores_are_tested_by_all_flips_of_their_queries(seeds: int) -> None:
    rng = np.random.default_rng(12)
    first = rng.choice([0.0, 0.2, 1.0], (seeds, 11), p=[0.1, 0.3, 0.6])
    second = rng.choice([0.0, 0.2, 1.0], (seeds, 11), p=[0.4, 0.3, 0.3])
    gaps = (first - second).mean(axis=0)
    signs = np.array([[1 - 2 * (number >> bit & 1) for bit in range(11)] for number in range(2**11)])
    exact = (np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9).mean()
    assert 0.01 < exact < 0.5
    assert paired_difference(first, second, seed=1).p == pytest.approx(exact, abs=0.006)


def test_as_many_means_come_back_as_were_asked_for_where_they_are_drawn_in_several_chunks() -> None:
    wide = np.random.default_rng(7).random((1, 1600))
    means = bootstrap_means(wide, seed=1, resamples=1500)  # 2.4 million numbers
    assert means.shape == (1500,)
    assert means.std() == pytest.approx(wide.std() / np.sqrt(1600), rel=0.1)
    gaps = wide[0] - 0.49
    z = abs(gaps.sum()) / np.sqrt((gaps**2).sum())
    assert sign_flip_p(gaps, seed=1, resamples=1500) == pytest.approx(2 * stats.norm.sf(z), abs=0.05)
    assert 2 * stats.norm.sf(z) > 0.2


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_differences_either_way_are_tested_alike(seeds: int) -> None:
    first, second = answers(seeds, 60, 0.65, 1), answers(seeds, 60, 0.5, 2)
    one, other = (paired_difference(*pair, seed=1, resamples=5000) for pair in ((first, second), (second, first)))
    assert one.p == pytest.approx(other.p, abs=0.02)
    assert one.p < 0.4
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.02)


def test_what_no_draw_matches_is_found_among_all_pairs_of_sixty_methods() -> None:
    clear = [1.0] * 90 + [-1.0] * 10 + [0.0] * 200
    assert mcnemar_exact(90, 10) < 1e-15
    assert holm([sign_flip_p(clear, seed=1)], tests=60 * 59 // 2)[0] <= 0.05
    right = np.tile(answers(1, 300, 0.8), (MIN_SEEDS, 1))  # seeds that agree
    assert holm([paired_difference(right, 1 - right, seed=1).p], tests=40 * 39 // 2)[0] <= 0.05


def test_identical_methods_do_not_differ() -> None:
    scores = answers(MIN_SEEDS, 60, 0.5)
    found = paired_difference(scores, scores, seed=1)
    assert (found.estimate, found.p) == (0, 1)
    assert found.low == -found.high < 0  # what was not seen in 60 queries may exist in others


def test_pairing_finds_what_the_unpaired_test_misses() -> None:
    worse = answers(1, 400, 0.5, 1)
    better = worse.copy()
    better[0, np.flatnonzero(worse[0] == 0)[:14]] = 1.0
    assert stats.ttest_ind(better[0], worse[0]).pvalue > 0.3
    assert paired_difference(better, worse, seed=1).p < 0.001


def test_holm_agrees_with_its_definition() -> None:
    p_values = np.random.default_rng(0).random(7) ** 3
    order = np.argsort(p_values)
    expected = np.maximum.accumulate(np.minimum(1, p_values[order] * np.arange(7, 0, -1)))
    assert np.array(holm(list(p_values)))[order] == pytest.approx(expected)
    assert holm([]) == []


def test_picking_the_best_of_equal_methods_and_testing_the_rest_against_it_is_corrected_for() -> None:
    rng = np.random.default_rng(0)
    some_below = 0
    for index in range(200):
        hardness = rng.beta(2, 2, size=150)
        scores = (rng.random((5, 3, 150)) < hardness).astype(float)
        best = int(scores.mean(axis=(1, 2)).argmax())
        gaps = [(other - scores[best]).mean(axis=0) for place, other in enumerate(scores) if place != best]
        some_below += min(holm([sign_flip_p(gap, seed=index, resamples=1000) for gap in gaps], tests=10)) <= 0.05
    assert stats.binomtest(some_below, 200, 0.05, alternative="greater").pvalue > 0.001
    with pytest.raises(ValueError, match="chosen from 1 tests"):
        holm([0.1, 0.2], tests=1)


def test_the_smallest_detectable_effect_is_found_with_its_power() -> None:
    shift = smallest_detectable_effect(0.035) / 0.035
    assert stats.norm.sf(1.959964 - shift) == pytest.approx(0.8, abs=1e-4)
    strict = smallest_detectable_effect(0.035, level=0.99, power=0.5) / 0.035
    assert strict == pytest.approx(2.575829, abs=1e-4)


def test_the_standard_error_is_the_usual_one_and_with_groups_that_of_their_resampling() -> None:
    first, second, groups = clustered(3, 60, 1), clustered(3, 60, 2), labels(60)
    gaps = (first - second).mean(axis=0)
    alone = paired_difference(first, second, seed=1)
    assert alone.standard_error == pytest.approx(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    together = paired_difference(first, second, groups, seed=1)
    assert together.standard_error == pytest.approx(bootstrap_means(first - second, groups, seed=2).std(), rel=0.06)
    assert together.standard_error > 1.2 * alone.standard_error


@pytest.mark.parametrize("seeds", [1, 2])
def test_groups_are_resampled_as_by_drawing_them_one_by_one(seeds: int) -> None:
    scores, names = clustered(seeds, 30, 3), np.array(labels(30))
    groups = [scores[:, names == name] for name in dict.fromkeys(names.tolist())]
    rng = np.random.default_rng(4)
    slow = []
    for _ in range(10_000):
        drawn = np.concatenate([groups[place] for place in rng.integers(30, size=30)], axis=1)
        slow.append(drawn.mean())
    assert same_distribution(bootstrap_means(scores, names.tolist(), seed=5), slow)


@pytest.mark.parametrize("seeds", [1, 3, MIN_SEEDS])
def test_groups_of_one_query_change_nothing(seeds: int) -> None:
    first, second = answers(seeds, 80, 0.6, 1), answers(seeds, 80, 0.4, 2)
    names = [f"g{index * 7 % 80}" for index in range(80)]
    assert bootstrap_means(first, names, seed=3) == pytest.approx(bootstrap_means(first, seed=3), abs=1e-12)
    alone, grouped = (paired_difference(first, second, each, seed=4, resamples=9000) for each in (None, names))
    assert asdict(grouped) == pytest.approx(asdict(alone), abs=1e-12)
    assert mean_interval(np.zeros((seeds, 80)), names, seed=5) == mean_interval(np.zeros((seeds, 80)), seed=5)


def test_repeating_the_queries_of_a_group_adds_no_evidence() -> None:
    first, second = answers(1, 120, 0.6, 1), answers(1, 120, 0.45, 2)
    names = [f"g{index // 4}" for index in range(480)]
    once = paired_difference(first, second, seed=3)
    four_times = paired_difference(np.repeat(first, 4, axis=1), np.repeat(second, 4, axis=1), names, seed=3)
    assert (four_times.low, four_times.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert four_times.standard_error == pytest.approx(once.standard_error)
    assert four_times.p == pytest.approx(once.p, abs=0.006)  # flips of groups in place of McNemar's test
    nothing = mean_interval(np.zeros((1, 480)), names, seed=1)
    assert nothing.high == pytest.approx(mean_interval(np.zeros((1, 120)), seed=1).high)


def test_intervals_cover_the_truth_where_queries_share_a_context_and_would_not_without_groups() -> None:
    names, grouped, alone = labels(100), 0, 0
    for index in range(400):
        scores = clustered(3, 100, 1000 + index)
        for groups in (names, None):
            found = mean_interval(scores, groups, seed=index, resamples=1000)
            covers = found.low <= 0.4 <= found.high
            grouped, alone = (grouped + covers, alone) if groups else (grouped, alone + covers)
    assert stats.binomtest(grouped, 400, 0.95).pvalue > 0.001
    assert stats.binomtest(alone, 400, 0.95).pvalue < 0.001


@pytest.mark.parametrize("seeds", [1, MIN_SEEDS])
def test_equal_methods_whose_luck_is_shared_by_a_group_do_not_differ_too_often(seeds: int) -> None:
    names, grouped, alone = labels(60), 0, 0
    for index in range(300):
        first, second = clustered(seeds, 60, 2 * index), clustered(seeds, 60, 2 * index + 1)
        grouped += paired_difference(first, second, names, seed=index, resamples=400).p <= 0.05
        alone += paired_difference(first, second, seed=index, resamples=400).p <= 0.05
    assert stats.binomtest(grouped, 300, 0.05, alternative="greater").pvalue > 0.001
    assert stats.binomtest(alone, 300, 0.05, alternative="greater").pvalue < 0.001


def test_groups_must_be_named_for_each_query() -> None:
    with pytest.raises(ValueError, match="one group per query; got 2 for 3 queries"):
        mean_interval([[0.0, 1.0, 1.0]], ["a", "b"], seed=1)


@pytest.mark.parametrize(("proportion", "n"), [(0.4867, 450), (0.0, 20), (1.0, 20), (0.5456, 2000)])
def test_wilsons_interval_inverts_the_score_test(proportion: float, n: int) -> None:
    found = wilson_interval(proportion, n)
    for bound in (found.low, found.high):
        if 0 < bound < 1:
            assert abs(proportion - bound) / np.sqrt(bound * (1 - bound) / n) == pytest.approx(1.959964, abs=1e-5)
    assert found.low <= proportion <= found.high


GRADED = np.random.default_rng(11).random((2, MIN_SEEDS, 30))


@pytest.mark.parametrize(
    "drawn",
    [
        lambda seed: bootstrap_means(GRADED[0], seed=seed, resamples=50).tolist(),
        lambda seed: bootstrap_means(GRADED[0, :2], seed=seed, resamples=50).tolist(),
        lambda seed: mean_interval(GRADED[0, :2], seed=seed, resamples=500),
        lambda seed: sign_flip_p(GRADED[0, 0] - 0.4, seed=seed, resamples=500),
        lambda seed: paired_difference(*GRADED[:, :1], seed=seed, resamples=501).low,
        lambda seed: paired_difference(*GRADED[:, :2], seed=seed, resamples=5000).p,
    ],
    ids=["means", "means of few seeds", "interval", "flips", "difference", "its p"],
)
def test_the_same_seed_gives_the_same_draws_and_another_gives_others(drawn: Callable[[int], Any]) -> None:
    assert drawn(7) == drawn(7) != drawn(8)


def test_a_derived_seed_depends_on_every_name_and_on_where_names_end() -> None:
    names = [("ab", "c"), ("a", "bc"), ("c", "ab"), ("ab",), ("ab", 1), ("ab", 2)]
    assert len({derive_seed(*each) for each in names}) == len(names)
    assert derive_seed("ab", 1) == derive_seed("ab", "1")


@pytest.mark.parametrize("bad", [[0.0, 1.0], np.zeros((0, 3)), [[0.0, np.nan]]])
def test_arrays_of_another_shape_or_with_nan_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"seeds, queries|finite"):
        mean_interval(bad, seed=1)  # type: ignore[arg-type]


def test_unpaired_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_difference(np.zeros((1, 3)), np.zeros((1, 4)), seed=1)
