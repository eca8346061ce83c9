"""SSL4EO-S12 v1.1, the release of zarr files, with NoLDO-S12 labels.

    {train,val}/{S1GRD,S2L1C}/ssl4eos12_*_seasonal_data_000001.zarr.zip       64 locations, four seasons each
    dw_noisy_labels/<id>/<S2 product>/label.tif      dw_complete_ids.csv: id,sub1,...,sub4

Each file is a zarr v2 group with, among others,

    bands (sample, time, band, y, x)     int16 DN + 1000, or float16 dB of VV and VH
    sample (sample)                      the location's id in v1.0
    file_id, time_ (sample, time)        product and date of an image
    crs (sample), x_, y_ (sample, .)     UTM zone as an EPSG number, pixel centres in metres
    cloud_mask (sample, time, y, x)      0 land ... 5 cloud shadow, 6 no data: the last is used

What differs from v1.0 and is seen to here:
- Images lie on the 10 m grid of their UTM zone, labels on v1.0's grid of degrees: labels are brought over by nearest.
- Sentinel-1 is stored in the order of product names, S1A before S1B, while its `time_` is sorted: the date that counts
  is the one in `file_id` (issue 4 of the release's repository). Both sensors are sorted by it, and pair by order.
- DN carry +1000. B10 shows it (no value below 1000 without it), so that copies that were corrected are read right too.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject

from cromss.data.radiometry import OFFSET
from cromss.data.raster import Affine6, Raster, centre, read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import Scene, folders, read_label
from cromss.data.sources.noldo import STAMP, NoldoLabelled
from cromss.data.zarr_zip import ZarrZip, open_zarr_zip
from cromss.landcover import DYNAMIC_WORLD, IGNORE

_RADAR, _OPTICAL = "S1GRD", "S2L1C"
_NO_DATA = 6  # of cloud_mask
_PRODUCT = re.compile(r"[\w.-]{1,120}")
_SINCE = re.compile(
    r"(day|hour|minute|second|millisecond|microsecond|nanosecond)s? since (\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d:\d\d))?"
)
_UNITS = dict(day="D", hour="h", minute="m", second="s", millisecond="ms", microsecond="us", nanosecond="ns")  # noqa: C408
_ASTRAY = 0.05  # degrees between the stated centre and the grid's: twice the size of an image


@dataclass(frozen=True)
class _Image:
    """Where one image lies: position in `time` of a row of an archive. `stamp` = `20201116T023001`, "" if not told."""

    archive: Path
    row: int
    time: int
    product: str
    stamp: str

    @property
    def date(self) -> str:
        return self.stamp[:8]


@dataclass(frozen=True)
class _Season:
    radar: _Image
    optical: _Image
    label: Path


class Ssl4eoV11(NoldoLabelled):
    """SSL4EO-S12 v1.1 (zarr.zip) with NoLDO-S12 Dynamic World labels"""

    kind: Literal["ssl4eo-v1.1"] = "ssl4eo-v1.1"

    level: Literal["L1C", "L2A"] = pydantic.Field("L1C", description="processing level of Sentinel-2; L2A is refused")
    part: Literal["all", "train", "val"] = pydantic.Field("all", description="which of the release's two parts to read")

    @pydantic.field_validator("level")
    @classmethod
    def _top_of_atmosphere(cls, value: str) -> str:
        if value == "L2A":
            raise ValueError(
                "level=L2A: a store's Sentinel-2 is L1C, top of the atmosphere, 13 bands with the statistics of L1C; "
                "L2A (surface reflectance, no B10) would be scaled and named as what it is not. Read --level L1C"
            )
        return value

    def locations(self) -> list[Location]:
        """The samples of all archives that have labels (and stand in the csv, where there is one), by id; then what
        could not be listed, to be skipped with its reason. Raises ValueError also when two archives hold one sample."""
        parts = ("train", "val") if self.part == "all" else (self.part,)
        archives = [
            file
            for part in parts
            for file in sorted((self.path / part / _OPTICAL).glob("*.zarr.zip"))
            if not file.name.startswith(".")
        ]
        if not archives:
            raise ValueError(f"{self.path}: holds no {{{','.join(parts)}}}/{_OPTICAL}/*.zarr.zip")
        listed = self.listed()
        wanted = set(listed) if listed is not None else {folder.name for folder in folders(self.labels_folder)}
        found: dict[str, Location] = {}
        faults: list[Location] = []
        for archive in archives:
            try:
                samples = _ids(open_zarr_zip(archive))
            except (ValueError, OSError) as error:
                faults.append(Location(f"{archive.parts[-3]}/{archive.name}", handle=str(error)))
                continue
            for row, place in enumerate(samples):
                if place not in wanted:
                    continue
                if place in found:
                    raise ValueError(
                        f"{found[place].handle[0]} and {archive} both hold sample {place}; keep one of them"
                    )
                found[place] = Location(place, handle=(archive, row, listed[place] if listed else None))
        if not found and not faults:
            raise ValueError(
                f"{self.path}: no sample of its {len(archives)} archives has a label in {self.labels_folder}"
            )
        return [found[place] for place in sorted(found)] + faults

    def acquisitions(self, location: Location) -> list[tuple[str, _Season | str]]:
        """(S2 product, where its images and its label lie, or why there is none) in order of time."""
        if isinstance(location.handle, str):
            raise ValueError(location.handle)
        archive, row, chosen = location.handle
        beside = archive.parents[1] / _RADAR / archive.name
        samples = _ids(open_zarr_zip(beside))
        if location.id not in samples:
            raise ValueError(f"no Sentinel-1: {_RADAR}/{beside.name} lacks sample {location.id}")
        optical, radar = _images(archive, row), _images(beside, samples.index(location.id))
        if len(optical) != len(radar):
            raise ValueError(f"seasons do not pair: {len(radar)} of Sentinel-1, {len(optical)} of Sentinel-2")
        labels = self.labels_folder / location.id
        if not labels.is_dir():
            raise ValueError("no label: its folder is missing")
        products = _pair(optical, [folder.name for folder in folders(labels)])
        found: list[tuple[str, _Season | str]] = []
        for one, two, product in zip(radar, optical, products, strict=True):
            if product is None:
                if not chosen:
                    found.append((two.product, f"no label: {labels.name}/ has no product of {two.date}, or several"))
            elif not chosen or product in chosen:
                found.append((product, _Season(one, two, labels / product / "label.tif")))
        for product in sorted(set(chosen or ()) - {name for name, _ in found}):
            found.append((product, "the csv names this season, for which there is no image with a label"))
        return found

    def load(self, location: Location, handle: _Season | str) -> Scene:
        """Reads one season of one sample of two archives, and its label."""
        if isinstance(handle, str):
            raise ValueError(handle)
        s2 = _raster(handle.optical)
        return Scene(s1=_raster(handle.radar), s2=s2, label=_on_grid(read_raster(handle.label, counts=[1]), s2))


def _ids(archive: ZarrZip) -> list[str]:
    """The v1.0 ids of an archive's samples. Raises ValueError for what is no id."""
    samples = [str(name) for name in archive.read("sample").ravel().tolist()]
    if bad := [name for name in samples if not re.fullmatch(r"\d{1,7}", name, re.ASCII)]:
        raise ValueError(f"{archive.path.name}: sample {ascii(bad[0])[:40]} is no id of SSL4EO-S12")
    ids = [f"{int(name):07d}" for name in samples]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{archive.path.name}: holds a sample twice")
    return ids


def _images(path: Path, row: int) -> list[_Image]:
    """The images of a sample, by date where all tell it, else as they are stored."""
    archive = open_zarr_zip(path)
    shape = archive.info("bands").shape
    if len(shape) != 5:
        raise ValueError(f"{path.name}: bands has shape {shape}, expected (sample, time, band, y, x)")
    names, stamps = [""] * shape[1], [""] * shape[1]
    if "file_id" in archive:
        names = [str(name) for name in archive.read("file_id", (row,)).tolist()]
        stamps = [found[0] if (found := STAMP.search(name)) else "" for name in names]
    if "time_" in archive and not all(stamps):
        stamps = _stamps(archive, row)
    if not len(names) == len(stamps) == shape[1]:
        raise ValueError(f"{path.name}: bands, file_id and time_ differ in their number of seasons")
    names = [
        name if _PRODUCT.fullmatch(name) else stamp or str(time)
        for time, (name, stamp) in enumerate(zip(names, stamps, strict=True))
    ]
    images = [_Image(path, row, time, names[time], stamps[time]) for time in range(shape[1])]
    return sorted(images, key=lambda image: image.stamp) if all(stamps) else images


def _stamps(archive: ZarrZip, row: int) -> list[str]:
    """`20201116T023001` of a sample's `time_`, which is a date or a count since one; "" where it is neither."""
    times = archive.read("time_", (row,))
    since = _SINCE.match(str(archive.attributes("time_").get("units")))
    unknown = [""] * len(times)
    if times.ndim != 1 or not (times.dtype.kind == "M" or (since and times.dtype.kind in "iu")):
        return unknown
    try:
        if times.dtype.kind != "M":
            start = np.datetime64(f"{since[2]}T{since[3] or '00:00:00'}", "s")
            times = start + times.astype(f"timedelta64[{_UNITS[since[1]]}]")
        texts = np.datetime_as_string(times.astype("datetime64[s]"), unit="s").tolist()
    except (ValueError, OverflowError):
        return unknown
    return [re.sub("[-:]", "", text) if re.match(r"\d{4}-", text) else "" for text in texts]


def _pair(optical: list[_Image], products: list[str]) -> list[str | None]:
    """The label's product of each image: by date where all images and products tell theirs (None: there is no such
    product, or more than one), else by order, for which the numbers must be equal."""
    dates = {product: found[1] for product in products if (found := STAMP.search(product))}
    if not products or len(dates) < len(products) or not all(image.date for image in optical):
        if len(products) != len(optical):
            raise ValueError(f"seasons do not pair: {len(products)} labels, {len(optical)} images, not all with a date")
        return sorted(products)
    paired = []
    for image in optical:
        same = [product for product in products if dates[product] == image.date]
        exact = [product for product in same if product == image.product]
        paired.append((exact or same)[0] if len(exact or same) == 1 else None)
    return [product if paired.count(product) == 1 else None for product in paired]


def _raster(image: _Image) -> Raster:
    """One image with its georeference. Gaps (no data in the cloud mask, or nothing but the offset in every band) are 0
    in all bands."""
    archive = open_zarr_zip(image.archive)
    pixels = archive.read("bands", (image.row, image.time))
    if pixels.dtype.kind not in "iuf":
        raise ValueError(f"{archive.path.name}: bands holds {pixels.dtype}, expected numbers")
    names = archive.read("band").ravel().tolist() if "band" in archive else [""] * len(pixels)
    if len(names) != len(pixels):
        raise ValueError(f"{archive.path.name}: {len(pixels)} bands, {len(names)} names of bands")
    if pixels.dtype == np.float16:
        pixels = pixels.astype(np.float32)  # the same values; statistics of float16 overflow
    if pixels.dtype.kind in "iu":
        gaps = (pixels == OFFSET).all(axis=0)
        if "cloud_mask" in archive:
            clouds = archive.read("cloud_mask", (image.row, image.time))
            if clouds.shape != gaps.shape:
                raise ValueError(f"{archive.path.name}: bands and cloud_mask differ in size")
            gaps |= clouds == _NO_DATA
        pixels[:, gaps] = 0
    crs, transform = _place(archive, image.row, pixels.shape[-2:])
    return Raster(pixels, tuple(map(str, names)), crs, transform)


def _place(archive: ZarrZip, row: int, size: tuple[int, int]) -> tuple[str, Affine6]:
    """CRS and transform from `crs`, `x_` and `y_`; none where one of them is absent."""
    nowhere = "", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    if not all(name in archive for name in ("crs", "x_", "y_")):
        return nowhere
    x, y = (archive.read(name, (row,)).astype(np.float64) for name in ("x_", "y_"))
    if (y.shape, x.shape) != ((size[0],), (size[1],)) or min(size) < 2:
        raise ValueError(f"{archive.path.name}: x_ and y_ do not fit the pixels")
    steps = np.diff(x), np.diff(y)
    a, e = float(steps[0].mean()), float(steps[1].mean())
    even = all(np.allclose(step, mean, rtol=1e-3, atol=0) for step, mean in zip(steps, (a, e), strict=True))
    if not (even and a and e and np.isfinite([a, e]).all()):
        raise ValueError(f"{archive.path.name}: x_ and y_ are not evenly spaced")
    zone = int(_one(archive, "crs", row))
    crs = f"EPSG:{zone}"
    transform = (a, 0.0, float(x[0]) - a / 2, 0.0, e, float(y[0]) - e / 2)
    lon, lat = centre(crs, transform, size) if zone > 0 else (np.nan, np.nan)
    if not np.isfinite([lon, lat]).all():
        raise ValueError(f"{archive.path.name}: {crs} is no CRS that holds these coordinates")
    if "center_lon" in archive and "center_lat" in archive:
        stated = [_one(archive, name, row) for name in ("center_lon", "center_lat")]
        apart = abs((stated[0] - lon + 180) % 360 - 180) * np.cos(np.radians(lat)), abs(stated[1] - lat)
        if not max(apart) <= _ASTRAY:
            raise ValueError(
                f"{archive.path.name}: x_ and y_ lie at {lon:.3f}, {lat:.3f}, center_lon and center_lat "
                f"at {stated[0]:.3f}, {stated[1]:.3f}"
            )
    return crs, transform


def _one(archive: ZarrZip, name: str, row: int) -> float:
    value = archive.read(name, (row,))
    if value.shape or value.dtype.kind not in "iuf" or not np.isfinite(value):
        raise ValueError(f"{archive.path.name}: {name} holds no number for this sample")
    return float(value)


def _on_grid(label: Raster, image: Raster) -> Raster:
    """The label on the image's grid, by nearest, unlabelled where it does not reach. As it is where neither says where
    it lies."""
    if not (label.georeferenced or image.georeferenced):
        return label
    if not (label.georeferenced and image.georeferenced):
        silent = "the label" if image.georeferenced else "the archive"
        raise ValueError(f"{silent} does not say where it lies; v1.0 and v1.1 have other grids, so that must be known")
    numbers = read_label(label, DYNAMIC_WORLD)
    out = np.full(image.size, IGNORE, np.uint8)
    try:
        reproject(
            numbers,
            out,
            src_transform=Affine(*label.transform),
            src_crs=label.crs,
            dst_transform=Affine(*image.transform),
            dst_crs=image.crs,
            dst_nodata=IGNORE,
            resampling=Resampling.nearest,
            tolerance=0,
        )
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"label.tif: cannot be brought to the image's grid ({error})") from None
    if (numbers != IGNORE).any() and (out == IGNORE).all():
        raise ValueError("label.tif: lies elsewhere than the image")
    return Raster(out[None], ("",), image.crs, image.transform)
