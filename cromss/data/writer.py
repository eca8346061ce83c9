"""Writing a patch store: places in, Parquet shards and a manifest out (the layout is told in `store`).

A shard is written by one process from its own places alone, so shards can be written anywhere, in any order, again.
"""

import contextlib
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cromss import landcover, sensors
from cromss.data import statistics
from cromss.data.encoding import RowEncoder
from cromss.data.manifest import MANIFEST, Encoding, Layout, Manifest, Shard, write_manifest
from cromss.data.patch import Patch
from cromss.data.statistics import Tally
from cromss.files import Folder, fault, sha256
from cromss.landcover import IGNORE
from cromss.settings import Settings

PLACES_PER_BLOCK = 16
SHARD_BYTES = 256 * 2**20
ASIDE = ".writing-"

T = TypeVar("T")
BlockKey = tuple[int, str, int]  # number of acquisitions, split, fold


class Part(Settings):
    """What one shard adds to a manifest; without a `shard` where no place could be used. `seasons`: split -> for the k-th
    acquisition the pixels per class, then the unlabelled; `tallies`: split -> modality."""

    shard: Shard | None = None
    has_clean: bool = False
    places: dict[str, int] = {}
    patches: dict[str, int] = {}
    seasons: dict[str, tuple[tuple[int, ...], ...]] = {}
    tallies: dict[str, dict[str, Tally]] = {}


class Waiting(Generic[T]):
    """Places on their way into blocks of 16, of equally many acquisitions, one split, one fold."""

    def __init__(self) -> None:
        self._pending: dict[BlockKey, list[T]] = {}

    def add(self, key: BlockKey, place: T) -> list[tuple[BlockKey, list[T]]]:
        """The block that this place fills, if it does."""
        waiting = self._pending.setdefault(key, [])
        waiting.append(place)
        return [(key, self._pending.pop(key))] if len(waiting) == PLACES_PER_BLOCK else []

    def rest(self) -> list[tuple[BlockKey, list[T]]]:
        """Smaller blocks of all that waits."""
        found, self._pending = sorted(self._pending.items(), key=lambda item: item[0]), {}
        return found


class Census:
    """Counts the patches of a store as they come."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self._classes = len(landcover.scheme(layout.scheme))
        self._clean = False
        self._places: dict[str, int] = {}
        self._patches: dict[str, int] = {}
        self._seasons: dict[str, list[np.ndarray]] = {}
        self._counters: dict[str, dict[str, statistics.Counter]] = {}

    def add(self, patches: Sequence[Patch], split: str) -> None:
        """All acquisitions of one place, in time order."""
        self._places[split] = self._places.get(split, 0) + 1
        self._patches[split] = self._patches.get(split, 0) + len(patches)
        seasons = self._seasons.setdefault(split, [])
        counters = self._counters.setdefault(
            split, {name: statistics.Counter(name, bands) for name, bands in self.layout.bands.items()}
        )
        for k, patch in enumerate(patches):
            self._clean |= patch.clean is not None
            if k == len(seasons):
                seasons.append(np.zeros(self._classes + 1, np.int64))
            counts = np.bincount(patch.label.ravel(), minlength=256)
            assert counts[self._classes : IGNORE].sum() == 0, f"labels outside {self.layout.scheme}"
            seasons[k] += np.append(counts[: self._classes], counts[IGNORE])
            for name, counter in counters.items():
                image = patch.images[name]
                counter.add(image, sensors.sensor(name).encode(image, counter.bands), patch.valid)

    def part(self, shard: Shard | None = None) -> Part:
        """What these patches add to a manifest."""
        return Part(
            shard=shard,
            has_clean=self._clean,
            places=self._places,
            patches=self._patches,
            seasons={
                split: tuple(tuple(counts.tolist()) for counts in seasons) for split, seasons in self._seasons.items()
            },
            tallies={
                split: {name: counter.tally() for name, counter in counters.items()}
                for split, counters in self._counters.items()
            },
        )


class ShardWriter:
    """Writes one shard to a local file.

    Places wait in memory until a block of 16 is full: bring them fold by fold and call `end_fold`, or a shard of many
    folds holds 16 places of each.
    """

    def __init__(self, layout: Layout, file: Path, name: str):
        self.layout, self.file, self.name = layout, file, name
        self._encoder, self._census = RowEncoder(layout), Census(layout)
        self._schema = layout.schema
        self._waiting: Waiting[list[dict]] = Waiting()
        self._writer: pq.ParquetWriter | None = None
        self._blocks: list[tuple[int, int, str, int]] = []

    def add(self, patches: Sequence[Patch], split: str, fold: int) -> None:
        """All acquisitions of one place, in time order. Raises ValueError when they do not fit the store."""
        assert len({(patch.location_id, patch.tile) for patch in patches}) == 1
        for patch in patches:
            self._encoder.check(patch)
        rows = [self._encoder.row(patch, split, fold) for patch in patches]
        self._census.add(patches, split)
        for key, places in self._waiting.add((len(rows), split, int(fold)), rows):
            self._write_block(key, places)

    def end_fold(self) -> None:
        """Write what waits, as smaller blocks."""
        for key, places in self._waiting.rest():
            self._write_block(key, places)

    @property
    def bytes(self) -> int:
        """Written so far."""
        return self.file.stat().st_size if self._writer else 0

    def close(self) -> Part:
        """Finish the file."""
        self.end_fold()
        shard = None
        if self._writer is not None:
            rows = sum(n * places for n, places, _, _ in self._blocks)
            with self._writing():
                self._writer.close()
                shard = Shard(
                    path=self.name, rows=rows, bytes=self.bytes, sha256=sha256(self.file), blocks=tuple(self._blocks)
                )
        return self._census.part(shard)

    def abandon(self) -> None:
        """Close the file without finishing it."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # on a full disk the footer fails as the pixels did
                self._writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"{self.file}: cannot be written ({fault(error)}); free some space or choose another"
            ) from None

    def _write_block(self, key: BlockKey, places: list[list[dict]]) -> None:
        n, split, fold = key
        with self._writing():
            if self._writer is None:
                self._open()
            for slot in range(n):
                rows = [place[(slot + i) % n] | {"slot": slot} for i, place in enumerate(places)]
                self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema), row_group_size=len(rows))
        self._blocks.append((n, len(places), split, fold))

    def _open(self) -> None:
        described = ["patch_id", "location_id", "tile", "acquisition", "slot", "split", "fold", "lon", "lat"]
        self._writer = pq.ParquetWriter(
            self.file,
            self._schema,
            compression="none",  # measured: compression of 8-bit pixels saves 5 % and costs half the reading speed
            use_dictionary=False,
            write_statistics=described,
            write_page_checksum=True,
        )


class StoreWriter:
    """Writes a whole store in this process, shard after shard.

    path      a folder or bucket that does not exist or is empty
    bands     modality -> band names; patches bring exactly these, in this order
    size      (H, W) of every patch
    encoding  `uint8`: mean +- 2 std of the sensor to 0..255; `raw`: Sentinel-1 float32 dB, Sentinel-2 uint16 DN
    source    where it came from, kept in the manifest as given (JSON)
    """

    def __init__(
        self,
        path: str | Path | Folder,
        *,
        scheme: str,
        bands: dict[str, Sequence[str]],
        size: tuple[int, int],
        encoding: Encoding = "uint8",
        source: dict[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.folder = Folder.of(path)
        chosen = {name: sensors.sensor(name).select(names) for name, names in bands.items()}
        self.layout = Layout(landcover.scheme(scheme).name, chosen, (int(size[0]), int(size[1])), encoding)
        self.source = source or {}
        self._shard_bytes = shard_bytes
        self._parts: list[Part] = []
        self._writer: ShardWriter | None = None
        claim(self.folder)
        self._aside = aside(self.folder)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.abandon()
        self._aside.cleanup()

    def add(self, patches: Sequence[Patch], split: str, fold: int) -> None:
        """All acquisitions of one place, in time order. Raises ValueError when they do not fit the store."""
        if self._writer is None:
            name = shard_name(len(self._parts))
            self._writer = ShardWriter(self.layout, Path(self._aside.name) / name, name)
        self._writer.add(patches, split, fold)
        if self._writer.bytes >= self._shard_bytes:
            self._end_shard()

    def end_fold(self) -> None:
        """Write what waits, as smaller blocks."""
        if self._writer is not None:
            self._writer.end_fold()

    def close(self) -> Manifest:
        """Finish the last shard and write the manifest; only now is it a store."""
        self._end_shard()
        self._aside.cleanup()
        return finish(self.folder, self.layout, self._parts, self.source)

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._parts.append(deliver(self._writer, self.folder))
            self._writer = None


def deliver(writer: ShardWriter, folder: Folder) -> Part:
    """Finish a shard and bring it to its store."""
    part = writer.close()
    if part.shard is not None:
        try:
            folder.put(writer.file, part.shard.path)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({fault(error)}); free some space") from None
    return part


def finish(folder: Folder, layout: Layout, parts: Sequence[Part], source: dict[str, Any]) -> Manifest:
    """Write the manifest of shards that lie in `folder`; the same for the same parts. Raises ValueError without any."""
    shards = tuple(part.shard for part in parts if part.shard)
    if not shards:
        raise ValueError(f"{folder}: no patch was written; nothing to make a store of")
    manifest = Manifest(
        encoding=layout.encoding,
        size=layout.size,
        scheme=layout.scheme,
        has_clean=any(part.has_clean for part in parts),
        shards=shards,
        source=source,
        **counted(layout, parts),
    )
    write_manifest(folder, manifest)
    return manifest


def counted(layout: Layout, parts: Sequence[Part]) -> dict[str, Any]:
    """The fields of a manifest that count: contracts, places, patches, histogram, seasons, statistics."""
    names = (*landcover.scheme(layout.scheme).classes, "unlabelled")
    splits = sorted({split for part in parts for split in part.places})
    seasons = {split: _added([part.seasons.get(split, ()) for part in parts]) for split in splits}
    found = {split: statistics.merged([part.tallies.get(split, {}) for part in parts]) for split in splits}
    described = found.get("train") or found[splits[0]]

    def named(counts: np.ndarray) -> dict[str, int]:
        return dict(zip(names, counts.tolist(), strict=True))

    return {
        "contracts": {
            name: contract.measured([band.mean for band in described[name]], [band.std for band in described[name]])
            if name in described
            else contract
            for name, contract in layout.contracts.items()
        },
        "places": {split: sum(part.places.get(split, 0) for part in parts) for split in splits},
        "patches": {split: sum(part.patches.get(split, 0) for part in parts) for split in splits},
        "histogram": {split: named(sum(seasons[split])) for split in splits},
        "seasons": {split: tuple(named(counts) for counts in seasons[split]) for split in splits},
        "statistics": found,
    }


def _added(parts: list[tuple[tuple[int, ...], ...]]) -> list[np.ndarray]:
    longest = max(len(part) for part in parts)
    return [sum(np.array(part[k], np.int64) for part in parts if len(part) > k) for k in range(longest)]


def shard_name(number: int) -> str:
    """Of the shard of that number."""
    return f"shard-{number:05d}.parquet"


def aside(folder: Folder) -> tempfile.TemporaryDirectory:
    """Where a shard is written before it is brought to `folder`: in the folder itself where that is local. Raises
    ValueError when it cannot be made."""
    try:
        return tempfile.TemporaryDirectory(prefix=ASIDE, dir=folder.local, ignore_cleanup_errors=True)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot be written on {socket.gethostname()} ({fault(error)}); free some space, or name a folder "
            "that all nodes share, or a bucket"
        ) from None


def claim(folder: Folder) -> None:
    """Make the folder of a new store. Raises ValueError when it holds something or cannot be written."""
    try:
        folder.make()
        if MANIFEST in (held := folder.names()):
            raise ValueError(f"{folder}: already holds a store; choose an empty or new folder")
        if held:
            raise ValueError(
                f"{folder}: already holds something ({held[0]}); choose an empty or new folder for the store"
            )
        if folder.local:  # what is written first to a bucket will tell
            folder.write(".probe", b"")
            folder.remove(".probe")
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({fault(error)}); choose another folder") from None
