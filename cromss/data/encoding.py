"""From a patch to a row of a store: checked, encoded, with a checksum for every cell."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cromss import sensors
from cromss.contract import Encoding, physical, require_same
from cromss.data.manifest import MAPS, Layout, checksum, checksum_column, pixel_dtype
from cromss.data.patch import Patch


class RowEncoder:
    """Makes the rows of a store of that layout."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self._contracts = {
            name: physical(name, bands, layout.products.get(name, "")) for name, bands in layout.bands.items()
        }

    def check(self, patch: Patch) -> None:
        """Raises ValueError, naming both sides, when a patch does not fit the store."""
        size = self.layout.size
        self.check_contracts(patch, patch.patch_id)
        for name, contract in self._contracts.items():
            expected = (len(contract.bands), *size)
            if patch.images[name].shape != expected:
                raise ValueError(f"{patch.patch_id}: {name} is {patch.images[name].shape}, this store holds {expected}")
        for what in (patch.label, patch.clean, patch.valid):
            if what is not None and what.shape != size:
                raise ValueError(f"{patch.patch_id}: a map of {what.shape}, this store holds {size}")

    def check_contracts(self, patch: Patch, owner: str) -> None:
        """Raises ValueError, naming the store and `owner`, when a patch of any size lacks a modality, or holds another
        product, unit or bands."""
        if missing := self._contracts.keys() - patch.images.keys():
            raise ValueError(f"{owner} has no {', '.join(sorted(missing))}")
        for name, contract in self._contracts.items():
            brought = patch.contracts.get(name)
            if brought is None:
                raise ValueError(f"{owner} does not say which bands its {name} has")
            require_same(contract, "the store", brought, owner, encoding=False)

    def row(self, patch: Patch, split: str, fold: int, columns: Iterable[str] | None = None) -> dict[str, Any]:
        """Column -> value, all but `slot`; of the cells only those among `columns`, where they are given."""
        names = self.layout.columns if columns is None else [name for name in self.layout.columns if name in columns]
        cells = {name: self._cell(patch, name) for name in names}
        sums = {
            checksum_column(name): None if cell is None else checksum(cell, patch.patch_id)
            for name, cell in cells.items()
        }
        return {
            "patch_id": patch.patch_id,
            "location_id": patch.location_id,
            "tile": patch.tile,
            "acquisition": patch.acquisition,
            "split": split,
            "fold": int(fold),
            **cells,
            **sums,
            "crs": patch.crs,
            "transform": list(patch.transform),
            "lon": patch.lon,
            "lat": patch.lat,
            "notes": json.dumps(patch.notes, sort_keys=True),
        }

    def _cell(self, patch: Patch, name: str) -> bytes | None:
        if name not in MAPS:
            return encoded(name, patch.images[name], self.layout.bands[name], self.layout.encoding)
        if name == "valid":
            return None if patch.valid is None or patch.valid.all() else np.packbits(patch.valid).tobytes()
        pixels = patch.label if name == "label" else patch.clean
        return None if pixels is None else _bytes(pixels, np.uint8)


def encoded(name: str, image: np.ndarray, bands: Sequence[str], encoding: Encoding) -> bytes:
    """Physical values (C,H,W) of a modality as they are stored."""
    card = sensors.sensor(name)
    if encoding == "uint8":
        return card.encode(image, bands).tobytes()
    dtype = pixel_dtype(name, "raw")
    if image.dtype != dtype:
        image = image.astype(np.float32)
    if image.dtype.kind == "f" and not np.isfinite(image).all():  # code 0 of the 8-bit encoding, not 0 dB
        low = card.interval(bands)[0][:, None, None]
        image = np.where(np.isfinite(image), image, low)
    if dtype.kind == "u" and image.dtype != dtype:
        image = np.clip(np.rint(image), 0, np.iinfo(dtype).max)
    return _bytes(image, dtype)


def _bytes(array: np.ndarray, dtype: Any) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()
