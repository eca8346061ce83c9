"""SSL4EO-S12 v1.0 as downloaded, with NoLDO-S12 labels.

    s1/<id>/<S1 product>/{VV,VH}.tif      s2c/<id>/<S2 product>/{B1,...,B12,B8A}.tif
    dw_noisy_labels/<id>/<S2 product>/label.tif      dw_complete_ids.csv: id,sub1,...,sub4

One single-band file a band at its native size: 10 m bands 264 x 264, 20 m 132, 60 m 44. The coarse bands are brought to
the 10 m grid bilinearly, pixel centre to pixel centre, extent on extent, as the authors did; labels go by nearest.
The two sensors have other product names and dates (up to a month apart): seasons pair in the order of their dates, which
is not that of Sentinel-1's names (S1A before S1B), or by name where a name tells no date.
The 8-bit release (`*_uint8_jpeg_tif`) is the same tree with uint8 files that hold the mean +- 2 std codes.
"""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from cromss.data.raster import Raster, raster_size, read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import Scene, folders, metadata_texts, product_texts
from cromss.data.sources.noldo import STAMP, NoldoLabelled
from cromss.sensors import SENTINEL1, SENTINEL2

_FINEST = "B2"
_COARSER = (1, 2, 6)  # 10, 20, 60 m


class Ssl4eo(NoldoLabelled):
    """SSL4EO-S12 v1.0 (also its 8-bit release) with NoLDO-S12 Dynamic World labels"""

    kind: Literal["ssl4eo"] = "ssl4eo"
    eight_bit: ClassVar[bool] = True
    # the 60 m grid, the 10 m grid and Sentinel-1 snap to the ground each in their own way, up to half a coarse pixel
    tolerance: ClassVar[float] = 6.0

    def locations(self) -> list[Location]:
        """The ids of the csv where there is one, else all ids that have optical images and labels."""
        optical = {folder.name for folder in folders(self.path / "s2c")}
        if (listed := self.listed()) is not None:
            found = [Location(place, handle=seasons) for place, seasons in sorted(listed.items())]
            found = found if any(location.id in optical for location in found) else []
        else:
            labelled = {folder.name for folder in folders(self.labels_folder)}
            found = [Location(place) for place in sorted(optical & labelled)]
        if not found:
            raise ValueError(f"{self.path}: no id has both s2c/<id> and a label in {self.labels_folder}")
        return found

    def acquisitions(self, location: Location) -> list[tuple[str, tuple[Path, Path, Path]]]:
        """(S2 product, (s1 folder, s2 folder, label file)) of every season."""
        if not (self.path / "s1" / location.id).is_dir():
            raise ValueError("no Sentinel-1: its folder below s1/ is missing")
        if not (self.path / "s2c" / location.id).is_dir():
            raise ValueError("no Sentinel-2: its folder below s2c/ is missing")
        radar = _in_time(folders(self.path / "s1" / location.id))
        optical = _in_time(folders(self.path / "s2c" / location.id))
        if len(radar) != len(optical):
            raise ValueError(f"seasons do not pair: {len(radar)} of Sentinel-1, {len(optical)} of Sentinel-2")
        pairs = {s2.name: (s1, s2) for s1, s2 in zip(radar, optical, strict=True)}
        seasons = location.handle or sorted(pairs)
        if unknown := [season for season in seasons if season not in pairs]:
            raise ValueError(f"the csv names seasons that s2c/ lacks: {', '.join(unknown)}")
        return [
            (season, (*pairs[season], self.labels_folder / location.id / season / "label.tif"))
            for season in sorted(seasons)
        ]

    def load(self, location: Location, handle: tuple[Path, Path, Path]) -> Scene:
        """Reads the 2 + 13 + 1 files of a season."""
        return _scene(*handle, decode=True)

    def outline(self, location: Location, handle: tuple[Path, Path, Path]) -> Scene:
        """Their headers."""
        return _scene(*handle, decode=False)

    def parts(self, location: Location, handle: tuple[Path, Path, Path]) -> list[Path]:
        """The 2 + 13 + 1 files."""
        radar, optical, label = handle
        return [
            *(radar / f"{band}.tif" for band in SENTINEL1.bands),
            *(optical / f"{band}.tif" for band in SENTINEL2.bands),
            label,
        ]


def _in_time(products: list[Path]) -> list[Path]:
    stamps = {product: found[0] for product in products if (found := STAMP.search(product.name))}
    return sorted(products, key=stamps.__getitem__) if len(stamps) == len(products) else products


def _scene(radar: Path, optical: Path, label: Path, decode: bool) -> Scene:
    size = raster_size(optical / f"{_FINEST}.tif")
    s2 = _stack(optical, SENTINEL2.bands, size, decode)
    return Scene(
        s1=_stack(radar, SENTINEL1.bands, size, decode),
        s2=s2,
        label=_label(label, size, decode),
        product=[*metadata_texts(optical), *product_texts(s2, optical.name)],
    )


def _stack(folder: Path, bands: tuple[str, ...], size: tuple[int, int], decode: bool) -> Raster:
    layers = [
        read_raster(folder / f"{band}.tif", counts=[1], size=size, coarser=_COARSER, smooth=True, decode=decode)
        for band in bands
    ]
    finest = layers[bands.index(_FINEST)] if _FINEST in bands else layers[0]
    if len({layer.pixels.dtype for layer in layers}) > 1:
        raise ValueError(f"{folder.name}: bands of several pixel types")
    pixels = np.concatenate([layer.pixels for layer in layers]) if decode else _blank(finest.pixels, len(bands))
    return replace(finest, pixels=pixels, names=bands)


def _blank(pixels: np.ndarray, bands: int) -> np.ndarray:
    return np.broadcast_to(pixels[:1], (bands, *pixels.shape[1:]))


def _label(file: Path, size: tuple[int, int], decode: bool) -> Raster:
    native = raster_size(file)
    label = read_raster(file, counts=[1], size=size if native != size else None, decode=decode)
    if native != size and not label.georeferenced:
        raise ValueError(
            f"label.tif: {native[0]}x{native[1]} where {size[0]}x{size[1]} belong, and it says not where it lies"
        )
    return label
