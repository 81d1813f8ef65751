"""Shared by methods that learn from rewards: SFT's actor, and answers sampled from it."""

from collections.abc import Sequence
from dataclasses import dataclass

from metatuner.harness.lab import Lab
from metatuner.harness.policies import StaticPolicy, load_static
from metatuner.harness.rows import Row


@dataclass(frozen=True)
class Sampled:
    """Answers sampled under the policy's prompts; each list has one entry per answer."""

    rows: list[Row]
    prompts: list[list[int]]
    """Token ids that the actor read."""
    completions: list[list[int]]
    """Token ids that it wrote, including the end of turn."""
    texts: list[str]
    rewards: list[float]
    """The primary metric, 0 to 1."""

    def __len__(self) -> int:
        return len(self.rows)


def sft_policy(lab: Lab) -> StaticPolicy:
    """The saved policy of `sft`: the actor with the LoRA that is trained further."""
    return load_static(lab.required("sft"), lab)


def sample(lab: Lab, policy: StaticPolicy, rows: Sequence[Row], *, seeds: Sequence[int], temperature: float) -> Sampled:
    """One answer per row, decoded as in evaluation but sampled, with its reward.

    Args:
        policy: the policy in its current state.
        rows: repeat a row to get several answers to it.
        seeds: one per row.
        temperature: sampling temperature.
    """
    from metatuner.lm import generate, render

    lm = policy.tuned_actor
    order: list[int] = []
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    texts: list[str] = []
    for name in dict.fromkeys(row.benchmark for row in rows):
        benchmark = lab.benchmark(name)
        chosen = [index for index, row in enumerate(rows) if row.benchmark == name]
        limit = benchmark.max_new_tokens
        read = [render(lm, policy.prompts[name], rows[index].query, reserve=limit).ids for index in chosen]
        written = generate(
            lm,
            read,
            max_new_tokens=limit,
            stops=benchmark.stops,
            temperature=temperature,
            seeds=[seeds[index] for index in chosen],
            batch_tokens=lab.batch_tokens,
        )
        order += chosen
        prompts += read
        completions += [completion.ids for completion in written]
        texts += [completion.text for completion in written]
    places = sorted(range(len(order)), key=lambda place: order[place])
    texts = [texts[place] for place in places]
    return Sampled(
        list(rows),
        [prompts[place] for place in places],
        [completions[place] for place in places],
        texts,
        lab.reward_texts(rows, texts),
    )


def covers(lab: Lab, policy: StaticPolicy, rows: Sequence[Row], *, answers: int, scored: int, trained: int) -> bool:
    """Whether the budget covers work on the rows if every answer has its maximum length.

    Of compute it must cover the answers alone: `covers_step` checks the rest when their lengths are known.

    Args:
        answers: sampled answers per row.
        scored: passes per row that score an answer.
        trained: passes per row that train on an answer.
    """
    from metatuner.lm import render

    limits = [lab.benchmark(row.benchmark).max_new_tokens for row in rows]
    read = sum(
        len(render(lab.actor, policy.prompts[row.benchmark], row.query, reserve=limit).ids)
        for row, limit in zip(rows, limits, strict=True)
    )
    longest = read + sum(limits)
    needed = {
        "lm_calls": (answers + scored) * len(rows),
        "generated_tokens": answers * sum(limits),
        "trained_tokens": trained * longest,
        "tflop": lab.budget.tflop("actor", read=answers * read, written=answers * sum(limits)),
    }
    return all(lab.budget.left(what) >= count for what, count in needed.items())
