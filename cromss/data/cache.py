"""A bounded cache on a local disk (NVMe) of row groups that were fetched from a bucket.

A row group is kept as an Arrow file, which is read by mapping it into memory. Several processes may share a folder: files
appear whole, and a file that another process removes stays readable for whoever has it open.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pydantic

from cromss.data.manifest import checksum, checksum_column
from cromss.settings import Settings


class CacheConfig(Settings):
    """Where row groups of a store in a bucket are kept, and how much of the disk they may take."""

    folder: str | None = None
    gigabytes: float = pydantic.Field(100.0, gt=0)


class Cache:
    """The cache of one store."""

    def __init__(self, config: CacheConfig, digest: str):
        self.folder = Path(config.folder).absolute() / digest[:16]
        self.limit = int(config.gigabytes * 1e9)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--cache {config.folder}: cannot be written ({error.strerror}); choose another folder"
            ) from None

    def table(self, shard: int, row_group: int, columns: list[str], fetch: Callable[[], pa.Table]) -> pa.Table:
        """The row group from the disk, or fetched and kept. A damaged file is fetched again."""
        chosen = hashlib.sha256(",".join(columns).encode()).hexdigest()[:8]
        file = self.folder / f"{shard:06d}-{row_group:04d}-{chosen}.arrow"
        if (found := _read(file)) is not None:
            with contextlib.suppress(OSError):
                os.utime(file)  # the least recently used go first
            return found
        table = fetch()
        self._keep(file, table)
        return table

    def _keep(self, file: Path, table: pa.Table) -> None:
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            self._make_room(aside.stat().st_size)
            aside.replace(file)
        except OSError:  # a full or failing cache disk slows a run down, it does not end it
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Remove the least recently used files of all stores until `wanted` bytes fit."""
        files = []
        for path in self.folder.parent.glob("*/*.arrow"):
            with contextlib.suppress(OSError):
                info = path.stat()
                files.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in files) + wanted
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def _read(file: Path) -> pa.Table | None:
    """The table of a cached file, None where there is none that holds."""
    try:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException):
        return None
    return table if _holds(table) else None


def _holds(table: pa.Table) -> bool:
    ids = table["patch_id"].to_pylist()
    for name in table.column_names:
        if checksum_column(name) not in table.column_names:
            continue
        sums = table[checksum_column(name)].to_pylist()
        for patch_id, cell, expected in zip(ids, table[name], sums, strict=True):
            if expected is not None and checksum(cell.as_buffer(), patch_id) != expected:
                return False
    return True
