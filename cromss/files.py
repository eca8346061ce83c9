"""Folders, on this machine or in a bucket: the few things that a store and a checkpoint ask of them.

`s3://bucket/prefix` and `gs://bucket/prefix` go through pyarrow.fs, with the usual environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS). Anything else is a local path.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

_REMOTE = re.compile(r"^(s3|gs|gcs)://[^/]+")
_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class Folder:
    """A folder, by its address: an absolute local path or a bucket's URI without a slash at the end.

    Local or not, a file that is written here appears whole or not at all. Methods raise OSError (FileNotFoundError where
    there is no such file); `fault` puts one into a line.
    """

    address: str

    @classmethod
    def of(cls, where: str | Path | Folder) -> Folder:
        """The folder of a path or URI. Raises ValueError for a URI of a kind that is not known."""
        if isinstance(where, Folder):
            return where
        text = str(where)
        if is_remote(text):
            return cls(text.rstrip("/"))
        if "://" in text:
            raise ValueError(f"{text}: unknown kind of address; use a path, s3://bucket/prefix or gs://bucket/prefix")
        return cls(str(Path(text).absolute()))

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.address}/{name}")

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.address.split("?")[0].rsplit("/", 1)[-1]

    @property
    def local(self) -> Path | None:
        """The path of a folder on this machine; None for a bucket."""
        return None if is_remote(self.address) else Path(self.address)

    # --- reading ------------------------------------------------------------------------------------------------------

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        info = self._fs.get_file_info(self._at(name))
        return info.size if info.type == fs.FileType.File else None

    def names(self) -> list[str]:
        """Files and folders directly below, sorted; empty where the folder does not exist."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """A file's content."""
        if self.local:
            return (self.local / name).read_bytes()
        with self._fs.open_input_stream(self._at(name)) as file:
            return file.read()

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access, memory-mapped where it is local."""
        return pa.memory_map(self._at(name)) if self.local else self._fs.open_input_file(self._at(name))

    def chunks(self, name: str):
        """A file's content, 8 MiB at a time."""
        with self._fs.open_input_stream(self._at(name)) as file:
            while block := file.read(_CHUNK):
                yield block

    # --- writing ------------------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Create it where it is local; a bucket's folders exist with their first file."""
        if self.local:
            self.local.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """A whole file, on disk when this returns."""
        if not self.local:
            with self._fs.open_output_stream(self._at(name)) as file:
                file.write(content)
            return
        aside = self._aside(name)
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # the name must not reach the disk before the content
            aside.replace(self.local / name)
        finally:
            aside.unlink(missing_ok=True)

    def put(self, file: Path, name: str) -> None:
        """Bring a local file here; where this is local too, lying in the same file system, it is moved."""
        if self.local:
            (self.local / name).parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as written:
                os.fsync(written.fileno())
            try:
                file.replace(self.local / name)
            except OSError:  # another file system
                aside = self._aside(name)
                shutil.copyfile(file, aside)
                aside.replace(self.local / name)
            return
        with file.open("rb") as source, self._fs.open_output_stream(self._at(name)) as target:
            shutil.copyfileobj(source, target, _CHUNK)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.size(name) is not None:
            self._fs.delete_file(self._at(name))

    def remove_all(self) -> None:
        """Delete the folder with all that is in it."""
        if self.local:
            shutil.rmtree(self.local, ignore_errors=True)
        elif self._fs.get_file_info(self._root).type == fs.FileType.Directory:
            self._fs.delete_dir(self._root)

    def _aside(self, name: str) -> Path:
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.{os.getpid()}.part")

    @property
    def _fs(self) -> fs.FileSystem:
        return _resolved(self.address)[0]

    @property
    def _root(self) -> str:
        return _resolved(self.address)[1]

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def is_remote(address: str | Path) -> bool:
    """Whether an address is a bucket's."""
    return bool(_REMOTE.match(str(address)))


def fault(error: OSError) -> str:
    """What an OSError says, in one line without a library's advice."""
    text = error.strerror or str(error)
    return " ".join(text.split())[:200]


@functools.lru_cache(maxsize=256)
def _resolved(address: str) -> tuple[fs.FileSystem, str]:
    if not is_remote(address):
        return fs.LocalFileSystem(), address
    try:
        return fs.FileSystem.from_uri(address)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{address}: cannot be reached ({' '.join(str(error).split())})") from None
