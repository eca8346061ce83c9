"""Writing damaged shards again: a shard is a function of the source, the settings and its number, all of which the manifest
keeps."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from cromss.data.ingestion import Chunk, Job, plan_chunks
from cromss.data.manifest import Shard
from cromss.data.sources.base import Source
from cromss.data.store import PatchStore
from cromss.data.underway import origin
from cromss.data.writer import shard_name
from cromss.files import Folder, fault


def repair(store: PatchStore, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Write every damaged shard again from the store's source; the names of those that were.

    A shard is only replaced by the very bytes that were ingested first (sha256). Raises ValueError when the source is gone,
    gives other content, or the store cannot be written; shards repaired before that stay repaired.
    """
    damaged = {lost.shard: lost.reason for lost in store.damaged(content=True)}
    if not damaged:
        return []
    source, config = origin(store.folder, store.manifest, "ingest again")
    chunks = {shard_name(chunk.number): chunk for chunk in plan_chunks(source, config)}
    wanted = {shard.path: shard for shard in store.manifest.shards}
    for name, reason in damaged.items():
        say(f"{name} {reason}: writing it again from {getattr(source, 'path', source.kind)}")
        if name not in chunks:
            raise ValueError(f"{store.folder}: {name} is no shard of what {_named(source)} holds now; ingest again")
        _rewrite(store, Job(source, config, store.layout, ""), chunks[name], wanted[name])
    return list(damaged)


def _rewrite(store: PatchStore, job: Job, chunk: Chunk, wanted: Shard) -> None:
    with tempfile.TemporaryDirectory(prefix="cromss-repair-") as place:
        written = replace(job, store=place).write(chunk).part.shard
        if written is None or written.sha256 != wanted.sha256:
            theirs = store.manifest.source.get("arrow")
            versions = (
                "" if theirs == pa.__version__ else f" (it was written with pyarrow {theirs}, this is {pa.__version__})"
            )
            raise ValueError(
                f"{store.folder}: {_named(job.source)} gives {wanted.path} another content than it did{versions}; "
                f"ingest into a new store, or train without the shard: data.quarantine=true"
            )
        try:
            Folder.of(store.folder).put(Path(place) / written.path, wanted.path)
        except OSError as error:
            raise ValueError(f"{store.folder}: cannot be written ({fault(error)})") from None


def _named(source: Source) -> str:
    return str(getattr(source, "path", source.kind))
