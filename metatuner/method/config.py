"""What can be set in MetaTuner. "Silent" marks what the paper (arXiv 2509.24245) does not say: a declared choice."""

from dataclasses import dataclass
from typing import Literal

from metatuner.errors import UserError


@dataclass(frozen=True)
class TrainingConfig:
    """How an optimiser's steps are made, in the warm-ups and in joint training alike. All silent."""

    batch_size: int = 16
    """Rows of D1, and rewrites of D2, an optimiser step."""
    accumulation: int = 1
    """Micro-batches a step: each batch is cut in so many parts, whose gradients are added (the same up to rounding)."""
    gradient_clip: float = 1.0
    """Largest gradient norm, over all trained parameters together."""
    warm_up_share: float = 0.1
    """Share of steps in which the learning rates rise linearly, before they fall by a cosine to 0."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Precision of matrix products in forward passes; parameters and optimiser states keep their own."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    checkpoint_steps: int = 0
    """Write a checkpoint each so many steps, where the caller gives a folder; 0 writes none."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "accumulation")
        _at_least(self, 0, "checkpoint_steps")
        _positive(self, "gradient_clip")
        _share(self, "warm_up_share")
        if self.accumulation > self.batch_size:
            raise UserError(
                f"MetaTuner: accumulation {self.accumulation} cuts a batch of {self.batch_size} rows in more parts "
                f"than it has; set accumulation to at most {self.batch_size}"
            )


@dataclass(frozen=True)
class WarmUpConfig(TrainingConfig):
    """The two supervised warm-ups before joint training, and the making of D2 between them."""

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
    d2: Literal["best", "threshold", "expert", "initial"] = "best"
    """How D2 is made (the paper compares ways, which ones is silent). best: a query's rollout of highest reward, if
    that is above `reward_above`; threshold: every distinct rollout above it; expert: the rewrite of the generator as
    it was given, greedily and whatever its reward; initial: p~ itself (no rollouts)."""
    rollouts: int = 8
    """Rewrites sampled a query to find D2 (the paper varies it, its value is silent)."""
    rollout_temperature: float = 1.0
    """Temperature of those samples. Silent."""
    reward_above: float = 0.5
    """Rewrites enter D2 only if their reward is above this. Silent."""
    max_prompt_tokens: int = 128
    """Longest prompt the generator may write, in its tokens. Silent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "actor_epochs", "generator_epochs")
        _at_least(self, 1, "actor_rank", "generator_rank", "rollouts", "max_prompt_tokens")
        _positive(self, "actor_learning_rate", "generator_learning_rate", "rollout_temperature")


@dataclass(frozen=True)
class MetaTunerConfig(TrainingConfig):
    """The model (shared encoder, two decoders) and its joint training."""

    shared_layers: int | float = 0.5
    """k, how deep the meta encoder is: an integer is k itself, a float the share of the generator's K layers; 0 shares
    nothing ("w/o S"). The paper finds K/4 best for its 7B generator and 3K/4 for the 3B one."""
    encoder_layers: int | float | None = None
    """The depth at which h_i is read, given as k is; None: k, and for k = 0 half of K. Layers between k and this depth
    are a trainable copy private to the parameter branch, as are all of them for k = 0. A fixed depth with k varied is
    the control that tells sharing from depth. Silent for k = 0."""
    prompt_branch: bool = True
    """False leaves the prompt branch out ("w/o P"): the actor reads p~, and D2 is not used."""
    parameter_branch: Literal["query", "static", "none"] = "query"
    """query: LoRA factors for each query; static: one trained LoRA for all queries on the same sites (not in the
    paper: it tells a hypernetwork from plain LoRA); none: no LoRA ("w/o F"), the warmed-up actor as it is."""
    decoder: Literal["per_site", "layer_shared"] = "per_site"
    """per_site: W_d and W_u of each site and factor (the faithful reading); layer_shared: one W_d and W_u for each kind
    of module, told the layer by an embedding (the scalable reading: tens of times smaller at 7B). Silent."""
    pooling: Literal["last", "mean"] = "last"
    """How the states over (p~, x) become h_i: the last token's, or their mean. Silent."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    """The actor's linears that get per-query LoRA, by name, or all in its decoder layers. Silent."""
    rank: int = 8
    """Rank r of the per-query LoRA. Silent."""
    scale: float = 2.0
    """lambda: Delta W = scale * B_i A_i (the factor is in the paper, its value silent)."""
    bottleneck: int = 64
    """d_b, the width between W_d and W_u of the parameter decoder. Silent."""
    actor: Literal["frozen", "lora"] = "frozen"
    """lora: the actor's warm-up LoRA is trained on by the task loss. Silent."""
    actor_learning_rate: float = 2e-4
    """Of that LoRA. Silent."""
    objective: Literal["joint", "alternating", "gumbel"] = "joint"
    """joint: the sum of both loss terms in each step (MetaTuner-J); alternating: steps on one term, then on the other
    (MetaTuner-I); gumbel: the task loss alone, its gradient passed through prompt tokens by straight-through
    Gumbel-Softmax in place of the supervised regularisation (the paper's variant)."""
    alternation_steps: int = 1
    """alternating: steps on the task term before as many on the prompt term; each term sees the batches that `joint`
    shows it. Silent."""
    gumbel_temperature: float = 1.0
    """gumbel: temperature of the first step. Silent."""
    gumbel_final_temperature: float = 0.3
    """gumbel: temperature of the last step; it falls geometrically in between. Silent."""
    alpha: float = 1.0
    """Weight of the supervised regularisation over D2 (in the paper's loss, its value silent)."""
    epochs: int = 3
    """Passes over D1 of joint training. Silent."""
    hyper_learning_rate: float = 1e-3
    """Learning rate of the parameter decoder (phi_q). Silent."""
    generator_learning_rate: float = 5e-5
    """Learning rate of the generator (phi_s and phi_p) and of copies of its layers private to the parameter branch.
    Silent."""
    sync_epochs: float = 1.0
    """phi_p', the frozen copy that writes the prompts of the first loss term, is copied from phi_p each time this many
    passes over D1 have gone by (fixed intervals: paper; length: silent)."""
    refresh_epochs: float = 1.0
    """The prompts of the rows to come are written each time this many passes over D1 have gone by, by phi_p' and the
    phi_s of that moment. A value below one step's share writes them in every step, as the formula does, and costs a
    decoding a step. Silent."""
    d2_refresh_epochs: float | None = None
    """D2 is collected anew, from the present generator's rollouts, each time this many passes over D1 have gone by;
    None keeps the first. Silent."""
    evaluate_epochs: int | None = None
    """The mean reward on dev rows is logged each time this many passes over D1 have gone by, and at the end; its
    tokens count in the fit's cost, and nothing else changes. None: the harness measures none (`train_joint` with
    `evaluate`: after each pass). Silent."""
    prompt_temperature: float = 0.5
    """Temperature of the prompts the actor is trained under; 0 writes them as in evaluation. Silent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "rank", "bottleneck", "alternation_steps")
        _at_least(self, 0, "epochs", "alpha", "prompt_temperature", "shared_layers")
        _positive(self, "scale", "hyper_learning_rate", "generator_learning_rate", "actor_learning_rate")
        _positive(self, "sync_epochs", "refresh_epochs", "gumbel_temperature", "gumbel_final_temperature")
        if self.evaluate_epochs is not None:
            _at_least(self, 1, "evaluate_epochs")
        if self.d2_refresh_epochs is not None:
            _positive(self, "d2_refresh_epochs")
        if not self.target_modules:
            raise UserError("MetaTuner: target_modules is empty; name linears of the actor, or write all-linear")
        if self.parameter_branch == "none" and self.actor == "frozen":
            if not self.prompt_branch:
                raise UserError(
                    "MetaTuner: nothing to train without both branches; keep prompt_branch or parameter_branch"
                )
            if self.alpha == 0 and self.objective != "gumbel":
                raise UserError(
                    "MetaTuner: nothing to train with parameter_branch none and alpha 0; set alpha above 0, or keep "
                    "parameter_branch"
                )
        if self.objective == "gumbel" and not self.prompt_branch:
            raise UserError("MetaTuner: objective gumbel trains the prompt branch; set prompt_branch, or objective")

    def depth(self, layers: int) -> int:
        """k for a generator of K = `layers` decoder layers; UserError if it is not in 0..K."""
        return _depth("shared_layers", self.shared_layers, 0, layers)

    def encoder_depth(self, layers: int) -> int:
        """The depth at which h_i is read; UserError if it is not in 1..K."""
        if self.encoder_layers is not None:
            return _depth("encoder_layers", self.encoder_layers, 1, layers)
        return self.depth(layers) or max(1, layers // 2)


def _depth(name: str, share: int | float, least: int, layers: int) -> int:
    k = share if isinstance(share, int) else round(share * layers)
    if not least <= k <= layers:
        raise UserError(
            f"MetaTuner: {name} {share} gives {k} layers, the generator has K = {layers}; use an integer in "
            f"{least}..{layers} or a share of at most 1.0"
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
