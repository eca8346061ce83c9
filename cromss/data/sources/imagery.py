"""What all GeoTIFF layouts share: from the three rasters of an acquisition to a checked Patch, or a reason."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from cromss import landcover
from cromss.contract import physical
from cromss.data import radiometry
from cromss.data.patch import Patch
from cromss.data.raster import Raster, centre, check_same_grid, displacement
from cromss.data.sources.base import Location, Skipped, Source, Survey
from cromss.landcover import IGNORE, Scheme
from cromss.sensors import SENTINEL1, SENTINEL2, sensor

PRODUCTS = {"L2A": "Sentinel-2 L2A"}  # by the note `s2_level`; without one it is the sensor's usual product


@dataclass(frozen=True)
class Scene:
    """One acquisition as read. `product` = texts that may tell the processing baseline (names, tags); `offset` = (DN to
    subtract, what told so) where the layout decides it itself; `notes` = what the layout did, for Patch.notes."""

    s1: Raster
    s2: Raster
    label: Raster
    product: list[str] = field(default_factory=list)
    offset: tuple[int, str] | None = None
    notes: dict[str, str] = field(default_factory=dict)


class ImagerySource(Source):
    """Reads Sentinel-1, Sentinel-2 and a label from GeoTIFFs. A subclass finds them: `acquisitions` and `load`."""

    path: Path = pydantic.Field(description="the folder to read")
    bands: str = pydantic.Field("all", description="Sentinel-2 bands to keep: all, 12, 9, 3, or names B4,B3,B2")
    offset: Literal["auto", "0", "1000"] = pydantic.Field(
        "auto", description="the DN offset of acquisitions that have neither a processing baseline nor B10 to tell it"
    )
    s1_order: Literal["auto", "VV,VH", "VH,VV"] = pydantic.Field(
        "auto",
        description="band order of Sentinel-1; auto: by the names in the file, else VV,VH, checked by statistics",
    )
    s1_unit: Literal["auto", "dB", "linear"] = pydantic.Field(
        "auto", description="unit of Sentinel-1; auto: dB, checked by statistics"
    )
    s2_order: str = pydantic.Field("", description="band order of Sentinel-2 files that do not name their bands")

    eight_bit: ClassVar[bool] = False  # whether uint8 imagery is the mean +- 2 std encoding of the published releases
    tolerance: ClassVar[float] = 0.1  # pixels by which corners may differ: files of one grid differ by rounding only

    @pydantic.field_validator("bands", "s2_order")
    @classmethod
    def _known_bands(cls, value: str) -> str:
        if value:
            SENTINEL2.select(value)
        return value

    @abstractmethod
    def acquisitions(self, location: Location) -> list[tuple[str, Any]]:
        """(name, handle) in time order. Raises ValueError when the location cannot be read at all."""

    @abstractmethod
    def load(self, location: Location, handle: Any) -> Scene:
        """The rasters of one acquisition. Raises ValueError with the reason when one is missing or unreadable."""

    def outline(self, location: Location, handle: Any) -> Scene | None:
        """`load` from the headers alone (`read_raster(decode=False)`); None where the layout has no cheap way."""
        return None

    def parts(self, location: Location, handle: Any) -> list[Path]:
        """The files that `load` reads; none where the layout does not tell."""
        return []

    def survey(self, location: Location) -> Survey:
        """From headers, where the layout has an `outline` (see Source.survey): all files of every acquisition are there,
        of one grid, with the store's bands, and no 8-bit values where none belong."""
        kept: list[tuple[str, Scene]] = []
        skipped = []
        for acquisition, handle in self.acquisitions(location):
            try:
                if (scene := self.outline(location, handle)) is None:
                    return super().survey(location)
                self._check_outline(scene)
                if kept:
                    self._check_same_place(kept[0][1].s2, scene.s2)
            except (ValueError, OSError) as error:
                skipped.append(Skipped(f"{location.id}/{acquisition}", str(error)))
                continue
            kept.append((acquisition, scene))
        if not kept:
            raise ValueError(skipped[0].reason if skipped else "holds no acquisition")
        first = kept[0][1].s2
        lon, lat = centre(first.crs, first.transform, first.size)
        return Survey(
            acquisitions=tuple(name for name, _ in kept),
            size=first.size,
            lon=lon,
            lat=lat,
            grids=tuple((scene.s2.crs, scene.s2.transform) for _, scene in kept),
            skipped=tuple(skipped),
            digest=_digest([scene for _, scene in kept]),
        )

    def files(self, location: Location, acquisitions: Sequence[str]) -> list[Path]:
        """See Source.files."""
        handles = dict(self.acquisitions(location))
        if gone := [name for name in acquisitions if name not in handles]:
            raise ValueError(f"{location.id}/{gone[0]}: is not there any more")
        return [path for name in acquisitions for path in self.parts(location, handles[name])]

    def read(self, location: Location) -> Iterator[Patch | Skipped]:
        """All acquisitions of one location (see Source.read)."""
        try:
            acquisitions = self.acquisitions(location)
        except (ValueError, OSError) as error:
            yield Skipped(location.id, str(error))
            return
        first: Patch | None = None
        for acquisition, handle in acquisitions:
            try:
                patch = self.patch(location, acquisition, self.load(location, handle))
                if first is not None:
                    self._check_same_place(first, patch)
            except (ValueError, OSError) as error:
                yield Skipped(f"{location.id}/{acquisition}", str(error))
                continue
            first = first or patch
            yield patch

    def read_one(self, location: Location, acquisition: str) -> Patch:
        """One acquisition, without decoding the others. Raises ValueError."""
        for name, handle in self.acquisitions(location):
            if name == acquisition:
                return self.patch(location, name, self.load(location, handle))
        raise ValueError("is not there any more")

    def patch(self, location: Location, acquisition: str, scene: Scene) -> Patch:
        """A checked patch. Raises ValueError with the reason why it cannot be used."""
        self._check_grids(scene)
        notes = dict(scene.notes)
        s1, s1_valid = self._backscatter(scene.s1, notes)
        s2, s2_valid = self._reflectance(scene, notes)
        valid = s1_valid & s2_valid
        if not valid.any():
            raise ValueError("no pixel has data in both Sentinel-1 and Sentinel-2")
        crs, transform = scene.s2.crs, scene.s2.transform
        lon, lat = centre(crs, transform, scene.s2.size)
        return Patch(
            patch_id=f"{location.id}/{acquisition}",
            location_id=location.id,
            acquisition=acquisition,
            images={"s1": s1, "s2": s2},
            contracts={
                "s1": physical("s1", SENTINEL1.bands),
                "s2": physical("s2", SENTINEL2.select(self.bands), PRODUCTS.get(notes.get("s2_level", ""), "")),
            },
            label=read_label(scene.label, landcover.scheme(self.scheme)),
            valid=None if valid.all() else valid,
            split=location.split,
            crs=crs,
            transform=transform,
            lon=lon,
            lat=lat,
            notes=notes,
        )

    def _check_grids(self, scene: Scene) -> None:
        check_same_grid(scene.s2, scene.s1, "s2 and s1", self.tolerance)
        check_same_grid(scene.s2, scene.label, "s2 and label", self.tolerance)

    def _check_outline(self, scene: Scene) -> None:
        self._check_grids(scene)
        for name, raster, stated, wanted in (
            ("s1", scene.s1, "" if self.s1_order == "auto" else self.s1_order, SENTINEL1.bands),
            ("s2", scene.s2, self.s2_order, SENTINEL2.select(self.bands)),
        ):
            order = radiometry.band_order(sensor(name), raster.names, stated)
            radiometry.pick(raster.pixels[:, :1, :1], order, wanted)
            self._coded(raster.pixels, name)

    def _backscatter(self, raster: Raster, notes: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
        order = radiometry.band_order(SENTINEL1, raster.names, "" if self.s1_order == "auto" else self.s1_order)
        pixels = radiometry.pick(raster.pixels, order, SENTINEL1.bands)
        if self._coded(pixels, "s1"):
            notes["s1"] = "8-bit codes"
            return radiometry.from_codes(pixels, SENTINEL1, SENTINEL1.bands), np.ones(raster.size, bool)
        valid = radiometry.has_data(pixels, raster.nodata)
        if self.s1_unit == "linear":
            radiometry.check_power(pixels[:, valid])
            pixels = radiometry.decibel(pixels)
            valid &= np.isfinite(pixels).all(axis=0)
            notes["s1"] = "linear power to dB"
        if not valid.any():
            raise ValueError("s1 has no pixel with data")
        radiometry.check_backscatter(
            *pixels[:, valid],
            order_known=self.s1_order != "auto" or radiometry.names_bands(SENTINEL1, raster.names),
            unit_known=self.s1_unit != "auto",
        )
        return pixels, valid

    def _reflectance(self, scene: Scene, notes: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
        raster = scene.s2
        order = radiometry.band_order(SENTINEL2, raster.names, self.s2_order)
        wanted = SENTINEL2.select(self.bands)
        pixels = radiometry.pick(raster.pixels, order, wanted)
        if self._coded(pixels, "s2"):
            notes["s2"] = "8-bit codes"
            return radiometry.from_codes(pixels, SENTINEL2, wanted), np.ones(raster.size, bool)
        valid = radiometry.has_data(raster.pixels, raster.nodata)
        if not valid.any():
            raise ValueError("s2 has no pixel with data")
        radiometry.check_reflectance(pixels[:, valid])
        baselines = (radiometry.processing_baseline(text) for text in scene.product)
        offset, told = scene.offset or radiometry.decide_offset(
            baseline=next((number for number in baselines if number is not None), None),
            b10=raster.pixels[order.index("B10")][valid] if "B10" in order else None,
            stated=None if self.offset == "auto" else int(self.offset),
        )
        notes["s2_offset"] = f"{offset} removed, {told}" if offset else f"none, {told}"
        return radiometry.remove_offset(pixels, offset), valid

    def _coded(self, pixels: np.ndarray, name: str) -> bool:
        if pixels.dtype != np.uint8:
            return False
        if not self.eight_bit:
            unit = "dB" if name == "s1" else "DN (reflectance x 10000)"
            raise ValueError(f"{name} holds 8-bit values, expected {unit}")
        return True

    def _check_same_place(self, first: Patch | Raster, other: Patch | Raster) -> None:
        if other.size != first.size:
            raise ValueError(
                f"{other.size[0]}x{other.size[1]} pixels, the location's first acquisition has "
                f"{first.size[0]}x{first.size[1]}"
            )
        if first.crs and other.crs:
            apart = displacement(first.transform, other.transform, first.size) if first.crs == other.crs else np.inf
            if not apart <= max(1.0, self.tolerance):
                raise ValueError("lies on another grid (CRS or transform) than the location's first acquisition")


def read_label(raster: Raster, scheme: Scheme) -> np.ndarray:
    """Class numbers (H, W) uint8. The file's nodata value is unlabelled unless the scheme has a class of that value
    (files marked nodata = 0 whose class 0 is water are common).

    Raises ValueError for values outside the scheme, naming them.
    """
    (values,) = raster.pixels
    unlabelled = np.zeros(values.shape, bool)
    if values.dtype.kind == "f":
        unlabelled |= ~np.isfinite(values)
        values = np.where(unlabelled, 0, values)
        if (values % 1).any():
            raise ValueError("label holds fractions, expected class numbers")
        values = values.astype(np.int64)
    if raster.nodata is not None and raster.nodata not in scheme.codes:
        unlabelled |= values == raster.nodata
    label = scheme.read(np.where(unlabelled, min(scheme.codes), values))
    label[unlabelled] = IGNORE
    return label


def _digest(scenes: list[Scene]) -> str:
    """Of all that headers say."""
    said = [
        [raster.pixels.shape, raster.pixels.dtype.str, raster.names, raster.crs, raster.transform, str(raster.nodata)]
        for scene in scenes
        for raster in (scene.s1, scene.s2, scene.label)
    ]
    texts = [[scene.product, scene.offset] for scene in scenes]
    return hashlib.sha256(json.dumps([said, texts]).encode()).hexdigest()[:16]


def product_texts(raster: Raster, *names: str) -> list[str]:
    """Where a processing baseline may stand: folder names, then the tags of a file."""
    return [*names, *raster.tags.values()]


def metadata_texts(folder: Path) -> list[str]:
    """The processing baseline and product name of a `metadata.json` as Earth Engine writes it, where there is one."""
    file = folder / "metadata.json"
    if not file.is_file() or file.stat().st_size > 2**20:
        return []
    try:
        properties = json.loads(file.read_text())["properties"]
        return [str(properties[key]) for key in ("PROCESSING_BASELINE", "PRODUCT_ID") if key in properties]
    except (ValueError, KeyError, TypeError):
        return []


def folders(path: Path) -> list[Path]:
    """Sub-folders in order of name; hidden ones and `__MACOSX` are left out. Raises ValueError when `path` is no
    readable folder."""
    try:
        found = [child for child in path.iterdir() if child.is_dir()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    return sorted(child for child in found if not child.name.startswith((".", "__")))
