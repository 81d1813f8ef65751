"""Zero-shot: the actor under the initial prompt, the floor of every comparison."""

from metatuner.harness.ground import Lab
from metatuner.harness.method import Method
from metatuner.harness.policies import FixedPrompt


class ZeroShot(Method):
    """Every query under p~ of its benchmark; nothing is fitted."""

    name = "zero_shot"
    family = "vanilla"
    reference = "the initial prompt p~ of arXiv 2509.24245"

    def fit(self, lab: Lab) -> FixedPrompt:
        return FixedPrompt(lab, {name: lab.initial_prompt(name) for name in lab.benchmarks})
