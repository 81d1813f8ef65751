"""What a run would find on this machine, and whether a preset's models, rows and largest job are there and fit."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metatuner.config import Config, ModelConfig, expand_path, is_path
from metatuner.cost.declared import Memory
from metatuner.errors import UserError
from metatuner.harness.registry import Registry
from metatuner.plan import Plan
from metatuner.plan.keys import Keys
from metatuner.run.machine import cores, has_gpu, memory_bytes

HUB_SECONDS = 5.0
"""How long the Hub may take to say whether it has a model."""
LEAST, MOST = 2**8, 2**20
"""The range in which values of `batch_tokens` are tried, by powers of two."""


@dataclass(frozen=True)
class Finding:
    """One line of `metatuner doctor`."""

    status: Literal["ok", "note", "missing"]
    """missing: a run cannot do without it."""
    text: str


def examine(config: Config) -> Iterator[Finding]:
    """Findings on the machine, then on what the preset needs."""
    yield from _machine(config)
    for role, model in _models(config).items():
        yield _model(role, model)
        yield from _dtype(role, model)
    yield from _rows(config)
    yield from _jobs(config)


# ---- the machine ---------------------------------------------------------------------------------------------------


def _machine(config: Config) -> Iterator[Finding]:
    import torch

    yield Finding("ok", f"cores: {cores()}; `snakemake --cores all` uses them, each job {config.threads}")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limited = "" if memory_bytes() == whole else f", by the limit of a control group; the machine has {_gb(whole)}"
    yield Finding("ok", f"memory: {_gb(memory_bytes())}{limited}")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU" if not torch.version.hip else "ROCm"
    yield Finding("ok", f"torch: {torch.__version__}, built for {built}")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            yield Finding("ok", f"GPU cuda:{number}: {card.name}, {_gb(card.total_memory)}")
    elif has_gpu():
        yield Finding(
            "note", "GPU: there is one, but torch cannot use it; install a torch that can (docs/install.md), or use cpu"
        )
    else:
        yield Finding("ok", "GPU: none; models run on the CPU")
    home = Path(config.results).absolute()
    there = next(path for path in (home, *home.parents) if path.is_dir())
    yield Finding("ok", f"disk: {_gb(shutil.disk_usage(there).free)} free for {config.results}")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


# ---- models --------------------------------------------------------------------------------------------------------


def _models(config: Config) -> dict[str, ModelConfig]:
    """The models that the experiments use, by their config keys."""
    used = sorted({name for experiment in config.experiments.values() for name in experiment.generators})
    generators = {f"models.generators.{name}": config.models.generators[name] for name in used}
    return {"models.actor": config.models.actor, **generators}


def _model(place: str, model: ModelConfig) -> Finding:
    """Whether a model is there."""
    if model.path.startswith("nano:"):
        return Finding("ok", f"{place}: {model.path}, which a run makes")
    if not is_path(model.path):
        return _hub_model(place, model)
    try:
        folder = expand_path(model.path, f"{place}.path")
    except UserError as error:
        return Finding("missing", str(error))
    from metatuner.lm.weights import TOKENIZER_FILES

    needed = {
        "config.json": (folder / "config.json").is_file(),
        "tokenizer": any((folder / name).is_file() for name in TOKENIZER_FILES),
        "weights in safetensors": any(folder.glob("*.safetensors")),
    }
    lacking = [what for what, there in needed.items() if not there]
    if lacking:
        return Finding("missing", f"{place}.path: {folder} has no {', no '.join(lacking)}; name a model's folder")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Finding("ok", f"{place}: {folder}, {_gb(size)} of weights")


def _hub_model(place: str, model: ModelConfig) -> Finding:
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model.path, "config.json", revision=model.revision), str):
        return Finding("ok", f"{place}: {model.path}, in the cache of the Hub")
    if not constants.HF_HUB_OFFLINE:
        try:
            HfApi().model_info(model.path, revision=model.revision, timeout=HUB_SECONDS)
        except Exception as error:  # of the network, the Hub, or for a name that is none
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        else:
            return Finding("ok", f"{place}: {model.path}, on the Hub; the first job loads it down")
    else:
        reason = "HF_HUB_OFFLINE is set"
    remedy = "name a local folder, or load it down before"
    return Finding(
        "missing", f"{place}.path: {model.path} is not cached, and not reached on the Hub ({reason}); {remedy}"
    )


def _dtype(place: str, model: ModelConfig) -> Iterator[Finding]:
    """What is wrong with a model's device or dtype on this machine."""
    import torch

    gpu = torch.cuda.is_available()
    if model.device.startswith("cuda") and not gpu:
        yield Finding("missing", f"{place}.device: {model.device}, but torch sees no GPU; set auto or cpu")
    on_cpu = model.device == "cpu" or (model.device == "auto" and not gpu)
    if on_cpu and model.dtype == "float16":
        yield Finding("note", f"{place}.dtype: float16 is slow on a CPU and cannot be trained; set bfloat16 or float32")
    if on_cpu and model.dtype == "bfloat16" and not _has_bfloat16():
        yield Finding("note", f"{place}.dtype: this CPU has no bfloat16 arithmetic, so float32 may be faster")
    if not on_cpu and model.dtype == "bfloat16" and gpu and not torch.cuda.is_bf16_supported():
        yield Finding("note", f"{place}.dtype: this GPU has no bfloat16 arithmetic; set float32")


def _has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 (x86 says so in /proc/cpuinfo); True where that cannot be asked."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return "bf16" in text or "flags" not in text


# ---- rows and jobs -------------------------------------------------------------------------------------------------


def _rows(config: Config) -> Iterator[Finding]:
    """Whether the rows of each benchmark that is used are there."""
    try:
        keys = Keys(config, Registry(config.extra_methods))
    except UserError as error:
        yield Finding("missing", str(error))
        return
    used = {name for experiment in config.experiments.values() for name in experiment.benchmarks}
    for name in (each for each in config.benchmarks if each in used):
        source = config.benchmarks[name].source
        try:
            files = keys.source_files(name)
        except UserError as error:
            yield Finding("missing", str(error))
            continue
        where = {
            "nano": "nano rows, which a run writes",
            "hub": "from the Hub; `metatuner check-data` loads and checks the rows",
            "lm_eval": f"lm-eval's task {config.benchmarks[name].task}; `metatuner check-data` loads its rows",
        }
        yield Finding(
            "note" if source in ("hub", "lm_eval") else "ok", f"{name}: {where.get(source) or files[0].parent}"
        )


def _jobs(config: Config) -> Iterator[Finding]:
    """Whether the largest job fits into the memory, and which `batch_tokens` do."""
    try:
        plan = Plan(config).check()
    except UserError as error:
        yield Finding("missing", f"the preset cannot be planned: {error}")
        return
    import torch

    if torch.cuda.is_available():
        yield Finding("note", f"memory of jobs is not predicted on a GPU: batch_tokens is {config.batch_tokens}")
        return
    room, found = memory_bytes() / 1e6, Memory(plan).by_method
    unknown = sorted(method for method, size in found.items() if not size)
    if unknown:
        missing = f"its shapes and lengths come from config key 'forecast', {config.forecast}"
        yield Finding("note", f"memory is not predicted for {', '.join(unknown)}; {missing}")
    if len(unknown) == len(found):
        return
    method, size = max(found.items(), key=lambda each: each[1])
    fitting = _batch_tokens(plan, room)
    told = (
        f"batch_tokens is {config.batch_tokens}; up to {fitting} would fit" if fitting else "no batch_tokens would fit"
    )
    if size > room:
        remedy = (
            f"set batch_tokens to {fitting}"
            if fitting
            else "lower its batch_size, or set gradient_checkpointing or activation_checkpointing"
        )
        text = f"memory: the largest job, of {method}, is predicted to need {_gb(size * 1e6)}; {remedy} ({told})"
        yield Finding("missing", text)
        return
    beside = min(cores(), int(room // size))
    yield Finding(
        "ok", f"memory: the largest job, of {method}, is predicted to need {_gb(size * 1e6)}; {beside} at a time"
    )
    yield Finding("ok", told)


def _batch_tokens(plan: Plan, room: float) -> int:
    """The largest power of two for `batch_tokens` with which every job fits into `room` MB; 0 if none does."""
    found, tokens = 0, LEAST
    while tokens <= MOST and max(Memory(plan, tokens).by_method.values()) <= room:
        found, tokens = tokens, 2 * tokens
    return found
