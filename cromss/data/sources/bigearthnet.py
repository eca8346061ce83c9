"""BigEarthNet v2.0 (reBEN) as downloaded, and copies in its style.

    BigEarthNet-S1/<S1 product>/<S1 patch>/<S1 patch>_{VV,VH}.tif
    BigEarthNet-S2/<S2 product>/<S2 patch>/<S2 patch>_{B01,...,B12,B8A}.tif
    Reference_Maps/<S2 product>/<S2 patch>/<S2 patch>_reference_map.tif
    metadata.parquet: patch_id, s1_name, split, ...

A patch may as well lie in a folder of its own without the product's, and its bands may be one stacked file
`<patch>.tif`. Stacked Sentinel-1 without band names is taken as VH,VV (what sorting the files by name gives), checked by
its statistics; stacked Sentinel-2 without band names needs `--s2-order`, for both B8A behind B08 and B8A last are common.
BigEarthNet v1.0 has no reference maps, thus nothing to segment.

Location and time: a patch is a place in a tile (`_T33UUP_26_57`) at one date. Dates of the same place are acquisitions
of one location, so that folds cannot tear them apart. Splits keep the names of metadata.parquet: train, validation and
test are published as such, and whoever trains on validation patches should have to say so.

Level: Sentinel-2 is L2A, without B10, where everything here is made for L1C. It is refused unless `--level L2A-as-is`
says that surface reflectance is wanted under the names of the L1C bands; every patch then carries the note
`s2_level: L2A`. Stores are raw by default: the 8-bit encoding is scaled for L1C and would saturate B9.

Offset: a processing baseline in the name decides (`_N0204_`). That of the published patches, N9999, tells nothing: it
stands for a local run. They hold no offset (the mean of B2 over the training patches is 438 DN), so without
`--offset` none is removed, provided that some band holds pixels darker than the offset would let them be.

Labels: CORINE codes in the reference maps, read as the nomenclature of 19 classes (scheme `bigearthnet`) or all 44
(scheme `corine`); what the 19 leave out is unlabelled.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pydantic

from cromss.data import radiometry
from cromss.data.raster import Raster, read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene, product_texts
from cromss.data.sources.layers import stack
from cromss.data.sources.products import LEVEL_HELP, Level, accept_level, baseline_of, level_of
from cromss.sensors import SENTINEL1, SENTINEL2, Sensor

_PATCH = re.compile(r"(\w+)_T(\d\d[A-Z]{3}_\d+_\d+)")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # names from the metadata become paths
_DARK = 700  # DN; with the offset, the darkest percent of a band stays near 1000 or above it


class BigEarthNet(ImagerySource):
    """BigEarthNet v2.0 with its CORINE reference maps; Sentinel-2 is L2A"""

    kind: Literal["bigearthnet"] = "bigearthnet"
    encoding: ClassVar[str] = "raw"
    tolerance: ClassVar[float] = 0.5  # the sensors were cut to the same patches, in two generations of the data set

    bands: str = pydantic.Field("12", description="Sentinel-2 bands to keep: 12, 9, 3, or names B4,B3,B2")
    scheme: Literal["bigearthnet", "corine"] = pydantic.Field(
        "bigearthnet", description="label scheme: bigearthnet (19 classes) or corine (44)"
    )
    level: Level = pydantic.Field("L1C", description=LEVEL_HELP)
    metadata: Path | None = pydantic.Field(
        None, description="parquet of patch_id, s1_name, split; default SRC/metadata.parquet"
    )

    def locations(self) -> list[Location]:
        """Places of the metadata, by name. Raises ValueError also when they are L2A and that was not asked for."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such folder")
        places: dict[str, list[tuple[str, str, str]]] = {}
        for row in _rows(self.metadata or self.path / "metadata.parquet"):
            named = _PATCH.fullmatch(row[0])
            places.setdefault(named[2] if named else row[0], []).append(row)
        if not places:
            raise ValueError(f"{self.path}: its metadata names no patch")
        try:
            accept_level("L2A" if any(_level(row[0]) == "L2A" for rows in places.values() for row in rows) else "L1C",
                         self.level)  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        return [Location(place, rows[0][2], tuple(rows)) for place, rows in sorted(places.items())]

    def acquisitions(self, location: Location) -> list[tuple[str, tuple[str, str]]]:
        """(S2 product, (S2 patch, S1 patch)) by date."""
        found: dict[str, tuple[str, str]] = {}
        splits = sorted({split for _, _, split in location.handle})
        if len(splits) > 1 or not splits[0]:
            raise ValueError(f"the metadata put it into {' and '.join(splits) if splits[-1] else 'no split'}")
        for s2, s1, _ in location.handle:
            named = _PATCH.fullmatch(s2)
            if found.setdefault(named[1] if named else "0", (s2, s1)) != (s2, s1):
                raise ValueError(f"the metadata pair {s2} with several of Sentinel-1")
        return sorted(found.items(), key=lambda item: (re.findall(r"\d{8}T\d{6}", item[0])[:1], item[0]))

    def load(self, location: Location, handle: tuple[str, str]) -> Scene:
        """Reads the 2 + 12 + 1 files of a patch, fewer where bands are stacked."""
        patch, radar = handle
        for name in handle:
            if not _PLAIN.fullmatch(name):
                raise ValueError(f"the metadata name {name!r}, which is no patch")
        s2 = self._optical(patch)
        product = product_texts(s2, patch)
        return Scene(
            s1=self._radar(radar),
            s2=s2,
            label=read_raster(self._file("Reference_Maps", patch, "_reference_map"), counts=[1]),
            product=product,
            offset=self._offset(s2, product),
            notes=accept_level(_level(patch), self.level),
        )

    def _optical(self, patch: str) -> Raster:
        folder, wanted = "BigEarthNet-S2", SENTINEL2.select(self.bands)
        if (stacked := self._file(folder, patch)).is_file():
            return read_raster(stacked)
        files = {band: self._file(folder, patch, f"_{_padded(band)}") for band in SENTINEL2.bands}
        files = {band: file for band, file in files.items() if band in wanted or file.is_file()}
        return _in_order(files, SENTINEL2, self.s2_order)

    def _radar(self, patch: str) -> Raster:
        folder, stated = "BigEarthNet-S1", "" if self.s1_order == "auto" else self.s1_order
        if not (stacked := self._file(folder, patch)).is_file():
            files = {band: self._file(folder, patch, f"_{band}") for band in SENTINEL1.bands}
            return _in_order(files, SENTINEL1, stated)
        raster = read_raster(stacked, counts=[2])
        if stated or radiometry.names_bands(SENTINEL1, raster.names):
            return raster
        decibel = radiometry.decibel(raster.pixels) if self.s1_unit == "linear" else raster.pixels
        vh, vv = decibel[:, radiometry.has_data(decibel, raster.nodata)]
        if vv.size and np.median(vv.astype(np.float64) - vh) < -1:
            raise ValueError(
                "s1: the first of two unnamed bands is the brighter one, as if in VV,VH order, where stacked copies "
                "hold VH,VV; state it with --s1-order VV,VH (or --s1-order VH,VV)"
            )
        return replace(raster, names=("VH", "VV"))

    def _offset(self, s2: Raster, product: list[str]) -> tuple[int, str] | None:
        """What the data set itself tells where names do not; None = decide as for any other imagery."""
        if self.offset != "auto" or baseline_of(product) is not None or "B10" in s2.names:
            return None
        present = s2.pixels[:, radiometry.has_data(s2.pixels, s2.nodata)]
        if present.size and np.percentile(present, 1, axis=1).min() >= _DARK:
            raise ValueError(
                f"no processing baseline, and no band with pixels below {_DARK} DN to show that there is no +1000 "
                "offset; state it with --offset 0 or --offset 1000"
            )
        return 0, "by dark pixels"

    def _file(self, kind: str, patch: str, suffix: str = "") -> Path:
        """Where a file of a patch lies, or would lie as published."""
        product = patch.rsplit("_", 3 if kind == "BigEarthNet-S1" else 2)[0]
        name, root = f"{patch}{suffix}.tif", self.path / kind
        folders = (root / product / patch, root / patch, root / product, root)
        return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """(patch_id, s1_name, split) of every row, "" where one is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        raise ValueError(f"{file}: missing; it pairs the patches of the two sensors and tells their splits")
    try:
        columns = [pq.read_table(file, columns=[name])[name].to_pylist() for name in ("patch_id", "s1_name", "split")]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{file}: is no parquet of patch_id, s1_name, split ({str(error).splitlines()[0]})") from None
    return [tuple(str(cell or "") for cell in row) for row in zip(*columns, strict=True)]


def _in_order(files: dict[str, Path], sensor: Sensor, stated: str) -> Raster:
    """Files that name their band, in the stated order where there is one: it shall not rename them."""
    bands = sensor.select(stated) if stated else tuple(files)
    if missing := [band for band in bands if band not in files]:
        raise ValueError(f"{sensor.name}: no file of {', '.join(missing)}")
    return stack([files[band] for band in bands], bands)


def _padded(band: str) -> str:
    """B01 of B1."""
    return re.sub(r"^B(\d)$", r"B0\1", band)


def _level(patch: str) -> str:
    return level_of([patch]) or "L2A"  # as published, where a copy has other names
