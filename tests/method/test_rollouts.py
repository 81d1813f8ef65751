"""D2: which rewrites are kept under a scripted reward."""

from collections import Counter

import pytest

from metatuner.method import WarmUpConfig
from metatuner.method.data import Rewrite
from metatuner.method.prompt_decoder import write_prompts
from metatuner.method.rollouts import collect_rewrites, score_rollouts, select_above, select_best
from tests.toys.method import examples, generator


def test_the_best_rewrite_of_each_query_above_the_threshold_is_kept() -> None:
    kept, statistics = select_best(
        ["p"] * 4,
        ["x0", "x1", "x2", "x3"],
        [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"], ["j", "k", "l"]],
        [[0.0, 1.0, 0.5], [0.6, 0.5, 0.1], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]],
        above=0.5,
        seed=0,
    )
    assert kept == [Rewrite("p", "x0", "b"), Rewrite("p", "x1", "d")]
    assert statistics.mean == pytest.approx((1.5 + 1.2 + 1.5 + 0) / 12)
    assert statistics.best == pytest.approx((1 + 0.6 + 0.5 + 0) / 4)
    assert statistics.mixed == 0.5
    assert statistics.kept == 0.5


def test_ties_are_drawn_by_the_seed_in_proportion_to_how_often_they_were_sampled() -> None:
    def drawn(seed: int) -> list[str]:
        queries = [str(i) for i in range(400)]
        kept, _ = select_best(queries, queries, [["a", "a", "a", "b"]] * 400, [[1.0] * 4] * 400, above=0.5, seed=seed)
        return [row.rewrite for row in kept]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert Counter(drawn(0))["b"] / 400 == pytest.approx(0.25, abs=0.07)


def test_a_draw_does_not_depend_on_the_rewards_of_other_queries() -> None:
    rollouts = [["a", "b", "c", "d"]] * 30
    queries = [str(i) for i in range(30)]
    everything, _ = select_best(queries, queries, rollouts, [[1.0] * 4] * 30, above=0.5, seed=3)
    half, _ = select_best(queries, queries, rollouts, [[float(i % 2)] * 4 for i in range(30)], above=0.5, seed=3)
    assert half == everything[1::2]


def test_a_rewrite_that_a_query_got_twice_is_scored_once() -> None:
    asked: list[tuple[int, str]] = []

    def reward(indices: list[int], prompts: list[str]) -> list[float]:
        asked.extend(zip(indices, prompts, strict=True))
        return [index + len(prompt) / 10 for index, prompt in zip(indices, prompts, strict=True)]

    scores = score_rollouts([["a", "bb", "a"], ["a", "a", "ccc"]], reward)
    assert scores == [[0.1, 0.2, 0.1], [1.1, 1.1, 1.3]]
    assert asked == [(0, "a"), (0, "bb"), (1, "a"), (1, "ccc")]


def test_rollouts_are_the_generators_own_and_nested() -> None:
    d1, lm = examples(), generator()
    seen: dict[int, list[str]] = {}
    events: list[dict[str, object]] = []

    def run(rollouts: int, seed: int = 7) -> list[Rewrite]:
        seen.clear()

        def reward(indices: list[int], prompts: list[str]) -> list[float]:
            for index, prompt in zip(indices, prompts, strict=True):
                seen.setdefault(index, []).append(prompt)
            return [float(len(prompt)) for prompt in prompts]

        settings = WarmUpConfig(rollouts=rollouts, max_prompt_tokens=6)
        kept, _ = collect_rewrites(lm, d1, reward, settings, seed=seed, log=lambda **event: events.append(event))
        return kept

    kept = run(4)
    four = {index: set(texts) for index, texts in seen.items()}
    assert [row.rewrite for row in kept] == [max(four[index], key=len) for index in range(len(d1))]
    assert [row.query for row in kept] == [row.query for row in d1]
    run(2)
    assert all(set(texts) <= four[index] for index, texts in seen.items())
    assert run(4, seed=8) != kept
    assert events[0]["event"] == "rollouts"
    assert events[0]["d2"] == len(d1)


def test_the_seed_draws_among_equally_good_rollouts() -> None:
    d1, lm = examples(), generator()

    def places(seed: int) -> list[int]:
        """Where among a query's distinct rollouts the one that was kept stands, all being equally good."""
        asked: dict[int, list[str]] = {}

        def reward(indices: list[int], prompts: list[str]) -> list[float]:
            for index, prompt in zip(indices, prompts, strict=True):
                asked.setdefault(index, []).append(prompt)
            return [1.0] * len(prompts)

        settings = WarmUpConfig(rollouts=6, max_prompt_tokens=6)
        kept, _ = collect_rewrites(lm, d1, reward, settings, seed=seed, log=lambda **event: None)
        return [asked[index].index(row.rewrite) for index, row in enumerate(kept)]

    found = [places(seed) for seed in range(4)]
    assert found[0] == places(0)
    assert len({tuple(one) for one in found}) == 4
    # Queries draw apart, too.
    assert all(len(set(one)) > 1 for one in found)


def test_rollouts_are_sampled_at_the_temperature_that_is_set() -> None:
    d1, lm = examples(), generator()
    greedy = write_prompts(lm, [row.prompt for row in d1], [row.query for row in d1], max_prompt_tokens=6)

    def distinct(temperature: float) -> list[tuple[int, str]]:
        asked: list[tuple[int, str]] = []

        def reward(indices: list[int], prompts: list[str]) -> list[float]:
            asked.extend(zip(indices, prompts, strict=True))
            return [1.0] * len(prompts)

        settings = WarmUpConfig(rollouts=3, max_prompt_tokens=6, rollout_temperature=temperature)
        collect_rewrites(lm, d1, reward, settings, seed=0, log=lambda **event: None)
        return asked

    assert distinct(1e-4) == list(enumerate(greedy))
    assert len(distinct(1.0)) > 2 * len(d1)


def test_equal_queries_are_rewritten_from_random_streams_of_their_own() -> None:
    asked = ["w1 w2"] * 6, ["w5 w6 w7"] * 6
    written = write_prompts(generator(), *asked, max_prompt_tokens=6, temperature=1.0, seed=3)
    assert len(set(written)) > 3


def test_above_a_threshold_every_distinct_rewrite_of_a_query_is_kept() -> None:
    kept, statistics = select_above(
        ["p", "q", "r"],
        ["x0", "x1", "x2"],
        [["a", "b", "a", "c"], ["d", "e", "f", "g"], ["h", "h", "h", "h"]],
        [[1.0, 0.9, 1.0, 0.5], [0.5, 0.4, 0.0, 0.1], [0.6, 0.6, 0.6, 0.6]],
        above=0.5,
    )
    assert kept == [Rewrite("p", "x0", "a"), Rewrite("p", "x0", "b"), Rewrite("r", "x2", "h")]
    assert statistics.kept == pytest.approx(2 / 3)


def forbidden(indices: list[int], prompts: list[str]) -> list[float]:
    raise AssertionError("no reward is needed")


def test_ways_without_rollouts_need_no_reward() -> None:
    d1, lm = examples(), generator()
    events: list[dict[str, object]] = []
    found = {}
    for way in ("expert", "initial"):
        settings = WarmUpConfig(d2=way, max_prompt_tokens=6)
        found[way], statistics = collect_rewrites(
            lm, d1, forbidden, settings, seed=0, log=lambda **event: events.append(event)
        )
        assert statistics is None
    greedy = write_prompts(lm, [row.prompt for row in d1], [row.query for row in d1], max_prompt_tokens=6)
    assert found["expert"] == [Rewrite(row.prompt, row.query, text) for row, text in zip(d1, greedy, strict=True)]
    assert found["initial"] == [Rewrite(row.prompt, row.query, row.prompt) for row in d1]
    assert [event["way"] for event in events] == ["expert", "initial"]
    assert all(event["d2"] == len(d1) for event in events)


def test_best_and_threshold_choose_from_the_same_rollouts() -> None:
    d1, lm = examples(), generator()

    def reward(indices: list[int], prompts: list[str]) -> list[float]:
        return [len(prompt) % 5 / 4 for prompt in prompts]

    kept = {}
    for way in ("best", "threshold"):
        settings = WarmUpConfig(d2=way, rollouts=4, max_prompt_tokens=6, reward_above=0.3)
        kept[way], _ = collect_rewrites(lm, d1, reward, settings, seed=3, log=lambda **event: None)
    assert len(kept["threshold"]) > len(kept["best"]) > 0
    assert set(kept["best"]) <= set(kept["threshold"])
    assert {row.query for row in kept["best"]} == {row.query for row in kept["threshold"]}
    assert all(len(row.rewrite) % 5 / 4 > 0.3 for row in kept["threshold"])


def test_an_empty_d2_is_counted_in_the_log() -> None:
    events: list[dict[str, object]] = []
    rewrites, statistics = collect_rewrites(
        generator(),
        examples(),
        lambda indices, prompts: [0.0] * len(prompts),
        WarmUpConfig(rollouts=2, max_prompt_tokens=6),
        seed=0,
        log=lambda **event: events.append(event),
    )
    assert rewrites == []
    assert statistics is not None
    assert (events[0]["d2"], events[0]["queries"], statistics.kept) == (0, 6, 0)
