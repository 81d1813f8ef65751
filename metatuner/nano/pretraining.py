"""Pretraining of the nano models: one thread, fp32, the same bytes every time on the same machine."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from metatuner.files import complete_folder, write_json
from metatuner.nano.constants import constants_hash
from metatuner.nano.corpus import Segment, actor_rows, generator_rows
from metatuner.nano.model import build_model
from metatuner.nano.recipe import Recipe, get_recipe
from metatuner.nano.tokenizer import (
    ANSWER,
    BEGIN,
    REWRITE,
    SPECIAL,
    build_tokenizer,
    transformers_tokenizer,
    vocabulary,
)
from metatuner.nano.world import World

WARMUP, FLOOR = 40, 0.05
"""Warm-up steps, and the end of the cosine as a share of the peak learning rate."""
BETAS = (0.9, 0.98)
MOMENTUM = 0.95
CLIP = 1.0
BUCKET = 16
"""Rows are sorted by length within this many batches."""
COPIED = (12, 20)
"""Shortest and longest text of a copy batch: with one length only, a model would learn positions instead of copying."""
SAY_EVERY = 10.0
"""Seconds between progress lines."""

TokenRow = tuple[list[int], list[bool]]
"""Token ids, and which of them to predict."""


def pretrain(
    role: str,
    world: World,
    out: Path,
    *,
    untrained: bool = False,
    steps: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Train the model of a role ("actor", "generator", "generator_small") and write it to the folder `out`.

    The folder is an ordinary Hugging Face folder, with `pretraining.json` (what was done) and `timing.json` (how long
    it took). It appears complete or not at all. `untrained` keeps the initial weights; `steps` shortens training.
    Raises `UserError` for an unknown role.
    """
    settings = get_recipe(role)
    settings = replace(settings, steps=settings.steps if steps is None else steps)
    random = Random(f"{world.seed} {role} {settings.seed}")
    seed = random.getrandbits(31)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        model = build_model(settings, seed)
        tokens = 0 if untrained else _train(model, role, world, settings, random, progress)
    finally:
        torch.set_num_threads(threads)
    with complete_folder(out) as part:
        model.save_pretrained(part)
        transformers_tokenizer(ANSWER if role == "actor" else REWRITE, settings.window).save_pretrained(part)
        done = {
            "role": role,
            "world": asdict(world),
            "constants": constants_hash(),
            "recipe": asdict(settings),
            "seed": seed,
            "steps": 0 if untrained else settings.copy_steps + settings.steps,
            "tokens": tokens,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        write_json(part / "pretraining.json", done)
        write_json(part / "timing.json", {"seconds": round(time.monotonic() - started, 1)})
        shutil.rmtree(out, ignore_errors=True)


def _train(
    model: LlamaForCausalLM,
    role: str,
    world: World,
    settings: Recipe,
    random: Random,
    progress: Callable[[str], None] | None,
) -> int:
    """Train in place; returns the number of tokens read, without padding."""
    make = actor_rows if role == "actor" else generator_rows
    rows = _encode(list(make(world, random, settings.steps * settings.batch)))
    batches = [*_copy_batches(random, settings), *_buckets(rows, random, settings.batch)]
    optimizers = _optimizers(model, settings.learning_rate)
    model.train()
    started = said = time.monotonic()
    smooth = float("nan")
    for step, batch in enumerate(batches):
        rate = settings.learning_rate * _schedule(step, len(batches))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = _loss(model, *_collate(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        now = time.monotonic()
        if progress and (now - said >= SAY_EVERY or step + 1 == len(batches)):
            said = now
            left = (now - started) / (step + 1) * (len(batches) - step - 1)
            progress(f"{role}: step {step + 1}/{len(batches)}, loss {smooth:.3f}, about {left:.0f} s left")
    model.eval()
    return sum(len(ids) for batch in batches for ids, _ in batch)


def _encode(rows: list[list[Segment]]) -> list[TokenRow]:
    encoded = iter(build_tokenizer().encode_batch([text for row in rows for text, _ in row]))
    found = []
    for row in rows:
        ids: list[int] = []
        predicted: list[bool] = []
        for _, is_target in row:
            piece = next(encoded).ids
            ids += piece
            predicted += [is_target] * len(piece)
        found.append((ids, predicted))
    return found


def _copy_batches(random: Random, settings: Recipe) -> Iterator[list[TokenRow]]:
    """Batches of random texts, each written twice; the second copy is predicted, except its first token."""
    begin, first_word = vocabulary()[BEGIN], len(SPECIAL) + 256
    words = range(first_word, len(vocabulary()))
    for _ in range(settings.copy_steps):
        batch = []
        for _ in range(settings.batch):
            text = random.sample(words, random.randint(*COPIED))
            batch.append(([begin, *text, *text], [False] * (len(text) + 2) + [True] * (len(text) - 1)))
        yield batch


def _buckets(rows: list[TokenRow], random: Random, size: int) -> Iterator[list[TokenRow]]:
    """Batches of rows of similar length, in training order except for a shuffle within each bucket."""
    for start in range(0, len(rows), size * BUCKET):
        bucket = sorted(rows[start : start + size * BUCKET], key=lambda row: len(row[0]))
        batches = [bucket[i : i + size] for i in range(0, len(bucket), size)]
        random.shuffle(batches)
        yield from batches


def _collate(batch: list[TokenRow]) -> tuple[Tensor, Tensor]:
    """Ids and target mask, [rows, longest], padded on the right: causal attention never sees the padding."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    predicted = torch.zeros(len(batch), longest, dtype=torch.bool)
    for number, (row, targets) in enumerate(batch):
        ids[number, : len(row)] = torch.tensor(row)
        predicted[number, : len(row)] = torch.tensor(targets)
    return ids, predicted


def _loss(model: LlamaForCausalLM, ids: Tensor, predicted: Tensor) -> Tensor:
    """Mean cross-entropy of the predicted tokens; the head runs on their positions alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = predicted[:, 1:]
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), ids[:, 1:][wanted])


def _optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for embedding, norms and biases."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=rate, momentum=MOMENTUM, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=BETAS, weight_decay=0.0, fused=True),
    ]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FLOOR."""
    return min(1.0, (step + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps)))
