"""A guard at the door of a training: do the first patches look like the store they are said to come from?

Compared on the axis of the 8-bit codes, where the store's histogram lies. It catches what no name can: a transport that
delivers zeros, reflectance where DN are meant, an offset that came back, decibels that are power, pixels scaled twice.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from cromss.contract import Contract
from cromss.data.patch import Batch
from cromss.data.statistics import CODES, BandStatistics
from cromss.sensors import sensor

PATCHES = 32  # looked at before the verdict
_ERRORS = 8.0  # standard errors of a mean of so many patches: seasons and regions drawn by chance stay far below
_CODES = 5.0  # allowed beside: truncation, crops
_FLAT = 0.02  # of the store's spread: less is no image


class Sentinel:
    """Looks at the first batches of a run.

    contracts    modality -> what the batches hold
    statistics   modality -> the store's bands, of the split that is read
    places       how many the statistics come from: those of a live store are a sample with an error of its own
    """

    def __init__(
        self, contracts: dict[str, Contract], statistics: dict[str, tuple[BandStatistics, ...]], places: int = 2**31
    ):
        self._contracts, self._places = contracts, places
        self._locations: set[str] = set()
        self._bands = {
            name: [next(one for one in statistics[name] if one.band == band) for band in contract.bands]
            for name, contract in contracts.items()
            if name in statistics
        }
        self._means: dict[str, list[np.ndarray]] = {name: [] for name in self._bands}
        self._squares: dict[str, list[np.ndarray]] = {name: [] for name in self._bands}
        self.done = not self._bands

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches. Raises ValueError, listing both sides, when the first ones (of a short run: all) are not the
        store's."""
        source = iter(batches)
        try:
            for batch in source:
                if not self.done:
                    self.look(batch)
                yield batch
            if not self.done and all(self._means.values()):
                self._judge()
        finally:
            if hasattr(source, "close"):
                source.close()

    def look(self, batch: Batch) -> None:
        """Take a batch into account; the verdict falls after `PATCHES` patches."""
        self._locations |= {patch.split("/")[0] for patch in batch.ids}
        for name in self._bands:
            for row in range(len(batch)):
                codes = self._codes(name, batch, row)
                if codes.shape[1]:
                    self._means[name].append(codes.mean(axis=1))
                    self._squares[name].append((codes**2).mean(axis=1))
        if all(len(means) >= PATCHES for means in self._means.values()):
            self._judge()
            self.done = True

    def _codes(self, name: str, batch: Batch, row: int) -> np.ndarray:
        """(C, pixels with data) float64 on the axis of the codes."""
        contract = self._contracts[name]
        pixels = batch.images[name][row].cpu().numpy()
        if contract.encoding == "raw":
            pixels = sensor(name).encode(pixels, contract.bands)
        flat = pixels.reshape(len(contract.bands), -1).astype(np.float64)
        return flat if batch.valid is None else flat[:, batch.valid[row].cpu().numpy().ravel()]

    def _judge(self) -> None:
        lines, strange = [], []
        # Tiles of one location, and patches beyond those that were asked for, are no independent draws.
        draws = min(len(self._locations), PATCHES)
        errors = _ERRORS * np.sqrt(1 / draws + 1 / self._places)
        for name, bands in self._bands.items():
            means, squares = np.array(self._means[name]), np.array(self._squares[name])
            found, spread = means.mean(axis=0), np.sqrt(np.maximum(squares.mean(axis=0) - means.mean(axis=0) ** 2, 0))
            for band, statistics in enumerate(bands):
                mean, std = _moments(statistics.histogram)
                scale = sensor(name).interval([statistics.band])[1][0] / (CODES - 1)
                tolerance = errors * min(statistics.patch_std / scale, std) + _CODES
                flat = spread[band] < _FLAT * std and std > 1
                if abs(found[band] - mean) > tolerance or flat:
                    strange.append(str(self._contracts[name]))
                    lines.append(
                        f"{name} {statistics.band}: mean {found[band]:.1f} and spread {spread[band]:.1f} on the axis of "
                        f"0 to 255, the store has {mean:.1f} ± {tolerance:.1f} and {std:.1f}"
                    )
        if lines:
            seen = min(len(means) for means in self._means.values())
            more = f"; and {len(lines) - 4} more bands" if len(lines) > 4 else ""
            raise ValueError(
                f"the first {seen} patches are not what the store's statistics say ({'; '.join(lines[:4])}{more}): another "
                f"unit, offset, scaling or band order? The store says {'; '.join(dict.fromkeys(strange))}; look at it with "
                f"python -m cromss.ingest --pictures, or switch this guard off with data.sentinel=false"
            )


def _moments(histogram: Iterable[int]) -> tuple[float, float]:
    """Mean and standard deviation of codes."""
    counts, codes = np.asarray(histogram, float), np.arange(CODES)
    total = max(counts.sum(), 1.0)
    mean = (counts * codes).sum() / total
    return float(mean), float(np.sqrt((counts * (codes - mean) ** 2).sum() / total))
