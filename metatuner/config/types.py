"""The types of a resolved preset: every key, its meaning, its default and its range."""

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from metatuner.config.parts import (
    BenchmarkConfig,
    BenchmarkId,
    ExperimentId,
    FilePath,
    ModelsConfig,
    NanoConfig,
    Part,
    RoleId,
    VariantName,
)
from metatuner.errors import suggest


class BudgetConfig(Part):
    """Limits on what one fit may use, its prerequisites included; null: metered but not limited."""

    tflop: PositiveFloat | dict[BenchmarkId, PositiveFloat] | None = Field(
        None,
        description="compute of all its models, in 10^12 floating-point operations, as the meter estimates it; "
        "a number, or one per benchmark",
    )
    lm_calls: int | None = Field(None, ge=1)
    generated_tokens: int | None = Field(None, ge=1)
    trained_tokens: int | None = Field(None, ge=1)
    seconds: float | None = Field(
        None,
        gt=0,
        description="longest time of one `fit`, its prerequisites not included; with loading and saving "
        "twice as long and a minute, as an evaluation, which has an hour at least; decides no result",
    )

    def limits(self, train: Sequence[str]) -> dict[str, float | None]:
        """The limits on what is counted in a fit, by name. `tflop` is the mean over its train benchmarks."""
        counts: dict[str, float | None] = self.model_dump(mode="json", exclude={"seconds", "tflop"})
        if isinstance(self.tflop, dict):
            return {**counts, "tflop": fmean(self.tflop[name] for name in train)}
        return counts if self.tflop is None else {**counts, "tflop": self.tflop}


class SearchConfig(Part):
    """One dimension of random search: either `values`, or a range `low` to `high` (log-uniform if `log`)."""

    values: list[Any] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = True

    @model_validator(mode="after")
    def _one_form(self) -> "SearchConfig":
        if self.low is not None and self.log and self.low <= 0:
            raise ValueError("a log-uniform range needs `low` > 0; or say `log: false`")
        ranged = self.low is not None and self.high is not None and self.low < self.high
        if self.values is None and not ranged:
            raise ValueError("give `values`, or `low` < `high`")
        if self.values is not None and (self.low is not None or self.high is not None or not self.values):
            raise ValueError("give a non-empty `values` or a range, not both")
        return self


class VariantConfig(Part):
    """A variant of a method that is tuned on its own, e.g. an ablation with the settings that suit it best."""

    settings: dict[str, Any] = Field(default_factory=dict, description="that differ from the method's")
    search: dict[str, SearchConfig] | None = Field(None, description="null: the method's")


class MethodConfig(Part):
    """A method's settings in this preset, what tuning may change, its budget, and how many cells a job packs."""

    settings: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, SearchConfig] = Field(default_factory=dict)
    variants: dict[RoleId, VariantConfig] = Field(
        default_factory=dict, description="tuned on their own; an experiment's variant takes one by `tuned_as`"
    )
    budget: str = "default"
    pack: int | None = Field(None, ge=1, description="fits per job; null: the preset's `pack`")


class TuningConfig(Part):
    """Random search on the tune split, with a seed that is not among the reported seeds."""

    trials: int = Field(8, ge=1)
    seed: int = Field(1000, ge=0)
    finalists: int = Field(
        1, ge=1, description="the best trials, which are fitted with `more_seeds` too; then the mean over seeds decides"
    )
    more_seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [1001, 1002], min_length=1)
    winners: FilePath | None = Field(None, description="JSON file of stored winners, relative to the project")

    @property
    def seeds(self) -> list[int]:
        """The seed of all trials, then the further seeds of finalists."""
        return [self.seed, *(self.more_seeds if self.finalists > 1 else [])]

    @model_validator(mode="after")
    def _distinct(self) -> "TuningConfig":
        twice = next((seed for seed in self.seeds if self.seeds.count(seed) > 1), None)
        if twice is not None:
            raise ValueError(f"more_seeds: {twice} stands twice among the seeds of a search; name others")
        return self


class ExperimentConfig(Part):
    """A named grid of cells, and the table or figure made from it."""

    methods: list[str] = Field(min_length=1)
    benchmarks: list[BenchmarkId] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    generator: str | Annotated[list[str], Field(min_length=1)] = Field(description="a name, or several: one grid each")
    variants: dict[str, dict[VariantName, dict[str, Any]]] = Field(
        default_factory=dict,
        description="method -> variant name -> settings that differ; under the name of a method that it requires, that "
        "one's; `tuned_as`: one of the method's own `variants`; `generator`: the only one it runs with",
    )

    train: Literal["same", "others"] = Field(
        "same",
        description="same: trained and tested on one benchmark; others: tested on each benchmark, trained on all the "
        "experiment's others. The paper does not say under which settings; each searched one has the median of the "
        "winners of the train benchmarks, as no row of the tested one may choose",
    )
    rows: int | None = Field(
        None, ge=2, description="train rows of each train benchmark, dev rows in proportion; null: the benchmark's own"
    )
    budget: str | None = Field(
        None,
        description="the budget of all its fits, where variants differ in what they cost; null: each method's own",
    )
    axis: str | None = Field(
        None,
        description="a setting that variants differ in (or METHOD.SETTING of a required method): a figure's x axis",
    )

    @property
    def generators(self) -> list[str]:
        """The generators' names."""
        return [self.generator] if isinstance(self.generator, str) else self.generator

    def trained_on(self, benchmark: str) -> tuple[str, ...]:
        """The benchmarks that a fit trains on if its policy is tested on this benchmark."""
        if self.train == "same":
            return (benchmark,)
        return tuple(name for name in self.benchmarks if name != benchmark)

    @property
    def points(self) -> dict[tuple[str, str], Any]:
        """The value of the axis's setting for each (method, variant) that sets it."""
        found = {}
        *required, setting = (self.axis or "").split(".")
        for method, variants in self.variants.items():
            for variant, over in variants.items():
                values = over.get(required[0], {}) if required else over
                if setting in values:
                    found[method, variant] = values[setting]
        return found


class Config(Part):
    """A resolved preset."""

    preset: str
    results: FilePath = Field(description="folder of generated files, relative to the working directory")
    cache: FilePath = Field("results/cache", description="what presets share: pretrained nano models")
    threads: int = Field(1, ge=1, description="torch threads per job; part of no key, but of the machine's rounding")
    batch_tokens: int = Field(16384, ge=64, description="padded tokens a generation batch may hold")
    pack: int = Field(12, ge=1, description="fits or evaluations per job")
    keep: Literal["all", "first"] = Field(
        "all",
        description="first: when all cells are there, only policies that the main experiment uses stay on disk; "
        "others are fitted again if they are needed again",
    )
    timed_rows: int = Field(
        32,
        ge=0,
        description="tune rows of each benchmark that the main experiment's policies are timed on, six times each, for "
        "Table 5 and claim 10; 0: they are not timed",
    )
    nano: NanoConfig = NanoConfig()  # type: ignore[call-arg]
    models: ModelsConfig
    benchmarks: dict[BenchmarkId, BenchmarkConfig]
    budgets: dict[str, BudgetConfig]
    methods: dict[str, MethodConfig]
    tuning: TuningConfig = TuningConfig()  # type: ignore[call-arg]
    forecast: FilePath = Field(
        "config/forecast.yaml",
        description="what costs are predicted from, relative to the project; what searches draw depends on it",
    )
    experiments: dict[ExperimentId, ExperimentConfig] = Field(min_length=1)
    run: str | list[str] | None = Field(
        None, description="the experiments that are run, by name (a word, or a list); null: all; others are left out"
    )
    claims: Literal["paper", "none"] = Field(
        "none",
        description="paper: the run reproduces the paper, so its claims are judged; a preset says so for itself, as "
        "`extends` does not hand it on. none: they are not",
    )
    extra_methods: list[FilePath] = Field(default_factory=list, description="files of further methods")
    extra_benchmarks: list[FilePath] = Field(
        default_factory=list, description="files of further benchmarks; <id>.py defines the benchmark <id>"
    )

    @property
    def main(self) -> str:
        """The name of the main experiment: `main`, or the first if none has that name.

        Searches use its first generator. The policies of its first seed are timed. `keep: first` keeps its policies.
        """
        return "main" if "main" in self.experiments else next(iter(self.experiments))

    @model_validator(mode="after")
    def _names_agree(self) -> "Config":
        for name, experiment in self.experiments.items():
            for benchmark in experiment.benchmarks:
                if benchmark not in self.benchmarks:
                    raise ValueError(
                        f"experiments.{name}.benchmarks: unknown benchmark {benchmark!r}; "
                        + suggest(benchmark, self.benchmarks)
                    )
            for generator in experiment.generators:
                if generator not in self.models.generators:
                    raise ValueError(
                        f"experiments.{name}.generator: unknown generator {generator!r}; "
                        + suggest(generator, self.models.generators)
                    )
            for method in experiment.variants:
                if method not in experiment.methods:
                    raise ValueError(f"experiments.{name}.variants: {method!r} is not among the experiment's methods")
            if experiment.train == "others" and len(experiment.benchmarks) < 2:
                raise ValueError(f"experiments.{name}.train: `others` needs two benchmarks at least; add one")
            if experiment.axis and not experiment.points:
                raise ValueError(
                    f"experiments.{name}.axis: no variant sets {experiment.axis!r}; leave it out, or set it"
                )
            lists: dict[str, list[Any]] = {
                "methods": experiment.methods,
                "benchmarks": experiment.benchmarks,
                "seeds": experiment.seeds,
                "generator": experiment.generators,
            }
            for key, values in lists.items():
                twice = [value for value in values if values.count(value) > 1]
                if twice:
                    raise ValueError(f"experiments.{name}.{key}: {twice[0]!r} stands there twice; name it once")
            for seed in self.tuning.seeds:
                if seed in experiment.seeds:
                    key = "tuning.seed" if seed == self.tuning.seed else "one of tuning.more_seeds"
                    raise ValueError(f"experiments.{name}.seeds: {seed} is {key}; report other seeds")
        for name, limits in self.budgets.items():
            given = limits.tflop if isinstance(limits.tflop, dict) else self.benchmarks
            for benchmark in sorted(given.keys() ^ self.benchmarks.keys()):
                wrong = "is missing" if benchmark in self.benchmarks else "is no benchmark here"
                raise ValueError(f"budgets.{name}.tflop: {benchmark!r} {wrong}; give one number for each benchmark")
        named = {f"methods.{name}": method.budget for name, method in self.methods.items()}
        named |= {f"experiments.{name}": each.budget for name, each in self.experiments.items() if each.budget}
        for place, budget in named.items():
            if budget not in self.budgets:
                raise ValueError(f"{place}.budget: unknown budget {budget!r}; {suggest(budget, self.budgets)}")
        return self
