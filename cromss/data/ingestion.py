"""From a source to a patch store: locations in a seeded random order, fold by fold, cut, checked and written.

The order is cut into chunks of locations. A chunk becomes one shard, by a function of the source, the settings and the
chunk's number alone: whoever runs it, wherever, whenever, writes the same bytes. So chunks run as Ray Data tasks on many
nodes, an ingest that was stopped goes on with the chunks that are missing, and a damaged shard can be written again.

    STORE/shard-00000.parquet ...    STORE/.ingest/{lock, job.json, 00000.json, ...} until STORE/manifest.json is written

Whatever cannot be used is skipped, named and counted.
"""

import contextlib
import functools
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from cromss.data.admission import encoding_of, fitting, places, products_of
from cromss.data.chunks import Chunk, Ingest, plan_chunks
from cromss.data.encoding import RowEncoder
from cromss.data.manifest import Layout, Manifest
from cromss.data.patch import Patch
from cromss.data.progress import Progress
from cromss.data.sources.base import Location, Skipped, Source, absolute, paths
from cromss.data.underway import (
    JOURNAL,
    Outcome,
    begun,
    finished,
    provenance,
    require_all,
    require_apart,
    write_entry,
)
from cromss.data.writer import Part, ShardWriter, aside, deliver, finish, shard_name
from cromss.files import Folder

__all__ = ["Chunk", "Ingest", "Job", "Outcome", "Summary", "ingest", "plan_chunks"]

READERS = 2  # threads of a task that read ahead
_NAMES_SHOWN = 8  # per reason; the manifest has them all


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
class Job:
    """All that a task needs beside its chunk."""

    source: Source
    config: Ingest
    layout: Layout
    store: str

    def write(self, chunk: Chunk, read: Callable[[int], None] = lambda patches: None) -> Outcome:
        """Write the chunk's shard and its entry in the journal. `read` is told after each location how many patches it
        gave. Raises ValueError when the store cannot be written, or this node does not see the source."""
        require_seen(self.source)
        folder, encoder = Folder.of(self.store), RowEncoder(self.layout)
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
                        if usable := fitting(tiles, encoder, skipped):
                            writer.add(usable, usable[0].split, fold)
                            written += len(usable)
                    read(written)
                require_seen(self.source)  # or what was skipped was skipped because a mount was lost
                part = deliver(writer, folder)
            except BaseException:
                writer.abandon()
                raise
        outcome = Outcome(part=part, skipped=tuple((one.name, one.reason) for one in skipped), offsets=dict(offsets))
        write_entry(folder / JOURNAL, chunk.file, outcome.model_dump(mode="json"))
        return outcome

    def _ahead(self, chunk: Chunk) -> Iterator[list[Patch | Skipped]]:
        """What each location holds, in order, read by threads a few locations ahead."""
        pool = ThreadPoolExecutor(READERS)
        waiting: deque = deque()
        try:
            for location, _ in chunk.places:
                waiting.append(pool.submit(_read, self.source, location))
                if len(waiting) > READERS:
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
    store; 0 = this process does it, without Ray. Paths of the source may be relative: the manifest has them absolute.

    A store that this very ingest finished before is left as it is. Raises ValueError when the source is empty, the store
    cannot be written, is another's, or is being written.
    """
    config, folder, source = config or Ingest(), Folder.of(store), absolute(source)
    require_apart(folder, source)
    if (manifest := finished(folder, source, config)) is not None:
        skipped = [Skipped(name, why) for why, names in manifest.source["skipped"].items() for name in names]
        return Summary(folder, manifest, skipped, Counter(manifest.source["offsets"]))
    chunks = plan_chunks(source, config)
    with begun(folder, source, config, chunks) as done:
        summary = _written(folder, source, config, chunks, done, progress, workers)
    # Only now: NFS keeps a deleted file that is still open, here the lock's, under another name, and so its folder.
    (folder / JOURNAL).remove_all()
    if summary.manifest is None and folder.local:
        with contextlib.suppress(OSError):  # somebody has put something there
            folder.local.rmdir()
    return summary


def _written(
    folder: Folder,
    source: Source,
    config: Ingest,
    chunks: list[Chunk],
    done: dict[int, Outcome],
    progress: Callable[[str], None] | None,
    workers: Callable[[int], int],
) -> Summary:
    """What is missing beside `done`, and the manifest."""
    layout = layout_of(source, config, chunks)
    if layout is None:
        skipped, offsets = _collected([_unusable(source, config, chunk) for chunk in chunks])
        if any(outcome.part.shard for outcome in done.values()):
            raise ValueError(
                f"{folder}: holds {len(done):,} chunks of this ingest, but nothing of the source can be used any more "
                f"({skipped[0].name}: {skipped[0].reason}); see to the source and repeat the command"
            )
        return Summary(folder, None, skipped, offsets)
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
        return summary
    require_all(folder, outcomes)
    origin = provenance(source, config) | {"offsets": dict(offsets), "skipped": summary.reasons()}
    summary.manifest = finish(folder, layout, [outcome.part for outcome in outcomes], origin)
    return summary


def _collected(outcomes: Iterable[Outcome]) -> tuple[list[Skipped], Counter]:
    skipped, offsets = [], Counter()
    for outcome in outcomes:
        skipped += [Skipped(*one) for one in outcome.skipped]
        offsets.update(outcome.offsets)
    return skipped, offsets


# --- who does it ------------------------------------------------------------------------------------------------------


def _here(job: Job, chunks: list[Chunk], shown: Progress) -> Iterator[tuple[int, Outcome]]:
    for chunk in chunks:
        outcome = job.write(chunk, shown.step)
        shown.skipped += len(outcome.skipped)
        yield chunk.number, outcome


def _by_ray(job: Job, chunks: list[Chunk], workers: int, shown: Progress) -> Iterator[tuple[int, Outcome]]:
    """Ray Data tasks, `workers` at a time, as they finish. A task that a lost node took with it runs again elsewhere."""
    from cromss.data.tasks import run_tasks

    tasks = [functools.partial(_task, job, chunk) for chunk in chunks]
    lengths = {chunk.number: len(chunk.places) for chunk in chunks}
    for table in run_tasks(tasks, at_a_time=workers):
        for row in table.to_pylist():
            outcome = Outcome.model_validate_json(row["outcome"])
            shown.skipped += len(outcome.skipped)
            shown.step(sum(outcome.part.patches.values()), lengths[row["chunk"]])
            yield row["chunk"], outcome


def _task(job: Job, chunk: Chunk) -> Iterator[pa.Table]:
    outcome = job.write(chunk)
    yield pa.table({"chunk": [chunk.number], "outcome": [outcome.model_dump_json()]})


def require_seen(source: Source) -> None:
    """Raises ValueError when a file or folder of the source is not on this node, or a folder is empty, as the place of a
    mount is that failed: every location would be skipped for what is the node's fault."""
    for path in paths(source).values():
        if not _seen(path):
            raise ValueError(f"{path}: not seen by node {socket.gethostname()}; name a folder that all nodes share")


def _seen(path: Path) -> bool:
    try:
        if not path.is_dir():
            return path.exists()
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


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
                bands = {name: tiles[0].contracts[name].bands for name in tiles[0].images}
                return Layout(source.scheme, bands, tiles[0].size, encoding_of(source, config), products_of(tiles[0]))
    return None


def _unusable(source: Source, config: Ingest, chunk: Chunk) -> Outcome:
    skipped: list[Skipped] = []
    for location, _ in chunk.places:
        deque(places(_read(source, location), source, config, skipped, Counter()), maxlen=0)
    return Outcome(part=Part(), skipped=tuple((one.name, one.reason) for one in skipped))
