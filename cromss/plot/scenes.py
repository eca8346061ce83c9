"""A whole scene at a glance: what was seen, what was mapped, how sure the network is."""

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Patch as Swatch

from cromss.landcover import IGNORE, Scheme
from cromss.plot.look import Figure, styled

_SIDE, _LEGEND = 3.6, 0.23  # inches: the longer side of a panel, a line of the legend


@styled
def overview(
    seen: Sequence[tuple[str, np.ndarray]], classes: np.ndarray, uncertainty: np.ndarray, scheme: Scheme
) -> Figure:
    """`seen` = (title, image (H, W, 3) or grey (H, W), uint8); `classes` (H, W) uint8; `uncertainty` (H, W) in per cent,
    IGNORE where there is no data. Images of one size, north up or as they come."""
    height, width = classes.shape
    inches = _SIDE * np.array([height, width]) / max(height, width)
    inches = np.maximum(inches, 0.9)
    shares = np.bincount(classes.ravel(), minlength=256)
    present = [number for number in np.argsort(-shares[: len(scheme)]).tolist() if shares[number]]
    columns, count = max(1, int(inches[1] * (len(seen) + 2) // 1.9)), len(seen) + 2
    footer = _LEGEND * -(-len(present) // columns) + 0.32
    total = inches[0] + footer + 0.3
    figure = Figure(figsize=(inches[1] * count + 0.6, total))
    grid = figure.subplots(1, count, squeeze=False, gridspec_kw={
        "left": 0.004, "right": 1 - 0.6 / (inches[1] * count + 0.6), "top": 1 - 0.3 / total, "bottom": footer / total,
        "wspace": 0.02})[0]  # fmt: skip
    for axes, (title, image) in zip(grid, seen, strict=False):
        axes.imshow(image, cmap=None if image.ndim == 3 else "gray", vmin=0, vmax=255)
        axes.set_title(title)
    grid[-2].imshow(scheme.rgb(classes), interpolation="nearest")
    grid[-2].set_title(scheme.title)
    shown = np.ma.masked_equal(uncertainty, IGNORE)
    picture = grid[-1].imshow(shown, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    grid[-1].set_title("uncertainty, %")
    grid[-1].set_facecolor("#E6E6E6")
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    place = grid[-1].get_position()
    bar = figure.add_axes(
        [place.x1 + 0.08 / figure.get_figwidth(), place.y0, 0.1 / figure.get_figwidth(), place.height]
    )
    figure.colorbar(picture, cax=bar).outline.set_visible(False)
    data = max(1, int(shares[: len(scheme)].sum()))
    figure.legend(
        handles=[
            Swatch(facecolor=scheme.colours[number], label=f"{scheme.classes[number]} {shares[number] / data:.1%}")
            for number in present
        ],
        loc="upper left", bbox_to_anchor=(0.0, (footer - 0.08) / total), ncols=columns, handlelength=1, handleheight=1,
        borderaxespad=0.2, columnspacing=1.2,
    )  # fmt: skip
    return figure
