"""An ingest under way: one process at a time, what earlier ones finished, what they left lying about.

STORE/.ingest/{lock, job.json, 00000.json, ...} until STORE/manifest.json is written
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cromss.data.chunks import Chunk, Ingest
from cromss.data.manifest import MANIFEST, SCHEMA_VERSION, Manifest, read_manifest
from cromss.data.sources.base import Source, paths
from cromss.data.sources.layouts import LAYOUTS
from cromss.data.writer import ASIDE, Part, claim
from cromss.files import Folder, fault, unavailable
from cromss.settings import Settings, leaves, validate

JOURNAL = ".ingest"
LOCK = "lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # some cluster file systems are mounted without


class Outcome(Settings):
    """What a chunk's task left behind."""

    part: Part
    skipped: tuple[tuple[str, str], ...] = ()
    offsets: dict[str, int] = {}


def provenance(source: Source, config: Ingest) -> dict[str, Any]:
    """What the manifest keeps of where a store came from; enough to write a shard again."""
    return {"layout": source.model_dump(mode="json"), "ingest": config.model_dump(mode="json"), "arrow": pa.__version__}


def origin(folder: Folder, manifest: Manifest, way_out: str) -> tuple[Source, Ingest]:
    """The source and settings that `provenance` wrote down. Raises ValueError when a manifest does not tell them."""
    told = manifest.source
    try:
        return validate(LAYOUTS[told["layout"]["kind"]], told["layout"]), validate(Ingest, told["ingest"])
    except (KeyError, TypeError):
        raise ValueError(f"{folder}: does not say what it was made from; {way_out}") from None


def finished(folder: Folder, source: Source, config: Ingest) -> Manifest | None:
    """The manifest of a store that this source and these settings made, whatever wrote it; None where there is none."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return None
    wanted = {key: value for key, value in provenance(source, config).items() if key != "arrow"}
    same = manifest.kind == "shards" and all(manifest.source.get(key) == value for key, value in wanted.items())
    return manifest if same else None


def require_apart(folder: Folder, source: Source) -> None:
    """Raises ValueError when a store would lie in another store, or among the source's own files."""
    if folder.local is None:
        return
    target = folder.local.resolve()
    for parent in target.parents:
        if (parent / MANIFEST).is_file() and any(parent.glob("shard-*.parquet")):
            raise ValueError(f"{folder}: lies inside the store {parent}; choose a folder of its own")
    for path in paths(source).values():
        if path.is_dir() and target != path.resolve() and target.is_relative_to(path.resolve()):
            raise ValueError(
                f"{folder}: lies inside the source {path}, whose next reading would find it; choose another"
            )


@contextlib.contextmanager
def begun(folder: Folder, source: Source, config: Ingest, chunks: list[Chunk]) -> Iterator[dict[int, Outcome]]:
    """Claim the folder, or find the chunks that an earlier run of this same ingest finished; alone until the end."""
    ids = hashlib.sha256("\n".join(location.id for chunk in chunks for location, _ in chunk.places).encode())
    job = provenance(source, config) | {"locations": ids.hexdigest(), "schema": SCHEMA_VERSION}
    journal = folder / JOURNAL
    fresh = _fresh(folder)
    with _alone(folder) as locked:
        if locked:
            fresh = _fresh(folder)  # another process may have come first
            _sweep(folder)
        if fresh:
            write_entry(journal, "job.json", job)
            yield {}
        else:
            _require_this_job(folder, job)
            yield _done(folder, chunks)
        if locked:
            _sweep(folder)


def _fresh(folder: Folder) -> bool:
    """Whether nothing was ingested here so far. Raises ValueError when the folder is a store, or holds something else."""
    try:
        held = [name for name in folder.names() if not name.startswith(ASIDE)]
        if JOURNAL not in held or MANIFEST in held:
            claim(folder)
            return True
        return held == [JOURNAL] and set((folder / JOURNAL).names()) <= {LOCK}
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({fault(error)})") from None


@contextlib.contextmanager
def _alone(folder: Folder) -> Iterator[bool]:
    """Whether no other ingest writes here until this ends, or its process does. False where there are no locks: in
    buckets, and on file systems that have none. Raises ValueError when another does."""
    if not folder.local:
        yield False
        return
    path = folder.local / JOURNAL / LOCK
    with contextlib.ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise BlockingIOError  # deleted in between, by another that has just finished
            locked = True
        except (BlockingIOError, FileNotFoundError):
            raise ValueError(
                f"{folder}: another process is writing it; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise ValueError(f"{folder}: cannot be written ({fault(error)}); choose another folder") from None
            locked = False
        yield locked


def _sweep(folder: Folder) -> None:
    """Delete what killed processes and tasks were writing, under the lock: nobody else's is there."""
    with contextlib.suppress(OSError):
        for name in folder.names():
            if name.startswith(ASIDE):
                (folder / name).remove_all()


def _require_this_job(folder: Folder, job: dict[str, Any]) -> None:
    try:
        before = json.loads((folder / JOURNAL).read("job.json"))
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


def _done(folder: Folder, chunks: list[Chunk]) -> dict[int, Outcome]:
    """The chunks that were written and whose shards are there. Raises ValueError when the bucket does not answer."""
    found = {}
    for chunk in chunks:
        try:
            outcome = Outcome.model_validate_json((folder / JOURNAL).read(chunk.file))
            shard = outcome.part.shard
            if shard is None or folder.size(shard.path) == shard.bytes:
                found[chunk.number] = outcome
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # what cannot be read is written again
            if unavailable(error):
                raise ValueError(f"{folder}: cannot be read ({fault(error)}); try again") from None
    return found


def require_all(folder: Folder, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if (shard := outcome.part.shard) is None:
            continue
        try:
            size = folder.size(shard.path)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be read ({fault(error)}); repeat the command to go on") from None
        if size != shard.bytes:
            raise ValueError(
                f"{folder}: {shard.path} was written but is not here: on the disk of another node? Name a folder that all "
                f"nodes share, or a bucket"
            )


def write_entry(folder: Folder, name: str, content: dict[str, Any]) -> None:
    try:
        folder.make()
        folder.write(name, json.dumps(content).encode())
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({fault(error)}); free some space or choose another") from None
