"""DPO: the actor of a short SFT learns to prefer its right answers to its wrong ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from metatuner.errors import UserError
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, Positive, Share
from metatuner.harness.policies import StaticPolicy
from metatuner.hashing import derive_seed


@dataclass(frozen=True)
class Settings:
    """Settings of DPO."""

    rollouts: Count = 8
    """Answers sampled per train row, from which pairs are made; MetaTuner's default number of rollouts."""
    rollout_temperature: Positive = 1.0
    """Sampling temperature of these answers; 1 is the actor's own distribution."""
    pairs: Count = 4
    """Maximum number of pairs per train row."""
    beta: Positive = 0.1
    """Weight of the reference in DPO's loss; the usual value of arXiv 2305.18290."""
    learning_rate: Positive = 5e-6
    """Peak learning rate of AdamW. TRL's default is 1e-6 for all weights; a LoRA takes a higher rate."""
    epochs: Count = 1
    """Passes over the pairs; one is usual for DPO."""
    batch_size: Count = 16
    """Pairs per optimizer step."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises. It then falls to 0 along a cosine, as in SFT here."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""


class DPO(Method):
    """Preference optimisation on pairs of a right and a wrong rollout."""

    name = "dpo"
    title = "DPO"
    family = "parameter"
    reference = "Rafailov et al. 2023, Direct Preference Optimization (arXiv 2305.18290)"
    deviations = (
        "Pairs are rollouts of SFT's actor with different scores, not preferences of people.",
        "It starts from the LoRA of a short SFT, which leaves answers to learn from. The setting `sft` gives that "
        "SFT's own settings. The reference is that LoRA as SFT left it.",
    )
    requires = ("sft",)
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        pairs = shares.mixed * rows.train * min(s.pairs, s.rollouts // 2)
        counted = Sequences(answers=s.rollouts * rows.train, answers_read=2 * pairs, actor_trained=2 * s.epochs * pairs)
        return Loop(counted, own_answers=True, keeps_required=True, batch=2 * s.batch_size)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Sample answers to `lab.train` and train on pairs of them.

        If no row gives a pair, SFT's actor is returned, and the log says so.
        """
        from baselines.shared.budget import covers_step
        from baselines.shared.rollouts import sft_policy

        settings: Settings = self.settings
        policy = sft_policy(lab)
        pairs = find_pairs(lab, policy, settings)
        sides = [(pair["prompt_ids"], pair[side]) for pair in pairs for side in ("chosen_ids", "rejected_ids")]
        if not covers_step(lab, "actor", sides, scored=1):
            lab.log(event="budget", steps=0)
        elif pairs:
            train(lab, policy, pairs, settings)
        return policy


def find_pairs(lab: Lab, policy: StaticPolicy, settings: Settings) -> list[dict[str, list[int]]]:
    """Token ids of pairs: `prompt_ids`, `chosen_ids` and `rejected_ids`. Completions include their end of turn.

    The best answer to a row is paired with the worst, the next best with the next worst, and so on while their rewards
    differ. Equal answers count once.
    """
    from baselines.shared.rollouts import covers, sample

    random = lab.random("pairs")
    rows = [row for row in lab.train for _ in range(settings.rollouts)]
    sides = 2 * min(settings.pairs, settings.rollouts // 2)
    if not covers(lab, policy, lab.train, answers=settings.rollouts, scored=sides, trained=0):
        raise UserError(
            f"dpo: the budget does not cover {settings.rollouts} rollouts of {len(lab.train)} rows; lower `rollouts`, "
            "or raise the budget in the preset"
        )
    seeds = [derive_seed(lab.stream("rollouts"), index) for index in range(len(rows))]
    told = sample(lab, policy, rows, seeds=seeds, temperature=settings.rollout_temperature)
    pairs, mixed = [], 0
    for start in range(0, len(rows), settings.rollouts):
        distinct: dict[str, int] = {}
        for index in range(start, start + settings.rollouts):
            distinct.setdefault(told.texts[index], index)
        ranked = sorted(distinct.values(), key=lambda index: -told.rewards[index])
        found = [
            (best, worst)
            for best, worst in zip(ranked, reversed(ranked), strict=True)
            if told.rewards[best] > told.rewards[worst]
        ][: settings.pairs]
        mixed += bool(found)
        pairs += [
            {
                "prompt_ids": told.prompts[best],
                "chosen_ids": told.completions[best],
                "rejected_ids": told.completions[worst],
            }
            for best, worst in found
        ]
    random.shuffle(pairs)
    reward = round(sum(told.rewards) / len(told.rewards), 5)
    lab.log(event="pairs", pairs=len(pairs), rows=len(lab.train), mixed=mixed, reward=reward)
    return pairs


def train(lab: Lab, policy: StaticPolicy, pairs: list[dict[str, list[int]]], settings: Settings) -> None:
    """Train the policy's adapter on pairs. The reference is the adapter as it is before this training."""
    import torch

    from baselines.shared.adapter_training import AdapterTraining
    from metatuner.lm import completion_loss

    lm, size = policy.tuned_actor, settings.batch_size

    def log_ratio(rows: Sequence[int]) -> torch.Tensor:
        """log p(chosen) - log p(rejected), [rows]."""
        sides = [
            (pairs[row]["prompt_ids"], pairs[row][side]) for side in ("chosen_ids", "rejected_ids") for row in rows
        ]
        chosen, rejected = completion_loss(lm, sides, reduction="row").chunk(2)
        return rejected - chosen

    told: dict[str, float] = {}

    def loss(rows: Sequence[int]) -> torch.Tensor:
        margin = settings.beta * (log_ratio(rows) - reference[list(rows)])
        told.update(accuracy=float((margin > 0).float().mean()), margin=float(margin.detach().mean()))
        return -torch.nn.functional.logsigmoid(margin).mean()

    def log(step: int, loss: float, **more: object) -> None:
        lab.log(event="step", step=step + 1, loss=round(loss, 5), **{key: round(each, 5) for key, each in told.items()})

    training = AdapterTraining(
        lm,
        range(len(pairs)),
        loss,
        method="dpo",
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=size,
        warmup=settings.warmup,
        checkpointing=settings.gradient_checkpointing,
        seed=lab.stream("dpo"),
        dropout=False,  # as in TRL: the reference has none
    )
    with torch.no_grad(), training.as_in_a_step():
        parts = [range(len(pairs))[first : first + size] for first in range(0, len(pairs), size)]
        reference = torch.cat([log_ratio(part) for part in parts])
    training.run(lab, log)
