"""DFC2020, the data of the 2020 IEEE GRSS Data Fusion Contest, in the copies that are about.

A file is known by its name, `ROIs0000_<set>_{s1,s2,dfc}_<scene>_p<i>.tif`, wherever it lies below the folder:

    ROIs0000_validation/s2_validation/ROIs0000_validation_s2_0_p<i>.tif        the contest, from IEEE DataPort,
    ROIs0000_test/s2_0/ROIs0000_test_s2_0_p<i>.tif                             s1_*, s2_*, dfc_* from a zip each
    s2_validation/s2_validation/ROIs0000_validation_s2_0_p<i>.tif              the zips as unpacked: some wrap a folder
    validation_image/..., validation_HR/...                                    other names for those folders
    dfc2020_s1s2/s2/ROIs0000_test_s2_0_p<i>.tif, dfc-{train,val,test}-new.csv  Copernicus-Bench, also through torchgeo
    ROIs0000_winter/s2_MexicoCity/ROIs0000_winter_s2_MexicoCity_p<i>.tif       DFC_Public_Dataset.zip of IEEE DataPort

The contest's validation set (986 patches) is for fine-tuning: it becomes the split `train`; its test set (5,128)
becomes `test`. Copernicus-Bench divides the test set alone into 3,156, 986 and 986; its csv files say how. The public
bundle holds all patches by season and city, under numbers that do not tell the contest's set: all of it is `train`,
to be divided by `--split`. Its lc_* files (MODIS) are not read, nor is GFM-Bench's copy, whose labels are MODIS too.
"""

import filecmp
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from cromss.data.raster import Raster, read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene, product_texts

_FILE = re.compile(
    r"ROIs0000_(validation|test|spring|summer|autumn|winter)_(s1|s2|dfc)_(\w+)_p(\d+)\.(?:tif|tiff|TIF|TIFF)"
)
_CSV = re.compile(r"dfc-(train|val|test)-new\.csv")
_CONTEST = {"validation": "train", "test": "test"}
_WHAT = ("s1", "s2", "dfc")
_NOWHERE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # the transform of files whose place on Earth was taken out

Place = tuple[str, str, int]  # set or season, scene or city, number
Copies = tuple[tuple[str, ...], ...]  # the paths of s1, s2, dfc: none where missing, several where unpacked twice


class Dfc2020(ImagerySource):
    """DFC2020, any copy: contest (validation -> train, test -> test), Copernicus-Bench, public bundle"""

    kind: Literal["dfc2020"] = "dfc2020"
    scheme: ClassVar[str] = "dfc2020"
    encoding: ClassVar[str] = "raw"

    partition: Literal["auto", "contest", "copernicus-bench"] = pydantic.Field(
        "auto",
        description="who divides training and test; auto: Copernicus-Bench where its csv files lie among the patches, "
        "else the contest, whose two sets the published results use",
    )

    def locations(self) -> list[Location]:
        """One location a patch, by set and number. Raises ValueError also when Copernicus-Bench's csv files do not
        divide, or when the contest's sets lie beside the public bundle: the same patches under other names."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such folder")
        found: dict[Place, dict[str, list[str]]] = {}
        tables: dict[str, list[Path]] = {}
        for path in _walk(self.path):
            if match := _FILE.fullmatch(path.name):
                place = match[1], match[3], int(match[4])
                found.setdefault(place, {}).setdefault(match[2], []).append(str(path))
            elif match := _CSV.fullmatch(path.name):
                tables.setdefault(match[1], []).append(path)
        if not found:
            raise ValueError(f"{self.path}: holds no ROIs0000_*_{{s1,s2,dfc}}_*_p*.tif at any depth; unpack its zips")
        if 0 < sum(place[0] in _CONTEST for place in found) < len(found):
            raise ValueError(
                f"{self.path}: holds the contest's sets and the public bundle, which are the same patches under other "
                "names: read one of the two"
            )
        if self.partition == "copernicus-bench" or (self.partition == "auto" and tables):
            splits = _read_tables(self.path, tables)
        else:
            splits = {place: _CONTEST.get(place[0], "train") for place in found}
        return [
            Location(
                id="{}_{}_p{}".format(*place),
                split=splits.get(place, "train"),
                handle=tuple(tuple(found.get(place, {}).get(what, ())) for what in _WHAT) if place in splits else None,
            )
            for place in sorted({*found, *splits})
        ]

    def acquisitions(self, location: Location) -> list[tuple[str, Copies]]:
        """A patch has one date, which the data set does not tell."""
        if location.handle is None:
            raise ValueError("named by none of dfc-train-new.csv, dfc-val-new.csv, dfc-test-new.csv")
        return [("0", location.handle)]

    def load(self, location: Location, handle: Copies) -> Scene:
        """Reads the three files of a patch; a label of several bands by its first."""
        return self._scene(location, handle, decode=True)

    def outline(self, location: Location, handle: Copies) -> Scene:
        """Their headers."""
        return self._scene(location, handle, decode=False)

    def parts(self, location: Location, handle: Copies) -> list[Path]:
        """The three files."""
        return [_the_one(location, what, paths) for what, paths in zip(_WHAT, handle, strict=True)]

    def _scene(self, location: Location, handle: Copies, decode: bool) -> Scene:
        s1, s2, dfc = self.parts(location, handle)
        optical, label = _read(s2, decode=decode), _read(dfc, decode=decode)
        return Scene(
            s1=_read(s1, counts=[2], decode=decode),
            s2=optical,
            label=replace(label, pixels=label.pixels[:1]),
            product=product_texts(optical),
        )


def _walk(root: Path) -> Iterator[Path]:
    """Every file, in a fixed order, but for hidden folders and `__MACOSX`."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        yield from (Path(folder, name) for name in sorted(files))


def _read_tables(root: Path, tables: dict[str, list[Path]]) -> dict[Place, str]:
    """The split of every patch that Copernicus-Bench names, one label file a line."""
    if missing := [f"dfc-{split}-new.csv" for split in ("train", "val", "test") if split not in tables]:
        raise ValueError(f"{root}: lacks {', '.join(missing)} of Copernicus-Bench; or state --partition contest")
    splits: dict[Place, str] = {}
    for split, paths in tables.items():
        for path in paths:
            try:
                lines = path.read_text().split()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: cannot be read ({error})") from None
            for line in lines:
                match = _FILE.fullmatch(line)
                if not match:
                    raise ValueError(f"{path}: {line[:80]!r} is no name like ROIs0000_test_dfc_0_p609.tif")
                place = match[1], match[3], int(match[4])
                if splits.setdefault(place, split) != split:
                    raise ValueError(f"{path}: {line} is in dfc-{splits[place]}-new.csv too")
    return splits


def _the_one(location: Location, what: str, paths: tuple[str, ...]) -> Path:
    """The file, or the first of several that hold the same bytes."""
    if not paths:
        part, rest = location.id.split("_", 1)
        raise ValueError(f"ROIs0000_{part}_{what}_{rest}.tif: missing")
    for other in paths[1:]:
        if not filecmp.cmp(paths[0], other, shallow=False):
            raise ValueError(f"two files of one name differ: {paths[0]} and {other}; remove one")
    return Path(paths[0])


def _read(path: Path, **options) -> Raster:
    raster = read_raster(path, **options)
    return replace(raster, crs="") if raster.transform == _NOWHERE else raster
