"""The ten claims on measured results. A claim names experiments, never single baselines of them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from metatuner.analysis.claims.ruling import (
    NOT_EVALUABLE,
    Judged,
    Outcome,
    Part,
    Verdict,
    both,
    every,
    some,
)
from metatuner.analysis.claims.runs import Arm, Hole, Runs
from metatuner.analysis.results.costs import TIME_AGAIN
from metatuner.analysis.statistics import Gaps, contrast, derive_seed
from metatuner.errors import UserError
from metatuner.files import read_csv

METATUNER = ("metatuner_i", "metatuner_j")
WHOLE = Arm("metatuner_j")
RANGE = 0.05
"""Claimed distance between SFT's scores under different prompts, for scores in 0..1."""
NOT_INFERIOR = -0.01
"""The margin of non-inferiority: one point."""
HALF = 0.5
"""Writing a query's prompt and parameters is claimed to take less than this share of the time of answering it."""


def _missing(detail: str) -> Judged:
    return Judged(NOT_EVALUABLE, (), detail)


def _judged(outcome: Outcome, parts: Sequence[Part], *details: str) -> Judged:
    """The outcome with its parts and details, and the reason for the first part without data."""
    missing = next((part.reason for part in parts if part.contrast is None), "")
    return Judged(outcome, tuple(parts), "; ".join(filter(None, (*details, missing))))


def _found(outcome: Outcome) -> str:
    """An outcome in a few words, for the details of a claim with several outcomes."""
    if outcome.decisive is None or outcome.decisive.contrast is None:
        return outcome.label
    told = outcome.decisive.contrast
    interval = f"{100 * told.estimate:+.1f} [{100 * told.low:+.1f}, {100 * told.high:+.1f}] points"
    return f"{outcome.label}, by {outcome.decisive.name}: {interval}"


PARTS = ("rewriter_sft", "static_lora")
"""MetaTuner's own parts, combined differently: arms of an ablation, neither hybrids nor baselines of the paper."""


def _baselines(runs: Runs, experiment: str) -> list[str]:
    return [name for name in runs.methods(experiment) if not name.startswith("metatuner") and name not in PARTS]


def _beats_baselines(runs: Runs, experiment: str) -> Judged:
    """MetaTuner-J against every baseline; -I, and what is made of MetaTuner's own parts, only stand beside."""
    benchmarks, methods = runs.benchmarks(experiment), runs.methods(experiment)

    def over(first: str, others: Sequence[str], group: str = "") -> list[Part]:
        """Parts that a method beats each of the others, on each benchmark."""
        arms = [(Arm(first), Arm(name)) for name in others]
        return [
            runs.part(
                f"{runs.arm(one)} over {runs.arm(other)} on {runs.title(benchmark)}",
                experiment,
                [one],
                [other],
                [benchmark],
                group=group,
            )
            for benchmark in benchmarks
            for one, other in arms
        ]

    baselines, own = _baselines(runs, experiment), [name for name in methods if name in PARTS]
    parts, beside, told = over("metatuner_j", baselines), [], []
    if baselines:
        told.append(f"baselines: {', '.join(runs.arm(Arm(name)) for name in baselines)}")
    if "metatuner_i" in methods:
        beside += (instead := over("metatuner_i", baselines, f"{runs.arm(Arm('metatuner_i'))} instead"))
        told.append(f"{runs.arm(Arm('metatuner_i'))} in its place, which decides nothing: {_found(every(instead))}")
    if own:
        beside += (apart := over("metatuner_j", own, "MetaTuner's own parts"))
        names = ", ".join(runs.arm(Arm(name)) for name in own)
        found = _found(every(apart))
        told.append(f"no baselines, but MetaTuner's own parts in another combination: {names}; -J over them: {found}")
    judged = _judged(every(parts), parts, *told)
    return replace(judged, parts=(*parts, *beside))


def claim_1(runs: Runs) -> Judged:
    """MetaTuner-J beats every baseline on every benchmark."""
    return _beats_baselines(runs, "main") if runs.has("main") else _missing("experiment main was not run")


def claim_2(runs: Runs) -> Judged:
    """Hybrids beat prompt-only and parameter-only methods on average."""
    if not runs.has("main"):
        return _missing("experiment main was not run")
    families = {
        family: [Arm(name) for name in runs.methods("main", family) if name not in PARTS]
        for family in ("hybrid", "prompt", "parameter")
    }
    if not all(families.values()):
        return _missing(f"no {next(name for name, arms in families.items() if not arms)} method was run")
    parts = [
        runs.part(
            f"hybrids over {family}-only methods", "main", families["hybrid"], families[family], runs.benchmarks("main")
        )
        for family in ("prompt", "parameter")
    ]
    named = "; ".join(f"{family}: {', '.join(runs.arm(arm) for arm in arms)}" for family, arms in families.items())
    return _judged(every(parts), parts, named)


def claim_3(runs: Runs) -> Judged:
    """The full method beats each of its ablations on every benchmark."""
    if not runs.has("ablation"):
        return _missing("experiment ablation was not run")
    there = runs.variants("ablation", "metatuner_j")
    ablations = ("without_f", "without_p", "without_s")
    tuned = [f"{name}_tuned" for name in ablations]
    shared = _ablations(runs, ablations)
    if not set(tuned) <= set(there):
        return _judged(every(shared), shared, "each ablation under the whole's settings")
    own, other = _ablations(runs, tuned), every(shared)
    shared = [replace(part, group="the whole's settings") for part in shared]
    told = f"each ablation under its own settings; under the whole's instead: {_found(other)}"
    return _judged(every(own), (*own, *shared), told)


def _ablations(runs: Runs, variants: Sequence[str]) -> list[Part]:
    """Parts that the full method beats each of these variants, on each benchmark."""
    parts = []
    for variant in variants:
        for benchmark in runs.benchmarks("ablation"):
            arm = Arm("metatuner_j", variant)
            title = f"{runs.arm(WHOLE)} over {runs.arm(arm)} on {runs.title(benchmark)}"
            parts.append(runs.part(title, "ablation", [WHOLE], [arm], [benchmark]))
    return parts


def claim_4(runs: Runs) -> Judged:
    """Supervised regularisation beats Gumbel-Softmax."""
    if not runs.has("regularisation"):
        return _missing("experiment regularisation was not run")
    arm = Arm("metatuner_j", "gumbel")
    benchmarks = runs.benchmarks("regularisation")
    part = runs.part("supervised regularisation over Gumbel-Softmax", "regularisation", [WHOLE], [arm], benchmarks)
    return _judged(every([part]), [part], "mean over benchmarks")


def claim_5(runs: Runs) -> Judged:
    """Some inner sharing depth beats both ends, and the best share is smaller for the larger generator."""
    if not runs.has("sharing"):
        return _missing("experiment sharing was not run")
    design = runs.config.experiments["sharing"]
    shares = {
        variant: over["shared_layers"]
        for variant, over in design.variants.get("metatuner_j", {}).items()
        if "shared_layers" in over and "encoder_layers" not in over
    }
    inner = [name for name, share in shares.items() if 0 < share < 1]
    ends = [name for name, share in shares.items() if share in (0, 1)]
    if not inner or len(ends) < 2:
        return _missing("the grid has no inner depth beside both ends")
    benchmarks = runs.benchmarks("sharing")
    parts, against = [], []
    for generator in design.generators:
        for name in inner:
            for end in ends:
                pair = [Arm("metatuner_j", name, generator)], [Arm("metatuner_j", end, generator)]
                title = f"k = {shares[name]:g} K over {shares[end]:g} K, generator {generator}"
                parts.append(runs.part(title, "sharing", *pair, benchmarks, group=f"{generator} {name}"))
                title = f"k = {shares[end]:g} K over {shares[name]:g} K, generator {generator}"
                against.append(runs.part(title, "sharing", pair[1], pair[0], benchmarks, group=f"{generator} {end}"))
    outcomes = []
    for generator in design.generators:
        own = [[part for part in side if part.group.startswith(f"{generator} ")] for side in (parts, against)]
        outcomes.append(some(*own))
    told = (
        "an inner depth for each generator; no test here shows that the best share is smaller for the larger one: "
        "the best point of a flat curve is luck"
    )
    found = (f"{name}, alone: {_found(outcome)}" for name, outcome in zip(design.generators, outcomes, strict=True))
    return _judged(both(outcomes), (*parts, *against), told, *(found if len(outcomes) > 1 else ()))


def claim_6(runs: Runs) -> Judged:
    """Some smaller number of rollouts beats the largest."""
    if not runs.has("rollouts"):
        return _missing("experiment rollouts was not run")
    points = {variant: value for (_, variant), value in runs.config.experiments["rollouts"].points.items()}
    if len(points) < 2:
        return _missing("the grid has one number of rollouts alone")
    most = max(points, key=lambda variant: points[variant])
    benchmarks = runs.benchmarks("rollouts")
    parts, against = [], []
    for name, number in points.items():
        if name != most:
            arms = [Arm("metatuner_j", name)], [Arm("metatuner_j", most)]
            parts.append(runs.part(f"{number} rollouts over {points[most]}", "rollouts", *arms, benchmarks))
            title = f"{points[most]} rollouts over {number}"
            against.append(runs.part(title, "rollouts", arms[1], arms[0], benchmarks, group="the largest number"))
    return _judged(some(parts, against), (*parts, *against))


def claim_7(runs: Runs) -> Judged:
    """-J is at least as good as -I on average, within one point."""
    if not runs.has("main") or not set(METATUNER) <= set(runs.methods("main")):
        return _missing("experiment main has not both -I and -J")
    part = runs.part(
        "MetaTuner-J less MetaTuner-I, above -1 point",
        "main",
        [Arm("metatuner_j")],
        [Arm("metatuner_i")],
        runs.benchmarks("main"),
        margin=NOT_INFERIOR,
    )
    return _judged(every([part]), [part], "mean over benchmarks")


def claim_8(runs: Runs) -> Judged:
    """SFT varies with its prompt by more than 5 points, and its worst score is below the best prompt optimiser."""
    if not runs.has("sft_prompts"):
        return _missing("experiment sft_prompts was not run")
    benchmarks, variants = runs.benchmarks("sft_prompts"), runs.variants("sft_prompts", "sft")
    spread = [
        runs.part(
            f"SFT under {first} over SFT under {second}, by more than 5 points",
            "sft_prompts",
            [Arm("sft", first)],
            [Arm("sft", second)],
            benchmarks,
            margin=RANGE,
            group=f"{first} {second}",
        )
        for first, second in permutations(variants, 2)
    ]
    optimisers = runs.methods("main", "prompt") if runs.has("main") else []
    if not optimisers:
        return _missing("no prompt optimiser was run")
    below = [_across(runs, name, variant, benchmarks) for name in optimisers for variant in variants]
    outcomes = {"range": some(spread), "worst below an optimiser": some(below)}
    told = (f"{name}, alone: {_found(outcome)}" for name, outcome in outcomes.items())
    return _judged(both(list(outcomes.values())), (*spread, *below), "means over benchmarks", *told)


def _across(runs: Runs, optimiser: str, variant: str, benchmarks: list[str]) -> Part:
    """A prompt optimiser of the main experiment over SFT under a prompt, on the seeds that both have."""

    name = f"{runs.arm(Arm(optimiser))} over SFT under {variant}"
    try:
        gaps = []
        for benchmark in benchmarks:
            own = runs.answers("main", Arm(optimiser), benchmark)
            other = runs.answers("sft_prompts", Arm("sft", variant), benchmark)
            shared = [seed for seed in own.seeds if seed in other.seeds]
            if not shared:
                raise Hole(f"no seed is common to {optimiser} and SFT under prompts")
            left = own.values[[own.seeds.index(seed) for seed in shared]]
            right = other.values[[other.seeds.index(seed) for seed in shared]]
            gaps.append(Gaps(left - right, own.groups, own.binary and other.binary))
    except Hole as hole:
        return Part(name, None, str(hole))
    return Part(name, contrast(gaps, seed=derive_seed("claim", name, *benchmarks)))


def claim_9(runs: Runs) -> Judged:
    """Trained on the other benchmarks, MetaTuner-J beats the baselines."""
    if not runs.has("generalisation"):
        return _missing("experiment generalisation was not run")
    return _beats_baselines(runs, "generalisation")


def claim_10(runs: Runs) -> Judged:
    """Writing a query's prompt and parameters takes less than half the time of answering it."""
    if not runs.config.timed_rows:
        return _missing("not measured, as the preset times no policies")
    path = runs.layout.efficiency
    if not path.is_file():
        return _missing(f"no timings: {TIME_AGAIN}")
    keys = ("write_share_low", "write_share_high")
    rows = [row for row in read_csv(path, ("method", *keys), TIME_AGAIN) if row["method"] == "metatuner_j"]
    try:
        shares = [[float(row[key]) for key in keys] for row in rows]
    except ValueError as error:
        raise UserError(f"{path}: not a file of timings ({error!r}); {TIME_AGAIN}") from None
    if not shares:
        return _missing("no timing of MetaTuner-J")
    verdict: Verdict = "undecided"
    if all(high < HALF for _, high in shares):
        verdict = "supported"
    elif any(low > HALF for low, _ in shares):
        verdict = "contradicted"
    # Times are only in Table 5 and efficiency.csv, so that the claims' files are the same in every run.
    told = "describes this machine and these models, and tests nothing: shares by benchmark are in Table 5"
    return Judged(Outcome(verdict), (), told)
