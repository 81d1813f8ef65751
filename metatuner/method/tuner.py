"""MetaTuner as a library: it answers queries, is saved and loaded, and exports PEFT adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metatuner.errors import UserError
from metatuner.lm import LM
from metatuner.method import saving
from metatuner.method.config import MetaTunerConfig
from metatuner.method.model import TunedModel
from metatuner.method.tuned import load_tensors


@dataclass(frozen=True)
class Answer:
    """A tuner's answer to one query."""

    prompt: str
    """p_i, under which the actor answered."""
    completion: str
    truncated: bool
    """Whether the completion reached the limit without an end."""


class MetaTuner(TunedModel):
    """The actor answers each query under the query's own prompt and LoRA (arXiv 2509.24245); see `TunedModel`."""

    def __init__(
        self, generator: LM, actor: LM, config: MetaTunerConfig, *, initial_prompt: str | None = None, **options: Any
    ) -> None:
        """
        Args:
            generator, actor, config, options: see `TunedModel`.
            initial_prompt: p~ of `generate` and `export_adapter`, if they get none.
        """
        super().__init__(generator, actor, config, **options)
        self.initial_prompt = initial_prompt

    def generate(
        self, queries: Sequence[str], *, max_new_tokens: int, prompt: str | None = None, stops: Sequence[str] = ()
    ) -> list[Answer]:
        """Greedy answers and the prompts under which they were given.

        Args:
            prompt: p~ of all queries; by default `initial_prompt`.
            max_new_tokens: longest answer, in the actor's tokens.
            stops: strings that end an answer; they are not part of it.
        """
        initial = [self.initial(prompt)] * len(queries)
        written, completions = self._answer(initial, queries, max_new_tokens, stops)
        return [
            Answer(text, completion.text, completion.truncated)
            for text, completion in zip(written, completions, strict=True)
        ]

    def initial(self, prompt: str | None) -> str:
        """p~: `prompt` if given, else `initial_prompt`; `UserError` if there is neither."""
        chosen = self.initial_prompt if prompt is None else prompt
        if chosen is None:
            raise UserError("MetaTuner: no initial prompt; give `prompt`, or build the tuner with `initial_prompt`")
        return chosen

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; UserError if it belongs to another configuration."""
        saving.check_config(self.config, folder)
        for name, tensors in self.trained().items():
            load_tensors(tensors, folder / f"{name}.safetensors")
        self.sync()

    def save_pretrained(self, folder: Path | str, *, include_base: bool = False) -> None:
        """Write a folder that `from_pretrained` reads: safetensors and metatuner.json; see `saving`.

        The base models are named by path, revision and a fingerprint of their weights. With `include_base` they are
        also written, as ordinary model folders `generator` and `actor`. Set `include_base` if the actor's warm-up LoRA
        was merged before MetaTuner got the actor: it is then no longer the model at its path.
        """
        saving.save_pretrained(self, Path(folder), include_base, self.initial_prompt, self.actor_fingerprint)

    @classmethod
    def from_pretrained(cls, folder: Path | str, generator: LM | None = None, actor: LM | None = None) -> "MetaTuner":
        """The tuner that `save_pretrained` wrote.

        Args:
            generator, actor: the base models, if they are loaded already; by default, loaded as the folder says.

        Raises `UserError` if the folder or its configuration cannot be read, and for base models with other weights.
        """
        tuner = cls(**saving.read_parts(Path(folder), generator, actor))
        tuner.load(Path(folder))
        return tuner

    def export_adapter(self, query: str, folder: Path | str, *, prompt: str | None = None) -> str:
        """Write the LoRA of one query as a PEFT folder, and return p_i, the prompt that goes with it.

        If the actor came with its own LoRA (unmerged), the adapter combines both and adds their ranks. It is then
        relative to the actor without any LoRA. Otherwise it is relative to the actor that this tuner was given.
        metatuner.json beside it holds p_i and the fingerprint of that base model.

        Args:
            prompt: p~; by default `initial_prompt`.
        """
        return saving.export_adapter(self, query, Path(folder), self.initial(prompt), self.actor_fingerprint)

    @cached_property
    def actor_fingerprint(self) -> str:
        """Fingerprint of the given actor without its LoRA; see `saving.fingerprint`."""
        return saving.fingerprint(self.actor_with_lora)
