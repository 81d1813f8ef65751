"""What can be set in MetaTuner.

"The paper does not say" in a field's docstring marks a choice of this project, where arXiv 2509.24245 is silent.
docs/choices.md is made from these docstrings.
"""

from dataclasses import dataclass
from typing import Literal

from metatuner.errors import UserError


@dataclass(frozen=True)
class TrainingConfig:
    """How an optimiser's steps are made, in the warm-ups and in joint training alike."""

    batch_size: int = 16
    """Rows of D1, and rewrites of D2, per optimiser step. The paper does not say; a common size."""
    accumulation: int = 1
    """Micro-batches per step. Each batch is cut into that many parts and their gradients are added, which gives the
    same step up to rounding."""
    gradient_clip: float = 1.0
    """Largest gradient norm, over all trained parameters together. The paper does not say; common practice."""
    warm_up_share: float = 0.1
    """Share of steps in which the learning rates rise linearly, before they fall by a cosine to 0. The paper does not
    say; common practice."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Precision of matrix products in forward passes. Parameters and optimiser states keep their own."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    checkpoint_steps: int = 0
    """Steps between checkpoints, where the caller gives a folder; 0 writes none."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "accumulation")
        _at_least(self, 0, "checkpoint_steps")
        _positive(self, "gradient_clip")
        _share(self, "warm_up_share")
        if self.accumulation > self.batch_size:
            raise UserError(
                f"MetaTuner: accumulation {self.accumulation} cuts a batch of {self.batch_size} rows into more parts "
                f"than it has; set accumulation to at most {self.batch_size}"
            )


@dataclass(frozen=True)
class WarmUpConfig(TrainingConfig):
    """The two supervised warm-ups before joint training, and the making of D2 between them."""

    actor_epochs: int = 1
    """Passes over D1 in the actor's warm-up: LoRA on (p~, x) -> y, merged afterwards; 0 leaves it out. The paper does
    not say how many; few, so that joint training does the work."""
    actor_learning_rate: float = 2e-4
    """Learning rate of the actor's warm-up. The paper does not say; common for LoRA."""
    actor_rank: int = 8
    """Rank of that LoRA, on all linears. The paper does not say; common practice."""
    actor_prompts: Literal["initial", "rollouts"] = "initial"
    """What the actor reads before x. initial: p~; rollouts: a fresh rewrite by the generator, such as it will meet.
    The paper does not say; p~ is the plain reading of "warmed up by SFT"."""
    trainable: Literal["full", "lora"] = "lora"
    """What is trained of the generator, here and in joint training. full: all weights; lora: LoRA on its linears. The
    paper does not say; the optimiser state of a 7B model does not fit beside the actor on one GPU."""
    generator_rank: int = 16
    """Rank of the generator's LoRA, on all linears; not used with `trainable: full`. The paper does not say; common
    practice. Joint training goes on with the same LoRA."""
    generator_epochs: int = 3
    """Passes over D2 in the generator's warm-up, (p~, x) -> best prompt. The paper does not say how many; few, so that
    joint training does the work."""
    generator_learning_rate: float = 1e-4
    """Learning rate of the generator's warm-up. The paper does not say; common for LoRA."""
    d2: Literal["best", "threshold", "expert", "initial"] = "best"
    """How D2 is made. best: per query, the rollout of highest reward, if that is above `reward_above`; threshold: every
    distinct rollout above it; expert: the greedy rewrite of the generator as it was given, whatever its reward;
    initial: p~ itself, without rollouts. The paper does not say which ways it compares; these four are the plain
    candidates."""
    rollouts: int = 8
    """Rewrites sampled per query to find D2. The paper does not say its default, though it varies it; 8 are enough for
    mixed outcomes, and the paper finds that too many hurt."""
    rollout_temperature: float = 1.0
    """Temperature of those samples. The paper does not say; 1 is the generator's own distribution."""
    reward_above: float = 0.5
    """Rewrites enter D2 only if their reward is above this. The paper does not say; an "expert" prompt must have
    worked."""
    max_prompt_tokens: int = 128
    """Longest prompt that the generator may write, in its tokens. The paper does not say; it bounds the cost of
    decoding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "actor_epochs", "generator_epochs")
        _at_least(self, 1, "actor_rank", "generator_rank", "rollouts", "max_prompt_tokens")
        _positive(self, "actor_learning_rate", "generator_learning_rate", "rollout_temperature")


@dataclass(frozen=True)
class MetaTunerConfig(TrainingConfig):
    """The model (shared encoder, two decoders) and its joint training."""

    shared_layers: int | float = 0.5
    """k, the depth of the shared meta encoder. An integer is k itself; a float is a share of the generator's K layers;
    0 shares nothing ("w/o S"). The paper finds K/4 best for its 7B generator and 3K/4 for its 3B one. The paper does
    not say which it uses elsewhere; half is the middle of its grid."""
    encoder_layers: int | float | None = None
    """The depth at which h_i is read, given as k is; None: k, and half of K where k = 0. Layers between k and this
    depth are a trainable copy, private to the parameter branch; for k = 0 that is all of them. Varying k at a fixed
    depth is the control that separates sharing from depth. The paper does not say what F reads at k = 0; it must read
    something."""
    prompt_branch: bool = True
    """False leaves the prompt branch out ("w/o P"): the actor reads p~, and D2 is not used."""
    parameter_branch: Literal["query", "static", "none"] = "query"
    """query: LoRA factors per query; static: one trained LoRA for all queries on the same sites, which is not in the
    paper and separates a hypernetwork from plain LoRA; none: no LoRA ("w/o F"). The paper does not say what "w/o F"
    leaves in the actor; here it is the warmed-up actor, frozen."""
    decoder: Literal["per_site", "layer_shared"] = "per_site"
    """per_site: a W_d and a W_u for each site and factor; layer_shared: one W_d and W_u for each kind of module, with
    an embedding of the layer, tens of times smaller at 7B. The paper does not say; per_site is the plain reading of its
    formula."""
    pooling: Literal["last", "mean"] = "last"
    """How the states over (p~, x) become h_i: the last token's, or their mean. The paper does not say; the last token
    has read the whole query."""
    state_scaling: Literal["standard", "rms"] = "standard"
    """How h_i is scaled for the parameter decoder. standard: each entry less its mean over D1, by its standard
    deviation there, both taken once before training; then, as with rms alone, to root mean square 1. The paper does not
    say; in pretrained models a few entries that are alike for all queries outweigh all others (arXiv 2402.17762)."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    """The actor's linears that get per-query LoRA: by name, or all in its decoder layers. The paper does not say; q and
    v are the usual choice, and the parameter decoder grows with each site."""
    rank: int = 8
    """Rank r of the per-query LoRA. The paper does not say; common practice."""
    scale: float = 2.0
    """lambda: Delta W = scale * B_i A_i. The paper does not say its value; alpha / r = 2 is common for LoRA."""
    bottleneck: int = 64
    """d_b, the width between W_d and W_u of the parameter decoder. The paper does not say; 64 keeps the decoder at
    about 0.1 billion weights for a 3B actor."""
    actor: Literal["frozen", "lora"] = "frozen"
    """With `lora`, the task loss goes on training the actor's warm-up LoRA. The paper does not say; its loss names the
    generator's parameters alone."""
    actor_learning_rate: float = 2e-4
    """Learning rate of that LoRA. The paper does not say; as in the warm-up."""
    objective: Literal["joint", "alternating", "gumbel"] = "joint"
    """joint: the sum of both loss terms in each step (MetaTuner-J). alternating: steps on one term, then on the other
    (MetaTuner-I). gumbel: the task loss alone; its gradient passes through prompt tokens by straight-through
    Gumbel-Softmax, in place of the supervised regularisation (the paper's variant)."""
    alternation_steps: int = 1
    """With `objective: alternating`, steps on the task term before as many on the prompt term. Each term sees the
    batches that `joint` shows it. The paper does not say; "alternates" is read as step by step."""
    gumbel_temperature: float = 1.0
    """With `objective: gumbel`, the temperature of the first step. The paper does not say; common practice."""
    gumbel_final_temperature: float = 0.3
    """With `objective: gumbel`, the temperature of the last step; it falls geometrically in between. The paper does not
    say; common practice."""
    alpha: float = 1.0
    """Weight of the supervised regularisation over D2. The paper does not say its value; both terms are mean
    cross-entropies."""
    epochs: int = 3
    """Passes over D1 of joint training. The paper does not say; where the search of `tune` starts."""
    factor_learning_rate: float = 5e-4
    """How far a step at the peak rate moves an entry of A_i or B_i, as the learning rate of a plain LoRA does. The
    rates of W_d and W_u follow from it by their widths (`ParameterDecoder.rates`), so that one value suits models of
    all widths. The paper does not say; common for LoRA."""
    hyper_learning_rate: float | None = None
    """Learning rate of W_d and W_u themselves (of the factors of a static LoRA); None: from `factor_learning_rate`. The
    paper does not say; with one rate for all widths, training of wide models diverges."""
    generator_learning_rate: float = 5e-5
    """Learning rate of the generator (phi_s and phi_p) and of copies of its layers private to the parameter branch.
    The paper does not say; where the search of `tune` starts."""
    sync_epochs: float = 1.0
    """Passes over D1 between two copies of phi_p to phi_p', the frozen copy that writes the prompts of the first loss
    term. The paper does not say how long its "fixed intervals" are; once per pass, prompts are written in large
    batches."""
    refresh_epochs: float = 1.0
    """Passes over D1 for which prompts are written at once, by phi_p' and the phi_s of that moment. A value below one
    step's share writes them in every step, as the formula does, and costs a decoding per step. The paper does not say;
    decoding in each step would cost more than training."""
    d2_refresh_epochs: float | None = None
    """Passes over D1 after which D2 is collected anew from the present generator's rollouts; None keeps the first D2.
    The paper does not say; one D2 is the plain reading of its loss."""
    evaluate_epochs: int | None = None
    """Passes over D1 between two measurements of the mean reward on dev rows, which are logged; the last is at the end.
    Their tokens count in the fit's cost, and nothing else changes. None: the harness measures none (`train_joint` with
    `evaluate`: after each pass)."""
    prompt_temperature: float = 0.5
    """Temperature of the prompts that the actor is trained under; 0 writes them as in evaluation. The paper does not
    say; some variety at little cost in quality."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "rank", "bottleneck", "alternation_steps")
        _at_least(self, 0, "epochs", "alpha", "prompt_temperature", "shared_layers")
        _positive(self, "scale", "factor_learning_rate", "generator_learning_rate", "actor_learning_rate")
        if self.hyper_learning_rate is not None:
            _positive(self, "hyper_learning_rate")
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
