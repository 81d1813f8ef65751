"""The loss on completions against full logits in float64."""

from dataclasses import replace

import pytest
import torch

from metatuner.errors import UserError
from metatuner.lm import LM, completion_loss
from tests.toys.lm import END, random_prompts, tiny_lm

BATCH = list(zip(random_prompts(5), [[*ids, END] for ids in random_prompts(5, shortest=1, seed=1)], strict=True))


def plain_losses(model: torch.nn.Module, batch: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """Each row's token losses from the logits of the row alone, unpadded."""
    rows = []
    for prompt, completion in batch:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        rows.append(-logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)])
    return rows


@pytest.fixture
def lm() -> LM:
    lm = tiny_lm()
    lm.model.double()
    return lm


def test_the_loss_is_that_of_full_logits_row_by_row(lm: LM) -> None:
    rows = plain_losses(lm.model, BATCH)
    torch.testing.assert_close(completion_loss(lm, BATCH), torch.cat(rows).mean())
    torch.testing.assert_close(completion_loss(lm, BATCH, reduction="sum"), torch.cat(rows).sum())
    torch.testing.assert_close(completion_loss(lm, BATCH, reduction="row"), torch.stack([row.sum() for row in rows]))


def test_gradients_are_those_of_full_logits(lm: LM) -> None:
    parameters = dict(lm.model.named_parameters())
    ours = torch.autograd.grad(completion_loss(lm, BATCH), list(parameters.values()))
    reference = torch.autograd.grad(torch.cat(plain_losses(lm.model, BATCH)).mean(), list(parameters.values()))
    for name, a, b in zip(parameters, ours, reference, strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_a_model_that_scales_its_logits_gets_its_own_logits(lm: LM) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    model = CohereForCausalLM(
        CohereConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            logit_scale=0.5,
        )
    ).double()
    scaled = replace(lm, model=model, plain_head=False)
    torch.testing.assert_close(completion_loss(scaled, BATCH), torch.cat(plain_losses(model, BATCH)).mean())


def test_only_the_adapter_of_a_peft_model_gets_gradients(lm: LM) -> None:
    from peft import LoraConfig, get_peft_model

    reference = completion_loss(lm, BATCH)
    wrapped = get_peft_model(lm.model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    loss = completion_loss(replace(lm, model=wrapped), BATCH)
    torch.testing.assert_close(loss, reference)  # B starts at zero
    loss.backward()
    for name, parameter in wrapped.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_half_precision_logits_are_reduced_in_single_precision() -> None:
    lm = tiny_lm()
    lm.model.bfloat16()
    assert completion_loss(lm, BATCH).dtype == torch.float32


def test_a_row_longer_than_the_window_is_refused(lm: LM) -> None:
    with pytest.raises(UserError, match="row 1: prompt and completion are 129 tokens"):
        completion_loss(lm, [([8], [9]), ([8] * 100, [9] * 29)])


@pytest.mark.parametrize(("row", "what"), [(([], [9]), "prompt"), (([8], []), "completion")])
def test_an_empty_side_is_refused(lm: LM, row: tuple[list[int], list[int]], what: str) -> None:
    with pytest.raises(ValueError, match=f"row 0: the {what} is empty"):
        completion_loss(lm, [row])
