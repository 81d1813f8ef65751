"""The model: what is shared, what the parameter decoder computes, and that batching changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metatuner import method
from metatuner.errors import UserError
from metatuner.lm import PerQueryLoRA, generate, render, render_rewrite
from metatuner.lm.adapters import frozen_view, merged
from metatuner.method import MetaTuner, MetaTunerConfig, ParameterDecoder, WarmUpConfig, train_joint
from metatuner.method.objectives import joint_loss, prompt_loss, task_loss
from metatuner.method.tuned import to_train, trainable
from tests.toys.method import INITIAL, PROMPT_TOKENS, actor, examples, generator, rewrites, tuner

D1, D2 = examples(), rewrites()
PROMPTS, QUERIES = [row.prompt for row in D1], [row.query for row in D1]
WRITTEN = [" ".join(f"w{i + j}" for j in range(1 + i % 3)) for i in range(len(D1))]


def gradients(made: MetaTuner) -> dict[str, list[torch.Tensor | None]]:
    """Gradients by part of phi, and forget them."""
    taken = {name: [p.grad for p in parameters] for name, parameters in made.parameters.items()}
    for parameters in made.parameters.values():
        for parameter in parameters:
            parameter.grad = None
    return taken


def some(grads: list[torch.Tensor | None]) -> bool:
    return any(grad is not None and bool(grad.abs().max() > 0) for grad in grads)


def test_the_parameter_decoder_is_the_papers_formula() -> None:
    lora = PerQueryLoRA(actor(torch.float64).model, ("q_proj", "v_proj", "down_proj"), rank=3, scale=1.0)
    decoder = ParameterDecoder(10, lora.sites, 3, bottleneck=5, seed=0, dtype=torch.float64)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    h = torch.randn(4, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    emitted = decoder(h).detach()
    assert emitted.shape == (4, lora.flat_size)

    # Weights lie in the order of width, A before B, place.
    factors = [(s.d_in, False, s.a.start, s) for s in lora.sites] + [(s.d_out, True, s.b.start, s) for s in lora.sites]
    rank_in_width: dict[int, int] = {}
    for number, (width, is_b, _, site) in enumerate(sorted(factors, key=lambda factor: factor[:3])):
        index = rank_in_width[width] = rank_in_width.get(width, -1) + 1
        w_down, w_up = decoder.down[number].detach(), decoder.up[str(width)][index].detach()
        for query in range(4):
            inner = [max(0.0, sum(float(w_down[b, i] * h[query, i]) for i in range(10))) for b in range(5)]
            theta = [sum(inner[b] * float(w_up[b, j]) for b in range(5)) for j in range(3 * width)]
            expected = torch.tensor(theta, dtype=torch.float64).view(3, width)
            exported = lora.export_factors(emitted[query])
            prefix = f"base_model.model.{site.name}"
            got = exported[f"{prefix}.lora_B.weight"].T if is_b else exported[f"{prefix}.lora_A.weight"]
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_factors_start_at_the_scale_of_a_plain_lora_and_b_factors_at_zero() -> None:
    lora = PerQueryLoRA(actor().model, "all-linear", rank=8, scale=1.0)
    decoder = ParameterDecoder(256, lora.sites, 8, bottleneck=64, seed=0)
    h = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    emitted = decoder(torch.nn.functional.rms_norm(h, (256,))).detach()
    for site in lora.sites:
        assert torch.all(emitted[:, site.b] == 0)
        assert emitted[:, site.a].var().item() == pytest.approx(1 / (3 * site.d_in), rel=0.25)


@pytest.mark.parametrize(
    "settings", [{}, {"decoder": "layer_shared"}, {"parameter_branch": "static"}, {"shared_layers": 0}], ids=str
)
def test_the_seed_draws_the_first_factors(settings: dict[str, Any]) -> None:
    first = [
        MetaTuner(
            generator(),
            actor(),
            MetaTunerConfig(rank=3, bottleneck=8, **settings),
            max_prompt_tokens=PROMPT_TOKENS,
            seed=seed,
        )
        for seed in (0, 0, 1, 2)
    ]
    flat = [made.factors(PROMPTS, QUERIES).detach() for made in first]
    assert torch.equal(flat[0], flat[1])
    for site in first[0].lora.sites:
        for one, other in ((0, 2), (0, 3), (2, 3)):
            assert (flat[one][:, site.a] - flat[other][:, site.a]).abs().max() > 0.1 * flat[one][:, site.a].std()


def test_a_new_lora_is_drawn_by_its_seed_and_leaves_the_global_stream_as_it_was() -> None:
    base = actor()
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    drawn = [trainable(to_train(base, "lora", rank=2, seed=seed)) for seed in (5, 5, 6)]
    assert torch.equal(torch.rand(3), expected)
    for name, first in drawn[0].items():
        assert torch.equal(first, drawn[1][name])
        assert torch.equal(first, drawn[2][name]) is ("lora_B" in name)


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_h_is_the_pooled_kth_hidden_state_of_the_generator(k: int, pooling: str) -> None:
    made = tuner(dtype=torch.float64, shared_layers=k, pooling=pooling)
    got = made.encode(PROMPTS, QUERIES)
    for row, query in enumerate(QUERIES):
        ids = torch.tensor([render_rewrite(made.generator, INITIAL, query, reserve=PROMPT_TOKENS).ids])
        layer = made.generator.model.get_decoder().layers[k - 1]
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        made.generator.model(input_ids=ids)
        hook.remove()
        states = seen[0][0]
        pooled = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(got[row], pooled / pooled.square().mean().sqrt(), rtol=1e-9, atol=1e-9)


def test_the_meta_encoder_is_the_generators_own_first_layers() -> None:
    made = tuner(shared_layers=3)
    own = made.generator.model.get_decoder()
    named = dict(made.meta_encoder.named_parameters())
    expected = {
        n: p for n, p in own.named_parameters() if n.startswith(("embed_tokens", "layers.0", "layers.1", "layers.2"))
    }
    assert named.keys() == expected.keys()
    assert all(named[name] is expected[name] for name in named)
    assert len(own.layers) == 4
    phi = made.parameters
    assert {id(p) for p in phi["phi_s"]} == {id(p) for p in named.values()}
    assert {id(p) for p in phi["phi_p"]} == {
        id(p) for n, p in own.named_parameters() if n.startswith(("layers.3", "norm"))
    } | ({id(made.generator.model.lm_head.weight)} - {id(p) for p in named.values()})


@pytest.mark.parametrize("what", ["full", "lora"])
def test_gradients_reach_the_parts_that_the_paper_names(what: str) -> None:
    made = tuner(what=what)
    task_loss(made, D1, WRITTEN).backward()
    grads = gradients(made)
    assert some(grads["phi_s"])
    assert some(grads["phi_q"])
    assert not some(grads["phi_p"])
    prompt_loss(made.generator, D2, PROMPT_TOKENS).backward()
    grads = gradients(made)
    assert some(grads["phi_s"])
    assert some(grads["phi_p"])
    assert not some(grads["phi_q"])
    assert all(parameter.grad is None for parameter in made.actor.model.parameters())


def test_the_joint_gradient_is_the_sum_of_its_terms() -> None:
    made = tuner(dtype=torch.float64, alpha=0.7)
    loss = joint_loss(made, D1, WRITTEN, D2)
    loss.total.backward()
    both = gradients(made)
    task_loss(made, D1, WRITTEN).backward()
    task = gradients(made)
    prompt_loss(made.generator, D2, PROMPT_TOKENS).backward()
    prompt = gradients(made)
    assert loss.total.item() == pytest.approx(loss.task.item() + 0.7 * loss.prompt.item(), rel=1e-12)
    for part in both:
        for total, first, second in zip(both[part], task[part], prompt[part], strict=True):
            expected = (0 if first is None else first) + (0 if second is None else 0.7 * second)
            torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_a_batch_equals_a_loop_over_queries_with_materialised_weights(targets: Any) -> None:
    made = tuner(dtype=torch.float64, target_modules=targets, pooling="mean", scale=1.5)
    batched = task_loss(made, D1, WRITTEN)
    batched.backward()
    batch_grads = gradients(made)

    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row, prompt in zip(D1, WRITTEN, strict=True):
        factors = made.lora.export_factors(made.factors([row.prompt], [row.query])[0])
        weights = {}
        for site in made.lora.sites:
            a, b = (factors[f"base_model.model.{site.name}.lora_{side}.weight"] for side in "AB")
            weights[f"{site.name}.weight"] = made.actor.model.get_submodule(site.name).weight + 1.5 * b @ a
        asked = render(made.actor, prompt, row.query).ids
        target = [*made.actor.encode(row.target), made.actor.end_of_turn]
        ids = torch.tensor([asked + target])
        logits = torch.func.functional_call(made.actor.model, weights, kwargs={"input_ids": ids}).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[len(asked) - 1 : -1], torch.tensor(target), reduction="sum")
        total, tokens = total + loss, tokens + len(target)
    (total / tokens).backward()
    assert batched.item() == pytest.approx(total.item() / tokens, rel=1e-10)
    loop_grads = gradients(made)
    for part in ("phi_s", "phi_q"):
        for one, other in zip(batch_grads[part], loop_grads[part], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_at_step_0_the_actor_answers_as_without_the_parameter_branch() -> None:
    made = tuner(shaken=False)
    written = made.write_prompts(PROMPTS, QUERIES)
    inputs = [render(made.actor, prompt, query, reserve=8).ids for prompt, query in zip(written, QUERIES, strict=True)]
    plain = generate(made.actor, inputs, max_new_tokens=8)
    assert made.answer(PROMPTS, QUERIES, max_new_tokens=8) == plain
    shaken = tuner()
    assert shaken.answer(PROMPTS, QUERIES, max_new_tokens=8) != plain


def test_answers_do_not_depend_on_the_other_queries() -> None:
    made = tuner()
    together = made.answer(PROMPTS, QUERIES, max_new_tokens=8)
    alone = [made.answer([p], [q], max_new_tokens=8)[0] for p, q in zip(PROMPTS, QUERIES, strict=True)]
    assert together == alone


@pytest.mark.parametrize("what", ["full", "lora"])
def test_the_frozen_copy_keeps_its_prompt_decoder_and_follows_the_shared_layers(what: str) -> None:
    made = tuner(what=what)
    copied = dict(made.frozen_generator.model.named_parameters())
    joint_loss(made, D1, WRITTEN, D2).total.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in copied.values())
    before = {name: parameter.clone() for name, parameter in copied.items()}
    torch.optim.SGD([p for part in made.parameters.values() for p in part], lr=0.1).step()
    live = dict(made.generator.model.named_parameters())
    for name, parameter in trainable(made.generator).items():
        assert torch.equal(copied[name], before[name] if name in made.upper else parameter), name
    assert any(not torch.equal(live[name], copied[name]) for name in made.upper)
    made.sync()
    assert all(torch.equal(live[name], copied[name]) for name in live)


def test_the_frozen_copy_writes_prompts_as_at_the_last_sync() -> None:
    made = tuner()
    before = made.write_prompts(PROMPTS, QUERIES)
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters["phi_p"]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=stream)
    live = made.write_prompts(PROMPTS, QUERIES)
    assert live != before
    assert made.write_prompts(PROMPTS, QUERIES, frozen=True) == before
    made.sync()
    assert made.write_prompts(PROMPTS, QUERIES, frozen=True) == live


def test_save_and_load_give_the_same_answers(tmp_path: Path) -> None:
    first = tuner()
    first.save(tmp_path)
    second = tuner(shaken=False)
    assert second.answer(PROMPTS, QUERIES, max_new_tokens=8) != first.answer(PROMPTS, QUERIES, max_new_tokens=8)
    second.load(tmp_path)
    assert second.answer(PROMPTS, QUERIES, max_new_tokens=8) == first.answer(PROMPTS, QUERIES, max_new_tokens=8)
    assert second.write_prompts(PROMPTS, QUERIES, frozen=True) == first.write_prompts(PROMPTS, QUERIES)
    with pytest.raises(UserError, match=r"parameter_decoder\.safetensors: .*shape"):
        tuner(rank=2).load(tmp_path)
    with pytest.raises(UserError, match=r"generator\.safetensors: .*do not belong to this model"):
        tuner(what="lora").load(tmp_path)


def test_training_a_private_version_leaves_the_base_model_as_it_was() -> None:
    for what in ("full", "lora"):
        base = generator()
        before = {name: value.clone() for name, value in base.model.state_dict().items()}
        private = to_train(base, what, rank=2, seed=0)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in trainable(private).values():
                parameter += 1
        after = base.model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_merged_lora_is_the_lora() -> None:
    base = actor(torch.float64)
    private = to_train(base, "lora", rank=2, seed=0)
    with torch.no_grad():
        for parameter in trainable(private).values():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[8, 9, 10, 11]])
    one = merged(private)
    torch.testing.assert_close(
        one.model(input_ids=ids).logits, private.model(input_ids=ids).logits, rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(one.model(input_ids=ids).logits, base.model(input_ids=ids).logits)
    assert one.model.state_dict().keys() == base.model.state_dict().keys()


def test_a_view_shares_memory_but_for_what_it_owns() -> None:
    base = generator()
    view = frozen_view(base, own=lambda name: "norm" in name)
    pairs = zip(base.model.named_parameters(), view.model.parameters(), strict=True)
    for (name, original), seen in pairs:
        assert (original.data_ptr() != seen.data_ptr()) is ("norm" in name)
        assert original.requires_grad
        assert not seen.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_layers": 5}, r"shared_layers 5 gives 5 layers, the generator has K = 4; use an integer in 0\.\.4"),
        ({"encoder_layers": 5}, r"encoder_layers 5 gives 5 layers, .* in 1\.\.4"),
        ({"encoder_layers": 0}, r"encoder_layers 0 gives 0 layers"),
        ({"actor": "lora"}, r"actor lora .* carries none; give the actor that warm_up_actor returns, unmerged"),
        ({"target_modules": ("q_prj",)}, r"no target module 'q_prj'.*did you mean q_proj.*Known: "),
        ({"rank": 33}, r"rank 33 is not in 1\.\."),
        ({"target_modules": ()}, r"target_modules is empty"),
        ({"parameter_branch": "none", "prompt_branch": False}, r"nothing to train .*; keep prompt_branch or param"),
        (
            {"parameter_branch": "none", "alpha": 0.0},
            r"nothing to train with parameter_branch none and alpha 0; set alpha",
        ),
        ({"parameter_branch": "none", "alpha": 0.0, "objective": "alternating"}, r"nothing to train with"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tuner(**settings)


@pytest.mark.parametrize("kind", [MetaTunerConfig, WarmUpConfig])
def test_a_setting_out_of_its_range_is_refused_by_its_name(kind: type[Any]) -> None:
    at_least_1 = "batch_size accumulation".split()
    at_least_0 = ["checkpoint_steps"]
    positive = ["gradient_clip"]
    if kind is MetaTunerConfig:
        at_least_1 += "rank bottleneck alternation_steps evaluate_epochs".split()
        at_least_0 += "epochs alpha prompt_temperature shared_layers".split()
        positive += "scale factor_learning_rate hyper_learning_rate generator_learning_rate actor_learning_rate".split()
        positive.append("sync_epochs")
        positive += "refresh_epochs gumbel_temperature gumbel_final_temperature d2_refresh_epochs".split()
    else:
        at_least_1 += "actor_rank generator_rank rollouts max_prompt_tokens".split()
        at_least_0 += "actor_epochs generator_epochs".split()
        positive += "actor_learning_rate generator_learning_rate rollout_temperature".split()
    for name in at_least_1:
        kind(**{name: 1})
    for name in at_least_0:
        kind(**{name: 0})
    for name, value in (
        *((name, 0) for name in at_least_1),
        *((name, -1) for name in at_least_0),
        *((name, value) for name in positive for value in (0.0, -1.0, float("nan"))),
        *(("warm_up_share", value) for value in (-0.1, 1.0)),
    ):
        with pytest.raises(UserError, match=f"{name} must be"):
            kind(**{name: value})
    kind(warm_up_share=0.0)
    kind(accumulation=4, batch_size=4)
    with pytest.raises(UserError, match=r"accumulation 5 .*at most 4"):
        kind(accumulation=5, batch_size=4)


@pytest.mark.parametrize("settings", [{"objective": "gumbel"}, {"actor": "lora", "warmed": True}], ids=str)
def test_without_factors_and_regularisation_something_may_still_be_trained(settings: dict[str, Any]) -> None:
    made = tuner(parameter_branch="none", alpha=0.0, epochs=1, **settings)
    before = {name: [p.detach().clone() for p in part] for name, part in made.parameters.items()}
    train_joint(made, D1, D2, seed=0, log=lambda **event: None)
    trained = "actor" if "actor" in settings else "phi_p"
    assert any(not torch.equal(p, q) for p, q in zip(made.parameters[trained], before[trained], strict=True))


def test_models_on_two_devices_are_refused() -> None:
    elsewhere = actor()
    elsewhere.model.to("meta")
    with pytest.raises(UserError, match=r"generator is on cpu, the actor on meta; put both .* \(models\.\*\.device\)"):
        MetaTuner(generator(), elsewhere, MetaTunerConfig())


def test_every_public_name_is_there() -> None:
    assert [getattr(method, name).__name__ for name in method.__all__] == method.__all__


def test_depth_is_an_integer_or_a_share_of_the_layers() -> None:
    assert [MetaTunerConfig(shared_layers=share).depth(8) for share in (0, 1, 8, 0.25, 0.45, 0.75, 1.0)] == [
        0,
        1,
        8,
        2,
        4,
        6,
        8,
    ]
    depths = [
        MetaTunerConfig(shared_layers=k, encoder_layers=e).encoder_depth(8) for k in (0, 6) for e in (None, 2, 1.0)
    ]
    assert depths == [4, 2, 8, 6, 2, 8]
