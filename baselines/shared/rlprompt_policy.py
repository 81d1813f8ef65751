"""RLPrompt's policy network and its soft Q-learning. Imported by `baselines.rlprompt` within a fit."""

import copy
from collections.abc import Callable
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from metatuner.lm import LM


def path_consistency_loss(logits: Tensor, target_logits: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
    """Soft Q-learning's loss for a reward at the end: logits are Q, their logsumexp is V (arXiv 2106.07704).

    It is the mean of the single-step and the multi-step objective. Each is summed over tokens and averaged over
    prompts. This is `v2_v2r_v3_v3r` of mingkaid/rl-prompt, which has no reversed terms without its coefficient.

    Args:
        logits: [prompts, tokens, vocabulary], of the network that is trained.
        target_logits: the same, of the target network. The advantages must agree with its values.
        actions: [prompts, tokens], the token chosen at each place.
        rewards: [prompts].
    """
    advantage = logits.gather(-1, actions[..., None]).squeeze(-1) - logits.logsumexp(-1)
    value = target_logits.logsumexp(-1)
    following = torch.cat([value[:, 1:], rewards[:, None]], 1)
    to_come = advantage.flip(1).cumsum(1).flip(1)
    single = (advantage - (following - value)).square()
    multiple = (to_come - (rewards[:, None] - value)).square()
    return ((single + multiple) / 2).sum(1).mean()


def z_scores(rewards: list[float]) -> list[float]:
    """Rewards in standard deviations from their mean; 1e-4 is added to the deviation, as in mingkaid/rl-prompt."""
    mean, deviation = fmean(rewards), pstdev(rewards)
    return [(reward - mean) / (deviation + 1e-4) for reward in rewards]


class PromptPolicy:
    """Writes prompts with a frozen language model and a trained MLP between its last hidden state and its LM head.

    It reads only the begin-of-text token, or EOS if the model has none (GPT-2). It never chooses tokens that are not
    printable text by themselves: special tokens, parts of characters, control characters.
    """

    def __init__(
        self,
        lm: LM,
        *,
        prompt_tokens: int,
        hidden_size: int,
        top_k: int,
        fluent_top_k: int | None,
        logit_bias: float,
        learning_rate: float,
        target_rate: float,
        gradient_clip: float,
        seed: int,
    ) -> None:
        self.lm, self.prompt_tokens, self.top_k, self.fluent_top_k = lm, prompt_tokens, top_k, fluent_top_k
        self.logit_bias, self.target_rate, self.gradient_clip = logit_bias, target_rate, gradient_clip
        lm.model.requires_grad_(False)
        self.stream = torch.Generator().manual_seed(seed)
        self.online = _mlp(lm.head.in_features, hidden_size, self.stream).to(lm.device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=learning_rate)
        self.barred = _without_text(lm)

    def logits(self, network: nn.Module, states: Tensor) -> Tensor:
        """Q of every token, [..., vocabulary] in fp32, from hidden states [..., width]; -inf for barred tokens."""
        dtype, barred = self.lm.head.weight.dtype, self.barred
        if self.fluent_top_k is not None:
            own = self.lm.head(states.to(dtype)).float().masked_fill(barred, -torch.inf)
            barred = own < own.topk(min(self.fluent_top_k, own.shape[-1])).values[..., -1:]
        return (self.lm.head(network(states).to(dtype)).float() + self.logit_bias).masked_fill(barred, -torch.inf)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Sample prompts, each token from the `top_k` likeliest ones.

        Returns:
            Token ids [count, tokens], and the hidden states that they were chosen from, [count, tokens, width] in fp32.
        """

        def draw(logits: Tensor) -> Tensor:
            values, tokens = logits.topk(min(self.top_k, logits.shape[-1]))
            chosen = torch.multinomial(values.softmax(-1).cpu(), 1, generator=self.stream)
            return tokens.gather(-1, chosen.to(tokens.device)).squeeze(-1)

        return self._write(count, draw)

    def greedy(self) -> str:
        """The prompt of the likeliest tokens."""
        (text,) = self.texts(self._write(1, lambda logits: logits.argmax(-1))[0])
        return text

    def texts(self, ids: Tensor) -> list[str]:
        """The prompts as text."""
        return [self.lm.decode(row).strip() for row in ids.tolist()]

    def learn(self, ids: Tensor, states: Tensor, rewards: list[float]) -> float:
        """Take one Adam step on prompts that `sample` returned; return the loss before the step."""
        with torch.no_grad():
            for kept, live in zip(self.target.parameters(), self.online.parameters(), strict=True):
                kept.lerp_(live, self.target_rate)
            wanted = self.logits(self.target, states)
        loss = path_consistency_loss(
            self.logits(self.online, states), wanted, ids, torch.tensor(rewards, device=ids.device)
        )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), self.gradient_clip)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def _write(self, count: int, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        cache = DynamicCache(config=self.lm.model.config)
        begin = self.lm.begin_ids or [self.lm.end_of_turn]
        inputs = torch.tensor([begin] * count, device=self.lm.device)
        ids, states = [], []
        for _ in range(self.prompt_tokens):
            hidden = self.lm.decoder(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state
            states.append(hidden[:, -1].float())
            ids.append(choose(self.logits(self.online, states[-1])))
            inputs = ids[-1][:, None]
        return torch.stack(ids, 1), torch.stack(states, 1)


def _mlp(width: int, hidden_size: int, stream: torch.Generator) -> nn.Sequential:
    """An MLP with one hidden layer. It starts at almost zero, so that all tokens are equally likely at first."""
    layers = nn.Linear(width, hidden_size), nn.Linear(hidden_size, width)
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight, gain=1e-4, generator=stream)
        nn.init.constant_(layer.bias, -1e-4)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def _without_text(lm: LM) -> Tensor:
    """[vocabulary], True for tokens that are not printable text by themselves."""
    barred = torch.ones(lm.head.out_features, dtype=torch.bool)
    for token in range(len(lm.tokenizer)):
        text = lm.decode([token])
        barred[token] = not text or not text.isprintable() or "\ufffd" in text
    barred[[*lm.suppressed_ids, *lm.eos_ids]] = True
    return barred.to(lm.device)
