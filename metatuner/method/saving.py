"""A tuner as a folder: trained tensors (safetensors), and metatuner.json, which says what they were trained on.

metatuner.json                  configuration, initial prompt, base models
generator.safetensors           the generator's trainable parameters (all weights, or its LoRA)
parameter_decoder.safetensors   W_d and W_u (only with a parameter branch)
state_norm.safetensors          means and deviations of h_i (with `state_scaling: standard`)
meta_encoder.safetensors        layers private to the parameter branch, if any
actor.safetensors               the actor's warm-up LoRA, if it came with one
actor_lora.safetensors          in place of actor.safetensors with `actor: lora`
generator/, actor/              the base models, if included

metatuner.json is written last and removed first: a folder without it is not complete.
"""

import contextlib
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoRALinear
from torch import Tensor, nn

from metatuner.errors import UserError
from metatuner.files import complete_folder, read_json, write_json
from metatuner.lm import LM, ModelSpec, load_lm
from metatuner.lm.adapters import ADAPTER, lora_linears
from metatuner.method.config import MetaTunerConfig
from metatuner.method.model import TunedModel
from metatuner.method.tuned import digest, load_tensors, lora_parameters, save_tensors, to_train, without_lora

FILE = "metatuner.json"
FORMAT = 2
TENSORS = ("generator", "parameter_decoder", "state_norm", "meta_encoder", "actor", "actor_lora")


def save_pretrained(
    tuner: TunedModel, folder: Path, include_base: bool, initial_prompt: str | None, actor_fingerprint: str
) -> None:
    """See `MetaTuner.save_pretrained`."""
    models = {"generator": tuner.generator, "actor": tuner.actor_with_lora}
    described = {name: _described(name, lm, include_base) for name, lm in models.items()}
    _clear(folder, keep={Path(lm.spec.path).resolve() for lm in models.values()})
    tuner.save(folder)
    if tuner.config.actor == "frozen" and lora_linears(tuner.actor_with_lora):
        save_tensors(dict(lora_parameters(tuner.actor_with_lora)), folder / "actor.safetensors")
    if include_base:
        for name, lm in models.items():
            _write_base(without_lora(lm), folder / name)
    if described["generator"]["lora_rank"] is not None:
        described["generator"]["fingerprint"] = fingerprint(tuner.generator)
    described["actor"]["fingerprint"] = actor_fingerprint
    state = {
        "format": FORMAT,
        "config": asdict(tuner.config),
        "max_prompt_tokens": tuner.max_prompt_tokens,
        "initial_prompt": initial_prompt,
        "models": described,
    }
    write_json(folder / FILE, state)


def read_parts(folder: Path, generator: LM | None, actor: LM | None) -> dict[str, Any]:
    """The arguments to build the `MetaTuner` again, by name; see `MetaTuner.from_pretrained`."""
    state = _read_json(folder)
    config = _config(state["config"], folder)
    generator_base = _base("generator", state["models"]["generator"], folder, generator)
    actor_base = _base("actor", state["models"]["actor"], folder, actor)
    loras = {name: (saved["lora_rank"], saved["lora_scale"]) for name, saved in state["models"].items()}
    rank, scale = loras["generator"]
    trained = to_train(generator_base, "full" if rank is None else "lora", rank or 1, seed=0, scale=scale or 1.0)
    rank, scale = loras["actor"]
    if rank is not None:
        actor_base = to_train(actor_base, "lora", rank, seed=0, scale=scale)
        if config.actor == "frozen":
            load_tensors(dict(lora_parameters(actor_base)), folder / "actor.safetensors")
    return {
        "generator": trained,
        "actor": actor_base,
        "config": config,
        "max_prompt_tokens": state["max_prompt_tokens"],
        "initial_prompt": state["initial_prompt"],
    }


def check_config(config: MetaTunerConfig, folder: Path) -> None:
    """Raise `UserError` if the folder's metatuner.json has another configuration."""
    if not (folder / FILE).is_file():
        return
    saved, own = asdict(_config(_read_json(folder)["config"], folder)), asdict(config)
    differing = [f"{key} {saved[key]} (here {own[key]})" for key in own if saved[key] != own[key]]
    if differing:
        raise UserError(
            f"{folder}: saved with another configuration: {', '.join(differing)}; build the tuner with the saved one, "
            "or use MetaTuner.from_pretrained"
        )


@torch.no_grad()
def export_adapter(tuner: TunedModel, query: str, folder: Path, initial: str, actor_fingerprint: str) -> str:
    """See `MetaTuner.export_adapter`.

    Scales are multiplied into B, so that lora_alpha is the rank. A linear that only one of the two LoRAs adapts gets
    zeros for the other one, because every reader of PEFT folders supports one rank for all linears.
    """
    parts: list[dict[str, tuple[Tensor, Tensor]]] = []
    if (factors := tuner.factors([initial], [query])) is not None:
        exported = tuner.lora.export_factors(factors[0])
        keys = {site.name: f"base_model.model.{site.name}" for site in tuner.lora.sites}
        parts.append(
            {
                name: (exported[f"{key}.lora_A.weight"], tuner.config.scale * exported[f"{key}.lora_B.weight"])
                for name, key in keys.items()
            }
        )
    if own := lora_linears(tuner.actor_with_lora):
        parts.append({name: _factors(module) for name, module in own.items()})
    if not parts:
        raise UserError("MetaTuner: nothing to export: no parameter branch, and the actor carries no LoRA of its own")
    ranks = [len(next(iter(part.values()))[0]) for part in parts]
    widths = {name: (a.shape[1], len(b)) for part in parts for name, (a, b) in part.items()}
    tensors = {}
    for name, (d_in, d_out) in sorted(widths.items()):
        pairs = [
            part[name] if name in part else (torch.zeros(rank, d_in), torch.zeros(d_out, rank))
            for part, rank in zip(parts, ranks, strict=True)
        ]
        dtype = torch.promote_types(tuner.actor.model.dtype, torch.float32)
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.cat([a.cpu().to(dtype) for a, _ in pairs])
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.cat([b.cpu().to(dtype) for _, b in pairs], 1)
    save_tensors(tensors, folder / "adapter_model.safetensors")
    spec = tuner.actor.spec
    LoraConfig(
        base_model_name_or_path=spec.path,
        revision=spec.revision,
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=sum(ranks),
        lora_alpha=sum(ranks),
        target_modules=sorted(widths),
    ).save_pretrained(str(folder))
    prompt = tuner.write_prompts([initial], [query])[0]
    base = {"path": spec.path, "revision": spec.revision, "fingerprint": actor_fingerprint}
    write_json(folder / FILE, {"format": FORMAT, "prompt": prompt, "query": query, "base": base})
    return prompt


def _factors(module: LoRALinear) -> tuple[Tensor, Tensor]:
    """A, and B multiplied by the scale."""
    a, b = (cast(nn.Linear, side[ADAPTER]).weight for side in (module.lora_A, module.lora_B))
    return a, module.scaling[ADAPTER] * b


def fingerprint(lm: LM) -> str:
    """SHA-256 of the model's weights with their names, types and shapes; its LoRA, if any, is left out."""
    return digest(sorted(without_lora(lm).model.named_parameters()))


def _clear(folder: Path, keep: Collection[Path]) -> None:
    """Remove what an earlier `save_pretrained` left, metatuner.json first; base models at `keep` stay."""
    included = []
    with contextlib.suppress(UserError):
        included = [folder / name for name, saved in _read_json(folder)["models"].items() if saved["included"]]
    (folder / FILE).unlink(missing_ok=True)
    for name in TENSORS:
        (folder / f"{name}.safetensors").unlink(missing_ok=True)
    for base in included:
        if base.resolve() not in keep:
            shutil.rmtree(base, ignore_errors=True)


def _write_base(lm: LM, folder: Path) -> None:
    """Write an ordinary model folder. It may replace the folder that the model's memory is mapped from."""
    with complete_folder(folder) as temporary:
        lm.model.save_pretrained(temporary)
        lm.tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)


def _described(name: str, lm: LM, included: bool) -> dict[str, Any]:
    spec = asdict(lm.spec)
    del spec["device"]
    loras = {(module.r[ADAPTER], module.scaling[ADAPTER]) for module in lora_linears(lm).values()}
    if len(loras) > 1:
        raise UserError(
            f"MetaTuner: the {name}'s LoRA has {len(loras)} ranks or scales, and a saved one has one; merge it into "
            f"the {name} before it is given, and save with include_base"
        )
    rank, scale = loras.pop() if loras else (None, None)
    return {"spec": spec, "included": included, "lora_rank": rank, "lora_scale": scale}


def _base(name: str, state: dict[str, Any], folder: Path, given: LM | None) -> LM:
    """The base model, given or loaded by its saved name; `UserError` if the tuner was trained on another one."""
    spec = state["spec"]
    if given is None:
        if state["included"]:
            spec = spec | {"path": str(folder / name), "revision": None}
        given = load_lm(ModelSpec(**spec))
    # A generator with all weights trained keeps nothing of its base, so it has no fingerprint.
    if state.get("fingerprint") not in (None, fingerprint(given)):
        raise UserError(
            f"{folder}: its {name} was another model than {given.spec.path}: the weights differ in values, names or "
            f"type ({spec['dtype']} then); give from_pretrained the right {name}, or save with include_base"
        )
    return given


def _config(values: dict[str, Any], folder: Path) -> MetaTunerConfig:
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    try:
        return MetaTunerConfig(**(values | lists))
    except TypeError as error:
        raise UserError(f"{folder / FILE}: not a configuration of this version: {error}; save it anew") from error


def _read_json(folder: Path) -> dict[str, Any]:
    state = read_json(folder / FILE, "name a folder that MetaTuner.save_pretrained wrote, or save the tuner again")
    if not isinstance(state, dict) or state.get("format") != FORMAT or "config" not in state:
        raise UserError(f"{folder / FILE}: not a tuner of format {FORMAT}; save it with this version")
    return state
