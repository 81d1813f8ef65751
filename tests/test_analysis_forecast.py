"""Forecasts on other models: counts against the meter and against sums by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from baseline_toys import sums, tiny_lm, toy_lab

from baselines.copro import COPRO
from baselines.copro import Settings as COPROSettings
from baselines.sft import SFT
from baselines.sft import Settings as SFTSettings
from metatuner.analysis.forecast import (
    ASSUMED,
    Assumptions,
    Job,
    Lengths,
    Shape,
    Tokens,
    against,
    describe,
    describe_check,
    flops,
    hours,
    measured_lengths,
    memory_gb,
    predict,
    use_of,
)
from metatuner.analysis.loops import COUNTS, Rows, Sequences
from metatuner.errors import UserError
from metatuner.harness.budget import Budget
from metatuner.harness.config import load_config
from metatuner.harness.method import settings_dict
from metatuner.harness.registry import Registry
from metatuner.hashing import ROOT
from metatuner.jobs import jobs
from metatuner.lm import LM, generate
from metatuner.plan import Plan

PAPER = Assumptions.read(ROOT / ASSUMED)
ACTOR, GENERATOR = "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
AT = Lengths(asked=10, target=4, answer=6, request=20, rewrite=3, demo=14)


def shape(lm: LM) -> Shape:
    embedding = lm.decoder.get_input_embeddings().weight.numel()
    body = sum(weight.numel() for weight in lm.decoder.parameters()) - embedding
    return Shape(body, lm.model.get_output_embeddings().weight.numel(), embedding, 2, 32, 48, 32)


def test_every_method_of_the_project_is_counted() -> None:
    assert set(Registry().names()) == COUNTS.keys()


def test_flop_of_tokens_are_the_meters() -> None:
    lm, budget = tiny_lm(), Budget()
    budget.attach(lm, "actor")
    generate(lm, [[5, 6, 7], [8, 9]], max_new_tokens=4)
    use = budget.by_model["actor"]
    told = Tokens(2, use.usage.prompt_tokens, use.usage.generated_tokens)
    assert sum(flops(told, shape(lm), 0.0).values()) == use.flops


def test_sft_uses_what_the_meter_counts(tmp_path: Path) -> None:
    rows, lm = sums(24), tiny_lm()
    lab = toy_lab(tmp_path, rows, actor=lm, budget=Budget())
    lab.budget.attach(lm, "actor")
    settings = SFTSettings(epochs=2, rank=2)
    SFT(settings).fit(lab)
    metered = lab.budget.by_model["actor"]
    counted = COUNTS["sft"](settings_dict(settings), Rows(24, 0))
    assert counted == Sequences(actor_trained=48)
    trained = Tokens(trained=metered.usage.trained_tokens)
    # A LoRA's own weights are few beside the model's at its real size, not in a toy.
    assert sum(flops(trained, shape(lm), shape(lm).lora(2)).values()) == pytest.approx(metered.flops, rel=0.05)


def test_copro_asks_no_more_than_is_counted(tmp_path: Path) -> None:
    from test_baselines_dspy import scripted

    lab = scripted(tmp_path, [])
    settings = COPROSettings(proposer="rewrite", breadth=4, depth=3, scored_rows=16)
    COPRO(settings).fit(lab)
    counted = COUNTS["copro"](settings_dict(settings), Rows(32, 16))
    assert counted == Sequences(answers=12 * 16, rewrites=11)
    asked = lab.budget.used.lm_calls  # DSPy draws its fan-out in full, and scores no instruction twice
    assert 0.5 * (counted.answers + counted.rewrites) < asked <= counted.answers + counted.rewrites + 1


def test_tokens_of_a_fit_and_of_a_cell_by_hand() -> None:
    grpo = {"steps": 2, "queries": 8, "group": 4, "updates": 1}
    fit = Job("fit", "grpo", grpo, ("math",), "", Rows(5, 2))
    use, bounded = use_of(fit, lambda _: AT, {})
    answers = 2 * 5 * 4  # no more queries than rows
    assert use["actor"] == Tokens(answers + answers, answers * 10 + answers * 16, answers * 6, answers / 2 * 16)
    assert not bounded
    cell = Job("cell", "bpo", {}, ("math",), GENERATOR, Rows(5, 2), asked=100)
    use, _ = use_of(cell, lambda _: AT, {})
    assert use == {"actor": Tokens(100, 1000, 600, 0), "generator": Tokens(100, 2000, 300, 0)}
    shown = replace(cell, method="few_shot", settings={"shots": 2})
    assert use_of(shown, lambda _: AT, {})[0]["actor"].read == 100 * (10 + 2 * 14)


def test_fits_on_several_benchmarks_share_their_sequences_out() -> None:
    sft = Job("fit", "sft", {"epochs": 1}, ("math", "gsm8k"), "", Rows(30, 0))
    lengths = {"math": AT, "gsm8k": replace(AT, asked=100)}
    use, _ = use_of(sft, lengths.__getitem__, {})
    assert use["actor"].trained == 30 * 14 + 30 * 104


def test_hours_are_flop_over_what_the_machine_reaches() -> None:
    gpu = replace(PAPER.gpu, flops=1e12, reads=0.5, writes=0.1, trains=0.25)
    lm = Shape(body=1e9, head=1e8, embedding=0, layers=1, hidden=1, intermediate=1, keys=1)
    use = Tokens(read=1e6, written=1e5, trained=1e4)
    seconds = 2e9 * 1e6 / 0.5e12 + 2.2e9 * 1e5 / 0.1e12 + 4.4e9 * 1e4 / 0.25e12
    assert hours(use, lm, 0.0, gpu) == pytest.approx(seconds / 3600)


def test_memory_is_weights_cache_and_what_training_all_weights_adds() -> None:
    actor, generator = PAPER.shape(ACTOR), PAPER.shape(GENERATOR)
    lora = memory_gb(actor, generator, full=False, batch_tokens=65536, dtype_bytes=2)
    cache = 2 * 36 * 256 * 65536
    assert lora == pytest.approx(2 * (7.62e9 + 3.081e9 + max(cache, 2 * 28 * 512 * 65536)) / 1e9)
    full = memory_gb(actor, generator, full=True, batch_tokens=65536, dtype_bytes=2)
    assert full - lora == pytest.approx(2 * 3 * 7.62)


def test_the_papers_preset_is_predicted_without_its_models_or_data() -> None:
    plan = Plan(load_config("paper"))
    work = jobs(plan)
    assert {"fit", "cell", "trial"} == {job.kind for job in work}
    assert sum(job.kind == "fit" for job in work) == len(plan.fits)
    limits = plan.config.budgets["default"].counts
    lines = predict(work, actor=ACTOR, assumed=PAPER, limits=limits, dtype_bytes=2)
    assert lines.keys() == {job.method for job in work}
    assert all(line.hours > 0 for line in lines.values())
    assert lines["opro"].over == ("lm_calls",)  # 200 steps of 8 on 256 rows: more than 400,000 calls
    text = describe(lines, PAPER, 30.0, 21.0)
    (total,) = [line.split() for line in text.splitlines() if line.startswith("total")]
    assert [int(count) for count in total[1:4]] == [
        sum(job.kind == kind for job in work) for kind in ("fit", "cell", "trial")
    ]
    assert "! opro reaches its budget before its settings are through: lm_calls." in text
    assert "Assumed, not measured" in text


def test_a_method_of_ones_own_is_bounded_by_its_budget() -> None:
    mine = Job("fit", "mine", {}, ("math",), "", Rows(5, 2))
    limits = {"lm_calls": 100, "generated_tokens": 500, "trained_tokens": None}
    lines = predict([mine], actor=ACTOR, assumed=PAPER, limits=limits, dtype_bytes=2)
    line = lines["mine"]
    assert line.bounded
    assert (line.use["actor"].calls, line.use["actor"].written, line.use["actor"].trained) == (100, 500, 0)
    assert "* nothing is known of the method's loop" in describe(lines, PAPER, 1.0, 1.0)


def test_against_a_finished_run_the_counts_have_the_lengths_metered_there() -> None:
    def actor(**use: float) -> dict[str, dict[str, float]]:
        return {"actor": {"lm_calls": 0, "prompt_tokens": 0, "generated_tokens": 0, "trained_tokens": 0, **use}}

    cell = Job("cell", "zero_shot", {}, ("math",), "", Rows(8, 0), 10, "cell")
    sft = Job("fit", "sft", {"epochs": 2}, ("math",), "", Rows(8, 0), key="sft")
    warm = Job("fit", "metatuner_warmup", {}, ("math",), GENERATOR, Rows(8, 0), key="warm")
    ppo = {"steps": 1, "batch": 4, "epochs": 1}
    after = Job("fit", "ppo", ppo, ("math",), "", Rows(8, 0), key="ppo", requires=(sft,))
    costs = {
        "cell": actor(lm_calls=10, prompt_tokens=100, generated_tokens=60),
        "sft": actor(trained_tokens=16 * 14),
        "warm": {**actor(lm_calls=1), "generator": actor(lm_calls=5, prompt_tokens=100, generated_tokens=15)["actor"]},
        "ppo": actor(lm_calls=24, prompt_tokens=4 * 10 + 8 * 16, generated_tokens=24, trained_tokens=16 * 14 + 4 * 16),
    }
    known = [cell, sft, replace(warm, method="metatuner_warmup"), after]
    assert measured_lengths(known, costs) == {"math": replace(AT, demo=14)}
    ratios = against([cell, sft, after, replace(warm, kind="cell")], {**costs})
    assert ratios == {}  # without the warm-up's fit no length of a rewrite is known
    told = {**warm.__dict__, "settings": _warm_up()}
    ratios = against([cell, sft, after, Job(**told)], costs)
    assert ratios["sft"] == {"calls": None, "read": None, "written": None, "trained": 1.0}
    assert ratios["ppo"] == {"calls": 0.5, "read": 1.0, "written": 1.0, "trained": 1.0}
    assert "ppo" in describe_check(ratios, Path("results/nano"))


def _warm_up() -> dict[str, object]:
    return {"rollouts": 1, "actor_prompts": "initial", "actor_epochs": 1, "generator_epochs": 1}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gpu": {"name": "x"}}, r"key 'gpu\.flops': Field required"),
        ({"models": {"m": {"body": "many"}}}, r"key 'models\.m\.body': Input should be a valid number"),
    ],
)
def test_a_wrong_file_of_assumptions_names_the_key(change: dict[str, object], error: str, tmp_path: Path) -> None:
    told = yaml.safe_load((ROOT / ASSUMED).read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(told | change))
    with pytest.raises(UserError, match=error):
        Assumptions.read(tmp_path / "mine.yaml")


def test_what_is_not_assumed_is_asked_for() -> None:
    with pytest.raises(UserError, match="no shape of model 'Qwen/Qwen3-8B' under `models`"):
        PAPER.shape("Qwen/Qwen3-8B")
    with pytest.raises(UserError, match="no lengths of benchmark 'aime' under `tokens`; add them"):
        PAPER.lengths("aime")
    with pytest.raises(UserError, match=r"absent\.yaml: No such file"):
        Assumptions.read(Path("absent.yaml"))
