"""The look: colours, type, and how a figure becomes text for a page. Figures are made without pyplot, so that any thread
of any process may draw."""

import base64
import io
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import matplotlib
from matplotlib import figure as plain

INK, FAINT, GRID = "#22303C", "#66727E", "#E3E7EB"
RIGHT, WRONG = "#0072B2", "#D55E00"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")  # Okabe and Ito, no yellow
BASELINE, CEILING = "#9AA5B1", "#22303C"  # random initialisation; perfect selection
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "text.color": INK, "axes.labelcolor": FAINT, "axes.edgecolor": "#B8C1CA", "axes.linewidth": 0.8,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "xtick.major.size": 0, "ytick.major.size": 0, "grid.color": GRID, "grid.linewidth": 0.8,
    "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
    "figure.facecolor": "white", "svg.hashsalt": "cromss", "axes.unicode_minus": True,
}  # fmt: skip


class Figure(plain.Figure):
    """A figure that a notebook shows without pyplot: matplotlib's own shows itself once pyplot is imported."""

    def _repr_png_(self) -> bytes:
        return png(self)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in this module's look, and leave the global one alone."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for every arm, the same in every picture: grey for random, dark for the ceiling, else by order."""
    plain = [name for name in names if not name.casefold().startswith(("random", "oracle"))]
    chosen = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(plain)}
    return {n: chosen.get(n) or (BASELINE if n.casefold().startswith("random") else CEILING) for n in names}


def legend_columns(names: Sequence[str], inches: float, handle: float = 0.55) -> int:
    """How many columns of a legend fit below a figure of that width: a letter is 0.072 inches wide at its size."""
    longest = max((len(name) for name in names), default=1)
    return max(1, min(len(names), int(inches / (0.072 * longest + handle))))


def data_uri(figure: Figure) -> str:
    """The figure as a `data:` address: SVG for lines, PNG as soon as it holds pixels. Same figure, same text."""
    pixels = any(axes.images for axes in figure.axes)
    content = png(figure) if pixels else _saved(figure, format="svg", metadata={"Date": None})
    return f"data:image/{'png' if pixels else 'svg+xml'};base64,{base64.b64encode(content).decode()}"


def png(figure: plain.Figure) -> bytes:
    """The figure as a PNG, cut to what is drawn."""
    return _saved(figure, format="png", dpi=130)


def _saved(figure: plain.Figure, **how: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, bbox_inches="tight", pad_inches=0.06, **how)
    return buffer.getvalue()
