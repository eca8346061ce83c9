"""A scene to be mapped: one GeoTIFF of each modality, read by windows on one grid, in the units that the network knows.

The grid is Sentinel-2's where there is one. Sentinel-1 on another grid, in another CRS too, is warped to it (bilinear).
What the files mean (band order, unit, the +1000 offset) is settled once, before the first window.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from cromss.data import radiometry
from cromss.data.appearance import TRUE_COLOUR, composite, optical_first
from cromss.data.raster import damage, displacement, opened_raster
from cromss.maps.cog import Grid
from cromss.maps.model import Model
from cromss.maps.windows import Box
from cromss.sensors import sensor
from cromss.settings import Settings

_LOOK = 1024  # pixels a side of the thinned image by which units and offset are told
_TOLERANCE = 0.05  # pixels: transforms of one place can differ in the tenth digit


class Reading(Settings):
    """What the files cannot tell by themselves. `auto`: they are asked, and a doubt is an error.

    s1_order, s2_order   the bands in the order of the file, for files that do not name them
    s1_unit              dB or linear power
    offset               DN to subtract from Sentinel-2 (1000 since processing baseline 04.00)
    any_product          take another processing level than the network was trained on
    """

    s1_order: str = ""
    s2_order: str = ""
    s1_unit: Literal["auto", "dB", "linear"] = "auto"
    offset: Literal["auto", "0", "1000"] = "auto"
    any_product: bool = False


@dataclass(frozen=True)
class Part:
    """One modality's file: `index` = the layers (from 1) that are the network's bands, in its order."""

    modality: str
    path: Path
    index: tuple[int, ...]
    offset: int = 0
    linear: bool = False
    warped: bool = False
    nodata: float | None = None


@dataclass(frozen=True)
class Scene:
    """A scene whose questions are settled; small, and the same in every process."""

    grid: Grid
    parts: tuple[Part, ...]
    texts: tuple[str, ...]  # names and tags, where a date may stand
    notes: tuple[str, ...]  # what was decided, for the user

    @contextlib.contextmanager
    def opened(self) -> Iterator["OpenScene"]:
        """Ready to be read, in one thread."""
        with contextlib.ExitStack() as stack:
            files = {}
            for part in self.parts:
                file = stack.enter_context(opened_raster(part.path))
                files[part.modality] = (part, stack.enter_context(_on_grid(file, part, self.grid)))
            yield OpenScene(self, files)


@dataclass(frozen=True)
class OpenScene:
    """A scene with its files open."""

    scene: Scene
    files: Mapping[str, tuple[Part, Any]]

    def read(self, box: Box) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(modality -> (C, h, w) float32 in the sensor's unit, modality -> (h, w) bool, where there is data). Beyond the
        scene's border it is mirrored. Raises ValueError for a damaged file, by name."""
        inside = box.cut(Box(0, 0, *self.scene.grid.size))
        height, width = inside.size
        images, valid = {}, {}
        for name, (part, file) in self.files.items():
            try:
                pixels = file.read(window=Window(inside.left, inside.top, width, height))
            except RasterioError as error:
                raise ValueError(f"{part.path.name}: damaged or truncated ({damage(error, part.path)})") from None
            physical, there = _physical(pixels, part)
            beyond = (
                (inside.top - box.top, box.bottom - inside.bottom),
                (inside.left - box.left, box.right - inside.right),
            )
            images[name] = np.pad(physical, ((0, 0), *beyond), mode="symmetric")
            valid[name] = np.pad(there, beyond, mode="symmetric")
        return images, valid

    def thinned(self, shape: tuple[int, int], bands: Mapping[str, tuple[str, ...]]) -> list[tuple[str, np.ndarray]]:
        """(title, (h, w, 3) uint8) of every modality for human eyes; `bands` = names of the network's bands, by modality."""
        shown = []
        for name in optical_first(self.files):
            part, file = self.files[name]
            few = tuple(TRUE_COLOUR) if set(TRUE_COLOUR) <= set(bands[name]) else bands[name]
            layers = [part.index[bands[name].index(band)] for band in few]
            pixels = file.file.read(layers, out_shape=(len(layers), *shape), resampling=Resampling.nearest)
            physical, there = _physical(pixels, replace(part, index=tuple(layers)))
            shown.append((sensor(name).title, composite(name, few, physical, there)))
        return shown


def survey(files: Mapping[str, Path], model: Model, reading: Reading) -> Scene:
    """Look at the files of one scene and settle what they mean. Raises ValueError, naming the file, for everything that
    would make the map wrong: missing bands, another unit or product, no overlap, no pixel with data."""
    if unknown := [name for name in files if name not in model.modalities]:
        raise ValueError(
            f"{files[unknown[0]].name}: is given as {unknown[0]}, the network of {model.path} knows "
            f"{' and '.join(model.modalities)} only"
        )
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(opened_raster(path)) for name, path in files.items()}
        leading = "s2" if "s2" in files else next(iter(files))
        grid = _grid_of(opened[leading])
        parts, texts, notes = [], [], []
        for name, file in opened.items():
            own = (files[name].name, *file.tags().values())
            _check_product(files[name], own, model, name, reading)
            part = _bands(files[name], file, name, model, reading)
            part = replace(part, warped=name != leading and _needs_warping(file, files[name], grid, files[leading]))
            part, told = _settled(part, file, own, reading)
            parts, texts, notes = [*parts, part], [*texts, *own], [*notes, *told]
            if part.warped:
                notes.append(f"{name} warped to the grid of {leading} (bilinear)")
    return Scene(grid, tuple(parts), tuple(texts), tuple(notes))


def _grid_of(file: rasterio.DatasetReader) -> Grid:
    return Grid(file.crs.to_wkt() if file.crs else "", tuple(file.transform[:6]), file.shape)


def _bands(path: Path, file: rasterio.DatasetReader, name: str, model: Model, reading: Reading) -> Part:
    names = tuple(description or "" for description in file.descriptions)
    stated = {"s2": reading.s2_order}.get(name, reading.s1_order)
    wanted = model.bands(name)
    if (
        not stated
        and len(names) == len(wanted) < len(sensor(name).bands)
        and not radiometry.names_bands(sensor(name), names)
    ):
        raise ValueError(
            f"{path.name}: {len(names)} unnamed bands; the network reads {', '.join(wanted)}; if they are these, say so: "
            f"--{name[:2]}-order {','.join(wanted)}"
        )
    try:
        order = radiometry.band_order(sensor(name), names, stated)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if missing := [band for band in wanted if band not in order]:
        raise ValueError(
            f"{path.name} lacks {name} {', '.join(missing)}; it holds {', '.join(filter(None, order))}; the network of "
            f"{model.path} was trained on {', '.join(wanted)}"
        )
    if np.dtype(file.dtypes[0]) == np.uint8:
        raise ValueError(
            f"{path.name}: holds 8-bit values, expected {'DN (reflectance x 10000)' if name == 's2' else 'dB'}"
        )
    return Part(name, path, tuple(order.index(band) + 1 for band in wanted), nodata=file.nodata)


def _check_product(path: Path, texts: tuple[str, ...], model: Model, name: str, reading: Reading) -> None:
    contract = model.contract(name)
    if name != "s2" or contract is None or reading.any_product:
        return
    for level, other in (("L1C", "L2A"), ("L2A", "L1C")):
        if level in contract.product and any(f"MSI{other}" in text or text == f"Level-{other[1:]}" for text in texts):
            raise ValueError(
                f"{path.name} is Sentinel-2 {other}, the network of {model.path} was trained on {contract.product}: the same "
                f"band names are other numbers there; --any-product maps it all the same"
            )


def _needs_warping(file: rasterio.DatasetReader, path: Path, grid: Grid, leading: Path) -> bool:
    if not file.crs or not grid.crs:
        if file.shape == grid.size:
            return False
        raise ValueError(
            f"{path.name if not file.crs else leading.name}: has no CRS, so {path.name} ({file.height}x{file.width}) cannot "
            f"be brought to the grid of {leading.name} ({grid.size[0]}x{grid.size[1]})"
        )
    crs = rasterio.CRS.from_string(grid.crs)
    same = file.crs == crs and file.shape == grid.size
    if same and displacement(grid.transform, tuple(file.transform[:6]), grid.size) <= _TOLERANCE:
        return False
    if not _meet(_bounds(grid), _through(file, crs)):
        raise ValueError(f"{path.name} and {leading.name} do not overlap: they cover different ground")
    return True


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    """West, south, east, north of any grid, turned ones too."""
    a, b, c, d, e, f = grid.transform
    height, width = grid.size
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, width) for y in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _through(file: rasterio.DatasetReader, crs: rasterio.CRS) -> tuple[float, float, float, float]:
    own = _bounds(_grid_of(file))
    try:
        return transform_bounds(file.crs, crs, *own)
    except RasterioError:
        return (math.inf,) * 4  # not to be seen from there at all


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@contextlib.contextmanager
def _on_grid(file: rasterio.DatasetReader, part: Part, grid: Grid) -> Iterator[Any]:
    """The layers of the file, as a dataset on the grid."""
    if not part.warped:
        yield _Layers(file, part.index)
        return
    # Gaps are marked by the file's nodata value, else by 0 in all bands: they must not bleed into what lies beside them.
    marked = part.nodata is not None and part.nodata != 0
    gap = part.nodata if marked else 0.0
    height, width = grid.size
    with WarpedVRT(
        file, crs=grid.crs, transform=rasterio.Affine(*grid.transform), height=height, width=width,
        resampling=Resampling.bilinear, src_nodata=gap, nodata=gap, UNIFIED_SRC_NODATA="NO" if marked else "YES",
        dtype="float32", warp_mem_limit=64,
    ) as warped:  # fmt: skip
        yield _Layers(warped, part.index)


@dataclass(frozen=True)
class _Layers:
    """All layers are read, so that a gap is one in any of them; the wanted come first."""

    file: Any
    index: tuple[int, ...]

    def read(self, **how: Any) -> np.ndarray:
        rest = [layer for layer in range(1, self.file.count + 1) if layer not in self.index]
        return self.file.read([*self.index, *rest], **how)


def _physical(pixels: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """(bands, h, w) float32 in the sensor's unit, and where there is data."""
    valid = radiometry.has_data(pixels, part.nodata)
    wanted = pixels[: len(part.index)]
    if part.linear:
        wanted = radiometry.decibel(wanted)
        valid &= np.isfinite(wanted).all(axis=0)
    return radiometry.remove_offset(wanted.astype(np.float32), part.offset), valid


def _settled(
    part: Part, file: rasterio.DatasetReader, texts: tuple[str, ...], reading: Reading
) -> tuple[Part, list[str]]:
    """The unit and the offset, told by a thinned image of the whole scene."""
    shape = (file.count, *(min(side, _LOOK) for side in file.shape))
    try:
        pixels = file.read(out_shape=shape, resampling=Resampling.nearest)
    except RasterioError as error:
        raise ValueError(f"{part.path.name}: damaged or truncated ({damage(error, part.path)})") from None
    valid = radiometry.has_data(pixels, file.nodata)
    if not valid.any():
        raise ValueError(f"{part.path.name}: has no pixel with data")
    try:
        if part.modality == "s2":
            return _optical(part, file, pixels[:, valid], texts, reading)
        return _radar(part, file, pixels[:, valid], reading)
    except ValueError as error:
        raise ValueError(f"{part.path.name}: {error}") from None


def _optical(
    part: Part, file: rasterio.DatasetReader, values: np.ndarray, texts: tuple[str, ...], reading: Reading
) -> tuple[Part, list[str]]:
    radiometry.check_reflectance(values[[layer - 1 for layer in part.index]])
    names = tuple(description or "" for description in file.descriptions)
    order = radiometry.band_order(sensor("s2"), names, reading.s2_order)
    baselines = (radiometry.processing_baseline(text) for text in texts)
    offset, told = radiometry.decide_offset(
        baseline=next((number for number in baselines if number is not None), None),
        b10=values[order.index("B10")] if "B10" in order else None,
        stated=None if reading.offset == "auto" else int(reading.offset),
    )
    return replace(part, offset=offset), [f"s2 offset: {f'{offset} removed' if offset else 'none'}, {told}"]


def _radar(part: Part, file: rasterio.DatasetReader, values: np.ndarray, reading: Reading) -> tuple[Part, list[str]]:
    own = values[[layer - 1 for layer in part.index]]
    if linear := reading.s1_unit == "linear":
        radiometry.check_power(own)
        own = radiometry.decibel(own)
    named = radiometry.names_bands(sensor(part.modality), [description or "" for description in file.descriptions])
    if len(own) == 2 and np.isfinite(own).any():
        radiometry.check_backscatter(
            *own[:, np.isfinite(own).all(axis=0)],
            order_known=bool(reading.s1_order) or named,
            unit_known=reading.s1_unit != "auto",
        )
    return replace(part, linear=linear), [f"{part.modality}: linear power to dB"] if linear else []
