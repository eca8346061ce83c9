"""The laws as small multiples: one panel an axis, both scales logarithmic, so that a power is a straight line."""

import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cromss.benchmarks.scaling_law import duration
from cromss.benchmarks.scaling_report import AXES, COSTS, Growth, Report, efficiency
from cromss.plot import FAINT, INK, PALETTE, STYLE

STEP, OBJECTIVE = PALETTE[0], PALETTE[1]
ACROSS = 3
LINES = {"step": 0.93, "objective": 0.84}  # where in a panel its laws are written
ROOM = 4.0  # by how much the scale goes beyond the slowest step, for them
TITLES = {
    "batch": "Batch (pairs)",
    "size": "Image size (pixels of a side)",
    "classes": "Classes",
    "modalities": "Modalities",
    "workers": "Workers, same batch",
}


def draw(report: Report, path: Path) -> None:
    """Write the picture of a report as PNG."""
    with matplotlib.rc_context(STYLE):
        cells = len(report.growths) + 1  # the last one for the legend
        across = min(ACROSS, cells)
        down = -(-cells // across)
        figure = Figure(figsize=(0.5 + 3.5 * across, 0.75 + 2.75 * down), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, hspace=0.04, wspace=0.02)
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes, one in zip(grid.flat, report.growths, strict=False):
            _panel(axes, one)
        for axes in grid.flat[cells - 1 :]:
            axes.axis("off")
        _decades(grid[0, 0], report)
        grid.flat[cells - 1].legend(
            handles=_legend(report), title=_caption(report), alignment="left", loc="upper left",
            bbox_to_anchor=(0, 1), borderaxespad=0, labelspacing=0.7,
        )  # fmt: skip
        figure.savefig(path, dpi=150, facecolor="white")


def _panel(axes: Axes, one: Growth) -> None:
    axes.set(xscale="log", yscale="log")
    values = sorted({point.value for point in one.points})
    ends = np.array([values[0], values[-1]], float)
    for name, colour in (("objective", OBJECTIVE), ("step", STEP)):
        for point in one.points:
            late = point.fusion == "late"
            x, seconds = point.value * (1.06 if late else 1), getattr(point, name)
            axes.plot([x] * len(seconds), seconds, "_", color=colour, alpha=0.35, markersize=7)
            axes.plot(
                x, COSTS[name][0](point), "o", markersize=6, markeredgewidth=1.3, zorder=3 + (not late),
                color=colour if late else "white", markerfacecolor="white" if late else colour,
            )  # fmt: skip
        if name in one.laws:
            along = np.geomspace(*ends, 100)
            axes.plot(along, one.laws[name](along), color=colour, linewidth=1.6, alpha=0.75, zorder=2)
            says = " ∝ " if one.laws[name].constant == 0 else ": "
            formula = _typeset(one.laws[name].formula(AXES[one.axis].unit, duration))
            axes.text(0.03, LINES[name], name + says + formula, transform=axes.transAxes, color=colour, size=9)
    if one.axis == "workers" and len(values) > 1:
        first = one.points[0]
        axes.plot(ends, first.step_seconds * first.value / ends, ":", color=FAINT, linewidth=1.4, zorder=1)
        last = one.points[-1]
        axes.annotate(f"efficiency {efficiency(one, last):.0%}", (last.value, last.step_seconds), (0, 12),
                      textcoords="offset points", ha="right", color=INK, size=8.5)  # fmt: skip
    axes.set_title(TITLES[one.axis])
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)


def _typeset(formula: str) -> str:
    """Exponents raised, signs as printed: for matplotlib."""
    return re.sub(r"\^(-?[0-9.]+)", r"$^{\1}$", formula).replace("x ", "× ").replace(" us", " µs")


def _decades(axes: Axes, report: Report) -> None:
    """Times as people write them, on the scale that all panels share, with room above for what stands over the lines."""
    seconds = [each for one in report.growths for point in one.points for each in (*point.step, *point.objective)]
    low, high = min(seconds) / 1.4, max(seconds) * ROOM
    axes.set_ylim(low, high)
    marks = [
        digit * 10.0**power
        for power in range(-7, 5)
        for digit in (1, 3)
        if low <= digit * 10.0**power <= 1.2 * max(seconds)
    ]
    axes.yaxis.set_major_locator(FixedLocator(marks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: duration(y)))
    axes.yaxis.set_minor_locator(NullLocator())


def _legend(report: Report) -> list[Line2D]:
    """What the marks mean, as far as the picture has them."""
    axes = [one.axis for one in report.growths]
    dot = {"marker": "o", "markersize": 6, "linewidth": 1.6}
    handles = [
        Line2D([], [], color=STEP, label="step: median, and its law", **dot),
        Line2D([], [], color=OBJECTIVE, label="the objective alone", **dot),
        Line2D([], [], color=FAINT, marker="_", linewidth=0, markersize=7, label="single steps"),
    ]
    if any(point.fusion == "late" for one in report.growths for point in one.points):
        handles.append(
            Line2D([], [], color=STEP, marker="o", markersize=6, markerfacecolor="white", markeredgewidth=1.3,
                   linewidth=0, label="late fusion: a U-Net each")
        )  # fmt: skip
    if "workers" in axes:
        handles.append(Line2D([], [], color=FAINT, linestyle=":", linewidth=1.4, label="efficiency 100 %"))
    return handles


def _caption(report: Report) -> str:
    base = report.base
    where = (
        f"threads: {report.threads}; of a worker: {report.worker_threads}" if report.device == "cpu" else report.device
    )
    return (
        f"A training step, all else at the base point:\n{base.fusion} fusion of {base.encoder}, {base.pairs} pairs,\n"
        f"{base.size} × {base.size} pixels, {base.classes} classes, {report.precision},\n{where}"
    )
