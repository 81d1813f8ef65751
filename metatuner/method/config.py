"""What can be set in MetaTuner. "Silent" marks what the paper (arXiv 2509.24245) does not say: a declared choice."""

from dataclasses import dataclass
from typing import Literal

from metatuner.errors import UserError


@dataclass(frozen=True)
class WarmUpConfig:
    """The two supervised warm-ups before joint training, and the rollouts between them."""

    actor_epochs: int = 1
    """Passes over D1 of the actor's warm-up, LoRA on (p~, x) -> y, merged afterwards; 0 leaves it out. Warm-up: paper;
    length: silent."""
    actor_learning_rate: float = 2e-4
    """Silent."""
    actor_rank: int = 8
    """Rank of that LoRA, on all linears. Silent."""
    actor_prompts: Literal["initial", "rollouts"] = "initial"
    """What the actor reads before x: p~, or a fresh rewrite by the generator (the prompts it will meet). Silent."""
    trainable: Literal["full", "lora"] = "lora"
    """What of the generator is trained, here and in joint training: all weights, or LoRA on its linears. Silent."""
    generator_rank: int = 16
    """Rank of the generator's LoRA; not used with `trainable: full`. Silent."""
    generator_epochs: int = 3
    """Passes over D2 of the generator's warm-up, (p~, x) -> best prompt. Warm-up: paper; length: silent."""
    generator_learning_rate: float = 1e-4
    """Silent."""
    batch_size: int = 16
    """Rows an optimiser step. Silent."""
    rollouts: int = 8
    """Rewrites sampled a query to find D2 (the paper varies it, its value is silent)."""
    rollout_temperature: float = 1.0
    """Temperature of those samples. Silent."""
    reward_above: float = 0.5
    """A query's best rewrite enters D2 if its reward is above this. Silent."""
    max_prompt_tokens: int = 128
    """Longest prompt the generator may write, in its tokens. Silent."""
    gradient_clip: float = 1.0
    """Largest gradient norm. Silent."""
    warm_up_share: float = 0.1
    """Share of steps in which the learning rate rises linearly, before it falls by a cosine to 0. Silent."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "actor_epochs", "generator_epochs")
        _at_least(self, 1, "actor_rank", "generator_rank", "batch_size", "rollouts", "max_prompt_tokens")
        _positive(self, "actor_learning_rate", "generator_learning_rate", "rollout_temperature", "gradient_clip")
        _share(self, "warm_up_share")


@dataclass(frozen=True)
class MetaTunerConfig:
    """The model (shared encoder, two decoders) and its joint training (MetaTuner-J)."""

    shared_layers: int | float = 0.5
    """How deep the meta encoder is: an integer is k itself, a float the share of the generator's K layers. The paper
    finds K/4 best for its 7B generator and 3K/4 for the 3B one."""
    pooling: Literal["last", "mean"] = "last"
    """How the k-th layer's states over (p~, x) become h_i: the last token's, or their mean. Silent."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    """The actor's linears that get per-query LoRA, by name, or all in its decoder layers. Silent."""
    rank: int = 8
    """Rank r of the per-query LoRA. Silent."""
    scale: float = 2.0
    """lambda: Delta W = scale * B_i A_i (the factor is in the paper, its value silent)."""
    bottleneck: int = 64
    """d_b, the width between W_d and W_u of the parameter decoder. Silent."""
    alpha: float = 1.0
    """Weight of the supervised regularisation over D2 (in the paper's loss, its value silent)."""
    epochs: int = 3
    """Passes over D1 of joint training. Silent."""
    batch_size: int = 16
    """Rows of D1, and rewrites of D2, an optimiser step. Silent."""
    hyper_learning_rate: float = 1e-3
    """Learning rate of the parameter decoder (phi_q). Silent."""
    generator_learning_rate: float = 5e-5
    """Learning rate of the generator (phi_s and phi_p). Silent."""
    sync_epochs: float = 1.0
    """phi_p', the frozen copy that writes the prompts of the first loss term, is copied from phi_p each time this many
    passes over D1 have gone by (fixed intervals: paper; length: silent)."""
    refresh_epochs: float = 1.0
    """The prompts of the rows to come are written each time this many passes over D1 have gone by, by phi_p' and the
    phi_s of that moment. A value below one step's share writes them in every step, as the formula does, and costs a
    decoding a step. Silent."""
    prompt_temperature: float = 0.5
    """Temperature of the prompts the actor is trained under; 0 writes them as in evaluation. Silent."""
    gradient_clip: float = 1.0
    """Largest gradient norm, over all of phi together. Silent."""
    warm_up_share: float = 0.1
    """Share of steps in which the learning rates rise linearly, before they fall by a cosine to 0. Silent."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "rank", "bottleneck", "batch_size")
        _at_least(self, 0, "epochs", "alpha", "prompt_temperature")
        _positive(self, "scale", "hyper_learning_rate", "generator_learning_rate", "gradient_clip")
        _positive(self, "sync_epochs", "refresh_epochs")
        _share(self, "warm_up_share")
        if not self.target_modules:
            raise UserError("MetaTuner: target_modules is empty; name linears of the actor, or write all-linear")

    def depth(self, layers: int) -> int:
        """k for a generator of K = `layers` decoder layers; UserError if it is not in 1..K."""
        share = self.shared_layers
        k = share if isinstance(share, int) else round(share * layers)
        if not 1 <= k <= layers:
            raise UserError(
                f"MetaTuner: shared_layers {share} gives k = {k}, the generator has K = {layers} layers; "
                f"use an integer in 1..{layers} or a share in ({0.5 / layers:.3g}, 1]"
            )
        return k


def _at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= least:
            raise UserError(f"MetaTuner: {name} must be at least {least}, got {getattr(config, name)}")


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise UserError(f"MetaTuner: {name} must be above 0, got {getattr(config, name)}")


def _share(config: object, name: str) -> None:
    if not 0 <= getattr(config, name) < 1:
        raise UserError(f"MetaTuner: {name} must be in [0, 1), got {getattr(config, name)}")
