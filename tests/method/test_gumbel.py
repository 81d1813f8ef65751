"""Straight-through Gumbel-Softmax: its noise, its hard value, its relaxed gradient, and the map of vocabularies."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from metatuner.errors import UserError
from metatuner.lm import LM, Completion, completion_loss, generate, render, render_rewrite
from metatuner.method import MetaTuner, MetaTunerConfig, objectives
from metatuner.method.data import Example, draw_seeds
from metatuner.method.gumbel import gumbel_noise, prompt_embedding, soft_embeddings
from metatuner.method.objectives import gumbel_loss, task_loss
from metatuner.method.prompt_decoder import write_prompts
from tests.toys.lm import CHAT, ENDS, WORDS, tiny_lm, word_tokenizer
from tests.toys.method import PROMPT_TOKENS, actor, examples, generator, in_precision, shake, tuner

D1 = examples()
PROMPTS, QUERIES = [row.prompt for row in D1], [row.query for row in D1]
SEED = 11
WITH_SPECIAL = 27
"""Under this seed one prompt holds a special token, and one is empty."""


def sampled(made: MetaTuner, seed: int = SEED) -> list[str]:
    """The prompts that `gumbel_loss` samples, as text."""
    seed = draw_seeds(seed, 2)[0]
    return write_prompts(
        made.generator, PROMPTS, QUERIES, max_prompt_tokens=made.max_prompt_tokens, temperature=1.0, seed=seed
    )


def built(generates: LM, answers: LM, **settings: Any) -> MetaTuner:
    made = MetaTuner(
        generates, answers, MetaTunerConfig(rank=3, bottleneck=8, **settings), max_prompt_tokens=PROMPT_TOKENS
    )
    shake(made)
    return made


def test_noise_given_the_choice_makes_that_choice_and_is_gumbel_noise() -> None:
    draws = 40_000
    logits = torch.tensor([1.5, 0.0, -1.0, 0.4, 3.0], dtype=torch.float64)
    stream = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(logits[:4].softmax(-1), draws, replacement=True, generator=stream)
    noise = gumbel_noise(logits.expand(draws, -1), chosen, [4], seed=1)
    assert torch.equal((logits + noise).argmax(-1), chosen)
    assert torch.all(noise[:, 4] == -torch.inf)
    # Over choices and noise together: independent standard Gumbel variables, whatever the logits.
    free = noise[:, :4]
    spread = math.pi / math.sqrt(6)
    error = spread / math.sqrt(draws)
    torch.testing.assert_close(free.mean(0), torch.full((4,), 0.577216, dtype=torch.float64), rtol=0, atol=5 * error)
    torch.testing.assert_close(free.std(0), torch.full((4,), spread, dtype=torch.float64), rtol=0.03, atol=0)
    assert torch.corrcoef(free.T).triu(1).abs().max() < 5 / math.sqrt(draws)
    for threshold in (-1.0, 0.5, 2.0):
        below = (free < threshold).double().mean(0)
        expected = torch.full_like(below, math.exp(-math.exp(-threshold)))
        torch.testing.assert_close(below, expected, rtol=0, atol=2.5 / math.sqrt(draws))


@pytest.mark.parametrize("chat", [CHAT, None, CHAT.replace("system", "unknown")])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_its_value_is_the_task_loss_under_the_sampled_prompts(chat: str | None, temperature: float) -> None:
    answers = in_precision(tiny_lm(seed=2, hidden_size=48, head_dim=12, chat=chat), torch.float64)
    made = built(generator(torch.float64), answers)
    prompts = sampled(made)
    assert len(set(prompts)) > 3
    expected = task_loss(made, D1, prompts)
    assert gumbel_loss(made, D1, temperature=temperature, seed=SEED).item() == pytest.approx(expected.item(), rel=1e-10)


def by_hand(made: MetaTuner, rows: list[Example], ids: list[list[int]], noise: torch.Tensor, temperature: float):
    """The relaxed loss a row at a time, each token's logits from a forward of what stands before it: and those logits.

    The actor reads embeddings; it has no LoRA.
    """
    table = made.actor.model.get_input_embeddings().weight  # both have the same words
    special = set(made.generator.tokenizer.all_special_ids)
    total, tokens, read, found = 0.0, 0, iter(noise), []
    for row, written in zip(rows, ids, strict=True):
        asked = render_rewrite(made.generator, row.prompt, row.query, reserve=PROMPT_TOKENS).ids
        soft = []
        for place, token in enumerate(written):
            if token in special:
                continue
            before = torch.tensor([asked + written[:place]])
            logits = made.generator.model(input_ids=before).logits[0, -1]
            found.append(logits)
            soft.append(((logits + next(read)) / temperature).softmax(-1) @ table)
        target = [*made.actor.encode(row.target), made.actor.end_of_turn]
        parts = made.actor.chat_text(
            [{"role": "system", "content": "w0"}, {"role": "user", "content": row.query}]
        ).partition("w0")
        head, tail = made.actor.encode(parts[0]), made.actor.encode(parts[2])
        embedded = torch.stack([*table[head], *soft, *table[tail + target]])
        logits = made.actor.model(inputs_embeds=embedded[None]).logits[0, len(embedded) - len(target) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
        tokens += len(target)
    return total / tokens, torch.stack(found)


@pytest.mark.parametrize("temperature", [0.6, 2.5])
def test_the_relaxed_loss_is_that_of_a_loop_over_rows_and_tokens(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    made = tuner(dtype=torch.float64, parameter_branch="none")
    rows = D1[:4]
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    written: list[list[list[int]]] = []

    def noted_noise(logits: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        drawn.append((logits, gumbel_noise(logits, *args, **named)))
        return drawn[-1][1]

    def noted_ids(*args: Any, **named: Any) -> list[Completion]:
        completions = generate(*args, **named)
        written.append([completion.ids for completion in completions])
        return completions

    monkeypatch.setattr(objectives, "gumbel_noise", noted_noise)
    monkeypatch.setattr(objectives, "generate", noted_ids)
    loss = gumbel_loss(made, rows, temperature=temperature, seed=WITH_SPECIAL, straight_through=False)
    ((logits, noise),), (ids,) = drawn, written
    prompts = [row[:-1] if row[-1] in made.generator.eos_ids else row for row in ids]
    # Prompts are of several lengths, and one has a special token inside, which the actor does not read.
    assert len({len(prompt) for prompt in prompts}) > 2
    special = set(made.generator.tokenizer.all_special_ids)
    assert any(special & set(prompt[:-1]) for prompt in prompts)
    assert [] in prompts
    expected, expected_logits = by_hand(made, rows, prompts, noise, temperature)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)


def test_the_seed_draws_the_prompts_and_the_noise() -> None:
    made = tuner(dtype=torch.float64)
    assert len({tuple(sampled(made, seed)) for seed in range(4)}) == 4
    values = [gumbel_loss(made, D1, temperature=0.5, seed=seed).item() for seed in (0, 0, 1, 2)]
    assert values[0] == values[1]
    assert len(set(values)) == 3
    # A generator that is all but certain writes the same under every seed: what differs is the noise.
    with torch.no_grad():
        made.generator.head.weight.mul_(1000)
    assert len({tuple(sampled(made, seed)) for seed in range(4)}) == 1
    relaxed = [
        gumbel_loss(made, D1, temperature=4000.0, seed=seed, straight_through=False).item() for seed in (0, 0, 1, 2)
    ]
    assert relaxed[0] == relaxed[1]
    assert len(set(relaxed)) == 3


def test_the_relaxation_tends_to_the_sampled_tokens_as_its_temperature_falls() -> None:
    made = tuner(dtype=torch.float64)
    hard = task_loss(made, D1, sampled(made)).item()
    distances = [
        abs(gumbel_loss(made, D1, temperature=temperature, seed=SEED, straight_through=False).item() - hard)
        for temperature in (1.0, 1e-5)
    ]
    assert distances[0] > 1e-2
    assert distances[1] < 1e-6


@pytest.mark.parametrize("what", ["full", "lora"])
@pytest.mark.parametrize("branch", ["query", "none"])
def test_its_gradient_reaches_both_parts_of_the_generator(what: str, branch: str) -> None:
    made = tuner(what=what, objective="gumbel", parameter_branch=branch)
    gumbel_loss(made, D1, temperature=0.5, seed=SEED).backward()
    for name, part in made.parameters.items():
        gradients = [parameter.grad for parameter in part if parameter.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.abs().max() > 0 for gradient in gradients) is (branch == "query" or name != "phi_q")
    assert all(parameter.grad is None for parameter in made.actor.model.parameters())
    assert all(parameter.grad is None for parameter in made.frozen_generator.model.parameters())
    assert not made.actor.model.get_input_embeddings()._forward_hooks


def test_the_relaxed_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuner(dtype=torch.float64)
    drawn: list[torch.Tensor] = []

    def kept(*args: Any, **named: Any) -> torch.Tensor:
        if not drawn:
            drawn.append(gumbel_noise(*args, **named))
        return drawn[0]

    monkeypatch.setattr(objectives, "gumbel_noise", kept)

    def loss() -> torch.Tensor:
        return gumbel_loss(made, D1[:3], temperature=0.7, seed=SEED, straight_through=False)

    loss().backward()
    step = 1e-5
    for part in ("phi_s", "phi_p"):
        for parameter in made.parameters[part][::5]:
            place = tuple(int(index) for index in (parameter.grad.abs() == parameter.grad.abs().max()).nonzero()[0])
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[place] += sign * step
                    values.append(loss().item())
                    parameter[place] -= sign * step
            difference = (values[0] - values[1]) / (2 * step)
            assert parameter.grad[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_the_straight_through_gradient_is_that_of_the_mean_embedding() -> None:
    stream = torch.Generator().manual_seed(0)
    logits, table = (torch.randn(6, size, generator=stream, dtype=torch.float64) for size in (9, 4))
    table, chosen = torch.randn(9, 4, generator=stream, dtype=torch.float64), torch.arange(6)
    logits.requires_grad_()
    noise = gumbel_noise(logits.detach(), chosen, seed=0)
    weights = torch.randn(6, 4, generator=stream, dtype=torch.float64)
    hard = soft_embeddings(logits, noise, chosen, table, 0.5)
    assert torch.equal(hard, table[chosen])
    (gradient,) = torch.autograd.grad((hard * weights).sum(), logits)
    # d soft_j / d logit_i = soft_j (delta_ij - soft_i) / temperature, in a loop.
    soft = ((logits.detach() + noise) / 0.5).softmax(-1)
    for row in range(6):
        value = table @ weights[row]
        for i in range(9):
            expected = sum(soft[row, j] * (float(i == j) - soft[row, i]) * value[j] for j in range(9)) / 0.5
            assert gradient[row, i].item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("chat", [CHAT, None])
def test_a_prompt_that_ends_at_once_is_the_empty_prompt(chat: str | None) -> None:
    ending = generator(torch.float64)
    ending.model.generation_config.eos_token_id = list(range(2, len(WORDS)))
    answers = in_precision(tiny_lm(seed=2, hidden_size=48, head_dim=12, chat=chat), torch.float64)
    made = built(ending, answers)
    loss = gumbel_loss(made, D1, temperature=0.5, seed=SEED)
    assert loss.item() == pytest.approx(task_loss(made, D1, [""] * len(D1)).item(), rel=1e-10)
    loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in made.parameters["phi_p"])
    assert any(parameter.grad.abs().max() > 0 for parameter in made.parameters["phi_q"])


def test_the_end_of_a_prompt_is_not_part_of_it() -> None:
    made = tuner(dtype=torch.float64)
    texts = sampled(made)
    lengths = [len(made.generator.encode(text)) for text in texts]
    assert min(lengths) < PROMPT_TOKENS
    seen: list[torch.Tensor] = []
    hook = made.actor.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    gumbel_loss(made, D1, temperature=0.5, seed=SEED)
    hook.remove()
    for row, text, query in zip(seen[0], texts, QUERIES, strict=True):
        asked = render(made.actor, text, query).ids
        slots = [place for place, token in enumerate(row[: len(asked)].tolist()) if token == made.actor.filler]
        assert [asked[place] for place in slots] == made.generator.encode(text)
    assert not any(set(made.generator.encode(text)[-1:]) & set(ENDS) for text in texts)


def test_a_prompt_that_leaves_no_room_cuts_the_query_as_rendering_does() -> None:
    answers = replace(actor(torch.float64), window=20)
    made = built(generator(torch.float64), answers)
    texts = sampled(made)
    pairs = [objectives.task_pair(answers, text, row) for text, row in zip(texts, D1, strict=True)]
    assert any(
        render(answers, text, row.query).ids != asked for text, row, (asked, _) in zip(texts, D1, pairs, strict=True)
    )
    expected = task_loss(made, D1, texts)
    assert gumbel_loss(made, D1, temperature=0.5, seed=SEED).item() == pytest.approx(expected.item(), rel=1e-10)


def respelled(lm: LM, words: list[str]) -> LM:
    """The model with a tokenizer of other words."""
    spec = json.loads(word_tokenizer().backend_tokenizer.to_str())
    spec["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<q>", "<a>"],
    )
    tokenizer.chat_template = CHAT
    return replace(lm, tokenizer=tokenizer)


def test_tokens_are_mapped_to_the_actors_by_name() -> None:
    turned = WORDS[:7] + WORDS[7:][::-1]
    answers = respelled(actor(torch.float64), turned)
    made = built(generator(torch.float64), answers)
    table, rows = prompt_embedding(made.generator, answers), answers.model.get_input_embeddings().weight
    assert all(torch.equal(table[token], rows[turned.index(word)]) for token, word in enumerate(WORDS))
    expected = task_loss(made, D1, sampled(made))
    assert gumbel_loss(made, D1, temperature=0.5, seed=SEED).item() == pytest.approx(expected.item(), rel=1e-10)


def test_a_token_that_the_actor_lacks_gets_the_mean_of_its_parts() -> None:
    writes = respelled(generator(), [*WORDS[:60], "w1 w2", "w3 w4 w5", *WORDS[62:]])
    answers = actor()
    table, rows = prompt_embedding(writes, answers), answers.model.get_input_embeddings().weight
    torch.testing.assert_close(table[60], rows[[8, 9]].mean(0))
    torch.testing.assert_close(table[61], rows[[10, 11, 12]].mean(0))
    assert torch.equal(table[62], rows[62])
    assert not table.requires_grad


def test_vocabularies_with_too_little_in_common_are_refused() -> None:
    other = respelled(actor(), [*WORDS[:20], *(f"v{number}" for number in range(len(WORDS) - 20))])
    with pytest.raises(UserError, match=r"only 20 of 64 are in both .*another objective"):
        gumbel_loss(built(generator(), other), D1, temperature=1.0, seed=0)


def test_embeddings_take_the_place_of_tokens_only_inside() -> None:
    lm = actor()
    batch = [([1, 8, 9], [10, 11]), ([1, 8, 9, 12], [13])]
    table = lm.model.get_input_embeddings().weight
    plain = completion_loss(lm, batch)
    with objectives.embedded(lm, [0, 1], [1, 2], table[[20, 30]]):
        replaced = completion_loss(lm, batch)
    torch.testing.assert_close(replaced, completion_loss(lm, [([1, 20, 9], [10, 11]), ([1, 8, 30, 12], [13])]))
    assert torch.equal(completion_loss(lm, batch), plain)
