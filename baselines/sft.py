"""SFT: a LoRA adapter on the actor, trained to write the reference answers under the initial prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

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
    """Share of the steps in which the learning rate rises. It then falls to 0 along a cosine."""
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
    reference = "Hu et al. 2022, LoRA (arXiv 2106.09685)"
    Settings = Settings

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        return Loop(Sequences(actor_trained=s.epochs * rows.train), actor_rank=s.rank, batch=s.batch_size)

    def fit(self, lab: Lab) -> StaticPolicy:
        """Train on `lab.train`; rows that do not fit the actor's window are left out and counted in the log."""
        from baselines.shared.adapter_training import AdapterTraining, new_adapter
        from metatuner.lm import completion_loss

        s: Settings = self.settings
        prompts = {name: s.prompts.get(name, lab.initial_prompt(name)) for name in lab.benchmarks}
        pairs = encode(lab, lab.train, prompts)
        lab.log(event="rows", used=len(pairs), dropped=len(lab.train) - len(pairs))
        if not pairs:
            raise UserError("sft: no train row fits the actor's window; raise its `window` or use shorter rows")
        lm = new_adapter(lab, s, s.dropout)
        training = AdapterTraining(
            lm,
            pairs,
            lambda rows: completion_loss(lm, rows),
            tokens=lambda pair: len(pair[1]),
            method="sft",
            learning_rate=s.learning_rate,
            epochs=s.epochs,
            batch_size=s.batch_size,
            warmup=s.warmup,
            weight_decay=s.weight_decay,
            checkpointing=s.gradient_checkpointing,
            seed=lab.stream("sft"),
        )
        losses: list[float] = []

        def log(step: int, loss: float, **more: object) -> None:
            losses.append(loss)
            if (step + 1) % training.per_epoch == 0:
                mean = fmean(losses[-training.per_epoch :])
                lab.log(event="epoch", epoch=(step + 1) // training.per_epoch, loss=round(mean, 5))

        training.run(lab, log)
        return StaticPolicy(lab, prompts, actor=lm)


def encode(
    lab: Lab, rows: Sequence[Row], prompts: Mapping[str, str] | None = None
) -> list[tuple[list[int], list[int]]]:
    """What the adapter is trained on: (prompt ids, completion ids) per row.

    `prompts` maps each benchmark of the rows to its prompt; by default each benchmark has its p~.

    The prompt's ids are the same that `lab.answer` gives the actor. Rows longer than the window are left out.
    """
    from metatuner.lm import completion_ids, render

    pairs = []
    for row in rows:
        reserve = lab.benchmark(row.benchmark).max_new_tokens
        asked = lab.initial_prompt(row) if prompts is None else prompts[row.benchmark]
        prompt = render(lab.actor, asked, row.query, reserve=reserve).ids
        completion = completion_ids(lab.actor, row.target)
        if len(prompt) + len(completion) <= lab.actor.window:
            pairs.append((prompt, completion))
    return pairs
