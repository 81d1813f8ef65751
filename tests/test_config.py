"""The config: presets resolve, errors name the key and the remedy."""

import json
import subprocess
import sys

import jsonschema
import pytest
from safetensors.torch import load_file

from metatuner.cli import main
from metatuner.errors import UserError
from metatuner.harness import config as c


@pytest.mark.parametrize("preset", c.preset_names())
def test_every_preset_resolves_and_validates_against_the_generated_schema(preset):
    resolved = c.load_config(preset)
    assert resolved.preset == preset
    assert resolved.results == f"results/{preset}"
    jsonschema.validate(json.loads(c.dump_config(resolved)), c.json_schema())


def test_a_written_config_reads_back_the_same(tmp_path):
    resolved = c.load_config("nano_full")
    path = tmp_path / "config.json"
    path.write_text(c.dump_config(resolved))
    assert c.read_config(path) == resolved


def test_a_preset_extends_its_base_key_by_key():
    nano, full = c.load_config("nano"), c.load_config("nano_full")
    assert full.experiments["main"].seeds == [0, 1, 2, 3, 4]
    assert full.experiments["main"].methods == nano.experiments["main"].methods
    assert full.models == nano.models


def test_an_experiment_or_variant_that_is_null_is_left_out():
    without = c.load_config(
        "nano", {"experiments": {"d2": None, "rollouts": {"variants": {"metatuner_j": {"n1": None}}}}}
    )
    whole = c.load_config("nano")
    assert whole.experiments.keys() - without.experiments.keys() == {"d2"}
    assert list(without.experiments["rollouts"].points.values()) == [2, 4, 8, 16]
    with pytest.raises(UserError, match="config key 'experiments'"):
        c.load_config("nano", {"experiments": dict.fromkeys(whole.experiments)})


def test_points_are_the_values_of_the_axis_by_method_and_variant():
    experiments = c.load_config("nano").experiments
    assert experiments["d2"].points["metatuner_j", "expert"] == "expert"
    assert experiments["sharing"].points["metatuner_j", "quarter_fixed"] == 0.25
    assert experiments["main"].points == {}


def test_overrides_may_be_nested_or_dotted():
    nested = c.load_config("nano", {"tuning": {"trials": 3}})
    dotted = c.load_config("nano", {"tuning.trials": 3})
    assert nested == dotted
    assert nested.tuning.seed == c.load_config("nano").tuning.seed


def test_paper_test_sizes_are_the_papers():
    sizes = {name: benchmark.sizes.test for name, benchmark in c.load_config("paper").benchmarks.items()}
    assert sizes == {"math": 450, "gsm8k": 1319, "hotpotqa": 2000, "cosmosqa": 2000}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tunning": {}}, "unknown config key 'tunning'; did you mean tuning?"),
        ({"benchmarks": {"gsm8k": {"sizes": {"trian": 3}}}}, "'benchmarks.gsm8k.sizes.trian'; did you mean train?"),
        ({"tuning": {"trials": "many"}}, "config key 'tuning.trials': Input should be a valid integer, got 'many'"),
        ({"tuning": {"trials": 0}}, "config key 'tuning.trials': Input should be greater than or equal to 1, got 0"),
        ({"threads": True}, "config key 'threads'"),
        ({"experiments": {"main": {"benchmarks": ["gsm8"]}}}, "unknown benchmark 'gsm8'; did you mean gsm8k?"),
        ({"experiments": {"main": {"generator": "lage"}}}, "unknown generator 'lage'; did you mean large?"),
        ({"experiments": {"main": {"seeds": [1000]}}}, "1000 is tuning.seed; report other seeds"),
        ({"experiments": {"main": {"seeds": [0, 0]}}}, "experiments.main.seeds: 0 stands there twice"),
        ({"experiments": {"main": {"methods": ["sft", "sft"]}}}, "'sft' stands there twice"),
        ({"experiments": {"main": {"generator": ["large", "smal"]}}}, "unknown generator 'smal'; did you mean small?"),
        (
            {"experiments": {"main": {"generator": ["large", "large"]}}},
            "experiments.main.generator: 'large' stands there",
        ),
        ({"experiments": {"main": {"axis": "alpha"}}}, "experiments.main.axis: no variant sets 'alpha'"),
        ({"experiments": {"my grid": {"methods": ["sft"]}}}, "my grid"),
        ({"models": {"actor": {"device": "gpu"}}}, "device 'gpu' is none"),
        ({"models": {"actor": {"rewrite_user": "x"}}}, "must hold {query} once"),
        ({"methods": {"sft": {"search": {"learning_rate": {"low": 0.0}}}}}, "needs `low` > 0"),
        ({"methods": {"sft": {"budget": "defalt"}}}, "unknown budget 'defalt'; did you mean default?"),
        ({"benchmarks": {"gsm8k": {"source": "local"}}}, "`path` goes with `source: local`"),
        ({"methods": {"sft": {"search": {"learning_rate": {"low": 2.0, "high": 1.0}}}}}, "`low` < `high`"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_key(overrides, message):
    with pytest.raises(UserError) as error:
        c.load_config("nano", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_the_near_miss_and_all():
    with pytest.raises(
        UserError,
        match=r"unknown preset 'nan0' .a file config/presets/NAME.yaml.; did you mean nano\? Known: .*paper.*smoke",
    ):
        c.load_config("nan0")


def test_an_unset_variable_in_a_path_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    with pytest.raises(UserError, match=r"benchmarks.gsm8k.path.*\$NO_SUCH_FOLDER is not set"):
        c.expand_path("$NO_SUCH_FOLDER/rows", "benchmarks.gsm8k.path")


def test_a_command_runs_with_a_fixed_order_of_sets(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    # The command starts itself again with the words it was started by; the second time, these print a hash instead.
    words = (
        "import os, sys\n"
        "if 'PYTHONHASHSEED' in os.environ: sys.exit(print(hash('a')))\n"
        "sys.argv = ['metatuner', 'methods']\n"
        "from metatuner.cli import main\n"
        "main()"
    )
    seen = {
        subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(seen) == 1
    assert seen.pop().strip().lstrip("-").isdigit()


def test_run_names_the_experiments_that_are_left() -> None:
    assert list(c.load_config("nano", {"run": "ablation"}).experiments) == ["ablation"]
    assert list(c.load_config("nano", {"run": ["rollouts", "main"]}).experiments) == ["rollouts", "main"]
    with pytest.raises(UserError, match="'run': no experiment 'mains'; did you mean main"):
        c.load_config("nano", {"run": "mains"})


def test_a_broken_file_of_weights_is_one_line_with_a_remedy(monkeypatch, capsys, tmp_path):
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"cut off")
    monkeypatch.setattr("metatuner.steps.run", lambda *_: load_file(broken))
    assert main(["methods"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a file of weights is cut off or broken: restore it" in line
