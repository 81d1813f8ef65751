"""What docs/ shows to copy: the library example runs as it stands, the presets resolve to what their pages say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

from metatuner.config import load_config
from metatuner.harness.benchmarks.lm_eval_task import Task
from metatuner.lm import ModelSpec, generate, load_lm, render
from metatuner.plan import Plan
from tests.toys.lm import save_tiny

DOCS = Path(__file__).resolve().parents[2] / "docs"
WINDOW = 512


def block(page: str, language: str, opening: str = "") -> str:
    """The page's first code block that begins so."""
    found = re.search(rf"```{language}\n({re.escape(opening)}.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    assert found, page
    return found[1]


def test_the_library_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {"max_position_embeddings": WINDOW}
    save_tiny(tmp_path / "path/to/generator", seed=1, num_hidden_layers=4, **sizes)
    save_tiny(tmp_path / "path/to/actor", seed=2, hidden_size=48, head_dim=12, **sizes)
    names: dict[str, Any] = {"pairs": [(f"w{i} w{i + 1} w7", f"w{i % 5}") for i in range(6)]}
    exec(block("method.md", "python"), names)

    logged = capsys.readouterr().out
    for event in ("actor_warm_up", "rollouts", "generator_warm_up", "joint"):
        assert f"'event': '{event}'" in logged
    lines = [line for line in logged.splitlines() if line.startswith("{'event': 'joint'")]
    keys = [
        "event",
        "step",
        "rate",
        "tokens",
        "task",
        "prompt",
        "loss",
        "norm_phi_s",
        "norm_phi_p",
        "norm_phi_q",
        "norm_phi_q_down",
    ]
    assert re.findall(r"'(\w+)':", lines[0]) == keys
    assert names["d2"], "no rollout was rewarded, so the prompt term was not trained"
    assert all(row.rewrite for row in names["d2"])

    # The tuner read back answers as the one that was trained, and so does PEFT with the exported adapter.
    x, tuner, answer = names["x"], names["tuner"], names["answer"]
    assert tuner.max_prompt_tokens == names["warm_up"].max_prompt_tokens
    assert tuner.generate([x], max_new_tokens=256) == [answer]
    base = load_lm(ModelSpec("path/to/actor"))
    ids = render(base, answer.prompt, x, reserve=256).ids
    greedy = generate(
        tuner.actor, [ids], max_new_tokens=256, adapt=lambda rows: tuner.adapted([tuner.initial(None)], [x])
    )
    assert greedy[0].text == answer.completion
    with torch.no_grad():
        with tuner.adapted([tuner.initial(None)], [x]):
            expected = tuner.actor.model(input_ids=torch.tensor([ids])).logits
        got = PeftModel.from_pretrained(base.model, "adapter").eval()(input_ids=torch.tensor([ids])).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("page", "opening", "experiments"),
    [
        ("adding_an_experiment.md", "", {"bottleneck"}),
        ("benchmarks.md", "# config/presets/mine.yaml", {"main"}),
        ("adding_a_model.md", "# config/presets/mine.yaml", set(load_config("paper").experiments)),
    ],
)
def test_a_documented_preset_has_the_experiments_that_its_page_names(
    page: str, opening: str, experiments: set[str]
) -> None:
    preset = yaml.safe_load(block(page, "yaml", opening))
    config = load_config(preset.pop("extends"), preset)
    assert set(config.experiments) == experiments


def test_the_documented_task_of_lm_evals_is_a_benchmark_of_a_preset() -> None:
    named = yaml.safe_load(block("benchmarks.md", "yaml", "benchmarks:\n"))
    benchmark = load_config("nano", named).benchmarks["trivia"]
    assert (benchmark.source, benchmark.task) == ("lm_eval", "triviaqa")
    assert Task(str(benchmark.task))._own_file().parent.name == "triviaqa"


def test_the_documented_experiment_shares_cells_with_nano_under_its_winners() -> None:
    nano = Plan(load_config("nano"))
    values = yaml.safe_load(block("adding_an_experiment.md", "yaml"))
    own = Plan(
        load_config(
            values.pop("extends"),
            values | {"tuning": {"winners": nano.config.tuning.winners}, "results": "results/nano"},
        )
    )
    default = {row.cell for row in own.grid.rows if row.variant == "b64" and row.generator == "large"}
    main = {row.cell for row in nano.grid.rows if row.experiment == "main" and row.method == "metatuner_j"}
    assert default
    assert default <= main
    assert {own.layout.cell(key) for key in default} <= {nano.layout.cell(key) for key in main}


def test_the_null_world_is_asked_for_as_the_page_writes_it() -> None:
    (line,) = re.findall(r"`(nano: \{.*?\})`", (DOCS / "nano.md").read_text(encoding="utf-8"))
    assert load_config("nano", yaml.safe_load(line)).nano.null is True
