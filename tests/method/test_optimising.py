"""Optimiser steps: parts of a batch add up to it, and saving memory changes no gradient."""

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.method import WarmUpConfig, train_joint, warm_up_actor, warm_up_generator
from metatuner.method.config import TrainingConfig
from metatuner.method.objectives import prompt_loss, task_loss
from metatuner.method.optimising import Phase, Term, cosine_with_warm_up, optimise, recomputed
from metatuner.method.tuned import trainable
from tests.toys.method import PROMPT_TOKENS, actor, examples, generator, rewrites, tuner

WARM_UP = WarmUpConfig(actor_rank=2, generator_rank=2, batch_size=5, max_prompt_tokens=PROMPT_TOKENS)
Event = dict[str, Any]


class Regression(Phase):
    """Each term: the mean over "tokens" of w * x, of which a row (x, n) has n."""

    name = "regression"

    def __init__(self, config: TrainingConfig, terms: Sequence[dict[str, tuple[list[tuple[float, int]], float]]]):
        self.config, self.steps, self.planned, self.layers = config, len(terms), terms, []
        self.weights = {name: nn.Parameter(torch.ones(1, dtype=torch.float64)) for name in ("a", "b")}
        self.groups = {name: ([self.weights[name]], rate) for name, rate in (("a", 0.1), ("b", 0.03))}

    def terms(self, step: int) -> dict[str, Term[tuple[float, int]]]:
        return {
            name: Term(rows, lambda rows, name=name: self.mean(name, rows), lambda row: row[1], weight)
            for name, (rows, weight) in self.planned[step].items()
        }

    def mean(self, name: str, rows: Sequence[tuple[float, int]]) -> Tensor:
        return self.weights[name].sum() * sum(x * n for x, n in rows) / sum(n for _, n in rows)

    def identity(self) -> None:
        return None


def events_of(phase: Phase) -> list[Event]:
    events: list[Event] = []
    optimise(phase, lambda **event: events.append(event))
    return events


@pytest.mark.parametrize("accumulation", [1, 2, 3, 7])
def test_the_loss_of_a_step_is_the_weighted_sum_of_means_over_tokens(accumulation: int) -> None:
    a, b = [(1.0, 1), (2.0, 3), (6.0, 10)], [(4.0, 2), (1.0, 5)]
    config = TrainingConfig(batch_size=7, accumulation=accumulation)
    (event,) = events_of(Regression(config, [{"a": (a, 1.0), "b": (b, 0.5)}]))
    mean_a, mean_b = 67 / 14, 13 / 7
    assert event["a"] == pytest.approx(mean_a)
    assert event["b"] == pytest.approx(mean_b)
    assert event["loss"] == pytest.approx(mean_a + 0.5 * mean_b)
    assert event["norm_a"] == pytest.approx(mean_a)
    assert event["norm_b"] == pytest.approx(0.5 * mean_b)
    assert event["tokens"] == 21
    assert event["rate"] == 0.5


def test_a_step_moves_nothing_that_it_has_no_gradient_of() -> None:
    rows = [(1.0, 1)]
    steps = [{"a": (rows, 1.0)}, {"b": (rows, 1.0)}, {"a": (rows, 1.0)}, {"a": ([], 1.0)}]
    phase = Regression(TrainingConfig(batch_size=1), steps)
    seen: list[tuple[float, float]] = []
    optimise(phase, lambda **event: seen.append((phase.weights["a"].item(), phase.weights["b"].item())))
    (a0, b0), (a1, b1), (a2, b2), (a3, b3) = seen
    assert (a0 < 1, b0) == (True, 1)
    assert (a1, b1 < 1) == (a0, True)
    assert (a2 < a1, b2) == (True, b1)
    assert (a3, b3) == (a2, b2)


def adam(grads: Sequence[tuple[float, float]], peaks: tuple[float, float], rates: Sequence[float], clip: float):
    """Kingma and Ba's Adam by hand, from (1, 1), its gradients shortened to `clip` together."""
    weights, first, second = [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]
    for step, (pair, rate) in enumerate(zip(grads, rates, strict=True), 1):
        norm = math.hypot(*pair)
        for i, grad in enumerate(pair):
            grad *= min(1.0, clip / norm)
            first[i] = 0.9 * first[i] + 0.1 * grad
            second[i] = 0.999 * second[i] + 0.001 * grad**2
            ahead, spread = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            weights[i] -= peaks[i] * rate * ahead / (math.sqrt(spread) + 1e-8)
    return weights


@pytest.mark.parametrize("clip", [1.0, 4.0, 1000.0])
def test_gradients_are_clipped_by_their_common_norm_before_adam_sees_them(clip: float) -> None:
    grads = [(0.3, 0.4), (30.0, -40.0), (3.0, 4.0), (-6.0, 0.5)]
    terms = [{"a": ([(a, 1)], 1.0), "b": ([(b, 1)], 1.0)} for a, b in grads]
    phase = Regression(TrainingConfig(gradient_clip=clip), terms)
    events = events_of(phase)
    expected = adam(grads, (0.1, 0.03), [event["rate"] for event in events], clip)
    assert [phase.weights[name].item() for name in "ab"] == pytest.approx(expected, rel=1e-5)
    assert len({event["rate"] for event in events}) > 1
    # The log has norms before clipping.
    norms = [norm for event in events for norm in (event["norm_a"], event["norm_b"])]
    assert norms == pytest.approx([abs(grad) for pair in grads for grad in pair])


class Shared:
    """Accelerate's face of one of several processes, which here are threads."""

    device = torch.device("cpu")

    def __init__(self, process_index: int, num_processes: int, barrier: threading.Barrier, parts: dict[int, Tensor]):
        self.process_index, self.num_processes, self.barrier, self.parts = process_index, num_processes, barrier, parts
        self.is_main_process = process_index == 0

    def reduce(self, tensor: Tensor) -> Tensor:
        self.parts[self.process_index] = tensor
        self.barrier.wait(timeout=120)
        total = sum(self.parts.values())
        self.barrier.wait(timeout=120)
        return total


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_take_the_steps_of_one(processes: int) -> None:
    # Of b there are fewer rows than processes, and in the last step none.
    steps = [
        {"a": ([(1.0, 1), (2.0, 3), (6.0, 10), (0.5, 2)], 1.0), "b": ([(4.0, 2)], 0.5)},
        {"a": ([(-3.0, 5), (1.0, 1), (1.5, 1)], 1.0), "b": ([(1.0, 1), (7.0, 3)], 0.5)},
        {"a": ([(2.0, 2)], 1.0), "b": ([], 0.5)},
    ]
    config = TrainingConfig(batch_size=4, accumulation=2)
    alone = Regression(config, steps)
    expected = events_of(alone)
    barrier, parts = threading.Barrier(processes), dict[int, Tensor]()
    phases = [Regression(config, steps) for _ in range(processes)]
    logs: list[list[Event]] = [[] for _ in phases]

    def run(rank: int) -> None:
        one: Any = Shared(rank, processes, barrier, parts)
        try:
            optimise(phases[rank], lambda **event: logs[rank].append(event), accelerator=one)
        except BaseException:
            barrier.abort()  # the others need not wait
            raise

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, range(processes)))
    for phase, log in zip(phases, logs, strict=True):
        for name, weight in phase.weights.items():
            assert weight.item() == pytest.approx(alone.weights[name].item(), rel=1e-12)
        for one, other in zip(log, expected, strict=True):
            same_event(one, other)


@cache
def joint_run(objective: str, **settings: Any) -> tuple[dict[str, list[nn.Parameter]], list[Event]]:
    made = tuner(dtype=torch.float64, epochs=1, batch_size=4, objective=objective, what="lora", **settings)
    events: list[Event] = []
    train_joint(made, examples(7), rewrites(), seed=0, log=lambda **event: events.append(event))
    return made.parameters, events


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("joint", {"accumulation": 4}),
        ("joint", {"activation_checkpointing": True}),
        ("alternating", {"accumulation": 2}),
        ("alternating", {"accumulation": 2, "activation_checkpointing": True}),
    ],
)
def test_joint_training_in_parts_or_with_recomputed_activations_is_the_same(
    objective: str, settings: dict[str, Any]
) -> None:
    (one, log), (other, other_log) = joint_run(objective), joint_run(objective, **settings)
    for name, parameters in one.items():
        for expected, found in zip(parameters, other[name], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert len(log) == (2 if objective == "joint" else 4)
    for event, expected in zip(other_log, log, strict=True):
        same_event(event, expected)


def same_event(found: Event, expected: Event) -> None:
    """Equal up to rounding."""
    assert found["event"] == expected["event"]
    numbers = {key: value for key, value in expected.items() if key != "event"}
    assert {key: value for key, value in found.items() if key != "event"} == pytest.approx(numbers, rel=1e-9)


@pytest.mark.parametrize("settings", [{"accumulation": 3}, {"activation_checkpointing": True}])
def test_warm_ups_in_parts_or_with_recomputed_activations_are_the_same(settings: dict[str, Any]) -> None:
    def warmed(config: WarmUpConfig) -> list[Tensor]:
        one = warm_up_actor(actor(torch.float64), generator(), examples(7), config, seed=0, log=quiet)
        other = warm_up_generator(generator(torch.float64), rewrites(), config, seed=0, log=quiet)
        return [*trainable(one).values(), *trainable(other).values()]

    for expected, found in zip(warmed(WARM_UP), warmed(replace(WARM_UP, **settings)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_recomputed_activations_give_the_very_same_gradients_and_leave_no_trace() -> None:
    made, d1, d2 = tuner(), examples(3), rewrites(3)
    layers = [*made.generator.decoder.layers, *made.actor.decoder.layers]
    calls = []
    hooks = [layer.mlp.register_forward_pre_hook(lambda *args: calls.append(1)) for layer in layers]

    def gradients() -> list[Tensor]:
        calls.clear()
        loss = task_loss(made, d1, ["w3 w4"] * 3) + prompt_loss(made.generator, d2, PROMPT_TOKENS)
        loss.backward()
        parameters = [parameter for part in made.parameters.values() for parameter in part]
        found = [parameter.grad for parameter in parameters]
        made.generator.model.zero_grad()
        made.parameter_decoder.zero_grad()
        return found

    expected, forwards = gradients(), len(calls)
    with recomputed(layers), made.lora.held():
        found = gradients()
    assert len(calls) == 2 * forwards
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(expected, gradients(), strict=True))
    assert len(calls) == forwards
    for hook in hooks:
        hook.remove()


def test_what_is_decoded_while_activations_are_recomputed_keeps_its_cache() -> None:
    made = tuner()
    asked = [["w1 w2"] * 2, ["w5 w6 w7", "w8"]]
    expected = made.write_prompts(*asked)
    with recomputed([*made.generator.decoder.layers]):
        assert made.write_prompts(*asked) == expected


def test_autocast_computes_in_half_precision_and_keeps_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    logs: dict[str, list[Event]] = {}
    for precision in ("none", "bfloat16"):
        made = tuner(epochs=2, autocast=precision)
        dtypes = set()
        hook = made.generator.decoder.layers[0].mlp.register_forward_hook(
            lambda m, i, out, to=dtypes: to.add(out.dtype)
        )
        log = logs[precision] = []
        train_joint(made, examples(), rewrites(), seed=0, log=lambda *, into=log, **event: into.append(event))
        hook.remove()
        assert dtypes == {torch.bfloat16 if precision == "bfloat16" else torch.float32}
        assert all(p.dtype == torch.float32 for part in made.parameters.values() for p in part)
    for exact, half in zip(logs["none"], logs["bfloat16"], strict=True):
        assert half["loss"] == pytest.approx(exact["loss"], rel=0.05)
        assert half["loss"] != exact["loss"]


@contextmanager
def running_out(phase: Regression, error: type[Exception] | None) -> Iterator[None]:
    """The phase's loss asks for more memory than there is."""

    def mean(name: str, rows: Sequence[Any]) -> Tensor:
        if error is not None:
            raise error("CUDA out of memory")
        return torch.empty(2**55)

    phase.mean = mean  # type: ignore[method-assign]
    yield


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError])
def test_memory_running_out_names_the_key_and_a_value(error: type[Exception] | None) -> None:
    for changes, remedy in (
        ({"accumulation": 1}, "accumulation to 2, or activation_checkpointing to true"),
        ({"accumulation": 3, "activation_checkpointing": True}, "accumulation to 4$"),
        ({"accumulation": 4}, "lower max_prompt_tokens or the windows, or activation_checkpointing to true"),
    ):
        phase = Regression(TrainingConfig(batch_size=4, **changes), [{"a": ([(1.0, 1)], 1.0)}])
        message = f"regression: out of memory at step 0 of 1, with batch_size 4 and accumulation .*{remedy}"
        with running_out(phase, error), pytest.raises(UserError, match=message):
            events_of(phase)


def test_memory_running_out_in_generation_names_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuner(epochs=1)
    monkeypatch.setattr(made, "write_prompts", lambda *args, **options: torch.empty(2**55))
    with pytest.raises(UserError, match=r"joint: out of memory at step 0 of 2, in generation; .*batch_tokens"):
        train_joint(made, examples(), rewrites(), seed=0, log=quiet)


def test_other_failures_of_a_step_are_passed_on() -> None:
    phase = Regression(TrainingConfig(batch_size=4), [{"a": ([(1.0, 1)], 1.0)}])
    with running_out(phase, RuntimeError), pytest.raises(RuntimeError, match="CUDA out of memory"):
        events_of(phase)


def test_the_schedule_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [cosine_with_warm_up(step, 20, 0.2) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02


def quiet(**event: Any) -> None:
    """A log that nobody reads."""
