"""DPO: SFT's actor learns to prefer its right answers to its wrong ones."""

import math
from dataclasses import dataclass
from typing import Any

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
    """Answers sampled per train row, from which pairs are made; as many as MetaTuner's rollouts."""
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
    """Share of the steps in which the learning rate rises from 0. It then falls to 0 along a cosine, as in SFT here."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""


class DPO(Method):
    """Preference optimisation on pairs of a right and a wrong rollout."""

    name = "dpo"
    title = "DPO"
    family = "parameter"
    reference = "Rafailov et al. 2023, Direct Preference Optimization (arXiv 2305.18290), through TRL's DPOTrainer"
    deviations = (
        "Pairs are rollouts of SFT's actor with different scores, not preferences of people.",
        "The LoRA of `sft`, with its settings, is trained on; the reference is that LoRA as SFT left it.",
    )
    requires = ("sft",)
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        pairs = shares.mixed * rows.train * min(s.pairs, s.rollouts // 2)
        sides = 2 * s.epochs * pairs  # the reference reads what the policy trains on
        counted = Sequences(answers=s.rollouts * rows.train, answers_read=sides, actor_trained=sides)
        return Loop(counted, own_answers=True, keeps_required=True)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Sample answers to `lab.train` and train on pairs of them.

        If no row gives a pair, SFT's actor is returned, and the log says so.
        """
        from baselines.shared.rollouts import sft_policy

        settings: Settings = self.settings
        policy = sft_policy(lab)
        pairs = find_pairs(lab, policy, settings)
        if pairs:
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
    trained = 2 * settings.epochs * min(settings.pairs, settings.rollouts // 2)  # and the reference scores as many
    if not covers(lab, policy, lab.train, answers=settings.rollouts, scored=trained, trained=trained):
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
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    class Prepared(DPOTrainer):
        """Uses the token ids of the pairs as they are: the same ids that inference reads and writes."""

        def _prepare_dataset(self, dataset: Any, *rest: Any, **options: Any) -> Any:
            return dataset

    lm = policy.tuned_actor
    model: Any = lm.model
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
    trainer = Prepared(
        model=model,
        processing_class=lm.tokenizer,
        train_dataset=Dataset.from_list(pairs),
        data_collator=DataCollatorForPreference(pad_token_id=lm.filler),
        args=DPOConfig(
            output_dir=str(lab.workdir),
            beta=settings.beta,
            max_length=None,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup,
            gradient_checkpointing=settings.gradient_checkpointing,
            bf16=lm.spec.dtype == "bfloat16",
            fp16=lm.spec.dtype == "float16",
            use_cpu=lm.device.type == "cpu",
            seed=lab.stream("dpo") % 2**32,
            save_strategy="no",
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=lm.device.type == "cuda",
        ),
    )
    trainer.remove_callback(PrinterCallback)  # the fit has its own log
    torch.manual_seed(lab.stream("dpo"))
    trainer.train()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            told = {name: round(entry[key], 5) for name, key in LOGGED.items() if key in entry}
            lab.log(event="step", step=entry["step"], **told)
            if not math.isfinite(entry["loss"]):
                raise UserError(f"dpo: loss {entry['loss']} at step {entry['step']}; lower learning_rate")
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    vars(trained.get_base_model()).pop("forward", None)  # set by the trainer; it would go on calling this model
    trained.delete_adapter("ref")


LOGGED = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
"""Names in the fit's log -> names in TRL's log."""
