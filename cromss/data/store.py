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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cromss import landcover, sensors
from cromss.contract import physical
from cromss.data.cache import Cache, CacheConfig
from cromss.data.manifest import (
    Layout,
    Manifest,
    Shard,
    checksum,
    checksum_column,
    pixel_dtype,
    read_manifest,
    row_bytes,
)
from cromss.data.patch import Patch
from cromss.data.radiometry import from_codes
from cromss.data.writer import StoreWriter
from cromss.files import Folder, fault, unavailable

__all__ = ["Blocks", "Lost", "PatchStore", "StoreWriter"]

OPEN_SHARDS = 64  # file handles a thread keeps
_TEXT = 2**16  # bytes of a row that are no pixels, at most
REMEDY = (
    "list every damaged shard with python -m cromss.ingest --verify {0}, write them again with --repair {0}, or train without "
    "what is damaged: data.quarantine=true"
)


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


@dataclass(frozen=True)
class Lost:
    """A shard that does not hold, why, and how many patches are in it."""

    shard: str
    reason: str
    patches: int

    def __str__(self) -> str:
        return f"shard {self.shard} {self.reason}: {self.patches:,} patches"


class PatchStore:
    """A store opened for reading. Reading is thread-safe: each thread keeps its own file handles."""

    def __init__(
        self, folder: Folder, manifest: Manifest, *, without: Iterable[Lost] = (), cache: CacheConfig | None = None
    ):
        self.folder, self.manifest, self.without = folder, manifest, tuple(without)
        gone = {lost.shard for lost in self.without}
        self.digest = _digest(manifest, sorted(gone))
        self.cache = cache or CacheConfig()
        self.encoding, self.size, self.scheme = manifest.encoding, manifest.size, landcover.scheme(manifest.scheme)
        self.contracts, self.has_clean = manifest.contracts, manifest.has_clean
        self.bands = manifest.bands
        products = {name: contract.product for name, contract in manifest.contracts.items()}
        self.layout = Layout(manifest.scheme, self.bands, manifest.size, manifest.encoding, products)
        self.blocks = self._all_blocks()
        if self.without:
            left_out = [shard for shard in np.unique(self.blocks.shard).tolist() if self.name(shard) in gone]
            self.blocks = self.blocks.where(~np.isin(self.blocks.shard, left_out))
            if not len(self.blocks):
                raise ValueError(f"{folder}: no shard is left")
        self.slots = int(self.blocks.n.max())
        self.splits = np.unique(self.blocks.split).tolist()
        self._handles = threading.local()
        self._cached = Cache(self.cache, _digest(manifest, ())) if self.cache.folder and not folder.local else None

    @classmethod
    def open(
        cls,
        where: "str | Path | Folder",
        check: bool = True,
        *,
        without: Iterable[Lost] = (),
        cache: CacheConfig | None = None,
    ) -> "PatchStore":
        """The store at a path or a bucket's URI.

        check     compare size, footer, row count and contract of every shard with the manifest
        without   shards that are left out (see `damaged` and data.quarantine)
        cache     where row groups of a bucket's store are kept on this machine

        Raises ValueError when it is not a store, of another version, or damaged.
        """
        folder = Folder.of(where)
        manifest = read_manifest(folder)
        if manifest.kind == "live":
            from cromss.data.live import LiveStore

            cls = LiveStore
        store = cls(folder, manifest, without=without, cache=cache)
        if check and (damage := store.damaged()):
            more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
            raise ValueError(f"{folder}: shard {damage[0].shard} {damage[0].reason}{more}; {store.remedy}")
        return store

    def __len__(self) -> int:
        """Patches that can be read, in all splits: every acquisition of every place."""
        return int((self.blocks.rows * self.blocks.n).sum())

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {len(bands)}" for name, bands in self.bands.items())
        height, width = self.size
        return (
            f"<{type(self).__name__} {self.folder}: {len(self):,} patches of {int(self.blocks.rows.sum()):,} places, "
            f"{height} x {width}; bands {held}; {self.encoding}; {self.scheme.name}>"
        )

    def _repr_html_(self) -> str:
        from cromss.data.store_html import html

        return html(self)

    @property
    def path(self) -> "Path | str":
        """Where it lies: a path, or a bucket's URI."""
        return self.folder.local or self.folder.address

    def contract(self, modality: str):
        """What the numbers of a modality mean. Raises ValueError naming the ones there are."""
        if modality not in self.contracts:
            raise ValueError(f"{self.folder}: has no modality {modality!r}; it holds {', '.join(self.contracts)}")
        return self.contracts[modality]

    def places(self, split: str) -> int:
        """Places of a split that can be read."""
        return int(self.blocks.rows[self.blocks.split == split].sum())

    def described(self, split: str) -> int:
        """Places of a split that the manifest's statistics come from: of a live store a sample, else all."""
        sample = self.manifest.source.get("live", {}).get("sample", {}).get(split, {})
        return sample.get("places", 0) or self.manifest.places[split]

    def folds(self, split: str = "train") -> list[int]:
        """The folds that a split has places in."""
        return np.unique(self.blocks.fold[self.blocks.split == split]).tolist()

    def read(self, shard: int, row_group: int, columns: list[str]) -> pa.Table:
        """One row group. Raises ValueError naming the shard when it cannot be read, OSError when its bucket does not answer
        (which is worth another attempt).

        Cells that are asked for together with `patch_id` and their checksums (`checksum_column`) are for the caller to
        compare where they are used (`check_cell`); anything else is checked here, by the checksums of its pages.
        """
        try:
            if self._cached:
                return self._cached.table(shard, row_group, columns, lambda: self._fetch(shard, row_group, columns))
            return self._fetch(shard, row_group, columns)
        except (OSError, pa.ArrowException) as error:
            if unavailable(error):
                raise OSError(f"{self.folder}: shard {self.name(shard)}: {fault(error)}") from None
            raise self.unreadable(shard, f"row group {row_group}: {fault(error)}") from None

    def unreadable(self, shard: int, reason: str) -> ValueError:
        """The error that names a shard whose content does not hold."""
        return ValueError(f"{self.folder}: shard {self.name(shard)} cannot be read, {reason}; {self.remedy}")

    def name(self, shard: int) -> str:
        """What a shard is called, in `without` for instance."""
        return self.manifest.shards[shard].path

    @property
    def remedy(self) -> str:
        """What to do about damage."""
        return REMEDY.format(self.folder)

    def check_cell(self, cell: bytes | np.ndarray, patch_id: str, expected: int, shard: int, name: str) -> None:
        """Raises ValueError, naming the shard and the patch, when a cell's bytes are not those that were ingested."""
        if checksum(cell, patch_id) != expected:
            raise self.unreadable(shard, f"{name} of patch {patch_id} fails its checksum")

    def damaged(self, content: bool = False, progress: Callable[[int], None] = lambda done: None) -> list[Lost]:
        """The shards that do not hold: by size, footer, row count and contract; by the sha256 of every byte if `content`.
        `progress` is told after each shard how many bytes have been looked at."""
        looked = 0

        def look(shard: Shard) -> str:
            return self._footer_damage(shard) or (self._content_damage(shard) if content else "")

        found = []
        with ThreadPoolExecutor(8 if self.folder.local else 16) as pool:
            gone = {lost.shard for lost in self.without}
            shards = [shard for shard in self.manifest.shards if shard.path not in gone]
            for shard, reason in zip(shards, pool.map(look, shards), strict=True):
                looked += shard.bytes
                progress(looked)
                if reason:
                    found.append(Lost(shard.path, reason, shard.rows))
        return found

    def sample(self, k: int, split: str = "train", seed: int = 0) -> list[Patch]:
        """k patches of distinct places, seeded, in physical units (8-bit codes: the middle of their step)."""
        blocks = self.blocks.where(self.blocks.split == split)
        ends = np.cumsum(blocks.rows)
        if not len(blocks):
            raise ValueError(f"{self.folder}: has no split {split!r}; valid: {', '.join(self.splits)}")
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
            f"patch store  {self.folder}"
            + (" (live: rows are made from the source's files)" if m.kind == "live" else ""),
            f"patches      {sum(m.patches.values()):,} of {sum(m.places.values()):,} places, "
            f"{height} x {width} pixels, up to {self.slots} acquisitions",
            f"encoding     {m.encoding}" + (", clean labels known" if m.has_clean else ""),
        ]
        for name, contract in m.contracts.items():
            lines.append(f"{name:12} {contract}; digest {contract.digest}")
        lines.append(f"labels       {m.scheme}")
        for split in self.splits:
            counts = m.histogram[split]
            total = max(1, sum(counts.values()))
            shares = ", ".join(f"{name} {count / total:.1%}" for name, count in counts.items() if count)
            lines.append(f"{split:12} {m.places[split]:,} places, {len(self.folds(split))} folds: {shares}")
        lines += [*self._bulk(), f"digest       {self.digest[:12]}"]
        return "\n".join(lines)

    def _bulk(self) -> list[str]:
        size = sum(shard.bytes for shard in self.manifest.shards)
        return [f"shards       {len(self.manifest.shards):,}, {size / 1e9:,.3f} GB"]

    def _fetch(self, shard: int, row_group: int, columns: list[str]) -> pa.Table:
        return self._file(shard, not _cells_only(columns)).read_row_group(row_group, columns=columns)

    def _file(self, shard: int, pages_checked: bool) -> pq.ParquetFile:
        handles: OrderedDict[Any, pq.ParquetFile] = self._handles.__dict__.setdefault("open", OrderedDict())
        key = shard, pages_checked
        if key not in handles:
            handles[key] = pq.ParquetFile(
                self.folder.open(self.manifest.shards[shard].path),
                page_checksum_verification=pages_checked,
                pre_buffer=self.folder.local is None,
            )
            if len(handles) > OPEN_SHARDS:
                handles.popitem(last=False)
        handles.move_to_end(key)
        return handles[key]

    def _footer_damage(self, shard: Shard) -> str:
        try:
            found = self.folder.size(shard.path)
            if found is None:
                return "is missing"
            if found != shard.bytes:
                return f"has {found:,} bytes instead of {shard.bytes:,}"
            with self.folder.open(shard.path) as file:
                footer = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            return self._no_reading(shard, error)
        if (footer.num_rows, footer.num_row_groups) != (shard.rows, shard.row_groups):
            return f"has {footer.num_rows} rows instead of {shard.rows}"
        if (footer.metadata or {}).get(b"cromss") != self.layout.schema.metadata[b"cromss"]:
            return "holds other bands, units or sizes than the manifest says: it is of another store"
        # Compressed, gigabytes of zeros are a few kB; a row has its cells, and some text.
        row = sum(row_bytes(self.contracts, self.encoding, self.size)) + _TEXT
        groups = (footer.row_group(number) for number in range(footer.num_row_groups))
        if any(group.total_byte_size > (group.num_rows + 1) * row for group in groups):
            return "decodes to more than its patches hold"
        return ""

    def _no_reading(self, shard: Shard, error: Exception) -> str:
        """A shard's damage; raises ValueError when its bucket does not answer, which is none."""
        if unavailable(error):
            raise ValueError(f"{self.folder}: shard {shard.path}: {fault(error)}") from None
        return f"cannot be read ({fault(error)})"

    def _content_damage(self, shard: Shard) -> str:
        digest = hashlib.sha256()
        try:
            for block in self.folder.chunks(shard.path):
                digest.update(block)
        except OSError as error:
            return self._no_reading(shard, error)
        return "" if digest.hexdigest() == shard.sha256 else "differs from what was ingested (sha256)"

    def _patch(self, blocks: Blocks, block: int, row: int, slot: int) -> Patch:
        shard = int(blocks.shard[block])
        values = self._row(shard, int(blocks.first[block]) + slot, row)
        for name in self.layout.columns:
            if values[name] is not None:
                self.check_cell(values[name], values["patch_id"], values[checksum_column(name)], shard, name)
        images = {}
        for name, bands in self.bands.items():
            pixels = np.frombuffer(values[name], pixel_dtype(name, self.encoding)).reshape(len(bands), *self.size)
            images[name] = from_codes(pixels, sensors.sensor(name), bands) if self.encoding == "uint8" else pixels
        valid = values["valid"]
        return Patch(
            images=images,
            contracts={name: physical(name, bands, self.contracts[name].product) for name, bands in self.bands.items()},
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

    def _row(self, shard: int, row_group: int, row: int) -> dict[str, Any]:
        [values] = self.read(shard, row_group, self.layout.schema.names).slice(row, 1).to_pylist()
        return values

    def _all_blocks(self) -> Blocks:
        return _blocks(self.manifest)


def _cells_only(columns: list[str]) -> bool:
    """Whether every column is covered by the cells' own checksums: an order of magnitude faster than Arrow's of its pages,
    and good up to the batch, through whatever transports lie between."""
    sums = {checksum_column(name) for name in columns} & set(columns)
    cells = {name for name in columns if checksum_column(name) in sums}
    return bool(cells) and set(columns) <= {"patch_id", *cells, *sums}


def unpack_valid(packed: bytes | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Packed bits to bool (H, W)."""
    bits = np.frombuffer(packed, np.uint8)
    return np.unpackbits(bits, count=size[0] * size[1]).reshape(size).view(bool)


def _map(values: bytes, size: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(values, np.uint8).reshape(size)


def _digest(manifest: Manifest, without: list[str]) -> str:
    """Identifies the content: not where it came from, not when; with what is left out of it."""
    content = manifest.model_dump(mode="json", exclude={"source"}) | ({"without": without} if without else {})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _blocks(manifest: Manifest) -> Blocks:
    def entries() -> Iterator[tuple]:
        for index, shard in enumerate(manifest.shards):
            first = 0
            for n, rows, split, fold in shard.blocks:
                yield index, first, n, rows, split, fold
                first += n

    shard, first, n, rows, split, fold = zip(*entries(), strict=True)
    numbers = (np.array(column, np.int32) for column in (shard, first, n, rows))
    return Blocks(*numbers, np.array(split), np.array(fold, np.int32))
