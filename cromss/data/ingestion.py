"""From a source to a patch store: locations in a seeded random order, fold by fold, cut, checked and written.

The order is cut into chunks of locations. A chunk becomes one shard, by a function of the source, the settings and the
chunk's number alone: whoever runs it, wherever, whenever, writes the same bytes. So chunks run as Ray Data tasks on many
nodes, an ingest that was stopped goes on with the chunks that are missing, and a damaged shard can be written again.

    STORE/shard-00000.parquet ...    STORE/.ingest/{job.json, 00000.json, ...} until STORE/manifest.json is written

Whatever cannot be used is skipped, named and counted.
"""

import fnmatch
import functools
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pydantic

from cromss.data.manifest import MANIFEST, SCHEMA_VERSION, Layout, Manifest
from cromss.data.patch import Patch, trainable
from cromss.data.progress import Progress
from cromss.data.sources.base import Location, Skipped, Source
from cromss.data.tiling import Axis, Split, cut
from cromss.data.writer import ASIDE, Part, ShardWriter, aside, claim, deliver, finish, shard_name
from cromss.files import Folder, fault, unavailable
from cromss.sensors import SENTINEL1, SENTINEL2
from cromss.settings import Settings, leaves

JOURNAL = ".ingest"
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
    cell: float | None = pydantic.Field(
        None, gt=0, le=90, description="folds of whole cells of so many degrees, so that no neighbour of a training "
        "location validates; default: by location"
    )  # fmt: skip
    seed: int = pydantic.Field(0, ge=0, description="of the order of locations")
    include: tuple[str, ...] = pydantic.Field((), description="only locations like this pattern, * allowed; repeatable")
    exclude: tuple[str, ...] = pydantic.Field((), description="no locations like this pattern; repeatable")
    chunk: int = pydantic.Field(64, ge=16, description="locations of a shard, and of a task")

    @pydantic.field_validator("bands")
    @classmethod
    def _known_bands(cls, value: str) -> str:
        SENTINEL2.select(value)
        return value


@dataclass
class Summary:
    """What became of a source. `manifest` is None when nothing could be used: then there is no store either."""

    path: Folder
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


@dataclass(frozen=True)
class Chunk:
    """Some locations with their folds, in order; together they are one shard."""

    number: int
    places: tuple[tuple[Location, int], ...]

    @property
    def file(self) -> str:
        """Name of what its task leaves in the journal."""
        return f"{self.number:05d}.json"


class Outcome(Settings):
    """What a chunk's task left behind."""

    part: Part
    skipped: tuple[tuple[str, str], ...] = ()
    offsets: dict[str, int] = {}


@dataclass(frozen=True)
class Job:
    """All that a task needs beside its chunk. `readers` = threads that read ahead."""

    source: Source
    config: Ingest
    layout: Layout
    store: str
    readers: int = 2

    def write(self, chunk: Chunk, read: Callable[[int], None] = lambda patches: None) -> Outcome:
        """Write the chunk's shard and its entry in the journal. `read` is told after each location how many patches it
        gave. Raises ValueError when the store cannot be written."""
        folder = Folder.of(self.store)
        skipped: list[Skipped] = []
        offsets: Counter = Counter()
        with aside(folder) as place:
            writer = ShardWriter(self.layout, Path(place) / "shard", shard_name(chunk.number))
            last = None
            try:
                for (location, fold), found in zip(chunk.places, self._ahead(chunk), strict=True):
                    if last is not None and (location.split, fold) != last:
                        writer.end_fold()
                    last = location.split, fold
                    written = 0
                    for tiles in places(found, self.source, self.config, skipped, offsets):
                        if usable := fitting(tiles, self.layout.size, skipped):
                            writer.add(usable, usable[0].split, fold)
                            written += len(usable)
                    read(written)
                part = deliver(writer, folder)
            except BaseException:
                writer.abandon()
                raise
        outcome = Outcome(part=part, skipped=tuple((one.name, one.reason) for one in skipped), offsets=dict(offsets))
        _write(folder / JOURNAL, chunk.file, outcome.model_dump(mode="json"))
        return outcome

    def _ahead(self, chunk: Chunk) -> Iterator[list[Patch | Skipped]]:
        """What each location holds, in order, read by threads a few locations ahead."""
        pool = ThreadPoolExecutor(self.readers)
        waiting: deque = deque()
        try:
            for location, _ in chunk.places:
                waiting.append(pool.submit(_read, self.source, location))
                if len(waiting) > self.readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def ingest(
    source: Source,
    store: str | Path | Folder,
    config: Ingest | None = None,
    progress: Callable[[str], None] | None = None,
    workers: Callable[[int], int] = lambda chunks: 0,
) -> Summary:
    """Write the patches of `source` to a store, or go on with an ingest that was stopped. `progress` receives a line now
    and then. `workers` is asked how many Ray Data tasks shall share so many chunks, on any node that sees source and
    store; 0 = this process does it, without Ray.

    Raises ValueError when the source is empty, the store cannot be written or is another's.
    """
    config, folder = config or Ingest(), Folder.of(store)
    chunks = plan_chunks(source, config)
    done = _begin(folder, source, config, chunks)
    layout = layout_of(source, config, chunks)
    if layout is None:
        outcomes = [_unusable(source, config, chunk) for chunk in chunks]
        _forget(folder)
        return Summary(folder, None, *_collected(outcomes))
    job = Job(source, config, layout, str(folder))
    missing = [chunk for chunk in chunks if chunk.number not in done]
    shown = Progress(sum(len(chunk.places) for chunk in chunks), progress)
    if done:
        shown.say(f"going on: {len(done):,} of {len(chunks):,} chunks are there")
        shown.already(sum(len(chunk.places) for chunk in chunks if chunk.number in done))
    tasks = workers(len(missing)) if missing else 0
    for number, outcome in _by_ray(job, missing, tasks, shown) if tasks else _here(job, missing, shown):
        done[number] = outcome
    outcomes = [done[chunk.number] for chunk in chunks]
    skipped, offsets = _collected(outcomes)
    summary = Summary(folder, None, skipped, offsets)
    if not any(outcome.part.shard for outcome in outcomes):
        _forget(folder)
        return summary
    _all_there(folder, outcomes)
    origin = provenance(source, config) | {"offsets": dict(offsets), "skipped": summary.reasons()}
    summary.manifest = finish(folder, layout, [outcome.part for outcome in outcomes], origin)
    (folder / JOURNAL).remove_all()
    return summary


def provenance(source: Source, config: Ingest) -> dict[str, Any]:
    """What the manifest keeps of where a store came from; enough to write a shard again."""
    return {"layout": source.model_dump(mode="json"), "ingest": config.model_dump(mode="json"), "arrow": pa.__version__}


# --- the order --------------------------------------------------------------------------------------------------------


def plan_chunks(source: Source, config: Ingest) -> list[Chunk]:
    """The source's locations, permuted, fold by fold, in chunks. Raises ValueError when none are left."""
    order = _order(source, _chosen(source.locations(), config), config)
    starts = range(0, len(order), config.chunk)
    return [Chunk(number, tuple(order[first : first + config.chunk])) for number, first in enumerate(starts)]


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


def _order(source: Source, locations: list[Location], config: Ingest) -> list[tuple[Location, int]]:
    """Permuted, split by split, with the fold of each: folds are contiguous, so one fold at a time waits in memory."""
    rng = np.random.default_rng(config.seed)
    permuted = [locations[index] for index in rng.permutation(len(locations))]
    by_split: dict[str, list[Location]] = {}
    for location in permuted:
        by_split.setdefault(location.split, []).append(location)
    order = []
    for _, group in sorted(by_split.items()):
        if config.cell is None:
            numbered = [
                (location, number * min(config.folds, len(group)) // len(group))
                for number, location in enumerate(group)
            ]
        else:
            numbered = _by_cell(source, group, config)
        order += numbered
    return order


def _by_cell(source: Source, group: list[Location], config: Ingest) -> list[tuple[Location, int]]:
    """Whole cells of the globe, in the order in which the permutation meets them, dealt to folds of about equal size."""
    cells: dict[tuple[int, int], list[Location]] = {}
    for location in group:
        cells.setdefault(_cell(source, location, config.cell), []).append(location)
    folds, before, order = min(config.folds, len(cells)), 0, []
    for number, members in enumerate(cells.values()):
        # by the share of locations that came before, but never so far behind that the last folds stay empty
        fold = max(before * folds // len(group), number + folds - len(cells))
        order += [(location, fold) for location in members]
        before += len(members)
    return order


def _cell(source: Source, location: Location, degrees: float) -> tuple[int, int]:
    try:
        found = source.survey(location)
    except (ValueError, OSError):  # it will be skipped, and named, when it is read
        return (0, 0)
    if not np.isfinite([found.lon, found.lat]).all():
        raise ValueError(f"--cell {degrees:g}: {location.id} does not say where it lies; leave --cell out")
    return int(np.floor(found.lon / degrees)), int(np.floor(found.lat / degrees))


# --- begin, go on, end ------------------------------------------------------------------------------------------------


def _begin(folder: Folder, source: Source, config: Ingest, chunks: list[Chunk]) -> dict[int, Outcome]:
    """Claim the folder, or find the chunks that an earlier run of this same ingest finished."""
    ids = hashlib.sha256("\n".join(location.id for chunk in chunks for location, _ in chunk.places).encode())
    job = provenance(source, config) | {"locations": ids.hexdigest(), "schema": SCHEMA_VERSION}
    try:
        held = [name for name in folder.names() if not name.startswith(ASIDE)]
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({fault(error)})") from None
    journal = folder / JOURNAL
    if JOURNAL not in held or MANIFEST in held:
        claim(folder)
        _write(journal, "job.json", job)
        return {}
    try:
        before = json.loads(journal.read("job.json"))
    except (OSError, ValueError) as error:
        way = f"{fault(error)}; try again" if unavailable(error) else "delete the folder"
        raise ValueError(f"{folder}: holds an unfinished ingest that cannot be read; {way}") from None
    if before != job:
        theirs, ours = leaves(before), leaves(job)
        changed = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
        settings = [key for key in changed if key != "locations"]
        said = ", ".join(f"{key} {theirs.get(key)} -> {ours.get(key)}" for key in settings[:3]) or "other locations"
        raise ValueError(
            f"{folder}: holds an unfinished ingest of another configuration ({said}); repeat its command to go on with "
            f"it, or choose another folder"
        )
    for name in folder.names():
        if name.startswith(ASIDE):  # of a process that was killed
            (folder / name).remove_all()
    return {chunk.number: outcome for chunk in chunks if (outcome := _finished(folder, journal, chunk)) is not None}


def _finished(folder: Folder, journal: Folder, chunk: Chunk) -> Outcome | None:
    """A chunk's outcome, if it was written and its shard is there."""
    try:
        outcome = Outcome.model_validate_json(journal.read(chunk.file))
    except (OSError, ValueError):
        return None
    shard = outcome.part.shard
    return outcome if shard is None or folder.size(shard.path) == shard.bytes else None


def _all_there(folder: Folder, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        shard = outcome.part.shard
        if shard and folder.size(shard.path) != shard.bytes:
            raise ValueError(
                f"{folder}: {shard.path} was written but is not here: on the disk of another node? Name a folder that all "
                f"nodes share, or a bucket"
            )


def _forget(folder: Folder) -> None:
    (folder / JOURNAL).remove_all()
    if folder.local:
        folder.local.rmdir()


def _write(folder: Folder, name: str, content: dict[str, Any]) -> None:
    try:
        folder.make()
        folder.write(name, json.dumps(content).encode())
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({fault(error)}); free some space or choose another") from None


def _collected(outcomes: Iterable[Outcome]) -> tuple[list[Skipped], Counter]:
    skipped, offsets = [], Counter()
    for outcome in outcomes:
        skipped += [Skipped(*one) for one in outcome.skipped]
        offsets.update(outcome.offsets)
    return skipped, offsets


# --- who does it ------------------------------------------------------------------------------------------------------


def _here(job: Job, chunks: list[Chunk], shown: Progress) -> Iterator[tuple[int, Outcome]]:
    for chunk in chunks:
        outcome = job.write(chunk, lambda patches: shown.step(patches))
        shown.skipped += len(outcome.skipped)
        yield chunk.number, outcome


def _by_ray(job: Job, chunks: list[Chunk], workers: int, shown: Progress) -> Iterator[tuple[int, Outcome]]:
    """Ray Data tasks, `workers` at a time, as they finish. A task that a lost node took with it runs again elsewhere."""
    from ray.exceptions import RayTaskError

    from cromss.data.tasks import run_tasks

    tasks = [functools.partial(_task, job, chunk) for chunk in chunks]
    lengths = {chunk.number: len(chunk.places) for chunk in chunks}
    try:
        for table in run_tasks(tasks, at_a_time=workers) if tasks else ():
            for row in table.to_pylist():
                outcome = Outcome.model_validate_json(row["outcome"])
                shown.skipped += len(outcome.skipped)
                shown.step(sum(outcome.part.patches.values()), lengths[row["chunk"]])
                yield row["chunk"], outcome
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise ValueError(str(error.cause).splitlines()[0]) from None
        raise


def _task(job: Job, chunk: Chunk) -> Iterator[pa.Table]:
    outcome = job.write(chunk)
    yield pa.table({"chunk": [chunk.number], "outcome": [outcome.model_dump_json()]})


def _read(source: Source, location: Location) -> list[Patch | Skipped]:
    try:
        return list(source.read(location))
    except (ValueError, OSError) as error:
        return [Skipped(location.id, str(error))]


# --- one location -----------------------------------------------------------------------------------------------------


def layout_of(source: Source, config: Ingest, chunks: list[Chunk]) -> Layout | None:
    """What all rows have in common, patch size included: that of the first place that can be used. None without one."""
    for chunk in chunks:
        for location, _ in chunk.places:
            for tiles in places(_read(source, location), source, config, [], Counter()):
                bands = {"s1": SENTINEL1.bands, "s2": bands_of(source, config)}
                return Layout(source.scheme, bands, tiles[0].size, encoding_of(source, config), products_of(tiles[0]))
    return None


def _unusable(source: Source, config: Ingest, chunk: Chunk) -> Outcome:
    skipped: list[Skipped] = []
    for location, _ in chunk.places:
        deque(places(_read(source, location), source, config, skipped, Counter()), maxlen=0)
    return Outcome(part=Part(), skipped=tuple((one.name, one.reason) for one in skipped))


def places(
    found: Iterable[Patch | Skipped], source: Source, config: Ingest, skipped: list[Skipped], offsets: Counter
) -> Iterator[list[Patch]]:
    """The tiles of a location, all acquisitions of one tile together, in time order."""
    tiles_of: dict[tuple[str, str], list[Patch]] = {}
    for patch in found:
        if isinstance(patch, Skipped):
            skipped.append(patch)
            continue
        try:
            kept = admitted(patch, source, config)
            if "s2_offset" in kept.notes:
                offsets[kept.notes["s2_offset"]] += 1
            tiles = cut(kept, config.tile, split=config.split, guard=config.guard, axis=config.axis)
        except ValueError as error:
            skipped.append(Skipped(patch.patch_id, str(error)))
            continue
        for tile in tiles:
            if trainable(tile.label, tile.valid):
                tiles_of.setdefault((tile.split, tile.tile), []).append(tile)
            else:
                skipped.append(Skipped(tile.patch_id, "no labelled pixel with data in both sensors"))
    yield from tiles_of.values()


def fitting(place: list[Patch], size: tuple[int, int], skipped: list[Skipped]) -> list[Patch]:
    """The acquisitions of a place that have the store's size."""
    for patch in place:
        if patch.size != size:
            skipped.append(Skipped(patch.patch_id, misfit(patch.size, size)))
    return [patch for patch in place if patch.size == size]


def misfit(size: tuple[int, int], expected: tuple[int, int]) -> str:
    """Why a patch of another size than the store's is left out."""
    (height, width), (rows, columns) = size, expected
    return f"{height}x{width} pixels, the store holds {rows}x{columns}; --tile cuts all to one size"


def products_of(patch: Patch) -> dict[str, str]:
    """modality -> product, as the patch says."""
    return {name: contract.product for name, contract in patch.contracts.items()}


def encoding_of(source: Source, config: Ingest) -> str:
    """How the store holds its pixels."""
    return source.encoding if config.encoding == "auto" else config.encoding


def bands_of(source: Source, config: Ingest) -> tuple[str, ...]:
    """The store's Sentinel-2 bands."""
    return SENTINEL2.select(getattr(source, "bands", config.bands))


def admitted(patch: Patch, source: Source, config: Ingest) -> Patch:
    """The store's bands of a patch. Raises ValueError for 8-bit codes where raw values are wanted."""
    if "8-bit codes" in patch.notes.values() and encoding_of(source, config) == "raw":
        raise ValueError("8-bit codes hold no raw values; use --encoding uint8")
    return subset(patch, source, config)


def subset(patch: Patch, source: Source, config: Ingest) -> Patch:
    """The store's bands of a source that knows no `bands` itself and yields all 13."""
    bands = bands_of(source, config)
    if hasattr(source, "bands") or bands == SENTINEL2.bands:
        return patch
    return replace(
        patch,
        images=patch.images | {"s2": patch.images["s2"][SENTINEL2.indices(bands)]},
        contracts=patch.contracts | {"s2": patch.contracts["s2"].select(bands, patch.patch_id)},
    )
