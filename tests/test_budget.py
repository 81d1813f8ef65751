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
