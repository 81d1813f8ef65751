"""The config: presets resolve, errors name the key and the remedy."""

import json
import re
import subprocess
import sys

import jsonschema
import pytest
from safetensors.torch import load_file

from metatuner import config as c
from metatuner.cli import main
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.hashing import ROOT


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
    again = c.read_config(path)
    assert again == resolved
    # In the same order too, in which cells are packed and variants stand in tables.
    assert list(again.experiments) == list(resolved.experiments)
    assert list(again.methods) == list(resolved.methods)
    assert c.dump_config(again) == path.read_text()


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


def test_an_inherited_entry_that_is_null_is_removed():
    others = ["gsm8k", "hotpotqa", "cosmosqa"]
    config = c.load_config(
        "paper",
        {
            "run": "main",
            "benchmarks.math": None,
            "budgets.default.tflop.math": None,
            "models.generators.small": None,
            "methods.ppo": None,
            "methods.metatuner_j.variants.gumbel": None,
            "experiments.main.benchmarks": others,
            "experiments.main.methods": ["sft", "metatuner_j"],
        },
    )
    whole = c.load_config("paper")
    assert list(config.benchmarks) == others
    assert config.benchmarks.items() <= whole.benchmarks.items()
    assert set(config.budgets["default"].tflop) == set(others)
    assert list(config.models.generators) == ["large"]
    assert whole.methods.keys() - config.methods.keys() == {"ppo"}
    assert whole.methods["metatuner_j"].variants.keys() - config.methods["metatuner_j"].variants.keys() == {"gumbel"}


def test_a_benchmarks_own_key_is_kept_only_if_it_is_set(tmp_path):
    gold = c.load_config("paper", {"benchmarks.hotpotqa.contexts": "gold"})
    assert gold.benchmarks["hotpotqa"].choices == {"contexts": "gold"}
    path = tmp_path / "config.json"
    path.write_text(c.dump_config(gold))
    assert c.read_config(path) == gold
    assert c.load_config("paper", {"benchmarks.hotpotqa.contexts": None}).benchmarks["hotpotqa"].choices == {}


def test_a_benchmark_in_a_file_of_the_users_declares_keys_of_its_own(tmp_path):
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    own = '    takes = {"case": Choice({"title": "", "upper": "in capitals"}, "how countries are written")}\n'
    code = code.replace("import Benchmark, HubSource", "import Benchmark, Choice, HubSource")
    path = tmp_path / "cities.py"
    path.write_text(
        code.replace('id = "capitals"', 'id = "cities"').replace("    version = 1\n", f"    version = 1\n{own}")
    )
    row = {"source": "local", "path": "rows", "sizes": {"test": 4}}
    chosen = {"extra_benchmarks": [str(path)], "benchmarks.cities": {**row, "case": "upper"}}
    assert c.load_config("nano", chosen).benchmarks["cities"].choices == {"case": "upper"}
    with pytest.raises(UserError, match=r"'benchmarks\.cities\.case': no value 'uper'; did you mean upper\?"):
        c.load_config("nano", {**chosen, "benchmarks.cities": {**row, "case": "uper"}})
    with pytest.raises(UserError, match=r"unknown config key 'benchmarks\.cities\.cas'; did you mean case\?"):
        c.load_config("nano", {**chosen, "benchmarks.cities": {**row, "cas": "upper"}})


def test_the_documented_override_leaves_the_form_of_answers_out_of_all_prompts():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (word,) = re.findall(r"'(benchmarks=\{.*?\}\})'", page, re.DOTALL)
    config = c.load_config("paper", c.parse_overrides([word]))
    for name, used in config.benchmarks.items():
        stated = get_benchmark(name).initial_prompt
        assert stated.startswith(used.initial_prompt)
        assert len(stated) > len(used.initial_prompt) + 20
        assert f"| `{name}` | `{stated}` |" in page


def test_points_are_the_values_of_the_axis_by_method_and_variant():
    experiments = c.load_config("nano").experiments
    assert experiments["d2"].points["metatuner_j", "expert"] == "expert"
    assert experiments["sharing"].points["metatuner_j", "quarter"] == 0.25
    assert experiments["main"].points == {}


def test_points_may_be_of_a_required_method():
    variants = {"metatuner_j": {"few": {"metatuner_warmup": {"rollouts": 2}}, "other": {"alpha": 1.0}}}
    base = c.load_config("nano").experiments["rollouts"].model_dump()
    base |= {"variants": variants, "axis": "metatuner_warmup.rollouts"}
    grid = c.load_config("nano", {"experiments": {"mine": base}}).experiments["mine"]
    assert grid.points == {("metatuner_j", "few"): 2}


def test_a_policy_is_tested_on_what_it_was_trained_on_or_on_the_one_left_out():
    names = ["math", "gsm8k", "cosmosqa"]
    grid = c.load_config("nano", {"experiments.main.benchmarks": names}).experiments["main"]
    assert [grid.trained_on(name) for name in names] == [("math",), ("gsm8k",), ("cosmosqa",)]
    others = grid.model_copy(update={"train": "others"})
    assert [others.trained_on(name) for name in names] == [
        ("gsm8k", "cosmosqa"),
        ("math", "cosmosqa"),
        ("math", "gsm8k"),
    ]


def test_overrides_may_be_nested_or_dotted():
    nested = c.load_config("nano", {"tuning": {"trials": 3}})
    dotted = c.load_config("nano", {"tuning.trials": 3})
    assert nested == dotted
    assert nested.tuning.seed == c.load_config("nano").tuning.seed


def test_paper_test_sizes_are_the_papers():
    sizes = {name: benchmark.sizes.test for name, benchmark in c.load_config("paper").benchmarks.items()}
    assert sizes == {"math": 450, "gsm8k": 1319, "hotpotqa": 2000, "cosmosqa": 2000}


GRID = "experiments.main"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"tunning": {}}, ("'tunning'", "did you mean tuning?")),
        ({"benchmarks.gsm8k.sizes.trian": 3}, ("'benchmarks.gsm8k.sizes.trian'", "did you mean train?")),
        ({"tuning.trials": "many"}, ("'tuning.trials'", "integer", "'many'")),
        ({"tuning.trials": 0}, ("'tuning.trials'", "1", "got 0")),
        ({"threads": True}, ("'threads'",)),
        ({f"{GRID}.benchmarks": ["gsm8"]}, (f"{GRID}.benchmarks", "did you mean gsm8k?")),
        ({f"{GRID}.generator": "lage"}, (f"{GRID}.generator", "did you mean large?")),
        ({f"{GRID}.generator": ["large", "smal"]}, (f"{GRID}.generator", "did you mean small?")),
        ({f"{GRID}.seeds": [1000]}, (f"{GRID}.seeds", "1000", "tuning.seed")),
        ({f"{GRID}.seeds": [0, 0]}, (f"{GRID}.seeds", "0", "twice")),
        ({f"{GRID}.methods": ["sft", "sft"]}, (f"{GRID}.methods", "'sft'", "twice")),
        ({f"{GRID}.generator": ["large", "large"]}, (f"{GRID}.generator", "'large'", "twice")),
        ({f"{GRID}.benchmarks": ["math", "math"]}, (f"{GRID}.benchmarks", "'math'", "twice")),
        ({f"{GRID}.axis": "alpha"}, (f"{GRID}.axis", "'alpha'")),
        ({f"{GRID}.train": "others", f"{GRID}.benchmarks": ["math"]}, (f"{GRID}.train", "two")),
        ({f"{GRID}.variants": {"dop": {}}}, (f"{GRID}.variants", "'dop'")),
        ({"experiments": {"my grid": {"methods": ["sft"]}}}, ("my grid",)),
        ({"models.actor.device": "gpu"}, ("models.actor", "'gpu'", "cuda")),
        ({"models.actor.rewrite_user": "x"}, ("models.actor", "rewrite_user", "{query}")),
        ({"methods.sft.search.learning_rate.low": 0.0}, ("methods.sft.search.learning_rate", "> 0")),
        ({"methods.sft.search.learning_rate": {"low": 2.0, "high": 1.0}}, ("methods.sft.search", "`low` < `high`")),
        ({"methods.sft.search.epochs.low": 1.0}, ("methods.sft.search.epochs", "`values`")),
        ({"methods.sft.budget": "defalt"}, ("methods.sft.budget", "did you mean default?")),
        ({"benchmarks.gsm8k.source": "local"}, ("benchmarks.gsm8k", "`path`")),
        ({"benchmarks.gsm8k.sorce": "nano"}, ("'benchmarks.gsm8k.sorce'", "did you mean source?")),
        ({"benchmarks.gsm8k.contexts": "gold"}, ("unknown", "'benchmarks.gsm8k.contexts'", "Known: filter,")),
        ({"benchmarks.hotpotqa.context": "gold"}, ("'benchmarks.hotpotqa.context'", "did you mean contexts?")),
        ({"benchmarks.hotpotqa.contexts": "golden"}, ("'benchmarks.hotpotqa.contexts'", "did you mean gold?")),
        ({"benchmarks.hotpotqa.contexts": True}, ("'benchmarks.hotpotqa.contexts'", "no value True", "all, gold")),
        ({"benchmarks.math": None}, (f"{GRID}.benchmarks", "unknown benchmark 'math'")),
        ({"models.generators.small": None}, ("experiments.sharing.generator", "unknown generator 'small'")),
        ({"methods.sft": None}, (f"{GRID}.methods", "'sft'", "methods.sft is null", "leave it out")),
        ({"budgets.default": {"tflop": {"math": 1.0, "gsm8k": None}}}, ("budgets.default.tflop", "is missing")),
        ({"benchmarks.gsm8k.path": "rows"}, ("benchmarks.gsm8k", "`path`")),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_key(overrides, words):
    with pytest.raises(UserError) as error:
        c.load_config("nano", overrides)
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", c.preset_names())
def test_a_generator_that_is_asked_in_words_reads_the_query_before_the_request(name):
    for model in c.load_config(name).models.generators.values():
        before, _, after = model.rewrite_user.partition("{query}")
        if model.path.startswith("nano:"):
            assert (before, after) == ("", "")
        else:
            assert "rewrite" not in before.lower()
            assert "write a better prompt" in after.lower()
            assert after.endswith("only.")


def test_an_unknown_preset_names_the_near_miss_and_all():
    with pytest.raises(
        UserError,
        match=r"'nan0'.*config/presets.*did you mean nano\?.*paper.*smoke",
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


def test_a_process_without_memory_says_so_in_one_line(monkeypatch, capsys):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("metatuner.cli._run", full)
    assert main(["methods"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no memory is left; run with fewer --cores" in line


def test_a_job_that_fails_says_on_the_terminal_where_its_traceback_is(tmp_path):
    (tmp_path / "config.json").write_text(c.dump_config(c.load_config("smoke")))
    words = (
        "import sys; from metatuner import cli; from metatuner.commands import look\n"
        "def fail(*_): raise ZeroDivisionError('mine')\n"
        "sys.modules['metatuner.analysis.results.usage'] = type('Module', (), {'summarise': fail})\n"
        "sys.exit(cli.main(['usage', '--config', 'config.json', '--log', 'logs/usage.log']))"
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "[usage] metatuner usage: ZeroDivisionError; its traceback is in logs/usage.log"
    assert "ZeroDivisionError: mine" in (tmp_path / "logs" / "usage.log").read_text()


def test_a_broken_file_of_weights_is_one_line_with_a_remedy(monkeypatch, capsys, tmp_path):
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"cut off")
    monkeypatch.setattr("metatuner.cli._run", lambda *_: load_file(broken))
    assert main(["methods"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a file of weights is cut off or broken: restore it" in line


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of a POSIX shell")
def test_a_reader_that_closes_the_output_early_is_no_error():
    # `methods` writes more than a pipe holds at once, so it meets the closed end.
    words = (
        "import sys; sys.argv = ['metatuner', 'methods', '--json']; from metatuner.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == b"["
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0
