"""The keys of a preset about models and rows, and the names that a preset gives."""

import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from metatuner.fetch.known import known

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


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServerConfig(Part):
    """A model behind an OpenAI-compatible server, local or remote."""

    model: str = Field(min_length=1, description="what the server calls it")
    base_url: str = Field(description="of the server, up to and without /chat/completions or /completions")
    key_variable: str | None = Field(
        None, description="name of the environment variable that holds the key, never the key; null: none is sent"
    )
    timeout: float = Field(60.0, gt=0, description="seconds that the server may be silent")
    retries: int = Field(2, ge=0, le=10, description="further tries where the server is busy or does not answer")

    # An error must not repeat a key that stands in the wrong place.
    @model_validator(mode="after")
    def _holds_no_key(self) -> Self:
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


class EngineConfig(ServerConfig):
    """A server that answers for a model as long as nothing needs the model's weights here."""

    timeout: float = Field(600.0, gt=0, description="seconds that the server may be silent")
    server: Literal["vllm", "sglang", "transformers"] = Field(
        "vllm", description="which requests it takes: vllm and sglang token ids, `transformers serve` texts"
    )
    parallel: int = Field(32, ge=1, le=1024, description="most requests at a time")

    @property
    def identity(self) -> dict[str, str]:
        """What fits depend on; where and how the server is reached is left out."""
        return {"model": self.model, "server": self.server}


class ModelConfig(Part):
    """A language model: a local folder, a Hub id, or `nano:ROLE` (trained by a rule of the DAG)."""

    path: FilePath = Field(
        description="a local folder ($VARIABLES and ~ expand), a Hub id, or nano:ROLE. The paper does not say base or "
        "Instruct; Instruct, as the generator must follow a request to rewrite a prompt before it is trained"
    )
    revision: str | None = None
    fetched: str | None = Field(
        None,
        exclude_if=lambda name: name is None,
        description="the name by which `metatuner fetch-model` knows the model of this Hub id. If its folder is in the "
        "cache, the resolved config names that folder as `path`, without a revision",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    window: int | None = Field(None, ge=16, description="input plus output tokens; default: the model's own")
    rewrite_system: str = Field(
        "{prompt}", description="the system turn of a request to a generator; {prompt} and {query} are filled in"
    )
    rewrite_user: str = Field(
        "{query}",
        description="the user turn of a request to a generator; {prompt} and {query} are filled in. Put the query "
        "before the request: a model that reads the query last tends to answer it. The default is for generators that "
        "are trained to write prompts. The paper does not say how it asks; the Qwen2.5 presets ask for a better "
        "prompt, an instruction that says how to find the answer",
    )
    engine: EngineConfig | None = Field(
        None,
        description="a server that runs this same model and answers for it where nothing needs its weights; null: none",
    )

    @property
    def hub(self) -> str:
        """The Hub id that a fetched model stands for; for any other model, its path."""
        return self.path if self.fetched is None else known(self.fetched).hub

    def title(self, role: str) -> str:
        """The model in print: its Hub id, `nano:ROLE`, or the name of its folder; `role` if a $VARIABLE is not set.

        It says so if its weights are not the Hub's.
        """
        if self.fetched is not None and self.path != self.hub:
            return f"{self.hub} ({known(self.fetched).weights})"
        if not self.path.startswith(("/", ".", "~", "$")):
            return self.path
        folder = os.path.expanduser(os.path.expandvars(self.path))
        return role if "$" in folder else os.path.basename(os.path.abspath(folder)) or role

    @model_validator(mode="after")
    def _asks_for_a_query(self) -> "ModelConfig":
        if (self.rewrite_system + self.rewrite_user).count("{query}") != 1:
            raise ValueError("rewrite_system and rewrite_user must hold {query} once together; name it in one of them")
        if self.device not in ("auto", "cpu") and not re.fullmatch(r"cuda(:\d+)?|mps|xpu(:\d+)?", self.device):
            raise ValueError(f"device {self.device!r} is none; say auto, cpu, cuda or cuda:N")
        return self


class ProposerConfig(ServerConfig):
    """A model behind an OpenAI-compatible server, local or remote, that proposes prompts."""

    @property
    def identity(self) -> dict[str, str]:
        """What fits depend on; how the server is reached is left out."""
        return {"model": self.model, "base_url": self.base_url}


class ModelsConfig(Part):
    """The actor, which answers, and the generators, which write prompts and parameters, by size."""

    actor: ModelConfig
    generators: dict[RoleId, ModelConfig] = Field(default_factory=dict)
    proposer: ProposerConfig | None = Field(
        None,
        description="asked in the generator's place by methods whose setting `proposer` is `instruct`; null: the "
        "generator is",
    )


class SizesConfig(Part):
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


class BenchmarkConfig(Part):
    """Where a benchmark's rows come from, and how many are used.

    A benchmark may take keys of its own beside these (`Benchmark.takes`), such as `benchmarks.hotpotqa.contexts`.
    """

    model_config = ConfigDict(extra="allow")

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
        description="p~; null: the benchmark's own, a sentence for the task and one for the form of the answer. The "
        "paper does not say; the form is stated, as in tasks of lm-eval and prompts of papers, because an answer in "
        "another form may score 0 whatever it says. docs/benchmarks.md says how to leave the form out",
    )
    max_new_tokens: int | None = Field(None, ge=1)
    split_seed: int = Field(0, ge=0, description="draws the fixed splits")

    @property
    def choices(self) -> dict[str, Any]:
        """The benchmark's own keys that are set, with their values."""
        return {key: value for key, value in (self.model_extra or {}).items() if value is not None}

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


class NanoConfig(Part):
    """The embedded world."""

    world_seed: int = Field(0, ge=0)
    null: bool = Field(False, description="the null world: prompts do not matter and no row is shifted")
    trained: bool = Field(True, description="false: models keep random weights (the smoke preset)")
    given: bool = Field(
        True,
        description="take the models that come with the package, where they are of this recipe and world; false: "
        "pretrain them here, which on another processor makes other models",
    )
