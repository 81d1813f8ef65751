"""A commented file that is a working method from the start."""

from pathlib import Path

from metatuner.errors import UserError
from metatuner.files import write_text
from metatuner.harness.method import NAME
from metatuner.harness.registry import Registry

TEMPLATE = '''"""{shown}.

The best of a few rewrites of the initial prompt. Replace this by what your method does.
"""

from dataclasses import dataclass

from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, Positive
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.query import to_query


@dataclass(frozen=True)
class Settings:
    """Defaults. A preset overrides them under methods.NAME.settings; methods.NAME.search says what a search tries."""

    candidates: Count = 4  # Count: a whole number, at least 1
    """Rewrites tried beside the initial prompt. Say here why this is the default."""
    temperature: Positive = 1.0  # Positive: a number above 0
    """Sampling temperature of the rewrites."""


class {cls}(Method):
    """One prompt for all queries, the best of sampled rewrites on dev rows."""

    # The name in files and the config, and the name that tables and figures print.
    name = "{name}"
    title = "{shown}"
    family = "{family}"  # vanilla, prompt, parameter or hybrid: where tables list it
    reference = "where the method is described"
    deviations = ()  # what differs here from that description, one sentence each
    Settings = Settings
    uses_generator = True  # False: results do not depend on the generator

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        """What one fit does at most, for `metatuner cost`. Without it the method is listed as not counted."""
        candidates = self.settings.candidates
        return Loop(Sequences(answers=(1 + candidates) * rows.judging, rewrites=candidates))

    def skip(self, lab: Lab) -> str | None:
        """A reason why it cannot run here, or None. A skipped cell is no failure."""
        return "no generator to write rewrites" if lab.generator is None else None

    def fit(self, lab: Lab) -> StaticPolicy:
        """`lab` has the models, train and dev rows, the reward and the budget; nothing leads to tune or test rows."""
        # All randomness comes from named streams of the lab, so that a seed gives the same result everywhere.
        random = lab.random("rewrites")
        rows = random.choices(list(lab.train), k=self.settings.candidates)
        rewrites = lab.rewrite(
            [to_query(row) for row in rows],
            [lab.initial_prompt(row) for row in rows],
            temperature=self.settings.temperature,
            seeds=[random.getrandbits(63) for _ in rows],
        )
        candidates = list(dict.fromkeys([*(lab.initial_prompt(name) for name in lab.trained_on), *rewrites]))
        scored = lab.dev or lab.train
        queries = [to_query(row) for row in scored]
        best, best_reward = candidates[0], -1.0
        for prompt in candidates:
            # Going over the budget fails the fit, so stop before.
            if lab.budget.left("lm_calls") < len(queries):
                lab.log(event="budget")
                break
            rewards = lab.reward(scored, lab.answer(queries, prompt))
            reward = sum(rewards) / len(rewards)
            lab.log(event="candidate", prompt=prompt, reward=round(reward, 5))
            if reward > best_reward:
                best, best_reward = prompt, reward
        # A prompt for every benchmark of the lab: one may be tested on that was not trained on.
        return StaticPolicy(lab, dict.fromkeys(lab.benchmarks, best))
'''


def new_method(name: str, family: str, folder: Path) -> Path:
    """Write `<folder>/<name>.py` and return its path.

    Raises:
        UserError: the name is taken or invalid, or the file exists.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is no method name; use lower-case letters, digits and underscores, a letter first")
    if name in Registry().names():
        raise UserError(f"a method {name!r} exists already; see `metatuner methods`, and choose another name")
    path = folder / f"{name}.py"
    if path.exists():
        raise UserError(f"{path} exists already; remove it, or choose another name")
    words = name.split("_")
    shown = " ".join(map(str.capitalize, words))
    text = TEMPLATE.format(name=name, family=family, cls=shown.replace(" ", ""), shown=shown)
    return write_text(path, text)
