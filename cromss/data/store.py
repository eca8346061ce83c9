"""The patch store: Parquet shards of binary pixels, laid out so that a season is a row group.

A row is a patch. Places (a location, or one tile of it) with equally many acquisitions n, of one split and one fold,
form blocks of up to 16; a block is n consecutive row groups, one per slot. Place i of the block has its acquisition
(slot + i) mod n in that slot: any one row group holds every place of the block once, with the seasons mixed, so reading
one slot a block an epoch is seasonal sampling at 1/n of the bytes.

`manifest.json` is written last: a folder without one is not a store.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cromss import landcover, sensors
from cromss.data.manifest import Manifest, Shard, pixel_dtype, read_manifest, sha256
from cromss.data.patch import Patch
from cromss.data.writer import StoreWriter

__all__ = ["Blocks", "PatchStore", "StoreWriter"]

OPEN_SHARDS = 64  # file handles a thread keeps
REMEDY = "ingest again, or list every damaged shard with: python -m cromss.ingest --verify"


@dataclass(frozen=True)
class Blocks:
    """The blocks of a store, one entry each, in file order. Slot s of block b is row group first[b] + s of shard[b]."""

    shard: np.ndarray  # index into the manifest's shards
    first: np.ndarray  # first row group
    n: np.ndarray  # acquisitions = slots = row groups
    rows: np.ndarray  # places = rows of each row group
    split: np.ndarray  # str
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def where(self, mask: np.ndarray) -> "Blocks":
        """The blocks that a boolean mask or an index array picks."""
        return Blocks(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


class PatchStore:
    """A store opened for reading. Reading is thread-safe: each thread keeps its own file handles."""

    def __init__(self, path: Path, manifest: Manifest, digest: str):
        self.path, self.manifest, self.digest = path, manifest, digest
        self.encoding, self.size, self.scheme = manifest.encoding, manifest.size, landcover.scheme(manifest.scheme)
        self.bands, self.has_clean = manifest.bands, manifest.has_clean
        self.blocks = _blocks(manifest)
        self.slots = int(self.blocks.n.max())
        self.splits = sorted(manifest.places)
        self._handles = threading.local()

    @classmethod
    def open(cls, path: str | Path, check: bool = True) -> "PatchStore":
        """The store at `path`. `check` compares size, footer and row count of every shard with the manifest.

        Raises ValueError when it is not a store, of a newer version, or damaged.
        """
        path = Path(path).absolute()
        manifest = read_manifest(path)
        store = cls(path, manifest, _digest(manifest))
        if check and (damage := store._damaged(store._footer_damage)):
            more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
            raise ValueError(f"{path}: {damage[0]}{more}; {REMEDY} {path}")
        return store

    def folds(self, split: str = "train") -> list[int]:
        """The folds that a split has places in."""
        return np.unique(self.blocks.fold[self.blocks.split == split]).tolist()

    def read(self, shard: int, row_group: int, columns: list[str]) -> pa.Table:
        """One row group. Raises ValueError naming the shard when a page fails its checksum."""
        path = self.manifest.shards[shard].path
        try:
            return self._file(shard).read_row_group(row_group, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{self.path}: shard {path} cannot be read, row group {row_group}: {error}; {REMEDY} {self.path}"
            ) from None

    def verify(self) -> list[str]:
        """One line per damaged shard; compares the sha256 of every byte."""
        return self._damaged(lambda shard: self._footer_damage(shard) or self._content_damage(shard))

    def sample(self, k: int, split: str = "train", seed: int = 0) -> list[Patch]:
        """k patches of distinct places, seeded, decoded to physical units (8-bit codes to their lower edge)."""
        blocks = self.blocks.where(self.blocks.split == split)
        ends = np.cumsum(blocks.rows)
        if not len(blocks):
            raise ValueError(f"{self.path}: has no split {split!r}; valid: {', '.join(self.splits)}")
        rng = np.random.default_rng(seed)
        chosen = rng.choice(ends[-1], min(k, int(ends[-1])), replace=False)
        owner = np.searchsorted(ends, chosen, side="right")
        rows = chosen - (ends - blocks.rows)[owner]
        return [
            self._patch(blocks, int(block), int(row), int(rng.integers(blocks.n[block])))
            for block, row in zip(owner, rows, strict=True)
        ]

    def describe(self) -> str:
        """What is in the store, a few lines for people."""
        m = self.manifest
        height, width = m.size
        lines = [
            f"patch store  {self.path}",
            f"patches      {sum(m.patches.values()):,} of {sum(m.places.values()):,} places, "
            f"{height} x {width} pixels, up to {self.slots} acquisitions",
            f"encoding     {m.encoding}" + (", clean labels known" if m.has_clean else ""),
        ]
        for name, bands in m.bands.items():
            lines.append(f"{name:12} {sensors.sensor(name).title}: {' '.join(bands)} [{m.units[name]}]")
        lines.append(f"labels       {m.scheme}")
        for split in self.splits:
            counts = m.histogram[split]
            total = max(1, sum(counts.values()))
            shares = ", ".join(f"{name} {count / total:.1%}" for name, count in counts.items() if count)
            lines.append(f"{split:12} {m.places[split]:,} places, {len(self.folds(split))} folds: {shares}")
        size = sum(shard.bytes for shard in m.shards)
        lines.append(f"shards       {len(m.shards):,}, {size / 1e9:,.3f} GB, digest {self.digest[:12]}")
        return "\n".join(lines)

    def _file(self, shard: int) -> pq.ParquetFile:
        handles: OrderedDict[int, pq.ParquetFile] = self._handles.__dict__.setdefault("open", OrderedDict())
        if shard not in handles:
            handles[shard] = pq.ParquetFile(
                self.path / self.manifest.shards[shard].path, memory_map=True, page_checksum_verification=True
            )
            if len(handles) > OPEN_SHARDS:
                handles.popitem(last=False)
        handles.move_to_end(shard)
        return handles[shard]

    def _damaged(self, damage: Callable[[Shard], str]) -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return [line for line in pool.map(damage, self.manifest.shards) if line]

    def _footer_damage(self, shard: Shard) -> str:
        file = self.path / shard.path
        try:
            found = file.stat().st_size
            if found != shard.bytes:
                return f"shard {shard.path} has {found:,} bytes instead of {shard.bytes:,}"
            footer = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            return f"shard {shard.path} cannot be read ({getattr(error, 'strerror', None) or error})"
        if (footer.num_rows, footer.num_row_groups) != (shard.rows, shard.row_groups):
            return f"shard {shard.path} has {footer.num_rows} rows instead of {shard.rows}"
        return ""

    def _content_damage(self, shard: Shard) -> str:
        same = sha256(self.path / shard.path) == shard.sha256
        return "" if same else f"shard {shard.path} differs from what was ingested (sha256)"

    def _patch(self, blocks: Blocks, block: int, row: int, slot: int) -> Patch:
        file = self._file(int(blocks.shard[block]))
        table = self.read(int(blocks.shard[block]), int(blocks.first[block]) + slot, file.schema_arrow.names)
        [values] = table.slice(row, 1).to_pylist()
        images = {}
        for name, bands in self.bands.items():
            pixels = np.frombuffer(values[name], pixel_dtype(name, self.encoding)).reshape(len(bands), *self.size)
            images[name] = sensors.sensor(name).decode(pixels, bands) if self.encoding == "uint8" else pixels
        valid = values["valid"]
        return Patch(
            images=images,
            label=_map(values["label"], self.size),
            clean=None if values["clean"] is None else _map(values["clean"], self.size),
            valid=None if valid is None else unpack_valid(valid, self.size),
            transform=tuple(values["transform"]),
            notes=json.loads(values["notes"]),
            **{
                key: values[key]
                for key in ("patch_id", "location_id", "tile", "acquisition", "split", "crs", "lon", "lat")
            },
        )


def unpack_valid(packed: bytes | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Packed bits to bool (H, W)."""
    bits = np.frombuffer(packed, np.uint8)
    return np.unpackbits(bits, count=size[0] * size[1]).reshape(size).view(bool)


def _map(values: bytes, size: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(values, np.uint8).reshape(size)


def _digest(manifest: Manifest) -> str:
    """Identifies the content: not where it came from, not when."""
    content = manifest.model_dump(mode="json", exclude={"source"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _blocks(manifest: Manifest) -> Blocks:
    def entries() -> Iterator[tuple]:
        for index, shard in enumerate(manifest.shards):
            first = 0
            for n, rows, split, fold in shard.blocks:
                yield index, first, n, rows, split, fold
                first += n

    shard, first, n, rows, split, fold = zip(*entries(), strict=True)
    numbers = (np.array(column, np.int64) for column in (shard, first, n, rows))
    return Blocks(*numbers, np.array(split), np.array(fold, np.int64))
