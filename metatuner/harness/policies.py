"""The two policies most methods end in: a fixed prompt, and a fixed prompt before an actor with a LoRA adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from metatuner.harness.ground import Demo, Ground
from metatuner.harness.policy import Policy, Query, Response, register_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from metatuner.lm import LM


@register_policy("fixed_prompt")
class FixedPrompt(Policy):
    """One prompt (and demonstrations) a benchmark, for every query of it."""

    def __init__(
        self, ground: Ground, prompts: Mapping[str, str], demos: Mapping[str, Sequence[Demo]] | None = None
    ) -> None:
        self.ground, self.prompts = ground, dict(prompts)
        self.demos = {name: [tuple(pair) for pair in pairs] for name, pairs in (demos or {}).items()}

    def respond(self, queries: Sequence[Query]) -> list[Response]:
        prompts = [self.prompts[query.benchmark] for query in queries]
        demos = [self.demos.get(query.benchmark, []) for query in queries]
        return self.ground.answer(queries, prompts, demos=demos)  # type: ignore[arg-type]

    def write(self, folder: Path) -> dict[str, Any]:
        return {"prompts": self.prompts, "demos": self.demos}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "FixedPrompt":
        return cls(ground, state["prompts"], state["demos"])


@register_policy("adapter")
class Adapter(Policy):
    """The actor with a PEFT adapter, asked under one prompt a benchmark."""

    def __init__(self, ground: Ground, actor: "LM", prompts: Mapping[str, str]) -> None:
        """`actor.model` is a `peft.PeftModel` around the ground's actor."""
        self.ground, self.actor, self.prompts = ground, actor, dict(prompts)

    def respond(self, queries: Sequence[Query]) -> list[Response]:
        return self.ground.answer(queries, [self.prompts[query.benchmark] for query in queries], actor=self.actor)

    def write(self, folder: Path) -> dict[str, Any]:
        self.actor.model.save_pretrained(folder / "adapter", safe_serialization=True)
        return {"prompts": self.prompts}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "Adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(ground.actor.model, folder / "adapter")
        # A PeftModel runs as the model it wraps, but is no PreTrainedModel to the type checker.
        actor = replace(ground.actor, model=cast("PreTrainedModel", model.eval()))
        return cls(ground, actor, state["prompts"])
