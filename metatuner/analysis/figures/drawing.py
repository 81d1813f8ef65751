"""What all figures share: type, colours, size, and the writing of files (equal data give equal bytes)."""

import io
import textwrap
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatuner.analysis.results.comparison import Entry
from metatuner.analysis.statistics import LEVEL
from metatuner.config import Config, Layout
from metatuner.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: colour-blind readers can distinguish it, and black interval bars are visible on it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FAMILY_COLOURS = {
    "vanilla": "#999999",
    "prompt": "#56B4E9",
    "parameter": "#E69F00",
    "hybrid": "#009E73",
    "other": "#CC79A7",
}
INK, FAINT = "#222222", "#8a8a8a"

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a reason or a name may hold dollar signs
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.0,
    "pdf.fonttype": 42,
}

WIDTH = 7.6
"""Inches: the text width of a page, or of a slide."""

NOTE_LENGTH = 158
"""Characters per line of a note, at that width."""
NOTE_HEIGHT = 0.13
"""Inches per line of a note."""


def printable(text: str, length: int | None = None) -> str:
    """A text that is not the project's own, on one line and cut to `length` characters.

    Control and format characters become blanks, because a PDF's fonts have no glyph for them.
    """
    words = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return words if length is None or len(words) <= length else words[: length - 1] + "…"


def draw(config: Config, name: str, make: Callable[[], "Figure"]) -> list[Path]:
    """Make a figure in the project's style, not the user's own, and save it as `figures/NAME.{png,pdf}`.

    The PNG has 200 dpi. The files hold no date and no library version, so equal data give equal bytes.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure, layout, paths = make(), Layout(config), []
        metadata: dict[str, dict[str, None]] = {
            "png": {"Software": None},
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        }
        for suffix, entries in metadata.items():
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=200, metadata=entries)
            paths.append(write_bytes(layout.figure(name, suffix), content.getvalue()))
        return paths


def note_lines(text: str, width: float = WIDTH) -> list[str]:
    """Split a note into lines that fit under a figure of `width` inches."""
    return textwrap.wrap(text, int(NOTE_LENGTH * width / WIDTH))


def write_note(figure: "Figure", lines: list[str]) -> None:
    """Put a note at the figure's foot; each line takes `NOTE_HEIGHT` inches."""
    width, height = figure.get_size_inches()
    figure.text(
        0.1 / width, 0.08 / height, "\n".join(lines), fontsize=6.5, color="#555555", linespacing=1.35, va="bottom"
    )


def whiskers(entries: Collection[Entry]) -> str:
    """What the intervals of means are over, in the words of a caption."""
    conditional = any(entry.mean and entry.mean.conditional for entry in entries)
    single = max((len(entry.seeds) for entry in entries), default=0) == 1
    over = "" if conditional else " and seeds"
    limits = " (1 seed: intervals are over queries only)" if single else ", for these seeds" if conditional else ""
    return f"whiskers: {100 * LEVEL:.0f} % interval over test queries{over}{limits}"


def size(n: int, seeds: int, *, floor: bool = False) -> str:
    """A panel's size: test rows and seeds; and whether all methods are at the floor."""
    told = f"n = {n}, {seeds} seed{'' if seeds == 1 else 's'}" if n else "no results"
    return f"{told}; floor" if floor else told


FLOOR = "Floor: all methods are at the floor (0 on every row), so no method is best there. "
"""What a note says if a panel's size says "floor"."""


def panel_title(title: str) -> str:
    """A benchmark's name above a narrow panel: what its keys change stands on a second line."""
    return title.replace(" (", "\n(", 1)


def title_room(titles: Iterable[str]) -> float:
    """Inches that panels need above them for second lines of their titles."""
    return 0.15 if any("\n" in panel_title(title) for title in titles) else 0.0
