"""The framework of MetaTuner (the paper's Figure 2), drawn from the settings that a preset resolves to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.analysis.drawing import INK, NOTE_HEIGHT, WIDTH, draw, note_lines, write_note
from metatuner.analysis.labels import value_title
from metatuner.harness.config import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARED, PROMPT, PARAMETER, FROZEN = "#cfe3f2", "#f9dcc4", "#cdebe0", "#e8e8e8"
"""Fills of what both branches share, of each branch, and of what is not trained; told apart by place and name too."""


@dataclass(frozen=True)
class Design:
    """What the drawing shows."""

    settings: Mapping[str, Any]
    """MetaTuner's, complete (`MetaTunerConfig` as a mapping)."""
    generator: str
    actor: str
    layers: int | None
    """K of the generator; None: not known without loading it."""


def figure_2(config: Config, design: Design) -> list[Path]:
    """The framework, as `figures/figure_2.{png,pdf}`; the paths written. Nothing in it is measured."""
    return draw(config, "figure_2", lambda: draw_framework(design, config.preset))


def draw_framework(design: Design, preset: str) -> "Figure":
    """Boxes from the query on the left to the answer on the right, the prompt branch above the parameter branch."""
    from matplotlib.figure import Figure

    settings = design.settings
    note = note_lines(
        f"Drawn from the configuration of preset {preset}; nothing here is measured. Solid: the way of a query; dashed: "
        f"gradients. {_objective(settings)} p~: initial prompt; x: query; y: reference answer; D1: task pairs; D2: "
        "queries with the prompt that served them best."
    )
    bottom, body = 0.14 + NOTE_HEIGHT * len(note), 2.75
    height = bottom + body
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0, bottom / height, 1, body / height))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, body)
    axes.set_axis_off()

    shared, private, upper = _depths(design)
    prompts, factors = settings["prompt_branch"], settings["parameter_branch"]
    _box(axes, 0.1, 1.05, 0.75, 0.7, "p~, x", "", "white")
    _box(axes, 1.2, 0.85, 1.35, 1.1, "meta encoder $\\phi_s$", f"{shared}\nof {design.generator}", SHARED)
    _arrow(axes, (0.85, 1.4), (1.2, 1.4))
    _box(axes, 6.05, 0.6, 1.45, 1.6, "actor M", f"{design.actor}\n{_actor(settings)}", FROZEN)
    if prompts:
        _box(axes, 3.0, 1.75, 1.5, 0.85, "prompt decoder $\\phi_p$", upper, PROMPT)
        _arrow(axes, (2.55, 1.6), (3.0, 2.1))
        _arrow(axes, (4.5, 2.1), (6.05, 1.85), "prompt $p_i$, as text")
        _arrow(
            axes,
            (3.75, 2.75),
            (3.75, 2.6),
            "$\\alpha\\cdot$CE on D2, $\\alpha$ = " + f"{settings['alpha']:g}",
            dashed=True,
        )
    else:
        _arrow(axes, (0.85, 1.55), (6.05, 2.05), "prompt p~ (no prompt branch)")
    if factors == "query":
        text = f"{private}{_pooling(settings)}, {_decoder(settings)}\nbottleneck {settings['bottleneck']}"
        _box(axes, 3.0, 0.2, 1.5, 0.95, "parameter decoder $\\phi_q$", text, PARAMETER)
        _arrow(axes, (2.55, 1.2), (3.0, 0.8), "$h_i$")
    elif factors == "static":
        _box(axes, 3.0, 0.2, 1.5, 0.95, "one static LoRA", "the same for all queries", PARAMETER)
    if factors != "none":
        modules = settings["target_modules"]
        named = modules if isinstance(modules, str) else ", ".join(modules)
        which = "$A_i, B_i$" if factors == "query" else "$A, B$"
        label = f"{which}: rank {settings['rank']}, scale {settings['scale']:g}\non {named}"
        _arrow(axes, (4.5, 0.65), (6.05, 0.95), label, below=True)
    _arrow(axes, (6.8, 0.6), (6.8, 0.18), "answer, task loss against y (D1)", left=True)
    write_note(figure, note)
    return figure


def _depths(design: Design) -> tuple[str, str, str]:
    """What the meta encoder, the parameter branch alone and the prompt decoder hold of the generator's layers."""
    share, total = design.settings["shared_layers"], design.layers
    named = value_title("shared_layers", share)
    if total is None:
        shared = f"first k = {named} of K layers" if share else "nothing shared (k = 0)"
        return shared, "" if share else "private layers, ", "the layers above" if share else "all K layers"
    k = share if isinstance(share, int) else round(share * total)
    depth = design.settings["encoder_layers"]
    read = k or max(1, total // 2) if depth is None else depth if isinstance(depth, int) else round(depth * total)
    shared = f"layers 1 to {k} (k = {k} of K = {total})" if k else f"nothing shared (k = 0 of K = {total})"
    private = f"private layers {k + 1} to {read}\n" if read > k else ""
    upper = f"layers {k + 1} to {total}, LM head" if k < total else "norm and LM head"
    return shared.replace(" (", "\n("), private, upper


def _pooling(settings: Mapping[str, Any]) -> str:
    return {"last": "last token's state", "mean": "mean state"}[settings["pooling"]]


def _decoder(settings: Mapping[str, Any]) -> str:
    return {"per_site": "$W_d$, $W_u$ of each site", "layer_shared": "$W_d$, $W_u$ shared by layers"}[
        settings["decoder"]
    ]


def _actor(settings: Mapping[str, Any]) -> str:
    return {"frozen": "warmed up,\nthen frozen", "lora": "its LoRA\ntrained on"}[settings["actor"]]


def _objective(settings: Mapping[str, Any]) -> str:
    return {
        "joint": "Objective: both loss terms, summed in each step (MetaTuner-J); the first with prompts by a frozen copy of "
        f"the prompt decoder, renewed each {settings['sync_epochs']:g} passes over D1.",
        "alternating": f"Objective: {settings['alternation_steps']} steps on the task term, as many on the prompt term "
        "(MetaTuner-I).",
        "gumbel": "Objective: the task loss alone, through prompt tokens relaxed by straight-through Gumbel-Softmax.",
    }[settings["objective"]]


def _box(axes: "Axes", x: float, y: float, width: float, height: float, title: str, text: str, fill: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=INK, linewidth=0.8))
    middle = x + width / 2
    lines = text.count("\n") + 1 if text else 0
    axes.text(middle, y + height / 2 + 0.065 * lines, title, ha="center", va="center", fontsize=8, fontweight="bold")
    if text:
        axes.text(middle, y + height / 2 - 0.03, text, ha="center", va="top", fontsize=6.5, linespacing=1.25)


def _arrow(
    axes: "Axes",
    start: tuple[float, float],
    end: tuple[float, float],
    label: str = "",
    *,
    dashed: bool = False,
    below: bool = False,
    left: bool = False,
) -> None:
    from matplotlib.patches import FancyArrowPatch

    style = {"linestyle": "--"} if dashed else {}
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=INK, linewidth=0.9, **style))
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if left:
        axes.text(x - 0.08, y, label, ha="right", va="center", fontsize=7)
    elif label:
        axes.text(x, y + (-0.1 if below else 0.1), label, ha="center", va="top" if below else "bottom", fontsize=7)
