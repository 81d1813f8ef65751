"""Which layers the branches share, at which depth h_i is read, and tuners without one of the branches."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from metatuner.lm import PerQueryLoRA, completion_loss, generate, render
from metatuner.lm.adapters import merged
from metatuner.method import MetaTuner, MetaTunerConfig
from metatuner.method.objectives import joint_loss, prompt_loss, task_loss, task_pair
from metatuner.method.parameter_decoder import LayerSharedDecoder, StaticFactors
from metatuner.method.tuned import lora_parameters, trainable
from tests.toys.method import INITIAL, PROMPT_TOKENS, actor, examples, rewrites, shake, tuner, with_lora

D1, D2 = examples(), rewrites()
PROMPTS, QUERIES = [row.prompt for row in D1], [row.query for row in D1]
WRITTEN = [" ".join(f"w{i + j}" for j in range(1 + i % 3)) for i in range(len(D1))]


def ids(parameters: Any) -> set[int]:
    return {id(parameter) for parameter in parameters}


def step(made: MetaTuner, loss: torch.Tensor) -> None:
    """One of plain gradient descent on whatever has a gradient."""
    parameters = [parameter for part in made.parameters.values() for parameter in part]
    loss.backward()
    torch.optim.SGD(parameters, lr=0.3).step()
    for parameter in parameters:
        parameter.grad = None


@pytest.mark.parametrize("what", ["full", "lora"])
def test_with_every_layer_shared_a_step_on_one_branch_moves_the_other(what: str) -> None:
    made = tuner(shared_layers=1.0, what=what)
    own = made.generator.model.get_decoder()
    assert ids(made.meta_encoder.parameters()) == ids(p for n, p in own.named_parameters() if n != "norm.weight")
    assert made.private == {}
    likelihood = prompt_loss(made.generator, D2, PROMPT_TOKENS)
    step(made, task_loss(made, D1, WRITTEN))
    assert not torch.equal(likelihood, prompt_loss(made.generator, D2, PROMPT_TOKENS))
    h = made.encode(PROMPTS, QUERIES)
    step(made, prompt_loss(made.generator, D2, PROMPT_TOKENS))
    assert not torch.equal(h, made.encode(PROMPTS, QUERIES))


@pytest.mark.parametrize("what", ["full", "lora"])
@pytest.mark.parametrize("depth", [None, 4])
def test_with_no_layer_shared_a_step_on_one_branch_leaves_the_other_as_it_is(what: str, depth: int | None) -> None:
    made = tuner(shared_layers=0, encoder_layers=depth, what=what, shaken=False)
    phi = made.parameters
    assert phi["phi_s"] == []
    assert ids(phi["phi_p"]) == ids(trainable(made.generator).values())
    layers = [made.generator.model.get_decoder(), made.meta_encoder]
    mine, copied = ({n: p for n, p in part.named_parameters() if p.requires_grad} for part in layers)
    assert len(made.meta_encoder.layers) == (depth or 2)
    assert all(torch.equal(copied[name], mine[name]) and copied[name] is not mine[name] for name in copied)
    assert ids(copied.values()) == ids(phi["private"])
    assert ids(phi["phi_q"]) == ids(made.parameter_decoder.parameters())
    if what == "full":
        assert "embed_tokens.weight" in copied

    shake(made)
    h, likelihood = made.encode(PROMPTS, QUERIES), prompt_loss(made.generator, D2, PROMPT_TOKENS)
    step(made, task_loss(made, D1, WRITTEN))
    assert torch.equal(likelihood, prompt_loss(made.generator, D2, PROMPT_TOKENS))
    assert not torch.equal(h, made.encode(PROMPTS, QUERIES))
    h = made.encode(PROMPTS, QUERIES)
    step(made, prompt_loss(made.generator, D2, PROMPT_TOKENS))
    assert torch.equal(h, made.encode(PROMPTS, QUERIES))
    assert not torch.equal(likelihood, prompt_loss(made.generator, D2, PROMPT_TOKENS))


@pytest.mark.parametrize("what", ["full", "lora"])
def test_layers_above_the_shared_ones_are_copies_of_the_parameter_branch(what: str) -> None:
    made = tuner(shared_layers=1, encoder_layers=3, what=what)
    own, encoder = made.generator.model.get_decoder(), made.meta_encoder
    assert encoder.layers[0] is own.layers[0]
    assert encoder.embed_tokens is own.embed_tokens
    assert ids(made.parameters["phi_s"]) == ids(
        p for part in (own.embed_tokens, own.layers[0]) for p in part.parameters() if p.requires_grad
    )
    copies = ids(p for layer in encoder.layers[1:] for p in layer.parameters() if p.requires_grad)
    assert copies == ids(made.private.values())
    assert not copies & ids(made.generator.model.parameters())
    loss = joint_loss(made, D1, WRITTEN, D2).total
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in made.private.values())
    frozen = {n: p for n, p in encoder.layers[1].named_parameters() if not p.requires_grad}
    originals = dict(own.layers[1].named_parameters())
    assert all(parameter.data_ptr() == originals[name].data_ptr() for name, parameter in frozen.items())


@pytest.mark.parametrize(("k", "depth"), [(0, 3), (2, 3), (3, 3), (4, 3)])
def test_before_training_h_does_not_depend_on_what_is_shared(k: int, depth: int) -> None:
    made = tuner(shaken=False, shared_layers=k, encoder_layers=depth)
    torch.testing.assert_close(
        made.encode(PROMPTS, QUERIES), tuner(shaken=False, shared_layers=3).encode(PROMPTS, QUERIES), rtol=0, atol=0
    )


def test_the_gradient_of_a_private_copy_is_what_a_shared_layer_gets_from_the_task_loss() -> None:
    shared, apart = (tuner(dtype=torch.float64, shaken=False, shared_layers=k, encoder_layers=2) for k in (2, 0))
    shake(shared)
    apart.parameter_decoder.load_state_dict(shared.parameter_decoder.state_dict())
    with torch.no_grad():
        for name, parameter in shared.meta_encoder.named_parameters():
            apart.private[name].copy_(parameter)
    for made in (shared, apart):
        task_loss(made, D1, WRITTEN).backward()
    gradients = {name: parameter.grad for name, parameter in shared.meta_encoder.named_parameters()}
    assert gradients.keys() == apart.private.keys()
    for name, parameter in apart.private.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in apart.generator.model.parameters())


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(("k", "depth"), [(2, None), (4, None), (4, 2)])
def test_writing_reads_the_same_h_as_encoding(k: int, depth: int | None, pooling: str) -> None:
    made = tuner(shared_layers=k, encoder_layers=depth, pooling=pooling)
    prompts, queries = [*PROMPTS, INITIAL], [*QUERIES, QUERIES[0]]
    written, h = made.write_and_encode(prompts, queries)
    assert written == made.write_prompts(prompts, queries)
    torch.testing.assert_close(h, made.encode(prompts, queries), rtol=1e-6, atol=1e-6)
    assert not made.generator.model.get_decoder().layers[k - 1]._forward_hooks


@pytest.mark.parametrize("k", [0, 2, 4])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_answers_are_those_of_prompts_and_factors_made_apart(k: int, pooling: str) -> None:
    made = tuner(shared_layers=k, pooling=pooling)
    written = made.write_prompts(PROMPTS, QUERIES)
    inputs = [render(made.actor, p, q, reserve=8).ids for p, q in zip(written, QUERIES, strict=True)]
    apart = generate(made.actor, inputs, max_new_tokens=8, adapt=made.adapt(PROMPTS, QUERIES))
    assert made.answer(PROMPTS, QUERIES, max_new_tokens=8) == apart
    answers = made.generate(QUERIES, max_new_tokens=8)
    assert [answer.prompt for answer in answers] == written
    assert [answer.completion for answer in answers] == [completion.text for completion in apart]


@pytest.mark.parametrize("branch", ["query", "static"])
@pytest.mark.parametrize("k", [0, 2])
def test_without_the_prompt_branch_the_actor_reads_the_initial_prompt(branch: str, k: int) -> None:
    made = tuner(prompt_branch=False, parameter_branch=branch, shared_layers=k)
    assert made.write_prompts(PROMPTS, QUERIES, temperature=1.0, frozen=True) == PROMPTS
    assert {answer.prompt for answer in made.generate(QUERIES, max_new_tokens=4)} == {INITIAL}
    phi = made.parameters
    assert phi["phi_p"] == []
    trained = ids(trainable(made.generator).values())
    assert trained == ids(phi["phi_s"])
    assert bool(trained) is (branch == "query" and k > 0)
    if branch == "query":
        task_loss(made, D1, PROMPTS).backward()
        moved = phi["phi_s"] + list(made.private.values())
        assert moved
        assert all(parameter.grad.abs().max() > 0 for parameter in moved)


def test_without_the_parameter_branch_the_actor_is_the_one_given() -> None:
    made = tuner(parameter_branch="none")
    assert made.parameters["phi_q"] == []
    assert made.factors(PROMPTS, QUERIES) is None
    pairs = [task_pair(made.actor, prompt, row) for prompt, row in zip(WRITTEN, D1, strict=True)]
    assert torch.equal(task_loss(made, D1, WRITTEN), completion_loss(made.actor, pairs))
    prompts = [asked for asked, _ in pairs]
    assert generate(made.actor, prompts, max_new_tokens=6, adapt=made.adapt(PROMPTS, QUERIES)) == generate(
        made.actor, prompts, max_new_tokens=6
    )
    with pytest.raises(ValueError, match="parameter_branch none has no meta encoder"):
        made.encode(PROMPTS, QUERIES)


def test_a_static_lora_is_one_lora_in_the_weights() -> None:
    made = tuner(dtype=torch.float64, parameter_branch="static", scale=1.5)
    (flat,) = made.parameters["phi_q"]
    loss = task_loss(made, D1, WRITTEN)
    (gradient,) = torch.autograd.grad(loss, flat)

    factors = made.lora.export_factors(flat)
    weights = {}
    for site in made.lora.sites:
        a, b = (factors[f"base_model.model.{site.name}.lora_{side}.weight"] for side in "AB")
        weights[f"{site.name}.weight"] = made.actor.model.get_submodule(site.name).weight + 1.5 * b @ a
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for prompt, row in zip(WRITTEN, D1, strict=True):
        asked, target = task_pair(made.actor, prompt, row)
        call = {"input_ids": torch.tensor([asked + target])}
        logits = torch.func.functional_call(made.actor.model, weights, kwargs=call).logits[0, len(asked) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum")
        tokens += len(target)
    torch.testing.assert_close(loss, total / tokens, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(total / tokens, flat)[0], rtol=1e-8, atol=1e-11)
    assert made.factors(PROMPTS, QUERIES).stride(0) == 0
    together = made.answer(PROMPTS, QUERIES, max_new_tokens=8)
    assert together == [made.answer([p], [q], max_new_tokens=8)[0] for p, q in zip(PROMPTS, QUERIES, strict=True)]


def test_a_static_lora_starts_as_a_plain_one() -> None:
    lora = PerQueryLoRA(actor().model, "all-linear", rank=8, scale=1.0)
    flat = StaticFactors(lora.sites, seed=0)(3).detach()
    assert flat.shape == (3, lora.flat_size)
    for site in lora.sites:
        assert torch.all(flat[:, site.b] == 0)
        assert flat[0, site.a].var().item() == pytest.approx(1 / (3 * site.d_in), rel=0.35)


def test_the_actors_own_lora_is_trained_where_asked() -> None:
    given = with_lora(actor())
    before = {name: parameter.clone() for name, parameter in given.model.named_parameters()}
    made = tuner(actor="lora", warmed=True)
    assert ids(made.parameters["actor"]) == ids(trainable(made.actor).values())
    frozen = tuner(warmed=True)
    assert "actor" not in frozen.parameters
    torch.testing.assert_close(task_loss(made, D1, WRITTEN), task_loss(frozen, D1, WRITTEN), rtol=1e-5, atol=1e-5)
    made = MetaTuner(made.generator, given, made.config, max_prompt_tokens=PROMPT_TOKENS)
    step(made, task_loss(made, D1, WRITTEN))
    moved = lora_parameters(made.actor)
    assert all(not torch.equal(moved[name], before[name]) for name in moved)
    assert all(torch.equal(parameter, before[name]) for name, parameter in given.model.named_parameters())


def test_a_warmed_actor_is_run_merged() -> None:
    given = with_lora(actor())
    made = MetaTuner(tuner().generator, given, MetaTunerConfig(rank=3, bottleneck=8))
    expected = merged(given).model.state_dict()
    got = made.actor.model.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("o_proj",), ("k_proj", "down_proj"), "all-linear"])
def test_the_layer_shared_decoder_is_its_formula(targets: Any) -> None:
    rank, bottleneck, width = 3, 5, 10
    lora = PerQueryLoRA(actor(torch.float64).model, targets, rank=rank, scale=1.0)
    decoder = LayerSharedDecoder(width, lora.sites, rank, bottleneck, seed=0, dtype=torch.float64)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    h = torch.randn(2, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    emitted = decoder(h).detach()
    assert emitted.shape == (2, lora.flat_size)

    # W_d and W_u lie in the order in which the first layer's sites name their kinds, A before B.
    kinds: list[tuple[str, str]] = []
    for site in lora.sites:
        _, _, _, place = site.name.split(".", 3)
        kinds += [(place, side) for side in "AB" if (place, side) not in kinds]
    for site in lora.sites:
        _, _, layer, place = site.name.split(".", 3)
        for side, d in (("A", site.d_in), ("B", site.d_out)):
            number = kinds.index((place, side))
            w_down, w_up = decoder.down[number].detach(), decoder.up[number].detach()
            e = decoder.layers[int(layer)].detach()
            for query in range(2):
                inner = [
                    max(0.0, sum(float(w_down[u, i] * (h[query, i] + e[i])) for i in range(width)))
                    for u in range(rank * bottleneck)
                ]
                expected = torch.tensor(
                    [
                        [
                            sum(inner[r * bottleneck + m] * float(w_up[m, j]) for m in range(bottleneck))
                            for j in range(d)
                        ]
                        for r in range(rank)
                    ],
                    dtype=torch.float64,
                )
                got = lora.export_factors(emitted[query])[f"base_model.model.{site.name}.lora_{side}.weight"]
                torch.testing.assert_close(got.T if side == "B" else got, expected, rtol=1e-11, atol=1e-11)

    first = [site for site in lora.sites if ".layers.0." in site.name]
    formula = 2 * width + sum(2 * rank * bottleneck * width + bottleneck * (site.d_in + site.d_out) for site in first)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == formula


def test_the_layer_shared_decoder_starts_at_no_change_with_factors_of_a_plain_lora() -> None:
    lora = PerQueryLoRA(actor().model, "all-linear", rank=8, scale=1.0)
    decoder = LayerSharedDecoder(256, lora.sites, 8, bottleneck=64, seed=0)
    h = torch.randn(64, 256, generator=torch.Generator().manual_seed(9))
    emitted = decoder(torch.nn.functional.rms_norm(h, (256,))).detach()
    for site in lora.sites:
        assert torch.all(emitted[:, site.b] == 0)
        assert emitted[:, site.a].square().mean().item() == pytest.approx(1 / (3 * site.d_in), rel=0.35)
    for one, other in pairwise(site for site in lora.sites if site.name.endswith("q_proj")):
        assert not torch.allclose(emitted[:, one.a], emitted[:, other.a], atol=1e-2)


def test_a_tuner_with_the_layer_shared_decoder_trains_and_answers() -> None:
    made = tuner(decoder="layer_shared", shaken=False)
    plain = made.answer(PROMPTS, QUERIES, max_new_tokens=6)
    loss = task_loss(made, D1, WRITTEN)
    for _ in range(2):
        step(made, task_loss(made, D1, WRITTEN))
    assert task_loss(made, D1, WRITTEN) < loss
    layers = made.parameter_decoder.layers
    task_loss(made, D1, WRITTEN).backward()
    assert layers.grad.abs().max() > 0
    assert made.answer(PROMPTS, QUERIES, max_new_tokens=6) != plain
