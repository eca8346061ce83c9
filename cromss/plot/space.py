"""What the parameters of a search space do to the score: parallel coordinates, importance, response curves."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from cromss.plot.look import FAINT, INK, PALETTE, Figure, legend_columns, styled

SCORES = "cividis"  # the same to colour-blind eyes, and in grey
ON_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.82, "pad": 1.0}


class Axis(NamedTuple):
    """One parameter: its values by configuration, numbers or names; `log` for numbers that span two decades."""

    title: str
    values: Sequence[float | str]
    log: bool = False


@styled
def parallel(axes: Sequence[Axis], scores: Sequence[float], title: str) -> Figure:
    """A line per configuration through the axes of its parameters, coloured by its score (per cent), which is the last
    axis. Names are spread over their axis in the order of their mean score; lines that share one fan out a little there."""
    axes = [*axes, Axis(title, list(scores))]
    places = [_heights(axis, scores) for axis in axes]
    named = [isinstance(axis.values[0], str) for axis in axes]
    tallest = max((len(set(axis.values)) for axis, is_name in zip(axes, named, strict=True) if is_name), default=0)
    figure = Figure(figsize=(max(6.4, 1.9 * len(axes)), max(3.4, 0.9 + 0.3 * tallest)), layout="constrained")
    plane = figure.subplots()
    norm = Normalize(min(scores), max(scores) if max(scores) > min(scores) else min(scores) + 1)
    colour = matplotlib.colormaps[SCORES]
    for row in np.argsort(scores):  # the best on top
        heights = [place.heights[row] for place in places]
        plane.add_patch(PathPatch(_smooth(heights), facecolor="none", edgecolor=colour(norm(scores[row])), lw=1.7,
                                  alpha=0.85, capstyle="round"))  # fmt: skip
    for x, (axis, place) in enumerate(zip(axes, places, strict=True)):
        plane.plot([x, x], [0, 1], color=INK, linewidth=0.9)
        last = x == len(axes) - 1
        for y, text in place.ticks:
            plane.annotate(text, (x, y), (7 if last else -7, 0), textcoords="offset points", va="center", size=8.5,
                           color=INK, ha="left" if last else "right", bbox=ON_PAPER)  # fmt: skip
        plane.text(x, 1.07, axis.title, ha="center", va="bottom", size=9, weight="bold")
    plane.set(xlim=(-0.75, len(axes) - 0.55), ylim=(-0.06, 1.06))
    plane.axis("off")
    bar = figure.colorbar(ScalarMappable(norm, SCORES), ax=plane, location="right", shrink=0.8, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.set_title("%", size=8.5, weight="normal", color=FAINT, loc="center")
    return figure


class _Place(NamedTuple):
    heights: list[float]  # of every configuration, in [0, 1]
    ticks: list[tuple[float, str]]


def _heights(axis: Axis, scores: Sequence[float]) -> _Place:
    if isinstance(axis.values[0], str):
        return _named(axis.values, scores)
    numbers = np.asarray(axis.values, float)
    scaled = np.log10(numbers) if axis.log else numbers
    low, high = scaled.min(), scaled.max()
    heights = (scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5)
    distinct = np.unique(numbers)
    if len(distinct) <= 7:
        marked = distinct
    else:
        marked = np.geomspace(numbers.min(), numbers.max(), 5) if axis.log else np.linspace(*_ends(numbers), 5)
    scale = np.log10(marked) if axis.log else marked
    ticks = [
        (float((s - low) / (high - low)) if high > low else 0.5, f"{m:.3g}") for s, m in zip(scale, marked, strict=True)
    ]
    return _Place(heights.tolist(), _apart(ticks))


def _ends(numbers: np.ndarray) -> tuple[float, float]:
    return float(numbers.min()), float(numbers.max())


def _apart(ticks: list[tuple[float, str]], least: float = 0.07) -> list[tuple[float, str]]:
    """Ticks from the ends inwards, without those that would be written over another."""
    kept: list[tuple[float, str]] = []
    for tick in [ticks[0], ticks[-1], *ticks[1:-1]]:
        if all(abs(tick[0] - other[0]) >= least for other in kept):
            kept.append(tick)
    return kept


def _named(values: Sequence[str], scores: Sequence[float]) -> _Place:
    means = {name: np.mean([s for v, s in zip(values, scores, strict=True) if v == name]) for name in set(values)}
    order = sorted(means, key=lambda name: (means[name], name))
    step = 1 / max(len(order) - 1, 1)
    at = {name: i * step if len(order) > 1 else 0.5 for i, name in enumerate(order)}
    heights = [0.0] * len(values)
    for name in order:
        own = sorted((i for i, value in enumerate(values) if value == name), key=lambda i: scores[i])
        fan = min(0.3 * step, 0.09) if len(own) > 1 else 0.0
        for rank, i in enumerate(own):
            heights[i] = float(np.clip(at[name] + fan * (rank / max(len(own) - 1, 1) - 0.5), -0.04, 1.04))
    return _Place(heights, [(at[name], name) for name in order])


def _smooth(heights: Sequence[float]) -> Path:
    """A curve that leaves every axis at a right angle, so that the eye can follow it across."""
    points, codes = [(0.0, heights[0])], [Path.MOVETO]
    for x, (y0, y1) in enumerate(itertools.pairwise(heights)):
        points += [(x + 0.4, y0), (x + 0.6, y1), (x + 1.0, y1)]
        codes += [Path.CURVE4] * 3
    return Path(points, codes)


@styled
def importance(shares: Mapping[str, Sequence[float]]) -> Figure:
    """Bars: the share of the score's variance that each parameter explains, mean over the forests with their range."""
    order = sorted(shares, key=lambda name: -np.mean(shares[name]))
    figure = Figure(figsize=(5.6, 0.9 + 0.34 * len(order)), layout="constrained")
    axes = figure.subplots()
    for y, name in enumerate(order):
        values = 100 * np.asarray(shares[name], float)
        axes.barh(y, values.mean(), 0.62, color=PALETTE[0], alpha=0.8)
        axes.plot([values.min(), values.max()], [y, y], color=INK, linewidth=1.6)
        axes.text(max(values.max(), values.mean()) + 1.5, y, f"{values.mean():.0f}", va="center", size=8.5, color=INK)
    axes.set_yticks(range(len(order)), order, color=INK, size=9)
    axes.set(xlim=(0, 108), ylim=(len(order) - 0.4, -0.6), xlabel="% of the variance between configurations")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure


class Curve(NamedTuple):
    """One arm over a parameter: x ascending, mean and its interval (NaN where there is none)."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@styled
def responses(
    charts: Mapping[str, Mapping[str, Curve]], palette: Mapping[str, str], xlabel: str, ylabel: Mapping[str, str],
    log: bool = False,
) -> Figure:  # fmt: skip
    """One chart per quantity; in it, for every arm, the mean at each value of the parameter with its interval."""
    across = min(2, len(charts))
    down = -(-len(charts) // across)
    names = list(dict.fromkeys(name for arms in charts.values() for name in arms))
    columns = legend_columns(names, 4.7 * across)
    figure = Figure(figsize=(4.7 * across, 3.0 * down + 0.25 * -(-len(names) // columns)), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    handles: dict[str, object] = {}
    for axes, (title, arms) in zip(grid.flat, charts.items(), strict=False):
        _respond(axes, arms, palette, names, handles, log)
        axes.set_title(title)
        axes.set(xlabel=xlabel, ylabel=ylabel[title])
        axes.grid(axis="y")
    for axes in grid.flat[len(charts) :]:
        axes.axis("off")
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=columns, handlelength=1.8)
    return figure


def _respond(
    axes: Axes, arms: Mapping[str, Curve], palette: Mapping[str, str], names: Sequence[str], handles: dict, log: bool
) -> None:
    """Arms stand a little beside each other, so that their intervals can be told apart."""
    values = np.unique(np.concatenate([np.asarray(curve.x, float) for curve in arms.values()]))
    scaled = np.log10(values) if log else values
    gap = np.diff(scaled).min() if len(scaled) > 1 else 1.0
    for name, curve in arms.items():
        shift = 0.05 * gap * (names.index(name) - (len(names) - 1) / 2)
        x = np.asarray(curve.x, float)
        x = x * 10**shift if log else x + shift
        mean, low, high = (np.asarray(part, float) for part in (curve.mean, curve.low, curve.high))
        known = np.isfinite(low) & np.isfinite(high)
        axes.vlines(x[known], low[known], high[known], color=palette[name], linewidth=1.5, alpha=0.6)
        (handles[name],) = axes.plot(x, mean, "o-", color=palette[name], markersize=4.5, markeredgecolor="white",
                                     markeredgewidth=0.6)  # fmt: skip
    if log:
        axes.set_xscale("log")
    if len(values) <= 9:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
