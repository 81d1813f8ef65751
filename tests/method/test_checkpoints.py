"""An interrupted phase of training goes on, bit for bit, as if nothing had happened."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from metatuner.errors import UserError
from metatuner.method import MetaTuner, WarmUpConfig, train_joint, warm_up_actor, warm_up_generator
from metatuner.method.optimising import Log
from metatuner.method.tuned import trainable
from tests.toys.method import PROMPT_TOKENS, actor, examples, generator, rewrites, tuner

WARM_UP = WarmUpConfig(
    actor_epochs=2,
    actor_prompts="rollouts",
    actor_rank=2,
    generator_rank=2,
    generator_epochs=3,
    batch_size=2,
    max_prompt_tokens=PROMPT_TOKENS,
    checkpoint_steps=2,
)
D1, D2 = examples(), rewrites()
Tensors = dict[str, torch.Tensor]
Event = dict[str, Any]


def actor_warm_up(log: Log, folder: Path | None) -> Tensors:
    return dict(trainable(warm_up_actor(actor(), generator(), D1, WARM_UP, seed=0, log=log, checkpoints=folder)))


def generator_warm_up(log: Log, folder: Path | None) -> Tensors:
    return dict(trainable(warm_up_generator(generator(), D2, WARM_UP, seed=0, log=log, checkpoints=folder)))


def joint(log: Log, folder: Path | None, **settings: Any) -> Tensors:
    defaults = {"epochs": 3, "batch_size": 2, "sync_epochs": 2.0, "refresh_epochs": 2.0, "checkpoint_steps": 2}
    made = tuner(**(defaults | settings))

    def collected() -> list[Any]:
        written = made.write_prompts([row.prompt for row in D2], [row.query for row in D2])
        return [replace(row, rewrite=text) for row, text in zip(D2, written, strict=True)]

    refresh = collected if made.config.d2_refresh_epochs else None
    train_joint(made, D1, D2, seed=0, log=log, evaluate=lambda: score(made), refresh=refresh, checkpoints=folder)
    parameters = {f"{name}.{i}": p for name, part in made.parameters.items() for i, p in enumerate(part)}
    return parameters | {f"frozen.{name}": p for name, p in made.frozen_generator.model.named_parameters()}


def score(made: MetaTuner) -> float:
    """A stand-in for a reward that depends on the weights."""
    return made.parameters["phi_s"][0].double().sum().item()


def alternating(log: Log, folder: Path | None) -> Tensors:
    return joint(log, folder, objective="alternating", alternation_steps=2, d2_refresh_epochs=1.0, accumulation=2)


def synced(log: Log, folder: Path | None) -> Tensors:
    """The copy that writes prompts is neither the first nor the present prompt decoder when the phase is resumed."""
    return joint(log, folder, epochs=2, sync_epochs=1.0, refresh_epochs=1.0)


def gumbel(log: Log, folder: Path | None) -> Tensors:
    return joint(log, folder, objective="gumbel", epochs=2)


def quiet(**event: Any) -> None:
    """A log that nobody reads."""


class Killed(Exception):
    pass


def run(phase: Callable[[Log, Path | None], Tensors], folder: Path | None, events: list[Event]) -> Tensors:
    return {
        name: tensor.detach().clone() for name, tensor in phase(lambda **event: events.append(event), folder).items()
    }


def interrupt(phase: Callable[[Log, Path | None], Tensors], folder: Path, step: int) -> None:
    def log(**event: Any) -> None:
        if event.get("step") == step:
            raise Killed

    with pytest.raises(Killed):
        phase(log, folder)


@cache
def uninterrupted(phase: Callable[[Log, Path | None], Tensors]) -> tuple[list[Event], Tensors]:
    """The log and the result of a phase that nothing stopped."""
    events: list[Event] = []
    return events, run(phase, None, events)


@pytest.mark.parametrize(
    ("phase", "killed"),
    [
        (actor_warm_up, 3),
        (actor_warm_up, 4),
        (generator_warm_up, 5),
        (joint, 3),
        (alternating, 4),
        (alternating, 11),
        (gumbel, 3),
        (synced, 5),
    ],
)
def test_a_resumed_phase_is_the_uninterrupted_one(
    phase: Callable[[Log, Path | None], Tensors], killed: int, tmp_path: Path
) -> None:
    whole, expected = uninterrupted(phase)
    if phase is alternating and killed == 11:  # D2 has been collected anew by then, and is used further
        collected = [event["step"] for event in whole if event["event"] == "d2"]
        assert collected[0] < 10 < 11 < collected[1]
    interrupt(phase, tmp_path, killed)
    rest: list[Event] = []
    found = run(phase, tmp_path, rest)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    start = killed - killed % 2
    assert rest[0]["event"] == "resumed"
    assert rest[0]["step"] == start
    # A dev score is measured at the beginning of the step that follows it in the log.
    at = next(i for i, event in enumerate(whole) if event.get("step") == start)
    assert rest[1:] == whole[at - (at > 0 and whole[at - 1]["event"] == "dev") :]


def test_a_finished_phase_is_taken_up_at_its_end(tmp_path: Path) -> None:
    first, second = list[Event](), list[Event]()
    expected, found = run(joint, tmp_path, first), run(joint, tmp_path, second)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [event["event"] for event in second] == ["resumed", "dev"]
    assert second[1] == first[-1]


def test_one_checkpoint_is_kept_and_an_unfinished_one_is_passed_over(tmp_path: Path) -> None:
    interrupt(generator_warm_up, tmp_path, 5)
    folder = tmp_path / "generator_warm_up"
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]
    assert {path.name for path in folder.glob("*/*")} == {"state.json", "tensors.safetensors"}
    (folder / ".step-00000006.tmp").mkdir()
    (folder / ".step-00000006.tmp" / "tensors.safetensors").write_bytes(b"half")
    alone = tmp_path / "alone" / "generator_warm_up" / ".step-00000002.tmp"
    alone.mkdir(parents=True)
    (alone / "tensors.safetensors").write_bytes(b"half")
    interrupt(generator_warm_up, tmp_path / "alone", 0)
    events: list[Event] = []
    run(generator_warm_up, tmp_path, events)
    assert events[0] == {"event": "resumed", "phase": "generator_warm_up", "step": 4}
    assert [path.name for path in folder.iterdir()] == ["step-00000009"]


@pytest.mark.parametrize("settings", [{"epochs": 4}, {"alpha": 0.5}, {"rank": 2}])
def test_a_checkpoint_of_another_configuration_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    interrupt(joint, tmp_path, 3)
    with pytest.raises(
        UserError, match=r"joint: a checkpoint of another configuration, data, seed or model; delete"
    ) as raised:
        joint(lambda **event: None, tmp_path, **settings)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("part", ["generator", "parameter decoder", "actor"])
def test_a_checkpoint_of_another_start_is_refused(part: str, tmp_path: Path) -> None:
    def trained(log: Log, shift: float) -> None:
        made = tuner(epochs=3, batch_size=2, checkpoint_steps=2)
        models = {
            "generator": made.generator.model,
            "parameter decoder": made.parameter_decoder,
            "actor": made.actor.model,
        }
        with torch.no_grad():
            next(models[part].parameters())[0] += shift
        train_joint(made, D1, D2, seed=0, log=log, checkpoints=tmp_path)

    interrupt(lambda log, folder: trained(log, 0.0), tmp_path, 3)
    with pytest.raises(UserError, match="another configuration, data, seed or model"):
        trained(lambda **event: None, 1e-6)
    trained(lambda **event: None, 0.0)


def test_a_checkpoint_of_other_data_or_of_another_seed_is_refused(tmp_path: Path) -> None:
    def run_actor(log: Log, seed: int = 0, rows: int = 6, shift: float = 0.0) -> None:
        writes = generator()
        with torch.no_grad():
            writes.head.weight[9] += shift
        warm_up_actor(actor(), writes, examples(rows), WARM_UP, seed=seed, log=log, checkpoints=tmp_path)

    def run_generator(log: Log, seed: int = 0, rows: int = 5) -> None:
        # All weights are trained: where they start does not depend on the seed.
        settings = replace(WARM_UP, trainable="full")
        warm_up_generator(generator(), rewrites(rows), settings, seed=seed, log=log, checkpoints=tmp_path)

    def run_joint(log: Log, seed: int = 0, rows: int = 6, d2: int = 5, tokens: int = PROMPT_TOKENS) -> None:
        made = tuner(epochs=3, batch_size=2, checkpoint_steps=2)
        made.max_prompt_tokens = tokens
        # As many steps: only what the rows hold differs.
        d1 = [replace(row, target=row.target + " w1" * (rows - 6)) for row in D1]
        rewritten = [replace(row, rewrite=row.rewrite + " w1" * (d2 - 5)) for row in D2]
        train_joint(made, d1, rewritten, seed=seed, log=log, checkpoints=tmp_path)

    for phase, changes in (
        (run_actor, [{"seed": 1}, {"rows": 5}, {"shift": 1e-6}]),
        (run_generator, [{"seed": 1}, {"rows": 6}]),
        (run_joint, [{"seed": 1}, {"rows": 7}, {"d2": 6}, {"tokens": PROMPT_TOKENS + 1}]),
    ):
        interrupt(lambda log, folder, phase=phase: phase(log), tmp_path, 3)
        for changed in changes:
            with pytest.raises(UserError, match="a checkpoint of another"):
                phase(quiet, **changed)
        phase(quiet)


def test_a_warm_up_from_another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    interrupt(generator_warm_up, tmp_path, 3)
    other = generator(initializer_range=0.1)
    assert other.spec == generator().spec
    with pytest.raises(UserError, match="generator_warm_up: a checkpoint of another"):
        warm_up_generator(other, D2, WARM_UP, seed=0, log=lambda **event: None, checkpoints=tmp_path)


def test_how_often_checkpoints_are_written_is_no_other_configuration(tmp_path: Path) -> None:
    interrupt(joint, tmp_path, 3)
    events: list[Event] = []
    joint(lambda **event: events.append(event), tmp_path, checkpoint_steps=3)
    assert events[0]["step"] == 2


def test_without_checkpoint_steps_nothing_is_written(tmp_path: Path) -> None:
    joint(lambda **event: None, tmp_path, checkpoint_steps=0)
    assert not list(tmp_path.iterdir())
