"""The config: typed in one place, presets that each extend one base, and where a preset's files lie."""

from metatuner.config.layout import Layout
from metatuner.config.presets import (
    dump_config,
    expand_path,
    json_schema,
    load_config,
    merge,
    preset_names,
    read_config,
    resolve,
)
from metatuner.config.types import (
    DEFAULT_VARIANT,
    BenchmarkConfig,
    BudgetConfig,
    Config,
    ExperimentConfig,
    MethodConfig,
    ModelConfig,
    ProposerConfig,
    SearchConfig,
)

__all__ = [
    "DEFAULT_VARIANT",
    "BenchmarkConfig",
    "BudgetConfig",
    "Config",
    "ExperimentConfig",
    "Layout",
    "MethodConfig",
    "ModelConfig",
    "ProposerConfig",
    "SearchConfig",
    "dump_config",
    "expand_path",
    "json_schema",
    "load_config",
    "merge",
    "preset_names",
    "read_config",
    "resolve",
]
