"""The policy that most methods return: the same prompt, demonstrations and adapter for every query of a benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from metatuner.errors import UserError
from metatuner.harness.ground import Ground
from metatuner.harness.policy import Policy, load_policy, register_policy
from metatuner.harness.query import Demo, Prepared, Query

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from metatuner.lm import LM


@register_policy("static")
class StaticPolicy(Policy):
    """One prompt and optional demonstrations per benchmark; the actor as it is, or with a PEFT adapter."""

    def __init__(
        self,
        ground: Ground,
        prompts: Mapping[str, str],
        demos: Mapping[str, Sequence[Demo]] | None = None,
        actor: "LM | None" = None,
    ) -> None:
        """
        Args:
            ground: the models and benchmarks.
            prompts: one prompt per benchmark, by name.
            demos: demonstrations per benchmark, oldest first; a benchmark that is not named has none.
            actor: the ground's actor in a `peft.PeftModel`; None: the ground's actor as it is.
        """
        self.ground, self.prompts, self.actor, self.was_read = ground, dict(prompts), actor, False
        self.demos: dict[str, list[Demo]] = {
            name: [(query, answer) for query, answer in pairs] for name, pairs in (demos or {}).items()
        }

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        names = [query.benchmark for query in queries]
        demos = [self.demos.get(name, []) for name in names]
        return Prepared([self.prompts[name] for name in names], demos, actor=self._answering)

    @cached_property
    def _answering(self) -> "LM | None":
        """The actor that answers. A saved policy's adapter does not change any more, so it is merged: this answers
        faster (on SmolLM2-135M, unmerged adapters took 1.6 times as long)."""
        from metatuner.lm.adapters import merged

        return self.actor if self.actor is None or not self.was_read else merged(self.actor)

    @property
    def tuned_actor(self) -> "LM":
        """The actor with its adapter; UserError if the policy has none."""
        if self.actor is None:
            raise UserError("this policy has no adapter: only its prompt differs from the initial one")
        return self.actor

    def write(self, folder: Path) -> dict[str, Any]:
        if self.actor is not None:
            self.actor.model.save_pretrained(folder / "adapter", safe_serialization=True)
        return {"prompts": self.prompts, "demos": self.demos, "adapter": self.actor is not None}

    @classmethod
    def read(cls, folder: Path, state: dict[str, Any], ground: Ground) -> "StaticPolicy":
        actor = None
        if state["adapter"]:
            from peft import PeftModel

            model = PeftModel.from_pretrained(ground.actor.model, folder / "adapter")
            # A PeftModel runs as the model it wraps, but the type checker does not accept it as a PreTrainedModel.
            actor = replace(ground.actor, model=cast("PreTrainedModel", model.eval()))
        policy = cls(ground, state["prompts"], state["demos"], actor)
        policy.was_read = True
        return policy


def load_static(folder: Path, ground: Ground) -> StaticPolicy:
    """Load a saved policy of this kind; UserError if it is of another kind."""
    policy = load_policy(folder, ground)
    if not isinstance(policy, StaticPolicy):
        raise UserError(f"{folder}: a policy of kind {policy.kind!r}, not a fixed prompt or adapter")
    return policy
