"""Plans: what is computed, in which jobs, and what a key depends on."""

import re

import pytest
import yaml

from metatuner.analysis.figures import figures_of
from metatuner.cli import main
from metatuner.config import MethodConfig, dump_config, load_config, read_config
from metatuner.errors import UserError
from metatuner.hashing import ROOT
from metatuner.integrity import write_digests
from metatuner.plan import Plan
from metatuner.plan.dag import Dag
from metatuner.plan.winners import Winner, write_winners
from tests.toys.plan import fits_of, plan, plan_of, whole_plan


def test_a_cell_is_computed_once_for_all_experiments_that_need_it():
    config = load_config("nano", {"tuning.winners": None}).experiments["main"].model_dump()
    both = plan({"experiments": {"again": config}})
    assert len(both.grid.rows) == 2 * len(both.grid.cells)
    assert both.grid.cells.keys() == plan().grid.cells.keys()


def test_a_method_that_uses_no_generator_is_the_same_for_each():
    one = plan({"experiments.main.methods": ["sft", "opro"]})
    other = plan({"experiments.main.methods": ["sft", "opro"], "experiments.main.generator": "small"})
    shared = one.grid.fits.keys() & other.grid.fits.keys()
    assert {one.grid.fits[key].method for key in shared} == {"sft"}
    assert len(shared) == 12


def test_what_a_fit_builds_on_stands_before_it_in_a_pack_of_its_own():
    made = plan()
    order = list(made.grid.fits)
    for fit in made.grid.fits.values():
        assert all(order.index(needed.key) < order.index(fit.key) for needed in fit.requires)
    for pack in made.packs.fits.values():
        if pack.name.startswith("metatuner_j"):
            needed = {need.key for key in pack.keys for need in made.grid.fits[key].requires}
            there = {key for name in pack.needs for key in made.packs.fits[name].keys}
            assert needed <= there
            assert all(made.packs.step(name) == "warmup" for name in pack.needs)


def test_every_cell_is_in_exactly_one_pack_whose_fits_come_before():
    made = plan()
    packed = [key for pack in made.packs.evaluations.values() for key in pack.keys]
    assert sorted(packed) == sorted(made.grid.cells)
    for pack in made.packs.evaluations.values():
        there = {key for name in pack.needs for key in made.packs.fits[name].keys}
        assert {made.grid.cells[key].fit.key for key in pack.keys} <= there


def test_seeds_and_methods_leave_the_others_alone():
    before = plan().grid.cells.keys()
    assert before < plan({"experiments.main.seeds": [0, 1, 2, 3]}).grid.cells.keys()
    fewer = plan({"experiments.main.methods": ["zero_shot"]}).grid.cells.keys()
    assert fewer < before


def test_trials_begin_with_the_presets_own_settings_and_none_comes_twice():
    made = plan()
    for method, benchmark in made.searches.all:
        trials = made.searches.trials(method, benchmark)
        assert trials[0] == {}
        assert len({str(trial) for trial in trials}) == len(trials)
        if method != "rewriter_sft":  # its grid of four is smaller
            assert len(trials) == made.config.tuning.trials
        assert trials == made.searches.trials(method, benchmark)
    whole = plan({"tuning.trials": 8})  # more than its grid of six holds
    shots = [trial.get("shots", 4) for trial in whole.searches.trials("few_shot", "gsm8k")]
    assert sorted(shots) == [1, 2, 3, 4, 6, 8]


def test_a_stored_winner_is_used_while_its_key_is_current_and_has_expired_after(tmp_path, monkeypatch):
    monkeypatch.setattr("metatuner.plan.settings.ROOT", tmp_path)
    key = plan().settings.winner_key("sft", "gsm8k")
    won = Winner("sft", "gsm8k", {"learning_rate": 0.5}, 50.0, 8, 0, (), key)
    write_winners(tmp_path / "winners.json", [won])
    used = plan({"tuning.winners": "winners.json"})
    rows = {(row.method, row.benchmark): row for row in used.grid.rows}
    assert rows["sft", "gsm8k"].tuned == "winner"
    assert rows["sft", "gsm8k"].settings["learning_rate"] == 0.5
    assert rows["sft", "math"].tuned == "untuned"
    assert rows["zero_shot", "math"].tuned == "none"
    changed = plan({"tuning.winners": "winners.json", "methods.sft.settings.rank": 2})
    rows = {(row.method, row.benchmark): row for row in changed.grid.rows}
    assert rows["sft", "gsm8k"].tuned == "expired"
    assert rows["sft", "gsm8k"].settings["learning_rate"] != 0.5
    assert changed.settings.expired == {("sft", "gsm8k")}


# ---- variants ------------------------------------------------------------------------------------------------------


def test_a_variant_reaches_what_its_method_builds_on_and_equal_settings_share_fits():
    made = plan_of(
        variants={
            "own": {"metatuner_warmup": {"rollouts": 4}},
            "fewer": {"metatuner_warmup": {"rollouts": 2}},
            "alpha": {"alpha": 2.0},
        }
    )
    fits = fits_of(made)
    (own,), (fewer,), (alpha,) = (fits[name].requires for name in ("own", "fewer", "alpha"))
    main = {row.cell for row in made.grid.rows if row.experiment == "main"}
    shared = [row.variant for row in made.grid.rows if row.experiment == "grid" and row.cell in main]
    assert shared == ["own"]  # 4 is what the preset says
    assert fewer.settings.rollouts == 2
    assert fewer.key != own.key == alpha.key
    assert fits["fewer"].settings == fits["own"].settings
    assert len({fit.key for fit in fits.values()}) == 3
    # Rows say what their variant sets of the other method; fits have their own settings alone.
    (row,) = [row for row in made.grid.rows if row.variant == "fewer"]
    assert row.settings["metatuner_warmup"] == {"rollouts": 2}
    assert not hasattr(fits["fewer"].settings, "metatuner_warmup")


def test_all_experiments_of_the_default_preset_share_what_they_can():
    made = whole_plan()
    main = {row.fit for row in made.grid.rows if row.experiment == "main"}
    anew = {
        name: len({row.fit for row in made.grid.rows if row.experiment == name} - main)
        for name in made.config.experiments
    }
    # Untuned, variants under their own tuned settings are those under the whole method's.
    assert anew == {
        "main": 0,
        "ablation": 48,
        "sharing": 54,
        "regularisation": 12,
        "d2": 24,
        "rollouts": 30,
        "small": 12,  # zero-shot, few-shot and SFT use no generator
        "generalisation": 24,
        "sft_prompts": 16,
    }
    sharing = fits_of(made, "sharing")
    assert sharing["none", "large"].key in {row.fit for row in made.grid.rows if row.variant == "without_s"}
    assert sharing["half", "large"].key in main


def test_each_benchmark_is_tested_by_what_was_trained_on_the_others():
    names = ["math", "gsm8k", "hotpotqa", "cosmosqa"]
    made = plan_of(method="sft", variants={"default": {}}, benchmarks=names, train="others", rows=43)
    rows = [row for row in made.grid.rows if row.experiment == "grid"]
    assert {row.benchmark: row.trained_on for row in rows} == {
        name: "+".join(other for other in names if other != name) for name in names
    }
    for row in rows:
        fit = made.grid.fits[row.fit]
        assert row.benchmark not in fit.train
        assert fit.transfer == (row.benchmark,)
        assert made.grid.fit_sizes("gsm8k", fit.rows) == (43, 22)  # 64 dev rows to 128
    one = made.grid.fit("sft", made.settings.resolve("sft", ("gsm8k",)), ("gsm8k",), "large", 0)
    assert one.transfer == ()
    pair = plan_of(method="sft", benchmarks=["math", "gsm8k"], train="others")
    assert {row.trained_on for row in pair.grid.rows if row.experiment == "grid"} == {"math", "gsm8k"}
    assert all(row.benchmark in pair.grid.fits[row.fit].transfer for row in pair.grid.rows if row.experiment == "grid")
    assert made.grid.fit_sizes("gsm8k", one.rows) == (128, 64)


def test_a_fit_on_several_benchmarks_depends_on_the_others_prompts_and_on_none_of_their_rows():
    names = ["math", "gsm8k", "hotpotqa"]

    def keys(**changes):
        made = plan_of(method="sft", benchmarks=names, train="others", rows=43, **changes)
        return {row.benchmark: row.fit for row in made.grid.rows if row.experiment == "grid"}

    before = keys()
    rows = keys(benchmarks__gsm8k__split_seed=7)  # other rows of GSM8K
    assert rows["gsm8k"] == before["gsm8k"]
    assert rows["math"] != before["math"]
    prompt = keys(benchmarks__gsm8k__initial_prompt="another")  # it is asked under this
    assert all(prompt[name] != before[name] for name in names)
    more = keys(experiments__grid__rows=44)
    assert not set(more.values()) & set(before.values())


def test_trained_on_several_benchmarks_a_setting_is_the_median_of_their_winners(tmp_path, monkeypatch):
    monkeypatch.setattr("metatuner.plan.settings.ROOT", tmp_path)
    names = ["math", "gsm8k", "hotpotqa", "cosmosqa"]
    rates = dict(zip(names, (0.4, 0.1, 0.2, 0.3), strict=True))
    key = {name: plan().settings.winner_key("sft", name) for name in names}
    found = [Winner("sft", name, {"learning_rate": rates[name]}, 50.0, 8, 0, (), key[name]) for name in names]

    def settings(winners):
        write_winners(tmp_path / "winners.json", winners)
        grid = {"benchmarks": names, "train": "others", "rows": 43, "tuning__winners": "winners.json"}
        made = plan_of(method="sft", **grid)
        return {row.benchmark: (row.settings, row.tuned) for row in made.grid.rows if row.experiment == "grid"}

    tuned = settings(found)
    assert {name: (values["learning_rate"], word) for name, (values, word) in tuned.items()} == {
        "math": (0.2, "medians"),
        "gsm8k": (0.3, "medians"),
        "hotpotqa": (0.3, "medians"),
        "cosmosqa": (0.2, "medians"),
    }
    own = plan().config.methods["sft"].settings
    assert tuned["math"][0]["epochs"] == own["epochs"]  # no winner names it
    without = settings(found[1:])
    assert without["gsm8k"] == ({**tuned["math"][0], "learning_rate": own["learning_rate"]}, "untuned")
    assert without["math"][1] == "medians"


def test_of_settings_that_are_no_numbers_the_median_is_by_the_order_of_the_search_space(tmp_path, monkeypatch):
    monkeypatch.setattr("metatuner.plan.settings.ROOT", tmp_path)
    names = ["math", "gsm8k", "hotpotqa", "cosmosqa"]
    starts = plan().config.methods["dpo"].search["sft"].values
    chosen = dict(zip(names, (starts[2], starts[0], starts[1], starts[0]), strict=True))
    key = {name: plan().settings.winner_key("dpo", name) for name in names}
    found = [Winner("dpo", name, {"sft": chosen[name]}, 50.0, 5, 0, (), key[name]) for name in names]
    write_winners(tmp_path / "winners.json", found)
    made = plan_of(method="dpo", benchmarks=names, train="others", rows=43, tuning__winners="winners.json")
    used = {row.benchmark: row.settings["sft"] for row in made.grid.rows if row.experiment == "grid"}
    assert used == {"math": starts[0], "gsm8k": starts[1], "hotpotqa": starts[0], "cosmosqa": starts[1]}
    # A winner changes what it names of a required method's settings, and keeps the rest.
    fixed = plan_of(method="dpo", methods__dpo__settings__sft__rank=3).settings.winner_key("dpo", "gsm8k")
    write_winners(tmp_path / "winners.json", [Winner("dpo", "gsm8k", {"sft": starts[0]}, 50.0, 5, 0, (), fixed)])
    kept = plan_of(method="dpo", tuning__winners="winners.json", methods__dpo__settings__sft__rank=3)
    (row,) = [row for row in kept.grid.rows if row.experiment == "grid"]
    assert (row.tuned, row.settings["sft"]) == ("winner", {**starts[0], "rank": 3})


def test_an_experiment_runs_with_each_of_its_generators():
    made = plan_of(
        method="metatuner_j",
        methods=["sft", "metatuner_j"],
        generator=["large", "small"],
        variants={"default": {}, "other": {"alpha": 2.0, "generator": "small"}},
    )
    rows = [(row.method, row.variant, row.generator) for row in made.grid.rows if row.experiment == "grid"]
    assert rows == [
        ("sft", "default", ""),
        ("metatuner_j", "default", "large"),
        ("metatuner_j", "default", "small"),
        ("metatuner_j", "other", "small"),
    ]


def test_an_experiment_may_have_a_budget_of_its_own_for_all_that_its_fits_build_on() -> None:
    limits = {"budgets__default__tflop": 1.0, "budgets__wide__tflop": 9.0}
    made = plan_of(method="metatuner_j", budget="wide", **limits)
    keys = {
        name: {row.fit for row in made.grid.rows if row.experiment == name and row.method == "metatuner_j"}
        for name in ("grid", "main")
    }
    assert not keys["grid"] & keys["main"]
    fits = [made.grid.fits[key] for key in keys["grid"]]
    assert {fit.budget for fit in fits} | {needed.budget for fit in fits for needed in fit.requires} == {"wide"}
    assert {made.grid.fits[key].budget for key in keys["main"]} == {"default"}
    with pytest.raises(UserError, match=r"experiments\.grid\.budget: unknown budget 'wid'; .*wide"):
        plan_of(method="metatuner_j", budget="wid", **limits)


def test_jobs_read_the_plan_that_the_dag_was_built_from(tmp_path):
    few = ["zero_shot", "few_shot", "sft", "opro", "metatuner_j"]
    config = load_config("nano_full", {"tuning.winners": None, "experiments.main.methods": few})
    (tmp_path / "config.json").write_text(dump_config(config))
    before, after = Plan(config), Plan(read_config(tmp_path / "config.json"))
    assert before.grid.rows == after.grid.rows
    assert before.packs.fits == after.packs.fits
    assert before.packs.evaluations == after.packs.evaluations
    assert before.searches.all == after.searches.all


def test_the_documented_experiment_shares_what_it_can_with_the_presets_own():
    page = (ROOT / "docs" / "adding_an_experiment.md").read_text(encoding="utf-8")
    block = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0])
    made = plan({"experiments.bottleneck": block["experiments"]["bottleneck"]}, block["extends"])
    main = {row.cell for row in made.grid.rows if row.experiment == "main"}
    shared = {
        (row.variant, row.generator) for row in made.grid.rows if row.experiment == "bottleneck" and row.cell in main
    }
    assert shared == {("b64", "large")}
    assert "figure_bottleneck" in figures_of(made.config)


def test_a_variant_tuned_on_its_own_has_its_own_winner_and_others_inherit(tmp_path, monkeypatch):
    monkeypatch.setattr("metatuner.plan.settings.ROOT", tmp_path)
    variants = {
        "same": {"alpha": 1.0},
        "same_warm_up": {"metatuner_warmup": {"d2": "best"}},
        "without_p": {"prompt_branch": False},
        "tuned": {"tuned_as": "without_p"},
        "on_top": {"tuned_as": "without_p", "alpha": 3.0},
    }
    free = plan_of(variants=variants)
    assert ("metatuner_j.without_p", "gsm8k") in free.searches.all
    assert ("metatuner_j.without_p", "math") not in free.searches.all  # no experiment has it there
    assert ("metatuner_j.without_s", "gsm8k") not in free.searches.all
    winners = [
        Winner(name, "gsm8k", {"epochs": epochs}, 50.0, 8, 0, (), free.settings.winner_key(name, "gsm8k"))
        for name, epochs in (("metatuner_j", 3), ("metatuner_j.without_p", 6))
    ]
    assert winners[0].key != winners[1].key
    write_winners(tmp_path / "winners.json", winners)
    made = plan_of(variants=variants, tuning__winners="winners.json")
    rows = {row.variant: row for row in made.grid.rows if row.experiment == "grid"}
    assert {name: row.tuned for name, row in rows.items()} == {
        "same": "winner",
        "same_warm_up": "winner",
        "without_p": "inherited",
        "tuned": "winner",
        "on_top": "inherited",
    }
    small = plan_of(variants=variants, generator="small", tuning__winners="winners.json")
    # The searches were made with the large generator, so the small one has the preset's own settings.
    own = small.config.methods["metatuner_j"].settings["epochs"]
    elsewhere = {(row.tuned, row.settings["epochs"]) for row in small.grid.rows if row.experiment == "grid"}
    assert elsewhere == {("untuned", own)}
    settings = {name: row.settings for name, row in rows.items()}
    assert [settings[name]["epochs"] for name in rows] == [3, 3, 3, 6, 6]
    assert [settings[name]["prompt_branch"] for name in rows] == [True, True, False, False, False]
    assert made.settings.expired == set()
    # Its trials start from its own settings, and its key changes with them.
    assert made.searches.trials("metatuner_j.without_p", "gsm8k")[0] == {}
    changed = plan_of(variants=variants, methods__metatuner_j__variants__without_p__settings__rank=1)
    assert changed.settings.winner_key("metatuner_j.without_p", "gsm8k") != winners[1].key
    assert changed.settings.winner_key("metatuner_j", "gsm8k") == winners[0].key


def test_the_drawing_knows_the_settings_and_the_generators_depth():
    framework = plan().settings.framework()
    assert framework["layers"] == 8
    assert framework["settings"]["pooling"] == "mean"
    assert plan({"experiments.main.methods": ["sft"]}).settings.framework() is None
    assert whole_plan("paper").settings.framework()["layers"] is None


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"alhpa": 1.0}, ("x: ", "'alhpa'", "alpha")),
        ({"metatuner_warmpu": {}}, ("x: ", "did you mean metatuner_warmup?")),
        ({"metatuner_warmup": {"rolouts": 2}}, ("x.metatuner_warmup: ", "'rolouts'")),
        ({"metatuner_warmup": {"rollouts": "2"}}, ("x.metatuner_warmup.rollouts: ", "integer")),
        ({"metatuner_warmup": 2}, ("x.metatuner_warmup: ", "mapping")),
        ({"tuned_as": "witout_p"}, ("x.tuned_as: ", "methods.metatuner_j.variants", "did you mean without_p?")),
        ({"generator": "small"}, ("x.generator: ", "'small'")),
    ],
)
def test_a_wrong_variant_is_named_with_its_place(variant, words):
    with pytest.raises(UserError) as error:
        _ = plan_of(variants={"x": variant}).grid.rows
    assert str(error.value).startswith(f"experiments.grid.variants.metatuner_j.{words[0]}")
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"experiments.main.methods": ["zero_sot"]}, ("experiments.main.methods", "did you mean zero_shot?")),
        ({"experiments.main.methods": ["metatuner_warmup"]}, ("experiments.main.methods", "'metatuner_warmup'")),
        ({"methods.sft.settings.rnk": 2}, ("methods.sft.settings", "'rnk'", "did you mean rank?")),
        ({"methods.sft.settings.rank": "two"}, ("methods.sft.settings.rank", "integer", "'two'")),
        ({"methods.sft.settings.learning_rate": -1.0}, ("methods.sft.settings.learning_rate", "greater", "-1.0")),
        ({"methods.metatuner_j.settings.rank": 0}, ("rank", "0")),
        ({"methods.sft.search.rnk": {"values": [1]}}, ("methods.sft.search", "'rnk'")),
        ({"methods.metatuner_warmup.search.rollouts": {"values": [1]}}, ("methods.metatuner_warmup.search", "tuned")),
        (
            {"methods.metatuner_j.variants.x": {"settings": {"rnk": 1}}},
            ("methods.metatuner_j.variants.x.settings", "'rnk'"),
        ),
        ({"methods.metatuner_warmup.variants.x": {}}, ("methods.metatuner_warmup.variants", "tuned")),
        ({"models.actor.path": "./no/such/folder"}, ("models.actor.path", "no/such/folder")),
        ({"benchmarks.gsm8k.sizes.test": None}, ("benchmarks.gsm8k.sizes",)),
        ({"extra_methods": ["nowhere.py"]}, ("extra_methods", "nowhere.py")),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_place(override, words):
    with pytest.raises(UserError) as error:
        _ = plan(override).grid.rows
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_packs_of_the_first_experiment_are_told_from_the_others():
    plan = whole_plan()
    main = [row for row in plan.grid.rows if row.experiment == "main"]
    needed = {row.cell for row in main} | {row.fit for row in main}
    needed |= {each.key for row in main for each in plan.grid.fits[row.fit].requires}
    for packs in (plan.packs.fits, plan.packs.evaluations):
        first = [pack for pack in packs.values() if plan.packs.comes_first(pack)]
        assert first == [pack for pack in packs.values() if needed & set(pack.keys)]
        assert 0 < len(first) < len(packs)


def test_searches_on_a_benchmark_build_on_fits_that_are_there_before_them():
    made = plan()
    needed = made.searches.needs("math")
    assert {(fit.method, fit.train) for fit in needed} == {("sft", ("math",)), ("metatuner_warmup", ("math",))}
    assert {fit.seed for fit in needed} == set(made.config.tuning.seeds)
    # The three SFTs that methods with rewards may start from, the rewriter's three that were drawn, and the warm-up.
    assert len(needed) == (3 + 3 + 1) * len(made.config.tuning.seeds)
    warm_up = next(fit for fit in needed if fit.method == "metatuner_warmup")
    for subject in ("metatuner_j", "static_lora", "metatuner_i", "dpo", "ppo", "grpo"):
        for over in made.searches.trials(subject, "math"):
            settings = made.settings.resolve(subject, ("math",), over, winners=False)
            (built_on,) = made.grid.fit(subject, settings, ("math",), "large", warm_up.seed).requires
            if subject in ("dpo", "ppo", "grpo"):  # each may start from another SFT
                assert (built_on.method, built_on.seed) == ("sft", warm_up.seed)
                assert built_on in needed
            else:
                assert built_on == warm_up


def test_the_first_experiments_policies_are_kept_and_those_of_its_first_seed_timed():
    made = whole_plan()
    main = [row for row in made.grid.rows if row.experiment == "main"]
    wanted = {row.fit for row in main} | {each.key for row in main for each in made.grid.fits[row.fit].requires}
    assert {path.parent.name for path in made.packs.spare_policies} == made.grid.fits.keys() - wanted
    assert all(path == made.layout.fit(path.parent.name) / "policy" for path in made.packs.spare_policies)
    assert plan({"keep": "all"}).packs.spare_policies == []
    other = plan({"experiments.main.seeds": [3, 1], "experiments.main.methods": ["sft", "opro"]})
    assert {(cell.fit.method, cell.benchmark, cell.fit.seed) for cell in other.grid.timed_cells} == {
        (method, name, 3) for method in ("sft", "opro") for name in other.config.benchmarks
    }
    assert len(other.grid.timed_cells) == 8


def test_the_nano_world_has_rows_for_every_split_and_train_rows_to_draw_from():
    sizes = {"train": 1000, "dev": 20, "tune": 7, "test": 9, "audit": 5}
    made = plan({"benchmarks.gsm8k.sizes": sizes})
    assert made.keys.world_sizes()["gsm8k"] == {"train": 4080, "tune": 7, "test": 9, "audit": 5}
    assert made.keys.world_sizes()["math"]["train"] == 2000
    assert [file.name for file in made.keys.source_files("gsm8k")] == [
        f"{one}.jsonl" for one in made.keys.world_sizes()["gsm8k"]
    ]
    assert made.keys.nano_roles == ["actor", "generator"]
    assert whole_plan().keys.nano_roles == ["actor", "generator", "generator_small"]


def test_rows_of_a_fit_are_those_it_is_told_or_the_benchmarks_own():
    made = plan({"benchmarks.gsm8k.sizes": {"train": None, "dev": 20, "test": 9, "tune": 1}})
    assert made.grid.fit_sizes("math", None) == (128, 64)
    assert made.grid.fit_sizes("math", 32) == (32, 16)
    assert made.grid.fit_sizes("gsm8k", None) == (None, 20)
    assert made.grid.fit_sizes("gsm8k", 32) == (32, 20)  # of all rows there is no proportion


def test_packs_are_of_one_method_and_as_large_as_told():
    made = plan({"pack": 5, "methods.bpo.pack": 4, "methods.zero_shot.pack": 12})
    sizes = {"bpo": 4, "zero_shot": 12, "opro": made.config.methods["opro"].pack}
    for packs, of in ((made.packs.fits, made.grid.fits), (made.packs.evaluations, None)):
        for pack in packs.values():
            methods = {(of[key] if of else made.grid.cells[key].fit).method for key in pack.keys}
            assert methods == {pack.name.rpartition("-")[0]}
    for method, size in sizes.items():
        packs = [pack for pack in made.packs.fits.values() if pack.name.rpartition("-")[0] == method]
        assert [len(pack.keys) for pack in packs] == [min(size, 12 - start) for start in range(0, 12, size)]
    assert all(len(pack.keys) <= 5 for pack in made.packs.evaluations.values())


def test_searches_say_what_is_known_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr("metatuner.plan.settings.ROOT", tmp_path)
    key = plan().settings.winner_key("sft", "gsm8k")
    told = {"score": 50.0, "trials": 8, "failed": 1, "at_edge": ("epochs",)}
    found = [Winner("sft", name, {"epochs": 6}, key=key, **told) for name in ("gsm8k", "math")]
    write_winners(tmp_path / "winners.json", found)
    by_name = {
        (each["subject"], each["benchmark"]): each
        for each in plan({"tuning.winners": "winners.json"}).searches.describe()
    }
    assert [by_name["sft", name]["status"] for name in ("gsm8k", "math", "cosmosqa")] == ["current", "expired", "none"]
    assert by_name["sft", "gsm8k"]["score"] == 50.0
    assert by_name["sft", "gsm8k"]["settings"] == {"epochs": 6}
    assert by_name["sft", "cosmosqa"]["score"] is None
    assert by_name["sft", "cosmosqa"]["search"]["epochs"]["values"] == [4, 6, 9, 13, 18, 27]
    assert {each["generator"] for each in by_name.values()} == {"large"}


def test_a_search_s_warm_up_without_its_policy_is_fitted_again(tmp_path):
    made = plan({"results": str(tmp_path)})
    warm_up = next(fit for fit in made.searches.needs("math") if fit.method == "metatuner_warmup")
    policy = made.layout.fit(warm_up.key) / "policy"
    policy.mkdir(parents=True)
    write_digests(policy.parent)
    assert made.packs.is_complete(warm_up)
    policy.rmdir()  # as `keep` leaves a reported seed's, which may be the search's later
    assert not made.packs.is_complete(warm_up)


def test_a_method_without_a_search_is_as_tuned_as_what_it_builds_on(tmp_path, monkeypatch):
    monkeypatch.setattr("metatuner.plan.settings.ROOT", tmp_path)
    methods = {"rewriter_sft": MethodConfig()}  # type: ignore[call-arg]

    def made(**keys):
        config = plan_of(method="rewriter_sft", **keys).config
        return Plan(config.model_copy(update={"methods": config.methods | methods}))

    key = made().settings.winner_key("sft", "gsm8k")
    found = []
    for stored in (key, "of other code"):
        write_winners(tmp_path / "winners.json", [Winner("sft", "gsm8k", {"epochs": 3}, 50.0, 8, 0, (), stored)])
        tuned = made(tuning__winners="winners.json")
        found += [row.tuned for row in tuned.grid.rows if row.experiment == "grid"]
    found += [row.tuned for row in made().grid.rows if row.experiment == "grid"]
    assert found == ["inherited", "expired", "untuned"]


# ---- methods of a user's own ---------------------------------------------------------------------------------------

SMALL = {"experiments.main.methods": ["zero_shot", "few_shot"]}
MINE = """
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy


class Mine(Method):
    name = "mine"
    title = "mine"
    family = "prompt"
    reference = "none"

    def fit(self, lab):
        return StaticPolicy(lab, {})
"""


def test_a_users_method_joins_the_first_experiment_unless_one_names_it(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    extra = {**SMALL, "extra_methods": [str(tmp_path / "mine.py")]}
    made, before = plan(extra), plan(SMALL)
    assert made.config.experiments["main"].methods == [*before.config.experiments["main"].methods, "mine"]
    assert before.grid.cells.keys() < made.grid.cells.keys()
    assert {made.grid.cells[key].fit.method for key in made.grid.cells.keys() - before.grid.cells.keys()} == {"mine"}
    (description,) = [each for each in made.descriptions if each["name"] == "mine"]
    assert description["family"] == "prompt"
    grid = {"methods": ["mine"], "benchmarks": ["gsm8k"], "seeds": [0], "generator": "large"}
    named = plan({**extra, "experiments.grid": grid})
    assert named.config.experiments["main"].methods == before.config.experiments["main"].methods


def test_a_method_of_another_package_joins_the_main_table_and_a_broken_one_fails_alone(tmp_path, monkeypatch):
    from importlib.metadata import EntryPoint

    package = tmp_path / "their_methods"
    package.mkdir()
    (package / "__init__.py").write_text("from their_methods.core import *\n")
    (package / "core.py").write_text(f"import their_methods.helper\n{MINE}")
    (package / "helper.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    (name,) = re.findall(r"^class (\w+)\(Method\)", MINE, re.MULTILINE)
    points = [
        EntryPoint("gone", "their_methods_that_are_gone", "metatuner.methods"),
        EntryPoint("one", f"their_methods.core:{name}", "metatuner.methods"),
        EntryPoint("same", "their_methods", "metatuner.methods"),
        EntryPoint("none", "their_methods.helper", "metatuner.methods"),
    ]
    before = plan(SMALL)
    monkeypatch.setattr("metatuner.harness.registry.entry_points", lambda group: points)
    others = {"methods.gone": {"settings": {"candidates": 3}}, "run": "main", "tuning.winners": None}
    made = Plan(load_config("nano", {**others, **SMALL}))
    assert made.config.experiments["main"].methods[-3:] == ["gone", "none", "mine"]
    assert before.grid.cells.keys() < made.grid.cells.keys()
    added = {cell.fit.method for key, cell in made.grid.cells.items() if key not in before.grid.cells}
    assert added == {"mine", "gone", "none"}
    with pytest.raises(UserError, match=r"entry point 'gone' \(their_methods_that_are_gone\) does not import: Module"):
        made.registry["gone"].cls().fit(None)
    with pytest.raises(UserError, match=r"entry point 'none' .* it has no subclass of .*Method with `fit`; mend"):
        made.registry["none"].cls().fit(None)
    # What the package's other modules say is part of a fit's key.
    (package / "helper.py").write_text("VALUE = 2\n")
    later = Plan(made.config)
    assert {fit.method for key, fit in later.grid.fits.items() if key not in made.grid.fits} == {"mine"}


def test_a_file_s_neighbours_that_it_imports_are_part_of_its_fits_keys(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_helper.py").write_text("VALUE = 1\n")
    (tmp_path / "unrelated.py").write_text("VALUE = 1\n")
    file = tmp_path / "mine.py"
    file.write_text(f"import my_helper\n{MINE}")
    before = plan({**SMALL, "extra_methods": [str(file)]}).grid.fits.keys()
    (tmp_path / "unrelated.py").write_text("VALUE = 2\n")
    assert plan({**SMALL, "extra_methods": [str(file)]}).grid.fits.keys() == before
    (tmp_path / "my_helper.py").write_text("VALUE = 2\n")
    assert plan({**SMALL, "extra_methods": [str(file)]}).grid.fits.keys() != before


def test_a_file_that_does_not_import_fails_in_its_own_cells_alone(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import nothing_of_this_name\n" + MINE)
    made, before = plan({**SMALL, "extra_methods": [str(file)]}), plan(SMALL)
    assert before.grid.cells.keys() < made.grid.cells.keys()
    broken = made.registry["mine"].cls
    with pytest.raises(UserError, match=r"mine.py does not import: ModuleNotFoundError: .*nothing_of_this_name.*mend"):
        broken().fit(None)
    key = next(fit.key for fit in made.grid.fits.values() if fit.method == "mine")
    file.write_text(MINE)
    assert key not in plan({**SMALL, "extra_methods": [str(file)]}).grid.fits
    for code, told in (
        ("x = 1\n", "no method here"),
        (MINE.replace("def fit(", "def fitted("), "no method here"),
        (MINE.replace('name = "mine"', "pass"), "needs `name`"),
        (MINE.replace('"prompt"', '"promt"'), "did you mean prompt"),
    ):
        file.write_text(code)
        made = plan({**SMALL, "extra_methods": [str(file)]})
        assert before.grid.cells.keys() < made.grid.cells.keys()
        with pytest.raises(UserError, match=told):
            made.registry["mine"].cls().fit(None)
    file.write_text(MINE)
    file.rename(tmp_path / "My File.py")
    (tmp_path / "My File.py").write_text("1 +")
    with pytest.raises(UserError, match="does not import: SyntaxError"):
        plan({**SMALL, "extra_methods": [str(tmp_path / "My File.py")]})


def test_the_framework_is_drawn_if_metatuner_is_there_and_asked_for_otherwise_says_why(tmp_path, capsys):
    for methods, drawn in ((["zero_shot", "metatuner_j"], True), (["zero_shot"], False)):
        dag = Dag(plan({**SMALL, "experiments.main.methods": methods, "results": str(tmp_path)}).config)
        assert dag.draws_framework is drawn
        assert any("figure_2" in path.name for path in dag.result_files) is drawn
    dag.write_config()
    assert main(["figure", "--name", "figure_2", "--config", dag.config_file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "it draws MetaTuner-J, which no experiment here has; add metatuner_j to one" in line
