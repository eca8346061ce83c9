"""A plain tree: `<location>/<acquisition>/{s1,s2,label}.tif`, one multi-band file each. Acquisitions sort by name."""

from pathlib import Path
from typing import Literal

import pydantic

from cromss import landcover
from cromss.data.raster import read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene, folders, product_texts


class GeoTiffTree(ImagerySource):
    """`<location>/<acquisition>/{s1,s2,label}.tif`"""

    kind: Literal["geotiff"] = "geotiff"
    label: str = pydantic.Field("label.tif", description="file name of the label beside s1.tif and s2.tif")
    scheme: str = pydantic.Field("dynamic-world", description=f"label scheme: {', '.join(landcover.SCHEMES)}")

    @pydantic.field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        return landcover.scheme(value).name

    @pydantic.field_validator("label")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if Path(value).name != value:
            raise ValueError(f"label={value}: must be a file name, for example label.tif")
        return value

    def locations(self) -> list[Location]:
        """The sub-folders that hold an acquisition."""
        found = [Location(folder.name, handle=folder) for folder in folders(self.path) if folders(folder)]
        if not found:
            raise ValueError(f"{self.path}: holds no <location>/<acquisition>/s1.tif, s2.tif, {self.label}")
        return found

    def acquisitions(self, location: Location) -> list[tuple[str, Path]]:
        """Its sub-folders, by name."""
        return [(folder.name, folder) for folder in folders(location.handle)]

    def load(self, location: Location, handle: Path) -> Scene:
        """Reads the three files of an acquisition."""
        return self._scene(location, handle, decode=True)

    def outline(self, location: Location, handle: Path) -> Scene:
        """Their headers."""
        return self._scene(location, handle, decode=False)

    def parts(self, location: Location, handle: Path) -> list[Path]:
        """The three files."""
        return [handle / "s1.tif", handle / "s2.tif", handle / self.label]

    def _scene(self, location: Location, handle: Path, decode: bool) -> Scene:
        s2 = read_raster(handle / "s2.tif", decode=decode)
        return Scene(
            s1=read_raster(handle / "s1.tif", decode=decode),
            s2=s2,
            label=read_raster(handle / self.label, counts=[1], decode=decode),
            product=product_texts(s2, handle.name, location.id),
        )
