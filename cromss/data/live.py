"""A store without shards: its row groups are made from the source's own files while they are read.

Blocks, slots, rows, cells and checksums are those of the store that `ingest` would write, so the plan, the readers and
everything behind them work on it unchanged; training before converting gives the batches of training after. What it
costs is decoding the same files again in every epoch (`bench stream` says how much). A source node that is to read has to
see the source's path.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cromss.data.admission import admitted
from cromss.data.cache import CacheConfig
from cromss.data.encoding import RowEncoder
from cromss.data.live_index import INDEX, SCHEMA, stamp, unpacked
from cromss.data.manifest import Manifest
from cromss.data.patch import Patch
from cromss.data.raster import centre
from cromss.data.sources.base import Source
from cromss.data.store import Blocks, Lost, PatchStore
from cromss.data.tiling import Tile, crop, moved
from cromss.data.underway import origin
from cromss.files import Folder, fault

CHECKED = 4096  # locations whose files are looked at when the store is opened
LOOKERS = 8  # threads that look at them
REMEDY = (
    "index it again into a new folder: python -m cromss.ingest {1} SRC STORE --live (--exclude ID leaves a location out), "
    "or train without what is gone: data.quarantine=true"
)

# What the index tells without a file being opened.
_TOLD = {"patch_id", "location_id", "tile", "acquisition", "slot", "split", "fold", "crs", "transform", "lon", "lat"}


class LiveStore(PatchStore):
    """A live store opened for reading; its shards are its blocks. Threads read as one thread would: GDAL decodes without
    Python's lock, and the readers already run several."""

    def __init__(
        self, folder: Folder, manifest: Manifest, *, without: Iterable[Lost] = (), cache: CacheConfig | None = None
    ):
        self._index = _read_index(folder, manifest)
        self.source, self.config = origin(folder, manifest, "index it again")
        super().__init__(folder, manifest, without=without, cache=cache)
        self._encoder = RowEncoder(self.layout)
        said = [self.digest, manifest.source["live"]["index"], _settings(self.source)]
        self.digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def read(self, shard: int, row_group: int, columns: list[str]) -> pa.Table:
        """One row group. An acquisition is decoded once, however many of its tiles the row group holds.

        Raises ValueError naming the patch, its fault and the way out, when a file that looked well turns out not to be.
        """
        names = [name for name in self.layout.schema.names if name in columns]
        rows = self._rows(shard, row_group, range(int(self._counts[shard])), names)
        fields = [self.layout.schema.field(name) for name in names]
        return pa.Table.from_pylist(rows, schema=pa.schema(fields, self.layout.schema.metadata))

    def name(self, shard: int) -> str:
        """A block's."""
        return f"block-{shard:05d}"

    @property
    def remedy(self) -> str:
        """What to do about files that are gone or changed."""
        return REMEDY.format(self.folder, self.source.kind)

    def damaged(self, content: bool = False, progress: Callable[[int], None] = lambda done: None) -> list[Lost]:
        """The blocks with a location whose files are not those of the index: one is missing or has another size; or its
        header says something else, if `content`. Pixels are not looked at: they are when they are read.

        Opening a store (not `content`) looks at the files of 4,096 locations, drawn by the index's digest. Layouts that do
        not tell which files they read are not checked.
        """
        gone = {lost.shard for lost in self.without}
        rows = self._index.select(["location_id"]).to_pydict()["location_id"]
        first = {name: row for row, name in reversed(list(enumerate(rows)))}
        chosen = sorted(first)
        if not content and len(chosen) > CHECKED:
            seed = int(self.manifest.source["live"]["index"][:8], 16)
            chosen = np.random.default_rng(seed).choice(chosen, CHECKED, replace=False).tolist()
        faults, looked = {}, 0
        with ThreadPoolExecutor(LOOKERS) as pool:
            entries = (self._entry(first[name]) for name in chosen)
            for name, (size, reason) in zip(
                chosen, pool.map(lambda row: self._look(row, content), entries), strict=True
            ):
                looked += size
                progress(looked)
                if reason:
                    faults[name] = reason
        found: dict[int, Lost] = {}
        blocks = self._index["block"].to_numpy()
        for row, name in enumerate(rows):
            block = int(blocks[row])
            if name in faults and block not in found and self.name(block) not in gone:
                patches = int(self._counts[block]) * self._entry(row)["n"]
                found[block] = Lost(self.name(block), f"has a location that does not hold: {faults[name]}", patches)
        return [found[block] for block in sorted(found)]

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _rows(self, block: int, slot: int, positions: Iterable[int], names: list[str]) -> list[dict[str, Any]]:
        wanted = []
        for position in positions:
            entry = self._entry(int(self._starts[block]) + position)
            wanted.append((entry, (slot + position) % entry["n"]))
        if set(names) <= _TOLD:
            rows = [_told(entry, number) for entry, number in wanted]
        else:
            together: dict[tuple[str, int], list[int]] = {}
            for row, (entry, number) in enumerate(wanted):
                together.setdefault((entry["location_id"], number), []).append(row)
            rows = [{} for _ in wanted]
            for (_, number), members in together.items():
                whole = self._decoded(wanted[members[0]][0], number)
                for row in members:
                    entry = wanted[row][0]
                    rows[row] = self._encoded(crop(whole, _tile(entry)), entry, names)
        return [{name: slot if name == "slot" else row[name] for name in names} for row in rows]

    def _row(self, shard: int, row_group: int, row: int) -> dict[str, Any]:
        return self._rows(shard, row_group, [row], self.layout.schema.names)[0]

    def _decoded(self, entry: dict[str, Any], number: int) -> Patch:
        acquisition, location = entry["acquisitions"][number], unpacked(self.source, entry)
        try:
            patch = admitted(self.source.read_one(location, acquisition), self.source, self.config)
            if patch.size != tuple(entry["size"]) or (patch.crs, patch.transform) != _grid(entry, number):
                raise ValueError("has another size, CRS or transform than when it was indexed")
        except (ValueError, OSError) as error:
            raise self._refused(
                location.id, acquisition, fault(error) if isinstance(error, OSError) else error
            ) from None
        return patch

    def _encoded(self, patch: Patch, entry: dict[str, Any], names: list[str]) -> dict[str, Any]:
        try:
            self._encoder.check(patch)
        except ValueError as error:
            raise self._refused(patch.location_id, patch.acquisition, error) from None
        return self._encoder.row(patch, entry["split"], entry["fold"], names)

    def _refused(self, location: str, acquisition: str, reason: Any) -> ValueError:
        return ValueError(
            f"{self.folder}: patch {location}/{acquisition} cannot be used: {reason}. Index it again without the location: "
            f"python -m cromss.ingest {self.source.kind} SRC STORE --live --exclude {location}; or convert the source, "
            "which skips what cannot be used (leave --live out)"
        )

    # --- the index ----------------------------------------------------------------------------------------------------

    def _entry(self, row: int) -> dict[str, Any]:
        [entry] = self._index.slice(row, 1).to_pylist()
        return entry

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        return np.bincount(self._index["block"].to_numpy())

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self._counts) - self._counts

    def _all_blocks(self) -> Blocks:
        first = self._index.select(["n", "split", "fold"]).take(self._starts)
        number = np.arange(len(first))
        n, fold = (first[name].to_numpy().astype(np.int64) for name in ("n", "fold"))
        return Blocks(number, np.zeros_like(number), n, self._counts, np.array(first["split"].to_pylist()), fold)

    def _look(self, entry: dict[str, Any], content: bool) -> tuple[int, str]:
        """(bytes of a location's files, what is wrong with them)."""
        location = unpacked(self.source, entry)
        try:
            size, files = stamp(self.source, location, entry["acquisitions"])
            if files != entry["files"]:
                return size, f"{location.id} has other files, or of other sizes, than when it was indexed"
            if content and entry["headers"]:
                survey = self.source.survey(location)
                if survey.acquisitions != tuple(entry["acquisitions"]) or survey.digest != entry["headers"]:
                    return size, f"{location.id}'s files say other things in their headers than when it was indexed"
        except (ValueError, OSError) as error:
            return 0, str(error)
        return size, ""

    def _bulk(self) -> list[str]:
        live = self.manifest.source["live"]
        looked = ", ".join(f"{count['places']:,} places of {split}" for split, count in live["sample"].items())
        where = getattr(self.source, "path", self.source.kind)
        distinct = dict(zip(self._index["location_id"].to_pylist(), self._index["bytes"].to_pylist(), strict=True))
        return [
            f"source       {where}, {len(distinct):,} locations, {sum(distinct.values()) / 1e9:,.3f} GB",
            f"sample       classes and statistics are those of {looked}; {live['untrainable']:,} patches of them have no "
            "trainable pixel",
        ]


def _tile(entry: dict[str, Any]) -> Tile:
    return Tile(entry["tile"], tuple(entry["window"]), entry["split"])


def _grid(entry: dict[str, Any], number: int) -> tuple[str, tuple[float, ...]]:
    return entry["crs"][number], tuple(entry["transforms"][6 * number : 6 * number + 6])


def _told(entry: dict[str, Any], number: int) -> dict[str, Any]:
    """The columns of a row that need no pixel."""
    crs, transform = _grid(entry, number)
    top, left, height, width = entry["window"]
    if entry["tile"]:
        transform = moved(transform, top, left)
    lon, lat = centre(crs, transform, (height, width))
    acquisition = entry["acquisitions"][number]
    patch_id = "/".join(filter(None, (entry["location_id"], acquisition, entry["tile"])))
    named = {name: entry[name] for name in ("location_id", "tile", "split", "fold")}
    return named | {
        "patch_id": patch_id,
        "acquisition": acquisition,
        "crs": crs,
        "transform": list(transform),
        "lon": lon,
        "lat": lat,
    }


def _settings(source: Source) -> dict[str, Any]:
    """A source's settings but for its paths: the same files elsewhere are the same store."""
    values = source.model_dump(mode="json")
    return {name: value for name, value in values.items() if not isinstance(getattr(source, name), Path)}


def _read_index(folder: Folder, manifest: Manifest) -> pa.Table:
    """In the order of its blocks. Raises ValueError when it is not the one that the manifest names."""
    try:
        content = folder.read(INDEX)
    except OSError as error:
        raise ValueError(f"{folder}/{INDEX}: cannot be read ({fault(error)}); index it again") from None
    if hashlib.sha256(content).hexdigest() != manifest.source.get("live", {}).get("index"):
        raise ValueError(f"{folder}/{INDEX}: is not what was written; index it again")
    table = pq.read_table(pa.BufferReader(content))
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{folder}/{INDEX}: is of another version of cromss; index it again")
    return table.combine_chunks()
