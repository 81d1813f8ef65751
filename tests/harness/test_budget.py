"""The meter counts what really happens, by whichever way a model is run, and stops at the limit."""

import copy
from dataclasses import replace

import pytest
import torch

from metatuner.errors import UserError
from metatuner.harness.budget import Budget, BudgetExceeded, Usage
from metatuner.lm import completion_loss, generate
from tests.toys.lm import PAD, random_prompts, tiny_lm


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
    whole = sum(len(prompt) + len(completion) for prompt, completion in batch)
    # The last token of a row is only ever a label; a loss may leave it out of the input.
    assert whole - len(batch) <= budget.used.trained_tokens <= whole
    assert budget.used.lm_calls == 0


def test_a_library_that_runs_the_model_itself_is_counted_too(metered):
    lm, budget = metered
    ids = torch.tensor([[PAD, 7, 8], [9, 10, 11]])
    lm.model.generate(
        input_ids=ids, attention_mask=(ids != PAD).long(), max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    assert budget.used == Usage(lm_calls=2, prompt_tokens=5, generated_tokens=2 * 3)


def test_a_forward_without_a_mask_is_counted_without_what_is_padding_by_its_ids(metered):
    lm, budget = metered
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([[PAD, 7, 8], [9, 10, 11]]))
        lm.model(inputs_embeds=torch.zeros(2, 4, 32))
    assert budget.used == Usage(lm_calls=4, prompt_tokens=5 + 8)


def test_a_pad_that_also_ends_turns_is_counted_where_it_ends_one():
    lm, budget = tiny_lm(), Budget()
    tokenizer = lm.tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    assert lm.filler == end
    assert end in lm.eos_ids
    budget.attach(lm)
    turns = [([7, 8, end, 9, end, 10], [11, end]), ([7], [12, end])]
    completion_loss(lm, turns).backward()
    # Each row is read without its last token; the second is padded by five.
    assert budget.used.trained_tokens == (8 - 1) + (3 - 1)
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([[7, end, 8, end, end], [9, 10, 11, end, 12]]))
    assert budget.used.prompt_tokens == 3 + 5
    done = generate(lm, [[7, end, 8], [9]], max_new_tokens=3)
    assert budget.used.prompt_tokens == 3 + 5 + 4
    assert budget.used.generated_tokens == sum(len(completion.ids) for completion in done)


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
    assert lm.traffic.listeners == []


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
    """A model whose linears outweigh attention's products by far at these lengths, and whose head weighs as much."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=2048, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=None, **sizes)
    lm, budget = replace(tiny_lm(), model=LlamaForCausalLM(config).eval()), Budget()
    lm.model.generation_config.suppress_tokens = [*lm.eos_ids]  # none stops before the limit
    budget.attach(lm, "actor")
    return lm, budget


def test_estimated_flops_are_those_that_torch_counts(wide):
    lm, budget = wide
    ids = torch.randint(1, 64, (3, 8))

    def spent(work) -> tuple[int, int]:
        before = budget.cost()["flops"]
        found = counted(work)
        return found, budget.cost()["flops"] - before

    def read() -> None:
        with torch.no_grad():
            lm.decoder(input_ids=ids)

    def write() -> None:
        generate(lm, ids.tolist(), max_new_tokens=30)

    def write_by_library() -> None:
        lm.model.generate(input_ids=ids, max_new_tokens=30, do_sample=False, eos_token_id=None)

    def train() -> None:
        lm.model(input_ids=ids).logits.sum().backward()

    for work, rel in ((read, 0.03), (train, 0.03), (write, 0.08), (write_by_library, 0.08)):
        theirs, ours = spent(work)
        assert ours == pytest.approx(theirs, rel=rel), work.__name__
    assert budget.used.generated_tokens == 3 * 30 + 3 * 29  # none stopped before


@pytest.mark.parametrize("tied", [False, True])
def test_estimated_flops_are_those_of_the_papers_formula(tied):
    lm, budget = tiny_lm(tie_word_embeddings=tied), Budget()
    budget.attach(lm, "actor")
    body = sum(weight.numel() for name, weight in lm.model.model.named_parameters() if name != "embed_tokens.weight")
    head = lm.model.lm_head.weight.numel()
    prompts = random_prompts(5)
    written = sum(len(each.ids) for each in generate(lm, prompts, max_new_tokens=6, batch_tokens=64))
    expected = 2 * (sum(map(len, prompts)) + written) * body + 2 * written * head
    assert budget.cost()["flops"] == expected
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([[7, 8, 9]]))
    expected += 2 * 3 * body
    assert budget.cost()["flops"] == expected
    lm.model.requires_grad_(False)
    lm.model.model.norm.requires_grad_(True)
    lm.model(input_ids=torch.tensor([[7, 8, 9], [9, 8, PAD]]), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    expected += 5 * (4 * (body + head) + 2 * lm.model.model.norm.weight.numel())
    assert budget.cost()["flops"] == expected
    assert budget.used.trained_tokens == 5


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
    later.add_cost(cost)
    twice = later.cost()
    assert {name: twice[name] for name in cost if name != "by_model"} == {
        name: 2 * value for name, value in cost.items() if name != "by_model"
    }
    assert twice["by_model"]["actor"]["flops"] == 2 * cost["by_model"]["actor"]["flops"] > 0
    limited = Budget({"lm_calls": 0}, "none")
    with pytest.raises(BudgetExceeded, match="lm_calls"):
        limited.add_cost(cost)


def test_compute_is_a_limit_and_is_predicted_as_it_is_metered() -> None:
    lm, prompts = tiny_lm(), [[7, 8, 9]] * 6
    body = sum(weight.numel() for weight in lm.decoder.parameters()) - lm.model.get_input_embeddings().weight.numel()
    head = lm.head.weight.numel()
    budget = Budget()
    budget.attach(lm, "actor")
    assert budget.tflop_per_call("actor") == 0
    completions = generate(lm, prompts, max_new_tokens=5)
    read, written = sum(map(len, prompts)), sum(len(each.ids) for each in completions)
    spent = (2 * (read + written) * body + 2 * written * head) / 1e12
    assert budget.spent("tflop") == pytest.approx(spent)
    assert budget.tflop("actor", read=read, written=written) == pytest.approx(spent)
    assert budget.tflop_per_call("actor") == pytest.approx(spent / 6)
    assert budget.tflop("nobody", read=7) == budget.tflop_per_call("nobody") == 0
    before = budget.spent("tflop")
    completion_loss(lm, [([7, 8, 9], [10, 11])]).backward()
    weights = sum(weight.numel() for weight in lm.decoder.parameters())
    assert budget.spent("tflop") - before == pytest.approx(budget.tflop("actor", trained=4))
    assert budget.tflop("actor", trained=4) == pytest.approx(4 * (4 * (body + head) + 2 * weights) / 1e12)


def test_what_passes_the_limit_of_compute_ends_and_what_reaches_it_does_not() -> None:
    prompts = random_prompts(3)

    def spend(limit: float | None) -> Budget:
        lm, budget = tiny_lm(), Budget({"tflop": limit}, "small")
        budget.attach(lm)
        generate(lm, prompts, max_new_tokens=4)
        return budget

    whole = spend(None).spent("tflop")
    assert spend(whole).left("tflop") == 0
    with pytest.raises(BudgetExceeded, match=r"budget 'small': tflop reached .*, the limit is .*; lower the method's"):
        spend(0.999 * whole)
    assert spend(None).left("tflop") == float("inf")


def test_what_a_fit_builds_on_counts_as_its_own() -> None:
    lm, earlier = tiny_lm(), Budget()
    earlier.attach(lm)
    generate(lm, random_prompts(3), max_new_tokens=4)
    later = Budget({"tflop": 2 * earlier.spent("tflop")})
    later.add_cost(earlier.cost())
    assert later.left("tflop") == pytest.approx(earlier.spent("tflop"))
    assert later.tflop_per_call("model") == 0  # the mean is of this fit's calls alone


def test_a_loop_of_steps_ends_before_the_limit_by_the_dearest_step_so_far() -> None:
    budget = Budget({"trained_tokens": 100}, "small")
    budget.add(trained_tokens=20)  # by what the fit builds on
    covered, steps = budget.for_steps(), []
    for tokens in (10, 20, 10, 10, 10, 10):
        if not covered():
            break
        budget.add(trained_tokens=tokens)
        steps.append(tokens)
    # After 20 + 10 + 20 + 10 + 10 tokens, 30 are left; a step may cost 1.25 times 20. After 10 more it may not.
    assert steps == [10, 20, 10, 10, 10]
    assert budget.left("trained_tokens") == 20
    unlimited = Budget().for_steps()
    assert all(unlimited() for _ in range(3))
