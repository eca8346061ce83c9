"""Where on Earth the tiles of a store lie, which tiles of two stores share ground, and how near the others come."""

from dataclasses import dataclass

import numpy as np
import rasterio
from rasterio.warp import transform as reproject
from scipy.spatial import cKDTree

from cromss.data.store import PatchStore

MOST = 100_000.0  # metres: as far as neighbours are looked for; the plane they are compared in is flat to 5 m that far
_TOUCH = 1.0  # metres: grids that are cut side by side overlap by rounding, a shared pixel is 10 m
_EQUATOR, _POLE = 6378137.0, 6356752.314245  # semi-axes of WGS 84, metres
_PAIRS = 65_536  # tile pairs that are compared at a time: some 100 MB


@dataclass(frozen=True)
class Footprints:
    """N tiles. `corners` (N,4,3) in order around each tile, earth-centred coordinates on the WGS 84 ellipsoid in metres:
    the same for every map projection, without a seam at the date line or the poles. `unplaced` = tiles left out because
    they do not say where they lie."""

    ids: list[str]
    corners: np.ndarray
    unplaced: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, ids: list[str], crs: list[str], transform: np.ndarray, size: tuple[int, int]) -> "Footprints":
        """Those of the tiles that say where they lie; `transform` (N,6) is affine, pixel to `crs`."""
        corners = np.full((len(ids), 4, 3), np.nan)
        members: dict[str, list[int]] = {}
        for i, name in enumerate(crs):
            members.setdefault(name, []).append(i)
        members.pop("", None)
        for name, mine in members.items():
            corners[mine] = _corners(name, transform[mine], size)
        known = np.flatnonzero(np.isfinite(corners).all((1, 2)))
        return cls([ids[i] for i in known], corners[known], len(ids) - len(known))

    @property
    def centres(self) -> np.ndarray:
        """(N,3) the mean of the corners."""
        return self.corners.mean(1)

    @property
    def radii(self) -> np.ndarray:
        """(N,) metres from the centre to the farthest corner."""
        return np.linalg.norm(self.corners - self.centres[:, None], axis=2).max(1, initial=0)


@dataclass(frozen=True)
class Nearest:
    """For each of N tiles the nearest of some others: `other` (N,) its number, -1 = none near enough; `clearance` (N,)
    metres of ground between the two, negative where they overlap, that deep; infinite without one."""

    other: np.ndarray
    clearance: np.ndarray

    @property
    def shared(self) -> np.ndarray:
        """(N,) bool: whether the two overlap. Tiles that only touch do not."""
        return self.clearance < -_TOUCH


def footprints(store: PatchStore, splits: tuple[str, ...]) -> Footprints:
    """One acquisition of every place of these splits; places that do not say where they lie are left out and counted."""
    blocks = store.blocks.where(np.isin(store.blocks.split, splits))
    ids, crs, transform = [], [], [np.zeros((0, 6))]
    for shard, group in zip(blocks.shard.tolist(), blocks.first.tolist(), strict=True):
        table = store.read(shard, group, ["patch_id", "crs", "transform"])
        ids += table["patch_id"].to_pylist()
        crs += table["crs"].to_pylist()
        transform.append(np.array(table["transform"].to_pylist(), float).reshape(-1, 6))
    return Footprints.of(ids, crs, np.concatenate(transform), store.size)


def shared_ground(tiles: Footprints, others: Footprints) -> list[tuple[str, str]]:
    """(id of a tile, id of one of `others` that covers some of its ground), for every tile that has one.

    Neighbours that touch share nothing. Any two coordinate systems can be compared.
    """
    found = nearest(tiles, others, 0.0)
    return [(tiles.ids[i], others.ids[found.other[i]]) for i in np.flatnonzero(found.shared)]


def nearest(tiles: Footprints, others: Footprints, within: float) -> Nearest:
    """For every tile the one of `others` that overlaps it most or, failing that, comes nearest, at most `within` metres
    away. A search tree finds who is near, the outlines are compared exactly; memory does not grow with the pairs.

    Raises ValueError for a distance that is negative or beyond MOST.
    """
    if not 0 <= within <= MOST:
        raise ValueError(f"buffer={within:g}: must be 0 to {MOST:,.0f} metres")
    other, clearance = np.full(len(tiles), -1), np.full(len(tiles), np.inf)
    centres, radii, reach = tiles.centres, tiles.radii, others.radii
    # One tree per size of tile, so that a single huge tile does not make everybody look far.
    sizes = np.ceil(np.log2(np.maximum(reach, 1.0)))
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        tree = cKDTree(others.centres[members])
        around = within + radii + 2.0**size
        expected = tree.query_ball_point(centres, around, return_length=True)
        for chunk in _chunks(expected):
            hits = tree.query_ball_point(centres[chunk], around[chunk])
            mine = np.repeat(chunk, [len(hit) for hit in hits])
            theirs = members[np.concatenate([np.asarray(hit, int) for hit in hits])]
            gap = _clearance(tiles.corners[mine], others.corners[theirs])
            order = np.lexsort((theirs, gap, mine))
            best = order[np.unique(mine[order], return_index=True)[1]]
            best = best[(gap[best] < clearance[mine[best]]) & (gap[best] <= within)]
            other[mine[best]], clearance[mine[best]] = theirs[best], gap[best]
    return Nearest(other, clearance)


def _chunks(expected: np.ndarray) -> list[np.ndarray]:
    """Numbers of the tiles that have a partner, in groups of about _PAIRS pairs."""
    busy = np.flatnonzero(expected)
    group = np.cumsum(expected[busy]) // _PAIRS
    return np.split(busy, np.flatnonzero(np.diff(group)) + 1) if len(busy) else []


def _clearance(tiles: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P,) metres between the outlines of P pairs of tiles, corners (P,4,3); negative where they overlap: how far one
    would have to move. Compared in the plane that touches the ellipsoid at the first of the two."""
    origin = tiles.mean(1)
    up = origin / np.array([_EQUATOR**2, _EQUATOR**2, _POLE**2])
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    axis = np.eye(3)[np.abs(up).argmin(1)]  # any direction that is not up
    east = np.cross(axis, up)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    plane = np.stack([east, np.cross(up, east)], axis=2)
    a, b = (tiles - origin[:, None]) @ plane, (others - origin[:, None]) @ plane
    # Convex outlines are apart exactly if the normal of some edge separates them.
    normals = np.concatenate([_normals(a), _normals(b)], axis=1)
    on_a, on_b = a @ normals.transpose(0, 2, 1), b @ normals.transpose(0, 2, 1)
    between = np.maximum(on_b.min(1) - on_a.max(1), on_a.min(1) - on_b.max(1)).max(1)
    return np.where(between > 0, np.minimum(_to_edges(a, b), _to_edges(b, a)), between)


def _normals(outline: np.ndarray) -> np.ndarray:
    edges = np.roll(outline, -1, axis=1) - outline
    across = np.stack([-edges[..., 1], edges[..., 0]], axis=-1)
    return across / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-9)


def _to_edges(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """(P,) least distance of 4 points (P,4,2) to the 4 edges of an outline (P,4,2)."""
    edges = (np.roll(outline, -1, axis=1) - outline)[:, None]
    to_point = points[:, :, None] - outline[:, None]
    along = (to_point * edges).sum(-1) / np.maximum((edges**2).sum(-1), 1e-9)
    away = to_point - np.clip(along, 0, 1)[..., None] * edges
    return np.sqrt((away**2).sum(-1)).min((1, 2))


def _corners(crs: str, transform: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,4,3) of N grids of one CRS; NaN where it is unusable or the grid lies outside it."""
    rows, columns = np.array([(0, 0), (0, 1), (1, 1), (1, 0)]).T * np.array(size)[:, None]
    a, b, c, d, e, f = transform.T[:, :, None]
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    try:
        lon, lat = reproject(crs, "EPSG:4326", x.ravel(), y.ravel())
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError):
        return np.full((len(transform), 4, 3), np.nan)
    lon, lat = np.array(lon, float), np.array(lat, float)
    lat[~(np.isfinite(lon) & (np.abs(lat) <= 90))] = np.nan
    return on_ellipsoid(np.where(np.isfinite(lat), lon, np.nan), lat).reshape(-1, 4, 3)


def on_ellipsoid(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Earth-centred coordinates (...,3), metres, of degrees on WGS 84."""
    lon, lat = np.radians(lon), np.radians(lat)
    squashed = (_POLE / _EQUATOR) ** 2
    normal = _EQUATOR / np.sqrt(np.cos(lat) ** 2 + squashed * np.sin(lat) ** 2)
    across = normal * np.cos(lat)
    return np.stack([across * np.cos(lon), across * np.sin(lon), squashed * normal * np.sin(lat)], axis=-1)
