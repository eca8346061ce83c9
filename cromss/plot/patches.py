"""Patches side by side: images, labels, weights, predictions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.patches import Patch as Swatch

from cromss.landcover import IGNORE, Scheme
from cromss.plot.look import WRONG, Figure, styled


class Column(NamedTuple):
    """One column of panels: images (n,H,W), or (n,H,W,3) for `rgb`. kind = rgb | grey | classes | weights | wrong."""

    title: str
    images: np.ndarray
    kind: str
    scheme: Scheme | None = None


@styled
def panels(columns: Sequence[Column], names: Sequence[str] = (), side: float = 1.22) -> Figure:
    """A row per patch, with the legend of every label scheme shown and a bar for the weights below. `side` of a panel in
    inches."""
    rows = len(columns[0].images)
    legends = [column.scheme for column in columns if column.scheme]
    legends = [scheme for i, scheme in enumerate(legends) if scheme not in legends[:i]]
    present = {scheme.name: _present(columns, scheme) for scheme in legends}
    across = {name: _fitting(list(shown), side * len(columns)) for name, shown in present.items()}
    lines = [-(-len(present[scheme.name]) // across[scheme.name]) for scheme in legends]
    bars = any(column.kind in ("weights", "wrong") for column in columns)
    tall = [0.17 * count + 0.08 for count in lines]  # inches
    footer = sum(tall) + 0.30 * bars + 0.12
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
        _named(grid[row, 0], name)
    top = (footer - 0.08) / height
    for scheme, inches in zip(legends, tall, strict=True):
        figure.legend(
            handles=[Swatch(facecolor=colour, label=name) for name, colour in present[scheme.name].items()],
            loc="upper left", bbox_to_anchor=(0, top), ncols=across[scheme.name], handlelength=1, handleheight=1,
            columnspacing=1.1, borderpad=0, borderaxespad=0, handletextpad=0.4, fontsize=8)  # fmt: skip
        top -= inches / height
    if bars:
        _bars(figure, columns, top, height)
    return figure


class Frame(NamedTuple):
    """One moment of a film: images (n,H,W) by the name of what they show."""

    title: str
    images: dict[str, np.ndarray]


@styled
def film(still: Sequence[Column], frames: Sequence[Frame], names: Sequence[str] = (), kind: str = "weights") -> Figure:
    """A block of rows per patch: what stays the same on the left, then a column per epoch; in a block, a row for everything
    that `frames` show (weights of Sentinel-2, of Sentinel-1, ...)."""
    shown = list(frames[0].images)
    patches, rows = len(still[0].images), len(shown)
    left, side = 0.62, 1.12
    columns = len(still) + len(frames)
    height = side * patches * rows + 0.32 + 0.34
    width = left + side * columns
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(patches * rows, columns, squeeze=False, gridspec_kw={
        "left": left / width, "right": 0.998, "top": 1 - 0.32 / height, "bottom": 0.34 / height, "wspace": 0.03,
        "hspace": 0.03})  # fmt: skip
    for (line, place), axes in np.ndenumerate(grid):
        patch, what = divmod(line, rows)
        if place < len(still):
            if what < 1:
                _panel(axes, still[place], patch)
            else:
                axes.axis("off")
            title = still[place].title
        else:
            frame = frames[place - len(still)]
            _panel(axes, Column("", frame.images[shown[what]], kind), patch)
            title = frame.title
        if line == 0:
            axes.set_title(title, size=8.5, loc="center", pad=5, weight="normal")
    for line in range(patches * rows):
        box = grid[line, 0].get_position()
        figure.text((left - 0.1) / width, (box.y0 + box.y1) / 2, shown[line % rows], ha="right", va="center", size=8.5)
    for patch, name in enumerate(names):
        _named(grid[patch * rows, 0], name)
    _bars(figure, [*still, Column("", np.zeros((1, 1, 1)), kind)], 0.26 / height, height)
    return figure


def _named(axes: Axes, name: str) -> None:
    axes.text(0.03, 0.04, short(name), transform=axes.transAxes, size=5.5, color="white", alpha=0.9,
              bbox={"facecolor": "black", "alpha": 0.35, "pad": 1.2, "linewidth": 0})  # fmt: skip


def short(name: str, most: int = 25) -> str:
    """As many characters as a panel is wide; the end of an id tells more (acquisition, tile) than its middle."""
    return name if len(name) <= most else f"{name[: most - 16]}…{name[-15:]}"


def _fitting(names: Sequence[str], inches: float) -> int:
    """Columns of a legend on the fewest lines in a figure of that width. matplotlib fills column after column; a letter is
    0.065 inches wide, a swatch with the gaps around it 0.27."""
    for lines in range(1, len(names)):
        columns = -(-len(names) // lines)
        longest = [max(map(len, part)) for part in np.array_split(np.array(names, object), columns)]
        if sum(0.065 * length + 0.27 for length in longest) <= inches:
            return columns
    return 1


def _present(columns: Sequence[Column], scheme: Scheme) -> dict[str, str]:
    """class -> colour of those that are shown, in the scheme's order, the unlabelled last."""
    found: set[int] = set()
    for column in columns:
        if column.scheme == scheme:
            found.update(np.unique(column.images).tolist())
    shown = {scheme.classes[number]: scheme.colours[number] for number in sorted(found) if number < len(scheme)}
    if IGNORE in found:
        shown["unlabelled"] = to_hex(scheme.rgb(np.array(IGNORE)) / 255)
    return shown


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
