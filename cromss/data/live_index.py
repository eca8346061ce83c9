"""The index of a live store: which places a source has and which acquisitions, told by headers, before a pixel is decoded.

    STORE/index.parquet    one row a place, in the order of the blocks
    STORE/manifest.json    kind = live; the source with absolute paths, the settings, statistics of a sample

Order, folds, blocks and slots are those that `ingest` gives the same source with the same settings. What headers show to
be unusable is skipped and named; so is what is found in the sample, the only pixels that are looked at.
"""

import contextlib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cromss.data.admission import admitted, bands_of, encoding_of, misfit, of_the_store, products_of
from cromss.data.chunks import Chunk, Ingest, plan_chunks
from cromss.data.encoding import RowEncoder
from cromss.data.ingestion import Summary
from cromss.data.manifest import Layout, Manifest, write_manifest
from cromss.data.patch import Patch, trainable
from cromss.data.progress import Progress
from cromss.data.sources.base import Location, Skipped, Source, Survey, absolute, require_text
from cromss.data.tiling import Tile, crop, tiles
from cromss.data.underway import provenance
from cromss.data.writer import Census, Waiting, claim, counted
from cromss.files import Folder, fault
from cromss.sensors import SENTINEL1

INDEX = "index.parquet"
SAMPLE = 32  # locations of each split whose pixels are looked at
SURVEYORS = 4  # threads that read headers: more wait for each other, on a local disk

_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("block", pa.int32()),
        ("position", pa.int16()),
        ("location_id", _TEXT),
        ("handle", _TEXT),  # of the location, JSON
        ("came", _TEXT),  # the split that the source says
        ("split", _TEXT),
        ("fold", pa.int32()),
        ("tile", _TEXT),
        ("window", pa.list_(pa.int32(), 4)),
        ("size", pa.list_(pa.int32(), 2)),  # (H, W) of the whole location
        ("n", pa.int16()),
        ("acquisitions", _TEXTS),  # in time order
        ("crs", _TEXTS),
        ("transforms", pa.list_(pa.float64())),  # six a acquisition, of the whole location
        ("bytes", pa.int64()),  # of its files, 0 where the layout does not tell which they are
        ("files", _TEXT),  # digest of their names and sizes
        ("headers", _TEXT),  # digest of what their headers say
    ]
)


@dataclass(frozen=True)
class Found:
    """A location as its headers tell it."""

    location: Location
    survey: Survey
    bytes: int
    files: str


def index(
    source: Source,
    store: str | Path | Folder,
    config: Ingest | None = None,
    progress: Callable[[str], None] | None = None,
) -> Summary:
    """Make a live store of a source: the index and a manifest, no shards. `progress` receives a line now and then.

    A patch without a trainable pixel, which ingest would skip, stays: as a row whose labels are ignored. How many the
    sample holds is in the manifest (`source.live.untrainable`). Raises ValueError when the source is empty or its layout
    cannot be streamed, when the store cannot be written, or when nothing of a split's sample can be read.
    """
    config, folder, source = config or Ingest(), Folder.of(store), absolute(source)
    chunks = plan_chunks(source, config)
    claim(folder)
    summary = Summary(folder)
    found = _surveyed(source, chunks, summary.skipped, Progress(sum(len(chunk.places) for chunk in chunks), progress))
    layout = _layout(source, config, found)
    if layout is not None:
        census, live = _sampled(source, config, layout, found, summary)
        rows = list(_rows(source, chunks, found, config, layout, summary.skipped))
        if rows:
            content = _parquet(rows)
            live |= {"index": hashlib.sha256(content).hexdigest()}
            origin = provenance(source, config) | {"live": live, "offsets": dict(summary.offsets)}
            origin |= {"skipped": summary.reasons()}
            summary.manifest = _manifest(layout, census, rows, origin)
            _write(folder, content, summary.manifest)
            return summary
    if folder.local:
        with contextlib.suppress(OSError):  # somebody has put something there
            folder.local.rmdir()
    return summary


def stamp(source: Source, location: Location, acquisitions: Sequence[str]) -> tuple[int, str]:
    """(bytes, digest of names and sizes) of the files of these acquisitions. Raises ValueError when one is missing."""
    digest, total = hashlib.sha256(), 0
    for path in source.files(location, acquisitions):
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ValueError(f"{location.id}: {path.name} cannot be read ({fault(error)})") from None
        digest.update(f"{path.name} {size}\n".encode())
        total += size
    return total, digest.hexdigest()[:16]


# --- what is there ----------------------------------------------------------------------------------------------------


def _surveyed(source: Source, chunks: list[Chunk], skipped: list[Skipped], shown: Progress) -> dict[str, Found]:
    locations = [location for chunk in chunks for location, _ in chunk.places]
    found = {}
    with ThreadPoolExecutor(SURVEYORS) as pool:
        for location, one in zip(locations, pool.map(lambda where: _survey(source, where), locations), strict=True):
            if isinstance(one, Found):
                found[location.id] = one
                skipped += one.survey.skipped
            else:
                skipped += one
            shown.skipped = len(skipped)
            shown.step(len(one.survey.acquisitions) if isinstance(one, Found) else 0)
    return found


def _survey(source: Source, location: Location) -> Found | list[Skipped]:
    packed(source, location)  # before anything is read: whether the index can hold it is the layout's doing
    try:
        survey = source.survey(location)
        found = Found(location, survey, *stamp(source, location, survey.acquisitions))
    except (ValueError, OSError):
        try:  # by name: ingest would skip each acquisition for its own reason
            return [one for one in source.read(location) if isinstance(one, Skipped)]
        except (ValueError, OSError) as error:
            return [Skipped(location.id, str(error))]
    for acquisition in survey.acquisitions:
        require_text(location.id, acquisition)
    return found


def _layout(source: Source, config: Ingest, found: dict[str, Found]) -> Layout | None:
    """Patch size and all: of the first place that can be used, as ingest takes it."""
    for one in found.values():
        try:
            first, *_ = _tiles(one.survey.size, config)
        except ValueError:
            continue
        bands = {"s1": SENTINEL1.bands, "s2": bands_of(source, config)}
        products = _products(source, found)
        return Layout(source.scheme, bands, first.window[2:], encoding_of(source, config), products)
    return None


def _products(source: Source, found: dict[str, Found]) -> dict[str, str]:
    """modality -> product, as the first patch says that can be decoded."""
    for one in found.values():
        for acquisition in one.survey.acquisitions:
            try:
                return products_of(source.read_one(one.location, acquisition))
            except (ValueError, OSError):
                continue
    return {}


def _tiles(size: tuple[int, int], config: Ingest) -> list[Tile]:
    return tiles(size, config.tile, split=config.split, guard=config.guard, axis=config.axis)


# --- the sample -------------------------------------------------------------------------------------------------------


def _sampled(
    source: Source, config: Ingest, layout: Layout, found: dict[str, Found], summary: Summary
) -> tuple[Census, dict[str, Any]]:
    """Statistics of some places of each split, whose pixels are decoded; acquisitions that turn out to be unusable leave
    `found`."""
    census, looked, untrainable, encoder = Census(layout), Counter(), 0, RowEncoder(layout)
    rng = np.random.default_rng([config.seed, 0])
    for split in sorted({one.location.split for one in found.values()}):
        members = [name for name, one in found.items() if one.location.split == split]
        for name in (members[number] for number in rng.permutation(len(members))):
            if looked[split] == SAMPLE:
                break
            by_tile, faults = _decoded(source, config, encoder, found[name], summary.offsets)
            if faults:
                summary.skipped += faults
                _without(source, found, name, {one.name.removeprefix(f"{name}/") for one in faults})
            for patches in by_tile:
                census.add(patches, patches[0].split)
                untrainable += sum(not trainable(patch.label, patch.valid) for patch in patches)
            looked[split] += bool(by_tile)
    part = census.part()
    sample = {split: {"places": part.places[split], "patches": part.patches[split]} for split in sorted(part.places)}
    return census, {"sample": sample, "untrainable": untrainable}


def _decoded(
    source: Source, config: Ingest, encoder: RowEncoder, found: Found, offsets: Counter
) -> tuple[list[list[Patch]], list[Skipped]]:
    """The tiles of a location, all acquisitions of one tile together, and what cannot be used of it."""
    by_tile: dict[Tile, list[Patch]] = {}
    faults = []
    for one in source.read(found.location):
        if isinstance(one, Skipped):
            faults += [one] if one.name.removeprefix(f"{found.location.id}/") in found.survey.acquisitions else []
            continue
        try:
            patch = admitted(one, source, config)
            of_the_store(patch, encoder)
            parts = _tiles(patch.size, config)
        except ValueError as error:
            faults.append(Skipped(one.patch_id, str(error)))
            continue
        if "s2_offset" in patch.notes:
            offsets[patch.notes["s2_offset"]] += 1
        for part in parts:
            if part.window[2:] == encoder.layout.size:
                by_tile.setdefault(part, []).append(crop(patch, part))
    return list(by_tile.values()), faults


def _without(source: Source, found: dict[str, Found], name: str, gone: set[str]) -> None:
    survey = found[name].survey
    kept = [number for number, acquisition in enumerate(survey.acquisitions) if acquisition not in gone]
    if not kept:
        del found[name]
        return
    acquisitions = tuple(survey.acquisitions[number] for number in kept)
    survey = replace(survey, acquisitions=acquisitions, grids=tuple(survey.grids[number] for number in kept))
    found[name] = Found(found[name].location, survey, *stamp(source, found[name].location, acquisitions))


# --- the index --------------------------------------------------------------------------------------------------------


def _rows(
    source: Source, chunks: list[Chunk], found: dict[str, Found], config: Ingest, layout: Layout, skipped: list[Skipped]
) -> Iterator[dict[str, Any]]:
    """Block by block, exactly as the writer of a chunk's shard forms them."""
    blocks = []
    for chunk in chunks:
        waiting, last = Waiting[dict](), None
        for location, fold in chunk.places:
            if last is not None and (location.split, fold) != last:
                blocks += waiting.rest()
            last = location.split, fold
            for row in (
                _places(source, found[location.id], fold, config, layout, skipped) if location.id in found else ()
            ):
                blocks += waiting.add((row["n"], row["split"], fold), row)
        blocks += waiting.rest()
    for block, (_, rows) in enumerate(blocks):
        for position, row in enumerate(rows):
            yield row | {"block": block, "position": position}


def _places(
    source: Source, found: Found, fold: int, config: Ingest, layout: Layout, skipped: list[Skipped]
) -> Iterator[dict[str, Any]]:
    location, survey = found.location, found.survey
    ids = [f"{location.id}/{acquisition}" for acquisition in survey.acquisitions]
    try:
        parts = _tiles(survey.size, config)
    except ValueError as error:
        skipped += [Skipped(name, str(error)) for name in ids]
        return
    whole = {
        "location_id": location.id,
        "handle": packed(source, location),
        "came": location.split,
        "fold": fold,
        "size": survey.size,
        "n": len(survey.acquisitions),
        "acquisitions": survey.acquisitions,
        "crs": [crs for crs, _ in survey.grids],
        "transforms": [number for _, transform in survey.grids for number in transform],
        "bytes": found.bytes,
        "files": found.files,
        "headers": survey.digest,
    }
    for part in parts:
        if part.window[2:] != layout.size:
            reason = misfit(part.window[2:], layout.size)
            skipped += [Skipped(f"{name}/{part.name}" if part.name else name, reason) for name in ids]
            continue
        yield whole | {"split": part.split or location.split, "tile": part.name, "window": part.window}


def _manifest(layout: Layout, census: Census, rows: list[dict[str, Any]], origin: dict[str, Any]) -> Manifest:
    part = census.part()
    places, patches = Counter(), Counter()
    for row in rows:
        places[row["split"]] += 1
        patches[row["split"]] += row["n"]
    if blind := sorted(places.keys() - part.places.keys()):
        raise ValueError(
            f"split {blind[0]}: not one of its places can be read; python -m cromss.ingest names the reasons"
        )
    return Manifest(
        kind="live",
        encoding=layout.encoding,
        size=layout.size,
        scheme=layout.scheme,
        has_clean=part.has_clean,
        shards=(),
        source=origin,
        **counted(layout, [part]) | {"places": dict(sorted(places.items())), "patches": dict(sorted(patches.items()))},
    )


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def _write(folder: Folder, content: bytes, manifest: Manifest) -> None:
    try:
        folder.write(INDEX, content)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({fault(error)}); free some space") from None
    write_manifest(folder, manifest)


# --- a location in a cell of the index --------------------------------------------------------------------------------


def packed(source: Source, location: Location) -> str:
    """A location's handle as JSON: paths, texts, numbers, lists and tuples of them; what lies below the source's folder as
    seen from there. Raises ValueError for any other."""
    root = getattr(source, "path", None)

    def below(path: Path) -> str | None:
        return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else None

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return {"path": str(value)} if (inner := below(value)) is None else {"path below": inner}
        if isinstance(value, str) and value.startswith("/") and (inner := below(Path(value))) is not None:
            return {"text below": inner}
        if type(value) in (list, tuple):
            return {type(value).__name__: [plain(one) for one in value]}
        if value is None or type(value) in (str, int, float, bool):
            return value
        raise ValueError("this layout cannot be streamed from its files; leave --live out")

    return json.dumps(plain(location.handle))


def unpacked(source: Source, row: dict[str, Any]) -> Location:
    """The location of a row of the index."""
    root = getattr(source, "path", Path())
    kinds = {
        "path": Path,
        "path below": lambda inner: root / inner,
        "text below": lambda inner: str(root / inner),
        "list": lambda values: [real(value) for value in values],
        "tuple": lambda values: tuple(real(value) for value in values),
    }

    def real(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        return kinds[kind](content)

    return Location(row["location_id"], row["came"], real(json.loads(row["handle"])))
