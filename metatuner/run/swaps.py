"""What a trained policy's prompts and LoRAs contribute, and whether it matters that each query has its own."""

import random
from collections.abc import Callable, Iterator, Sequence

import torch

from baselines.metatuner import MetaTunerPolicy
from metatuner.harness.query import Query, Response, to_query
from metatuner.harness.rows import read_rows
from metatuner.lm import Adapt
from metatuner.run.export import open_metatuner
from metatuner.run.workshop import Workshop


def scores_under_swaps(shop: Workshop, key: str) -> Iterator[str]:
    """Yield lines: the score of a finished cell's policy on its benchmark's tune rows, under each swap."""
    cell, policy = open_metatuner(shop, key)
    shop.check_splits([cell.benchmark], ["tune"])
    rows = read_rows(shop.layout.data(cell.benchmark) / "tune.jsonl")
    yield f"{cell.fit.method}, {cell.benchmark}, seed {cell.fit.seed}, {len(rows)} tune rows"
    yield f"{'prompt':<18}{'LoRA':<18}score"
    for (prompt, lora), responses in answers_under_swaps(policy, [to_query(row) for row in rows]).items():
        yield f"{prompt:<18}{lora:<18}{shop.score(responses, rows):.1f}"


@torch.no_grad()
def answers_under_swaps(
    policy: MetaTunerPolicy, queries: Sequence[Query], *, seed: int = 0
) -> dict[tuple[str, str], list[Response]]:
    """The answers to each query under its own or another prompt and LoRA, by (prompt, LoRA).

    The policy itself uses the own prompt and the own LoRA. For "another query's", one random permutation of the queries
    assigns prompts and LoRAs. "mean of all" is one LoRA for all: the mean of the queries' factors A and B. Without a
    parameter branch, only the prompts are swapped.
    """
    tuner = policy.tuner
    initial = [policy.ground.benchmark(query.benchmark).initial_prompt for query in queries]
    texts = [query.text for query in queries]
    written, own = tuner.prepare(initial, texts)
    order = list(range(len(queries)))
    random.Random(seed).shuffle(order)
    prompts = {"own": written, "another query's": [written[other] for other in order], "p~": initial}
    loras: dict[str, Adapt | None] = {"own": own}
    if (factors := tuner.factors(initial, texts)) is not None:
        dealt, mean = factors[order], factors.mean(0, keepdim=True)

        def taking(flat: Callable[[list[int]], torch.Tensor]) -> Adapt:
            return lambda rows: tuner.lora.applied(flat(rows))

        loras["another query's"] = taking(lambda rows: dealt[rows])
        loras["mean of all"] = taking(lambda rows: mean.expand(len(rows), -1))
        loras["none"] = None
    pairs = [("own", lora) for lora in loras] + [(prompt, "own") for prompt in prompts if prompt != "own"]
    if "none" in loras:
        pairs.append(("p~", "none"))
    return {
        (prompt, lora): policy.ground.answer(queries, prompts[prompt], adapt=loras[lora], actor=tuner.actor)
        for prompt, lora in pairs
    }
