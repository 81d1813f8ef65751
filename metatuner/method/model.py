"""The model: a meta encoder shared by a prompt decoder and a parameter decoder, in front of an actor."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.lm import LM, Adapt, Adaptation, Completion, PerQueryLoRA, generate, render
from metatuner.method.config import MetaTunerConfig
from metatuner.method.parameter_decoder import ParameterDecoder
from metatuner.method.prompt_decoder import read_rewrite, write_prompts
from metatuner.method.tuned import frozen_view, load_tensors, save_tensors, trainable


class MetaTuner:
    """For each query x_i: a prompt p_i and LoRA factors (A_i, B_i), under which the actor answers (arXiv 2509.24245).

    The generator's first k layers (phi_s, the meta encoder) serve both branches: the layers above (phi_p, the prompt
    decoder) write p_i, the parameter decoder (phi_q) makes the factors from h_i. A tied LM head goes with its
    embedding, so with phi_s.
    """

    def __init__(
        self, generator: LM, actor: LM, config: MetaTunerConfig, *, max_prompt_tokens: int = 128, seed: int = 0
    ) -> None:
        """
        Args:
            generator: trained in place, as far as its parameters require gradients (see `tuned.to_train`).
            actor: left as it is; a frozen view of it is run.
            max_prompt_tokens: longest prompt p_i, in the generator's tokens.
            seed: draws the parameter decoder's initial weights.

        Raises `UserError` for a depth k outside 1..K, and for target modules or ranks that the actor does not allow.
        """
        self.config, self.max_prompt_tokens = config, max_prompt_tokens
        self.generator, self.actor = generator, frozen_view(actor)
        self.meta_encoder = first_layers(generator, config.depth(len(decoder_layers(generator))))
        self.lora = PerQueryLoRA(self.actor.model, config.target_modules, config.rank, config.scale)
        # Half precision would lose small steps; `lora.applied` casts its output.
        dtype = torch.float64 if generator.model.dtype == torch.float64 else torch.float32
        self.parameter_decoder = ParameterDecoder(
            cast(nn.Embedding, generator.model.get_input_embeddings()).embedding_dim,
            self.lora.sites,
            config.rank,
            config.bottleneck,
            seed=seed,
            dtype=dtype,
            device=generator.device,
        )
        shared = {id(parameter) for parameter in self.meta_encoder.parameters()}
        upper = {name for name, parameter in trainable(generator).items() if id(parameter) not in shared}
        self.upper = upper
        """Names of the generator's trainable parameters above the meta encoder."""
        self.frozen_generator = frozen_view(generator, own=upper.__contains__)
        """phi_s as it is now with phi_p', the copy of phi_p at the last `sync`; no gradient reaches it."""

    @property
    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters: phi_s, phi_p and phi_q."""
        named = trainable(self.generator)
        return {
            "phi_s": [parameter for name, parameter in named.items() if name not in self.upper],
            "phi_p": [parameter for name, parameter in named.items() if name in self.upper],
            "phi_q": list(self.parameter_decoder.parameters()),
        }

    @torch.no_grad()
    def sync(self) -> None:
        """Copy phi_p to phi_p'."""
        live = trainable(self.generator)
        for name, parameter in self.frozen_generator.model.named_parameters():
            if name in self.upper:
                parameter.copy_(live[name])

    def encode(self, prompts: Sequence[str], queries: Sequence[str]) -> Tensor:
        """h_i, [queries, H]: the meta encoder's states over (p~, x_i), pooled and scaled to root mean square 1.

        The scale of inner states differs between models by orders of magnitude; without it, no initial weights or
        learning rate of the parameter decoder would serve two models.
        """
        rows = [
            read_rewrite(self.generator, prompt, query, self.max_prompt_tokens)
            for prompt, query in zip(prompts, queries, strict=True)
        ]
        device = self.generator.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        inputs = torch.full((len(rows), max(map(len, rows))), self.generator.filler)
        for index, row in enumerate(rows):
            inputs[index, : len(row)] = torch.tensor(row)
        # Padded on the right, where a causal model never looks.
        states = self.meta_encoder(input_ids=inputs.to(device), use_cache=False).last_hidden_state
        if self.config.pooling == "last":
            pooled = states[torch.arange(len(rows), device=device), lengths - 1]
        else:
            inside = torch.arange(states.shape[1], device=device) < lengths[:, None]
            pooled = (states * inside[..., None]).sum(1) / lengths[:, None]
        return F.rms_norm(pooled, pooled.shape[-1:])

    def factors(self, prompts: Sequence[str], queries: Sequence[str]) -> Tensor:
        """The LoRA factors of each query, flat: [queries, lora.flat_size]."""
        return self.parameter_decoder(self.encode(prompts, queries))

    def write_prompts(
        self,
        prompts: Sequence[str],
        queries: Sequence[str],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        frozen: bool = False,
    ) -> list[str]:
        """p_i of each query, written with phi_p, or with phi_p' if `frozen`."""
        return write_prompts(
            self.frozen_generator if frozen else self.generator,
            prompts,
            queries,
            max_prompt_tokens=self.max_prompt_tokens,
            temperature=temperature,
            seed=seed,
        )

    def adapt(self, prompts: Sequence[str], queries: Sequence[str]) -> Adapt:
        """For `generate` with this model's actor: makes each batch's factors when the batch comes, and applies them."""

        def adapted(rows: list[int]) -> AbstractContextManager[Adaptation]:
            return self.lora.applied(self.factors([prompts[row] for row in rows], [queries[row] for row in rows]))

        return adapted

    def answer(
        self, prompts: Sequence[str], queries: Sequence[str], *, max_new_tokens: int, stops: Sequence[str] = ()
    ) -> list[Completion]:
        """The actor's greedy answers to queries, each under its own prompt and parameters; `prompts` are p~."""
        written = self.write_prompts(prompts, queries)
        inputs = [
            render(self.actor, prompt, query, reserve=max_new_tokens).ids
            for prompt, query in zip(written, queries, strict=True)
        ]
        return generate(
            self.actor, inputs, max_new_tokens=max_new_tokens, stops=stops, adapt=self.adapt(prompts, queries)
        )

    def save(self, folder: Path) -> None:
        """Write what was trained: the generator's trainable parameters and the parameter decoder (safetensors).

        The base models are not written: `load` wants a MetaTuner built on the same ones.
        """
        save_tensors(dict(trainable(self.generator)), folder / "generator.safetensors")
        save_tensors(self.parameter_decoder.state_dict(), folder / "parameter_decoder.safetensors")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; UserError if it belongs to another configuration."""
        load_tensors(dict(trainable(self.generator)), folder / "generator.safetensors")
        load_tensors(self.parameter_decoder.state_dict(), folder / "parameter_decoder.safetensors")
        self.sync()


def decoder_layers(lm: LM) -> nn.ModuleList:
    """The decoder's layers; UserError for an architecture that does not name them `layers`, with a last `norm`."""
    layers = getattr(lm.decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(getattr(lm.decoder, "norm", None), nn.Module):
        raise UserError(
            f"model {lm.spec.path}: {type(lm.decoder).__name__} has no `layers` and `norm`, so it cannot be the "
            "generator; use a decoder-only model of the Llama, Qwen, Mistral or Gemma kind"
        )
    return layers


def first_layers(lm: LM, k: int) -> nn.Module:
    """The decoder's embedding and first k layers as a module of its own that shares their tensors.

    It ends before the decoder's last norm, which belongs to the layers above.
    """
    encoder = copy.copy(lm.decoder)
    # A copied module shares its table of children with the original; this one gets its own.
    encoder._modules = dict(encoder._modules)
    encoder.layers = decoder_layers(lm)[:k]
    encoder.norm = nn.Identity()
    return encoder
