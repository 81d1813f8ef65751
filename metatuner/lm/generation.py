"""Batched generation: a row's result depends on this row alone, and each batch can have its own model adaptation.

`transformers.generate` is as fast for a fixed model. This loop exists for three things that it lacks: an adaptation
that follows the rows (per-query LoRA), one random stream per row, and finished rows that leave the batch.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from metatuner import progress
from metatuner.errors import UserError
from metatuner.lm.deferred import Answers
from metatuner.lm.grouped_lora import grouped_adapter
from metatuner.lm.model import LM
from metatuner.lm.reading import reader
from metatuner.server import Reply

COMPACT_BELOW = 0.8
"""Finished rows leave the batch once less than this share of it is unfinished. This costs one copy of the cache."""
MOST_PADDING = 0.25
"""No row joins a batch if more than this share of the batch's prompt positions would then be padding."""
WORTH_SHARING = 512
"""A prefix that all rows share is read once if this saves at least so many tokens."""


class Adaptation(Protocol):
    """A change of the model with one part per row of the batch, such as per-query LoRA."""

    def keep(self, rows: Tensor) -> None:
        """From now on, the batch holds only `rows` (indices into its current rows), in this order."""


Adapt = Callable[[list[int]], AbstractContextManager[Adaptation | None]]
"""Maps the indices of a batch's prompts to a context in which the model is adapted to them."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str
    """Without special tokens, cut before the first stop string."""
    ids: list[int]
    """Every generated token, the end of turn included; from a server, the tokens of `text` and the end of turn."""
    prompt_tokens: int
    truncated: bool
    """Whether it reached `max_new_tokens` with neither an end of turn nor a stop string."""
    counted: int | None = None
    """The number of generated tokens as a server counted it."""

    @property
    def generated_tokens(self) -> int:
        """Number of generated tokens, the end of turn included."""
        return len(self.ids) if self.counted is None else self.counted


def generate(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    batch_tokens: int | None = None,
    max_rows: int = 256,
    adapt: Adapt | None = None,
) -> list[Completion]:
    """One completion per prompt, in the order of `prompts`.

    Args:
        prompts: token ids, as rendered.
        stops: strings that end a completion; they are not part of its text.
        temperature: 0 takes the likeliest token (the first of equals); above 0, tokens are sampled.
        top_p: samples from the likeliest tokens that together reach this probability.
        seeds: one per prompt, needed for sampling. A row's random stream comes from its seed alone.
        batch_tokens: bound on rows x (longest prompt + max_new_tokens) of a batch, by default `lm.batch_tokens`. A
            batch has at least one row.
        max_rows: bound on the rows of a batch.
        adapt: called for each batch with the indices of its prompts; its context covers the decoding of the batch.

    EOS tokens and suppress_tokens of the model's generation config are used, but not its sampling settings. Padding and
    begin-of-text tokens are never generated. In fp32, results do not depend on the bounds of a batch, up to ties within
    rounding.

    If a server answers for the model (`lm.engine`) and there is no `adapt`, all prompts are sent to it. Its results
    are as reproducible as the server makes them.

    Raises `UserError` if a prompt and `max_new_tokens` do not fit the window, if logits are NaN or infinite, or if a
    server does not answer.
    """
    seeds = seeds or ()
    if temperature > 0 and len(seeds) != len(prompts):
        raise ValueError(f"sampling needs one seed a prompt: {len(prompts)} prompts, {len(seeds)} seeds")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty")
        if len(prompt) + max_new_tokens > lm.window:
            raise UserError(
                f"prompt {index}: {len(prompt)} tokens and {max_new_tokens} new ones do not fit the window of "
                f"{lm.spec.path}, {lm.window}; render it with reserve={max_new_tokens}"
            )
    end = _End(lm, stops)
    batches = batch_by_length(prompts, max_new_tokens, batch_tokens or lm.batch_tokens, max_rows)
    if adapt is None and lm.engine is not None:
        how = {"max_new_tokens": max_new_tokens, "stops": stops, "temperature": temperature, "top_p": top_p}
        return _served(lm, lm.engine, end, prompts, batches, seeds=list(seeds), **how)
    done: dict[int, list[int]] = {}
    with torch.inference_mode(), progress.loop(len(prompts), "texts") as count:
        for batch in batches:
            pick: _Greedy | _Sample = _Greedy()
            if temperature > 0:
                pick = _Sample([seeds[i] for i in batch], max_new_tokens, temperature, top_p)
            lm.traffic.generating = True
            try:
                with grouped_adapter(lm.model), nullcontext() if adapt is None else adapt(batch) as adaptation:
                    decoded = _decode(lm, [prompts[i] for i in batch], max_new_tokens, pick, end, adaptation)
            finally:
                lm.traffic.generating = False
            for listener in lm.traffic.listeners:
                listener(sum(len(prompts[i]) for i in batch), sum(map(len, decoded)), len(batch))
            done.update(zip(batch, decoded, strict=True))
            count(len(batch))
    return [end.completion(done[index], len(prompt), max_new_tokens) for index, prompt in enumerate(prompts)]


def _served(
    lm: LM,
    engine: Answers,
    end: "_End",
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    **how: Any,
) -> list[Completion]:
    """A server's completions. They are requested and counted in the order of the batches, so that limits act alike."""
    order = [index for batch in batches for index in batch]
    chosen = [seeds[index] for index in order] if how["temperature"] > 0 else None
    asked = engine.answers(lm, [prompts[index] for index in order], seeds=chosen, **how)
    done: dict[int, Completion] = {}
    with closing(cast("Generator[Reply]", asked)) as replies:
        for batch in batches:
            told = [next(replies) for _ in batch]
            for listener in lm.traffic.listeners:
                listener(
                    sum(each.prompt_tokens for each in told), sum(each.generated_tokens for each in told), len(told)
                )
            done.update(zip(batch, map(end.reply, told), strict=True))
    return [done[index] for index in range(len(prompts))]


def batch_by_length(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_tokens: int = 16384, max_rows: int = 256
) -> list[list[int]]:
    """The batches that `generate` makes: indices of prompts, longest first, similar lengths together.

    Bounds are as in `generate`. In addition, at most `MOST_PADDING` of a batch's prompt positions are padding.
    """
    batches: list[list[int]] = []
    longest = tokens = 0
    # Longest first: a batch that does not fit in memory fails at once. Equal prompts come together.
    for index in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), list(prompts[i]))):
        rows, length = len(batches[-1]) + 1 if batches else 0, len(prompts[index])
        if (
            not batches
            or rows > max_rows
            or rows * (longest + max_new_tokens) > batch_tokens
            or tokens + length < (1 - MOST_PADDING) * rows * longest
        ):
            batches.append([])
            longest, tokens = length, 0
        batches[-1].append(index)
        tokens += length
    return batches


def padding_share(prompts: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> float:
    """The share of prompt positions that are padding, 0 to 1, if each batch is as wide as its longest prompt."""
    positions = sum(len(batch) * max(len(prompts[index]) for index in batch) for batch in batches)
    return 1 - sum(len(prompts[index]) for batch in batches for index in batch) / positions


class _Greedy:
    def __call__(self, logits: Tensor, step: int) -> Tensor:
        return logits.argmax(-1)

    def keep(self, rows: Tensor) -> None:
        pass


class _Sample:
    """Inverse-CDF sampling with uniforms drawn beforehand, one stream per row: other rows cannot shift it."""

    def __init__(self, seeds: Sequence[int], steps: int, temperature: float, top_p: float) -> None:
        # Uniforms of 24 bits in double precision: the largest times the total stays below the total.
        streams = (torch.Generator().manual_seed(seed) for seed in seeds)
        self.uniforms = torch.stack([torch.rand(steps, generator=stream) for stream in streams]).double()
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        probabilities = torch.softmax(logits.double() / self.temperature, -1)
        order = None
        if self.top_p < 1:
            probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.where(before < self.top_p, 0)
        cumulative = probabilities.cumsum(-1)
        point = self.uniforms[:, step, None].to(logits.device) * cumulative[:, -1:]
        # right=True steps over tokens of probability 0.
        place = torch.searchsorted(cumulative, point, right=True)
        return (place if order is None else order.gather(-1, place)).squeeze(-1)

    def keep(self, rows: Tensor) -> None:
        self.uniforms = self.uniforms[rows.cpu()]


class _End:
    """Decides when a completion ends, and what its text is."""

    def __init__(self, lm: LM, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string is empty")
        self.lm, self.stops, self.eos = lm, tuple(stops), lm.eos_ids
        # Every token has at least one byte of text, except special tokens.
        self.tail = max((len(stop.encode()) for stop in stops), default=0) + 4
        self.closing: dict[int, bool] = {}

    def reached(self, ids: list[int]) -> bool:
        """Whether the last of these ids ends the completion."""
        return ids[-1] in self.eos or (bool(self.stops) and self._closes(ids[-1]) and self._stopped(ids[-self.tail :]))

    def completion(self, ids: list[int], prompt_tokens: int, limit: int) -> Completion:
        text = self.lm.decode(ids[:-1] if ids and ids[-1] in self.eos else ids)
        cut = self._cut(text)
        ended = cut is not None or (bool(ids) and ids[-1] in self.eos)
        return Completion(text[:cut], ids, prompt_tokens, truncated=not ended and len(ids) == limit)

    def reply(self, reply: Reply) -> Completion:
        """The completion of a server, which may have left the stop string or the end of turn in the text."""
        cut = self._cut(reply.text)
        truncated = reply.truncated and cut is None
        text = reply.text[:cut]
        ids = self.lm.encode(text)
        if cut is None and not truncated and ids and ids[-1] in self.eos:  # an end that is no special token
            ids = ids[:-1]
            text = self.lm.decode(ids)
        return Completion(
            text,
            [*ids, *([] if truncated else [self.lm.end_of_turn])],
            reply.prompt_tokens,
            truncated,
            reply.generated_tokens,
        )

    def _cut(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=None)

    def _stopped(self, ids: list[int]) -> bool:
        text = self.lm.decode(ids)
        return any(stop in text for stop in self.stops)

    def _closes(self, token: int) -> bool:
        """Whether a token can hold the last character of a stop string, so that few rows are decoded per step."""
        if token not in self.closing:
            text = self.lm.decode([token])
            # Decoding one token alone may lose its white space, or show a part of a character as U+FFFD.
            self.closing[token] = any(stop[-1].isspace() or stop[-1] in text or "\ufffd" in text for stop in self.stops)
        return self.closing[token]


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens of the prompts are read once; the last token of a prompt is never among them."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(map(len, prompts)) - 1
    length = next((place for place in range(limit) if first[place] != last[place]), limit)
    return length if length * (len(prompts) - 1) >= WORTH_SHARING else 0


def _decode(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    steps: int,
    pick: _Greedy | _Sample,
    end: _End,
    adaptation: Adaptation | None,
) -> list[list[int]]:
    """The generated ids of each prompt of one batch, decoded together with left padding."""
    # Equal prompts (samples of one query) are read once, unless each row has its own adaptation.
    read = prompts if adaptation is not None else list({tuple(prompt): prompt for prompt in prompts}.values())
    model = reader(lm)
    shared = _shared_prefix(read) if adaptation is None and model.shares else 0
    width = max(map(len, prompts))
    inputs = torch.full((len(read), width), lm.filler)
    mask = torch.ones((len(read), width + steps), dtype=torch.long)
    for row, prompt in enumerate(read):
        # Padding stands between the shared prefix and the rest, which ends at the same place in all rows.
        inputs[row, shared + width - len(prompt) :] = torch.tensor(prompt[shared:])
        mask[row, shared : shared + width - len(prompt)] = 0
    inputs, mask = inputs[:, shared:].to(lm.device), mask.to(lm.device)
    positions = (mask[:, :width].cumsum(-1) - 1).clamp_(min=0)[:, shared:]
    suppressed = torch.tensor(lm.suppressed_ids, dtype=torch.long, device=lm.device)
    if shared:
        prefix = torch.tensor([list(read[0][:shared])], device=lm.device)
        model.read(prefix, torch.arange(shared, device=lm.device)[None], torch.ones_like(prefix))
        model.select(torch.zeros(len(read), dtype=torch.long, device=lm.device))

    written: list[list[int]] = [[] for _ in prompts]
    batch = list(range(len(prompts)))  # the prompt in each row of the current batch
    going = set(batch)
    for step in range(steps):
        logits = model.read(inputs, positions, mask[:, : width + step])
        if len(logits) < len(batch):
            places = {tuple(prompt): row for row, prompt in enumerate(read)}
            copies = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=lm.device)
            logits, mask, positions = logits[copies], mask[copies], positions[copies]
            model.select(copies)
        logits.index_fill_(-1, suppressed, -torch.inf)
        if not torch.isfinite(logits.amax(-1)).all():  # NaN counts as the largest
            raise UserError(
                f"model {lm.spec.path}: its logits are NaN or infinite at step {step + 1}; its weights have diverged, "
                "or its dtype is too narrow"
            )
        chosen = pick(logits, step)
        for index, token in zip(batch, chosen.tolist(), strict=True):
            if index in going:
                written[index].append(token)
                if end.reached(written[index]):
                    going.remove(index)
        if not going:
            break
        inputs, positions = chosen[:, None], positions[:, -1:] + 1
        if len(going) < COMPACT_BELOW * len(batch):
            rows = torch.tensor([row for row, index in enumerate(batch) if index in going], device=lm.device)
            batch = [index for index in batch if index in going]
            inputs, positions, mask = inputs[rows], positions[rows], mask[rows]
            model.select(rows)
            pick.keep(rows)
            if adaptation is not None:
                adaptation.keep(rows)
    return written
