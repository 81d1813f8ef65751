"""Plans: what is computed, in which jobs, and what a key depends on."""

import pytest

from metatuner.errors import UserError
from metatuner.harness.config import load_config
from metatuner.plan import Plan


def plan(overrides=None, preset="nano"):
    return Plan(load_config(preset, {"tuning.winners": None, **(overrides or {})}))


MAIN = "experiments.main"


def test_a_cell_is_computed_once_for_all_experiments_that_need_it():
    config = load_config("nano", {"tuning.winners": None}).experiments["main"].model_dump()
    both = plan({"experiments": {"again": config}})
    assert len(both.rows) == 2 * len(both.cells)
    assert both.cells.keys() == plan().cells.keys()


def test_a_method_that_uses_no_generator_is_the_same_for_each():
    one = plan({"experiments.main.methods": ["sft", "opro"]})
    other = plan({"experiments.main.methods": ["sft", "opro"], "experiments.main.generator": "small"})
    shared = one.fits.keys() & other.fits.keys()
    assert {one.fits[key].method for key in shared} == {"sft"}
    assert len(shared) == 12


def test_what_a_fit_builds_on_stands_before_it_in_a_pack_of_its_own():
    made = plan()
    order = list(made.fits)
    for fit in made.fits.values():
        assert all(order.index(needed.key) < order.index(fit.key) for needed in fit.requires)
    for pack in made.fit_packs.values():
        if pack.name.startswith("metatuner_j"):
            needed = {need.key for key in pack.keys for need in made.fits[key].requires}
            there = {key for name in pack.needs for key in made.fit_packs[name].keys}
            assert needed <= there
            assert all(made.fit_step(name) == "warmup" for name in pack.needs)


def test_every_cell_is_in_exactly_one_pack_whose_fits_come_before():
    made = plan()
    packed = [key for pack in made.evaluate_packs.values() for key in pack.keys]
    assert sorted(packed) == sorted(made.cells)
    for pack in made.evaluate_packs.values():
        there = {key for name in pack.needs for key in made.fit_packs[name].keys}
        assert {made.cells[key].fit.key for key in pack.keys} <= there


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ({"methods.sft.settings.rank": 4}, {"sft"}),
        ({"methods.metatuner_warmup.settings.rollouts": 4}, {"metatuner_j"}),
        ({"nano.world_seed": 1}, {"zero_shot", "few_shot", "opro", "sft", "metatuner_j"}),
        ({"budgets.default.lm_calls": 30000}, {"zero_shot", "few_shot", "opro", "sft", "metatuner_j"}),
        ({"batch_tokens": 8192}, set()),
        ({"pack": 3}, set()),
        ({"threads": 2}, set()),
        ({"models.actor.device": "cuda"}, set()),
        ({"methods.sft.search.rank": {"values": [2, 4]}}, set()),
    ],
)
def test_a_key_changes_with_what_the_cell_depends_on_and_nothing_else(override, changes):
    before, after = plan(), plan(override)
    methods = {cell.fit.method for key, cell in before.cells.items() if key not in after.cells}
    assert methods == changes


def test_seeds_and_methods_leave_the_others_alone():
    before = plan().cells.keys()
    assert before < plan({"experiments.main.seeds": [0, 1, 2, 3]}).cells.keys()
    fewer = plan({"experiments.main.methods": ["zero_shot"]}).cells.keys()
    assert fewer < before


def test_trials_begin_with_the_presets_own_settings_and_none_comes_twice():
    made = plan()
    for method, benchmark in made.tunable:
        trials = made.trials(method, benchmark)
        assert trials[0] == {}
        assert len({str(trial) for trial in trials}) == len(trials)
        if method != "few_shot":  # whose grid of five is smaller
            assert len(trials) == made.config.tuning.trials
        assert trials == made.trials(method, benchmark)
    shots = [trial.get("shots", 4) for trial in made.trials("few_shot", "gsm8k")]
    assert sorted(shots) == [1, 2, 3, 4, 6]


def test_a_stored_winner_is_used_while_its_key_is_current_and_has_expired_after(tmp_path, monkeypatch):
    import metatuner.plan as module
    from metatuner.harness.tuning import Winner, write_winners

    monkeypatch.setattr(module, "ROOT", tmp_path)
    key = plan().tuning_key("sft", "gsm8k")
    won = Winner("sft", "gsm8k", {"learning_rate": 0.5}, 50.0, 8, 0, (), key)
    write_winners(tmp_path / "winners.json", [won])
    used = plan({"tuning.winners": "winners.json"})
    rows = {(row.method, row.benchmark): row for row in used.rows}
    assert rows["sft", "gsm8k"].tuned == "winner"
    assert '"learning_rate":0.5' in rows["sft", "gsm8k"].settings
    assert rows["sft", "math"].tuned == "untuned"
    assert rows["zero_shot", "math"].tuned == "none"
    changed = plan({"tuning.winners": "winners.json", "methods.sft.settings.rank": 2})
    rows = {(row.method, row.benchmark): row for row in changed.rows}
    assert rows["sft", "gsm8k"].tuned == "expired"
    assert '"learning_rate":0.5' not in rows["sft", "gsm8k"].settings
    assert changed.expired == {("sft", "gsm8k")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"experiments.main.methods": ["zero_sot"]}, "unknown method 'zero_sot'; did you mean zero_shot?"),
        ({"experiments.main.methods": ["metatuner_warmup"]}, "only serves other methods"),
        ({"methods.sft.settings.rnk": 2}, "unknown setting 'rnk' of method sft; did you mean rank?"),
        ({"methods.sft.settings.rank": "two"}, "methods.sft.settings.rank: Input should be a valid integer"),
        ({"methods.sft.settings.learning_rate": -1.0}, "methods.sft.settings.learning_rate: Input should be greater"),
        ({"methods.sft.settings.epochs": True}, "methods.sft.settings.epochs: Input should be a valid integer"),
        ({"methods.opro.settings.steps": 0}, "methods.opro.settings.steps: Input should be greater"),
        ({"methods.few_shot.settings.shots": "4"}, "methods.few_shot.settings.shots: Input should be a valid integer"),
        ({"methods.metatuner_j.settings.rank": 0}, "rank"),
        ({"methods.sft.search.rnk": {"values": [1]}}, "unknown setting 'rnk'"),
        ({"methods.metatuner_warmup.search.rollouts": {"values": [1]}}, "is not tuned; leave it out"),
        ({"models.actor.path": "./no/such/folder"}, "no folder no/such/folder"),
        ({"benchmarks.gsm8k.sizes.test": None}, "the nano world has no end"),
        ({"extra_methods": ["nowhere.py"]}, "extra_methods: no file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override, message):
    with pytest.raises(UserError) as error:
        _ = plan(override).rows
    assert message in str(error.value)
    assert "\n" not in str(error.value)
