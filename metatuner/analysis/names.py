"""Names of methods, benchmarks and metrics in print, their order, and the world that a config measures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from metatuner.config import DEFAULT_VARIANT, Config, Layout
from metatuner.errors import UserError
from metatuner.files import read_json
from metatuner.harness.benchmarks import benchmark_ids, get_benchmark
from metatuner.harness.registry import Registry

FAMILIES = {
    "vanilla": "Vanilla",
    "prompt": "Prompt",
    "parameter": "Parameter",
    "hybrid": "Hybrid",
    "other": "Other",
}
"""Titles of families, in the order of tables; `other` holds methods without a known family."""

BENCHMARKS = {"math": "MATH", "gsm8k": "GSM8K", "hotpotqa": "HotpotQA", "cosmosqa": "CosmosQA"}
"""In the paper's order."""

METRICS = {"accuracy": "Accuracy", "em": "Exact match", "exact_match": "Exact match", "f1": "F1"}

VARIANTS = {
    "without_f": "w/o F",
    "without_p": "w/o P",
    "without_s": "w/o S",
    "without_f_long": "w/o F, actor warmed up longer",
    "without_f_tuned": "w/o F, own settings",
    "without_p_tuned": "w/o P, own settings",
    "without_s_tuned": "w/o S, own settings",
    "gumbel": "Gumbel-Softmax, own settings",
    "prompt_step": "a prompt to go step by step",
    "prompt_plan": "a prompt to plan first",
    "prompt_check": "a prompt to check the work",
    "prompt_vague": "a vague prompt",
}

SETTINGS = {
    "shared_layers": "Shared decoder layers k",
    "alpha": "Weight α of the supervised regularisation",
    "sync_epochs": "Passes over D1 between synchronisations",
    "rank": "Rank r of the per-query LoRA",
    "scale": "Scale λ of the per-query LoRA",
    "metatuner_warmup.rollouts": "Rollouts per query",
    "metatuner_warmup.d2": "Prompts of D2",
    "metatuner_warmup.trainable": "What of the generator is trained",
}
"""Titles of figure axes, by the setting that varies."""

VALUES = {
    ("metatuner_warmup.d2", "best"): "best\nrollout",
    ("metatuner_warmup.d2", "threshold"): "above\nthreshold",
    ("metatuner_warmup.d2", "expert"): "greedy\nrewrite",
    ("metatuner_warmup.d2", "initial"): "p~\nitself",
    ("metatuner_warmup.trainable", "full"): "all weights",
    ("metatuner_warmup.trainable", "lora"): "LoRA",
}
"""Names in print for setting values that need an explanation."""

CAVEATS = {
    "null": "Null world: prompts do not matter and no row is shifted; zero-shot is at its ceiling, so no gain can "
    "show (training can hurt).",
    "untrained": "Untrained nano models: the scores mean nothing, they only show that every step runs.",
    "nano": (
        "Nano world: synthetic benchmarks and models of about a million parameters, not the paper's. What prompts and "
        "parameters can each teach is set by construction, in favour of hybrids; rankings are no evidence about the "
        "paper."
    ),
    "real_rows": (
        "Nano models on real rows: models of about a million parameters score near chance here; not the paper's models."
    ),
}

WORLDS = {
    "null": "nano, null world",
    "untrained": "nano, untrained models",
    "nano": "nano",
    "real_rows": "real rows, nano models",
}
"""Short names of worlds, for table columns."""

ROWS = {
    "hub": "the Hub's data sets",
    "local": "rows from local files",
    "nano": "synthetic nano rows",
    "lm_eval": "lm-eval's tasks",
}


@dataclass(frozen=True)
class Named:
    """A method's title and family, as its class declares them."""

    title: str
    family: str


@cache
def own_methods() -> Mapping[str, Named]:
    """The project's own methods, by name."""
    registry = Registry()
    return {name: Named(registry[name].cls.title, registry[name].cls.family) for name in registry.names()}


class Names:
    """Titles, families and order of methods, from the methods' classes or from methods.json of their run."""

    def __init__(self, described: Iterable[Mapping[str, Any]] = (), order: Sequence[str] = ()) -> None:
        """
        Args:
            described: entries of methods.json.
            order: names in the order of tables; other methods come after these, in the order in which they are met.
        """
        known = {str(each["name"]): Named(str(each.get("title") or each["name"]), each["family"]) for each in described}
        self._methods = {**known, **own_methods()}
        self._order = {name: place for place, name in reversed(list(enumerate(order)))}

    @classmethod
    def of(cls, config: Config) -> "Names":
        """The names of a preset's methods, in the order of its experiments."""
        path = Layout(config).methods
        shape = [{"name": str, "family": str, "title?": str}]
        described = read_json(path, "run `metatuner scores` again", shape) if path.is_file() else []
        return cls(described, [name for each in config.experiments.values() for name in each.methods])

    def family(self, method: str) -> str:
        """Key of the method's family; `other` if no family of the method is known."""
        known = self._methods.get(method)
        return known.family if known and known.family in FAMILIES else "other"

    def title(self, method: str, variant: str = DEFAULT_VARIANT) -> str:
        """A method's name in print, with its variant if there is one."""
        known = self._methods.get(method)
        title = known.title if known else method
        return title if variant == DEFAULT_VARIANT else f"{title} ({VARIANTS.get(variant, variant)})"

    def rank(self, method: str) -> tuple[int, int]:
        """Sort key for methods: by family, then in the preset's order."""
        return list(FAMILIES).index(self.family(method)), self._order.get(method, len(self._order))


def variant_title(variant: str) -> str:
    """A variant's name without its method; the default variant is called "the initial prompt".

    >>> variant_title("default"), variant_title("without_f"), variant_title("mine")
    ('the initial prompt', 'w/o F', 'mine')
    """
    return "the initial prompt" if variant == DEFAULT_VARIANT else VARIANTS.get(variant, variant)


def value_title(setting: str, value: Any) -> str:
    """A setting's value in print; a share of the generator's K layers is written as a multiple of K.

    >>> value_title("shared_layers", 0.75), value_title("shared_layers", 0), value_title("alpha", 0.5)
    ('3K/4', '0', '0.5')
    """
    if setting == "shared_layers" and isinstance(value, float):
        share = Fraction(value).limit_denominator(100)
        layers = "K" if share.numerator == 1 else f"{share.numerator}K"
        return "0" if not share else layers if share.denominator == 1 else f"{layers}/{share.denominator}"
    return VALUES.get((setting, value), f"{value:g}" if isinstance(value, int | float) else str(value))


def benchmark_rank(benchmark: str) -> int:
    """Sort key for benchmarks: the paper's order; other benchmarks keep their order after these."""
    return list(BENCHMARKS).index(benchmark) if benchmark in BENCHMARKS else len(BENCHMARKS)


def benchmark_title(benchmark: str, source: str) -> str:
    """A benchmark's name in print, marked "nano" if its rows are synthetic (source `nano`).

    >>> benchmark_title("gsm8k", "nano"), benchmark_title("gsm8k", "hub")
    ('nano GSM8K', 'GSM8K')
    """
    title = BENCHMARKS.get(benchmark, benchmark)
    return f"nano {title}" if source == "nano" else title


def title_in(config: Config, benchmark: str) -> str:
    """A benchmark's name in print, with what its own keys change: "HotpotQA (gold paragraphs)".

    Raises `UserError` if the config, unlike a file of results, does not have it.
    """
    if benchmark not in config.benchmarks:
        raise UserError(
            f"config key 'benchmarks': no {benchmark!r}, which the results have; run `metatuner scores` again"
        )
    title, used = benchmark_title(benchmark, config.benchmarks[benchmark].source), config.benchmarks[benchmark]
    if not used.choices:
        return title
    files = [] if benchmark in benchmark_ids() else config.extra_benchmarks
    remarks = get_benchmark(benchmark, files).with_overrides(choices=used.choices).remarks
    return f"{title} ({', '.join(remarks)})" if remarks else title


def describe_world(config: Config, experiment: str, generator: str | None = None) -> str:
    """One or two sentences for the head of a table: what was measured, on what, and what it does not show.

    `generator` names one of the experiment's generators; None means the first.
    """
    world = _nano_world(config, experiment)
    actor, generator, rows = _measured_on(config, experiment, generator)
    changed = _changed(config, experiment)
    told = CAVEATS[world] if world else f"Actor {actor}, generator {generator}, on {rows}."
    return f"{told} Changed by this preset: {', '.join(changed)}." if changed else told


def name_world(config: Config, experiment: str, generator: str | None = None) -> str:
    """The description of `describe_world` in short, for a table column."""
    world = _nano_world(config, experiment)
    actor, generator, rows = _measured_on(config, experiment, generator)
    told = WORLDS[world] if world else f"{actor} + {generator}, {rows}"
    return ", ".join([told, *_changed(config, experiment)])


def _changed(config: Config, experiment: str) -> list[str]:
    """Titles of the experiment's benchmarks that are not as they are elsewhere."""
    names = config.experiments[experiment].benchmarks
    titles = {name: title_in(config, name) for name in names}
    return [title for name, title in titles.items() if title != benchmark_title(name, config.benchmarks[name].source)]


def _nano_world(config: Config, experiment: str) -> str:
    """Key of `CAVEATS` and `WORLDS`; "" if the actor is not a nano model."""
    if not config.models.actor.path.startswith("nano:"):
        return ""
    if not config.nano.trained:
        return "untrained"
    if {config.benchmarks[name].source for name in config.experiments[experiment].benchmarks} != {"nano"}:
        return "real_rows"
    return "null" if config.nano.null else "nano"


def _measured_on(config: Config, experiment: str, generator: str | None) -> tuple[str, str, str]:
    """Names of actor and generator, and a description of the rows."""
    design = config.experiments[experiment]
    sources = sorted({config.benchmarks[name].source for name in design.benchmarks})
    rows = " and ".join(ROWS[source] for source in sources)
    role = generator or design.generators[0]
    return config.models.actor.title("actor"), config.models.generators[role].title(role), rows
