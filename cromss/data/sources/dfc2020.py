"""DFC2020 as it comes from IEEE DataPort: `ROIs0000_{validation,test}/{s1,s2,dfc}_*/ROIs0000_*_{s1,s2,dfc}_0_p<i>.tif`.

Found at any depth (copies add wrapping folders and `__MACOSX`). The challenge's validation set is for fine-tuning: it
becomes the split `train`; the challenge's test set becomes `test`.
"""

import os
import re
from pathlib import Path
from typing import ClassVar, Literal

from cromss.data.raster import read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene, product_texts

_FILE = re.compile(r"ROIs\d+_(validation|test)_s2_(.+)\.tif")
_SPLIT = {"validation": "train", "test": "test"}


class Dfc2020(ImagerySource):
    """DFC2020 (IEEE DataPort): validation set -> train, test set -> test"""

    kind: Literal["dfc2020"] = "dfc2020"
    scheme: ClassVar[str] = "dfc2020"
    encoding: ClassVar[str] = "raw"

    def locations(self) -> list[Location]:
        """One location a patch, wherever it lies below the folder."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such folder")
        found: dict[str, Location] = {}
        for folder, below, files in os.walk(self.path):
            below[:] = sorted(name for name in below if not name.startswith((".", "__")))
            for name in sorted(files):
                match = _FILE.fullmatch(name)
                if match and not name.startswith("."):
                    place = f"{match[1]}_{match[2]}"
                    found.setdefault(place, Location(place, _SPLIT[match[1]], Path(folder, name)))
        if not found:
            raise ValueError(f"{self.path}: holds no ROIs0000_{{validation,test}}_s2_*.tif at any depth")
        return sorted(found.values(), key=lambda location: (location.split, _numbers_last(location.id)))

    def acquisitions(self, location: Location) -> list[tuple[str, Path]]:
        """A patch has one date, which the data set does not tell."""
        return [("0", location.handle)]

    def load(self, location: Location, handle: Path) -> Scene:
        """Reads the optical file and its two neighbours."""
        s2 = read_raster(handle)
        return Scene(
            s1=read_raster(_sibling(handle, "s1"), counts=[2]),
            s2=s2,
            label=read_raster(_sibling(handle, "dfc"), counts=[1]),
            product=product_texts(s2),
        )


def _sibling(s2: Path, what: str) -> Path:
    folder = re.sub(r"^s2(?=_|$)", what, s2.parent.name)
    return s2.parent.parent / folder / re.sub(r"_s2_", f"_{what}_", s2.name, count=1)


def _numbers_last(name: str) -> tuple[str, int]:
    head, number = re.fullmatch(r"(.*?)(\d*)", name).groups()
    return head, int(number or 0)
