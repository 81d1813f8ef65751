"""The config: its types, presets that each extend one base, and the places of a preset's files."""

from metatuner.config.layout import Layout
from metatuner.config.overrides import from_snakemake, parse_overrides
from metatuner.config.parts import DEFAULT_VARIANT, BenchmarkConfig, ModelConfig, ProposerConfig
from metatuner.config.presets import (
    dump_config,
    expand_path,
    is_path,
    json_schema,
    load_config,
    local_folder,
    merge,
    preset_names,
    read_config,
    resolve,
)
from metatuner.config.reading import parse, read_yaml
from metatuner.config.types import BudgetConfig, Config, ExperimentConfig, MethodConfig, SearchConfig

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
    "from_snakemake",
    "is_path",
    "json_schema",
    "load_config",
    "local_folder",
    "merge",
    "parse",
    "parse_overrides",
    "preset_names",
    "read_config",
    "read_yaml",
    "resolve",
]
