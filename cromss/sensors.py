"""Sentinel-1 and Sentinel-2: band names, their order, units and scaling constants. Names, never indices."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from cromss.settings import suggest


@dataclass(frozen=True)
class Sensor:
    """One modality. `mean` and `std` are the SSL4EO-S12 statistics in the sensor's unit, one per band."""

    name: str
    title: str
    unit: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    subsets: dict[str, tuple[str, ...]]

    def select(self, wanted: str | Iterable[str]) -> tuple[str, ...]:
        """Band names of a named subset (`all`, `9`, ...) or of an explicit list, which keeps its order.

        Raises ValueError for a band this sensor lacks, listing the valid names.
        """
        if isinstance(wanted, (str, int)):
            if str(wanted) in self.subsets:
                return self.subsets[str(wanted)]
            wanted = str(wanted).split(",")
        names = tuple(str(band).strip() for band in wanted)
        for band in names:
            if band not in self.bands:
                raise ValueError(
                    f"{self.title} has no band {band!r}{suggest(band, self.bands)}; subsets: {', '.join(self.subsets)}"
                )
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"{self.title} bands {','.join(names)}: name at least one band, each once")
        return names

    def indices(self, bands: Iterable[str]) -> list[int]:
        """Positions of `bands` in this sensor's own order."""
        return [self.bands.index(band) for band in self.select(bands)]

    def interval(self, bands: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """(low, width) per band, float32 (C,), of the 8-bit encoding: low = mean - 2 std, width = 4 std (reference 6)."""
        index = self.indices(bands)
        mean, std = np.asarray(self.mean)[index], np.asarray(self.std)[index]
        return (mean - 2 * std).astype(np.float32), (4 * std).astype(np.float32)

    def encode(self, pixels: np.ndarray, bands: Iterable[str]) -> np.ndarray:
        """Physical values (..., C, H, W) to uint8: clip(255 (x - (mean - 2 std)) / (4 std), 0, 255), truncated."""
        low, width = self.interval(bands)
        scaled = 255 * (pixels.astype(np.float32) - low[:, None, None]) / width[:, None, None]
        return np.nan_to_num(np.clip(scaled, 0, 255)).astype(np.uint8)

    def decode(self, codes: np.ndarray, bands: Iterable[str]) -> np.ndarray:
        """uint8 codes (..., C, H, W) back to physical values, float32, at the lower edge of each code's step."""
        low, width = self.interval(bands)
        return codes.astype(np.float32) / 255 * width[:, None, None] + low[:, None, None]


_S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")

SENTINEL1 = Sensor(
    name="s1",
    title="Sentinel-1",
    unit="dB",
    bands=("VV", "VH"),
    mean=(-12.54847273, -20.19237134),
    std=(5.25697717, 5.91150917),
    subsets={"all": ("VV", "VH"), "2": ("VV", "VH")},
)
SENTINEL2 = Sensor(
    name="s2",
    title="Sentinel-2 L1C",
    unit="DN",  # top-of-atmosphere reflectance x 1e4, offset of baseline 04.00 removed
    bands=_S2_BANDS,
    mean=(1605.57504906, 1390.78157673, 1314.8729939, 1363.52445545, 1549.44374991, 2091.74883118, 2371.7172463,
          2299.90463006, 2560.29504086, 830.06605044, 22.10351321, 2177.07172323, 1524.06546312),
    std=(786.78685367, 850.34818441, 875.06484736, 1138.84957046, 1122.17775652, 1161.59187054, 1274.39184232,
         1248.42891965, 1345.52684884, 577.31607053, 51.15431158, 1336.09932639, 1136.53823676),
    subsets={
        "all": _S2_BANDS,
        "13": _S2_BANDS,
        "12": tuple(band for band in _S2_BANDS if band != "B10"),
        "9": ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B11", "B12"),
        "3": ("B4", "B3", "B2"),
    },
)  # fmt: skip

# The other orbit's view of the same ground, hours or days apart: a modality of its own. The paper knows one view; its
# statistics serve both.
SENTINEL1_DESCENDING = replace(SENTINEL1, name="s1d", title="Sentinel-1 descending")

SENSORS: dict[str, Sensor] = {sensor.name: sensor for sensor in (SENTINEL1, SENTINEL2, SENTINEL1_DESCENDING)}


def sensor(name: str) -> Sensor:
    """The sensor of that modality name. Raises ValueError listing the known ones."""
    if name not in SENSORS:
        raise ValueError(f"modality {name!r}: unknown{suggest(name, SENSORS)}")
    return SENSORS[name]
