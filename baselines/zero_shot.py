"""Zero-shot: the actor under the initial prompt, the floor of every comparison."""

from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Shares
from metatuner.harness.method import Method
from metatuner.harness.policies import StaticPolicy


class ZeroShot(Method):
    """Answers every query under the p~ of its benchmark; nothing is fitted."""

    name = "zero_shot"
    title = "Zero-shot"
    family = "vanilla"
    reference = "the initial prompt p~ of arXiv 2509.24245"

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        return Loop()

    def fit(self, lab: Lab) -> StaticPolicy:
        return StaticPolicy(lab, {name: lab.initial_prompt(name) for name in lab.benchmarks})
