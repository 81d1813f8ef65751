"""Per-query LoRA against a loop over queries with materialised W + scale * B A, in float64."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.lm import LM, PerQueryLoRA, completion_loss, generate
from tests.toys.lm import END, FAMILIES, SLIDING, double_lm, random_prompts, tiny_lm, tiny_model, watched_reads

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = random_prompts(6)
MANY = random_prompts(12, seed=5)
BATCH = list(zip(PROMPTS, [[*ids, END] for ids in random_prompts(6, shortest=1, seed=1)], strict=True))


def factors(lora: PerQueryLoRA, rows: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return (torch.randn(rows, lora.flat_size, generator=draw, dtype=torch.double) * 0.2).requires_grad_()


def materialised(model: nn.Module, lora: PerQueryLoRA, row: Tensor) -> nn.Module:
    """A copy of the model with one query's factors added to its weights."""
    changed = copy.deepcopy(model)
    for site in lora.sites:
        a, b = row[site.a].view(lora.rank, site.d_in), row[site.b].view(lora.rank, site.d_out)
        changed.get_submodule(site.name).weight.data += (lora.scale * b.T @ a).detach()
    return changed


def loop_loss(lm: LM, lora: PerQueryLoRA, flat: Tensor) -> Tensor:
    """The batch's loss, a query at a time, differentiable in the factors and in the model."""
    parameters = dict(lm.model.named_parameters())
    losses = []
    for row, (prompt, completion) in zip(flat, BATCH, strict=True):
        shifted = dict(parameters)
        for site in lora.sites:
            a, b = row[site.a].view(lora.rank, site.d_in), row[site.b].view(lora.rank, site.d_out)
            shifted[f"{site.name}.weight"] = parameters[f"{site.name}.weight"] + lora.scale * b.T @ a
        inputs = {"input_ids": torch.tensor([prompt + completion])}
        logits = torch.func.functional_call(lm.model, shifted, kwargs=inputs).logits[0, len(prompt) - 1 : -1]
        losses.append(nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum"))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(("targets", "scale"), [("all-linear", 1.0), (["v_proj", "q_proj", "down_proj"], 0.5)])
def test_loss_and_all_gradients_are_those_of_a_loop(
    architecture: str, targets: Sequence[str] | str, scale: float
) -> None:
    lm = double_lm(architecture)
    lora = PerQueryLoRA(lm.model, targets, rank=3, scale=scale)
    flat = factors(lora)
    leaves = {"factors": flat, **dict(lm.model.named_parameters())}
    with lora.applied(flat):
        loss = completion_loss(lm, BATCH, reduction="sum")
    # Left to be run after the context: the graph holds what backward needs.
    ours = torch.autograd.grad(loss, list(leaves.values()))
    expected = loop_loss(lm, lora, flat)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for name, a, b in zip(leaves, ours, torch.autograd.grad(expected, list(leaves.values())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_with_a_frozen_base_only_the_factors_get_gradients() -> None:
    lm = double_lm()
    lm.model.requires_grad_(False)
    lora = PerQueryLoRA(lm.model, rank=3)
    flat = factors(lora)
    with lora.applied(flat):
        loss = completion_loss(lm, BATCH, reduction="sum")
    (ours,) = torch.autograd.grad(loss, flat)
    (expected,) = torch.autograd.grad(loop_loss(lm, lora, flat), flat)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_logits_under_left_padding_are_those_of_each_row_alone(architecture: str) -> None:
    lm = double_lm(architecture)
    lora = PerQueryLoRA(lm.model, rank=3, scale=0.7)
    flat = factors(lora)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    with lora.applied(flat):
        logits = lm.model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    for row, (prompt, one) in enumerate(zip(PROMPTS, flat, strict=True)):
        alone = materialised(lm.model, lora, one)(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(logits[row, width - len(prompt) :], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_logits_of_each_step_of_a_decoding_are_those_of_a_row_alone_without_a_cache(architecture: str) -> None:
    lm = double_lm(architecture)
    lora = PerQueryLoRA(lm.model, rank=3, scale=0.7)
    flat = factors(lora, len(MANY)).detach()
    inside = list(range(len(MANY)))  # the prompt in each row of the batch
    steps: list[list[Tensor]] = [[] for _ in MANY]

    class Spy:
        def keep(self, rows: Tensor) -> None:
            nonlocal inside
            inside = [inside[row] for row in rows.tolist()]
            lora.keep(rows)

    @contextmanager
    def adapt(rows: list[int]) -> Iterator[Spy]:
        nonlocal inside
        inside = rows
        with lora.applied(flat[rows]):
            yield Spy()

    def record(ids: Tensor, mask: Tensor, logits: Tensor) -> None:
        for row, index in enumerate(inside):
            steps[index].append(logits[row])

    with watched_reads(record):
        completions = generate(lm, MANY, max_new_tokens=12, adapt=adapt)
    # Some rows left the batch while others went on, and prompts are padded and reach beyond sliding windows.
    assert len({len(logits) for logits in steps}) > 1
    assert min(map(len, MANY)) < SLIDING < max(map(len, MANY))
    for prompt, completion, logits, one in zip(MANY, completions, steps, flat, strict=True):
        alone = materialised(lm.model, lora, one)(torch.tensor([prompt + completion.ids[:-1]]), use_cache=False).logits
        written = len(completion.ids)
        torch.testing.assert_close(torch.stack(logits[:written]), alone[0, len(prompt) - 1 :], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_generation_follows_each_rows_factors_through_batches_and_early_ends(architecture: str) -> None:
    lm = tiny_lm(architecture)
    lora = PerQueryLoRA(lm.model, rank=3)
    flat = factors(lora, len(MANY)).float().detach()
    plain = generate(lm, MANY, max_new_tokens=10)
    completions = generate(lm, MANY, max_new_tokens=10, max_rows=5, adapt=lambda rows: lora.applied(flat[rows]))
    alone = [
        generate(replace(lm, model=materialised(lm.model, lora, one)), [prompt], max_new_tokens=10)[0]
        for prompt, one in zip(MANY, flat, strict=True)
    ]
    assert completions == alone
    assert completions != plain
    assert {completion.truncated for completion in completions} == {True, False}
    assert generate(lm, MANY, max_new_tokens=10) == plain


def test_keeping_rows_reorders_their_factors() -> None:
    lm = double_lm()
    lora = PerQueryLoRA(lm.model, rank=2)
    flat = factors(lora)
    ids = torch.tensor([[8, 9, 10]] * 6)
    with lora.applied(flat) as adapted:
        before = lm.model(ids).logits
        adapted.keep(torch.tensor([4, 1]))
        torch.testing.assert_close(lm.model(ids[:2]).logits, before[[4, 1]])


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_inside_the_context_changes_nothing(reentrant: bool) -> None:
    lm = double_lm()
    lora = PerQueryLoRA(lm.model, rank=3)
    flat = factors(lora)
    with lora.applied(flat):
        (expected,) = torch.autograd.grad(completion_loss(lm, BATCH), flat)
    lm.model.train()
    lm.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    lm.model.enable_input_require_grads()
    with lora.applied(flat):
        completion_loss(lm, BATCH).backward()
    torch.testing.assert_close(flat.grad, expected)


def test_under_autocast_factors_take_the_lower_precision() -> None:
    lm = tiny_lm()
    lora = PerQueryLoRA(lm.model, rank=3)
    flat = factors(lora).float().detach().requires_grad_()
    with lora.applied(flat):
        exact = completion_loss(lm, BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            rough = completion_loss(lm, BATCH)
            rough.backward()
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    assert flat.grad is not None
    assert flat.grad.dtype == torch.float32
    assert flat.grad.abs().sum() > 0


def test_a_half_precision_model_trains_as_in_single_precision_up_to_rounding() -> None:
    lm = tiny_lm()
    rough = replace(lm, model=copy.deepcopy(lm.model).bfloat16())
    flat = factors(PerQueryLoRA(lm.model, rank=3)).float().detach().requires_grad_()
    losses, grads = [], []
    for each in (lm, rough):
        with PerQueryLoRA(each.model, rank=3).applied(flat):
            losses.append(completion_loss(each, BATCH))
        grads.append(torch.autograd.grad(losses[-1], flat)[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    assert grads[1].dtype == torch.float32  # the caller's precision
    assert grads[1].isfinite().all()
    # Rounding is 2 ** -9 an operation; gradients of single factors may be near zero, so each row's is compared whole.
    assert ((grads[1] - grads[0]).norm(dim=1) < 0.1 * grads[0].norm(dim=1)).all()


def test_a_half_precision_model_writes_what_single_precision_finds_likeliest_up_to_rounding() -> None:
    lm = tiny_lm()
    rough = replace(lm, model=copy.deepcopy(lm.model).bfloat16())
    over = PerQueryLoRA(rough.model, rank=3)
    flat = factors(over).float().detach()
    completions = generate(rough, PROMPTS, max_new_tokens=24, adapt=lambda rows: over.applied(flat[rows]))
    for prompt, completion, one in zip(PROMPTS, completions, flat, strict=True):
        exact = materialised(lm.model, over, one)(torch.tensor([prompt + completion.ids[:-1]])).logits[0]
        exact = exact[len(prompt) - 1 :].index_fill(-1, torch.tensor(lm.suppressed_ids), -torch.inf)
        chosen = exact.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        # Logits are spread by about 1, and rounded to within 0.01 to 0.02.
        assert (exact.max(-1).values - chosen).max() < 0.1


def test_the_model_is_untouched_outside_the_context_even_after_an_error() -> None:
    lm = double_lm()
    keys = list(lm.model.state_dict())
    ids = torch.tensor([PROMPTS[0]])
    before = lm.model(ids).logits
    lora = PerQueryLoRA(lm.model, rank=3)
    with lora.applied(factors(lora)):
        assert list(lm.model.state_dict()) == keys
    with pytest.raises(ValueError, match="factors for 6 rows, the input is"), lora.applied(factors(lora)):
        lm.model(ids)
    assert torch.equal(lm.model(ids).logits, before)
    assert list(lm.model.state_dict()) == keys


def test_two_adaptations_of_one_module_at_a_time_are_refused() -> None:
    lm = double_lm()
    first, second = PerQueryLoRA(lm.model, ["q_proj"], rank=2), PerQueryLoRA(lm.model, ["q_proj"], rank=2)
    with first.applied(factors(first)):
        with pytest.raises(RuntimeError, match="in use"), first.applied(factors(first)):
            pass
        with pytest.raises(RuntimeError, match="adapted by something else"), second.applied(factors(second)):
            pass
        ids = torch.tensor([PROMPTS[0]] * 6)
        shifted = lm.model(ids).logits
    assert not torch.equal(lm.model(ids).logits, shifted)


def test_sites_are_found_by_structure_and_their_factors_tile_the_flat_tensor() -> None:
    lora = PerQueryLoRA(tiny_model(), rank=4)
    assert [site.name.rpartition(".")[2] for site in lora.sites] == ALL * 2
    assert {site.name.split(".")[2] for site in lora.sites} == {"0", "1"}
    assert lora.flat_size == sum(4 * (site.d_in + site.d_out) for site in lora.sites)
    covered = sorted((part.start, part.stop) for site in lora.sites for part in (site.a, site.b))
    assert [start for start, _ in covered] == [0, *(stop for _, stop in covered[:-1])]
    assert covered[-1][1] == lora.flat_size


def test_packed_factors_lie_where_the_sites_say() -> None:
    lora = PerQueryLoRA(tiny_model(), ["k_proj", "gate_proj"], rank=2)
    flat = factors(lora).detach()
    split = {
        site.name: (flat[:, site.a].view(6, 2, site.d_in), flat[:, site.b].view(6, 2, site.d_out))
        for site in lora.sites
    }
    assert torch.equal(lora.pack(split), flat)


def test_an_exported_query_loads_as_a_peft_adapter_with_the_same_logits(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel
    from safetensors.torch import save_file

    lm = double_lm()
    lora = PerQueryLoRA(lm.model, rank=2, scale=1.5)
    flat = factors(lora).detach()
    ids = torch.tensor([PROMPTS[0]] * 6)
    with lora.applied(flat):
        ours = lm.model(ids).logits[2]
    save_file(lora.export_factors(flat[2]), tmp_path / "adapter_model.safetensors")
    LoraConfig(r=2, lora_alpha=3, target_modules=ALL, task_type="CAUSAL_LM").save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(lm.model), tmp_path).double()
    torch.testing.assert_close(loaded(ids).logits[2], ours)


def test_per_query_factors_stack_on_a_peft_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    lm = double_lm()
    wrapped = get_peft_model(
        copy.deepcopy(lm.model), LoraConfig(r=2, target_modules=ALL, init_lora_weights=False)
    ).double()
    merged = copy.deepcopy(wrapped).merge_and_unload()
    ids = torch.tensor([PROMPTS[0]] * 6)
    over, plain = PerQueryLoRA(wrapped, rank=2), PerQueryLoRA(merged, rank=2)
    assert over.sites == plain.sites
    flat = factors(over)
    with over.applied(flat):
        stacked = wrapped(ids).logits
    with plain.applied(flat):
        torch.testing.assert_close(stacked, merged(ids).logits)


def test_unknown_targets_and_ranks_that_do_not_fit_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(UserError, match=r"no target module 'query_proj'.*Known: down_proj, gate_proj"):
        PerQueryLoRA(model, ["query_proj"])
    with pytest.raises(UserError, match=r"rank 17 is not in 1\.\.16, the width of .*k_proj"):
        PerQueryLoRA(model, ["q_proj", "k_proj"], rank=17)
    lora = PerQueryLoRA(model, ["q_proj"], rank=2)
    with (
        pytest.raises(ValueError, match=r"factors must be \[rows, 256\], got \[3, 255\]"),
        lora.applied(torch.zeros(3, 255)),
    ):
        pass
