"""The band and unit contract: what the numbers of one modality mean, from the source to the exported encoder.

A contract is written by ingest into the store's manifest and into every shard, by training into its checkpoints and into
the card of every encoder. Each hand-over compares the two sides and refuses by name.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pydantic

from cromss.sensors import sensor
from cromss.settings import Settings

Encoding = Literal["uint8", "raw"]


class Contract(Settings):
    """One modality's bands in the order of their axis, and physical value = offset + scale * stored value, per band.

    `product` names the sensor and processing level; `unit` is the physical values'. `mean` and `std` describe the data
    (training split, physical values), empty where nobody measured them.
    """

    modality: str
    product: str
    bands: tuple[str, ...]
    unit: str
    encoding: Encoding
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @pydantic.model_validator(mode="after")
    def _one_value_a_band(self) -> "Contract":
        sensor(self.modality).select(self.bands)
        for name in ("scale", "offset"):
            if len(getattr(self, name)) != len(self.bands):
                raise ValueError(
                    f"{self.modality}: {len(getattr(self, name))} values of {name} for {len(self.bands)} bands"
                )
        return self

    @classmethod
    def of(cls, modality: str, bands: Iterable[str], encoding: Encoding, product: str = "") -> "Contract":
        """How this project stores those bands: codes of mean +- 2 std, or the sensor's own values. `product` where it is
        another than the sensor's usual one: the same band names of another processing level are other numbers."""
        card = sensor(modality)
        bands = card.select(bands)
        low, width = card.interval(bands)
        coded = encoding == "uint8"
        return cls(
            modality=modality,
            product=product or card.title,
            bands=bands,
            unit=card.unit,
            encoding=encoding,
            scale=tuple((width.astype(float) / 255).tolist()) if coded else (1.0,) * len(bands),
            offset=tuple(low.astype(float).tolist()) if coded else (0.0,) * len(bands),
        )

    @property
    def digest(self) -> str:
        """Of everything it says, statistics included; 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]

    def select(self, bands: Sequence[str], owner: str) -> "Contract":
        """Of some of its bands, in that order. Raises ValueError naming what `owner` lacks and holds."""
        if missing := [band for band in bands if band not in self.bands]:
            raise ValueError(
                f"{owner} lacks {self.modality} {', '.join(missing)}; it holds {', '.join(self.bands)} ({self.product})"
            )
        index = [self.bands.index(band) for band in bands]
        picked = {
            name: tuple(values[i] for i in index)
            for name in ("scale", "offset", "mean", "std")
            if (values := getattr(self, name))
        }
        return self.model_copy(update={"bands": tuple(bands), **picked})

    def measured(self, mean: Sequence[float], std: Sequence[float]) -> "Contract":
        """With the statistics of the data."""
        return self.model_copy(update={"mean": tuple(map(float, mean)), "std": tuple(map(float, std))})

    def stored(self, values: Sequence[float]) -> np.ndarray:
        """Physical values, one a band, on the scale of the stored ones."""
        return (np.asarray(values, float) - self.offset) / self.scale

    def __str__(self) -> str:
        how = "8-bit codes of mean ± 2 std" if self.encoding == "uint8" else "as they are"
        return f"{self.product}: {' '.join(self.bands)} [{self.unit}], {how}"


@functools.lru_cache(maxsize=64)
def physical(modality: str, bands: tuple[str, ...], product: str = "") -> Contract:
    """What a source yields: those bands in the sensor's own unit."""
    return Contract.of(modality, bands, "raw", product)


def require_same(ours: Contract, our_name: str, theirs: Contract, their_name: str, *, encoding: bool = True) -> None:
    """Raises ValueError, listing both sides, unless both mean the same numbers: product, unit, bands and their order, and
    (unless `encoding` is False) scale and offset. Statistics may differ: they are the data's."""
    compared = {"product": "product", "unit": "unit", "bands": "bands (in order)"}
    if encoding:
        compared |= {"encoding": "encoding", "scale": "scale", "offset": "offset"}
    for name, title in compared.items():
        own, other = getattr(ours, name), getattr(theirs, name)
        same = (
            np.allclose(own, other, rtol=1e-5)
            if name in ("scale", "offset") and len(own) == len(other)
            else own == other
        )
        if not same:
            valid = f"; valid names: {', '.join(sensor(ours.modality).bands)}" if name == "bands" else ""
            raise ValueError(
                f"{ours.modality} {title} differ: {our_name} has {_said(own)}, {their_name} has {_said(other)}{valid}"
            )


def drift(ours: Contract, theirs: Contract, limit: float = 2.0) -> list[str]:
    """The bands whose means lie more than `limit` of their standard deviations apart: `B2 (310 beside 1,420 ± 390)`."""
    if not (ours.mean and theirs.mean):
        return []
    found = []
    for band, mean, wanted, spread in zip(ours.bands, ours.mean, theirs.mean, theirs.std, strict=True):
        if abs(mean - wanted) > limit * max(spread, 1e-6):
            found.append(f"{band} ({mean:,.4g} beside {wanted:,.4g} ± {spread:,.3g})")
    return found


def _said(value: object) -> str:
    return (
        ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
        if isinstance(value, tuple)
        else str(value)
    )
