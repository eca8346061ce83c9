"""Class shares of a store, season by season."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch

from cromss.landcover import Scheme
from cromss.plot import INK, styled
from cromss.portrait.look import UNLABELLED, counted, ordered


@styled
def classes(
    seasons: Mapping[str, Sequence[Mapping[str, int]]],
    whole: Mapping[str, Mapping[str, int]],
    scheme: Scheme,
    size: tuple[int, int],
) -> Figure:
    """Shares of the pixels, a bar for all acquisitions of a split and one for the k-th in time order.

    seasons   split -> for the k-th acquisition, class name or "unlabelled" -> pixels
    whole     split -> the same of all of them
    size      (H, W) of a patch
    """
    colours = {**dict(zip(scheme.classes, scheme.colours, strict=True)), "unlabelled": UNLABELLED}
    bars = {split: [("all", whole[split])] for split in ordered(whole)}
    for split, named in bars.items():
        if len(seasons[split]) > 1:
            named += [(f"season {k}", one) for k, one in enumerate(seasons[split], 1)]
    rows = [len(named) for named in bars.values()]
    present = [name for name in colours if any(counts.get(name) for named in bars.values() for _, counts in named)]
    lines = -(-len(present) // 5)
    figure = Figure(figsize=(7.4, 0.34 * sum(rows) + 0.45 * len(rows) + 0.45 + 0.24 * lines), layout="constrained")
    grid = figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=[n + 0.4 for n in rows])[:, 0]
    for axes, (split, named) in zip(grid, bars.items(), strict=True):
        for y, (_, counts) in enumerate(named):
            _stack(axes, y, counts, colours)
        axes.set_title(split)
        patches = (sum(counts.values()) // (size[0] * size[1]) for _, counts in named)
        labels = [f"{name} · {counted(n, 'patch')}" for (name, _), n in zip(named, patches, strict=True)]
        axes.set_yticks(range(len(named)), labels, color=INK)
        axes.set_ylim(len(named) - 0.45, -0.55)
        axes.set_xlim(0, 100)
        axes.spines[["left", "bottom"]].set_visible(False)
    grid[-1].set_xlabel("% of pixels")
    handles = [Swatch(facecolor=colours[name], label=name) for name in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(present)), handlelength=1, handleheight=1,
                  columnspacing=1.4)  # fmt: skip
    return figure


def _stack(axes: Axes, y: int, counts: Mapping[str, int], colours: Mapping[str, str]) -> None:
    total, left = max(1, sum(counts.values())), 0.0
    for name, colour in colours.items():
        share = 100 * counts.get(name, 0) / total
        if not share:
            continue
        axes.barh(y, share, 0.78 if y else 0.86, left=left, color=colour, edgecolor="white", linewidth=0.7, label=name)
        if share >= 5:
            dark = np.dot([int(colour[i : i + 2], 16) for i in (1, 3, 5)], (0.299, 0.587, 0.114)) < 150
            axes.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center", size=8,
                      color="white" if dark else INK)  # fmt: skip
        left += share
