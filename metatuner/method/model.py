"""The model: a meta encoder shared by a prompt decoder and a parameter decoder, in front of an actor."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.lm import LM, Adapt, Adaptation, Completion, PerQueryLoRA, generate, render
from metatuner.lm.adapters import frozen_view, merged
from metatuner.method.config import MetaTunerConfig
from metatuner.method.encoder import captured, decoder_layers, first_layers, meta_encoder, pooled, right_padded
from metatuner.method.gumbel import prompt_embedding
from metatuner.method.parameter_decoder import parameter_branch
from metatuner.method.prompt_decoder import read_rewrite, write_prompts
from metatuner.method.tuned import lora_parameters, save_tensors, trainable


class TunedModel:
    """Makes a prompt p_i and LoRA factors (A_i, B_i) per query x_i; the actor answers under them (arXiv 2509.24245).

    Both branches share the generator's first k layers (phi_s, the meta encoder). The layers above (phi_p, the prompt
    decoder) write p_i. The parameter decoder (phi_q) makes the factors from h_i. A tied LM head belongs to phi_s, like
    its embedding.

    If h_i is read above layer k, or if k = 0, the parameter branch has layers of its own. They are copies of the
    generator's layers; in the paper's terms they belong to phi_q. If k = 0, phi_s is empty and these layers have their
    own embedding.
    """

    def __init__(
        self,
        generator: LM,
        actor: LM,
        config: MetaTunerConfig,
        *,
        max_prompt_tokens: int = 128,
        seed: int = 0,
    ) -> None:
        """
        Args:
            generator: parameters that require gradients are trained in place (see `tuned.to_train`). Parameters that
                the configuration does not use are frozen.
            actor: not changed. It may carry its own LoRA (from `warm_up_actor`). The model runs a copy with this LoRA
                merged or, with `actor: lora`, a copy with this LoRA trainable.
            max_prompt_tokens: longest prompt p_i, in the generator's tokens.
            seed: draws the parameter decoder's initial weights.

        Raises `UserError` for depths that the generator does not have, for target modules or ranks that the actor does
        not allow, for models on two devices, and for `actor: lora` with an actor that carries no LoRA.
        """
        if generator.device != actor.device:
            raise UserError(
                f"MetaTuner: the generator is on {generator.device}, the actor on {actor.device}; put both on one "
                "device (models.*.device)"
            )
        self.config, self.max_prompt_tokens = config, max_prompt_tokens
        self.generator = generator
        if config.actor == "lora":
            if not (names := lora_parameters(actor).keys()):
                raise UserError(
                    "MetaTuner: actor lora trains the actor's own LoRA on, but it carries none; give the actor that "
                    "warm_up_actor returns, unmerged, or set actor to frozen"
                )
            self.actor = frozen_view(actor, own=names.__contains__)
            for parameter in lora_parameters(self.actor).values():
                parameter.requires_grad_(True)
            self.actor_with_lora = self.actor
        else:
            self.actor, self.actor_with_lora = merged(actor), actor
        self.lora = PerQueryLoRA(self.actor.model, config.target_modules, config.rank, config.scale)

        layers = len(decoder_layers(generator))
        self.shared_depth, self.encoder_depth = k, depth = config.depth(layers), config.encoder_depth(layers)
        shared = {id(parameter) for parameter in first_layers(generator, k).parameters()} if k else set()
        self.meta_encoder: nn.Module | None = None
        """The generator's embedding and layers up to where h_i is read; None if no factors are made from h_i."""
        if config.parameter_branch == "query":
            self.meta_encoder = meta_encoder(generator, k, depth)
        for parameter in trainable(generator).values():
            if not config.prompt_branch and not (self.meta_encoder is not None and id(parameter) in shared):
                parameter.requires_grad_(False)
        own = {id(parameter) for parameter in generator.model.parameters()}
        named = {} if self.meta_encoder is None else dict(self.meta_encoder.named_parameters())
        self.private = {name: p for name, p in named.items() if p.requires_grad and id(p) not in own}
        """Trainable parameters of the meta encoder that the generator does not have, by name."""
        self.parameter_decoder, self.state_norm = parameter_branch(config, generator, self.lora.sites, seed)
        upper = {name for name, parameter in trainable(generator).items() if id(parameter) not in shared}
        self.upper = upper
        """Names of the generator's trainable parameters above the shared layers."""
        self.frozen_generator = frozen_view(generator, own=upper.__contains__)
        """The current phi_s with phi_p', the copy of phi_p from the last `sync`. It gets no gradient."""

    @property
    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters, grouped by learning rate.

        The groups are phi_s, phi_p and phi_q (the parameter decoder). If the parameter branch has layers of its own,
        they are the group `private`. With `actor: lora` there is also `actor`.
        """
        named = trainable(self.generator)
        parts = {
            "phi_s": [parameter for name, parameter in named.items() if name not in self.upper],
            "phi_p": [parameter for name, parameter in named.items() if name in self.upper],
            "phi_q": [] if self.parameter_decoder is None else list(self.parameter_decoder.parameters()),
        }
        if self.private:
            parts["private"] = list(self.private.values())
        if self.config.actor == "lora":
            parts["actor"] = list(lora_parameters(self.actor).values())
        return parts

    @torch.no_grad()
    def sync(self) -> None:
        """Copy phi_p to phi_p'."""
        live = trainable(self.generator)
        for name, parameter in self.frozen_generator.model.named_parameters():
            if name in self.upper:
                parameter.copy_(live[name])

    def encode(self, prompts: Sequence[str], queries: Sequence[str]) -> Tensor:
        """h_i, [queries, H]: the meta encoder's states over (p~, x_i), pooled (see `encoder.pooled`).

        Raises `ValueError` if the parameter branch does not use h_i (static, none).
        """
        if self.meta_encoder is None:
            raise ValueError(f"parameter_branch {self.config.parameter_branch} has no meta encoder")
        rows = self._read(prompts, queries)
        # Padded on the right, where a causal model never attends.
        states = self.meta_encoder(input_ids=right_padded(self.generator, rows), use_cache=False).last_hidden_state
        ends = torch.tensor([len(row) for row in rows], device=self.generator.device)
        return pooled(states, torch.zeros_like(ends), ends, self.config.pooling)

    def factors(self, prompts: Sequence[str], queries: Sequence[str]) -> Tensor | None:
        """The LoRA factors of each query, flat: [queries, lora.flat_size]; None without a parameter branch."""
        if self.parameter_decoder is None:
            return None
        if self.meta_encoder is None:
            return self.parameter_decoder(len(queries))
        return self._decoded(self.encode(prompts, queries))

    @torch.no_grad()
    def fit_state_norm(self, prompts: Sequence[str], queries: Sequence[str]) -> None:
        """Take the means and deviations that standardise h_i from these queries (`state_scaling: standard`)."""
        if self.state_norm is None:
            return
        size, half = self.config.batch_size, self.config.autocast == "bfloat16"
        starts = range(0, len(queries), size)
        with torch.autocast(self.generator.device.type, torch.bfloat16, enabled=half):
            parts = [self.encode(prompts[start : start + size], queries[start : start + size]) for start in starts]
        self.state_norm.fit(torch.cat(parts))

    def _decoded(self, h: Tensor) -> Tensor:
        decoder = cast(nn.Module, self.parameter_decoder)
        return decoder(h if self.state_norm is None else self.state_norm(h))

    def adapted(self, prompts: Sequence[str], queries: Sequence[str]) -> AbstractContextManager[Adaptation | None]:
        """A context with the actor under these queries' factors, for batches with one row per query in this order."""
        return self._adapted(self.factors(prompts, queries))

    def adapt(self, prompts: Sequence[str], queries: Sequence[str]) -> Adapt:
        """For `generate` with this model's actor: makes and applies the factors of each batch when it is decoded."""
        return lambda rows: self.adapted([prompts[row] for row in rows], [queries[row] for row in rows])

    def write_prompts(
        self,
        prompts: Sequence[str],
        queries: Sequence[str],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        frozen: bool = False,
    ) -> list[str]:
        """p_i of each query, written with phi_p, or with phi_p' if `frozen`; p~ itself without a prompt branch."""
        if not self.config.prompt_branch:
            return list(prompts)
        return write_prompts(
            self.frozen_generator if frozen else self.generator,
            prompts,
            queries,
            max_prompt_tokens=self.max_prompt_tokens,
            temperature=temperature,
            seed=seed,
        )

    def write_and_encode(self, prompts: Sequence[str], queries: Sequence[str]) -> tuple[list[str], Tensor]:
        """p_i of each query, written greedily, and h_i, both from one forward pass over (p~, x_i).

        Raises `ValueError` if h_i is not a state of the generator's own layers (see `shares_reading`).
        """
        if not self.shares_reading:
            raise ValueError("the branches do not read (p~, x) with the same layers")
        rows = self._read(prompts, queries)
        embedding = cast(nn.Embedding, self.generator.model.get_input_embeddings()).weight
        h = torch.empty(len(rows), embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
        layer = decoder_layers(self.generator)[self.encoder_depth - 1]

        adapt = captured(layer, rows, h, self.config.pooling)
        completions = generate(self.generator, rows, max_new_tokens=self.max_prompt_tokens, adapt=adapt)
        return [completion.text for completion in completions], h

    @property
    def shares_reading(self) -> bool:
        """Whether one forward pass of the generator reads (p~, x_i) for both branches."""
        return self.config.prompt_branch and self.meta_encoder is not None and self.encoder_depth <= self.shared_depth

    def prepare(self, prompts: Sequence[str], queries: Sequence[str]) -> tuple[list[str], Adapt]:
        """p_i of each query and the adaptation for `generate`, under which the actor answers; `prompts` are p~."""
        if not self.shares_reading:
            return self.write_prompts(prompts, queries), self.adapt(prompts, queries)
        written, h = self.write_and_encode(prompts, queries)
        return written, lambda rows: self._adapted(self._decoded(h[rows]))

    def answer(
        self, prompts: Sequence[str], queries: Sequence[str], *, max_new_tokens: int, stops: Sequence[str] = ()
    ) -> list[Completion]:
        """The actor's greedy answers to queries, each under its own prompt and parameters; `prompts` are p~."""
        return self._answer(prompts, queries, max_new_tokens, stops)[1]

    def save(self, folder: Path) -> None:
        """Write the trained tensors (safetensors), one file per entry of `trained`.

        The base models are not written: `load` needs a tuner that was built on the same base models.
        """
        for name, tensors in self.trained().items():
            save_tensors(tensors, folder / f"{name}.safetensors")

    @cached_property
    def prompt_embedding(self) -> Tensor:
        """The actor's embedding of each generator token; see `gumbel.prompt_embedding`."""
        return prompt_embedding(self.generator, self.actor)

    def _answer(
        self, prompts: Sequence[str], queries: Sequence[str], max_new_tokens: int, stops: Sequence[str]
    ) -> tuple[list[str], list[Completion]]:
        written, adapt = self.prepare(prompts, queries)
        inputs = [
            render(self.actor, prompt, query, reserve=max_new_tokens).ids
            for prompt, query in zip(written, queries, strict=True)
        ]
        return written, generate(self.actor, inputs, max_new_tokens=max_new_tokens, stops=stops, adapt=adapt)

    def trained(self) -> dict[str, dict[str, Tensor]]:
        """The tensors that training changes, by file and name."""
        parts: dict[str, dict[str, Tensor]] = {"generator": dict(trainable(self.generator))}
        if self.parameter_decoder is not None:
            parts["parameter_decoder"] = self.parameter_decoder.state_dict()
        if self.state_norm is not None:
            parts["state_norm"] = self.state_norm.state_dict()
        if self.private:
            parts["meta_encoder"] = dict(self.private)
        if self.config.actor == "lora":
            parts["actor_lora"] = dict(lora_parameters(self.actor))
        return parts

    def _read(self, prompts: Sequence[str], queries: Sequence[str]) -> list[list[int]]:
        return [
            read_rewrite(self.generator, prompt, query, self.max_prompt_tokens)
            for prompt, query in zip(prompts, queries, strict=True)
        ]

    def _adapted(self, factors: Tensor | None) -> AbstractContextManager[Adaptation | None]:
        return nullcontext() if factors is None else self.lora.applied(factors)
