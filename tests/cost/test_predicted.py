"""Forecasts on other models: counts against the meter and against sums by hand."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from baselines.cfpo import CFPO
from baselines.cfpo import Settings as CFPOSettings
from baselines.copro import COPRO
from baselines.copro import Settings as COPROSettings
from baselines.sft import SFT
from baselines.sft import Settings as SFTSettings
from metatuner.config import load_config
from metatuner.cost import describe
from metatuner.cost.against import against, describe_check, measured_lengths
from metatuner.cost.assumptions import ASSUMED, Assumptions, Lengths
from metatuner.cost.jobs import Job, jobs_of
from metatuner.cost.memory import ADAPTER_BYTES, cache_bytes, model_bytes
from metatuner.cost.predicted import RECORD_BYTES, TOKEN_BYTES, Line, Tokens, flops, hours, predict, use_of
from metatuner.errors import UserError
from metatuner.harness.budget import Budget
from metatuner.harness.loop import Rows, Sequences, Shape, Shares
from metatuner.harness.method import Method, make_settings
from metatuner.harness.registry import Registry
from metatuner.hashing import ROOT
from metatuner.lm import LM, generate
from metatuner.plan import Plan
from tests.toys.baselines import sums, tiny_lm, toy_lab
from tests.toys.method import tuner

METHODS = Registry()
PAPER = Assumptions.read(ROOT / ASSUMED)
ACTOR, GENERATOR = "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
SHARES = Shares(right=0.4, mixed=0.5)
ROWS = Rows(5, 2)
AT = Lengths(asked=10, target=4, answer=6, request=20, rewrite=3, demo=14)


def shape(lm: LM) -> Shape:
    embedding = lm.decoder.get_input_embeddings().weight.numel()
    body = sum(weight.numel() for weight in lm.decoder.parameters()) - embedding
    return Shape(body, lm.model.get_output_embeddings().weight.numel(), embedding, 2, 32, 48, 32)


def method_of(name: str, settings: Mapping[str, Any]) -> Method:
    """A method of the project under some settings."""
    cls = METHODS[name].cls
    return cls(make_settings(cls, dict(settings), name))


def counts(name: str, settings: Mapping[str, Any], rows: Rows) -> Sequences:
    """What a method counts of its loop."""
    loop = method_of(name, settings).loop(rows, SHARES)
    assert loop is not None
    return loop.sequences


def job(
    kind: str,
    name: str,
    settings: Mapping[str, Any],
    generator: str = GENERATOR,
    rows: Rows = ROWS,
    benchmarks: tuple[str, ...] = ("math",),
    **fields: Any,
) -> Job:
    """A job of a method of the project; `rows` are those of all its benchmarks."""
    method = method_of(name, settings)
    loop, train = method.loop(rows, SHARES), rows.train / len(benchmarks)
    return Job(kind, name, method.settings, loop, benchmarks, generator, train, **fields)


def test_every_method_of_the_project_is_counted() -> None:
    assert [name for name in METHODS.names() if METHODS[name].cls().loop(ROWS, SHARES) is None] == []


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
    counted = SFT(settings).loop(Rows(24, 0), SHARES)
    assert counted.sequences == Sequences(actor_trained=48)
    trained = Tokens(trained=metered.usage.trained_tokens)
    # A LoRA's own weights are few beside the model's at its real size, not in a toy.
    assert sum(flops(trained, shape(lm), shape(lm).lora(2)).values()) == pytest.approx(metered.flops, rel=0.05)


def test_copro_asks_no_more_than_is_counted(tmp_path: Path) -> None:
    from tests.baselines.test_dspy import scripted

    lab = scripted(tmp_path, [])
    settings = COPROSettings(proposer="rewrite", breadth=4, depth=3, scored_rows=16)
    COPRO(settings).fit(lab)
    counted = COPRO(settings).loop(Rows(32, 16), SHARES).sequences
    assert counted == Sequences(answers=12 * 16, rewrites=11)
    asked = lab.budget.used.lm_calls  # DSPy draws its fan-out in full, and scores no instruction twice
    assert 0.5 * (counted.answers + counted.rewrites) < asked <= counted.answers + counted.rewrites + 1


def test_cfpo_asks_no_more_than_is_counted(tmp_path: Path) -> None:
    from tests.baselines.test_cfpo import scripted

    lab = scripted(tmp_path, [])
    settings = CFPOSettings(proposer="rewrite", rounds=4, beam=3, scored_rows=15)
    CFPO(settings).fit(lab)
    counted = CFPO(settings).loop(Rows(len(lab.train), len(lab.dev)), SHARES).sequences
    assert 0.5 * (counted.answers + counted.rewrites) < lab.budget.used.lm_calls <= counted.answers + counted.rewrites


def test_tokens_of_a_fit_and_of_a_cell_by_hand() -> None:
    use = use_of(job("fit", "grpo", {"steps": 2, "queries": 8, "group": 4, "updates": 1}, ""), lambda _: AT)
    answers, used = 2 * 5 * 4, 2 * 5 * 4 / 2  # no more queries than rows; half of them differ in reward
    expected = Tokens(answers + 2 * used, answers * 10 + 2 * used * 16, answers * 6, used * 16)
    assert use["actor"] == expected
    use = use_of(job("cell", "bpo", {}, asked=100), lambda _: AT)
    assert use == {"actor": Tokens(100, 1000, 600, 0), "generator": Tokens(100, 2000, 300, 0)}
    shown = job("cell", "few_shot", {"shots": 2}, "", asked=100)
    assert use_of(shown, lambda _: AT)["actor"].read == 100 * (10 + 2 * 14)
    assert use_of(shown, lambda _: AT, window=36)["actor"].read == 100 * 30  # what fits before an answer of 6
    drafted = {"steps": 10, "samples": 2, "scored_rows": 3, "eval_steps": 5, "prompt_tokens": 4}
    use = use_of(job("fit", "rlprompt", drafted), lambda _: AT)
    assert use["generator"] == Tokens(20, 20, 80, 0)
    assert use["actor"].calls == 20 * 3 + 2 * 2 * 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Sequences(rewrites=16, actor_trained=16, encoded=24, generator_trained=16)),
        ({"refresh_epochs": 2.0}, Sequences(rewrites=8, actor_trained=16, encoded=24, generator_trained=16)),
        ({"refresh_epochs": 0.25}, Sequences(rewrites=16, actor_trained=16, encoded=24, generator_trained=16)),
        ({"parameter_branch": "none"}, Sequences(generator_trained=16)),
        (
            {"evaluate_epochs": 1},
            Sequences(answers=8, rewrites=24, actor_trained=16, encoded=24, generator_trained=16),
        ),
        ({"parameter_branch": "static"}, Sequences(rewrites=16, actor_trained=16, generator_trained=16)),
        ({"prompt_branch": False}, Sequences(actor_trained=16, encoded=24)),
    ],
    ids=str,
)
def test_joint_training_counts_what_a_variant_leaves_of_it(settings: dict[str, Any], expected: Sequences) -> None:
    assert counts("metatuner_j", {"epochs": 2, **settings}, Rows(8, 4)) == expected


def test_a_warm_up_writes_and_asks_what_its_kind_of_d2_needs() -> None:
    def counted(**settings: Any) -> Sequences:
        epochs = {"actor_epochs": 2, "generator_epochs": 3, "rollouts": 4}
        return counts("metatuner_warmup", epochs | settings, Rows(10, 0))

    assert counted() == Sequences(answers=40, rewrites=40, actor_trained=20, generator_trained=30 * (1 - 0.6**4))
    assert counted(d2="threshold").generator_trained == pytest.approx(30 * 1.6)
    assert counted(d2="expert") == Sequences(rewrites=10, actor_trained=20, generator_trained=30)
    assert counted(d2="initial") == Sequences(actor_trained=20, generator_trained=30)
    assert counted(d2="initial", actor_prompts="rollouts").rewrites == 20


def test_fits_on_several_benchmarks_share_their_sequences_out() -> None:
    sft = job("fit", "sft", {"epochs": 1}, "", Rows(60, 0), ("math", "gsm8k"))
    lengths = {"math": AT, "gsm8k": replace(AT, asked=100)}
    assert use_of(sft, lengths.__getitem__)["actor"].trained == 30 * 14 + 30 * 104


def test_hours_are_flop_over_what_the_machine_reaches() -> None:
    gpu = replace(PAPER.gpu, flops=1e12, reads=0.5, writes=0.1, trains=0.25)
    lm = Shape(body=1e9, head=1e8, embedding=0, layers=1, hidden=1, intermediate=1, keys=1)
    use = Tokens(read=1e6, written=1e5, trained=1e4)
    seconds = 2e9 * 1e6 / 0.5e12 + 2.2e9 * 1e5 / 0.1e12 + 4.4e9 * 1e4 / 0.25e12
    assert hours(use, lm, gpu) == pytest.approx(seconds / 3600)
    assert hours(use, lm, gpu, recomputed=True) == pytest.approx((seconds + 2e9 * 1e4 / 0.25e12) / 3600)


def test_memory_is_models_copies_what_is_trained_and_the_cache() -> None:
    actor, generator = PAPER.shape(ACTOR), PAPER.shape(GENERATOR)
    shapes = {"actor": actor, "generator": generator}
    assert cache_bytes(shapes.values(), 65536, 2) == 2 * 28 * 512 * 65536 * 2
    assert model_bytes(job("fit", "opro", {}), shapes, 2) == pytest.approx(2 * (7.62e9 + 3.081e9))
    warm, full = (job("fit", "metatuner_warmup", {"trainable": kind}) for kind in ("lora", "full"))
    gap = model_bytes(full, shapes, 2) - model_bytes(warm, shapes, 2)
    assert gap == pytest.approx(4 * 2 * 7.62e9 - 16 * generator.lora(16))
    # What a joint fit trains of the generator stands in the settings of the warm-up that it builds on.
    assert job("fit", "metatuner_j", {}, requires=(full,)).full


def test_a_lora_and_a_parameter_decoder_weigh_what_they_hold() -> None:
    actor = tiny_lm()
    lora = get_peft_model(actor.model, LoraConfig(r=3, target_modules="all-linear"))
    weights = sum(weight.numel() for name, weight in lora.named_parameters() if "lora_" in name)
    assert shape(tiny_lm()).lora(3) == weights
    made = tuner(rank=2, bottleneck=5, target_modules=("q_proj", "down_proj"), decoder="per_site")
    assert made.parameter_decoder is not None
    matrices = sum(weight.numel() for weight in made.parameter_decoder.parameters() if weight.dim() > 1)
    answers = made.actor.model.config
    widths = Shape(
        1, 1, 1, answers.num_hidden_layers, answers.hidden_size, answers.intermediate_size, answers.hidden_size
    )
    writes = replace(widths, hidden=made.generator.model.config.hidden_size)
    assumed = replace(PAPER, models={"actor": widths, GENERATOR: writes})
    settings = asdict(made.config) | {"target_modules": ["q_proj", "down_proj"]}

    def disk(**over: Any) -> float:
        return line_of(job("fit", "metatuner_j", settings | over), assumed=assumed, actor="actor").disk

    without = disk(parameter_branch="none")
    assert disk() - without == ADAPTER_BYTES * matrices
    assert disk(decoder="layer_shared") - without == ADAPTER_BYTES * matrices / widths.layers
    sides = sum(sum(widths.linears[name]) for name in ("q_proj", "down_proj"))
    assert disk(parameter_branch="static") - without == ADAPTER_BYTES * widths.layers * 2 * sides
    everywhere = disk(parameter_branch="static", target_modules="all-linear") - without
    assert everywhere == ADAPTER_BYTES * widths.lora(2)


def line_of(*work: Job, assumed: Assumptions = PAPER, actor: str = ACTOR) -> Line:
    """What jobs of one method cost."""
    (line,) = predict(work, actor=actor, assumed=assumed, window=8192, batch_tokens=65536, dtype_bytes=2).values()
    return line


SFT_4 = job("fit", "sft", {"rank": 4}, "")
WARM = job("fit", "metatuner_warmup", {"trainable": "lora", "actor_rank": 2, "generator_rank": 16})
FULL = job("fit", "metatuner_warmup", {"trainable": "full", "actor_rank": 8})


@pytest.mark.parametrize(
    ("method", "settings", "requires", "expected"),
    [
        ("sft", {"rank": 4, "epochs": 1}, (), lambda actor, generator: 4 * actor.lora(4)),
        ("sft", {"epochs": 1}, (), lambda actor, generator: 4 * actor.lora(8)),
        ("opro", {"steps": 1, "samples": 1, "scored_rows": 1, "finalists": 1}, (), lambda actor, generator: 0),
        ("bpo", {"rank": 4, "rollouts": 1, "epochs": 1}, (), lambda actor, generator: 4 * generator.lora(4)),
        ("rewriter_sft", {}, (SFT_4, WARM), lambda actor, generator: 4 * (generator.lora(16) + actor.lora(6))),
        ("rewriter_sft", {}, (SFT_4, FULL), lambda actor, generator: 2 * generator.weights + 4 * actor.lora(12)),
    ],
)
def test_a_fit_leaves_its_policy_on_disk(
    method: str, settings: dict[str, Any], requires: tuple[Job, ...], expected: Any
) -> None:
    generator = "" if method == "sft" else GENERATOR
    fit = job("fit", method, settings, generator, requires=requires)
    weights = expected(PAPER.shape(ACTOR), PAPER.shape(GENERATOR))
    assert line_of(fit).disk == pytest.approx(weights)
    assert line_of(replace(fit, kind="trial", asked=3)).disk == 0  # a search keeps no policy
    assert line_of(fit, fit).disk == pytest.approx(2 * weights)


def test_a_cell_leaves_its_records_on_disk() -> None:
    at = PAPER.lengths("gsm8k")
    cell = job("cell", "zero_shot", {}, "", benchmarks=("gsm8k",), asked=1000)
    assert line_of(cell).disk == 1000 * (RECORD_BYTES + TOKEN_BYTES * (at.rewrite + at.answer))


def test_memory_is_that_of_the_largest_fit_and_training_all_weights_takes_longer() -> None:
    settings = {"rollouts": 1, "generator_epochs": 3}
    lora, full = (job("fit", "metatuner_warmup", settings | {"trainable": kind}) for kind in ("lora", "full"))
    assert line_of(full, lora).memory_gb == line_of(full).memory_gb > line_of(lora).memory_gb
    trained = use_of(full, PAPER.lengths)["generator"].trained
    seconds = 2 * PAPER.shape(GENERATOR).body * trained / (PAPER.gpu.trains * PAPER.gpu.flops)
    assert line_of(full).hours - line_of(lora).hours == pytest.approx(seconds / 3600)
    saved = job("fit", "metatuner_warmup", settings | {"trainable": "lora", "activation_checkpointing": True})
    assert line_of(saved).hours > line_of(lora).hours


def test_a_request_holds_the_prompt_and_the_query_and_what_stands_around_them() -> None:
    at = PAPER.lengths("hotpotqa")
    assert at == Lengths(asked=1545, target=6, answer=80, request=1620, rewrite=60, demo=1506)
    cell = job("cell", "metatuner_j", {"prompt_branch": True}, asked=10)
    assert use_of(cell, lambda _: AT)["generator"] == Tokens(10, 10 * AT.request, 10 * AT.rewrite, 0)
    bare = job("cell", "metatuner_j", {"prompt_branch": False}, asked=10)
    assert use_of(bare, lambda _: AT)["generator"] == Tokens()


CFPO_SETTINGS = {
    "proposer": "rewrite",
    "rounds": 4,
    "beam": 2,
    "diagnoses": 1,
    "variations": 1,
    "formats": 3,
    "scored_rows": 5,
    "finalists": 1,
    "all_pairs": False,
}
MIPRO = {"candidates": 5, "trials": 6, "shots": 2, "proposer": "instruct"}
TOGETHER = {"strategy": "p -> w -> p", "candidates": 2, "shots": 2, "epochs": 3}


@pytest.mark.parametrize(
    ("method", "settings", "dev", "expected"),
    [
        # Half of 10 rows have rollouts that differ: 2 pairs of each, 2 sides, read once, trained on in 2 epochs.
        ("dpo", {"pairs": 3, "rollouts": 4, "epochs": 2}, 4, Sequences(40, 20, 40)),
        ("dpo", {"pairs": 1, "rollouts": 4, "epochs": 2}, 4, Sequences(40, 10, 20)),
        ("ppo", {"steps": 3, "batch": 16, "epochs": 2}, 4, Sequences(30, 60, 60)),
        (
            "opro",
            {"steps": 2, "samples": 3, "scored_rows": 20, "finalists": 2},
            4,
            Sequences(7 * 10 + 2 * 4, rewrites=6),
        ),
        # Rounds: 2 prompts of 1 parent, 11 formats of 2 parents each, 2 prompts of 2 parents, 6 formats of 2.
        ("cfpo", CFPO_SETTINGS, 4, Sequences((1 + 2 + 22 + 4 + 12) * 5 + 4, rewrites=2 + 4)),
        ("cfpo", CFPO_SETTINGS | {"proposer": "instruct"}, 4, Sequences(41 * 5 + 4, rewrites=3 + 6)),
        ("cfpo", CFPO_SETTINGS | {"all_pairs": True}, 4, Sequences((1 + 2 + 82 + 4 + 12) * 5 + 4, rewrites=6)),
        ("miprov2", MIPRO, 4, Sequences(7 * 4 + 3 * 16, rewrites=5 + 12)),
        ("miprov2", MIPRO | {"proposer": "rewrite"}, 0, Sequences(7 * 10 + 3 * 16, rewrites=5)),
        ("miprov2", MIPRO | {"shots": 8}, 4, Sequences(7 * 4 + 3 * 20, rewrites=17)),
        ("gepa", {"answers": 200, "minibatch": 3}, 4, Sequences(200, rewrites=25)),
        ("gepa", {"answers": 220, "minibatch": 3}, 0, Sequences(220, rewrites=20)),
        ("bootstrap_few_shot", {"bootstrapped": 2}, 4, Sequences(10)),
        (
            "rlprompt",
            {"steps": 10, "samples": 2, "scored_rows": 3, "eval_steps": 5, "prompt_tokens": 4},
            0,
            Sequences(20 * 3 + 2 * 2 * 10, drafts=20, draft_tokens=80),
        ),
        ("bpo", {"rollouts": 3, "epochs": 2}, 4, Sequences(30, rewrites=30, generator_trained=10)),
        ("better_together", TOGETHER, 4, Sequences(2 * (5 * 4 + 2 * 16) + 10 + 4, actor_trained=12)),
        (
            "better_together",
            TOGETHER | {"shots": 8, "strategy": "w -> p"},
            4,
            Sequences(5 * 4 + 2 * 20 + 14, actor_trained=12),
        ),
    ],
)
def test_loops_are_counted_as_by_hand(method: str, settings: dict[str, Any], dev: int, expected: Sequences) -> None:
    counted = counts(method, settings, Rows(10, dev))
    assert asdict(counted) == pytest.approx(asdict(expected))


@pytest.mark.parametrize(("bootstrapped", "rows", "asked"), [(2, 100, 16), (8, 100, 40), (8, 30, 30)])
def test_a_bootstrap_asks_in_batches_that_double(bootstrapped: int, rows: int, asked: int) -> None:
    assert counts("bootstrap_few_shot", {"bootstrapped": bootstrapped}, Rows(rows, 0)) == Sequences(asked)


def test_the_papers_preset_is_predicted_without_its_models_or_data() -> None:
    plan = Plan(load_config("paper", {"benchmarks.math.sizes.train": None, "benchmarks.math.sizes.test": None}))
    work = jobs_of(plan, PAPER)
    assert {"fit", "cell", "trial"} == {job.kind for job in work}
    assert sum(job.kind == "fit" for job in work) == len(plan.grid.fits)
    assert {job.asked for job in work if job.kind == "cell" and job.benchmarks == ("math",)} == {5000}
    lines = predict(work, actor=ACTOR, assumed=PAPER, window=8192, batch_tokens=65536, dtype_bytes=2)
    assert lines.keys() == {job.method for job in work}
    assert all(line.hours > 0 for line in lines.values())
    # All of MATH's train rows are more than its budget was set for.
    assert {line.over for line in lines.values()} == {(), ("tflop",)}
    assert not lines["opro"].over
    text = describe(lines, PAPER, 21.0)
    (total,) = [line.split() for line in text.splitlines() if line.startswith("total")]
    assert [int(count) for count in total[1:4]] == [
        sum(job.kind == kind for job in work) for kind in ("fit", "cell", "trial")
    ]
    marked = {line.split()[1] for line in text.splitlines() if line.startswith("! ")}
    assert marked == {name for name, line in lines.items() if line.over}


def test_a_method_that_does_not_count_its_loop_is_listed_as_not_counted() -> None:
    mine = Job("fit", "mine", None, None, ("math", "gsm8k"), GENERATOR, 5)
    cell = replace(mine, kind="cell", benchmarks=("math",), asked=10)
    lines = predict([mine, cell], actor=ACTOR, assumed=PAPER, window=8192, batch_tokens=100, dtype_bytes=2)
    assert not lines["mine"].counted
    assert lines["mine"].use["actor"].calls == 10  # its cells are answered all the same
    (marked,) = [line for line in describe(lines, PAPER, 1.0).splitlines() if line.startswith("* ")]
    assert marked.startswith("* not counted")
    assert "mine" in marked
    own = job("fit", "sft", {})
    assert predict([own], actor=ACTOR, assumed=PAPER, window=8192, batch_tokens=100, dtype_bytes=2)["sft"].counted


def test_a_fit_that_would_pass_its_budget_is_cut_to_what_fits_into_it() -> None:
    settings = {"steps": 4, "samples": 3, "scored_rows": 5, "finalists": 1}
    free = job("fit", "opro", settings)
    whole = line_of(free)
    calls = sum(each.calls for each in whole.use.values())
    half = line_of(replace(free, limits={"lm_calls": calls / 2, "generated_tokens": None}))
    assert half.over == ("lm_calls",)
    assert sum(each.calls for each in half.use.values()) == pytest.approx(calls / 2)
    assert half.hours == pytest.approx(whole.hours / 2)
    assert line_of(replace(free, limits={"lm_calls": calls})).over == ()


def test_against_a_finished_run_a_fit_stands_without_what_it_builds_on() -> None:
    def actor(**use: float) -> dict[str, dict[str, float]]:
        return {"actor": {"lm_calls": 0, "prompt_tokens": 0, "generated_tokens": 0, "trained_tokens": 0, **use}}

    rows = Rows(8, 0)
    cell = job("cell", "zero_shot", {}, "", rows, asked=10, key="cell")
    sft = job("fit", "sft", {"epochs": 2}, "", rows, key="sft")
    warm = job("fit", "metatuner_warmup", {"rollouts": 1}, GENERATOR, rows, key="warm")
    ppo = {"steps": 1, "batch": 4, "epochs": 1}
    after = job("fit", "ppo", ppo, "", rows, key="ppo", requires=(sft,))
    costs = {
        "cell": actor(lm_calls=10, prompt_tokens=100, generated_tokens=60),
        "sft": actor(trained_tokens=16 * 14),
        "warm": {**actor(lm_calls=1), "generator": actor(lm_calls=5, prompt_tokens=100, generated_tokens=15)["actor"]},
        "ppo": actor(lm_calls=24, prompt_tokens=4 * 10 + 8 * 16, generated_tokens=24, trained_tokens=16 * 14 + 4 * 16),
    }
    elsewhere = job("fit", "sft", {"epochs": 2, "prompts": {"math": "x"}}, "", rows, key="elsewhere")  # not under p~
    costs["elsewhere"] = actor(trained_tokens=9999)
    known = [cell, sft, warm, after]
    assert measured_lengths([*known, elsewhere], costs) == {"math": AT}
    assert measured_lengths(known, costs) == {"math": AT}
    assert against([cell, sft, after], costs) == {}  # without the warm-up no length of a rewrite is known
    ratios = against(known, costs)
    assert ratios["sft"] == {"calls": None, "read": None, "written": None, "trained": 1.0}
    assert ratios["ppo"] == {"calls": 0.5, "read": 1.0, "written": 1.0, "trained": 1.0}
    assert "ppo" in describe_check(ratios, Path("results/nano"))
    assert "No fit in" in describe_check({}, Path("results/nano"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gpu": {"name": "x"}}, r"key 'gpu\.flops': Field required"),
        ({"models": {"m": {"body": "many"}}}, r"key 'models\.m\.body': Input should be a valid number"),
        ({"tokens": {"rewrite": 1}}, r"key 'tokens\.prompt': Field required"),
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
    with pytest.raises(UserError, match=r"no lengths of benchmark 'aime' under `tokens\.benchmarks`; add them"):
        PAPER.lengths("aime")
    with pytest.raises(UserError, match="no rows of benchmark 'aime' under `rows`; add them"):
        PAPER.split("aime")
    with pytest.raises(UserError, match="no shape of model 'nano:actor' under `models`"):
        PAPER.shape("nano:actor")
    with pytest.raises(UserError, match=r"absent\.yaml: No such file"):
        Assumptions.read(Path("absent.yaml"))
