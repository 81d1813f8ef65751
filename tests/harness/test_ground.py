"""Ground and lab: queries of several benchmarks are asked as each one alone is, and every stream has its own seed."""

import copy
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metatuner.errors import UserError
from metatuner.harness.benchmarks import Benchmark, get_benchmark
from metatuner.harness.ground import Ground
from metatuner.harness.lab import Lab
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import load_policy
from metatuner.harness.query import Query, Response, to_query
from metatuner.harness.rows import Row
from metatuner.hashing import derive_seed
from metatuner.lm import Completion, PerQueryLoRA, generate, render, render_rewrite
from tests.toys.lm import random_prompts, tiny_lm

NAMES = ("gsm8k", "hotpotqa", "cosmosqa")


def stopping(name: str, limit: int, *stops: str) -> Benchmark:
    """A benchmark with a limit and stop texts of its own."""
    changed = get_benchmark(name).with_overrides(initial_prompt=f"p {name}", max_new_tokens=limit)
    changed.stops = stops
    return changed


BENCHMARKS = {
    "gsm8k": stopping("gsm8k", 7),
    "hotpotqa": stopping("hotpotqa", 12, "w3", "w10"),
    "cosmosqa": stopping("cosmosqa", 4, "w1"),
}
# Of unequal lengths, so that batches are in another order than queries, and of three benchmarks in turn.
COUNT = 12
TEXTS = [" ".join(f"w{token - 7}" for token in ids) for ids in random_prompts(COUNT, seed=3)]
QUERIES = [Query(f"q{i}", NAMES[(i * i + i // 5) % 3], text) for i, text in enumerate(TEXTS)]
PROMPTS = [f"w{i} w{2 * i}" for i in range(COUNT)]
DEMOS = [[(f"w{i}", "w5 w6"), ("w8 w9", f"w{i + 1}")][: i % 3] for i in range(COUNT)]
SEEDS = [1000 + 7 * i for i in range(COUNT)]


def ground(**changes: object) -> Ground:
    return Ground(tiny_lm(seed=2), tiny_lm(seed=1), BENCHMARKS, **changes)  # type: ignore[arg-type]


def alone(made: Ground, index: int, *, temperature: float = 0.0, demos: bool = True, lm: object = None) -> Completion:
    """One query of QUERIES rendered and answered by itself."""
    lm, benchmark = lm or made.actor, BENCHMARKS[QUERIES[index].benchmark]
    limit = benchmark.max_new_tokens
    shown = DEMOS[index] if demos else []
    (answer,) = generate(
        lm,  # type: ignore[arg-type]
        [render(lm, PROMPTS[index], QUERIES[index].text, shown, reserve=limit).ids],  # type: ignore[arg-type]
        max_new_tokens=limit,
        stops=benchmark.stops,
        temperature=temperature,
        seeds=[SEEDS[index]],
    )
    return answer


def told(responses: Sequence[Response]) -> list[tuple[object, ...]]:
    return [
        (each.prompt, each.completion, each.prompt_tokens, each.completion_tokens, each.truncated) for each in responses
    ]


def expected(answers: Sequence[Completion]) -> list[tuple[object, ...]]:
    return [
        (prompt, each.text, each.prompt_tokens, len(each.ids), each.truncated)
        for prompt, each in zip(PROMPTS, answers, strict=True)
    ]


def test_the_queries_are_of_several_benchmarks_in_turn_and_end_in_several_ways() -> None:
    by_name = {name: [query.benchmark for query in QUERIES].count(name) for name in NAMES}
    assert min(by_name.values()) >= 3
    answers = [alone(ground(), index, temperature=1.0) for index in range(COUNT)]
    assert {True, False} == {each.truncated for each in answers}
    assert len({each.text for each in answers}) > COUNT / 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_query_has_its_own_prompt_demonstrations_seed_and_benchmarks_limits(temperature: float) -> None:
    made = ground()
    found = made.answer(QUERIES, PROMPTS, demos=DEMOS, temperature=temperature, seeds=SEEDS)
    assert told(found) == expected([alone(made, index, temperature=temperature) for index in range(COUNT)])


def test_one_prompt_serves_all_and_another_actor_answers_in_the_actors_place() -> None:
    made, other = ground(), tiny_lm(seed=9)
    shared = made.answer(QUERIES, "w4", actor=other)
    assert {each.prompt for each in shared} == {"w4"}
    assert shared == made.answer(QUERIES, ["w4"] * COUNT, actor=other)
    found = made.answer(QUERIES, PROMPTS, actor=other)
    assert told(found) == expected([alone(made, index, demos=False, lm=other) for index in range(COUNT)])
    assert told(found) != told(made.answer(QUERIES, PROMPTS))


def test_a_per_query_adaptation_reaches_its_own_query_whatever_the_benchmark() -> None:
    made = ground()
    lora = PerQueryLoRA(made.actor.model, rank=2, scale=1.0)
    flat = 0.3 * torch.randn(COUNT, lora.flat_size, generator=torch.Generator().manual_seed(3))
    asked: list[list[int]] = []

    @contextmanager
    def adapt(rows: list[int]) -> Iterator[PerQueryLoRA]:
        asked.append(rows)
        with lora.applied(flat[rows]):
            yield lora

    found = made.answer(QUERIES, PROMPTS, adapt=adapt)
    assert sorted(index for rows in asked for index in rows) == list(range(COUNT))
    assert all(len({QUERIES[index].benchmark for index in rows}) == 1 for rows in asked)

    def materialised(index: int) -> object:
        lm = copy.deepcopy(made.actor)
        for site in lora.sites:
            a = flat[index][site.a].view(lora.rank, site.d_in)
            b = flat[index][site.b].view(lora.rank, site.d_out)
            lm.model.get_submodule(site.name).weight.data += b.T @ a
        return lm

    answers = [alone(made, index, demos=False, lm=materialised(index)) for index in range(COUNT)]
    assert told(found) == expected(answers)
    assert [each.text for each in answers] != [alone(made, index, demos=False).text for index in range(COUNT)]


def test_what_does_not_fit_the_window_is_cut_and_counted_for_its_own_query() -> None:
    made = ground()
    made.actor = replace(made.actor, window=40)
    demos = [[("w1 w2 w3 w4", "w5")] * count for count in (0, 9, 0, 1)]
    texts = ["w7", "w8 w9", " ".join(["w6"] * 60), "w5"]
    queries = [Query(str(i), NAMES[i % 2], text) for i, text in enumerate(texts)]
    found = made.answer(queries, "w1", demos=demos)
    assert [each.cut_tokens > 0 for each in found] == [False, False, True, False]
    assert [each.cut_demos > 0 for each in found] == [False, True, False, False]
    for query, each in zip(queries, found, strict=True):
        limit = BENCHMARKS[query.benchmark].max_new_tokens
        assert each.prompt_tokens + limit <= 40
    assert found[2].prompt_tokens + BENCHMARKS["gsm8k"].max_new_tokens == 40  # filled, but for the answer


def test_a_batch_holds_no_more_padded_tokens_than_told_and_answers_do_not_depend_on_it() -> None:
    small, large = ground(batch_tokens=64), ground()
    seen: dict[str, list[tuple[int, int]]] = {"small": [], "large": []}
    for name, made in (("small", small), ("large", large)):
        for lm in (made.actor, made.generator):
            assert lm is not None
            assert lm.batch_tokens == made.batch_tokens
            lm.traffic.listeners.append(lambda read, written, rows, name=name: seen[name].append((read, rows)))
    assert told(small.answer(QUERIES, PROMPTS)) == told(large.answer(QUERIES, PROMPTS))
    assert small.rewrite(QUERIES, PROMPTS, max_new_tokens=5) == large.rewrite(QUERIES, PROMPTS, max_new_tokens=5)
    assert sum(rows for _, rows in seen["small"]) == sum(rows for _, rows in seen["large"]) == 2 * COUNT
    assert all(rows == 1 or read + 4 * rows <= 64 for read, rows in seen["small"])  # 4 is the smallest limit
    assert len(seen["small"]) > len(seen["large"])
    assert any(read > 64 for read, _ in seen["large"])


def test_a_rewrite_has_its_own_prompt_and_seed() -> None:
    made = ground()
    for lm, options in ((made.generator, {}), (tiny_lm(seed=8), {"generator": tiny_lm(seed=8)})):
        assert lm is not None
        found = made.rewrite(QUERIES, PROMPTS, temperature=1.0, seeds=SEEDS, max_new_tokens=6, **options)
        for index, text in enumerate(found):
            ids = render_rewrite(lm, PROMPTS[index], QUERIES[index].text, reserve=6).ids
            (one,) = generate(lm, [ids], max_new_tokens=6, temperature=1.0, seeds=[SEEDS[index]])
            assert text == one.text
    assert made.rewrite(QUERIES, "w4") == made.rewrite(QUERIES, ["w4"] * COUNT)


def test_without_a_generator_and_for_a_foreign_benchmark_the_error_names_the_remedy() -> None:
    made = Ground(tiny_lm(), None, {"gsm8k": BENCHMARKS["gsm8k"]})
    with pytest.raises(UserError, match=r"models\.generators"):
        made.rewrite(QUERIES[:1], "w1")
    with pytest.raises(UserError, match=r"'gsm8'.*did you mean gsm8k"):
        made.answer([Query("a", "gsm8", "w1")], "w1")


def test_policies_have_a_prompt_demonstrations_and_an_adapter_a_benchmark_also_when_loaded(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    prompts = {name: f"w{index} w3" for index, name in enumerate(NAMES)}
    demos = {"gsm8k": [("w1", "w2")], "cosmosqa": [("w5", "w6"), ("w7", "w8")]}
    made = ground()
    fixed = StaticPolicy(made, prompts, demos)
    model = get_peft_model(copy.deepcopy(made.actor.model), LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    adapter = StaticPolicy(made, prompts, actor=replace(made.actor, model=model.eval()))  # type: ignore[arg-type]
    for kind, policy, shown, lm in (("fixed", fixed, demos, made.actor), ("adapter", adapter, {}, adapter.actor)):
        policy.save(tmp_path / kind)
        loaded = load_policy(tmp_path / kind, ground())
        for each in (policy, loaded):
            found = each.respond(QUERIES)
            for query, response in zip(QUERIES, found, strict=True):
                (one,) = made.answer(
                    [query], prompts[query.benchmark], demos=[shown.get(query.benchmark, [])], actor=lm
                )
                assert response == one
    assert [each.completion for each in fixed.respond(QUERIES)] != [
        each.completion for each in adapter.respond(QUERIES)
    ]


# ---- the lab -------------------------------------------------------------------------------------------------------


def lab(**changes: object) -> Lab:
    fields = {"trained_on": ("gsm8k", "math"), "generator_name": "large", "seed": 3} | changes
    benchmarks = {name: get_benchmark(name) for name in (*NAMES, "math")}
    return Lab(None, None, benchmarks, **fields)  # type: ignore[arg-type]


def test_a_derived_seed_is_63_bits_of_a_digest_of_all_its_parts() -> None:
    parts = ("rows", "gsm8k", 3)
    digest = hashlib.sha256(b'["rows", "gsm8k", "3"]').digest()
    assert derive_seed(*parts) == int.from_bytes(digest[:8], "big") // 2
    others = [("rows", "gsm8k", 4), ("rows", "math", 3), ("mix", "gsm8k", 3), ("rowsgsm8k", 3), ("rows", "gsm8k3")]
    assert len({derive_seed(*each) for each in (parts, *others)}) == 6


def test_a_stream_is_its_uses_own_and_the_cells_own() -> None:
    base = lab().stream("rollouts")
    assert base == lab().stream("rollouts") == derive_seed("gsm8k+math", "large", 3, "rollouts")
    others = [
        lab().stream("joint"),
        lab(seed=4).stream("rollouts"),
        lab(generator_name="small").stream("rollouts"),
        lab(generator_name="").stream("rollouts"),
        lab(trained_on=("gsm8k",)).stream("rollouts"),
        lab(trained_on=("gsm8k", "cosmosqa")).stream("rollouts"),
    ]
    assert len({base, *others}) == 7


def test_a_random_generator_starts_from_its_stream() -> None:
    drawn = lab().random("demos").random()
    assert drawn == lab().random("demos").random() == random.Random(lab().stream("demos")).random()
    assert drawn != lab(seed=4).random("demos").random() != lab().random("ties").random()


ROWS = [
    Row("a", "hotpotqa", "q", ("old town",), "t", "k", "g"),
    Row("b", "gsm8k", "q", ("2",), "t", "k", "g"),
    Row("c", "hotpotqa", "q", ("paris",), "t", "k", "g"),
    Row("d", "cosmosqa", "q", ("B",), "t", "k", "g"),
    Row("e", "gsm8k", "q", ("3",), "t", "k", "g"),
]


def test_rewards_are_each_rows_own_primary_metric() -> None:
    texts = ["Answer: old city", "#### 2", "Answer: Paris", "(A)", "#### 2"]
    assert lab().reward_texts(ROWS, texts) == [0.0, 1.0, 1.0, 0.0, 0.0]  # half of F1 is no exact match
    responses = [Response("p", text, 1, 1, False) for text in texts]
    assert lab().reward(ROWS, responses) == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert lab().reward_texts(ROWS[::-1], texts[::-1]) == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert lab().reward_texts([], []) == []


def test_initial_prompts_are_those_of_the_rows_benchmark() -> None:
    for name in NAMES:
        prompt = get_benchmark(name).initial_prompt
        (row,) = [each for each in ROWS if each.benchmark == name][:1]
        assert lab().initial_prompt(row) == lab().initial_prompt(to_query(row)) == lab().initial_prompt(name) == prompt


def test_a_query_holds_no_answer() -> None:
    row = Row("a", "gsm8k", "how many?", ("42",), "so 42", "kind", "group")
    assert to_query(row) == Query("a", "gsm8k", "how many?")


def test_the_log_is_one_line_of_sorted_json_an_event(tmp_path: Path) -> None:
    lines: list[str] = []
    lab(log_line=lines.append).log(event="é", b=1, a=[2])
    assert lines == ['{"a": [2], "b": 1, "event": "é"}']
    json.loads(lines[0])


def test_only_what_was_required_is_there(tmp_path: Path) -> None:
    assert lab(prerequisites={"sft": tmp_path}).required("sft") == tmp_path
    with pytest.raises(UserError, match="'dpo' was not fitted before"):
        lab(prerequisites={"sft": tmp_path}).required("dpo")
