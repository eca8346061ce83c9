"""Writing a patch store: places in, Parquet shards and a manifest out (the layout is told in `store`)."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cromss import landcover, sensors
from cromss.data.manifest import Encoding, Manifest, Shard, pixel_dtype, row_schema, sha256, write_manifest
from cromss.data.patch import Patch
from cromss.landcover import IGNORE

PLACES_PER_BLOCK = 16
SHARD_BYTES = 256 * 2**20


class StoreWriter:
    """Writes a new store.

    path      a folder that does not exist or is empty
    bands     modality -> band names; patches bring exactly these, in this order
    size      (H, W) of every patch
    encoding  `uint8`: mean +- 2 std of the sensor to 0..255; `raw`: Sentinel-1 float32 dB, Sentinel-2 uint16 DN
    source    where it came from, kept in the manifest as given (JSON)

    Places wait in memory until a block of 16 is full: bring them fold by fold and call `end_fold`, or a store of many
    folds holds 16 places of each.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scheme: str,
        bands: dict[str, Sequence[str]],
        size: tuple[int, int],
        encoding: Encoding = "uint8",
        source: dict[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.path = Path(path)
        self.scheme = landcover.scheme(scheme)
        self.bands = {name: sensors.sensor(name).select(chosen) for name, chosen in bands.items()}
        self.size = (int(size[0]), int(size[1]))
        self.encoding = encoding
        self.source = source or {}
        self.schema = row_schema(self.scheme.name, self.bands, self.size, encoding)
        self._shard_bytes = shard_bytes
        self._pending: dict[tuple[int, str, int], list[list[dict]]] = {}
        self._shards: list[Shard] = []
        self._writer: pq.ParquetWriter | None = None
        self._blocks: list[tuple[int, int, str, int]] = []
        self._places: Counter = Counter()
        self._patches: Counter = Counter()
        self._pixels: dict[str, np.ndarray] = {}
        self._clean = False
        claim(self.path)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.close()

    def add(self, patches: Sequence[Patch], split: str, fold: int) -> None:
        """All acquisitions of one place, in time order. Raises ValueError when they do not fit the store."""
        assert len({(patch.location_id, patch.tile) for patch in patches}) == 1
        rows = [self._row(patch, split, fold) for patch in patches]
        self._places[split] += 1
        self._patches[split] += len(rows)
        key = (len(rows), split, int(fold))
        waiting = self._pending.setdefault(key, [])
        waiting.append(rows)
        if len(waiting) == PLACES_PER_BLOCK:
            self._write_block(key)

    def end_fold(self) -> None:
        """Write what waits, as smaller blocks."""
        for key in sorted(self._pending):
            self._write_block(key)

    def close(self) -> Manifest:
        """Finish the last shard and write the manifest; only now is it a store."""
        self.end_fold()
        self._end_shard()
        if not self._shards:
            raise ValueError(f"{self.path}: no patch was written; nothing to make a store of")
        names = (*self.scheme.classes, "unlabelled")
        manifest = Manifest(
            encoding=self.encoding,
            size=self.size,
            scheme=self.scheme.name,
            bands=self.bands,
            units={name: sensors.sensor(name).unit for name in self.bands},
            has_clean=self._clean,
            places=dict(sorted(self._places.items())),
            patches=dict(sorted(self._patches.items())),
            histogram={
                split: dict(zip(names, counts.tolist(), strict=True)) for split, counts in sorted(self._pixels.items())
            },
            shards=tuple(self._shards),
            source=self.source,
        )
        write_manifest(self.path, manifest)
        return manifest

    def _row(self, patch: Patch, split: str, fold: int) -> dict[str, Any]:
        for name, image in patch.images.items():
            expected = (len(self.bands.get(name, ())), *self.size)
            if image.shape != expected:
                raise ValueError(f"{patch.patch_id}: {name} is {image.shape}, this store holds {expected}")
        if missing := self.bands.keys() - patch.images.keys():
            raise ValueError(f"{patch.patch_id}: has no {', '.join(sorted(missing))}")
        for what in (patch.label, patch.clean, patch.valid):
            if what is not None and what.shape != self.size:
                raise ValueError(f"{patch.patch_id}: a map of {what.shape}, this store holds {self.size}")
        self._count(patch.label, split)
        self._clean |= patch.clean is not None
        return {
            "patch_id": patch.patch_id,
            "location_id": patch.location_id,
            "tile": patch.tile,
            "acquisition": patch.acquisition,
            "split": split,
            "fold": int(fold),
            **{name: self._pixel_bytes(name, patch.images[name]) for name in self.bands},
            "label": _bytes(patch.label, np.uint8),
            "clean": None if patch.clean is None else _bytes(patch.clean, np.uint8),
            "valid": None if patch.valid is None or patch.valid.all() else np.packbits(patch.valid).tobytes(),
            "crs": patch.crs,
            "transform": list(patch.transform),
            "lon": patch.lon,
            "lat": patch.lat,
            "notes": json.dumps(patch.notes, sort_keys=True),
        }

    def _pixel_bytes(self, name: str, image: np.ndarray) -> bytes:
        card = sensors.sensor(name)
        if self.encoding == "uint8":
            return card.encode(image, self.bands[name]).tobytes()
        dtype = pixel_dtype(name, "raw")
        if image.dtype != dtype:
            image = image.astype(np.float32)
        if image.dtype.kind == "f" and not np.isfinite(image).all():  # code 0 of the 8-bit encoding, not 0 dB
            low = card.interval(self.bands[name])[0][:, None, None]
            image = np.where(np.isfinite(image), image, low)
        if dtype.kind == "u" and image.dtype != dtype:
            image = np.clip(np.rint(image), 0, np.iinfo(dtype).max)
        return _bytes(image, dtype)

    def _count(self, label: np.ndarray, split: str) -> None:
        counts = np.bincount(label.ravel(), minlength=256)
        classes = len(self.scheme)
        assert counts[classes:IGNORE].sum() == 0, f"labels outside {self.scheme.name}"
        total = self._pixels.setdefault(split, np.zeros(classes + 1, np.int64))
        total += np.append(counts[:classes], counts[IGNORE])

    def _write_block(self, key: tuple[int, str, int]) -> None:
        n, split, fold = key
        places = self._pending.pop(key)
        try:
            if self._writer is None:
                self._open_shard()
            for slot in range(n):
                rows = [place[(slot + i) % n] | {"slot": slot} for i, place in enumerate(places)]
                self._writer.write_table(pa.Table.from_pylist(rows, schema=self.schema), row_group_size=len(rows))
            self._blocks.append((n, len(places), split, fold))
            if self._shard_path().stat().st_size >= self._shard_bytes:
                self._end_shard()
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written ({error}); free some space or choose another") from None

    def _shard_path(self) -> Path:
        return self.path / f"shard-{len(self._shards):05d}.parquet"

    def _open_shard(self) -> None:
        described = ["patch_id", "location_id", "tile", "acquisition", "slot", "split", "fold", "lon", "lat"]
        self._writer = pq.ParquetWriter(
            self._shard_path(),
            self.schema,
            compression="none",  # measured: compression of 8-bit pixels saves 5 % and costs half the reading speed
            use_dictionary=False,
            write_statistics=described,
            write_page_checksum=True,
        )

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        path = self._shard_path()
        rows = sum(n * places for n, places, _, _ in self._blocks)
        self._shards.append(
            Shard(path=path.name, rows=rows, bytes=path.stat().st_size, sha256=sha256(path), blocks=tuple(self._blocks))
        )
        self._writer, self._blocks = None, []


def claim(path: Path) -> None:
    """Make the folder of a new store. Raises ValueError when it holds something or cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ValueError(f"{path}: already holds something; choose an empty or new folder for the store")
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None


def _bytes(array: np.ndarray, dtype: Any) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()
