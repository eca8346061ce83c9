"""A bounded cache on a local disk (NVMe) of row groups that were fetched from a bucket.

    <folder>/.bytes                                   bytes that are taken; its lock is the folder's lock
    <folder>/<store>/<shard>-<row group>-<columns>    the rows as an Arrow stream, then the CRC-32 of all that

Several processes may share a folder, also for several stores: files appear whole, room for one is reserved before it is
written, and a file that another process removes stays readable for whoever has it open. Whatever happens to the disk, the
rows still come from the bucket.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pydantic
from isal import isal_zlib

from cromss.data.manifest import checksum, checksum_column
from cromss.files import Folder
from cromss.settings import Settings

BYTES = ".bytes"
PART = ".part"
ABANDONED = 600.0  # seconds after which a file that was never finished belongs to a process that was killed
_CRC = 4
_STORE, _FILE = re.compile("[0-9a-f]{16}"), re.compile(r"\d{6,}-\d{4,}-[0-9a-f]{8}(\.[0-9-]+\.part)?")
_UNITS = {"": 1.0, "G": 1.0, "M": 1e-3, "T": 1e3}
_log = logging.getLogger(__name__)


class CacheConfig(Settings):
    """Where row groups of a store in a bucket are kept, and how much of the disk they may take."""

    folder: str | None = None
    gigabytes: float = pydantic.Field(100.0, gt=0)  # of 10^9 bytes

    @pydantic.field_validator("folder")
    @classmethod
    def _on_a_disk(cls, value: str | None) -> str | None:
        if value is not None and Folder.of(value).local is None:
            raise ValueError(f"data.cache.folder={value}: must be a folder on the machine's own disk, not a bucket")
        return value if value is None else str(Folder.of(value))


def gigabytes_of(size: str) -> float:
    """`200GB`, `1.5TB`, `800MB` or a bare `200` as gigabytes. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([MGT])B?)?", size.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError(f"--cache-size {size}: is no size; write it like 200GB, 1.5TB or 800MB")
    return float(found[1]) * _UNITS[(found[2] or "").upper()]


class Cache:
    """The cache of one store. Raises ValueError when its folder cannot be written."""

    def __init__(self, config: CacheConfig, digest: str):
        assert config.folder
        root = Path(config.folder)
        self.folder, self.room = root / digest[:16], Room(root, round(config.gigabytes * 1e9))
        self._complained = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.room.settle()
        except OSError as error:
            raise ValueError(
                f"--cache {config.folder}: cannot be written ({error.strerror}); choose another folder"
            ) from None

    def table(self, shard: int, row_group: int, columns: list[str], fetch: Callable[[], pa.Table]) -> pa.Table:
        """The row group from the disk, or fetched and kept. A damaged file is fetched again."""
        chosen = hashlib.sha256(",".join(columns).encode()).hexdigest()[:8]
        file = self.folder / f"{shard:06d}-{row_group:04d}-{chosen}"
        if (found := self._found(file)) is not None:
            return found
        table = fetch()
        if _holds(table):  # only what can be checked: damage in the bucket would stay here after it is mended there
            self._keep(file, table)
        return table

    def _found(self, file: Path) -> pa.Table | None:
        try:
            table = _read(file)
            if table is None:
                self.room.drop(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        with contextlib.suppress(OSError):  # another process may just have removed it
            os.utime(file)  # the least recently used go first
        return table

    def _keep(self, file: Path, table: pa.Table) -> None:
        rows, crc = _packed(table)
        aside = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if (aside := self.room.reserve(file, rows.size + len(crc))) is None:
                return
            with aside.open("r+b") as out:
                out.write(rows)
                out.write(crc)
            self.room.place(aside, file)
        except OSError as error:  # a full or failing disk slows a run down, it does not end it
            self._complain(error)
            if aside is not None:
                with contextlib.suppress(OSError):
                    self.room.drop(aside)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("cache %s: %s; what it does not hold is read from the bucket", self.folder, error.strerror)


class Room:
    """What a folder of caches may take, counted for all processes that use it.

    The count lies in a file, so that the folder is listed only when it is full; then a twentieth is freed at once.
    """

    def __init__(self, root: Path, limit: int):
        self.root, self.limit = root, limit

    def settle(self) -> None:
        """Count anew, and free what is beyond the limit."""
        with self._taken() as taken:
            taken[0] = self._freed(0)

    def reserve(self, file: Path, size: int) -> Path | None:
        """A file beside `file` that has `size` bytes already; None where `file` is there by now, or can never fit."""
        with self._taken() as taken:
            if size > self.limit or file.exists():
                return None
            if taken[0] + size > self.limit:
                taken[0] = self._freed(max(size, self.limit // 20))
            if taken[0] + size > self.limit:  # by files that are being written
                return None
            aside = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}{PART}")
            with aside.open("wb") as empty:
                empty.truncate(size)
            taken[0] += size
            return aside

    def place(self, aside: Path, file: Path) -> None:
        """Give a file that was reserved its name. Not without the lock: whoever counts would meet it twice, or not at all."""
        with self._taken():
            aside.replace(file)

    def drop(self, file: Path) -> None:
        """Remove a file, if it is there."""
        with self._taken() as taken, contextlib.suppress(FileNotFoundError):
            size = file.stat().st_size
            file.unlink()
            taken[0] -= size

    @contextlib.contextmanager
    def _taken(self) -> Iterator[list[int]]:
        """The number of bytes that are taken, to read and to change, while nobody else may."""
        handle = os.open(self.root / BYTES, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                taken = [int(os.pread(handle, 20, 0))]
            except ValueError:
                taken = [self._freed(0)]
            try:
                yield taken
            finally:
                os.pwrite(handle, b"%020d" % max(0, taken[0]), 0)
        finally:
            os.close(handle)  # and unlock

    def _freed(self, wanted: int) -> int:
        """Remove the least recently used files of all stores until `wanted` bytes fit; the bytes that are taken then."""
        files, total = [], 0
        for path, info in self._files():
            if path.name.endswith(PART) and time.time() - info.st_mtime > ABANDONED:
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            total += info.st_size
            if not path.name.endswith(PART):
                files.append((info.st_mtime_ns, path, info.st_size))
        for _, path, size in sorted(files):
            if total + wanted <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
        return total

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The files of caches, nothing else: the folder may hold what is not ours."""
        for store in os.scandir(self.root):
            if not (_STORE.fullmatch(store.name) and store.is_dir(follow_symlinks=False)):
                continue
            for file in os.scandir(store):
                if _FILE.fullmatch(file.name):
                    with contextlib.suppress(FileNotFoundError):
                        yield Path(file.path), file.stat(follow_symlinks=False)


def _packed(table: pa.Table) -> tuple[pa.Buffer, bytes]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    rows = sink.getvalue()
    return rows, isal_zlib.crc32(rows).to_bytes(_CRC, "little")


def _read(file: Path) -> pa.Table | None:
    """The table of a file, None where its bytes are not those that were written. Raises OSError.

    Read, not mapped: a page that a failing disk does not give is an error here, and the end of the process there.
    """
    with pa.OSFile(str(file)) as source:
        content = source.read_buffer()
    if content.size <= _CRC:
        return None
    rows, expected = content.slice(0, content.size - _CRC), content.slice(content.size - _CRC)
    if isal_zlib.crc32(rows) != int.from_bytes(expected.to_pybytes(), "little"):
        return None
    return pa.ipc.open_stream(rows).read_all()


def _holds(table: pa.Table) -> bool:
    """Whether there are pixels in it, and every cell of them has the checksum that came with it."""
    cells = [field.name for field in table.schema if pa.types.is_large_binary(field.type)]
    if not cells or not {"patch_id", *map(checksum_column, cells)} <= set(table.column_names):
        return False
    ids = table["patch_id"].to_pylist()
    for name in cells:
        sums = table[checksum_column(name)].to_pylist()
        for patch_id, cell, expected in zip(ids, table[name], sums, strict=True):
            found = checksum(cell.as_buffer(), patch_id) if cell.is_valid else None
            if found != expected:
                return False
    return True
