"""What the pixels of a store look like: counted while it is written, merged shard by shard."""

from typing import Any

import numpy as np

from cromss.sensors import sensor
from cromss.settings import Settings

CODES = 256


class BandStatistics(Settings):
    """One band of one split. `mean` to `maximum` in the sensor's unit, over the pixels with data; `patch_std` = standard
    deviation of the patches' means; `histogram` = pixels per 8-bit code (mean +- 2 std), whatever the encoding."""

    band: str
    pixels: int
    mean: float
    std: float
    minimum: float
    maximum: float
    patch_std: float
    histogram: tuple[int, ...]


class Tally(Settings):
    """Sums over one modality of some patches; two of them can be added. A row of `sums` is a band's pixels, sum, sum of
    squares, minimum, maximum, sum of the patches' means and of their squares."""

    modality: str
    bands: tuple[str, ...]
    patches: int = 0
    sums: tuple[tuple[float, ...], ...] = ()
    histogram: tuple[tuple[int, ...], ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        assert (self.modality, self.bands) == (other.modality, other.bands)
        if not self.patches or not other.patches:
            return self if self.patches else other
        ours, theirs = np.array(self.sums), np.array(other.sums)
        merged = ours + theirs
        merged[:, 3] = np.minimum(ours[:, 3], theirs[:, 3])
        merged[:, 4] = np.maximum(ours[:, 4], theirs[:, 4])
        counts = np.array(self.histogram) + np.array(other.histogram)
        return self.model_copy(
            update={
                "patches": self.patches + other.patches,
                "sums": tuple(map(tuple, merged.tolist())),
                "histogram": tuple(map(tuple, counts.tolist())),
            }
        )

    def finish(self) -> tuple[BandStatistics, ...]:
        """The statistics of what was counted."""
        found = []
        for band, row, counts in zip(self.bands, self.sums, self.histogram, strict=True):
            pixels, total, squares, low, high, means, squared_means = row
            mean, patch_mean = total / max(pixels, 1), means / max(self.patches, 1)
            found.append(
                BandStatistics(
                    band=band,
                    pixels=int(pixels),
                    mean=mean,
                    std=float(np.sqrt(max(squares / max(pixels, 1) - mean**2, 0.0))),
                    minimum=low,
                    maximum=high,
                    patch_std=float(np.sqrt(max(squared_means / max(self.patches, 1) - patch_mean**2, 0.0))),
                    histogram=counts,
                )
            )
        return tuple(found)


class Counter:
    """Counts patches of one modality as they come."""

    def __init__(self, modality: str, bands: tuple[str, ...]):
        self._card, self.bands = sensor(modality), bands
        self._sums = np.zeros((len(bands), 7))
        self._sums[:, 3], self._sums[:, 4] = np.inf, -np.inf
        self._histogram = np.zeros((len(bands), CODES), np.int64)
        self._patches = 0

    def add(self, pixels: np.ndarray, codes: np.ndarray, valid: np.ndarray | None) -> None:
        """Physical values and 8-bit codes (C,H,W); `valid` (H,W) bool, None = everywhere."""
        values = pixels.reshape(len(pixels), -1)
        flat = codes.reshape(len(codes), -1)
        if valid is not None:
            inside = valid.ravel()
            values, flat = values[:, inside], flat[:, inside]
        if not values.shape[1]:
            return
        self._patches += 1
        for band, (row, coded) in enumerate(zip(values, flat, strict=True)):
            self._histogram[band] += np.bincount(coded, minlength=CODES)
            row = row.astype(np.float64)
            if not np.isfinite(row).all():
                row = row[np.isfinite(row)]
                if not row.size:
                    continue
            mean = row.mean()
            new = self._sums[band]
            new[:3] += row.size, row.sum(), np.dot(row, row)
            new[3:5] = min(new[3], row.min()), max(new[4], row.max())
            new[5:] += mean, mean**2

    def tally(self) -> Tally:
        """What was counted so far."""
        if not self._patches:
            return Tally(modality=self._card.name, bands=self.bands)
        finite = np.where(np.isfinite(self._sums), self._sums, 0.0)
        return Tally(
            modality=self._card.name,
            bands=self.bands,
            patches=self._patches,
            sums=tuple(map(tuple, finite.tolist())),
            histogram=tuple(map(tuple, self._histogram.tolist())),
        )


def merged(tallies: list[dict[str, Any]]) -> dict[str, tuple[BandStatistics, ...]]:
    """modality -> statistics of the sum of several shards' tallies (each modality -> Tally)."""
    names = list(dict.fromkeys(name for one in tallies for name in one))
    sums: dict[str, Tally] = {}
    for name in names:
        for one in tallies:
            if name in one:
                sums[name] = sums[name] + one[name] if name in sums else one[name]
    return {name: tally.finish() for name, tally in sums.items() if tally.patches}
