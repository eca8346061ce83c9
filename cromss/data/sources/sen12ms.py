"""SEN12MS as downloaded: its land cover is another noisy label, MODIS at 500 m over images at 10 m.

    ROIs1158_spring/{s1,s2,lc}_<scene>/ROIs1158_spring_{s1,s2,lc}_<scene>_p<patch>.tif

and alike ROIs1868_summer, ROIs1970_fall, ROIs2017_winter, at any depth; the archives of the three sensors may be
unpacked side by side. S1 is VV, VH in dB, clipped; S2 is L1C, 13 bands; of lc's four bands the first (IGBP) is read,
not the three of LCCS. Every season has scenes of its own, so a location is one patch of one date.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pydantic

from cromss.data.raster import read_raster
from cromss.data.sources.base import Location
from cromss.data.sources.imagery import ImagerySource, Scene, product_texts

_SEASON = re.compile(r"ROIs\d{4}_(?:spring|summer|fall|winter)")
_SCENE = re.compile(r"(s1|s2|lc)_(\d+)")
_PATCH = re.compile(r".+_p(\d+)\.tif")
_WHAT = ("s1", "s2", "lc")

Handle = tuple[tuple[str, str, str], int]  # the folders of s1, s2, lc, which a scene's patches share; the number


class Sen12ms(ImagerySource):
    """SEN12MS with its IGBP land cover, `ROIs*_{season}/{s1,s2,lc}_<scene>/*_p<patch>.tif`"""

    kind: Literal["sen12ms"] = "sen12ms"

    labels: Literal["igbp", "igbp-simplified"] = pydantic.Field(
        "igbp", description="igbp: all 17 classes; igbp-simplified: 10, of which the first 8 are those of dfc2020"
    )

    @property
    def scheme(self) -> str:
        """The label scheme has the name of the choice."""
        return self.labels

    def locations(self) -> list[Location]:
        """One location a patch, by season, scene and number. Raises ValueError also when a scene's folder of one
        sensor is found twice."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: no such folder")
        folders: dict[tuple[str, int], dict[str, str]] = {}  # (season, scene) -> sensor -> folder
        patches: dict[tuple[str, int], set[int]] = {}  # of any sensor: what a patch lacks is said when it is read
        for folder, below, files in os.walk(self.path.resolve()):
            below[:] = sorted(name for name in below if not name.startswith((".", "__")))
            season, match = os.path.basename(os.path.dirname(folder)), _SCENE.fullmatch(os.path.basename(folder))
            if not match or not _SEASON.fullmatch(season):
                continue
            scene = season, int(match[2])
            first = folders.setdefault(scene, {}).setdefault(match[1], folder)
            if first != folder:
                raise ValueError(f"one scene lies in two folders: {first} and {folder}; remove one")
            names = (_PATCH.fullmatch(name) for name in files if name.startswith(f"{season}_{match[0]}_"))
            patches.setdefault(scene, set()).update(int(name[1]) for name in names if name)
        found = [
            Location(f"{season}_{scene}_p{number}", handle=(_three(folders[season, scene], scene), number))
            for season, scene in sorted(patches)
            for number in sorted(patches[season, scene])
        ]
        if not found:
            raise ValueError(f"{self.path}: holds no ROIs*_{{season}}/{{s1,s2,lc}}_<scene>/*_p<patch>.tif at any depth")
        return found

    def acquisitions(self, location: Location) -> list[tuple[str, Handle]]:
        """The season of its one date."""
        return [(location.id.split("_")[1], location.handle)]

    def load(self, location: Location, handle: Handle) -> Scene:
        """Reads the three files of a patch."""
        folders, number = handle
        s1, s2, lc = (Path(name, f"{'_'.join(Path(name).parts[-2:])}_p{number}.tif") for name in folders)
        optical, cover = read_raster(s2), read_raster(lc, counts=[4])
        return Scene(
            s1=read_raster(s1, counts=[2]),
            s2=optical,
            label=replace(cover, pixels=cover.pixels[:1]),
            product=product_texts(optical),
        )


def _three(folders: dict[str, str], scene: int) -> tuple[str, ...]:
    """The folders of s1, s2, lc; of a sensor without one, where it would be."""
    beside = os.path.dirname(next(iter(folders.values())))
    return tuple(folders.get(what, os.path.join(beside, f"{what}_{scene}")) for what in _WHAT)
