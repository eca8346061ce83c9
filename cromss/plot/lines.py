"""What changes while a network trains: losses, probes, the schedules of alpha and gamma."""

from collections.abc import Mapping, Sequence

import numpy as np

from cromss.plot.look import PALETTE, Figure, legend_columns, styled

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.2, 1.2, 1.2)))
Line = tuple[np.ndarray, np.ndarray]  # x (N,) ascending, y (N,)


@styled
def curves(
    charts: Mapping[str, Mapping[str, Sequence[Line]]], palette: Mapping[str, str], xlabel: str, *, across: int = 2,
    share: bool = False,
) -> Figure:  # fmt: skip
    """One small chart per title, `across` in a row, which `share` their axis; in each, for every arm, the mean of its seeds
    and a band from the lowest to the highest seed."""
    across = min(across, len(charts))
    down = -(-len(charts) // across)
    names = list(dict.fromkeys(name for arms in charts.values() for name in arms))
    columns = legend_columns(names, 4.6 * across)
    figure = Figure(figsize=(4.6 * across, 2.7 * down + 0.2 + 0.2 * -(-len(names) // columns)), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey="row" if share else "none")
    handles: dict[str, object] = {}
    for axes, (title, arms) in zip(grid.flat, charts.items(), strict=False):
        for arm, lines in arms.items():
            x, mean, low, high = band(lines)
            axes.fill_between(x, low, high, color=palette[arm], alpha=0.15, linewidth=0)
            (handles[arm],) = axes.plot(x, mean, color=palette[arm], label=arm)
        axes.set_title(title)
        axes.grid(axis="y")
        axes.margins(x=0.01)
        if all((x % 1 == 0).all() for lines in arms.values() for x, _ in lines):
            axes.locator_params(axis="x", integer=True)  # there is no epoch 4.5
    for axes in grid.flat[len(charts) :]:
        axes.axis("off")
    for column in range(across):
        last = max(row for row in range(down) if row * across + column < len(charts))
        grid[last, column].set_xlabel(xlabel)
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=columns, handlelength=1.6)
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
def trajectories(schedules: Mapping[str, Mapping[str, Line]], xlabel: str) -> Figure:
    """`schedules[quantity][names]`: a chart for each of alpha, gamma, ..., in it a line for each schedule that differs. Those
    that lie upon each other keep apart by their dashes."""
    names = list(dict.fromkeys(name for lines in schedules.values() for name in lines))
    columns = legend_columns(names, 4.6 * len(schedules), handle=0.7)
    size = (4.6 * len(schedules), 2.5 + 0.2 * -(-len(names) // columns))
    figure = Figure(figsize=size, layout="constrained")
    handles: dict[str, object] = {}
    grid = figure.subplots(1, len(schedules), squeeze=False, sharey=True)[0]
    for axes, (title, lines) in zip(grid, schedules.items(), strict=True):
        for name, (x, y) in lines.items():
            place = names.index(name)
            style = DASHES[(place // len(PALETTE) + place) % len(DASHES)] if len(lines) > 1 else "-"
            (handles[name],) = axes.plot(x, y, color=PALETTE[place % len(PALETTE)], linestyle=style)
        axes.set(ylim=(-0.03, 1.05), xlabel=xlabel)
        axes.set_title(title)
        axes.grid(axis="y")
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=columns, handlelength=2.6)
    return figure
