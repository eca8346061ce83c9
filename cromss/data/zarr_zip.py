"""Zarr v2 groups in a zip file that somebody else made: nothing but plain arrays, checked before a byte is decoded.

The zarr library runs whatever codec a file names, in most versions also `pickle`, and decodes whole chunks. Here a chunk
is raw or Blosc, and of a chunk that holds 64 images only the blocks of the wanted one are decoded.
"""

import itertools
import json
import math
import mmap
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cromss.data.raster import MAX_BYTES

_MAX_METADATA = 2**20
_MAX_CHUNKS = 4096  # of one region
_BLOSC = struct.Struct(
    "<BBBBIII"
)  # version, its compressor's version, flags, item size, bytes, block bytes, stored bytes
_RAW = 2  # the flag of a Blosc frame that is not compressed


@dataclass(frozen=True)
class ArrayInfo:
    """What `.zarray` says of an array, checked."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    fill: Any
    blosc: bool
    separator: str


class ZarrZip:
    """A zarr v2 group in a local zip file. `open_zarr_zip` gives one that is kept open.

    Every fault is a ValueError of one line that names the file: not a zip, members with absolute or `..` names, arrays
    or chunks that decode to more than `raster.MAX_BYTES`, pixel types that are no plain numbers, dates or text, codecs
    other than Blosc, damaged members.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ValueError(f"{path.name}: missing") from None
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._fault(f"not a readable zip file ({error})") from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            name = member.orig_filename
            if name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts:
                raise self._fault(f"holds a member that would lie outside of it ({ascii(name)[:60]})")
            self._members[name] = member  # of several, the last counts: zarr writes attributes anew without removing
        self._arrays: dict[str, ArrayInfo] = {}

    def __contains__(self, name: str) -> bool:
        return f"{name}/.zarray" in self._members

    def info(self, name: str) -> ArrayInfo:
        """Shape, chunks and type of an array."""
        if name not in self._arrays:
            self._arrays[name] = self._described(name, self._json(f"{name}/.zarray"))
        return self._arrays[name]

    def attributes(self, name: str) -> dict:
        """`.zattrs` of an array; empty where there are none."""
        return self._json(f"{name}/.zattrs") if f"{name}/.zattrs" in self._members else {}

    def read(self, name: str, index: tuple[int, ...] = ()) -> np.ndarray:
        """`array[index]`, for example `read("bands", (sample, time))`; only the chunks and blocks that hold it are read."""
        info = self.info(name)
        if len(index) > len(info.shape) or any(
            not 0 <= at < length for at, length in zip(index, info.shape, strict=False)
        ):
            raise self._fault(f"{name} has shape {info.shape}: no position {index}")
        lead, shape, chunk = len(index), info.shape[len(index) :], info.chunks[len(index) :]
        grid = [range(-(-length // step)) for length, step in zip(shape, chunk, strict=True)]
        if math.prod(map(len, grid)) > _MAX_CHUNKS:
            raise self._fault(f"{name} is cut into more than {_MAX_CHUNKS} chunks")
        within = 0  # which of the parts of a chunk it is
        for at, step in zip(index, info.chunks[:lead], strict=True):
            within = within * step + at % step
        length = math.prod(chunk) * info.dtype.itemsize
        out = np.full(shape, info.fill, info.dtype)
        for place in itertools.product(*grid):
            key = [at // step for at, step in zip(index, info.chunks[:lead], strict=True)] + list(place)
            member = f"{name}/{info.separator.join(map(str, key)) or '0'}"
            if member not in self._members:
                continue  # by zarr's rules a chunk that is absent holds the fill value
            part = self._part(member, info, within * length, length)
            here = tuple(slice(at * step, (at + 1) * step) for at, step in zip(place, chunk, strict=True))
            into = out[(*here, ...)]  # a view, also of a single number
            into[...] = np.frombuffer(part, info.dtype).reshape(chunk)[tuple(slice(0, n) for n in into.shape)]
        return out

    def _described(self, name: str, found: dict) -> ArrayInfo:
        shape, chunks, text = found.get("shape"), found.get("chunks"), found.get("dtype")
        counts = all(isinstance(some, list) and all(type(n) is int for n in some) for some in (shape, chunks))
        if found.get("zarr_format") != 2 or not counts or len(shape) != len(chunks) or len(shape) > 8:
            raise self._fault(f"{name}/.zarray describes no zarr v2 array")
        if any(n < 0 for n in shape) or any(n < 1 for n in chunks):
            raise self._fault(f"{name} has impossible sizes: shape {shape}, chunks {chunks}")
        try:
            dtype = np.dtype(text) if isinstance(text, str) else np.dtype(object)
        except (TypeError, ValueError, SyntaxError):
            dtype = np.dtype(object)
        if dtype.kind not in "iufUSM":
            raise self._fault(f"{name} holds values of type {ascii(text)[:40]}, expected numbers, text or dates")
        decoded = max(math.prod(shape), math.prod(chunks)) * dtype.itemsize
        if decoded > MAX_BYTES:
            raise self._fault(f"{name} decodes to {decoded / 2**30:.1f} GiB, more than {MAX_BYTES / 2**30:.0f} GiB")
        codec = found.get("compressor")
        kind = codec.get("id") if isinstance(codec, dict) else codec
        if kind not in (None, "blosc") or found.get("filters") or found.get("order", "C") != "C":
            raise self._fault(
                f"{name} is stored with compressor {ascii(kind)[:40]}, filters {ascii(found.get('filters'))[:60]}, order "
                f"{ascii(found.get('order'))[:5]}; only Blosc or none, without filters, in order C, is read"
            )
        separator = found.get("dimension_separator", ".")
        if separator not in (".", "/"):
            raise self._fault(f"{name}/.zarray describes no zarr v2 array")
        try:
            given = found.get("fill_value")
            fill = np.zeros((), dtype) if given is None else np.asarray(given).astype(dtype)
        except (TypeError, ValueError, OverflowError):
            raise self._fault(f"{name} has the impossible fill value {ascii(given)[:40]}") from None
        return ArrayInfo(tuple(shape), tuple(chunks), dtype, fill, kind == "blosc", separator)

    def _json(self, member: str) -> dict:
        if member not in self._members:
            raise self._fault(f"lacks {member}")
        if self._members[member].file_size > _MAX_METADATA:
            raise self._fault(f"{member} is larger than {_MAX_METADATA} bytes")
        stored = self._stored(member)
        self._check(member, stored)
        try:
            found = json.loads(bytes(stored))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._fault(f"{member} is not a JSON object")
        return found

    def _stored(self, member: str) -> memoryview:
        """The bytes of a member; those that the zip stores as they are, which is usual, are not copied."""
        info = self._members[member]
        start = info.header_offset + 30
        header = self._bytes[info.header_offset : start]
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._fault(f"{member} is encrypted or packed with an unusual method")
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise self._fault(f"{member} is damaged (no local header)")
        start += sum(struct.unpack("<HH", header[26:30]))
        packed = memoryview(self._bytes)[start : start + info.compress_size]
        if info.file_size > MAX_BYTES or len(packed) != info.compress_size:
            raise self._fault(f"{member} is damaged or larger than {MAX_BYTES / 2**30:.0f} GiB")
        if info.compress_type == zipfile.ZIP_STORED:
            return packed
        try:
            # one byte more than the zip declares shows a member that holds more than that
            unpacked = zlib.decompressobj(-15).decompress(packed, info.file_size + 1)
        except zlib.error as error:
            raise self._fault(f"{member} is damaged ({error})") from None
        if len(unpacked) != info.file_size:
            raise self._fault(f"{member} unpacks to another size than the zip declares")
        return memoryview(unpacked)

    def _check(self, member: str, stored: memoryview) -> None:
        if zlib.crc32(stored) != self._members[member].CRC:
            raise self._fault(f"{member} is damaged (its checksum differs)")

    def _part(self, member: str, info: ArrayInfo, start: int, length: int) -> memoryview:
        """Bytes start .. start + length of a decoded chunk."""
        stored = self._stored(member)
        whole = math.prod(info.chunks) * info.dtype.itemsize
        if length == whole:  # then all of it is read anyhow
            self._check(member, stored)
        if not info.blosc:
            if len(stored) != whole:
                raise self._fault(f"{member} has {len(stored)} bytes, its chunk {whole}")
            return stored[start : start + length]
        _blosc()  # its absence is no damage
        try:
            return _blosc_part(stored, whole, start, length)
        except (ValueError, RuntimeError, struct.error) as error:
            raise self._fault(f"{member} is damaged ({error})") from None

    def _fault(self, reason: str) -> ValueError:
        return ValueError(f"{self.path.name}: {reason}")


def open_zarr_zip(path: Path) -> ZarrZip:
    """The archive at `path`; the last few stay open, per process."""
    try:
        stat = os.stat(path)
    except OSError:
        raise ValueError(f"{path.name}: missing") from None
    return _kept_open(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=16)
def _kept_open(path: Path, _version: tuple[int, ...]) -> ZarrZip:
    return ZarrZip(path)


def _blosc():
    try:
        from numcodecs import blosc
    except ImportError:
        raise ValueError("zarr files need numcodecs; pip install 'cromss[formats]'") from None
    return blosc


def _blosc_part(frame: memoryview, whole: int, start: int, length: int) -> memoryview:
    """Bytes start .. start + length of a Blosc frame that decodes to `whole` bytes.

    A frame is a header, the offsets of its blocks, and the blocks, each compressed by itself: a frame of the wanted
    blocks alone is put together and decoded. Raises ValueError or RuntimeError when the frame is not what it should be.
    """
    version, codec, flags, item, decoded, block, stored = _BLOSC.unpack_from(frame)
    # the decoder trusts these three numbers: it is not told how long the buffer is
    if stored != len(frame) or decoded != whole or not 0 < block <= max(decoded, 1):
        raise ValueError(f"a Blosc frame of {stored} bytes for {decoded}, where {len(frame)} are for {whole}")
    if flags & _RAW:
        if stored != decoded + _BLOSC.size:
            raise ValueError("a Blosc frame that holds less than it says")
        return frame[_BLOSC.size + start : _BLOSC.size + start + length]
    blocks = -(-decoded // block)
    offsets = np.frombuffer(frame, "<u4", blocks, _BLOSC.size)
    ordered = np.unique(offsets)
    if len(ordered) != blocks or ordered[0] < _BLOSC.size + 4 * blocks or ordered[-1] >= stored:
        raise ValueError("a Blosc frame whose blocks overlap or lie outside of it")
    ends = dict(
        zip(ordered.tolist(), [*ordered[1:].tolist(), stored], strict=True)
    )  # threads write blocks in any order
    first, last = start // block, -(-(start + length) // block)
    wanted = [frame[offset : ends[offset]] for offset in offsets[first:last].tolist()]
    head = _BLOSC.size + 4 * len(wanted)
    starts = list(itertools.accumulate(map(len, wanted), initial=head))
    size = min(last * block, decoded) - first * block
    header = _BLOSC.pack(version, codec, flags, item, size, block, starts[-1])
    pixels = _blosc().decompress(b"".join([header, struct.pack(f"<{len(wanted)}I", *starts[:-1]), *wanted]))
    return memoryview(pixels)[start - first * block : start - first * block + length]
