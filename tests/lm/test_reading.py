"""Both ways to read tokens give the logits of each row read alone, whole, in float64 and without a cache."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from metatuner.lm import LM, ModelSpec, PerQueryLoRA, generate, generation, grouped_adapter, reading
from metatuner.nano.tokenizer import ANSWER, transformers_tokenizer

KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
}
LEAN = ("llama", "qwen2")
WINDOW = 96


def toy_lm(kind: str, **changes: Any) -> LM:
    """A model with grouped heads, three layers and random weights, in float64."""
    tokenizer = transformers_tokenizer(ANSWER, WINDOW)
    make_config, make_model = KINDS[kind]
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": WINDOW,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = make_config(**(sizes | changes))
    model = make_model(config).to(torch.float64).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # biases and norms too
    for norm in model.modules():
        if hasattr(norm, "variance_epsilon"):
            norm.forward = partial(exactly_normed, norm)  # transformers' own computes in float32
    return LM(model, tokenizer, WINDOW, ModelSpec("toy"))


def exactly_normed(norm: Any, states: torch.Tensor) -> torch.Tensor:
    return norm.weight * states * (states.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()


def rows_of(lm: LM, lengths: Sequence[int], shared: int = 0) -> list[list[int]]:
    draw = random.Random(0)
    size = lm.model.config.vocab_size
    first = [draw.randrange(5, size) for _ in range(shared)]
    return [first + [draw.randrange(5, size) for _ in range(length)] for length in lengths]


def alone(lm: LM, row: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = lm.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
    return logits


def padded(rows: Sequence[Sequence[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def check(lm: LM, way: reading.Reader, lengths: Sequence[int] = (7, 3, 12, 1)) -> None:
    """Prompts with padding on the left, two more tokens, then other rows, one of them twice, and 40 more tokens."""
    rows = rows_of(lm, lengths)
    ids, mask = padded(rows, max(lengths))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = []
    with torch.inference_mode():
        found.append((list(rows), way.read(ids, positions, mask)))
        last = positions[:, -1:]
        for step in range(42):
            if step == 2:
                order = torch.tensor([2, 0, 2])
                way.select(order)
                rows, mask, last = [rows[place] for place in order.tolist()], mask[order], last[order]
            new = [(11 * step + 5 * place) % 100 + 5 for place in range(len(rows))]
            rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
            mask, last = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], 1), last + 1
            found.append((rows, way.read(torch.tensor(new)[:, None], last, mask)))
    for read, logits in found[:4] + found[-1:]:
        for row, told in zip(read, logits, strict=True):
            torch.testing.assert_close(told, alone(lm, row), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_the_logits_of_the_row_alone(kind: str) -> None:
    lm = toy_lm(kind)
    for way in ways(lm):
        check(lm, way)
    for way in ways(lm):
        check(lm, way, lengths=(5, 5, 5))  # no padding


def ways(lm: LM) -> list[reading.Reader]:
    """The readers that the model allows, in float32."""
    lean = reading.is_lean(replace(lm, model=copy.deepcopy(lm.model).float()))
    return [reading.TransformersReader(lm), *([reading.LeanReader(lm)] if lean else [])]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_and_qwen2_are_read_by_the_lean_pass(kind: str) -> None:
    assert len(ways(toy_lm(kind))) == 1 + (kind in LEAN)


def test_a_model_that_computes_something_else_is_read_by_transformers() -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert len(ways(toy_lm("qwen2", **window))) == 1
    assert len(ways(toy_lm("llama", hidden_act="gelu"))) == 1
    lm = toy_lm("llama")
    lm.model.bfloat16()
    assert not reading.is_lean(lm)


def test_an_adapter_and_factors_per_query_act_in_both_ways() -> None:
    lm = toy_lm("qwen2")
    torch.manual_seed(1)
    peft = get_peft_model(lm.model, LoraConfig(r=3, lora_alpha=5, target_modules="all-linear")).double().eval()
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight)
    adapted = LM(peft, lm.tokenizer, WINDOW, ModelSpec("toy"))  # type: ignore[arg-type]
    for way in ways(adapted):
        check(adapted, way)
    with grouped_adapter(peft):
        for way in ways(adapted):
            check(adapted, way)
    plain = toy_lm("llama")
    lora = PerQueryLoRA(plain.model, rank=2)
    factors = torch.randn(2, lora.flat_size, dtype=torch.float64)
    rows = rows_of(plain, (6, 9))
    ids, mask = padded(rows, 9)
    with torch.inference_mode(), lora.applied(factors):
        found = reading.LeanReader(plain).read(ids, (mask.cumsum(-1) - 1).clamp(min=0), mask)
    for place, row in enumerate(rows):
        with torch.inference_mode(), lora.applied(factors[place : place + 1]):
            expected = plain.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(found[place], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_shared_prefix_is_read_once_and_changes_no_completion(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy_lm(kind, **({"sliding_window": None} if kind == "mistral" else {}))
    if kind == "llama":
        lm.model.float()  # read by the lean pass
    prompts = rows_of(lm, (9, 4, 6, 4, 1, 8), shared=20)
    prompts.append(list(prompts[1]))
    seen: list[tuple[int, ...]] = []
    way = reading.reader(lm)
    read = type(way).read

    def watched(self: Any, ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return read(self, ids, *rest)

    monkeypatch.setattr(type(way), "read", watched)
    monkeypatch.setattr(generation, "MOST_PADDING", 0.9)
    monkeypatch.setattr(generation, "WORTH_SHARING", 1)
    together = [each.ids for each in generate(lm, prompts, max_new_tokens=12)]
    assert seen[:2] == [(1, 20), (6, 9)]
    apart = [generate(lm, [prompt], max_new_tokens=12)[0].ids for prompt in prompts]
    assert together == apart
    seen.clear()
    monkeypatch.setattr(generation, "WORTH_SHARING", 101)  # 5 more rows of 20 tokens save 100
    generate(lm, prompts, max_new_tokens=2)
    assert seen[0] == (6, 29)
    seen.clear()
    generate(lm, [prompts[0]] * 3, max_new_tokens=2)
    assert seen == [(1, 29), (3, 1)]


def test_a_hook_into_a_layer_acts_and_a_model_with_other_hooks_is_read_by_transformers() -> None:
    lm = toy_lm("llama")
    lm.model.float()
    ids = torch.tensor([[7, 8, 9]])
    positions, mask = torch.arange(3)[None], torch.ones_like(ids)
    with torch.inference_mode():
        plain = reading.reader(lm).read(ids, positions, mask)
        layer = lm.decoder.layers[1]
        steered = layer.register_forward_hook(lambda module, args, states: states + 0.5)
        assert isinstance(reading.reader(lm), reading.LeanReader)
        lean, whole = (
            way.read(ids, positions, mask) for way in (reading.LeanReader(lm), reading.TransformersReader(lm))
        )
        torch.testing.assert_close(lean, whole, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(lean, plain, atol=1e-3)
        steered.remove()
        for module in (layer.mlp, layer.self_attn, lm.decoder.norm):
            hook = module.register_forward_hook(lambda *args: None)
            assert isinstance(reading.reader(lm), reading.TransformersReader)
            hook.remove()
        hook = layer.register_forward_pre_hook(lambda *args: None)
        assert isinstance(reading.reader(lm), reading.TransformersReader)
        hook.remove()
    assert isinstance(reading.reader(lm), reading.LeanReader)


def test_an_adapter_that_is_turned_off_inside_a_group_is_off() -> None:
    lm = toy_lm("llama")
    torch.manual_seed(1)
    peft = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear")).double().eval()
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight)
    ids = torch.tensor([[7, 8, 9]])
    with torch.inference_mode():
        on = peft(input_ids=ids).logits
        with peft.disable_adapter():
            off = peft(input_ids=ids).logits
        with grouped_adapter(peft):
            torch.testing.assert_close(peft(input_ids=ids).logits, on, atol=1e-9, rtol=1e-9)
            with peft.disable_adapter():
                assert torch.equal(peft(input_ids=ids).logits, off)
    assert not torch.allclose(on, off)


def test_only_architectures_with_rotary_positions_share_prefixes() -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    lm = toy_lm("mistral", sliding_window=None)
    assert reading.TransformersReader(lm).shares
    config = GPTNeoConfig(
        vocab_size=len(lm.tokenizer),
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=WINDOW,
    )
    other = replace(lm, model=GPTNeoForCausalLM(config).eval())
    assert not reading.TransformersReader(other).shares
