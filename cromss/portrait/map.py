"""Where the places of a store lie: one place, a region or the whole Earth, across the date line too."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cromss.data.store import PatchStore
from cromss.plot import FAINT, INK, styled
from cromss.portrait.look import counted, split_colours

Extent = tuple[float, float, float, float]  # west, east, south, north in degrees; east may exceed 180
MOST_BLOCKS = 2000  # read for the map: 32,000 places, where every block of a large store would be minutes from a bucket
_PAPER = "#F6F8FA"
_RADIUS = 6_371_000.0  # of the Earth, metres: for the scale bar


def positions(store: PatchStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longitude, latitude (N,) in degrees, NaN where unknown, and split (N,) of the places; of a large store, of those in
    `MOST_BLOCKS` blocks, evenly spaced."""
    blocks = store.blocks
    if len(blocks) > MOST_BLOCKS:
        blocks = blocks.where(np.linspace(0, len(blocks) - 1, MOST_BLOCKS).astype(int))

    def read(shard: int, group: int) -> np.ndarray:
        table = store.read(shard, group, ["lon", "lat"])
        return np.stack([table[name].to_numpy() for name in ("lon", "lat")], axis=1).astype(float)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, blocks.shard.tolist(), blocks.first.tolist()))
    lon, lat = np.concatenate([np.zeros((0, 2)), *found]).T
    known = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
    return np.where(known, lon, np.nan), np.where(known, lat, np.nan), np.repeat(blocks.split, blocks.rows)


@styled
def locations(lon: np.ndarray, lat: np.ndarray, split: np.ndarray, places: int | None = None) -> Figure:
    """Places (N,) by split on a graticule: as much of the Earth as they need, without a break at the date line.
    `places` = how many there are, where they are more than those that are drawn."""
    known = np.isfinite(lon) & np.isfinite(lat)
    colours = split_colours(split.tolist())
    if not known.any():
        figure = Figure(figsize=(7.6, 2.0), layout="constrained")
        axes = figure.subplots()
        axes.text(0.5, 0.5, f"none of {len(lon):,} places says where it lies", transform=axes.transAxes, ha="center",
                  va="center", color=FAINT, size=11)  # fmt: skip
        axes.set(xticks=[], yticks=[], facecolor=_PAPER)
        axes.spines[:].set_visible(True)
        return figure
    west, span = _longitudes(lon[known])
    x = np.where(known, west + (lon - west + 1e-9) % 360, np.nan)  # the westmost one must not round to the far east
    low, high = float(lat[known].min()), float(lat[known].max())
    extent = _extent(west, west + span, low, high)
    across, along = extent[1] - extent[0], extent[3] - extent[2]
    aspect = 1 / max(np.cos(np.radians((extent[2] + extent[3]) / 2)), 0.2) if along < 60 else 1.0
    figure = Figure(figsize=(7.6, float(np.clip(7.0 * along * aspect / across, 2.2, 5.6)) + 0.75), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect=aspect, facecolor=_PAPER)
    _graticule(axes, extent)
    size = float(np.clip(4000 / known.sum(), 1.2, 32))
    for number, (name, colour) in enumerate(colours.items()):
        mine = known & (split == name)
        points = np.round(np.stack([x[mine], lat[mine]], axis=1), _decimals(extent))  # as fine as can be seen
        points = np.unique(points, axis=0)
        ring = 1 + 1.3 * (len(colours) - 1 - number)  # smaller on larger, where splits lie on each other
        axes.scatter(*points.T, s=size * ring, color=colour, alpha=0.85, edgecolor="white", zorder=3,
                     linewidth=0.3 if size > 8 else 0, rasterized=len(points) > 2000,
                     label=f"{name} · {counted(int((split == name).sum()), 'place')}")  # fmt: skip
    unknown = int((~known).sum())
    title = f"{unknown:,} more places do not say where they lie" if unknown else None
    if places is not None and places > len(lon):
        title = f"a sample of {len(lon):,} of {places:,} places" + (f"; {title}" if title else "")
    legend = figure.legend(
        loc="outside lower center", ncols=len(colours), title=title, title_fontsize=8, markerscale=1.0
    )
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    axes.spines[:].set_visible(True)
    _scale_bar(axes, extent)
    return figure


def _longitudes(lon: np.ndarray) -> tuple[float, float]:
    """(west, span) in degrees of the shortest stretch that holds all; the whole Earth as it is usually cut."""
    round_ = np.unique(lon % 360)
    gaps = np.diff(np.append(round_, round_[0] + 360))
    widest = int(gaps.argmax())
    if gaps[widest] < 60:
        return -180.0, 360.0
    west = float(round_[(widest + 1) % len(round_)])
    return (west + 180) % 360 - 180, 360 - float(gaps[widest])


def _extent(west: float, east: float, south: float, north: float) -> Extent:
    """With a margin, not narrower than some 50 km, in the shape of a page."""
    if east - west >= 359:
        margin = max(5.0, 0.04 * (north - south))
        return -180.0, 180.0, max(south - margin, -90.0), min(north + margin, 90.0)
    squeeze = max(np.cos(np.radians((south + north) / 2)), 0.2)
    height = max(1.12 * (north - south), 0.5)
    width = max(1.12 * (east - west), 0.5 / squeeze)
    height, width = max(height, width * squeeze / 2.4), max(width, 1.6 * height / squeeze)
    x, y = (west + east) / 2, (south + north) / 2
    if width >= 360:
        x, width = 0.0, 360.0
    return x - width / 2, x + width / 2, max(y - height / 2, -90.0), min(y + height / 2, 90.0)


def _decimals(extent: Extent) -> int:
    return int(np.ceil(-np.log10((extent[1] - extent[0]) / 4000)))


def _graticule(axes: Axes, extent: Extent) -> None:
    most_across = 12 if extent[1] - extent[0] > 180 else 7
    for which, low, high, most, letters in (("x", *extent[:2], most_across, "EW"), ("y", *extent[2:], 6, "NS")):
        whole = [
            step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60) if (high - low) / step <= most
        ]
        step = whole[0] if whole else 60
        ticks = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step
        digits = 0 if step >= 1 else 1 if step >= 0.1 else 2
        wrapped = (ticks + 180) % 360 - 180 if which == "x" else ticks
        names = [_degrees(value, digits, letters) for value in wrapped]
        getattr(axes, f"set_{which}ticks")(ticks, names)
    axes.grid(True, color="#D5DBE1", linewidth=0.7)


def _degrees(value: float, digits: int, letters: str) -> str:
    value = round(float(value), digits)
    side = "" if value in (0, -180) else letters[value < 0]
    return f"{abs(value):.{digits}f}°{side}"


def _scale_bar(axes: Axes, extent: Extent) -> None:
    if extent[1] - extent[0] > 40:
        return  # a degree is no constant length there
    metres = np.radians(1) * _RADIUS * np.cos(np.radians((extent[2] + extent[3]) / 2))
    most = 0.24 * (extent[1] - extent[0]) * metres / 1000
    length = max(base * 10.0**power for power in range(-3, 5) for base in (1, 2, 5) if base * 10.0**power <= most)
    right, bottom = extent[1] - 0.03 * (extent[1] - extent[0]), extent[2] + 0.05 * (extent[3] - extent[2])
    axes.plot(
        [right - 1000 * length / metres, right],
        [bottom, bottom],
        color=INK,
        linewidth=2.2,
        solid_capstyle="butt",
        zorder=4,
    )
    axes.annotate(f"{length:,g} km", (right - 500 * length / metres, bottom), (0, 3), textcoords="offset points",
                  ha="center", va="bottom", size=8, zorder=4)  # fmt: skip
