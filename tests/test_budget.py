"""The meter counts what really happens, by whichever way a model is run, and stops at the limit."""

import copy
from dataclasses import replace

import pytest
import torch
from lm_toys import PAD, random_prompts, tiny_lm

from metatuner.errors import UserError
from metatuner.harness.budget import Budget, BudgetExceeded, Usage
from metatuner.lm import completion_loss, generate


@pytest.fixture
def metered():
    lm, budget = tiny_lm(), Budget()
    budget.attach(lm)
    return lm, budget


def test_generation_counts_each_prompt_token_and_each_written_token(metered):
    lm, budget = metered
    prompts = random_prompts(7)
    completions = generate(lm, prompts, max_new_tokens=5, batch_tokens=64)
    assert budget.used == Usage(
        lm_calls=7,
        prompt_tokens=sum(map(len, prompts)),
        generated_tokens=sum(len(completion.ids) for completion in completions),
    )


def test_a_training_step_counts_its_tokens_without_padding(metered):
    lm, budget = metered
    batch = [([7, 8, 9], [10, 11]), ([7], [12])]
    completion_loss(lm, batch).backward()
    longest_input = sum(len(prompt) + len(completion) for prompt, completion in batch)
    # The last token of a row is only ever a label; a loss may leave it out of the input.
    assert longest_input - len(batch) <= budget.used.trained_tokens <= longest_input
    assert budget.used.lm_calls == 0


def test_a_library_that_runs_the_model_itself_is_counted_too(metered):
    lm, budget = metered
    ids = torch.tensor([[PAD, 7, 8], [9, 10, 11]])
    lm.model.generate(
        input_ids=ids, attention_mask=(ids != PAD).long(), max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    assert budget.used == Usage(lm_calls=2, prompt_tokens=5, generated_tokens=2 * 3)


def test_copies_and_peft_wrappings_report_to_the_same_meter(metered):
    from peft import LoraConfig, get_peft_model

    lm, budget = metered
    copied = replace(lm, model=copy.deepcopy(lm.model))
    generate(copied, [[7, 8]], max_new_tokens=1)
    wrapped = replace(lm, model=get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear")))
    generate(wrapped, [[7, 8, 9]], max_new_tokens=1)
    with torch.no_grad():
        copied.model(input_ids=torch.tensor([[7, 8, 9, 10]]))
    assert budget.used == Usage(lm_calls=3, prompt_tokens=2 + 3 + 4, generated_tokens=2)


def test_crossing_a_limit_raises_and_names_it():
    lm, budget = tiny_lm(), Budget({"lm_calls": 5, "generated_tokens": None}, "small")
    budget.attach(lm)
    generate(lm, random_prompts(5), max_new_tokens=1)
    assert budget.left("lm_calls") == 0
    assert budget.left("trained_tokens") == float("inf")
    with pytest.raises(BudgetExceeded, match=r"budget 'small': lm_calls reached 6, the limit is 5"):
        generate(lm, random_prompts(1), max_new_tokens=1)


def test_detached_it_counts_no_more(metered):
    lm, budget = metered
    budget.detach()
    generate(lm, random_prompts(2), max_new_tokens=1)
    lm.model(input_ids=torch.tensor([[7, 8]]))
    assert budget.used == Usage()


def test_an_unknown_count_is_an_error_with_the_near_miss():
    with pytest.raises(UserError, match="did you mean lm_calls"):
        Budget().left("lm_call")


def counted(work) -> int:
    """FLOPs of the matrix products that torch counts."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.fixture
def wide():
    """A model whose linears outweigh attention's products by far, at these lengths."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=64, pad_token_id=PAD, **sizes)
    lm, budget = replace(tiny_lm(), model=LlamaForCausalLM(config).eval()), Budget()
    budget.attach(lm, "actor")
    return lm, budget


def test_estimated_flops_are_those_that_torch_counts(wide):
    lm, budget = wide
    ids = torch.randint(1, 64, (3, 8))

    def read() -> None:
        with torch.no_grad():
            lm.decoder(input_ids=ids)

    assert counted(read) == pytest.approx(budget.cost()["flops"], rel=0.03)
    before = budget.cost()["flops"]
    assert counted(lambda: lm.model(input_ids=ids).logits.sum().backward()) == pytest.approx(
        budget.cost()["flops"] - before, rel=0.03
    )


def test_training_a_lora_is_counted_without_the_gradients_of_frozen_weights(wide):
    from peft import LoraConfig, get_peft_model

    lm, budget = wide
    wrapped = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear"))
    ids = torch.randint(1, 64, (3, 8))
    # Torch leaves out the first linears' gradient of their inputs, which nobody needs; in two layers that shows.
    assert counted(lambda: wrapped(input_ids=ids).logits.sum().backward()) == pytest.approx(
        budget.cost()["flops"], rel=0.1
    )


def test_costs_are_told_by_model_and_add_up():
    actor, generator, budget = tiny_lm(), tiny_lm(), Budget()
    budget.attach(actor, "actor")
    budget.attach(generator, "generator")
    generate(actor, [[7, 8, 9]], max_new_tokens=2)
    completion_loss(generator, [([7, 8], [9])]).backward()
    cost = budget.cost()
    assert cost["by_model"]["actor"]["prompt_tokens"] == 3
    assert cost["by_model"]["generator"]["prompt_tokens"] == 0
    assert cost["by_model"]["generator"]["trained_tokens"] == cost["trained_tokens"]
    assert cost["flops"] == sum(each["flops"] for each in cost["by_model"].values())
    later = Budget()
    later.add_cost(cost)
    assert later.cost() == cost
    limited = Budget({"lm_calls": 0}, "none")
    with pytest.raises(BudgetExceeded, match="lm_calls"):
        limited.add_cost(cost)
