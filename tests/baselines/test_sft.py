"""SFT: what it trains on, the loss it starts from, and that fits in one process do not know each other."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from baselines.sft import SFT, Settings, encode
from metatuner.errors import UserError
from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.budget import Budget
from metatuner.harness.lab import Lab
from metatuner.harness.method import make_settings
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.policy import load_policy
from metatuner.harness.query import to_query
from metatuner.lm import completion_ids, generate, render
from tests.toys.baselines import NEW_TOKENS, PAIR, SHORT, mixed_rows, sums, tiny_lm, toy_lab

ROWS = sums(12)


def make_lab(tmp_path: Path, **changes: Any) -> Lab:
    return toy_lab(tmp_path, **({"train": ROWS, "actor": tiny_lm()} | changes))


def weights(policy: StaticPolicy, folder: Path) -> str:
    policy.save(folder)
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("cut", [0, 4], ids=["whole queries", "queries cut to the window"])
def test_trains_on_the_ids_that_inference_reads_and_on_nothing_before_the_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    wide = make_lab(tmp_path).actor
    prompts = [render(wide, SHORT["gsm8k"], row.query).ids for row in ROWS]
    longest = max(map(len, prompts))
    lab, read = make_lab(tmp_path, actor=tiny_lm(window=longest + NEW_TOKENS - cut)), []

    def recorded(lm: Any, prompts: Any, **options: Any) -> Any:
        read.extend(list(ids) for ids in prompts)
        return generate(lm, prompts, **options)

    monkeypatch.setattr("metatuner.lm.generate", recorded)
    for row in ROWS:
        lab.answer([to_query(row)], lab.initial_prompt("gsm8k"))
    assert max(map(len, read)) == longest - cut
    for example, prompt, row in zip(encode(lab, ROWS), read, ROWS, strict=True):
        completion = completion_ids(lab.actor, row.target)
        assert example == (prompt, completion)


def cross_entropy_by_hand(lab: Lab) -> float:
    """Mean over all completion tokens, one row at a time in float64, without a batch, a mask or padding."""
    model = tiny_lm(dtype=torch.float64).model
    total, count = 0.0, 0
    for example in encode(lab, lab.train):
        prompt, completion = example
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        for place, token in enumerate(completion, len(prompt)):
            scores = logits[place - 1].tolist()
            total += math.log(math.fsum(math.exp(score) for score in scores)) - scores[token]
            count += 1
    return total / count


def test_first_loss_is_the_completion_only_cross_entropy(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = make_lab(tmp_path, events=events)
    SFT(Settings(epochs=1, batch_size=len(ROWS))).fit(lab)
    (loss,) = [event["loss"] for event in events if event["event"] == "epoch"]
    assert loss == pytest.approx(cross_entropy_by_hand(lab), abs=2e-5)


def test_loss_falls_and_the_base_model_stays(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    lab = make_lab(tmp_path, events=events)
    before = {name: value.clone() for name, value in lab.actor.model.state_dict().items()}
    policy = SFT(Settings(learning_rate=1e-2, epochs=6, batch_size=4)).fit(lab)
    losses = [event["loss"] for event in events if event["event"] == "epoch"]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.2
    tuned = policy.actor.model.get_base_model().state_dict()
    after = {name.replace(".base_layer", ""): value for name, value in tuned.items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_loss_that_is_not_finite_stops_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sft: loss nan and gradient norm nan at step \d of 18; lower learning_rate"):
        SFT(Settings(learning_rate=1e30, epochs=6, batch_size=4)).fit(make_lab(tmp_path))


def test_fits_in_one_process_are_the_same_bytes_whatever_ran_between(tmp_path: Path) -> None:
    settings = Settings(learning_rate=1e-2, epochs=2, batch_size=4, dropout=0.1)

    def fit(chosen: Settings, name: str, noise: int = 0, **changes: Any) -> str:
        lab = make_lab(tmp_path, **changes)
        torch.manual_seed(noise)
        return weights(SFT(chosen).fit(lab), tmp_path / name)

    first = fit(settings, "first")
    other = fit(Settings(epochs=1, rank=2, batch_size=8, gradient_checkpointing=True), "other", seed=7)
    # What is computed again in the backward pass has the dropout of the forward pass.
    again = fit(replace(settings, gradient_checkpointing=True), "recomputed")
    plain, recomputed = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("first", "recomputed")
    )
    assert again
    for name, values in plain.items():
        torch.testing.assert_close(recomputed[name], values, atol=1e-5, rtol=1e-4)
    assert fit(settings, "again", noise=99) == first
    assert fit(settings, "seed", seed=1) not in (first, other)


def test_a_saved_adapter_answers_as_the_fitted_one(tmp_path: Path) -> None:
    policy = SFT(Settings(learning_rate=5e-2, epochs=3, batch_size=4)).fit(make_lab(tmp_path))
    queries = [to_query(row) for row in ROWS]
    fitted = policy.respond(queries)
    plain = make_lab(tmp_path).answer(queries, policy.prompts["gsm8k"])
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", make_lab(tmp_path))
    assert loaded.respond(queries) == fitted
    assert [answer.completion for answer in fitted] != [answer.completion for answer in plain]
    assert "forward" not in vars(policy.actor.model.get_base_model())


def test_trained_on_two_benchmarks_each_row_is_read_under_its_own_prompt_and_limit(tmp_path: Path) -> None:
    rows, named = mixed_rows(8), {"gsm8k": "tom has apples", "math": "add them"}
    width = max(len(render(tiny_lm(), PAIR[row.benchmark].initial_prompt, row.query).ids) for row in rows)
    # A window in which the limits of both benchmarks cut queries, each at its own length.
    lab = make_lab(tmp_path, train=rows, benchmarks=PAIR, trained_on=("gsm8k", "math"), actor=tiny_lm(window=width))
    for prompts in (None, named):
        for row, told in zip(rows, encode(lab, [replace(row, target="5") for row in rows], prompts), strict=True):
            benchmark = PAIR[row.benchmark]
            asked = named[row.benchmark] if prompts else benchmark.initial_prompt
            read = render(lab.actor, asked, row.query, reserve=benchmark.max_new_tokens).ids
            assert told == (read, completion_ids(lab.actor, "5"))
    policy = SFT(Settings(epochs=1, prompts={"math": "add them"})).fit(lab)
    assert policy.prompts == {"gsm8k": PAIR["gsm8k"].initial_prompt, "math": "add them"}


def test_a_row_that_just_fits_the_window_is_kept(tmp_path: Path) -> None:
    wide = tiny_lm()
    row = ROWS[0]
    whole = len(render(wide, SHORT["gsm8k"], row.query).ids) + len(completion_ids(wide, row.target))
    short = {"gsm8k": get_benchmark("gsm8k").with_overrides(initial_prompt=SHORT["gsm8k"], max_new_tokens=1)}
    for window, kept in ((whole, 1), (whole - 1, 0)):
        lab = make_lab(tmp_path, benchmarks=short, actor=tiny_lm(window=window))
        assert len(encode(lab, [row])) == kept


def test_it_trains_and_answers_under_the_prompt_it_is_given(tmp_path: Path) -> None:
    settings = Settings(epochs=3, prompts={"gsm8k": "tom has apples", "math": "unused"})
    policy = SFT(settings).fit(make_lab(tmp_path))
    assert policy.prompts == {"gsm8k": "tom has apples"}
    (asked,) = policy.respond([to_query(ROWS[0])])
    assert asked.prompt == "tom has apples"
    trained = encode(make_lab(tmp_path), ROWS, policy.prompts)[0]
    assert trained != encode(make_lab(tmp_path), ROWS)[0]
    # The trained weights depend on it: the very same training under p~ gives others.
    policy.save(tmp_path / "told")
    SFT(Settings(epochs=3)).fit(make_lab(tmp_path)).save(tmp_path / "initial")
    told, initial = (next((tmp_path / name).rglob("*.safetensors")).read_bytes() for name in ("told", "initial"))
    assert told != initial
    with pytest.raises(UserError, match="unknown benchmark 'gsm8'; did you mean gsm8k"):
        make_settings(SFT, {"prompts": {"gsm8": "x"}}, "methods.sft.settings")


def test_rows_that_do_not_fit_the_window_are_left_out_and_counted(tmp_path: Path) -> None:
    longest = max(len(read) + len(written) for read, written in encode(make_lab(tmp_path), ROWS))
    shown = [row for row in ROWS if "today" not in row.query]
    long = [ROWS[0].__class__(**{**vars(row), "target": row.target * 30}) for row in shown]
    events: list[dict[str, Any]] = []
    lab = make_lab(tmp_path, train=[*ROWS, *long], actor=tiny_lm(window=longest + NEW_TOKENS), events=events)
    SFT(Settings(epochs=1)).fit(lab)
    assert events[0] == {"event": "rows", "used": len(ROWS), "dropped": len(long)}
    assert len(long) > 0
    with pytest.raises(UserError, match="window"):
        SFT().fit(make_lab(tmp_path, train=long, actor=tiny_lm(window=longest + NEW_TOKENS)))


def test_the_meter_sees_every_trained_token_once(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, budget=Budget())
    lab.budget.attach(lab.actor)
    SFT(Settings(epochs=2, batch_size=4)).fit(lab)
    lab.budget.detach()
    assert lab.budget.used.trained_tokens == 2 * sum(
        len(read) + len(written) - 1 for read, written in encode(lab, ROWS)
    )
    assert lab.budget.used.lm_calls == 0
