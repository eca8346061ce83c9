"""From row groups to batches: one copy per pixel, from the reader's memory into the batch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import torch

from cromss.data.manifest import checksum, checksum_column, pixel_dtype
from cromss.data.patch import Batch
from cromss.data.plan import Window
from cromss.data.store import PatchStore, unpack_valid
from cromss.landcover import IGNORE


@dataclass(frozen=True)
class Wanted:
    """What a batch carries: modality -> bands, in that order; clean labels; the labels of every season."""

    bands: dict[str, tuple[str, ...]]
    clean: bool = False
    seasons: bool = False

    @classmethod
    def of(
        cls,
        store: PatchStore,
        bands: dict[str, Sequence[str]] | None = None,
        clean: bool = False,
        seasons: bool = False,
    ) -> "Wanted":
        """Checked against the store. Raises ValueError naming what it lacks."""
        bands = store.bands if bands is None else bands
        for modality, names in bands.items():
            store.contract(modality).select(names, str(store.path))
        if clean and not store.has_clean:
            raise ValueError(f"{store.path}: has no clean labels; only a synthetic store has them")
        return cls({modality: tuple(names) for modality, names in bands.items()}, clean, seasons)

    @property
    def columns(self) -> list[str]:
        """The Parquet columns to read."""
        cells = [*self.bands, "label", "valid", *(["clean"] if self.clean else [])]
        return ["patch_id", *cells, *map(checksum_column, cells)]


def read_window(store: PatchStore, window: Window, columns: list[str], seasons: bool) -> pa.Table:
    """The rows of a window in file order. With `seasons`, column `slot<s>` has the label of the same row in slot s."""
    tables = []
    for block, slot in zip(window.blocks, window.slots, strict=True):
        shard, first, n = (int(column[block]) for column in (store.blocks.shard, store.blocks.first, store.blocks.n))
        table = store.read(shard, first + int(slot), columns)
        for s in range(store.slots) if seasons else ():
            if s >= n:
                label = pa.nulls(len(table), pa.large_binary())
            else:
                label = (table if s == slot else _labels(store, shard, first + s))["label"]
            table = table.append_column(f"slot{s}", label)
        tables.append(table)
    return pa.concat_tables(tables)


def _labels(store: PatchStore, shard: int, row_group: int) -> pa.Table:
    table = store.read(shard, row_group, ["patch_id", "label", checksum_column("label")])
    ids, expected = table["patch_id"].to_pylist(), table[checksum_column("label")].to_pylist()
    for patch_id, cell, sum_ in zip(ids, _cells(table["label"]), expected, strict=True):
        store.check_cell(cell, patch_id, sum_, shard, "label")
    return table


@dataclass
class Rows:
    """A window in memory: per pixel column one flat uint8 view a row, None where null, and its checksum."""

    window: Window
    table: pa.Table
    cells: dict[str, list[np.ndarray | None]] = field(init=False)
    checksums: dict[str, list[int | None]] = field(init=False)
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.table) == len(self.window.order)
        self.ids = self.table["patch_id"].to_pylist()
        summed = [name for name in self.table.column_names if checksum_column(name) in self.table.column_names]
        slots = [name for name in self.table.column_names if name.startswith("slot")]
        self.cells = {name: _cells(self.table[name]) for name in (*summed, *slots)}
        self.checksums = {name: self.table[checksum_column(name)].to_pylist() for name in summed}


Row = tuple[Rows, int]  # (window in memory, row of it in file order)


class Assembler:
    """Turns rows into Batches of one store."""

    def __init__(self, store: PatchStore, wanted: Wanted, seed: int):
        self.wanted, self.seed, self._store = wanted, seed, store
        self.size, self.slots, self._blocks = store.size, store.slots, store.blocks
        self._modalities = []
        for name, bands in wanted.bands.items():
            stored = store.bands[name]
            index = None if bands == stored else np.array([stored.index(band) for band in bands])
            self._modalities.append((name, pixel_dtype(name, store.encoding), len(stored), len(bands), index))

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The rows, in order, as one Batch in memory of its own."""
        ids = [loaded.ids[row] for loaded, row in rows]
        epochs = [loaded.window.epoch for loaded, _ in rows]
        keys = [row_key(self.seed, epoch, patch) for epoch, patch in zip(epochs, ids, strict=True)]
        return Batch(
            images={modality[0]: self._image(rows, *modality) for modality in self._modalities},
            bands=self.wanted.bands,
            labels=self._map(rows, "label"),
            ids=ids,
            epochs=torch.tensor(epochs, dtype=torch.int64),
            keys=torch.tensor(keys, dtype=torch.int64),
            clean=self._map(rows, "clean") if self.wanted.clean else None,
            valid=self._valid(rows),
            seasons=self._seasons(rows) if self.wanted.seasons else None,
        )

    def _image(
        self, rows: Sequence[Row], name: str, dtype: np.dtype, stored: int, bands: int, index: np.ndarray | None
    ) -> torch.Tensor:
        out = _allocate((len(rows), bands, *self.size), dtype)
        for position, (loaded, row) in enumerate(rows):
            pixels = self._cell(loaded, row, name).view(dtype).reshape(stored, *self.size)
            if index is None:
                out[position] = pixels
            else:
                np.take(pixels, index, axis=0, out=out[position], mode="clip")  # any other mode buffers the output
        return torch.from_numpy(out)

    def _map(self, rows: Sequence[Row], name: str) -> torch.Tensor:
        out = np.empty((len(rows), *self.size), np.uint8)
        for position, (loaded, row) in enumerate(rows):
            cell = self._cell(loaded, row, name)
            out[position] = IGNORE if cell is None else cell.reshape(self.size)
        return torch.from_numpy(out)

    def _cell(self, loaded: Rows, row: int, name: str) -> np.ndarray | None:
        """A cell whose bytes are those that were ingested: compared here, where they leave the last transport."""
        cell = loaded.cells[name][row]
        if cell is not None and checksum(cell, loaded.ids[row]) != loaded.checksums[name][row]:
            ends = np.cumsum(self._blocks.rows[loaded.window.blocks])
            block = loaded.window.blocks[int(np.searchsorted(ends, row, side="right"))]
            shard = int(self._blocks.shard[block])
            raise self._store.unreadable(shard, f"{name} of patch {loaded.ids[row]} fails its checksum")
        return cell

    def _valid(self, rows: Sequence[Row]) -> torch.Tensor | None:
        cells = [self._cell(loaded, row, "valid") for loaded, row in rows]
        if all(cell is None for cell in cells):
            return None
        everywhere = np.ones(self.size, bool)
        return torch.from_numpy(
            np.stack([everywhere if cell is None else unpack_valid(cell, self.size) for cell in cells])
        )

    def _seasons(self, rows: Sequence[Row]) -> torch.Tensor:
        """Labels by acquisition: place i of its block has acquisition a in slot (a - i) mod n."""
        out = np.full((len(rows), self.slots, *self.size), IGNORE, np.uint8)
        for position, (loaded, row) in enumerate(rows):
            sizes = self._blocks.rows[loaded.window.blocks]
            ends = np.cumsum(sizes)
            k = int(np.searchsorted(ends, row, side="right"))
            place, n = row - int(ends[k] - sizes[k]), int(self._blocks.n[loaded.window.blocks[k]])
            for acquisition in range(n):
                cell = loaded.cells[f"slot{(acquisition - place) % n}"][row]
                out[position, acquisition] = cell.reshape(self.size)
        return torch.from_numpy(out)


def _allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """From Arrow's memory pool, which hands the memory of batches gone by out again: fresh pages cost half the copy."""
    return np.frombuffer(pa.allocate_buffer(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def row_key(seed: int, epoch: int, patch_id: str) -> int:
    """The random key of a row, int64: the same whoever reads it, in whatever batch."""
    return int.from_bytes(blake2b(f"{seed}/{epoch}/{patch_id}".encode(), digest_size=8).digest(), "little", signed=True)


def _cells(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    return [cell for chunk in column.chunks for cell in _chunk_cells(chunk)]


def _chunk_cells(chunk: pa.Array) -> Iterable[np.ndarray | None]:
    if chunk.null_count == len(chunk):
        return [None] * len(chunk)
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
    flat = np.frombuffer(data, np.uint8)
    present = chunk.is_valid().to_pylist() if chunk.null_count else [True] * len(chunk)
    return [flat[ends[row] : ends[row + 1]] if present[row] else None for row in range(len(chunk))]
