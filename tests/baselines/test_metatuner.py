"""MetaTuner on the common ground: fit, save, load and answer, from the warm-up to the joint policy."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from baselines import static_lora
from baselines.metatuner import AlternatingConfig, MetaTunerI, MetaTunerJ, MetaTunerWarmUp
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.ground import Ground
from metatuner.harness.lab import Lab
from metatuner.harness.method import make_settings
from metatuner.harness.policy import Policy, load_policy
from metatuner.harness.query import Response, to_query
from metatuner.harness.registry import Registry
from metatuner.harness.rows import Row
from metatuner.lm import LM, render
from metatuner.lm.adapters import frozen_view
from metatuner.method import prompt_decoder
from metatuner.method.config import MetaTunerConfig, WarmUpConfig
from metatuner.method.saving import fingerprint
from metatuner.method.tuned import digest
from metatuner.run.swaps import answers_under_swaps
from tests.toys.method import INITIAL, actor, generator, words

OTHER = "w3 w4 w5"
BENCHMARKS = {
    "gsm8k": get_benchmark("gsm8k").with_overrides(initial_prompt=INITIAL, max_new_tokens=6),
    "hotpotqa": get_benchmark("hotpotqa").with_overrides(initial_prompt=OTHER, max_new_tokens=5),
}
WARM_UP = WarmUpConfig(
    actor_rank=2,
    actor_learning_rate=1e-1,  # so that the warmed actor answers otherwise
    generator_rank=2,
    generator_learning_rate=1e-2,
    batch_size=4,
    rollouts=3,
    max_prompt_tokens=5,
)
JOINT = MetaTunerConfig(
    rank=2, bottleneck=4, epochs=2, batch_size=4, hyper_learning_rate=1e-2, generator_learning_rate=1e-2
)


def rows(count: int, seed: int) -> list[Row]:
    """Rows of both benchmarks in turn."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        query, target = words(draw, 4, 12), words(draw, 2, 5)
        benchmark = sorted(BENCHMARKS)[number % 2]
        made.append(Row(f"{seed}-{number}", benchmark, query, ("0.5",), target, "all", f"group {number}"))
    return made


TRAIN, TEST = rows(8, seed=0), [to_query(row) for row in rows(6, seed=1)]
DEV = rows(5, seed=2)


class PraisingLab(Lab):
    """Untrained models answer nothing right, so this reward praises every second letter count."""

    def reward_texts(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float]:
        return [float(len(completion) % 2) for completion in completions]


def lab(kind: type[Lab] = PraisingLab, **parts: Any) -> Lab:
    given = {
        "actor": actor(),
        "generator": generator(),
        "benchmarks": BENCHMARKS,
        "train": TRAIN,
        "trained_on": ("gsm8k", "hotpotqa"),
        "generator_name": "toy",
    }
    return kind(**(given | parts))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Policy, Path]]:
    root = tmp_path_factory.mktemp("fits")
    ground = lab()
    warm = MetaTunerWarmUp(WARM_UP).fit(ground)
    warm.save(root / "metatuner_warmup")
    ground = lab(prerequisites={"metatuner_warmup": root / "metatuner_warmup"})
    joint = MetaTunerJ(JOINT).fit(ground)
    joint.save(root / "metatuner_j")
    ground = lab(prerequisites={"metatuner_warmup": root / "metatuner_warmup"})
    alternating = MetaTunerI(AlternatingConfig(**vars(replace(JOINT, objective="alternating")))).fit(ground)
    alternating.save(root / "metatuner_i")
    policies: dict[str, Policy] = {"metatuner_warmup": warm, "metatuner_j": joint, "metatuner_i": alternating}
    return lambda name: (policies[name], root / name)


@pytest.fixture(scope="module")
def static(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    """StaticLoRA from the same warm-up, and its folder."""
    changed = {name: value for name, value in vars(JOINT).items() if name != "parameter_branch"}
    prerequisites = {"metatuner_warmup": fitted("metatuner_warmup")[1]}
    policy = static_lora.StaticLoRA(static_lora.Settings(**changed)).fit(lab(prerequisites=prerequisites))
    folder = tmp_path_factory.mktemp("static")
    policy.save(folder)
    return policy, folder


def test_static_lora_is_metatuner_with_one_lora_for_all_queries(fitted: Any, static: Any, tmp_path: Path) -> None:
    policy, folder = static
    joint = MetaTunerJ(replace(JOINT, parameter_branch="static"))
    joint.fit(lab(prerequisites={"metatuner_warmup": fitted("metatuner_warmup")[1]})).save(tmp_path)
    assert digests(tmp_path) == digests(folder)
    assert digests(fitted("metatuner_j")[1]) != digests(folder)
    ground = Ground(actor(), generator(), BENCHMARKS)
    assert load_policy(folder, ground).respond(TEST) == policy.respond(TEST)
    swapped = answers_under_swaps(policy, TEST)
    assert swapped["own", "own"] == swapped["own", "another query's"] == swapped["own", "mean of all"]
    assert swapped["own", "own"] != swapped["own", "none"]


def test_static_lora_cannot_be_set_to_another_branch() -> None:
    with pytest.raises(UserError, match="parameter_branch"):
        make_settings(static_lora.StaticLoRA, {"parameter_branch": "query"}, "here")


@pytest.mark.parametrize("name", ["metatuner_warmup", "metatuner_j", "metatuner_i"])
def test_a_saved_policy_answers_as_the_fitted_one(fitted: Any, name: str) -> None:
    policy, folder = fitted(name)
    ground = Ground(actor(), generator(), BENCHMARKS)
    responses = policy.respond(TEST)
    assert load_policy(folder, ground).respond(TEST) == responses
    assert len({response.prompt for response in responses}) > 1
    assert all(0 < response.completion_tokens <= 6 for response in responses)


def test_a_joint_policy_stands_without_the_warm_ups_folder(fitted: Any) -> None:
    _, folder = fitted("metatuner_j")
    assert sorted(digests(folder)) == [
        "actor.safetensors",
        "generator.safetensors",
        "manifest.json",
        "parameter_decoder.safetensors",
        "state_norm.safetensors",
    ]
    assert json.loads((folder / "manifest.json").read_text())["kind"] == "metatuner"


def test_before_its_first_step_the_joint_policy_is_the_warm_up(fitted: Any) -> None:
    warm, folder = fitted("metatuner_warmup")
    joint = MetaTunerJ(replace(JOINT, epochs=0)).fit(lab(prerequisites={"metatuner_warmup": folder}))
    assert joint.respond(TEST) == warm.respond(TEST)


def test_the_warmed_actor_answers_and_not_the_one_that_was_given(fitted: Any) -> None:
    warm, _ = fitted("metatuner_warmup")
    written = warm.write_prompts(TEST)
    assert warm.respond(TEST) == warm.ground.answer(TEST, written, actor=warm.actor)
    assert warm.respond(TEST) != warm.ground.answer(TEST, written)


def test_training_changes_what_both_branches_do(fitted: Any) -> None:
    warm, _ = fitted("metatuner_warmup")
    joint, _ = fitted("metatuner_j")
    assert [r.prompt for r in joint.respond(TEST)] != [r.prompt for r in warm.respond(TEST)]
    assert joint.respond(TEST) != warm.respond(TEST)


def test_d2_holds_rewrites_that_the_actor_was_rewarded_under(fitted: Any) -> None:
    warm, folder = fitted("metatuner_warmup")
    lines = [json.loads(line) for line in (folder / "d2.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines
    by_query = {row.query: row for row in TRAIN}
    chosen = [by_query[line["query"]] for line in lines]
    ground = lab()
    asked = [to_query(row) for row in chosen], [line["rewrite"] for line in lines]
    assert ground.reward(chosen, ground.answer(*asked, actor=warm.actor)) == [1.0] * len(lines)
    assert ground.reward(chosen, ground.answer(*asked)) != [1.0] * len(lines)


def test_the_same_seed_writes_the_same_bytes_and_another_one_does_not(fitted: Any, tmp_path: Path) -> None:
    for seed in (0, 1):
        warm = tmp_path / f"warm{seed}"
        MetaTunerWarmUp(WARM_UP).fit(lab(seed=seed)).save(warm)
        joint = tmp_path / f"joint{seed}"
        MetaTunerJ(JOINT).fit(lab(seed=seed, prerequisites={"metatuner_warmup": warm})).save(joint)
        for name, folder in (("metatuner_warmup", warm), ("metatuner_j", joint)):
            assert (digests(folder) == digests(fitted(name)[1])) is (seed == 0)


class Restreamed(PraisingLab):
    """The same lab, but for one of its random streams."""

    other = ""

    def stream(self, name: str) -> int:
        return super().stream(name) + (name == self.other)


def restreamed(name: str, **parts: Any) -> Lab:
    changed = lab(Restreamed, **parts)
    changed.other = name
    return changed


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("actor_warm_up", {"actor.safetensors"}),
        ("rollouts", {"d2.jsonl", "generator.safetensors"}),
        ("generator_warm_up", {"generator.safetensors"}),
    ],
)
def test_each_step_of_the_warm_up_draws_from_a_stream_of_its_own(
    fitted: Any, tmp_path: Path, name: str, changes: set[str]
) -> None:
    MetaTunerWarmUp(WARM_UP).fit(restreamed(name)).save(tmp_path)
    before, after = digests(fitted("metatuner_warmup")[1]), digests(tmp_path)
    differing = {file for file in before if before[file] != after[file]}
    assert differing >= changes
    # What was made before the changed step stays: first the actor, then D2, then the generator.
    made = ["actor.safetensors", "d2.jsonl", "generator.safetensors"]
    earlier = made[: min(made.index(file) for file in changes)]
    assert not differing & set(earlier)


def test_each_part_of_joint_training_draws_from_a_stream_of_its_own(fitted: Any, tmp_path: Path) -> None:
    _, warm = fitted("metatuner_warmup")

    def made(name: str, number: int = 0, **settings: Any) -> dict[str, str]:
        folder = tmp_path / f"{name}{number}"
        ground = restreamed(name, prerequisites={"metatuner_warmup": warm})
        MetaTunerJ(replace(JOINT, **settings)).fit(ground).save(folder)
        return digests(folder)

    start = made("", epochs=0)
    assert made("joint", epochs=0) == start
    drawn = made("parameter_decoder", epochs=0)
    assert {file for file in start if start[file] != drawn[file]} == {"parameter_decoder.safetensors"}
    trained, refreshed = made("", 1, epochs=1), made("", 2, d2_refresh_epochs=1.0)
    assert made("joint", 1, epochs=1) != trained
    assert made("rollouts anew", 1, epochs=1) == trained
    assert made("rollouts anew", 2, d2_refresh_epochs=1.0) != refreshed
    assert made("rollouts", 2, d2_refresh_epochs=1.0) == refreshed


def test_d2_is_collected_anew_under_the_warmed_actors_reward(fitted: Any) -> None:
    warm, folder = fitted("metatuner_warmup")
    asked: list[str] = []

    class Watching(PraisingLab):
        def answer(self, *args: Any, **options: Any) -> list[Response]:
            asked.append(digest(options["actor"].model.named_parameters()))
            return super().answer(*args, **options)

    ground = lab(Watching, prerequisites={"metatuner_warmup": folder})
    MetaTunerJ(replace(JOINT, d2_refresh_epochs=1.0)).fit(ground)
    assert asked == [digest(warm.actor.model.named_parameters())]
    assert asked != [digest(ground.actor.model.named_parameters())]


def test_each_row_is_trained_on_under_the_initial_prompt_of_its_benchmark(
    fitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str]] = []

    def render_rewrite(lm: LM, prompt: str, query: str, **options: Any) -> Any:
        read.append((query, prompt))
        return original(lm, prompt, query, **options)

    original = prompt_decoder.render_rewrite
    monkeypatch.setattr(prompt_decoder, "render_rewrite", render_rewrite)
    _, warm = fitted("metatuner_warmup")
    MetaTunerJ(replace(JOINT, epochs=1)).fit(lab(prerequisites={"metatuner_warmup": warm})).respond(TEST)
    expected = {row.query: BENCHMARKS[row.benchmark].initial_prompt for row in TRAIN}
    expected |= {query.text: BENCHMARKS[query.benchmark].initial_prompt for query in TEST}
    assert dict(read) == expected
    assert set(read) == set(expected.items())


def test_fitting_and_answering_leave_the_grounds_models_as_they_were(fitted: Any) -> None:
    _, folder = fitted("metatuner_warmup")
    ground = lab(prerequisites={"metatuner_warmup": folder})
    models = [ground.actor.model, ground.need_generator().model]
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    MetaTunerWarmUp(WARM_UP).fit(ground).respond(TEST)
    MetaTunerJ(JOINT).fit(ground).respond(TEST)
    for model, values in zip(models, before, strict=True):
        after = model.state_dict()
        assert after.keys() == values.keys()
        assert all(torch.equal(after[name], values[name]) for name in values)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_where_no_rollout_is_rewarded_training_goes_on_and_the_log_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    MetaTunerWarmUp(WARM_UP).fit(lab(Lab, log_line=lines.append)).save(tmp_path)
    assert (tmp_path / "d2.jsonl").read_text() == ""
    ground = lab(Lab, prerequisites={"metatuner_warmup": tmp_path}, log_line=lines.append)
    assert len(MetaTunerJ(JOINT).fit(ground).respond(TEST)) == len(TEST)
    events = [json.loads(line) for line in lines]
    assert [event["d2"] for event in events if event["event"] == "rollouts"] == [0]
    assert all(event["prompt"] == 0 for event in events if event["event"] == "joint")


def test_the_budget_sees_the_training_of_private_copies(tmp_path: Path) -> None:
    def metered(**parts: Any) -> Lab:
        ground = lab(**parts)
        for model in (ground.actor, ground.need_generator()):
            ground.budget.attach(model)
        return ground

    warm_up, joint = metered(), metered(prerequisites={"metatuner_warmup": tmp_path})
    MetaTunerWarmUp(WARM_UP).fit(warm_up).save(tmp_path)
    assert warm_up.budget.used.trained_tokens > 0
    assert warm_up.budget.used.generated_tokens > 0
    MetaTunerJ(JOINT).fit(joint)
    # Each pass over D1 trains at least on the query, read by both models, and on the target.
    least = JOINT.epochs * sum(2 * len(row.query.split()) + len(row.target.split()) for row in TRAIN)
    assert joint.budget.used.trained_tokens > least
    # The prompts of D1 are written anew in each pass.
    # The trained rows, and once h_i of each to standardise it.
    assert joint.budget.used.lm_calls == JOINT.epochs * len(TRAIN) + len(TRAIN)


def test_the_grounds_bound_on_batches_holds_wherever_text_is_generated(tmp_path: Path) -> None:
    def bounded(**parts: Any) -> tuple[Lab, list[int]]:
        ground, rows = lab(batch_tokens=16, train=TRAIN[:4], **parts), list[int]()
        for model in (ground.actor, ground.need_generator()):
            model.traffic.listeners.append(lambda prompt, generated, sequences: rows.append(sequences))
        return ground, rows

    warm_up, rows = bounded()
    warm = MetaTunerWarmUp(replace(WARM_UP, actor_prompts="rollouts", rollouts=2)).fit(warm_up)
    warm.save(tmp_path)
    warm.respond(TEST[:2])
    assert set(rows) == {1}
    for settings in ({"shared_layers": 0}, {"prompt_branch": False}, {"actor": "lora", "d2_refresh_epochs": 0.5}):
        joint, rows = bounded(prerequisites={"metatuner_warmup": tmp_path})
        MetaTunerJ(replace(JOINT, epochs=1, batch_size=2, **settings)).fit(joint).respond(TEST[:2])
        assert set(rows) == {1}


def test_a_fits_exported_adapter_is_for_the_original_actor(fitted: Any, tmp_path: Path) -> None:
    joint, folder = fitted("metatuner_j")
    loaded = load_policy(folder, Ground(actor(), generator(), BENCHMARKS))
    query = TEST[0].text
    for number, policy in enumerate((joint, loaded)):
        prompt = policy.tuner.export_adapter(query, tmp_path / str(number), prompt=INITIAL)
        assert json.loads((tmp_path / str(number) / "adapter_config.json").read_text())["r"] == 2 + 2
        base = json.loads((tmp_path / str(number) / "metatuner.json").read_text())["base"]
        assert base["fingerprint"] == fingerprint(actor())
        adapted = PeftModel.from_pretrained(frozen_view(actor()).model, tmp_path / str(number)).eval()
        ids = torch.tensor([render(policy.tuner.actor, prompt, query, reserve=6).ids])
        with torch.no_grad(), policy.tuner.adapted([INITIAL], [query]):
            expected = policy.tuner.actor.model(input_ids=ids).logits
        with torch.no_grad():
            torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_dev_rewards_are_logged_where_asked_for_and_change_nothing_else(fitted: Any, tmp_path: Path) -> None:
    _, warm = fitted("metatuner_warmup")
    joint, _ = fitted("metatuner_j")
    lines: list[str] = []
    ground = lab(prerequisites={"metatuner_warmup": warm}, dev=DEV, log_line=lines.append)
    measured = MetaTunerJ(replace(JOINT, evaluate_epochs=1)).fit(ground)
    found = [(event["epoch"], event["reward"]) for event in map(json.loads, lines) if event["event"] == "dev"]
    assert [epoch for epoch, _ in found] == [1, 2]
    assert found[-1][1] == sum(ground.reward(DEV, measured.respond([to_query(row) for row in DEV]))) / len(DEV)
    tensors = [policy.tuner.parameters for policy in (measured, joint)]
    for name, part in tensors[0].items():
        assert all(torch.equal(one, other) for one, other in zip(part, tensors[1][name], strict=True))
    once = lab(prerequisites={"metatuner_warmup": warm}, dev=DEV, log_line=lines.append)
    lines.clear()
    MetaTunerJ(replace(JOINT, evaluate_epochs=2)).fit(once)
    assert [event["epoch"] for event in map(json.loads, lines) if event["event"] == "dev"] == [2]
    lines.clear()
    MetaTunerJ(JOINT).fit(once)
    assert not [line for line in lines if '"dev"' in line]
    with pytest.raises(UserError, match=r"metatuner_j: evaluate_epochs needs dev rows; set sizes\.dev"):
        MetaTunerJ(replace(JOINT, evaluate_epochs=1)).fit(lab(prerequisites={"metatuner_warmup": warm}))


def test_i_differs_from_j_by_its_objective_alone() -> None:
    assert AlternatingConfig().objective == "alternating"
    assert replace(AlternatingConfig(), objective="joint") == AlternatingConfig(**vars(MetaTunerConfig()))
    assert MetaTunerI.fit is MetaTunerJ.fit


def test_a_policy_is_read_with_the_warm_up_it_was_saved_with_not_with_the_default(tmp_path: Path) -> None:
    other = replace(WARM_UP, generator_rank=3, actor_rank=1, max_prompt_tokens=3)
    MetaTunerWarmUp(other).fit(lab()).save(tmp_path / "warm")
    joint = MetaTunerJ(JOINT).fit(lab(prerequisites={"metatuner_warmup": tmp_path / "warm"}))
    joint.save(tmp_path / "joint")
    ground = Ground(actor(), generator(), BENCHMARKS)
    responses = load_policy(tmp_path / "joint", ground).respond(TEST)
    assert responses == joint.respond(TEST)
    assert all(len(response.prompt.split()) <= 3 for response in responses)


def test_the_registry_knows_both_and_reports_only_the_contender() -> None:
    registry = Registry()
    assert registry["metatuner_warmup"].cls.internal
    assert not registry["metatuner_j"].cls.internal
    assert registry["metatuner_j"].cls.requires == ("metatuner_warmup",)


def test_settings_come_from_config_values() -> None:
    settings = make_settings(MetaTunerJ, {"shared_layers": 0.25, "target_modules": ["q_proj"]}, "methods.metatuner_j")
    assert settings == MetaTunerConfig(shared_layers=0.25, target_modules=("q_proj",))
    assert make_settings(MetaTunerJ, {"target_modules": "all-linear"}, "here").target_modules == "all-linear"
    with pytest.raises(UserError, match=r"here: unknown setting 'shared_layer'.*did you mean shared_layers"):
        make_settings(MetaTunerJ, {"shared_layer": 1}, "here")


def test_without_the_warm_up_or_a_generator_the_fit_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'metatuner_warmup' was not fitted before"):
        MetaTunerJ(JOINT).fit(lab())
    with pytest.raises(UserError, match=r"needs a generator"):
        MetaTunerWarmUp(WARM_UP).fit(lab(generator=None))


def test_swapped_prompts_and_loras_are_those_they_are_called(fitted: Any) -> None:
    policy, _ = fitted("metatuner_j")
    found = answers_under_swaps(policy, TEST)
    own = policy.respond(TEST)
    assert found["own", "own"] == own
    written = [response.prompt for response in own]
    assert sorted(response.prompt for response in found["another query's", "own"]) == sorted(written)
    assert [response.prompt for response in found["another query's", "own"]] != written
    initial = [BENCHMARKS[query.benchmark].initial_prompt for query in TEST]
    assert [response.prompt for response in found["p~", "own"]] == initial
    assert set(initial) == {INITIAL, OTHER}
    plain = policy.ground.answer(TEST, written, actor=policy.tuner.actor)
    assert found["own", "none"] == plain
    # One at a time, each under the one LoRA that is the mean of all.
    mean = policy.tuner.factors(initial, [query.text for query in TEST]).mean(0, keepdim=True)
    for query, prompt, response in zip(TEST, written, found["own", "mean of all"], strict=True):
        with policy.tuner.lora.applied(mean):
            (alone,) = policy.ground.answer([query], [prompt], actor=policy.tuner.actor)
        assert response == alone
