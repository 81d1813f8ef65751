"""Batched generation against transformers' own, and its independence of the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metatuner.errors import UserError
from metatuner.lm import LM, Completion, generate, reading
from metatuner.lm.generation import MOST_PADDING, batch_by_length, padding_share
from tests.toys.lm import BEGIN, END, ENDS, FAMILIES, PAD, SLIDING, WORDS, random_prompts, tiny_lm, watched_reads

PROMPTS = random_prompts(24)
NEW = 14


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache grows several times before the last token."""
    monkeypatch.setattr(reading, "ROOM", 4)


def ids(completions: list[Completion]) -> list[list[int]]:
    return [completion.ids for completion in completions]


def one_by_one(lm: LM, prompts: list[list[int]], new: int) -> list[list[int]]:
    """transformers' greedy search, a row at a time, with the same tokens suppressed."""
    return [
        lm.model.generate(
            torch.tensor([prompt]), max_new_tokens=new, do_sample=False, suppress_tokens=lm.suppressed_ids or None
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_greedy_completions_are_those_of_transformers(architecture: str) -> None:
    lm = tiny_lm(architecture)
    completions = generate(lm, PROMPTS, max_new_tokens=NEW)
    assert ids(completions) == one_by_one(lm, PROMPTS, NEW)
    # Some rows end early and some do not, so leaving the batch has been exercised; so have padding and sliding windows.
    assert min(map(len, PROMPTS)) < SLIDING < max(map(len, PROMPTS))
    assert {completion.truncated for completion in completions} == {True, False}


def test_a_sliding_window_model_agrees_too() -> None:
    lm = tiny_lm("qwen2", use_sliding_window=True, sliding_window=SLIDING, max_window_layers=1)
    assert ids(generate(lm, PROMPTS, max_new_tokens=NEW)) == one_by_one(lm, PROMPTS, NEW)


def lengths_of(kind: str, count: int) -> list[int]:
    """Lengths as real queries have them: log-normal (median 120, a few above 1000), or short ones beside long ones."""
    draw = torch.Generator().manual_seed(count)
    normal = torch.randn(count, generator=draw)
    if kind == "log-normal":
        return (120 * (0.8 * normal).exp()).round().int().clamp(5, 3000).tolist()
    long = torch.rand(count, generator=draw) < 0.2
    return (torch.where(long, 1200 + 150 * normal, 60 + 12 * normal)).round().int().clamp(min=5).tolist()


@pytest.mark.parametrize("count", [64, 300, 2000])
@pytest.mark.parametrize("kind", ["log-normal", "bimodal"])
def test_batches_by_length_hold_little_padding_and_many_rows(kind: str, count: int) -> None:
    lengths = lengths_of(kind, count)
    prompts = [[8] * length for length in lengths]
    batches = batch_by_length(prompts, 128)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    widths = [max(lengths[index] for index in batch) for batch in batches]
    read = sum(width * len(batch) for width, batch in zip(widths, batches, strict=True))
    assert padding_share(prompts, batches) == pytest.approx((read - sum(lengths)) / read)
    assert padding_share(prompts, batches) <= 0.25
    for width, batch in zip(widths, batches, strict=True):
        assert len(batch) == 1 or (len(batch) <= 256 and (width + 128) * len(batch) <= 16384)
    # Batches are no smaller than memory asks, but for one at each few steps down in length.
    needed = sum(length + 128 for length in lengths) / 16384
    assert len(batches) <= 1.4 * needed + 10
    # A batch of arbitrary rows would be padding for the most part.
    arrived = [list(range(start, min(start + 64, count))) for start in range(0, count, 64)]
    assert padding_share(prompts, arrived) > 0.5


def test_batches_are_as_large_as_their_bounds_allow() -> None:
    def sizes(lengths: list[int], **bounds: int) -> list[int]:
        return [len(batch) for batch in batch_by_length([[8] * length for length in lengths], 6, **bounds)]

    assert sizes([10] * 10, batch_tokens=64) == [4, 4, 2]
    assert sizes([10] * 10, batch_tokens=63) == [3, 3, 3, 1]
    assert sizes([10] * 10, max_rows=4) == [4, 4, 2]
    # A quarter of the positions may be padding, no more: 12 of 16, then 31 of 44.
    assert sizes([8, 4]) == [2]
    assert sizes([8, 3]) == [1, 1]
    # The longest first.
    assert batch_by_length([[8] * 9, [8] * 12, [8] * 10], 6, max_rows=1) == [[1], [2], [0]]


def test_the_padding_of_a_plan_is_what_the_model_reads() -> None:
    lm = tiny_lm()
    prompts = random_prompts(40, shortest=3, longest=80)
    masks: list[Tensor] = []

    def record(ids: Tensor, mask: Tensor, logits: Tensor) -> None:
        if ids.shape[1] > 1:
            masks.append(mask)

    with watched_reads(record):
        generate(lm, prompts, max_new_tokens=2)
    read, padded = sum(mask.numel() for mask in masks), sum(int((mask == 0).sum()) for mask in masks)
    assert 0 < padded <= MOST_PADDING * read
    assert padding_share(prompts, batch_by_length(prompts, 2)) == pytest.approx(padded / read)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9}])
@pytest.mark.parametrize("bounds", [{"max_rows": 1}, {"max_rows": 5}, {"batch_tokens": 100}, {"batch_tokens": 10}])
def test_completions_do_not_depend_on_the_batch(sampling: dict[str, float], bounds: dict[str, int]) -> None:
    lm = tiny_lm()
    seeds = list(range(100, 100 + len(PROMPTS)))
    together = generate(lm, PROMPTS, max_new_tokens=NEW, seeds=seeds, **sampling)
    assert generate(lm, PROMPTS, max_new_tokens=NEW, seeds=seeds, **sampling, **bounds) == together


def test_a_models_own_bound_holds_where_none_is_given() -> None:
    def batches(lm: LM, **bounds: int) -> list[int]:
        rows: list[int] = []
        lm.traffic.listeners.append(lambda prompt, generated, sequences: rows.append(sequences))
        generate(lm, PROMPTS, max_new_tokens=NEW, **bounds)
        lm.traffic.listeners.clear()
        return rows

    lm = tiny_lm()
    small = replace(lm, batch_tokens=100)
    assert batches(small) == list(map(len, batch_by_length(PROMPTS, NEW, 100)))
    assert batches(small, batch_tokens=16384) == batches(lm) == list(map(len, batch_by_length(PROMPTS, NEW)))
    assert batches(small) != batches(lm)


def test_a_rows_sample_depends_on_its_own_seed_alone() -> None:
    lm = tiny_lm()
    first = generate(lm, PROMPTS, max_new_tokens=NEW, temperature=1.0, seeds=range(24))
    backwards = generate(lm, PROMPTS[::-1], max_new_tokens=NEW, temperature=1.0, seeds=range(23, -1, -1))
    assert backwards[::-1] == first
    alone = generate(lm, PROMPTS[7:8], max_new_tokens=NEW, temperature=1.0, seeds=[7])
    assert alone == first[7:8]
    other = generate(lm, PROMPTS, max_new_tokens=NEW, temperature=1.0, seeds=range(1000, 1024))
    assert ids(other) != ids(first)


def test_equal_prompts_are_read_once_and_answered_each_on_its_own() -> None:
    lm = tiny_lm()
    prompts = [prompt for prompt in PROMPTS[:4] for _ in range(6)]
    rows: list[int] = []
    with watched_reads(lambda ids, mask, logits: rows.append(len(ids))):
        together = generate(lm, prompts, max_new_tokens=NEW, temperature=1.0, seeds=range(24))
    assert rows[:2] == [4, 24]
    assert together == [
        generate(lm, [prompt], max_new_tokens=NEW, temperature=1.0, seeds=[seed])[0]
        for seed, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_samples_have_the_models_distribution(temperature: float, top_p: float) -> None:
    lm, draws = tiny_lm(), 4000
    logits = lm.model(torch.tensor(PROMPTS[:1])).logits[0, -1].double()
    logits[lm.suppressed_ids] = -torch.inf
    expected = (logits / temperature).softmax(-1)
    likeliest_first = expected.argsort(descending=True).tolist()
    kept: list[int] = []
    while sum(expected[kept]) < top_p - 1e-9:
        kept.append(likeliest_first[len(kept)])
    nucleus = torch.zeros_like(expected)
    nucleus[kept] = expected[kept] / expected[kept].sum()

    sampled = generate(
        lm, PROMPTS[:1] * draws, max_new_tokens=1, temperature=temperature, top_p=top_p, seeds=range(draws)
    )
    counts = torch.bincount(torch.tensor([completion.ids[0] for completion in sampled]), minlength=len(WORDS)).double()
    assert not counts[nucleus == 0].any()
    # Five standard errors of each token's share.
    assert ((counts / draws - nucleus).abs() <= 5 * (nucleus * (1 - nucleus) / draws).sqrt() + 1e-12).all()


def test_suppressed_tokens_never_appear_even_if_they_are_likeliest() -> None:
    lm = tiny_lm(attention_bias=False)
    lm.model.generation_config.suppress_tokens = [40]
    lm.head.weight.data[[PAD, BEGIN, 40]] = 0
    bias = torch.zeros(len(WORDS))
    bias[[PAD, BEGIN, 40]] = 1e3
    lm.head.bias = torch.nn.Parameter(bias)
    for sampling in ({}, {"temperature": 1.0, "seeds": range(24)}):
        for completion in generate(lm, PROMPTS, max_new_tokens=NEW, **sampling):
            assert not {PAD, BEGIN, 40} & set(completion.ids)


def test_every_eos_token_ends_a_completion_and_is_no_text() -> None:
    endless, lm = tiny_lm(), tiny_lm()
    endless.model.generation_config.eos_token_id = END
    seen = set()
    for before, completion in zip(
        generate(endless, PROMPTS, max_new_tokens=NEW), generate(lm, PROMPTS, max_new_tokens=NEW), strict=True
    ):
        at = next((place for place, token in enumerate(before.ids) if token in ENDS), None)
        assert completion.ids == before.ids[: None if at is None else at + 1]
        assert completion.text == lm.decode(before.ids[:at])
        assert completion.truncated == (at is None)
        seen.add(completion.ids[-1])
    assert len(seen & set(ENDS)) > 1


def test_a_stop_string_ends_a_completion_and_is_cut_off() -> None:
    lm = tiny_lm()
    plain = generate(lm, PROMPTS, max_new_tokens=NEW)
    words = next(completion.text.split(" ") for completion in plain if len(completion.ids) > 6)
    stop = " ".join(words[3:5])  # spans two tokens
    stopped = generate(lm, PROMPTS, max_new_tokens=NEW, stops=["never", stop])
    assert any(stop in completion.text for completion in plain)
    for before, completion in zip(plain, stopped, strict=True):
        assert completion.text == before.text.partition(stop)[0]
        if stop in before.text:
            assert not completion.truncated
            assert len(completion.ids) < len(before.ids) or before.text.endswith(stop)
        else:
            assert completion == before


def test_of_several_stop_strings_the_one_that_begins_first_cuts() -> None:
    lm = tiny_lm()
    plain = generate(lm, PROMPTS, max_new_tokens=NEW)
    at, words = next(
        (row, completion.text.split(" "))
        for row, completion in enumerate(plain)
        if len(set(completion.ids[:5])) == 5 and len(completion.ids) > 6
    )
    # All are complete with the same word, or one is known to be only when the other is.
    for stops in ([words[4], " ".join(words[2:5]), " ".join(words[3:5])], [words[4], " ".join(words[:5])]):
        earliest = min(completion_start(plain[at].text, stop) for stop in stops)
        for ordered in (stops, stops[::-1]):
            stopped = generate(lm, PROMPTS[at : at + 1], max_new_tokens=NEW, stops=ordered)[0]
            assert stopped.text == plain[at].text[:earliest]
            assert stopped.ids == plain[at].ids[:5]
            assert not stopped.truncated


def completion_start(text: str, stop: str) -> int:
    """Where a stop string begins; it must be there."""
    return text.index(stop)


def test_a_stop_string_that_ends_in_a_line_end_stops_at_that_line_end() -> None:
    lm = tiny_lm()
    sampling = {"max_new_tokens": NEW, "temperature": 1.5}
    plain = generate(lm, PROMPTS, seeds=range(24), **sampling)
    line_end = WORDS.index("\n")
    row, place = next(
        (row, completion.ids.index(line_end))
        for row, completion in enumerate(plain)
        if line_end in completion.ids[1:-1] and completion.ids[0] != line_end
    )
    stop = f"{WORDS[plain[row].ids[place - 1]]} \n"
    (stopped,) = generate(lm, PROMPTS[row : row + 1], seeds=[row], stops=[stop], **sampling)
    assert stopped.ids == plain[row].ids[: place + 1]
    assert stopped.text == plain[row].text.partition(stop)[0]


def test_listeners_hear_how_many_tokens_were_read_and_written() -> None:
    lm = tiny_lm()
    heard: list[tuple[int, int, int]] = []
    lm.traffic.listeners.append(lambda *counts: heard.append(counts))
    completions = generate(lm, PROMPTS, max_new_tokens=NEW, max_rows=10)
    expected = [
        (sum(len(PROMPTS[i]) for i in batch), sum(len(completions[i].ids) for i in batch), len(batch))
        for batch in batch_by_length(PROMPTS, NEW, max_rows=10)
    ]
    assert heard == expected
    assert sum(written for _, written, _ in heard) < NEW * len(PROMPTS)


def test_a_stop_string_at_the_very_beginning_leaves_no_text() -> None:
    lm = tiny_lm()
    plain = generate(lm, PROMPTS[:1], max_new_tokens=4)[0]
    (stopped,) = generate(lm, PROMPTS[:1], max_new_tokens=4, stops=[plain.text.split(" ")[0]])
    assert (stopped.text, stopped.ids, stopped.truncated) == ("", plain.ids[:1], False)


def test_lengths_are_counted_and_the_order_is_that_of_the_prompts() -> None:
    completions = generate(tiny_lm(), PROMPTS, max_new_tokens=3)
    assert [completion.prompt_tokens for completion in completions] == [len(prompt) for prompt in PROMPTS]
    assert max(len(completion.ids) for completion in completions) == 3
    assert generate(tiny_lm(), [], max_new_tokens=3) == []


def test_an_adaptation_sees_its_rows_and_is_told_which_go_on() -> None:
    lm = tiny_lm()
    plain = generate(lm, PROMPTS, max_new_tokens=NEW)
    seen: list[list[int]] = []

    class Rows:
        def __init__(self, rows: list[int]) -> None:
            self.rows = rows

        def keep(self, rows: Tensor) -> None:
            self.rows = [self.rows[row] for row in rows.tolist()]

    @contextmanager
    def adapt(indices: list[int]) -> Iterator[Rows]:
        rows = Rows(indices)
        yield rows
        seen.append(indices)
        # Rows that wrote most stayed to the end.
        assert set(rows.rows) >= {index for index in indices if plain[index].truncated}
        assert len(rows.rows) < len(indices)

    assert generate(lm, PROMPTS, max_new_tokens=NEW, max_rows=10, adapt=adapt) == plain
    assert sorted(index for indices in seen for index in indices) == list(range(len(PROMPTS)))
    assert seen == batch_by_length(PROMPTS, NEW, max_rows=10)


def test_what_does_not_fit_the_window_is_refused() -> None:
    with pytest.raises(UserError, match="prompt 1: 120 tokens and 9 new ones do not fit"):
        generate(tiny_lm(), [[8], [8] * 120], max_new_tokens=9)


def test_sampling_without_a_seed_for_each_row_is_refused() -> None:
    with pytest.raises(ValueError, match="one seed a prompt: 2 prompts, 1 seeds"):
        generate(tiny_lm(), [[8], [9]], max_new_tokens=2, temperature=1.0, seeds=[1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_an_error_and_no_text(value: float, temperature: float) -> None:
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.model.norm.weight[3] = value
    with pytest.raises(UserError, match="its logits are NaN or infinite at step 1"):
        generate(lm, PROMPTS[:3], max_new_tokens=NEW, temperature=temperature, seeds=[0, 1, 2])


def test_one_impossible_token_is_no_error() -> None:
    lm = tiny_lm()
    bias = torch.nn.Parameter(torch.zeros(lm.head.weight.shape[0]))
    with torch.no_grad():
        bias[40] = -float("inf")
    lm.head.bias = bias
    assert all(40 not in each for each in ids(generate(lm, PROMPTS[:3], max_new_tokens=NEW)))
