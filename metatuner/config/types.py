"""The types of a resolved preset: every key, its meaning, its default and its range."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from metatuner.errors import suggest

BenchmarkId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
ExperimentId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
RoleId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=100)]
"""A generator, or a variant that is tuned on its own: names that files have."""
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_ .+-]*$", max_length=100)]


def _short(path: str) -> str:
    if len(path.encode()) > 1000 or any(len(part.encode()) > 200 for part in path.split("/")):
        raise ValueError("a name has at most 200 bytes and a path 1,000; choose a shorter one")
    return path


FilePath = Annotated[str, AfterValidator(_short)]
"""A path that file systems can hold, with room for what is added to its names."""

DEFAULT_VARIANT = "default"
"""The name of the only variant of a method without `variants` in the config."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(_Part):
    """A language model: a local folder, a Hub id, or `nano:ROLE` (trained by a rule of the DAG)."""

    path: FilePath = Field(
        description="a local folder, a Hub id, or nano:ROLE. The paper does not say base or Instruct; Instruct, as the "
        "generator must follow a request to rewrite a prompt before it is trained"
    )
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    window: int | None = Field(None, ge=16, description="input plus output tokens; default: the model's own")
    rewrite_system: str = Field(
        "{prompt}", description="the system turn of a request to a generator; {prompt} and {query} are filled in"
    )
    rewrite_user: str = Field(
        "{query}",
        description="the user turn of a request to a generator; {prompt} and {query} are filled in. The paper does not "
        "say how it asks; the Qwen2.5 presets ask to rewrite the prompt so that the answer becomes right",
    )

    @model_validator(mode="after")
    def _asks_for_a_query(self) -> "ModelConfig":
        if (self.rewrite_system + self.rewrite_user).count("{query}") != 1:
            raise ValueError("rewrite_system and rewrite_user must hold {query} once together; name it in one of them")
        if self.device not in ("auto", "cpu") and not re.fullmatch(r"cuda(:\d+)?|mps|xpu(:\d+)?", self.device):
            raise ValueError(f"device {self.device!r} is none; say auto, cpu, cuda or cuda:N")
        return self


class ProposerConfig(_Part):
    """A model behind an OpenAI-compatible server, local or remote, that proposes prompts."""

    model: str = Field(min_length=1, description="what the server calls it")
    base_url: str = Field(description="of the server, up to and without /chat/completions")
    key_variable: str | None = Field(
        None, description="name of the environment variable that holds the key, never the key; null: none is sent"
    )
    timeout: float = Field(60.0, gt=0, description="seconds that the server may be silent")
    retries: int = Field(2, ge=0, le=10, description="further tries where the server is busy or does not answer")

    @property
    def identity(self) -> dict[str, str]:
        """What fits depend on; how the server is reached is left out."""
        return {"model": self.model, "base_url": self.base_url}

    # An error must not repeat a key that stands in the wrong place.
    @model_validator(mode="after")
    def _holds_no_key(self) -> "ProposerConfig":
        if self.key_variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            raise ValueError(
                "key_variable must be the name of an environment variable (letters, digits, underscores), not the key"
            )
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.base_url):
            raise ValueError(
                "base_url must be http:// or https://, a host and a path, without user, password or query; a key goes "
                "into the environment variable that key_variable names"
            )
        return self


class ModelsConfig(_Part):
    """The actor, which answers, and the generators, which write prompts and parameters, by size."""

    actor: ModelConfig
    generators: dict[RoleId, ModelConfig] = Field(default_factory=dict)
    proposer: ProposerConfig | None = Field(
        None,
        description="asked in the generator's place by methods whose setting `proposer` is `instruct`; null: the "
        "generator is",
    )


class SizesConfig(_Part):
    """Rows per split. Each seed redraws `train` and `dev`; `tune`, `test` and `audit` are fixed."""

    train: int | None = Field(
        None,
        ge=1,
        description="rows to fit on; null: all rows that are left. The paper does not say how many; 2,000 for all "
        "methods alike",
    )
    dev: int = Field(64, ge=1)
    tune: int = Field(100, ge=1)
    test: int | None = Field(
        None,
        ge=1,
        description="null: all. The paper does not say; 450, 1,319, 2,000 and 2,000, from the grids of its scores",
    )
    audit: int = Field(0, ge=0, description="a separate draw for the nano world's own bars")


class BenchmarkConfig(_Part):
    """Where a benchmark's rows come from, and how many are used."""

    source: Literal["nano", "local", "hub", "lm_eval"]
    path: FilePath | None = Field(
        None, description="local: a folder with train.jsonl and test.jsonl ($VARIABLES expand)"
    )
    task: str | None = Field(None, description="lm_eval: the name of a task that generates text, from lm-eval")
    include_path: FilePath | None = Field(
        None, description="lm_eval: a folder with the files of a task of your own ($VARIABLES expand)"
    )
    metric: str | None = Field(None, description="lm_eval: the task's metric; null: exact_match")
    filter: str | None = Field(None, description="lm_eval: the task's filter that finds the answer; null: its first")
    sizes: SizesConfig
    initial_prompt: str | None = Field(
        None,
        description="p~; null: the benchmark's own. The paper does not say; one plain sentence per benchmark",
    )
    max_new_tokens: int | None = Field(None, ge=1)
    split_seed: int = Field(0, ge=0, description="draws the fixed splits")

    @model_validator(mode="after")
    def _keys_go_with_the_source(self) -> "BenchmarkConfig":
        if (self.source == "local") != (self.path is not None):
            raise ValueError("`path` goes with `source: local`, and only with it")
        task = self.source == "lm_eval"
        if task != (self.task is not None):
            raise ValueError("`task` goes with `source: lm_eval`, and only with it")
        if task and (self.initial_prompt is None or self.max_new_tokens is None):
            raise ValueError(
                "`source: lm_eval` needs `initial_prompt` and `max_new_tokens`: a task has neither; add them"
            )
        if not task and (self.include_path or self.metric or self.filter):
            raise ValueError("`include_path`, `metric` and `filter` go with `source: lm_eval` only")
        return self


class NanoConfig(_Part):
    """The embedded world."""

    world_seed: int = Field(0, ge=0)
    null: bool = Field(False, description="the null world: prompts do not matter and no row is shifted")
    trained: bool = Field(True, description="false: models keep random weights (the smoke preset)")
    given: bool = Field(
        True,
        description="take the models that come with the package, where they are of this recipe and world; false: "
        "pretrain them here, which on another processor makes other models",
    )


class BudgetConfig(_Part):
    """Limits on what one fit may use, its prerequisites included; null: metered but not limited."""

    lm_calls: int | None = Field(None, ge=1)
    generated_tokens: int | None = Field(None, ge=1)
    trained_tokens: int | None = Field(None, ge=1)
    seconds: float | None = Field(
        None,
        gt=0,
        description="longest time of one `fit`, its prerequisites not included; with loading and saving "
        "twice as long and a minute, as an evaluation, which has an hour at least; decides no result",
    )

    @property
    def counts(self) -> dict[str, int | None]:
        """The limits on what is counted, by name."""
        return self.model_dump(mode="json", exclude={"seconds"})


class SearchConfig(_Part):
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


class VariantConfig(_Part):
    """A variant of a method that is tuned on its own, e.g. an ablation with the settings that suit it best."""

    settings: dict[str, Any] = Field(default_factory=dict, description="that differ from the method's")
    search: dict[str, SearchConfig] | None = Field(None, description="null: the method's")


class MethodConfig(_Part):
    """A method's settings in this preset, what tuning may change, its budget, and how many cells a job packs."""

    settings: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, SearchConfig] = Field(default_factory=dict)
    variants: dict[RoleId, VariantConfig] = Field(
        default_factory=dict, description="tuned on their own; an experiment's variant takes one by `tuned_as`"
    )
    budget: str = "default"
    pack: int | None = Field(None, ge=1, description="fits per job; null: the preset's `pack`")


class TuningConfig(_Part):
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


class ExperimentConfig(_Part):
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


class Config(_Part):
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
    nano: NanoConfig = NanoConfig()  # type: ignore[call-arg]
    models: ModelsConfig
    benchmarks: dict[BenchmarkId, BenchmarkConfig]
    budgets: dict[str, BudgetConfig]
    methods: dict[str, MethodConfig]
    tuning: TuningConfig = TuningConfig()  # type: ignore[call-arg]
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
        for name, method_config in self.methods.items():
            if method_config.budget not in self.budgets:
                raise ValueError(
                    f"methods.{name}.budget: unknown budget {method_config.budget!r}; "
                    + suggest(method_config.budget, self.budgets)
                )
        return self
