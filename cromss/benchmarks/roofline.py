"""The roofline: what a step reaches of what arithmetic and memory allow, drawn; and what data sheets allow, computed."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cromss.benchmarks.objectives import EAGER, RECIPE
from cromss.benchmarks.sides import BACK, FORWARD, SIDES, inputs_of
from cromss.benchmarks.step_report import Report
from cromss.config import RunConfig
from cromss.costs.hardware import GPUS, Hardware
from cromss.costs.work import training_step
from cromss.landcover import DYNAMIC_WORLD
from cromss.plot import FAINT, INK, PALETTE, styled

ELSEWHERE = ("a100-40", "h200")  # whose roofs are computed: the paper's GPU, and a newer one
PAPER_PLACES, PAPER_EPOCHS = 102_756, 100  # 99 % of the locations; the others validate
COLOURS = {"recipe": PALETTE[1], "ours": PALETTE[0], "ours, compiled": PALETTE[2]}
DOT = {"markersize": 8.5, "markeredgecolor": "white", "markeredgewidth": 1.0, "linestyle": "none", "zorder": 3}


class Spot(NamedTuple):
    """A point of the picture."""

    label: str
    marker: str
    colour: str
    flop: float
    bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flop / self.bytes

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.flop / self.seconds


def spots(report: Report) -> list[Spot]:
    """Networks, whole step and objective of either side.

    Operations: of networks and step, the convolutions'; of an objective, which has none, one for every element of every
    operator of ours, eager: the same for all three, so that the faster one stands higher.
    """
    found = []
    for name in SIDES:
        side, moved = report.sides[name], report.moved[name]
        flop, networks = 1e9 * report.gflop, moved[FORWARD] + moved[BACK]
        found.append(Spot(f"networks, {name}", "s", COLOURS[name], flop, networks, report.network_seconds(name)))
        found.append(Spot(f"whole step, {name}", "D", COLOURS[name], flop, sum(moved.values()), side.step_seconds))
    elements = report.objectives[EAGER].elements
    for name, cost in report.objectives.items():
        if cost.seconds:
            colour = COLOURS[{RECIPE: "recipe", EAGER: "ours"}.get(name, name)]
            found.append(Spot(f"objective, {name}", "o", colour, elements, cost.bytes, cost.seconds))
    return found


@styled
def picture(report: Report) -> Figure:
    """Operations a second over operations a byte, both logarithmic, under the roofs of this machine and of two GPUs."""
    points, here = spots(report), report.hardware
    others = [GPUS[name] for name in ELSEWHERE if GPUS[name] != here]
    left = min(0.05, min(point.intensity for point in points) / 2)
    right = max(3e4, 50 * here.ridge, 3 * max(point.intensity for point in points))  # room on the roofs for their names
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    axes = figure.subplots()
    for hardware in (here, *others):
        _roof(axes, hardware, left, right, solid=hardware is here)
    for point in points:
        axes.plot(point.intensity, point.rate, point.marker, color=point.colour, **DOT)
    lowest = min(here.bandwidth * left, *(point.rate for point in points))
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(lowest / 2, max(hardware.flops for hardware in (here, *others)) * 6)
    axes.set_xlabel("operations a byte (bytes as counted)")
    axes.set_ylabel("operations a second")
    axes.set_title(
        f"Roofline of a step: {report.encoder}, {report.fusion} fusion, {report.batch} pairs of "
        f"{report.size} x {report.size} pixels"
    )
    axes.grid(which="major")
    _legend(axes, points)
    return figure


def draw(report: Report, path: Path) -> None:
    """The picture as a PNG."""
    picture(report).savefig(path, dpi=150)


def _roof(axes: Axes, hardware: Hardware, left: float, right: float, solid: bool) -> None:
    xs = [left, hardware.ridge, right]
    ys = [min(hardware.flops, hardware.bandwidth * x) for x in xs]
    known = "measured" if hardware.measured else "data sheet" if solid else "computed"
    colour = INK if solid else FAINT
    axes.plot(xs, ys, color=colour, zorder=2, linewidth=2.0 if solid else 1.2, linestyle="-" if solid else (0, (5, 3)))
    name = hardware.title.removeprefix("NVIDIA ").removesuffix(" (SXM)")
    axes.annotate(
        f"{name}, {known}: {_rate(hardware.flops)}FLOP/s, {_rate(hardware.bandwidth)}B/s",
        (right, hardware.flops), (-5, 4), textcoords="offset points", ha="right", va="bottom", size=8, color=colour,
    )  # fmt: skip


def _legend(axes: Axes, points: list[Spot]) -> None:
    """Colours for who, shapes for what: in the corner where no roof lets anything stand."""
    colours = {side: colour for side, colour in COLOURS.items() if any(point.colour == colour for point in points)}
    who = [Line2D([], [], marker="o", color=colour, label=side, **DOT) for side, colour in colours.items()]
    shapes = {"networks": "s", "whole step": "D", "objective": "o"}
    what = [Line2D([], [], marker=shape, color=FAINT, label=name, **DOT) for name, shape in shapes.items()]
    axes.legend(
        handles=[*what, *who], loc="lower right", ncols=2, handletextpad=0.2, columnspacing=1.4, borderaxespad=1.0
    )


def _rate(number: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number / 1e6:.3g} M"


# --- computed ---------------------------------------------------------------------------------------------------------


def computed(config: RunConfig, pairs: int) -> str:
    """What data sheets allow a step of `pairs` on one GPU, for machines without it: computed, never measured.

    Operations and bytes are counted operator by operator on the meta device, in bfloat16; every operator takes as long
    as its arithmetic or its bytes do at the full peak, whichever is longer. Fused: the operators between convolutions
    take nothing.
    """
    channels = {name: len(bands) for name, bands in inputs_of(config).bands.items()}
    work = training_step(config, channels, len(DYNAMIC_WORLD), pairs, config.data.augment.crop)
    lines = [
        f"computed from data sheets, nothing measured: S1+S2 pairs a second of one GPU, {pairs} pairs a step",
        f"{work.flop / pairs / 1e9:.1f} GFLOP a pair; eager operators move {work.bytes / pairs / 1e9:.2f} GB, "
        f"fused into the convolutions {work.fused_bytes / pairs / 1e9:.2f} GB",
        f"{'':26} {'arithmetic':>11} {'eager':>9} {'fused':>9}   GPU-hours of {PAPER_EPOCHS} epochs of {PAPER_PLACES:,} pairs",
    ]
    for gpu in (GPUS[name] for name in ELSEWHERE):
        seconds = [work.flop / gpu.flops, work.seconds(gpu), work.seconds(gpu, fused=True)]
        rates = [pairs / second for second in seconds]
        hours = " / ".join(f"{PAPER_PLACES * PAPER_EPOCHS / rate / 3600:.2f}" for rate in rates)
        lines.append(f"{gpu.title:26} {rates[0]:11,.0f} {rates[1]:9,.0f} {rates[2]:9,.0f}   {hours}")
    return "\n".join(lines)
