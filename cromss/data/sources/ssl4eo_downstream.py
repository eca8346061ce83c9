"""SSL4EO-S12@DW and SSL4EO-S12@OSM, downstream sets with labels of Dynamic World and OpenStreetMap.

    [data_s12/]{dw,osm}_{train,test}/image_s1/s1_<key>.tif   image_s2/s2_<key>.tif
                                    label_dw/dw_<key>.tif    label_osm/osm_<key>.tif

DW labels hold Dynamic World classes plus one, 0 and 10 unmarked; of a file of several bands the second is the label.
OSM labels hold 13 classes from 1, 0 unmarked.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from cromss.data.raster import Raster, read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene, product_texts

_SPLITS = ("test", "train")


class Ssl4eoDownstream(ImagerySource):
    """SSL4EO-S12@DW or @OSM, `data_s12/{dw,osm}_{train,test}/`"""

    kind: Literal["ssl4eo-downstream"] = "ssl4eo-downstream"
    encoding: ClassVar[str] = "raw"

    labels: Literal["dw", "osm"] = pydantic.Field("dw", description="dw: Dynamic World's 9 classes; osm: 13 classes")

    @property
    def scheme(self) -> str:
        """Dynamic World as coded here, or OpenStreetMap."""
        return {"dw": "ssl4eo-dw", "osm": "osm"}[self.labels]

    def locations(self) -> list[Location]:
        """One location a key: all keys of any of the three folders, by split. A key is a name within its split."""
        root = self.path / "data_s12" if (self.path / "data_s12").is_dir() else self.path
        found = []
        for split in _SPLITS:
            folder = root / f"{self.labels}_{split}"
            keys = {key for what in ("s1", "s2", self.labels) for key in _keys(folder, what)}
            found += [Location(f"{split}_{key}", split, (str(folder), key)) for key in sorted(keys)]
        if not found:
            raise ValueError(
                f"{self.path}: holds no {self.labels}_train/ or {self.labels}_test/ with image_s2/s2_<key>.tif and "
                f"label_{self.labels}/{self.labels}_<key>.tif"
            )
        return found

    def acquisitions(self, location: Location) -> list[tuple[str, tuple[str, str]]]:
        """A patch has one date, which the data set does not tell."""
        return [("0", location.handle)]

    def load(self, location: Location, handle: tuple[str, str]) -> Scene:
        """Reads the three files of a key."""
        folder, key = Path(handle[0]), handle[1]
        s2 = read_raster(_file(folder, "s2", key))
        label = read_raster(_file(folder, self.labels, key), counts=[1] if self.labels == "osm" else None)
        return Scene(
            s1=read_raster(_file(folder, "s1", key), counts=[2]),
            s2=s2,
            label=_second(label),
            product=product_texts(s2, key),
        )


def _folder(split: Path, what: str) -> Path:
    return split / (f"image_{what}" if what in ("s1", "s2") else f"label_{what}")


def _file(split: Path, what: str, key: str) -> Path:
    return _folder(split, what) / f"{what}_{key}.tif"


def _keys(split: Path, what: str) -> set[str]:
    folder = _folder(split, what)
    try:
        names = os.listdir(folder) if folder.is_dir() else ()
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror})") from None
    return {match[1] for name in names if (match := re.fullmatch(rf"{what}_(.+)\.tif", name))}


def _second(label: Raster) -> Raster:
    return label if len(label.pixels) == 1 else replace(label, pixels=label.pixels[1:2])
