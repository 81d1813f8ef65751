"""What is measured: training steps, generation, the joint step, rollouts."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from metatuner.bench.arms import Arm, lora_arms, per_query, stock_generate
from metatuner.bench.measure import Bench, Measurement, Rate, random_ids, within_memory
from metatuner.bench.shapes import Shape, decoding_bytes, training_flop
from metatuner.lm import completion_loss, generate
from metatuner.lm.generation import batch_by_length, padding_share
from metatuner.method import Example, MetaTuner, MetaTunerConfig, Rewrite, joint_loss
from metatuner.method.objectives import prompt_loss, rewrite_pair, task_pair
from metatuner.method.tuned import lora_parameters, to_train

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest allowed deviation of an arm from the per-query LoRA, relative to the norm of the compared numbers."""
GENERATOR_RANK = 16
"""Rank of the LoRA on the generator in a joint step."""

Batch = Sequence[tuple[list[int], list[int]]]


def deviation(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to the norm of `expected`."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _check(arm: str, what: str, value: float, dtype: str) -> None:
    if not value <= TOLERANCE[dtype]:
        raise RuntimeError(f"bench: {arm} does not compute what per_query does: {what} differ by {value:.2g}")


def training(bench: Bench, name: str, shape: Shape) -> Measurement:
    """Time and peak memory of a training step of the factors; the model is frozen."""
    lm = bench.lm(shape)
    lora, arms, skipped = lora_arms(bench, shape, lm)
    # Completions of unequal length, as training batches have.
    lengths = [max(1, shape.completion - 2 * (row % 4)) for row in range(shape.batch)]
    prompts = random_ids(shape, [shape.prompt] * shape.batch, 2)
    batch = list(zip(prompts, random_ids(shape, lengths, 3), strict=True))
    for arm_name, arm in arms.items():
        with within_memory(arm_name, "as it was checked", skipped):
            _check_training(arm_name, arm, per_query(lm, lora, arm.values), batch, bench.dtype)

    def step(arm: Arm) -> Callable[[], None]:
        def run() -> None:
            try:
                arm.train(batch)
            finally:
                arm.clear()

        return run

    what = "forward and backward pass, LoRA on all linears"
    measured = Measurement("training", name, what, ("base", "shared"), skipped=skipped)
    width = max(len(prompt) + len(completion) for prompt, completion in batch)
    share = 1 - sum(len(prompt) + len(completion) for prompt, completion in batch) / (width * len(batch))
    measured.notes.append(f"{share:.1%} of the batch's positions are padding")
    bench.measure(measured, {arm_name: step(arm) for arm_name, arm in arms.items()}, memory=True)
    work = {"base": _flop(shape, batch), "per_query": _flop(shape, batch, lora.flat_size)}
    _add_rates(measured, bench, work, "a training step")
    return measured


def _check_training(name: str, arm: Arm, ours: Arm, batch: Batch, dtype: str) -> None:
    try:
        expected = ours.train(batch)
        _check(name, "losses", abs(arm.train(batch) - expected) / expected, dtype)
        if arm.gradient is not None and ours.gradient is not None:
            gradient = ours.gradient().sum(0, keepdim=True) if arm.summed else ours.gradient()
            _check(name, "gradients", deviation(arm.gradient(), gradient), dtype)
    finally:
        arm.clear()


def _flop(shape: Shape, batch: Batch, factors: int = 0) -> float:
    """`training_flop` of a batch of (prompt, completion); the last token of a row is only predicted, never read."""
    lengths = [len(prompt) + len(completion) - 1 for prompt, completion in batch]
    return training_flop(shape, lengths, sum(len(completion) for _, completion in batch), factors)


def _add_rates(measured: Measurement, bench: Bench, work: Mapping[str, float], of: str) -> None:
    """Add the TFLOP/s of all timed arms, given their FLOP."""
    for arm, flop in work.items():
        if arm in measured.seconds:
            seconds = median(measured.seconds[arm])
            measured.rates[arm] = Rate(of, seconds, flop / 1e12, "TFLOP/s", bench.peak("TFLOP/s"))


def generation(bench: Bench, name: str, shape: Shape) -> Measurement:
    """Greedy completions of a batch of queries, with a KV cache."""
    lm = bench.lm(shape)
    lora, arms, skipped = lora_arms(bench, shape, lm)
    prompts = random_ids(shape, [shape.prompt] * shape.batch, 2)
    for arm_name, arm in arms.items():
        with within_memory(arm_name, "as it was checked", skipped):
            ours = per_query(lm, lora, arm.values)
            _check(arm_name, "logits", deviation(arm.logits(prompts), ours.logits(prompts)), bench.dtype)
            if bench.dtype == "float32":  # lower precisions have ties
                written = zip(arm.write(prompts, 8), ours.write(prompts, 8), strict=True)
                _check(arm_name, "completions", sum(a != b for a, b in written) / shape.batch, bench.dtype)
    what = f"{shape.new} new tokens a query, LoRA on all linears"
    measured = Measurement("generation", name, what, ("base", "shared"), skipped=skipped)

    def write(arm: Arm, new: int) -> Callable[[], object]:
        return lambda: arm.write(prompts, new)

    bench.measure(measured, {arm_name: write(arm, shape.new) for arm_name, arm in arms.items()})

    def read(factors: int) -> float:
        return decoding_bytes(shape, lm.model.dtype.itemsize, shape.prompt + shape.new // 2, factors)

    work = {"base": read(0), "per_query": read(lora.flat_size)}
    first = bench.time({arm_name: write(arms[arm_name], 1) for arm_name in work if arm_name in measured.seconds}, {})
    for arm_name, times in first.items():
        step = (median(measured.seconds[arm_name]) - median(times)) / (shape.new - 1)
        rate = Rate("a decoding step", step, work[arm_name] / 1e9, "GB/s", bench.peak("GB/s"))
        measured.rates[arm_name] = rate
    if work.keys() <= first.keys():
        steps = measured.rates["per_query"].seconds / measured.rates["base"].seconds
        least = work["per_query"] / work["base"]
        measured.notes.append(f"a decoding step, per_query / base: {steps:.2f}x; by the bytes read {least:.2f}x")
    return measured


def joint(bench: Bench, name: str, shape: Shape) -> Measurement:
    """A step of joint training, and each of its parts alone: forward and backward pass, and AdamW's update.

    The floor of the step is the sum of three parts:

    - `training_flop` of the generator on D2 (p~, x and the written prompt), through its LoRA
    - `training_flop` of the actor on D1 (the prompt, x and the answer), through per-query factors
    - 6 FLOP per query and weight of the parameter decoder

    The updates are not counted. The meta encoder's own reading of (p~, x) is not counted either: the prompt branch
    shares it if D1 and D2 show the same queries.
    """
    words = Random(4)
    actor_shape = shape.actor or shape
    vocabulary = min(shape.vocabulary, actor_shape.vocabulary)

    def text(length: int) -> str:
        return " ".join(f"w{words.randrange(2, vocabulary)}" for _ in range(length))

    prompt = text(shape.prompt // 4)
    rows = range(shape.batch)
    examples = [Example(prompt, text(shape.prompt // 2), text(shape.completion - 1)) for _ in rows]
    rewrites = [Rewrite(prompt, text(shape.prompt // 2), text(shape.prompt // 4)) for _ in rows]
    written = [text(shape.prompt // 4) for _ in rows]
    generator = to_train(bench.lm(shape), "lora", GENERATOR_RANK, seed=5)
    actor = bench.lm(actor_shape, seed=6)
    config = MetaTunerConfig(rank=shape.rank, batch_size=shape.batch)
    tuner = MetaTuner(generator, actor, config, max_prompt_tokens=shape.prompt // 2, seed=7)
    groups = tuner.parameters
    decoder, others = groups["phi_q"], [*groups["phi_s"], *groups["phi_p"]]
    prompts, queries = [example.prompt for example in examples], [example.query for example in examples]
    pairs = [task_pair(tuner.actor, one, example) for one, example in zip(written, examples, strict=True)]
    states = tuner.encode(prompts, queries).detach().requires_grad_()
    factors = tuner.parameter_decoder(states).detach().requires_grad_()
    optimisers = {id(group): torch.optim.AdamW(group, lr=1e-9, weight_decay=0.0) for group in (decoder, others)}

    def clear() -> None:
        for tensor in (*decoder, *others, states, factors):
            tensor.grad = None

    def update(group: list[nn.Parameter]) -> None:
        optimisers[id(group)].step()

    def step() -> None:
        joint_loss(tuner, examples, written, rewrites).total.backward()
        update(decoder)
        update(others)

    def meta_encoder() -> None:
        h = tuner.encode(prompts, queries)
        h.backward(torch.ones_like(h))

    def prompt_branch() -> None:
        prompt_loss(generator, rewrites, tuner.max_prompt_tokens).backward()

    zeros = {id(group): [torch.zeros_like(each) for each in group] for group in (decoder, others)}

    def parameter_decoder() -> None:
        emitted = tuner.parameter_decoder(states)
        emitted.backward(torch.ones_like(emitted))
        update(decoder)

    def acting() -> None:
        with tuner.lora.applied(factors):
            completion_loss(tuner.actor, pairs).backward()

    def generator_update() -> None:
        for parameter, zero in zip(others, zeros[id(others)], strict=True):
            parameter.grad = zero
        update(others)

    def cleared(part: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                part()
            finally:
                clear()

        return run

    parts = {
        "step": step,
        "meta_encoder": meta_encoder,
        "prompt_branch": prompt_branch,
        "parameter_decoder": parameter_decoder,
        "actor": acting,
        "generator_update": generator_update,
    }
    measured = Measurement("joint", name, "a joint training step and its parts, each alone", ("step",))
    bench.measure(measured, {part: cleared(run) for part, run in parts.items()}, memory=True)

    adapter = sum(parameter.numel() for parameter in lora_parameters(generator).values())
    weights = sum(parameter.numel() for parameter in decoder)
    read = [rewrite_pair(generator, row, tuner.max_prompt_tokens) for row in rewrites]
    work = {"prompt_branch": _flop(shape, read, adapter), "actor": _flop(actor_shape, pairs, tuner.lora.flat_size)}
    whole = sum(work.values()) + 6 * shape.batch * weights
    _add_rates(measured, bench, {"step": whole}, "a joint step")
    _add_rates(measured, bench, work, "a pass")
    states_of = [state for optimiser in optimisers.values() for state in optimiser.state.values()]
    kept = [*decoder, *generator.model.parameters(), *actor.model.parameters()]
    kept += [value for state in states_of for value in state.values()]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in kept}
    measured.notes.append(f"held between steps: {sum(held.values()) / 1e6:.0f} MB of weights and AdamW's state")
    measured.notes.append(f"parameter_decoder: {weights / 1e6:.1f} M weights, {tuner.lora.flat_size} factors a query")
    return measured


def rollouts(bench: Bench, name: str, shape: Shape) -> Measurement:
    """Sampled rewrites of queries of log-normal length, by `generate` and by `model.generate` (left-padded batches)."""
    lm = bench.lm(shape)
    draw = Random(8)
    count = 4 * shape.batch
    drawn = [round(shape.prompt * draw.lognormvariate(-0.5, 0.6)) for _ in range(count)]
    lengths = [min(max(length, 4), 8 * shape.prompt) for length in drawn]
    prompts = random_ids(shape, lengths, 9)
    bounds: dict[str, Any] = {"batch_tokens": 2 * shape.batch * (shape.prompt + shape.new), "max_rows": 2 * shape.batch}
    sorted_batches = batch_by_length(prompts, shape.new, **bounds)
    size = math.ceil(count / len(sorted_batches))
    arrived = [list(range(start, min(start + size, count))) for start in range(0, count, size)]

    def stock(batches: Sequence[Sequence[int]], **sampling: Any) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for batch in batches:
            written = stock_generate(lm, [prompts[index] for index in batch], shape.new, **sampling)
            found.update(zip(batch, written, strict=True))
        return [found[index] for index in range(count)]

    def ours(**sampling: Any) -> list[list[int]]:
        done = generate(lm, prompts, max_new_tokens=shape.new, **sampling, **bounds)
        return [completion.ids for completion in done]

    what = f"{count} rewrites of {shape.new} tokens, sampled at temperature 1"
    measured = Measurement("rollouts", name, what, ("model.generate",))
    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    runs: dict[str, Callable[[], object]] = {"generate": lambda: ours(temperature=1.0, seeds=range(count))}
    for arm_name, batches in {"model.generate": sorted_batches, "model.generate, as they come": arrived}.items():
        runs[arm_name] = partial(stock, batches, **sampled)
        if bench.dtype == "float32":
            with within_memory(arm_name, "as it was checked", measured.skipped):
                pairs = list(zip(ours(), stock(batches, do_sample=False), strict=True))
                differing = sum(a != b[: len(a)] for a, b in pairs)
                _check(arm_name, "greedy completions", differing / count, bench.dtype)
    bench.measure(measured, runs)
    for arm_name, times in measured.seconds.items():
        measured.notes.append(f"{arm_name}: {count / median(times):.3g} rollouts/s")
    shares = padding_share(prompts, sorted_batches), padding_share(prompts, arrived)
    measured.notes.append(f"padding: {shares[0]:.1%} of prompt positions by length, {shares[1]:.1%} as they come")
    return measured


MEASUREMENTS: dict[str, Callable[[Bench, str, Shape], Measurement]] = {
    "training": training,
    "generation": generation,
    "joint": joint,
    "rollouts": rollouts,
}
