"""SFT: a LoRA adapter on the actor, trained by TRL to write the reference answers under the initial prompt."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from metatuner.errors import UserError
from metatuner.harness.benchmarks import benchmark_file
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, NotNegative, Positive, Share
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.rows import Row


@dataclass(frozen=True)
class Settings:
    """Settings of SFT."""

    learning_rate: Positive = 2e-4
    """Peak learning rate of AdamW; ten times the rate of full fine-tuning, as is usual for LoRA (TRL's LoRA guide)."""
    epochs: Count = 3
    """Passes over the train rows; TRL's default."""
    batch_size: Count = 16
    """Rows per optimizer step."""
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises from 0. It then falls to 0 along a cosine."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW; TRL's default."""
    rank: Count = 8
    """Rank of the adapter (r); twice the rank of arXiv 2106.09685 for language generation."""
    alpha: Count = 16
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """Dropout rate on the adapter's input."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter; `all-linear` means all except the LM head (arXiv 2305.14314)."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Prompt per benchmark, used instead of p~ in training and answering. A benchmark that is not listed keeps p~."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""

    def __post_init__(self) -> None:
        for name in self.prompts:
            benchmark_file(name)  # raises an error if it is unknown


class SFT(Method):
    """Completion-only cross-entropy on the reference answers."""

    name = "sft"
    title = "SFT"
    family = "parameter"
    reference = "Hu et al. 2022, LoRA (arXiv 2106.09685), through TRL's SFTTrainer"
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        return Loop(Sequences(actor_trained=s.epochs * rows.train), actor_rank=s.rank)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Train on `lab.train`; rows that do not fit the actor's window are left out and counted in the log."""
        import torch
        from datasets import Dataset
        from peft import LoraConfig, get_peft_model
        from transformers import PrinterCallback
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

        settings, lm = self.settings, lab.actor
        prompts = {name: settings.prompts.get(name, lab.initial_prompt(name)) for name in lab.benchmarks}
        examples = encode(lab, lab.train, prompts)
        lab.log(event="rows", used=len(examples), dropped=len(lab.train) - len(examples))
        if not examples:
            raise UserError("sft: no train row fits the actor's window; raise its `window` or use shorter rows")
        torch.manual_seed(lab.stream("adapter"))
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules="all-linear" if settings.targets == ("all-linear",) else list(settings.targets),
        )
        trainer = SFTTrainer(
            model=get_peft_model(lm.model, lora),
            processing_class=lm.tokenizer,
            train_dataset=Dataset.from_list(examples),
            data_collator=DataCollatorForLanguageModeling(pad_token_id=lm.filler),
            args=SFTConfig(
                output_dir=str(lab.workdir),
                # We make the labels ourselves, so that training reads exactly the ids that inference reads.
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,
                learning_rate=settings.learning_rate,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                lr_scheduler_type="cosine",
                warmup_steps=settings.warmup,
                weight_decay=settings.weight_decay,
                gradient_checkpointing=settings.gradient_checkpointing,
                bf16=lm.spec.dtype == "bfloat16",
                fp16=lm.spec.dtype == "float16",
                use_cpu=lm.device.type == "cpu",
                seed=lab.stream("sft") % 2**32,
                save_strategy="no",
                logging_strategy="epoch",
                logging_nan_inf_filter=False,
                report_to="none",
                disable_tqdm=True,
                dataloader_num_workers=0,
                dataloader_pin_memory=lm.device.type == "cuda",
            ),
        )
        trainer.remove_callback(PrinterCallback)  # the fit has its own log
        trainer.train()
        for entry in trainer.state.log_history:
            if "loss" in entry:
                lab.log(event="epoch", epoch=round(entry["epoch"], 3), loss=round(entry["loss"], 5))
                if not math.isfinite(entry["loss"]):
                    raise UserError(f"sft: loss {entry['loss']} in epoch {entry['epoch']:g}; lower learning_rate")
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
        # The trainer has set a forward of its own: on a copy of this model it would still call this model.
        vars(model.get_base_model()).pop("forward", None)
        return StaticPolicy(lab, prompts, actor=replace(lm, model=model))


def encode(lab: Lab, rows: Sequence[Row], prompts: Mapping[str, str] | None = None) -> list[dict[str, list[int]]]:
    """What the trainer reads: `input_ids`, and `labels` of the same length with -100 before the completion.

    `prompts` maps each benchmark of the rows to its prompt; by default each benchmark has its p~.

    The prompt's ids are the same that `lab.answer` gives the actor. Rows longer than the window are left out.
    """
    from metatuner.lm import completion_ids, render

    examples = []
    for row in rows:
        reserve = lab.benchmark(row.benchmark).max_new_tokens
        asked = lab.initial_prompt(row) if prompts is None else prompts[row.benchmark]
        prompt = render(lab.actor, asked, row.query, reserve=reserve).ids
        completion = completion_ids(lab.actor, row.target)
        if len(prompt) + len(completion) <= lab.actor.window:
            examples.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return examples
