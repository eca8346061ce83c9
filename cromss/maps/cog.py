"""Cloud-Optimised GeoTIFFs that a GIS opens as they are: colours, class names, units, nodata, overviews."""

import contextlib
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from cromss.data.raster import opened_raster
from cromss.landcover import IGNORE, Scheme
from cromss.whole import written_whole

BLOCK = 512
GDAL_ERRORS = (RasterioError, CPLE_BaseError)  # what rasterio raises, of its own or straight from GDAL
_ALPHA, _UNSPECIFIED = 2, 0  # values of the tag ExtraSamples
_EXTRA_SAMPLES = 338


@dataclass(frozen=True)
class Band:
    """One band: physical value = scale * stored value. `unit` "1" is a pure number."""

    name: str
    unit: str = ""
    scale: float = 1.0
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: CRS as WKT, EPSG:... or "", affine a b c d e f, size (H, W)."""

    crs: str
    transform: tuple[float, ...]
    size: tuple[int, int]


def write_cog(
    path: Path,
    pixels: np.ndarray,
    grid: Grid,
    bands: Sequence[Band],
    *,
    nodata: float | None,
    scheme: Scheme | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write (C, H, W) as a COG; with a `scheme` the first band (uint8) holds its classes, with colours and names. The file
    appears whole or not at all. Raises ValueError where there is no room."""
    with MemoryFile() as memory:
        with memory.open(**profile(grid, len(bands), pixels.dtype, nodata)) as file:
            describe(file, bands, scheme, tags)
            file.write(pixels)
        with memory.open() as file:
            as_cog(file, path, scheme)


def profile(grid: Grid, count: int, dtype: Any, nodata: float | None) -> dict[str, Any]:
    """What rasterio needs to create the plain GeoTIFF that `as_cog` turns into a COG."""
    height, width = grid.size
    georeference = {"crs": grid.crs, "transform": rasterio.Affine(*grid.transform[:6])} if grid.crs else {}
    return {
        "driver": "GTiff", "height": height, "width": width, "count": count, "dtype": np.dtype(dtype).name,
        "nodata": nodata, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "zlevel": 1,
        "interleave": "band", "bigtiff": "if_safer", **georeference,
    }  # fmt: skip


def describe(
    file: rasterio.io.DatasetWriter, bands: Sequence[Band], scheme: Scheme | None, tags: Mapping[str, str] | None
) -> None:
    """Everything but the pixels; before the first of them is written, or GDAL would move them."""
    if scheme is not None:
        colours = scheme.rgb(np.arange(len(scheme))).tolist()
        file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(colours)} | {IGNORE: (0, 0, 0, 0)})
        file.update_tags(1, **{f"CLASS_{number}": name for number, name in enumerate(scheme.classes)})
    file.descriptions = tuple(band.name for band in bands)
    file.units = tuple(band.unit or None for band in bands)
    file.scales = tuple(band.scale for band in bands)
    for number, band in enumerate(bands, start=1):
        file.update_tags(number, **band.tags)
    file.update_tags(**(tags or {}))


def as_cog(source: rasterio.DatasetReader, path: Path, scheme: Scheme | None = None) -> None:
    """A GeoTIFF, copied as a COG; class names in `<path>.aux.xml`, where GDAL and QGIS look for them. The file appears whole
    or not at all. Raises ValueError where there is no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        with rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_NUM_THREADS="ALL_CPUS"):
            rasterio.shutil.copy(
                source, aside, driver="COG", compress="DEFLATE", level=6, blocksize=BLOCK, overview_resampling="NEAREST",
                bigtiff="IF_SAFER",
            )  # fmt: skip
        with reopened(aside) as copy:
            _require_equal(source, copy)
        if scheme is not None:
            _no_transparency(aside)
            with written_aside(path.with_name(f"{path.name}.aux.xml")) as side_car:
                side_car.write_bytes(_categories(scheme))


@contextlib.contextmanager
def reopened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A GeoTIFF that was just written. Raises OSError where it cannot be opened: a full disk, then."""
    try:
        with opened_raster(path) as file:
            yield file
    except ValueError as error:
        raise OSError(f"not all of it reached the disk: {error}") from None


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """`written_whole`, for what GDAL writes too. Raises ValueError, naming the file, for what the disk or GDAL say."""
    aside = path
    try:
        with written_whole(path) as aside:
            yield aside
    except (OSError, *GDAL_ERRORS) as error:
        said = " ".join(str(error.__cause__ or error).replace(str(aside), path.name).split())
        raise ValueError(f"{path}: cannot be written ({said}); nothing was left under that name") from None


# --- what GDAL does not do --------------------------------------------------------------------------------------------


def _require_equal(one: rasterio.DatasetReader, other: rasterio.DatasetReader) -> None:
    """Raises OSError where two files differ in a pixel: GDAL does not always say so when a disk is full."""
    side = 8 * BLOCK
    for top in range(0, one.height, side):
        for left in range(0, one.width, side):
            window = Window(left, top, min(side, one.width - left), min(side, one.height - top))
            pixels = one.read(window=window)
            if not np.array_equal(pixels, other.read(window=window), equal_nan=pixels.dtype.kind == "f"):
                raise OSError("not all of it reached the disk; is it full?")


def _no_transparency(path: Path) -> None:
    """GDAL declares the second band of a file with a colour table to be its alpha channel, whatever it is told, and a GIS
    would draw an uncertainty as transparency. The tag is changed where it stands, in every overview too."""
    with open(path, "r+b") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack(f"{order}H", head[2:4])[0] == 43
        count_format, entry_size, pointer = ("Q", 20, "Q") if big else ("H", 12, "I")
        (offset,) = struct.unpack(f"{order}{pointer}", head[8:16] if big else head[4:8])
        while offset:
            file.seek(offset)
            (entries,) = struct.unpack(f"{order}{count_format}", file.read(struct.calcsize(count_format)))
            start = file.tell()
            for position in range(start, start + entries * entry_size, entry_size):
                file.seek(position)
                (tag,) = struct.unpack(f"{order}H", file.read(2))
                value = position + (12 if big else 8)
                file.seek(value)
                if tag == _EXTRA_SAMPLES and struct.unpack(f"{order}H", file.read(2))[0] == _ALPHA:
                    file.seek(value)
                    file.write(struct.pack(f"{order}H", _UNSPECIFIED))
            file.seek(start + entries * entry_size)
            (offset,) = struct.unpack(f"{order}{pointer}", file.read(struct.calcsize(pointer)))


def _categories(scheme: Scheme) -> bytes:
    """GDAL's side-car: a raster attribute table (what QGIS reads), category names (what everything else does) and the colours
    again, which a TIFF of more than two bands cannot hold."""
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    ET.SubElement(band, "ColorInterp").text = "Palette"
    colours = ET.SubElement(band, "ColorTable")
    for number in range(IGNORE + 1):
        known = scheme.rgb(np.array(number)).tolist() if number < len(scheme) else [0, 0, 0]
        values = (*known, 255 if number < len(scheme) else 0)
        ET.SubElement(colours, "Entry", {f"c{place}": str(value) for place, value in enumerate(values, start=1)})
    names = ET.SubElement(band, "CategoryNames")
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    # type: 0 integer, 2 text; usage: 5 value (MinMax), 2 name, 6 7 8 red green blue, as GDAL numbers them
    for index, (title, kind, usage) in enumerate(
        (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    ):
        field = ET.SubElement(table, "FieldDefn", index=str(index))
        for name, value in (("Name", title), ("Type", kind), ("Usage", usage)):
            ET.SubElement(field, name).text = str(value)
    for number, name in enumerate(scheme.classes):
        ET.SubElement(names, "Category").text = name
        row = ET.SubElement(table, "Row", index=str(number))
        for value in (number, name, *scheme.rgb(np.array(number)).tolist()):
            ET.SubElement(row, "F").text = str(value)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"
