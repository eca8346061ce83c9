"""The pictures: one look for the report, MLflow and notebooks.

Every function takes plain arrays and returns a matplotlib `Figure`, made without pyplot, so that any thread of any
process may draw. `data_uri` turns one into text for an HTML page.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch

from cromss.landcover import IGNORE, Scheme

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


def data_uri(figure: Figure) -> str:
    """The figure as a `data:` address: SVG for lines, PNG as soon as it holds pixels. Same figure, same text."""
    pixels = any(axes.images for axes in figure.axes)
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        if pixels:
            figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", pad_inches=0.06)
        else:
            figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.06)
    return f"data:image/{'png' if pixels else 'svg+xml'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# --- lines --------------------------------------------------------------------------------------------------------

Line = tuple[np.ndarray, np.ndarray]  # x (N,) ascending, y (N,)


@styled
def curves(charts: Mapping[str, Mapping[str, Sequence[Line]]], palette: Mapping[str, str], xlabel: str) -> Figure:
    """One small chart per title; in it, for every arm, the mean of its seeds and a band from the lowest to the
    highest seed."""
    across = min(2, len(charts))
    down = -(-len(charts) // across)
    figure = Figure(figsize=(4.6 * across, 2.7 * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    handles: dict[str, object] = {}
    for axes, (title, arms) in zip(grid.flat, charts.items(), strict=False):
        for arm, lines in arms.items():
            x, mean, low, high = band(lines)
            axes.fill_between(x, low, high, color=palette[arm], alpha=0.15, linewidth=0)
            (handles[arm],) = axes.plot(x, mean, color=palette[arm], label=arm)
        axes.set_title(title)
        axes.grid(axis="y")
        axes.margins(x=0.01)
    for axes in grid.flat[len(charts) :]:
        axes.axis("off")
    for column in range(across):
        last = max(row for row in range(down) if row * across + column < len(charts))
        grid[last, column].set_xlabel(xlabel)
    columns = len(handles) if len(handles) <= 5 else 4
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=1.6)
    return figure


def band(lines: Sequence[Line]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, mean, lowest and highest of several lines, on all their x; a line that is shorter ends, and is left out from
    there on."""
    x = np.unique(np.concatenate([line[0] for line in lines]))
    ys = np.stack([np.interp(x, *line, left=np.nan, right=np.nan) for line in lines])
    known = ~np.isnan(ys)
    keep = known.any(0)
    x, ys, known = x[keep], ys[:, keep], known[:, keep]
    mean = np.where(known, ys, 0).sum(0) / known.sum(0)
    return x, mean, np.where(known, ys, np.inf).min(0), np.where(known, ys, -np.inf).max(0)


@styled
def ramps(series: Mapping[str, Line], xlabel: str) -> Figure:
    """The schedules that a run followed (alpha, gamma, ...), each named at its end."""
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.subplots()
    for (name, (x, y)), colour in zip(series.items(), PALETTE, strict=False):
        axes.plot(x, y, color=colour)
        axes.annotate(name, (x[-1], y[-1]), (6, 0), textcoords="offset points", va="center", color=colour, size=9)
    axes.set(ylim=(-0.03, 1.05), xlabel=xlabel)
    axes.grid(axis="y")
    return figure


# --- scores -------------------------------------------------------------------------------------------------------


class Dot(NamedTuple):
    """One arm in one column: percent. `paper` is the published number, where there is one."""

    seeds: Sequence[float]
    mean: float
    std: float | None
    paper: float | None = None


@styled
def ranking(scores: Mapping[str, Mapping[str, Dot]], palette: Mapping[str, str]) -> Figure:
    """`scores[column][arm]`: a chart per column; mean ± std as a dot with a bar, each seed as a tick, the paper's
    number as a diamond. Arms from the top in the order of the first column that has them."""
    names = list(dict.fromkeys(name for arms in scores.values() for name in arms))
    figure = Figure(figsize=(1.6 + 3.6 * len(scores), 0.8 + 0.36 * len(names)), layout="constrained")
    for axes, (title, arms) in zip(
        figure.subplots(1, len(scores), sharey=True, squeeze=False)[0], scores.items(), strict=True
    ):
        for y, name in enumerate(names):
            if name not in arms:
                continue
            dot, colour = arms[name], palette[name]
            axes.plot(dot.seeds, [y] * len(dot.seeds), "|", color=colour, markersize=9, alpha=0.55, markeredgewidth=1.2)
            if dot.std is not None:
                axes.plot([dot.mean - dot.std, dot.mean + dot.std], [y, y], color=colour, linewidth=2.4, alpha=0.5)
            axes.plot(dot.mean, y, "o", color=colour, markersize=6.5, markeredgecolor="white", markeredgewidth=0.8)
            if dot.paper is not None:
                axes.plot(dot.paper, y, "D", markerfacecolor="none", markeredgecolor=INK, markersize=5)
        axes.set_title(title)
        axes.grid(axis="x")
        axes.set_xlabel("mIoU (%)")
        axes.set_yticks(range(len(names)), names, color=INK, size=9)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
    return figure


@styled
def class_iou(
    arms: Mapping[str, Sequence[float | None]], classes: Sequence[str], palette: Mapping[str, str], title: str
) -> Figure:
    """Horizontal bars of IoU (fractions) per class, one for every arm; a class that never occurs has none."""
    height = 0.8 / max(1, len(arms))
    figure = Figure(figsize=(5.2, 1.1 + len(classes) * (0.2 + 0.07 * len(arms))), layout="constrained")
    axes = figure.subplots()
    for i, (name, values) in enumerate(arms.items()):
        y = np.arange(len(classes)) + (i - (len(arms) - 1) / 2) * height
        shown = [100 * value if value is not None and np.isfinite(value) else 0.0 for value in values]
        axes.barh(y, shown, height * 0.86, color=palette[name], label=name)
    axes.set_yticks(range(len(classes)), classes, color=INK, size=9)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel("IoU (%)")
    axes.set_title(title)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(3, len(arms)), handlelength=1, handleheight=1)
    return figure


@styled
def confusion(matrix: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Counts (K,K), rows = reference, columns = prediction, as per cent of the row; an absent class stays empty."""
    total = matrix.sum(1, keepdims=True)
    share = 100 * matrix / np.maximum(total, 1)
    size = 1.7 + 0.42 * len(classes)
    figure = Figure(figsize=(size + 0.3, size), layout="constrained")
    axes = figure.subplots()
    axes.pcolormesh(
        np.where(total > 0, share, np.nan), cmap="Blues", vmin=0, vmax=100, edgecolor="white", linewidth=1.2
    )
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.5:
            colour = "white" if value > 55 else INK
            axes.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", size=8, color=colour)
    ticks = np.arange(len(classes)) + 0.5
    axes.set_xticks(ticks, classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="prediction", ylabel="reference")
    axes.set_title(title)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


@styled
def confidence_histogram(edges: np.ndarray, right: np.ndarray, wrong: np.ndarray, title: str) -> Figure:
    """Enhanced confidence F' of right and of wrong labels: edges (N+1,), counts (N,), each scaled to its own total."""
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.subplots()
    for counts, colour, name in ((right, RIGHT, "right labels"), (wrong, WRONG, "wrong labels")):
        share = 100 * np.asarray(counts) / max(1, np.sum(counts))
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(share, edges, color=colour, linewidth=1.6, label=name)
    axes.set(xlabel="enhanced label confidence F'", ylabel="% of pixels", xlim=(edges[0], edges[-1]))
    axes.set_title(title)
    axes.grid(axis="y")
    axes.legend(loc="upper center", handlelength=1.2)
    return figure


# --- panels -------------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """One column of panels: images (n,H,W), or (n,H,W,3) for `rgb`. kind = rgb | grey | classes | weights | wrong."""

    title: str
    images: np.ndarray
    kind: str
    scheme: Scheme | None = None


@styled
def panels(columns: Sequence[Column], names: Sequence[str] = ()) -> Figure:
    """A row per patch, with the legend of every label scheme shown and a bar for the weights below."""
    rows = len(columns[0].images)
    side = 1.22
    legends = [column.scheme for column in columns if column.scheme]
    legends = [scheme for i, scheme in enumerate(legends) if scheme not in legends[:i]]
    present = {scheme.name: _present(columns, scheme) for scheme in legends}
    lines = [-(-len(present[scheme.name]) // _per_line(len(columns))) for scheme in legends]
    bars = any(column.kind in ("weights", "wrong") for column in columns)
    footer = 0.25 * sum(lines) + 0.30 * bars + 0.12
    width, height = side * len(columns), side * rows + 0.3 + footer
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, len(columns), squeeze=False, gridspec_kw={
        "left": 0.002, "right": 0.998, "top": 1 - 0.3 / height, "bottom": footer / height, "wspace": 0.03,
        "hspace": 0.03})  # fmt: skip
    for (row, place), axes in np.ndenumerate(grid):
        _panel(axes, columns[place], row)
        if row == 0:
            axes.set_title(columns[place].title, size=8.5, loc="center", pad=5, weight="normal")
    for row, name in enumerate(names):
        grid[row, 0].text(0.03, 0.04, short(name), transform=grid[row, 0].transAxes, size=5.5, color="white", alpha=0.9,
                          bbox={"facecolor": "black", "alpha": 0.35, "pad": 1.2, "linewidth": 0})  # fmt: skip
    top = (footer - 0.08) / height
    for scheme, count in zip(legends, lines, strict=True):
        figure.legend(
            handles=[Swatch(facecolor=scheme.colours[k], label=scheme.classes[k]) for k in present[scheme.name]],
            loc="upper left", bbox_to_anchor=(0, top), ncols=_per_line(len(columns)), handlelength=1, handleheight=1,
            columnspacing=1.1, borderpad=0, borderaxespad=0, handletextpad=0.4, fontsize=8)  # fmt: skip
        top -= 0.25 * count / height
    if bars:
        _bars(figure, columns, top, height)
    return figure


def short(name: str, most: int = 25) -> str:
    """As many characters as a panel is wide; the end of an id tells more (acquisition, tile) than its middle."""
    return name if len(name) <= most else f"{name[: most - 16]}…{name[-15:]}"


def _per_line(columns: int) -> int:
    return max(2, int(columns * 1.22 // 1.2))


def _present(columns: Sequence[Column], scheme: Scheme) -> list[int]:
    found: set[int] = set()
    for column in columns:
        if column.scheme == scheme:
            found.update(np.unique(column.images).tolist())
    return sorted(number for number in found if number < len(scheme))


def _panel(axes: Axes, column: Column, row: int) -> None:
    image = column.images[row]
    if column.kind == "classes":
        axes.imshow(column.scheme.rgb(image), interpolation="nearest")
    elif column.kind == "rgb":
        axes.imshow(image)
    elif column.kind == "grey":
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    elif column.kind == "weights":
        axes.imshow(np.asarray(image, np.float32), cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(image, cmap=ListedColormap(["#EEF1F4", WRONG]), vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bars(figure: Figure, columns: Sequence[Column], top: float, height: float) -> None:
    kinds = {column.kind for column in columns}
    if "wrong" in kinds:
        figure.legend(handles=[Swatch(facecolor=WRONG, label="wrong label")], loc="upper left", handlelength=1,
                      bbox_to_anchor=(0, top), borderpad=0, borderaxespad=0, handleheight=1, fontsize=8)  # fmt: skip
    if "weights" not in kinds:
        return
    width = figure.get_figwidth()
    axes = figure.add_axes((1 - 2.0 / width, top - 0.13 / height, 1.4 / width, 0.11 / height))
    axes.pcolormesh(np.linspace(0, 1, 65)[None].repeat(2, 0), cmap="cividis", vmin=0, vmax=1, rasterized=True)
    axes.axis("off")
    axes.text(-0.03, 0.45, "weight 0", transform=axes.transAxes, ha="right", va="center", size=8)
    axes.text(1.03, 0.45, "1", transform=axes.transAxes, ha="left", va="center", size=8)


def wrong_labels(label: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Where a label is usable and differs from the clean one, as 0/1 uint8."""
    return ((label != clean) & (label != IGNORE) & (clean != IGNORE)).astype(np.uint8)
