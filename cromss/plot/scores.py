"""What the judgement gave: the ranking, classes, confusions, and how well the weights tell wrong labels from right."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cromss.plot.look import INK, RIGHT, WRONG, Figure, legend_columns, styled


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
    figure = Figure(
        figsize=(_names_inches(names) + (3.6 if len(scores) < 3 else 2.8) * len(scores), 0.8 + 0.36 * len(names)),
        layout="constrained",
    )
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


def _names_inches(names: Sequence[str]) -> float:
    return 0.4 + 0.075 * max((len(name) for name in names), default=0)


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
    figure.legend(loc="outside lower center", ncols=legend_columns(list(arms), 5.2), handlelength=1, handleheight=1)
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
