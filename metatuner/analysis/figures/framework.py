"""The framework of MetaTuner (the paper's Figure 2), drawn from the settings that a preset resolves to."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.analysis.figures.drawing import INK, NOTE_HEIGHT, WIDTH, draw, note_lines, write_note
from metatuner.analysis.names import value_title
from metatuner.config import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARED, PROMPT, PARAMETER, FROZEN = "#cfe3f2", "#f9dcc4", "#cdebe0", "#e8e8e8"
"""Fill colours of what both branches share, of each branch, and of what is not trained; labels name them too."""


@dataclass(frozen=True)
class Design:
    """What the drawing shows."""

    settings: Mapping[str, Any]
    """MetaTuner's complete settings (`MetaTunerConfig` as a mapping)."""
    generator: str
    actor: str
    layers: int | None
    """K of the generator; None if it is not known without loading the generator."""


def figure_2(config: Config, design: Design) -> list[Path]:
    """Draw the framework as `figures/figure_2.{png,pdf}`; returns the paths written. Nothing in it is measured."""
    return draw(config, "figure_2", lambda: draw_framework(design, config.preset))


def draw_framework(design: Design, preset: str) -> "Figure":
    """Draw boxes from the query (left) to the answer (right), with the prompt branch above the parameter branch."""
    from matplotlib.figure import Figure

    settings = design.settings
    note = note_lines(
        f"Drawn from the configuration of preset {preset}; nothing here is measured. {_objective(settings)} p~: "
        "initial prompt; x: query; y: reference answer; D1: task pairs; D2: queries with prompts that served them "
        "well."
    )
    bottom, body = 0.14 + NOTE_HEIGHT * len(note), 3.0
    height = bottom + body
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, bottom / height, 1, body / height))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, body)
    axes.set_axis_off()

    shared, private, upper = _depths(design)
    branch = settings["parameter_branch"]
    _box(axes, 0.1, 1.2, 0.6, 0.6, "p~, x", "", "white")
    _box(axes, 6.2, 0.75, 1.3, 1.5, "actor M", f"{design.actor}\n{_actor(settings)}", FROZEN)
    _arrow(axes, (6.85, 0.75), (6.85, 0.45))
    axes.text(
        6.85, 0.4, "answer, with the\ntask loss against y (D1)", ha="center", va="top", fontsize=7, parse_math=True
    )
    start = (0.7, 1.5)
    if shared:
        _box(axes, 1.0, 0.95, 1.4, 1.1, "meta encoder $\\phi_s$", shared, SHARED)
        _arrow(axes, start, (1.0, 1.5))
        start = (2.4, 1.5)
    if settings["prompt_branch"]:
        _box(axes, 2.85, 1.8, 1.75, 0.7, "prompt decoder $\\phi_p$", upper, PROMPT)
        _arrow(axes, start, (2.85, 2.15))
        _arrow(axes, (4.6, 2.15), (6.2, 1.85))
        axes.text(5.4, 2.15, "prompt $p_i$, as text, with x", ha="center", va="bottom", fontsize=7, parse_math=True)
        if settings["objective"] != "gumbel":
            loss = f"CE on D2, times $\\alpha$ = {settings['alpha']:g}"
            axes.text(3.72, 2.56, loss, ha="center", va="bottom", fontsize=7, parse_math=True)
    else:
        _arrow(axes, (0.4, 1.8), (6.2, 1.9), bend=-0.25)
        axes.text(
            3.3, 2.75, "prompt p~ as it is (no prompt branch)", ha="center", va="bottom", fontsize=7, parse_math=True
        )
    if branch == "query":
        text = f"{private}{_pooling(settings)} $h_i$\n{_decoder(settings)}\nbottleneck {settings['bottleneck']}"
        _box(axes, 2.85, 0.3, 1.75, 1.05, "parameter decoder $\\phi_q$", text, PARAMETER)
        _arrow(axes, start, (2.85, 0.85))
    elif branch == "static":
        _box(axes, 2.85, 0.45, 1.75, 0.7, "one static LoRA", "the same for all queries", PARAMETER)
    if branch != "none":
        modules = settings["target_modules"]
        named = modules if isinstance(modules, str) else ", ".join(modules)
        which = "$A_i, B_i$" if branch == "query" else "A, B"
        label = [f"{which}: rank {settings['rank']}, scale {settings['scale']:g}", *textwrap.wrap(f"on {named}", 24)]
        _arrow(axes, (4.6, 0.85), (6.2, 1.15))
        axes.text(5.4, 0.86, "\n".join(label), ha="center", va="top", fontsize=7, linespacing=1.25, parse_math=True)
    write_note(figure, note)
    return figure


def _depths(design: Design) -> tuple[str, str, str]:
    """The generator layers that the meta encoder, the parameter branch alone and the prompt decoder hold, as text."""
    share, total, depth = design.settings["shared_layers"], design.layers, design.settings["encoder_layers"]
    if total is None:
        named = value_title("shared_layers", share)
        private = "" if share and depth is None else "private layers up to it\n"
        if not share:
            return "", private, f"all K layers\nof {design.generator}"
        return f"first k = {named} of K layers\nof {design.generator}", private, "the layers above, LM head"
    k = share if isinstance(share, int) else round(share * total)
    read = (k or max(1, total // 2)) if depth is None else depth if isinstance(depth, int) else round(depth * total)
    shared = f"layers 1 to {k}\n(k = {k} of K = {total})\nof {design.generator}" if k else ""
    private = f"private layers {k + 1} to {read}\n" if read > k else ""
    upper = f"layers {k + 1} to {total}, LM head" if k < total else "last norm, LM head"
    return shared, private, upper if k else f"{upper}\nof {design.generator}"


def _pooling(settings: Mapping[str, Any]) -> str:
    return {"last": "last token's state", "mean": "mean state"}[settings["pooling"]]


def _decoder(settings: Mapping[str, Any]) -> str:
    return {"per_site": "$W_d$, $W_u$ of each site", "layer_shared": "$W_d$, $W_u$ shared by layers"}[
        settings["decoder"]
    ]


def _actor(settings: Mapping[str, Any]) -> str:
    return {"frozen": "warmed up,\nthen frozen", "lora": "its LoRA\ntrained on"}[settings["actor"]]


def _objective(settings: Mapping[str, Any]) -> str:
    if not settings["prompt_branch"]:
        return "Objective: the task term alone."
    return {
        "joint": "Objective: both loss terms, summed in each step (MetaTuner-J); the first under prompts by a frozen "
        f"copy of the prompt decoder, renewed every {settings['sync_epochs']:g} passes over D1.",
        "alternating": "Objective: the two loss terms in turn (MetaTuner-I), steps on each before the other: "
        f"{settings['alternation_steps']}.",
        "gumbel": "Objective: the task loss alone, through prompt tokens relaxed by straight-through Gumbel-Softmax.",
    }[settings["objective"]]


def _box(axes: "Axes", x: float, y: float, width: float, height: float, title: str, text: str, fill: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=INK, linewidth=0.8))
    lines = text.count("\n") + 1 if text else 0
    middle, top = x + width / 2, y + height / 2 + 0.062 * lines
    axes.text(middle, top, title, ha="center", va="center", fontsize=8, fontweight="bold", parse_math=True)
    axes.text(middle, top - 0.11, text, ha="center", va="top", fontsize=6.5, linespacing=1.25, parse_math=True)


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    from matplotlib.patches import FancyArrowPatch

    way = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", connectionstyle=way, mutation_scale=8, color=INK, linewidth=0.9, shrinkA=0
        )
    )
