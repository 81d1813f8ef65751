"""SFT and DPO take the steps that TRL's trainers take on the same batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from baselines import dpo
from baselines.sft import SFT, Settings, encode
from baselines.shared import adapter_training
from baselines.shared.adapter_training import AdapterTraining
from metatuner.harness.policies import StaticPolicy
from metatuner.method.optimising import cosine_with_warm_up
from tests.toys.baselines import sums, tiny_lm, toy_lab

ROWS = sums(16)
BATCH, EPOCHS, RATE, WARM_UP = 4, 3, 5e-3, 0.25
STEPS = EPOCHS * len(ROWS) // BATCH


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[AdapterTraining[Any], list[float]]]:
    """The trainings that a fit runs, each with its loss per step."""
    found: list[tuple[AdapterTraining[Any], list[float]]] = []
    run = AdapterTraining.run

    def recorded(self: AdapterTraining[Any], lab: Any, log: Any) -> None:
        losses: list[float] = []
        found.append((self, losses))

        def both(step: int, loss: float, **more: Any) -> None:
            losses.append(loss)
            log(step=step, loss=loss, **more)

        run(self, lab, both)

    monkeypatch.setattr(adapter_training.AdapterTraining, "run", recorded)
    return found


def reference(
    trainer: Any, lm: Any, data: Sequence[Any], collator: Any, config: Any, decay: float = 0.0
) -> list[float]:
    """The losses of one of TRL's trainers on these rows, in this order, with this project's schedule."""

    class InOrder(trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Any, *rest: Any, **options: Any) -> Any:
            return dataset

    for name, weight in lm.model.named_parameters():
        weight.requires_grad_("lora_" in name)
    weights = [weight for weight in lm.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_with_warm_up(step, STEPS, WARM_UP))
    made = InOrder(
        model=lm.model,
        processing_class=lm.tokenizer,
        train_dataset=Dataset.from_list(list(data)),
        data_collator=collator,
        args=config,
        optimizers=(optimizer, schedule),
    )
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_length": None,
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sft_has_the_losses_of_trls_trainer(
    tmp_path: Path, training: list[tuple[AdapterTraining[Any], list[float]]], checkpointing: bool
) -> None:
    settings = Settings(
        learning_rate=RATE,
        epochs=EPOCHS,
        batch_size=BATCH,
        warmup=WARM_UP,
        weight_decay=0.1,
        gradient_checkpointing=checkpointing,
    )
    SFT(settings).fit(toy_lab(tmp_path, ROWS, actor=tiny_lm()))
    ((mine, losses),) = training
    lab = toy_lab(tmp_path, ROWS, actor=tiny_lm())
    rows = [
        {"input_ids": read + written, "labels": [-100] * len(read) + written}
        for batch in mine.batches
        for read, written in batch
    ]
    assert sorted(row["input_ids"] for row in rows) == sorted(
        EPOCHS * [read + said for read, said in encode(lab, ROWS)]
    )
    lm = adapter_training.new_adapter(lab, settings)
    config = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **common(tmp_path))
    collator = DataCollatorForLanguageModeling(pad_token_id=lm.filler)
    expected = reference(SFTTrainer, lm, rows, collator, config, settings.weight_decay)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0] - 0.1


def test_dpo_has_the_losses_of_trls_trainer(
    tmp_path: Path, training: list[tuple[AdapterTraining[Any], list[float]]]
) -> None:
    settings = dpo.Settings(learning_rate=RATE, epochs=EPOCHS, batch_size=BATCH, warmup=WARM_UP, beta=1.0)
    tuned, pairs = [], []
    for _ in range(2):
        lab = toy_lab(tmp_path, ROWS, actor=tiny_lm())
        policy = SFT(Settings(learning_rate=1e-2, epochs=2, batch_size=4, dropout=0.5)).fit(lab)  # DPO has none
        tuned.append(policy)
        pairs = [
            {"prompt_ids": read, "chosen_ids": said, "rejected_ids": other}
            for (read, said), (_, other) in zip(encode(lab, ROWS), encode(lab, ROWS[1:] + ROWS[:1]), strict=True)
        ]
    training.clear()
    dpo.train(lab, tuned[0], pairs, settings)
    ((mine, losses),) = training
    rows = [pairs[row] for batch in mine.batches for row in batch]
    expected = by_trl(tuned[1], rows, settings, tmp_path)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0] - 0.005


def by_trl(policy: StaticPolicy, rows: Sequence[Any], settings: dpo.Settings, folder: Path) -> list[float]:
    lm = policy.tuned_actor
    config = DPOConfig(beta=settings.beta, **common(folder))
    return reference(DPOTrainer, lm, rows, DataCollatorForPreference(pad_token_id=lm.filler), config)
