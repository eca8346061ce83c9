"""What the eye needs: the worst tiles side by side, and what is suggested in place of what is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch as Swatch

from cromss.landcover import IGNORE, Scheme
from cromss.plot import FAINT, INK, WRONG, confusion, short, styled
from cromss.plot.look import Figure

SUSPICION = LinearSegmentedColormap.from_list("suspicion", ["#F4F6F8", "#F8DDBF", "#F0A868", WRONG])
_UNKNOWN, _FLAGGED = np.array([230, 230, 230], np.uint8), np.array([52, 20, 8], np.uint8)
_OUTLINE = "#FFD400"
_LINE = 0.185  # inches, of a legend


@dataclass(frozen=True)
class Tile:
    """A tile of the contact sheet: `views` title -> (H, W, 3) uint8; label maps (H, W); suspicion (H, W) in [0, 1], NaN where
    no label is judged; flagged (H, W) bool; `other` = clean or reference labels, in the scheme of the sheet's `beside`."""

    title: str
    line: str
    views: dict[str, np.ndarray]
    given: np.ndarray
    suggested: np.ndarray
    suspicion: np.ndarray
    flagged: np.ndarray
    other: np.ndarray | None = None


@styled
def contact_sheet(tiles: Sequence[Tile], scheme: Scheme, beside: tuple[str, Scheme] | None = None) -> Figure:
    """A row for every tile; flagged pixels are outlined in the first image and dark in the suspicion. Lengths in inches."""
    side, seam, line, head = 1.35, 0.04, 0.34, 0.26
    titles = [*tiles[0].views, "given label", "suggested label", *([beside[0]] if beside else []), "suspicion"]
    schemes = [scheme] + ([beside[1]] if beside and beside[1].classes != scheme.classes else [])
    width = len(titles) * (side + seam) - seam
    legends = [(one, _present(tiles, one, one is not scheme, beside)) for one in schemes]
    per_line = max(1, int(width // 1.45))
    lines = sum(-(-len(present) // per_line) + (len(legends) > 1) for _, present in legends)
    foot = _LINE * (lines + 1) + 0.3
    height = head + len(tiles) * (line + side) + foot
    figure = Figure(figsize=(width, height))
    for number, title in enumerate(titles):
        figure.text((number * (side + seam) + side / 2) / width, 1 - 0.5 * head / height, title, ha="center", va="center",
                    size=9, color=INK)  # fmt: skip
    for row, tile in enumerate(tiles):
        top = height - head - row * (line + side)
        figure.text(0, (top - 0.12) / height, short(tile.title, 60), size=8, va="center", color=INK)
        figure.text(0, (top - 0.26) / height, tile.line, size=7.5, va="center", color=FAINT)
        maps = [*tile.views.values(), scheme.rgb(tile.given), scheme.rgb(tile.suggested)]
        if beside:
            maps.append(beside[1].rgb(tile.other))
        maps.append(_suspicion(tile))
        for place, image in enumerate(maps):
            box = (place * (side + seam) / width, (top - line - side) / height, side / width, side / height)
            axes = figure.add_axes(box)
            axes.imshow(image, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if place == 0 and tile.flagged.any():
                _outline(axes, tile.flagged)
    _foot(figure, legends, foot, height, width, per_line)
    return figure


def _foot(
    figure: Figure, legends: list[tuple[Scheme, list[int]]], foot: float, height: float, width: float, per_line: int
) -> None:
    plain = {
        "handlelength": 1,
        "handleheight": 1,
        "borderpad": 0,
        "borderaxespad": 0,
        "handletextpad": 0.5,
        "fontsize": 8,
    }
    below = foot - 0.1
    for scheme, present in legends:
        if len(legends) > 1:
            figure.text(0, below / height, scheme.title, size=8, color=FAINT, va="top")
            below -= _LINE
        handles = [Swatch(facecolor=scheme.colours[k], label=scheme.classes[k]) for k in present if k != IGNORE]
        if IGNORE in present:
            handles.append(Swatch(facecolor=_UNKNOWN / 255, label="none, or unsure"))
        place = {"loc": "upper left", "bbox_to_anchor": (0, below / height)}
        figure.legend(handles=handles, ncols=per_line, columnspacing=1.2, **place, **plain)
        below -= _LINE * -(-len(handles) // per_line)
    below -= 0.06
    flagged = Swatch(facecolor=_FLAGGED / 255, label="flagged (outlined in the first image)")
    figure.legend(handles=[flagged], loc="upper left", bbox_to_anchor=(0, below / height), **plain)
    axes = figure.add_axes((1 - 1.2 / width, (below - 0.13) / height, 1.0 / width, 0.11 / height))
    axes.imshow(np.linspace(0, 1, 65)[None], cmap=SUSPICION, vmin=0, vmax=1, aspect="auto")
    axes.axis("off")
    axes.text(-0.04, 0.5, "suspicion 1 − F′   0", transform=axes.transAxes, ha="right", va="center", size=8)
    axes.text(1.04, 0.5, "1", transform=axes.transAxes, ha="left", va="center", size=8)


def _present(tiles: Sequence[Tile], scheme: Scheme, second: bool, beside: tuple[str, Scheme] | None) -> list[int]:
    found: set[int] = set()
    for tile in tiles:
        own = [] if second else [tile.given, tile.suggested]
        if beside and (second or beside[1].classes == scheme.classes):
            own.append(tile.other)
        for one in own:
            found.update(np.unique(one).tolist())
    return sorted(found)


def _suspicion(tile: Tile) -> np.ndarray:
    """(H, W, 3) uint8: flagged pixels dark, pixels without a judged label grey."""
    shown = (SUSPICION(np.nan_to_num(tile.suspicion))[..., :3] * 255).astype(np.uint8)
    shown[np.isnan(tile.suspicion)] = _UNKNOWN
    shown[tile.flagged] = _FLAGGED
    return shown


def _outline(axes: Axes, flagged: np.ndarray) -> None:
    height, width = flagged.shape
    closed = np.pad(flagged.astype(np.float32), 1)  # outlines close at the tile's edge
    axes.contour(closed, levels=[0.5], colors=[_OUTLINE], linewidths=0.7, extent=(-1, width, -1, height))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def suggestions(pairs: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Given x suggested, (K, K) counts where something is suggested, as per cent of the row."""
    figure = confusion(pairs, classes, title)
    figure.axes[0].set(xlabel="suggested", ylabel="given")
    return figure
