"""Opening GeoTIFFs that somebody else made: nothing but local GeoTIFF, checked before a pixel is decoded."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.session import DummySession
from rasterio.warp import transform as reproject

MAX_BYTES = 2**30  # decoded; a 167 kB file can hold 20 GiB of zeros
_MAX_BLOCK = 2**28  # decoded, all bands: what one window may cost
Affine6 = tuple[float, ...]  # a b c d e f: x = a col + b row + c, y = d col + e row + f

# No side-car file is looked for: neither an .aux.xml nor an .ovr beside a tif can point GDAL elsewhere.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


@dataclass(frozen=True)
class Raster:
    """One file, or several stacked: pixels (C, H, W) as stored, `names` the band descriptions ("" where absent)."""

    pixels: np.ndarray
    names: tuple[str, ...]
    crs: str = ""
    transform: Affine6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    nodata: float | None = None
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pixels.shape[-2:]

    @property
    def georeferenced(self) -> bool:
        """Whether the file says where on Earth it lies."""
        return bool(self.crs)


def read_raster(
    path: Path,
    *,
    counts: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    coarser: Sequence[int] | None = None,
    smooth: bool = False,
    decode: bool = True,
) -> Raster:
    """A local GeoTIFF, whole. `counts` = the band counts that are acceptable. `size` = (H, W) to bring it to, by
    nearest, or bilinear between pixel centres where `smooth`; `coarser` = how many times coarser it may be.
    Not to `decode` = by its header alone: the pixels are zeros of the right type and shape that take no memory.

    Raises ValueError, one line naming the file's fault: missing, not a GeoTIFF (a VRT for instance), too large,
    a wrong number of bands or pixels, truncated.
    """
    with _quiet(), _opened(path) as file:
        if counts is not None and file.count not in counts:
            raise ValueError(f"{path.name}: {file.count} bands, expected {' or '.join(map(str, counts))}")
        if coarser and not any(size == (file.height * by, file.width * by) for by in coarser):
            raise ValueError(f"{path.name}: {_by(file.shape)} pixels, beside {_by(size)} at the finest resolution")
        shape = (file.count, *(size or file.shape))
        how = Resampling.bilinear if smooth else Resampling.nearest
        try:
            if decode:
                pixels = file.read(out_shape=shape, resampling=how)
            else:
                pixels = np.broadcast_to(np.zeros((), np.result_type(*file.dtypes)), shape)
        except (rasterio.errors.RasterioError, MemoryError) as error:
            raise ValueError(f"{path.name}: damaged or truncated ({damage(error, path)})") from None
        scale_y, scale_x = file.height / shape[1], file.width / shape[2]
        a, b, c, d, e, f = file.transform[:6]
        return Raster(
            pixels=pixels,
            names=tuple(name or "" for name in file.descriptions),
            crs=file.crs.to_string() if file.crs else "",
            transform=(a * scale_x, b * scale_y, c, d * scale_x, e * scale_y, f),
            nodata=file.nodata,
            tags=file.tags(),
        )


@contextlib.contextmanager
def opened_raster(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A local GeoTIFF of any size, open, to be read by windows.

    Raises ValueError as `read_raster`, and for a file whose blocks are so large that a window of it would not fit.
    """
    with _quiet(), _opened(path, None) as file:
        height, width = max(file.block_shapes, key=math.prod)
        block = height * width * sum(np.dtype(dtype).itemsize for dtype in file.dtypes)
        if block > _MAX_BLOCK:
            raise ValueError(
                f"{path.name}: is stored in blocks of {_by((height, width))} pixels, {block / 2**20:,.0f} MiB each; write it "
                f"again in tiles (rio convert --co tiled=yes)"
            )
        yield file


def raster_size(path: Path) -> tuple[int, int]:
    """(H, W) from the header alone. Raises ValueError as `read_raster`."""
    with _quiet(), _opened(path) as file:
        return file.shape


def check_same_grid(one: Raster, other: Raster, names: str, tolerance: float) -> None:
    """Raises ValueError unless both cover the same ground with the same pixels: equal size and CRS, corners within
    `tolerance` pixels. A file without georeference is compared by size alone."""
    if one.size != other.size:
        raise ValueError(f"{names} differ in size: {_by(one.size)} and {_by(other.size)} pixels")
    if not (one.georeferenced and other.georeferenced):
        return
    if one.crs != other.crs:
        raise ValueError(f"{names} differ in CRS: {one.crs} and {other.crs}")
    apart = displacement(one.transform, other.transform, one.size)
    if not apart <= tolerance:
        raise ValueError(f"{names} differ in transform: their corners lie {apart:.4g} pixels apart")


def displacement(one: Affine6, other: Affine6, size: tuple[int, int]) -> float:
    """The largest distance between two grids' corners, in pixels of the first."""
    height, width = size
    pixel = math.sqrt(abs(one[0] * one[4] - one[1] * one[3])) or 1.0
    corners = [(row, col) for row in (0, height) for col in (0, width)]
    return max(math.dist(position(one, *corner), position(other, *corner)) for corner in corners) / pixel


def position(transform: Affine6, row: float, col: float) -> tuple[float, float]:
    """CRS coordinates of a pixel corner."""
    a, b, c, d, e, f = transform
    return a * col + b * row + c, d * col + e * row + f


def centre(crs: str, transform: Affine6, size: tuple[int, int]) -> tuple[float, float]:
    """(lon, lat) of the middle of a grid, WGS 84 degrees; NaN without a CRS."""
    if not crs:
        return math.nan, math.nan
    x, y = position(transform, size[0] / 2, size[1] / 2)
    try:
        with _quiet():
            (lon,), (lat,) = reproject(crs, "EPSG:4326", [x], [y])
    except rasterio.errors.RasterioError:
        return math.nan, math.nan
    return lon, lat


def _quiet() -> rasterio.Env:
    # Without a session of its own, rasterio makes one of Amazon's for every file as soon as a store in a bucket has put keys
    # into the environment: seven times as slow.
    return rasterio.Env(session=DummySession(), **_GDAL)


def _opened(path: Path, most: int | None = MAX_BYTES) -> rasterio.DatasetReader:
    # is_file() also keeps out /vsicurl/ and its kin, which driver="GTiff" alone would still contact
    if not path.is_file():
        raise ValueError(f"{path.name}: missing")
    try:
        file = rasterio.open(path, driver="GTiff")
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"{path.name}: not a readable GeoTIFF ({damage(error, path)})") from None
    decoded = file.width * file.height * sum(np.dtype(dtype).itemsize for dtype in file.dtypes)
    fault = ""
    if most is not None and decoded > most:
        fault = f"{_by(file.shape)} x {file.count} bands decode to {decoded / 2**30:.0f} GiB; cut it into patches first"
    elif np.dtype(file.dtypes[0]).kind not in "uif":
        fault = f"pixels are {file.dtypes[0]}, expected integers or real numbers"
    elif file.tags(ns="OVERVIEWS"):  # GDAL would open it, by any driver, for whoever reads at a coarser size
        fault = "its metadata name another file for its overviews; write it again without"
    if fault:
        file.close()
        raise ValueError(f"{path.name}: {fault}")
    return file


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def damage(error: Exception, path: Path) -> str:
    """What GDAL says of a file, in one short line."""
    text = " ".join(str(error.__cause__ or error).split()).replace(str(path), path.name)
    return text if len(text) < 160 else text[:157] + "..."
