"""Fits that diverged, judged by the losses in their logs. A score of such a fit is no result of its method."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metatuner.analysis.results.scores import RERUN, cell_folder, read_metrics
from metatuner.analysis.statistics import Array
from metatuner.config import Layout
from metatuner.files import read_json, read_lines

LOSSES = {"sft", "bpo", "dpo", "better_together"}
"""Methods with a `loss` in their logs that training lowers. The losses of RLPrompt, PPO and GRPO follow rewards and may
rise in a healthy fit. Prompt optimisers train nothing. Of all methods, a logged `task` is judged: MetaTuner's, its
ablations' and static LoRA's task loss."""
RISE = 1.0
"""Nats per token. Between the lowest mean so far and a later one, the right tokens' probability fell by a factor of e.
In the committed default run, the largest rise of a healthy fit is 0.58; of the diverged one it is 2.67."""
END = 1.1
"""The last mean over the first. A DPO fit that hardly learns ends at 0.98 there, the diverged fit at 1.19."""
NORM = 50.0
"""The largest gradient norm over the median of the first ones. Healthy fits reach 35 there, the diverged fit 77."""
FEWEST = 3
"""Means are over a tenth of the values, and over so many at least. Logs of fewer than two such means aren't judged."""


def why_diverged(events: Iterable[Mapping[str, Any]], method: str) -> str:
    """Why a fit counts as diverged, by the events of its log; "" if it does not."""
    losses: dict[str, list[float]] = {}
    norms: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("event"))
        loss = event.get("task", event.get("loss") if method in LOSSES else None)
        if not isinstance(loss, int | float):
            continue
        losses.setdefault(name, []).append(float(loss))
        squares = [float(value) ** 2 for key, value in event.items() if key.startswith("norm_")]
        if squares:
            norms.setdefault(name, []).append(math.sqrt(sum(squares)))
    found = [reason for values in losses.values() if (reason := _of_losses(np.array(values)))]
    found += [reason for values in norms.values() if (reason := _of_norms(np.array(values)))]
    return ", ".join(found)


def _width(values: Array) -> int:
    return max(FEWEST, len(values) // 10)


def _of_losses(values: Array) -> str:
    if not np.isfinite(values).all():
        return f"the loss is not finite at value {int(np.argmin(np.isfinite(values)))} of {len(values)}"
    width = _width(values)
    if len(values) < 2 * width:
        return ""
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    rises = means - np.minimum.accumulate(means)
    top = int(rises.argmax())
    if rises[top] > RISE:
        return f"the loss rose from {means[: top + 1].min():.2f} to {means[top]:.2f} and ended at {means[-1]:.2f}"
    if means[-1] > END * means[0]:
        return f"the loss began at {means[0]:.2f} and ended at {means[-1]:.2f}"
    return ""


def _of_norms(values: Array) -> str:
    width = _width(values)
    if len(values) < 2 * width:
        return ""
    first, top = float(np.median(values[:width])), float(values.max())
    return f"the gradient norm rose from {first:.1f} to {top:.1f}" if top > NORM * first > 0 else ""


def with_diverged(
    rows: Iterable[Mapping[str, Any]], outcomes: Mapping[str, tuple[str, str]], layout: Layout
) -> dict[str, tuple[str, str]]:
    """The outcomes by cell key, with status `diverged` for each complete cell of a fit that diverged.

    A fit is judged by its own log, not by the logs of fits that it builds on. A fit without a log is not judged.
    """
    found, fits = dict(outcomes), dict[Path, str]()
    for key, method in {row["cell"]: row["method"] for row in rows}.items():
        folder = cell_folder(layout.root, key)
        if found.get(key, ("ok", ""))[0] != "ok" or not (folder / "cell.json").is_file():
            continue
        log = layout.fit(read_json(folder / "cell.json", RERUN)["fit"]) / "log.jsonl"
        if log not in fits:
            events = read_lines(log, "remove the fit, run it again") if log.is_file() else []
            fits[log] = why_diverged(events, method)
        if fits[log]:
            metrics = read_metrics(layout.root, key)
            found[key] = ("diverged", f"{fits[log]} (it scores {100 * metrics['metrics'][metrics['primary']]:.1f})")
    return found
