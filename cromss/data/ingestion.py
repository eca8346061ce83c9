"""From a source to a patch store: locations in a seeded random order, fold by fold, cut, checked and written.

Whatever cannot be used is skipped, named and counted.
"""

import fnmatch
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from cromss.data.manifest import Manifest
from cromss.data.patch import Patch, trainable
from cromss.data.sources.base import Location, Skipped, Source
from cromss.data.tiling import Axis, Split, cut
from cromss.data.writer import StoreWriter, claim
from cromss.sensors import SENTINEL1, SENTINEL2
from cromss.settings import Settings

_NAMES_SHOWN = 8  # per reason; the manifest has them all


class Ingest(Settings):
    """How a source becomes a store."""

    bands: str = pydantic.Field("all", description="Sentinel-2 bands of the store: all, 12, 9, 3, or names B4,B3,B2")
    tile: int | None = pydantic.Field(None, ge=8, description="cut square patches of that many pixels; default whole")
    split: Split = pydantic.Field(
        "source",
        description="source: as the layout says; none: all train; halves: west train, east test; halves-swapped",
    )
    axis: Axis = pydantic.Field("west-east", description="direction of the halves")
    guard: int = pydantic.Field(64, ge=0, description="pixels left out between the halves")
    encoding: Literal["auto", "uint8", "raw"] = pydantic.Field(
        "auto", description="uint8 for pretraining, raw for downstream sets; auto: as is usual for the layout"
    )
    folds: int = pydantic.Field(100, ge=1, description="parts by location, for validation on whole folds")
    seed: int = pydantic.Field(0, ge=0, description="of the order of locations")
    include: tuple[str, ...] = pydantic.Field((), description="only locations like this pattern, * allowed; repeatable")
    exclude: tuple[str, ...] = pydantic.Field((), description="no locations like this pattern; repeatable")
    readers: int = pydantic.Field(2, ge=1, description="threads that read ahead")

    @pydantic.field_validator("bands")
    @classmethod
    def _known_bands(cls, value: str) -> str:
        SENTINEL2.select(value)
        return value


@dataclass
class Summary:
    """What became of a source. `manifest` is None when nothing could be used: then there is no store either."""

    path: Path
    manifest: Manifest | None = None
    skipped: list[Skipped] = field(default_factory=list)
    offsets: Counter = field(default_factory=Counter)  # what was done about the DN offset -> acquisitions

    @property
    def patches(self) -> int:
        """Patches written."""
        return sum(self.manifest.patches.values()) if self.manifest else 0

    def reasons(self) -> dict[str, list[str]]:
        """Why -> the names of what was skipped for it, the most frequent first."""
        found: dict[str, list[str]] = {}
        for one in self.skipped:
            found.setdefault(one.reason, []).append(one.name)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def __str__(self) -> str:
        lines = []
        for split, patches in self.manifest.patches.items() if self.manifest else ():
            lines.append((split, f"{patches:,} patches of {self.manifest.places[split]:,} places"))
            pixels = self.manifest.histogram[split]
            shares = (f"{name} {count / sum(pixels.values()):.1%}" for name, count in pixels.items() if count)
            lines.append(("  classes", ", ".join(shares)))
        lines += [("S2 offset", f"{what}: {count:,}") for what, count in self.offsets.most_common()]
        lines.append(("skipped", f"{len(self.skipped):,}"))
        for reason, names in self.reasons().items():
            more = f" and {len(names) - _NAMES_SHOWN:,} more, all in manifest.json" if len(names) > _NAMES_SHOWN else ""
            lines.append((f"{len(names):9,}", f"{reason}: {', '.join(names[:_NAMES_SHOWN])}{more}"))
        lines.append(("store", f"{self.path}" if self.manifest else "none: nothing could be used"))
        return "\n".join(f"{key:<10} {value}" for key, value in lines)


def ingest(
    source: Source, store: str | Path, config: Ingest | None = None, progress: Callable[[str], None] | None = None
) -> Summary:
    """Write the patches of `source` to a new store. `progress` receives a line now and then.

    Raises ValueError when the source is empty or the store cannot be written.
    """
    config = config or Ingest()
    summary = Summary(Path(store))
    order = _order(_chosen(source.locations(), config), config)
    claim(summary.path)  # before hours of reading
    origin = {"layout": source.model_dump(mode="json"), "ingest": config.model_dump(mode="json")}
    shown = _Progress(len(order), progress)
    writer: StoreWriter | None = None
    last = None
    for (location, fold), found in zip(
        order, _ahead(source, [place for place, _ in order], config.readers), strict=True
    ):
        if writer and (location.split, fold) != last:
            writer.end_fold()
        last = location.split, fold
        for place in _places(found, source, config, summary):
            if writer is None:
                writer = StoreWriter(
                    store,
                    scheme=source.scheme,
                    bands={"s1": SENTINEL1.bands, "s2": _bands(source, config)},
                    size=place[0].size,
                    encoding=_encoding(source, config),
                    source=origin,
                )
            if usable := _fitting(place, writer.size, summary):
                writer.add(usable, usable[0].split, fold)
                shown.patches += len(usable)
        shown.step(len(summary.skipped))
    if writer:
        origin |= {"offsets": dict(summary.offsets), "skipped": summary.reasons()}  # the writer keeps it until close
        summary.manifest = writer.close()
    else:
        summary.path.rmdir()
    return summary


def _chosen(locations: list[Location], config: Ingest) -> list[Location]:
    def wanted(name: str) -> bool:
        def like(patterns: Iterable[str]) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

        return (not config.include or like(config.include)) and not like(config.exclude)

    kept = [location for location in locations if wanted(location.id)]
    if not kept:
        raise ValueError(
            f"--include {' '.join(config.include) or '*'} --exclude {' '.join(config.exclude) or '(none)'}: "
            f"leaves none of {len(locations)} locations, for example {locations[0].id}"
        )
    return kept


def _order(locations: list[Location], config: Ingest) -> list[tuple[Location, int]]:
    """Permuted, split by split, with the fold of each: folds are contiguous, so one fold at a time waits in memory."""
    rng = np.random.default_rng(config.seed)
    permuted = [locations[index] for index in rng.permutation(len(locations))]
    by_split: dict[str, list[Location]] = {}
    for location in permuted:
        by_split.setdefault(location.split, []).append(location)
    return [
        (location, number * min(config.folds, len(group)) // len(group))
        for _, group in sorted(by_split.items())
        for number, location in enumerate(group)
    ]


def _ahead(source: Source, locations: Sequence[Location], readers: int) -> Iterator[list[Patch | Skipped]]:
    """What each location holds, in order, read by threads a few locations ahead."""

    def read(location: Location) -> list[Patch | Skipped]:
        try:
            return list(source.read(location))
        except (ValueError, OSError) as error:
            return [Skipped(location.id, str(error))]

    pool = ThreadPoolExecutor(readers)
    waiting: deque = deque()
    try:
        for location in locations:
            waiting.append(pool.submit(read, location))
            if len(waiting) > 2 * readers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _places(found: list[Patch | Skipped], source: Source, config: Ingest, summary: Summary) -> Iterator[list[Patch]]:
    """The tiles of a location, all acquisitions of one tile together, in time order."""
    places: dict[tuple[str, str], list[Patch]] = {}
    for patch in found:
        if isinstance(patch, Skipped):
            summary.skipped.append(patch)
            continue
        if "8-bit codes" in patch.notes.values() and _encoding(source, config) == "raw":
            summary.skipped.append(Skipped(patch.patch_id, "8-bit codes hold no raw values; use --encoding uint8"))
            continue
        if "s2_offset" in patch.notes:
            summary.offsets[patch.notes["s2_offset"]] += 1
        try:
            kept = _subset(patch, source, config)
            tiles = cut(kept, config.tile, split=config.split, guard=config.guard, axis=config.axis)
        except ValueError as error:
            summary.skipped.append(Skipped(patch.patch_id, str(error)))
            continue
        for tile in tiles:
            if trainable(tile.label, tile.valid):
                places.setdefault((tile.split, tile.tile), []).append(tile)
            else:
                summary.skipped.append(Skipped(tile.patch_id, "no labelled pixel with data in both sensors"))
    yield from places.values()


def _fitting(place: list[Patch], size: tuple[int, int], summary: Summary) -> list[Patch]:
    usable = [patch for patch in place if patch.size == size]
    for patch in place:
        if patch.size != size:
            (height, width), (rows, columns) = patch.size, size
            reason = f"{height}x{width} pixels, the store holds {rows}x{columns}; --tile cuts all to one size"
            summary.skipped.append(Skipped(patch.patch_id, reason))
    return usable


def _encoding(source: Source, config: Ingest) -> str:
    return source.encoding if config.encoding == "auto" else config.encoding


def _bands(source: Source, config: Ingest) -> tuple[str, ...]:
    return SENTINEL2.select(getattr(source, "bands", config.bands))


def _subset(patch: Patch, source: Source, config: Ingest) -> Patch:
    """The store's bands of a source that knows no `bands` itself and yields all 13."""
    bands = _bands(source, config)
    if hasattr(source, "bands") or bands == SENTINEL2.bands:
        return patch
    return replace(patch, images=patch.images | {"s2": patch.images["s2"][SENTINEL2.indices(bands)]})


class _Progress:
    """`120/384 locations, 480 patches, 3 skipped, 35.2 locations/s, ETA 0:00:07`: twice a second on a terminal, every
    ten seconds in a log."""

    def __init__(self, total: int, write: Callable[[str], None] | None):
        self.total, self.write = total, write
        self.done = self.patches = 0
        self.start = self.last = time.monotonic()
        self.pause = 0.5 if sys.stderr.isatty() else 10.0

    def step(self, skipped: int) -> None:
        self.done += 1
        now = time.monotonic()
        if self.write is None or (now - self.last < self.pause and self.done < self.total):
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        left = int((self.total - self.done) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        self.write(
            f"{self.done:,}/{self.total:,} locations, {self.patches:,} patches, {skipped:,} skipped, "
            f"{rate:.1f} locations/s, ETA {clock}"
        )
