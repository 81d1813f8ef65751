"""The end of a search: means over seeds, ties, and what lies beyond the edge of a range. Trials are made up here."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metatuner.config import BudgetConfig, SearchConfig, load_config
from metatuner.cost.assumptions import Assumptions
from metatuner.cost.predicted import tflop_of
from metatuner.errors import UserError
from metatuner.hashing import ROOT
from metatuner.plan import Plan
from metatuner.plan.winners import read_winners
from metatuner.run.finals import MOST_STEPS, Tried, at_edge, decide, finals, further
from metatuner.run.tuning import within_budget
from tests.toys.commands import step

ROWS = 200
Scores = Callable[[dict[str, Any], int], float | None]


def make_plan(search: dict[str, Any], finalists: int = 3, method: str = "sft", **more: Any) -> Plan:
    tuning = {"tuning.finalists": finalists, "tuning.seed": 7, "tuning.more_seeds": [8, 9]}
    config = load_config("nano", tuning | more)
    spaces = {name: SearchConfig(**space) for name, space in search.items()}
    changed = config.methods[method].model_copy(update={"search": spaces})
    return Plan(config.model_copy(update={"methods": config.methods | {method: changed}}))


def make_tried(scores: Scores, cost: Callable[[dict[str, Any]], float] = lambda over: 1.0) -> tuple[Tried, list[Any]]:
    """Trials with these scores by settings and seed, and a list of all that were run."""
    asked: list[Any] = []

    def run(over: dict[str, Any], seed: int | None) -> dict[str, Any]:
        asked.append((over, seed))
        score = scores(over, 7 if seed is None else seed)
        failed = {"status": "failed", "reason": "diverged", "tflop": None}
        return {
            "score": score,
            **({"tflop": cost(over), "status": "ok", "reason": ""} if score is not None else failed),
        }

    return Tried("sft", "gsm8k", run, ROWS), asked


def trials(tried: Tried, *settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"settings": over, **tried.once(over)} for over in settings]


RATES = {"learning_rate": {"low": 0.001, "high": 0.1}}


def rate(value: float) -> dict[str, float]:
    return {"learning_rate": value}


def test_the_mean_over_seeds_decides_among_the_best_three_of_one_seed() -> None:
    table = {0.003: (80, 50, 50), 0.005: (79, 78, 77), 0.01: (70, 70, 70), 0.02: (60, 99, 99)}
    tried, asked = make_tried(lambda over, seed: table[over["learning_rate"]][seed - 7])
    found = finals(tried, trials(tried, *map(rate, table)), make_plan(RATES))
    assert [each["settings"] for each in found["finalists"]] == [rate(0.005), rate(0.01), rate(0.003)]
    assert found["finalists"][0]["scores"] == {"7": 79, "8": 78, "9": 77}
    assert found["finalists"][0]["score"] == 78
    assert found["beyond"] == []
    # The fourth trial met no further seed, and nothing was run twice.
    assert len(asked) == 4 + 3 * 2
    assert (rate(0.02), 8) not in asked


def test_a_tie_goes_to_the_cheaper_and_a_difference_does_not() -> None:
    # Half the standard error at 50 % and 200 rows: sqrt(0.25 / 200) / 2 = 1.77 points.
    margin = 100 * math.sqrt(0.25 / ROWS) / 2
    assert make_tried(lambda over, seed: 0)[0].margin(50.0) == pytest.approx(margin)
    for gap, wins in ((margin - 0.01, rate(0.01)), (margin + 0.01, rate(0.005))):
        table = {0.005: 50.0, 0.01: 50.0 - gap}
        tried, _ = make_tried(
            lambda over, seed, t=table: t[over["learning_rate"]], lambda over: 1 / over["learning_rate"]
        )
        found = finals(tried, trials(tried, *map(rate, table)), make_plan(RATES))
        assert found["finalists"][0]["settings"] == wins
    same = [{"score": 50.0, "tflop": 2.0, "settings": place} for place in range(3)]
    assert decide(same, lambda score: 1.0)["settings"] == 0


def test_a_finalist_that_fails_with_a_seed_is_out_and_all_such_give_no_winner() -> None:
    table = {0.003: (90, None, 90), 0.005: (60, 60, 60)}
    tried, _ = make_tried(lambda over, seed: table[over["learning_rate"]][seed - 7])
    found = finals(tried, trials(tried, *map(rate, table)), make_plan(RATES))
    assert [each["settings"] for each in found["finalists"]] == [rate(0.005)]
    tried, _ = make_tried(lambda over, seed: 90 if seed == 7 else None)
    assert finals(tried, trials(tried, rate(0.003)), make_plan(RATES)) == {"finalists": [], "beyond": []}


@pytest.mark.parametrize(
    ("best", "ends", "open_edge"), [(0.1, 0.1, False), (0.3162, 0.3162, False), (100.0, 10.0, True)]
)
def test_a_winner_at_an_edge_moves_on_while_it_gains(best: float, ends: float, open_edge: bool) -> None:
    """Scores rise up to a rate and stay there; a step is a quarter of two decades."""

    def score(over: dict[str, Any], seed: int) -> float:
        return 50 + 10 * min(math.log10(over["learning_rate"] / 0.001), math.log10(best / 0.001))

    tried, _ = make_tried(score)
    found = finals(tried, trials(tried, rate(0.01), rate(0.1)), make_plan(RATES))
    winner = found["finalists"][0]["settings"]["learning_rate"]
    assert winner == pytest.approx(ends, rel=1e-3)
    assert found["beyond"] == ([] if open_edge else ["learning_rate"])
    steps = round(math.log(winner / 0.1) / math.log(10**0.5))
    assert steps == (MOST_STEPS if open_edge else steps)


def test_a_value_that_the_method_does_not_take_ends_the_walk() -> None:
    search = {"epochs": {"values": [1, 2, 4]}}
    tried, asked = make_tried(lambda over, seed: 70 - 10 * over["epochs"])
    found = finals(tried, trials(tried, {"epochs": 1}, {"epochs": 2}), make_plan(search))
    assert found["finalists"][0]["settings"] == {"epochs": 1}
    assert found["beyond"] == ["epochs"]
    assert all(over["epochs"] > 0 for over, _ in asked)


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        ({"values": [2, 3, 5, 8, 12]}, 12, 18),
        ({"values": [2, 3, 5, 8, 12]}, 18, 27),
        ({"values": [2, 3, 5, 8, 12]}, 2, 1),
        ({"values": [0.5, 1.0]}, 1.0, 2.0),
        ({"low": 0.5, "high": 1.5, "log": False}, 1.45, 1.7),
        ({"low": 0.5, "high": 1.5, "log": False}, 0.55, 0.3),
        ({"low": 0.01, "high": 1.0}, 0.9, 2.846),
        ({"low": 0.01, "high": 1.0}, 0.011, 0.003479),
    ],
)
def test_the_next_value_beyond_an_edge(space: dict[str, Any], value: float, expected: float) -> None:
    config = SearchConfig(**space)
    assert at_edge({"x": value}, {"x": config}) == ("x",)
    assert further(value, config) == expected
    assert at_edge({"x": expected}, {"x": config}) == ("x",)


@pytest.mark.parametrize(
    ("value", "space"),
    [
        ("lora", {"values": ["full", "lora"]}),
        (None, {"values": [1, 2]}),
        (True, {"values": [1, 2]}),
        (0.0, {"low": 0.1, "high": 1.0}),
        ({"epochs": 1}, {"values": [{"epochs": 1}, {"epochs": 2}]}),
    ],
)
def test_what_is_no_number_of_the_range_has_no_edge(value: Any, space: dict[str, Any]) -> None:
    assert at_edge({"x": value}, {"x": SearchConfig(**space)}) == ()


def test_a_step_that_leads_nowhere_closes_the_edge_and_a_failed_one_leaves_it_open() -> None:
    plan = make_plan({"beta": {"values": [0.0, 0.01, 0.04]}}, method="grpo")
    tried, asked = make_tried(lambda over, seed: 50)
    tried.subject = "grpo"
    found = finals(tried, trials(tried, {"beta": 0.0}), plan)
    assert [each["settings"] for each in found["finalists"]] == [{"beta": 0.0}]
    assert found["beyond"] == ["beta"]
    assert len(asked) == 3
    tried, _ = make_tried(lambda over, seed: 50 if over["learning_rate"] <= 0.1 else None)
    found = finals(tried, trials(tried, rate(0.1)), make_plan(RATES))
    assert [each["settings"] for each in found["finalists"]] == [rate(0.1)]
    assert found["beyond"] == []


def test_the_seeds_of_a_search_are_distinct_and_not_reported() -> None:
    with pytest.raises(UserError, match=r"tuning.*more_seeds: 8 stands twice among the seeds of a search; name others"):
        load_config("nano", {"tuning.finalists": 2, "tuning.more_seeds": [8, 8]})
    with pytest.raises(
        UserError, match=r"experiments\.main\.seeds: 1 is one of tuning\.more_seeds; report other seeds"
    ):
        load_config("nano", {"tuning.finalists": 2, "tuning.more_seeds": [1]})
    assert load_config("nano", {"tuning.finalists": 1, "tuning.more_seeds": [0, 1]}).tuning.seeds == [1000]


def test_finalists_are_part_of_what_a_winner_is_valid_for() -> None:
    keys = {make_plan(RATES, count).settings.winner_key("sft", "gsm8k") for count in (1, 2, 3)}
    assert len(keys) == 3
    assert make_plan(RATES, 1).searches.seeds == [7]
    assert make_plan(RATES, 2).searches.seeds == [7, 8, 9]


def test_what_searches_build_on_is_fitted_for_each_seed() -> None:
    plan = make_plan({"epochs": {"values": [1, 2]}}, method="dpo")
    needed = [(fit.method, fit.seed) for fit in plan.searches.needs("gsm8k")]
    assert {seed for method, seed in needed if method == "sft"} == {7, 8, 9}


def test_the_winner_of_finals_is_stored_with_its_seeds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "winners.json"
    plan = make_plan(RATES, **{"tuning.winners": str(file), "results": str(tmp_path / "results")})
    tried, _ = make_tried(lambda over, seed: 90 * over["learning_rate"] ** 0.1)
    done = trials(tried, rate(0.02), rate(0.1), rate(0.004))
    record = {"method": "sft", "benchmark": "gsm8k", "key": plan.settings.winner_key("sft", "gsm8k"), "trials": done}
    place = plan.layout.tune("sft", "gsm8k")
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(record | finals(tried, done, plan)))
    assert step("winners", plan.config) == 0
    winner = read_winners(file)["sft", "gsm8k"]
    assert winner.settings == winner.finalists[0]["settings"]
    assert set(winner.finalists[0]["scores"]) == {"7", "8", "9"}
    assert winner.at_edge == ("learning_rate",)  # after its last step it still gains
    assert Plan(plan.config).searches.describe()
    place.write_text(json.dumps(record | {"finalists": [], "beyond": []}))
    assert step("winners", plan.config) == 1
    said = capfd.readouterr().err
    assert "every finalist failed with one of the seeds; change methods.sft.search, and see" in said


# ---- budgets of compute ----------------------------------------------------------------------------------------------


def limited(tflop: float, method: str = "sft", search: dict[str, Any] | None = None) -> Plan:
    limits = {"budgets.default.tflop": tflop, "tuning.trials": 8}
    return make_plan(search or {"epochs": {"values": [2, 4, 8, 16, 32]}}, method=method, **limits)


def test_the_compute_of_sft_is_predicted_as_by_hand() -> None:
    plan = limited(1.0)
    assumed = Assumptions.read(ROOT / plan.config.forecast)
    fit = plan.searches.fit("sft", "gsm8k", {"epochs": 4})
    shape, texts = assumed.shape("nano:actor"), assumed.tokens.benchmarks["gsm8k"]
    tokens = 4 * 128 * (assumed.tokens.prompt + texts.query + texts.target)
    assert tflop_of(plan, assumed, fit) == pytest.approx(tokens * 4 * (shape.body + shape.head) / 1e12)
    # What a fit builds on counts as its own.
    tuned = plan.searches.fit("dpo", "gsm8k", {"sft": {"epochs": 4}, "rollouts": 1, "epochs": 1})
    rolled = 128 * (assumed.tokens.prompt + texts.query) * 2 * shape.body
    rolled += 128 * texts.answer * 2 * (shape.body + shape.head)
    assert tflop_of(plan, assumed, tuned) == pytest.approx((tokens * 4 * (shape.body + shape.head) + rolled) / 1e12)


def test_a_search_draws_only_settings_that_keep_the_budget() -> None:
    plan = limited(0.2)
    assumed = Assumptions.read(ROOT / plan.config.forecast)
    keeps = within_budget(plan, "sft", "gsm8k")
    costs = {
        epochs: tflop_of(plan, assumed, plan.searches.fit("sft", "gsm8k", {"epochs": epochs}))
        for epochs in (2, 4, 8, 16)
    }
    assert {epochs for epochs, cost in costs.items() if keeps({"epochs": epochs})} == {2, 4, 8}
    assert costs[8] < 0.2 < costs[16]  # type: ignore[operator]
    tried = plan.searches.trials("sft", "gsm8k", keeps)
    assert sorted(over.get("epochs", 6) for over in tried) == [2, 4, 6, 8]
    assert len(plan.searches.trials("sft", "gsm8k")) == 6
    unlimited = make_plan(RATES, **{"budgets.default.tflop": None})
    assert within_budget(unlimited, "sft", "gsm8k")({"epochs": 10**6})


def test_a_budget_that_no_settings_keep_is_one_line_with_the_key_and_the_remedy() -> None:
    with pytest.raises(UserError) as error:
        within_budget(limited(0.001), "sft", "gsm8k")
    said = str(error.value)
    assert said.startswith(
        "budgets.default.tflop: 0.001 is less than any settings of sft on gsm8k are predicted to need"
    )
    assert said.endswith("at least; raise it, or extend methods.sft.search")
    assert "\n" not in said


def test_a_step_beyond_that_gains_nothing_with_the_first_seed_meets_no_other() -> None:
    for score, seeds in ((50.0, [None]), (60.0, [None, 8, 9])):
        tried, asked = make_tried(lambda over, seed, score=score: score if over["learning_rate"] < 0.001 else 50.0)
        finals(tried, trials(tried, rate(0.001)), make_plan(RATES, finalists=2))
        first = next(over for over, _ in asked if over != rate(0.001))
        assert [seed for over, seed in asked if over == first] == seeds


def test_what_cannot_be_predicted_is_tried_and_the_log_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unknown = tmp_path / "forecast.yaml"
    text = (ROOT / "config" / "forecast_nano.yaml").read_text(encoding="utf-8")
    unknown.write_text(text.replace("nano:actor", "nano:another"))
    plan = make_plan(RATES, **{"budgets.default.tflop": 0.001, "forecast": str(unknown)})
    assert within_budget(plan, "sft", "gsm8k")({"epochs": 1000})
    assert "its compute is not predicted, so all settings are tried" in capfd.readouterr().err


def test_steps_beyond_an_edge_keep_the_budget() -> None:
    plan = limited(0.2)
    tried, asked = make_tried(lambda over, seed: 10 * over["epochs"])
    keeps = within_budget(plan, "sft", "gsm8k")
    found = finals(tried, trials(tried, {"epochs": 32}), plan, keeps)
    assert found["beyond"] == []  # the setting stays at its edge
    assert {over["epochs"] for over, _ in asked} == {32}


def test_a_limit_of_compute_is_part_of_keys_and_no_limit_leaves_them_as_they_were() -> None:
    keys = {value: limited(value).settings.winner_key("sft", "gsm8k") for value in (1.0, 2.0)}
    assert len(set(keys.values())) == 2
    unlimited = BudgetConfig(lm_calls=5)  # type: ignore[call-arg]
    assert unlimited.limits(("gsm8k",)) == {"lm_calls": 5, "generated_tokens": None, "trained_tokens": None}


def test_compute_may_be_limited_per_benchmark() -> None:
    budget = BudgetConfig(tflop={"gsm8k": 1.0, "math": 3.0})  # type: ignore[call-arg]
    assert [budget.limits(train)["tflop"] for train in (("gsm8k",), ("math",), ("gsm8k", "math"))] == [1.0, 3.0, 2.0]
    with pytest.raises(
        UserError, match=r"budgets\.default\.tflop: 'cosmosqa' is missing; give one number for each benchmark"
    ):
        load_config("nano", {"budgets.default.tflop": {"gsm8k": 1.0, "math": 3.0}})
