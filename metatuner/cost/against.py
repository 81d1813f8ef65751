"""Compares the counts of methods' loops with the meter of a finished run."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metatuner.cost.assumptions import Lengths
from metatuner.cost.jobs import Job
from metatuner.cost.metered import AGAIN
from metatuner.cost.predicted import use_of
from metatuner.files import NUMBER, read_json

COUNTED = {"calls": "lm_calls", "read": "prompt_tokens", "written": "generated_tokens", "trained": "trained_tokens"}
_COST = {"by_model": {"*": {f"{name}?": NUMBER for name in COUNTED.values()}}}
Costs = Mapping[str, Mapping[str, Mapping[str, float]]]
"""`by_model` of cost.json, by key of the fit or cell."""


def read_costs(root: Path) -> dict[str, Mapping[str, Any]]:
    """What fits and cells of a finished run used of each model, by key."""
    found = {}
    for path in sorted(root.glob("fits/*/cost.json")) + sorted(root.glob("cells/*/cost.json")):
        found[path.parent.name] = read_json(path, AGAIN, _COST)["by_model"]
    return found


def measured_lengths(jobs: Iterable[Job], costs: Costs) -> dict[str, Lengths]:
    """Lengths by benchmark, as a finished run metered them.

    They come from its zero-shot cells, its fits of SFT under p~, and its warm-ups.
    """
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for job in jobs:
        if job.key not in costs or len(job.benchmarks) > 1:
            continue
        actor, generator = (costs[job.key].get(model, {}) for model in ("actor", "generator"))
        here = sums[job.benchmarks[0]]
        if job.kind == "cell" and job.method == "zero_shot":
            here["answers"] += actor.get("lm_calls", 0)
            here["asked"] += actor.get("prompt_tokens", 0)
            here["answered"] += actor.get("generated_tokens", 0)
        if job.kind == "fit" and job.method == "sft" and not job.settings.prompts:
            here["passes"] += job.settings.epochs * job.train
            here["trained"] += actor.get("trained_tokens", 0)
        if job.kind == "fit" and job.method == "metatuner_warmup" and generator.get("lm_calls"):
            here["rewrites"] += generator.get("lm_calls", 0)
            here["requests"] += generator.get("prompt_tokens", 0)
            here["rewritten"] += generator.get("generated_tokens", 0)
    lengths = {}
    for benchmark, here in sums.items():
        if here["answers"] and here["passes"] and here["rewrites"]:
            asked, trained = here["asked"] / here["answers"], here["trained"] / here["passes"]
            lengths[benchmark] = Lengths(
                asked=asked,
                target=trained - asked,
                answer=here["answered"] / here["answers"],
                request=here["requests"] / here["rewrites"],
                rewrite=here["rewritten"] / here["rewrites"],
                demo=trained,
            )
    return lengths


def against(jobs: Iterable[Job], costs: Costs) -> dict[str, dict[str, float | None]]:
    """Predicted over metered use of fits, by method: calls, and tokens read, written and trained.

    What a fit builds on is not included. A ratio is None if nothing was metered. Fits on several benchmarks, and
    methods that use nothing, are left out.
    """
    known = list(jobs)
    lengths = measured_lengths(known, costs)
    predicted: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0.0))
    metered: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0.0))
    for job in known:
        needed = [each.key for each in job.requires]
        there = job.key in costs and all(key in costs for key in needed)
        if job.kind != "fit" or not there or len(job.benchmarks) > 1 or job.benchmarks[0] not in lengths:
            continue
        if job.loop is None:
            continue
        use = use_of(job, lengths.__getitem__)
        for short, name in COUNTED.items():
            predicted[job.method][short] += sum(getattr(each, short) for each in use.values())
            metered[job.method][short] += _sum(costs[job.key], name) - sum(_sum(costs[key], name) for key in needed)
    return {
        method: {short: predicted[method][short] / count if count else None for short, count in counts.items()}
        for method, counts in metered.items()
        if any(counts.values())
    }


def _sum(by_model: Mapping[str, Mapping[str, float]], name: str) -> float:
    return sum(each.get(name, 0) for each in by_model.values())


def describe_check(ratios: Mapping[str, Mapping[str, float | None]], root: Path) -> str:
    """How the counts compare with a finished run's meter."""
    if not ratios:
        return f"No fit in {root} is of this code and config, so the counts are not compared with a run."
    table = [
        f"Predicted over metered, per fit without what it builds on, in {root}, with the lengths metered there",
        "(from the cells of zero-shot and the fits of SFT and the warm-up, which therefore agree by construction):",
        f"{'method':<20}{'calls':>8}{'read':>8}{'written':>9}{'trained':>9}",
    ]
    for method, ratio in sorted(ratios.items()):
        shown = {short: "-" if value is None else f"{value:.2f}" for short, value in ratio.items()}
        table.append(f"{method:<20}{shown['calls']:>8}{shown['read']:>8}{shown['written']:>9}{shown['trained']:>9}")
    return "\n".join(table)
