"""RLPrompt: a small policy network learns by soft Q-learning to write a prompt of a few tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from metatuner import progress
from metatuner.errors import UserError
from metatuner.harness.lab import Lab
from metatuner.harness.loop import Loop, Rows, Sequences, Shares
from metatuner.harness.method import Count, Method, Positive, Share
from metatuner.harness.policies import StaticPolicy
from metatuner.harness.query import to_query
from metatuner.harness.rows import Row


@dataclass(frozen=True)
class Settings:
    """Settings of RLPrompt. Defaults without a source come from few-shot classification in mingkaid/rl-prompt."""

    keep_initial: bool = False
    """Put the written tokens after p~. If false, they are the whole prompt, as in the source."""
    prompt_tokens: Count = 5
    """Number of tokens that the policy writes, in the generator's vocabulary."""
    steps: Count = 12_000
    """Maximum number of steps. Training also ends when the budget does not cover another step."""
    samples: Count = 16
    """Prompts sampled per step; rewards are z-scored across them."""
    scored_rows: Count = 16
    """Train rows per step, drawn anew, on which all prompts of the step are scored; all train rows if there are
    fewer."""
    reward_scale: Positive = 5.0
    """Factor on the z-scores. This is the source's reward shaping, from 0..1 to 0..5."""
    hidden_size: Count = 2048
    """Width of the MLP's hidden layer."""
    learning_rate: Positive = 5e-5
    """Constant learning rate of Adam."""
    target_rate: Share = 1e-3
    """Share by which the target network moves towards the policy before each step (Polyak averaging)."""
    top_k: Count = 256
    """Number of likeliest tokens from which each token of a prompt is sampled."""
    fluent_top_k: Count | None = None
    """Choose only among this many tokens that the generator itself finds likeliest. None: no such limit. The source has
    20, switched off."""
    logit_bias: float = 0.0
    """Added to all logits, which shifts V. The source's text style transfer has -10."""
    gradient_clip: Positive = 5.0
    """Maximum gradient norm."""
    eval_steps: Count = 10
    """Steps between evaluations. An evaluation scores the greedy prompt and the best sampled prompt of these steps on
    the dev rows."""


class RLPrompt(Method):
    """Learns one short prompt for all queries, written token by token by a policy on top of the frozen generator.

    It does not use DSPy, because DSPy's optimizers propose texts. This method needs the tokens of a prompt and the
    hidden states that they were sampled from.
    """

    name = "rlprompt"
    title = "RLPrompt"
    family = "prompt"
    reference = "Deng et al. 2022, RLPrompt (arXiv 2205.12548); mingkaid/rl-prompt"
    deviations = (
        "The reward is the task metric of the actor's answers to train rows drawn anew each step; the source's is a "
        "gap between the probabilities of verbalisers.",
        "Dev rows choose between the greedy prompts in the course of training and the best sampled ones; the source "
        "takes a greedy one.",
        "The policy stands on the generator in place of DistilGPT-2, and does not choose tokens that are no "
        "printable text.",
        "Training has as many steps as the preset says; the source has 12,000.",
        "With `keep_initial` the tokens follow the initial prompt; in the source they are the whole prompt.",
    )
    Settings = Settings
    uses_generator = True

    def skip(self, lab: Lab) -> str | None:
        return "no generator to build the policy on" if lab.generator is None else None

    def loop(self, rows: Rows, shares: Shares) -> Loop:
        s: Settings = self.settings
        judged, drafts = 2 * (s.steps // s.eval_steps) * rows.judging, s.steps * s.samples
        answers = drafts * min(s.scored_rows, rows.train) + judged
        return Loop(Sequences(answers=answers, drafts=drafts, draft_tokens=drafts * s.prompt_tokens))

    def fit(self, lab: Lab) -> StaticPolicy:
        """Train on `lab.train`. If trained on several benchmarks, all share one prompt, after each p~ if kept."""
        from baselines.shared.budget import affordable
        from baselines.shared.rlprompt_policy import PromptPolicy, z_scores

        settings: Settings = self.settings
        policy = PromptPolicy(
            lab.need_generator(),
            prompt_tokens=settings.prompt_tokens,
            hidden_size=settings.hidden_size,
            top_k=settings.top_k,
            fluent_top_k=settings.fluent_top_k,
            logit_bias=settings.logit_bias,
            learning_rate=settings.learning_rate,
            target_rate=settings.target_rate,
            gradient_clip=settings.gradient_clip,
            seed=lab.stream("policy"),
        )
        random, size = lab.random("rows"), min(settings.scored_rows, len(lab.train))
        judges = lab.dev or lab.train
        judged: dict[str, float] = {}
        sampled: dict[str, float] = {}  # since the last evaluation
        for step in progress.each(range(1, settings.steps + 1), "steps"):
            # The remaining budget must also cover the evaluation that follows.
            answers, proposals = settings.samples * size + 2 * len(judges), settings.samples + 1
            if not affordable(lab, answers=answers, proposals=proposals, proposal_tokens=settings.prompt_tokens):
                lab.log(event="budget", steps=step - 1)
                break
            ids, states = policy.sample(settings.samples)
            texts = policy.texts(ids)
            rewards = self._rewards(lab, texts, random.sample(list(lab.train), size))
            loss = policy.learn(ids, states, [settings.reward_scale * z for z in z_scores(rewards)])
            lab.budget.add(trained_tokens=ids.numel())  # they pass the MLP and the LM head, which have no meter
            lab.log(event="step", step=step, loss=round(loss, 5), reward=round(fmean(rewards), 5))
            if not math.isfinite(loss):
                raise UserError(f"rlprompt: loss {loss} at step {step} of {settings.steps}; lower learning_rate")
            sampled.update(zip(texts, rewards, strict=True))
            if step % settings.eval_steps == 0:
                self._judge(lab, [policy.greedy(), max(sampled, key=sampled.__getitem__)], judges, judged, step)
                sampled.clear()
        if sampled or not judged:
            last = [max(sampled, key=sampled.__getitem__)] if sampled else []
            self._judge(lab, [policy.greedy(), *last], judges, judged, settings.steps)
        chosen = max(judged, key=judged.__getitem__)
        lab.log(event="choice", prompt=chosen, dev=round(judged[chosen], 5))
        return StaticPolicy(lab, {name: self._prompt(lab.initial_prompt(name), chosen) for name in lab.benchmarks})

    def _judge(self, lab: Lab, texts: Sequence[str], rows: Sequence[Row], judged: dict[str, float], step: int) -> None:
        """Score the texts that are not in `judged` yet."""
        for text in dict.fromkeys(texts):
            if text not in judged:
                (judged[text],) = self._rewards(lab, [text], rows)
                lab.log(event="dev", step=step, prompt=text, reward=round(judged[text], 5))

    def _rewards(self, lab: Lab, texts: Sequence[str], rows: Sequence[Row]) -> list[float]:
        """The mean metric of each text on the rows; equal texts are scored once."""
        asked = list(dict.fromkeys(texts))
        pairs = [(text, row) for text in asked for row in rows]
        prompts = [self._prompt(lab.initial_prompt(row), text) for text, row in pairs]
        scores = lab.reward([row for _, row in pairs], lab.answer([to_query(row) for _, row in pairs], prompts))
        known = {text: fmean(scores[index * len(rows) :][: len(rows)]) for index, text in enumerate(asked)}
        return [known[text] for text in texts]

    def _prompt(self, initial: str, text: str) -> str:
        return f"{initial} {text}" if self.settings.keep_initial else text
