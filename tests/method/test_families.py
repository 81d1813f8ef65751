"""MetaTuner of any family, each as generator and as actor, trains and answers; a batch answers as its rows alone."""

import math
from typing import Any

import pytest
import torch

from metatuner.method import MetaTuner, MetaTunerConfig, train_joint
from metatuner.method.tuned import to_train
from tests.toys.lm import FAMILIES, SLIDING, tiny_lm
from tests.toys.method import INITIAL, PROMPT_TOKENS, examples, rewrites, shake

CONFIG = MetaTunerConfig(rank=3, bottleneck=8, batch_size=3, epochs=1, target_modules="all-linear")
QUERIES = [example.query for example in examples()]


def family_tuner(generator: str, actor: str, what: Any = "full") -> MetaTuner:
    """Gemma's generator has its LM head tied to its embedding, as the published ones do."""
    tied = generator.startswith("gemma")
    trained = to_train(tiny_lm(generator, seed=1, num_hidden_layers=4, tie_word_embeddings=tied), what, rank=2, seed=3)
    made = MetaTuner(
        trained, tiny_lm(actor, seed=2, hidden_size=48, head_dim=12), CONFIG, max_prompt_tokens=PROMPT_TOKENS, seed=4
    )
    shake(made)
    return made


def answers(made: MetaTuner, queries: list[str]) -> list[str]:
    return [one.text for one in made.answer([INITIAL] * len(queries), queries, max_new_tokens=12)]


@pytest.mark.parametrize(
    ("generator", "actor"),
    [*((family, "llama") for family in FAMILIES), *(("llama", family) for family in FAMILIES if family != "llama")],
)
def test_every_family_trains_and_answers_as_generator_and_as_actor(generator: str, actor: str) -> None:
    made = family_tuner(generator, actor)
    # Reached by padding and by inputs beyond the sliding windows.
    assert max(len(made.actor.encode(query)) for query in QUERIES) > SLIDING
    assert len({len(made.actor.encode(query)) for query in QUERIES}) > 1
    frozen = {name: parameter.clone() for name, parameter in made.actor.model.named_parameters()}
    before = {name: [each.detach().clone() for each in group] for name, group in made.parameters.items()}
    events: list[dict[str, Any]] = []
    train_joint(made, examples(3), rewrites(3), seed=6, log=lambda **event: events.append(event))

    (step,) = [event for event in events if event["event"] == "joint"]
    assert math.isfinite(step["loss"])
    for name, group in made.parameters.items():
        assert step[f"norm_{name}"] > 0, name
        assert any(not torch.equal(a, b) for a, b in zip(before[name], group, strict=True)), name
    assert all(torch.equal(parameter, frozen[name]) for name, parameter in made.actor.model.named_parameters())

    together = answers(made, QUERIES)
    assert together == [answers(made, [query])[0] for query in QUERIES]
    assert any(together)


@pytest.mark.parametrize("generator", FAMILIES)
def test_every_family_can_be_a_generator_with_lora(generator: str) -> None:
    made = family_tuner(generator, "qwen2", "lora")
    events: list[dict[str, Any]] = []
    train_joint(made, examples(3), rewrites(3), seed=6, log=lambda **event: events.append(event))
    (step,) = [event for event in events if event["event"] == "joint"]
    assert all(step[f"norm_{name}"] > 0 for name in made.parameters)
