"""What a run must hold before a claim is judged: the paper's own list, not a part of it."""

from dataclasses import dataclass

from metatuner.analysis.claims.runs import Runs
from metatuner.analysis.results.published import read_published
from metatuner.config import DEFAULT_VARIANT

OWN = ("metatuner_i", "metatuner_j")


@dataclass(frozen=True)
class Need:
    """What a claim needs of one experiment, by the words of the message: all names of a kind, or a number of them."""

    experiment: str
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()

    def lacking(self, runs: Runs) -> list[str]:
        """What the run lacks, such as "3 of 8 baselines"; empty if nothing. The experiment must be in the run."""
        design = runs.config.experiments[self.experiment]
        there = {
            "methods of MetaTuner": (self.methods, design.methods),
            "baselines": (self.baselines, design.methods),
            "benchmarks": (self.benchmarks, design.benchmarks),
            "variants": (self.variants, list(design.variants.get("metatuner_j") or [DEFAULT_VARIANT])),
            "generators": (self.generators, design.generators),
        }
        return [
            f"{sum(name in given for name in needed)} of {len(needed)} {words}"
            for words, (needed, given) in there.items()
            if not set(needed) <= set(given)
        ]


def _needs() -> dict[int, tuple[Need, ...]]:
    published = list(read_published())
    methods = dict.fromkeys(method for method, variant, _ in published if variant == DEFAULT_VARIANT)
    baselines = tuple(name for name in methods if name not in OWN)
    benchmarks = tuple(dict.fromkeys(benchmark for _, _, benchmark in published))
    ablations = tuple(dict.fromkeys(variant for _, variant, _ in published if variant != DEFAULT_VARIANT))
    # The paper's lists behind its other tables and figures are not public: what it must have compared is needed.
    return {
        1: (Need("main", ("metatuner_j",), baselines, benchmarks),),
        2: (Need("main", OWN, baselines, benchmarks),),
        3: (Need("ablation", benchmarks=benchmarks, variants=(DEFAULT_VARIANT, *ablations)),),
        4: (Need("regularisation", benchmarks=benchmarks, variants=(DEFAULT_VARIANT, "gumbel")),),
        5: (Need("sharing", generators=("large", "small")),),
        6: (Need("rollouts"),),
        7: (Need("main", OWN, benchmarks=benchmarks),),
        8: (
            Need("main", baselines=("rlprompt", "bpo", "opro"), benchmarks=benchmarks),
            Need("sft_prompts", benchmarks=benchmarks),
        ),
        9: (Need("generalisation", ("metatuner_j",), ("zero_shot", "opro", "sft"), benchmarks),),
        10: (Need("main", ("metatuner_j",), benchmarks=benchmarks),),
    }


def lacking(runs: Runs, claim: int) -> str:
    """Why a claim cannot be judged on this run: what it lacks of the paper's list; "" if it has all."""
    found = []
    for need in _needs()[claim]:
        if need.experiment not in runs.config.experiments:
            return f"experiment {need.experiment} was not run"
        if short := need.lacking(runs):
            found.append(f"{', '.join(short)} in experiment {need.experiment}")
    return "; ".join(found)
