"""Histograms of the stored values, band by band."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch
from matplotlib.ticker import MaxNLocator

from cromss.contract import Contract
from cromss.data.statistics import BandStatistics
from cromss.plot import INK, styled
from cromss.portrait.look import split_colours
from cromss.sensors import sensor

BINS = 64  # 4 codes each, or integer DN would show as a comb


@styled
def histograms(
    statistics: Mapping[str, Mapping[str, Sequence[BandStatistics]]], contracts: Mapping[str, Contract]
) -> Figure:
    """A small chart a band: how many pixels with data have which 8-bit code, on an axis in the sensor's unit; a line a
    split. The codes 0 and 255 hold everything beyond and are written beside the chart where they would dwarf it.

    statistics   split -> modality -> one entry a band
    contracts    modality -> what its numbers mean
    """
    across = 5
    shown = [name for name in contracts if any(bands.get(name) for bands in statistics.values())]
    rows = {name: -(-len(contracts[name].bands) // across) for name in shown}
    colours = split_colours(statistics)
    figure = Figure(figsize=(9.6, 1.55 * sum(rows.values()) + 0.45 * len(rows) + 0.35), layout="constrained")
    parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=[rows[name] + 0.3 for name in shown])[:, 0]
    for part, name in zip(parts, shown, strict=True):
        contract = contracts[name]
        part.suptitle(f"{contract.product} [{contract.unit}]", x=0.006, ha="left", size=10, weight="bold", color=INK)
        grid = part.subplots(rows[name], across, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number < len(contract.bands):
                bands = {split: statistics[split][name][number] for split in colours if statistics[split].get(name)}
                _histogram(axes, bands, name, colours, top=number < across)
            else:
                axes.axis("off")
        for axes in grid[:, 0]:
            axes.set_ylabel("% of pixels", size=8)
    handles = [Swatch(facecolor=colour, label=split) for split, colour in colours.items()]
    title = f"below each chart: mean ± standard deviation; {256 // BINS} codes a bin"
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1, handleheight=1,
                  title=title, title_fontsize=8)  # fmt: skip
    return figure


def _histogram(
    axes: Axes, bands: Mapping[str, BandStatistics], modality: str, colours: Mapping[str, str], top: bool
) -> None:
    edges = np.linspace(0, 256, BINS + 1)
    first = next(iter(bands.values()))
    low, width = (float(part[0]) for part in sensor(modality).interval([first.band]))
    highest = 0.0
    for number, (split, band) in enumerate(bands.items()):
        counts = np.asarray(band.histogram, float)
        share = 100 * counts.reshape(BINS, -1).sum(1) / max(counts.sum(), 1)
        axes.stairs(share, edges, fill=True, color=colours[split], alpha=0.28 if number == 0 else 0.14)
        axes.stairs(share, edges, color=colours[split], linewidth=1.1, label=split)
        inner = share[1:-1].max()
        highest = max(highest, inner if inner > 0 else share.max())
        for side, code in (("left", 0), ("right", 255)):
            if (clipped := 100 * counts[code] / max(counts.sum(), 1)) >= 1:
                axes.text(0.03 if side == "left" else 0.97, 0.93 - 0.14 * number, f"{clipped:.0f} % beyond",
                          transform=axes.transAxes, ha=side, va="top", size=6.5, color=colours[split])  # fmt: skip
    axes.set(xlim=(0, 256), ylim=(0, (1.2 + 0.14 * len(bands)) * highest))
    beneath = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    for number, (split, band) in enumerate(bands.items()):
        mean, spread = (band.mean - low) / width * 255, band.std / width * 255
        y = -0.035 - 0.045 * number
        reach = np.clip([mean - spread, mean + spread], 0, 256)
        axes.plot(reach, [y, y], color=colours[split], linewidth=1.6, solid_capstyle="butt", **beneath)
        axes.plot(np.clip(mean, 0, 256), y, "o", color=colours[split], markersize=3, **beneath)
    axes.set_title(first.band, size=9, pad=14 if top else 4)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter("{x:g}")
    values = _round_values(low, low + width)
    names = [f"{value:,.0f}".replace("-", "−") for value in values]
    axes.set_xticks([(value - low) / width * 255 for value in values], names)
    axes.tick_params(labelsize=7, pad=3.5 + 3.2 * len(bands))
    if top:
        codes = axes.secondary_xaxis("top")
        codes.set_xticks([0, 64, 128, 192, 255], ["code 0", "64", "128", "192", "255"])
        codes.tick_params(labelsize=6.5, pad=1, labelcolor="#8A949E")
        codes.spines["top"].set_visible(False)


def _round_values(low: float, high: float, most: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside (low, high)."""
    steps = (base * 10.0**power for power in range(-6, 9) for base in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= most)
    return [float(value) * step for value in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
