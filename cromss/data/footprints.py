"""Where on Earth the tiles of a store lie, and which tiles of two stores share ground."""

from dataclasses import dataclass

import numpy as np
import rasterio
from rasterio.warp import transform as reproject

from cromss.data.store import PatchStore

_WORLD = "EPSG:4326"
_PROBES = 16  # per side of a tile: points that are looked up in the other one


@dataclass(frozen=True)
class Footprints:
    """N tiles. `transform` (N,6) is affine, pixel to `crs`; `bounds` (N,4) is west, south, east, north in degrees."""

    ids: list[str]
    crs: list[str]
    transform: np.ndarray
    bounds: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, ids: list[str], crs: list[str], transform: np.ndarray, size: tuple[int, int]) -> "Footprints":
        """Those of the tiles that say where they lie."""
        names = np.array(crs, dtype=object)
        bounds = _bounds(names, transform, size)
        known = np.flatnonzero(np.isfinite(bounds).all(1))
        return cls([ids[i] for i in known], list(names[known]), transform[known], bounds[known], size)


def footprints(store: PatchStore, splits: tuple[str, ...]) -> Footprints:
    """One acquisition of every place of these splits; places that do not say where they lie are left out."""
    blocks = store.blocks.where(np.isin(store.blocks.split, splits))
    groups = zip(blocks.shard.tolist(), blocks.first.tolist(), strict=True)
    rows = [row for group in groups for row in store.read(*group, ["patch_id", "crs", "transform"]).to_pylist()]
    transform = np.array([row["transform"] for row in rows], float).reshape(-1, 6)
    return Footprints.of([row["patch_id"] for row in rows], [row["crs"] for row in rows], transform, store.size)


def shared_ground(tiles: Footprints, others: Footprints) -> list[tuple[str, str]]:
    """(id of a tile, id of one of `others` that covers some of its ground), for every tile that has one.

    Neighbours that touch share nothing. Any two coordinate systems can be compared.
    """
    found = []
    order = np.argsort(others.bounds[:, 1])
    south, north = others.bounds[order, 1], others.bounds[order, 3]
    tallest = (north - south).max(initial=0)
    for i, (west, low, east, high) in enumerate(tiles.bounds):
        near = order[np.searchsorted(south, low - tallest) : np.searchsorted(south, high)]
        w, s, e, n = others.bounds[near].T
        near = near[(s < high) & (n > low) & (w < east) & (e > west)]
        partner = next((j for j in near if _covers(tiles, i, others, j) or _covers(others, j, tiles, i)), None)
        if partner is not None:
            found.append((tiles.ids[i], others.ids[partner]))
    return found


def _bounds(crs: np.ndarray, transform: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,4) west, south, east, north; NaN where the CRS is missing or unusable."""
    bounds = np.full((len(crs), 4), np.nan)
    rows, columns = np.array([(0, 0), (0, 1), (1, 0), (1, 1)]).T * np.array(size)[:, None]
    for name in set(crs) - {""}:
        mine = crs == name
        x, y = _positions(transform[mine], rows, columns)
        lon, lat = (values.reshape(x.shape) for values in _moved(name, _WORLD, x.ravel(), y.ravel()))
        bounds[mine] = np.stack([lon.min(1), lat.min(1), lon.max(1), lat.max(1)], axis=1)
    bounds[bounds[:, 2] - bounds[:, 0] > 180, ::2] = -180, 180  # across the date line: any longitude may share ground
    return bounds


def _covers(tiles: Footprints, i: int, others: Footprints, j: int) -> bool:
    """Whether any of a grid of points inside tile i lies inside the other tile j."""
    steps = (np.arange(_PROBES) + 0.5) / _PROBES
    rows, columns = (part.ravel() for part in np.meshgrid(steps * tiles.size[0], steps * tiles.size[1], indexing="ij"))
    x, y = _positions(tiles.transform[i][None], rows, columns)
    x, y = _moved(tiles.crs[i], others.crs[j], x[0], y[0])
    a, b, c, d, e, f = others.transform[j]
    column, row = np.linalg.solve([[a, b], [d, e]], np.stack([x - c, y - f]))
    height, width = others.size
    return bool(((row > 0) & (row < height) & (column > 0) & (column < width)).any())


def _positions(transform: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CRS coordinates (N,P) of P pixel positions in N grids."""
    a, b, c, d, e, f = transform.T[:, :, None]
    return a * columns + b * rows + c, d * columns + e * rows + f


def _moved(source: str, target: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same points in another coordinate system; NaN where there is no way there."""
    if source == target:
        return x, y
    try:
        moved = np.array(reproject(source, target, x, y), float)
    except rasterio.errors.RasterioError:
        return np.full_like(x, np.nan), np.full_like(y, np.nan)
    return tuple(np.where(np.isfinite(moved), moved, np.nan))
